"""Distances between spike trains: against their definitions, by hand, as metrics, refused."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from tracetorch.measures import van_rossum, victor_purpura

STEPS = 9


def train(*times: int, steps: int = STEPS) -> Tensor:
    spikes = torch.zeros(steps, 1, dtype=torch.float64)
    spikes[list(times)] = 1
    return spikes


def times_of(spikes: Tensor) -> list[int]:
    return [time for time, fires in enumerate(spikes.tolist()) if fires]


@st.composite
def pairs(draw: st.DrawFn, count: int = 2) -> tuple[Tensor, ...]:
    """Several tensors of trains ``[T, B, N]`` of one shape."""
    shape = (draw(st.integers(1, STEPS)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    shares = draw(st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=count, max_size=count))
    return tuple((torch.rand(shape, generator=generator) < share).double() for share in shares)


# ------------------------------------------------------------------ van Rossum


def by_pairs(one: list[int], other: list[int], tau: float) -> float:
    """The integral as a sum over all pairs of spikes."""
    signed = [(time, 1) for time in one] + [(time, -1) for time in other]
    total = sum(s * t * math.exp(-abs(a - b) / tau) for a, s in signed for b, t in signed)
    return math.sqrt(max(total, 0.0) / 2)


@given(trains=pairs(), tau=st.floats(0.1, 100.0))
def test_van_rossum_is_the_sum_over_pairs_of_spikes(
    trains: tuple[Tensor, Tensor], tau: float
) -> None:
    one, other = trains
    found = van_rossum(one, other, tau)
    for b in range(one.shape[1]):
        for n in range(one.shape[2]):
            expected = by_pairs(times_of(one[:, b, n]), times_of(other[:, b, n]), tau)
            # squared: near 0, a root has half of the digits
            assert found[b, n].item() ** 2 == pytest.approx(expected**2, rel=1e-11, abs=1e-12)


def test_van_rossum_is_the_integral_of_the_traces() -> None:
    one, other, tau, per_step = train(0, 3, 4), train(1, 8), 2.5, 20_000
    clock = torch.arange(60 * per_step, dtype=torch.float64).add(0.5) / per_step
    difference = torch.zeros_like(clock)
    for sign, times in ((1, (0, 3, 4)), (-1, (1, 8))):
        for time in times:
            decayed = torch.exp((time - clock).clamp(max=0) / tau)
            difference += sign * torch.where(clock >= time, decayed, 0.0)
    integral = (difference**2).sum().item() / per_step / tau
    assert van_rossum(one, other, tau).item() ** 2 == pytest.approx(integral, rel=1e-6)


def test_van_rossum_by_hand() -> None:
    nothing = train()
    assert van_rossum(train(4), nothing, 3.0).item() ** 2 == pytest.approx(0.5)
    # far apart: a half each; as far apart as tau: 1 - 1/e
    assert van_rossum(train(0), train(8), 0.1).item() ** 2 == pytest.approx(1.0)
    assert van_rossum(train(2), train(5), 3.0).item() ** 2 == pytest.approx(1 - math.exp(-1))


# ------------------------------------------------------------------ Victor and Purpura


def least(one: tuple[int, ...], other: tuple[int, ...], cost: float) -> float:
    """By recursion over the last spike of either."""

    @cache
    def g(i: int, j: int) -> float:
        if i == 0 or j == 0:
            return i + j
        moved = g(i - 1, j - 1) + cost * abs(one[i - 1] - other[j - 1])
        return min(g(i - 1, j) + 1, g(i, j - 1) + 1, moved)

    return g(len(one), len(other))


@given(trains=pairs(), cost=st.sampled_from([0.0, 0.1, 0.37, 1.0, 5.0]))
def test_victor_purpura_is_the_recursion(trains: tuple[Tensor, Tensor], cost: float) -> None:
    one, other = trains
    found = victor_purpura(one, other, cost)
    for b in range(one.shape[1]):
        for n in range(one.shape[2]):
            times = tuple(times_of(one[:, b, n])), tuple(times_of(other[:, b, n]))
            assert found[b, n].item() == pytest.approx(least(*times, cost), abs=1e-12)


@given(trains=pairs())
def test_victor_purpura_without_a_cost_counts_and_with_a_high_one_finds_coincidences(
    trains: tuple[Tensor, Tensor],
) -> None:
    one, other = trains
    numbers = (one.sum(0) - other.sum(0)).abs()
    assert torch.equal(victor_purpura(one, other, 0.0), numbers)
    alone = (one != other).double().sum(0)
    assert torch.equal(victor_purpura(one, other, 2.0), alone)


def test_victor_purpura_by_hand() -> None:
    assert victor_purpura(train(0, 4), train(1), 0.5).item() == 1.5  # moved by 1, removed
    assert victor_purpura(train(3), train(5), 0.75).item() == 1.5  # moved by 2
    assert victor_purpura(train(3), train(6), 0.75).item() == 2.0  # removed and added
    assert victor_purpura(train(), train(2, 3), 1.0).item() == 2.0
    assert victor_purpura(train(), train(), 1.0).item() == 0.0


# ------------------------------------------------------------------ both

BOTH = pytest.mark.parametrize(
    "distance",
    [
        lambda one, other, **more: van_rossum(one, other, 2.0, **more),
        lambda one, other, **more: victor_purpura(one, other, 0.4, **more),
    ],
    ids=["van_rossum", "victor_purpura"],
)


@BOTH
@given(trains=pairs(count=3))
def test_a_distance_is_a_metric(distance: Any, trains: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, c = trains
    assert torch.equal(distance(a, a), torch.zeros(a.shape[1:], dtype=torch.float64))
    torch.testing.assert_close(distance(a, b), distance(b, a))
    assert bool((distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12).all())
    apart = (a != b).any(0)
    assert torch.equal(distance(a, b) > 1e-6, apart)


@BOTH
@given(trains=pairs(), seed=st.integers(0, 99))
def test_lengths_cut_and_values_do_not_matter(
    distance: Any, trains: tuple[Tensor, Tensor], seed: int
) -> None:
    one, other = trains
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, len(one) + 1, one.shape[1:2], generator=generator)
    ended = (torch.arange(len(one))[:, None] >= lengths)[..., None]
    signs = torch.randn(one.shape, generator=generator, dtype=torch.float64)
    strange = torch.where(ended, math.nan, one * signs)
    zeroed = [torch.where(ended, 0.0, t) for t in (one, other)]
    torch.testing.assert_close(distance(strange, other, lengths=lengths), distance(*zeroed))


@BOTH
def test_neurons_may_have_any_shape_and_recordings_are_compared_by_name(distance: Any) -> None:
    one, other = (torch.rand(2, 8, 2, 6, dtype=torch.float64) < 0.4).double()
    found = distance(one, other)
    shaped = distance(one.unflatten(2, (3, 2)), other.unflatten(2, (3, 2)))
    assert torch.equal(shaped, found.unflatten(1, (3, 2)))
    by_name = distance({"a": one, "b": other}, {"b": one, "a": other})
    assert list(by_name) == ["a", "b"]
    assert torch.equal(by_name["a"], found)
    torch.testing.assert_close(by_name["b"], found)
    assert torch.equal(distance(one[:, 0], other[:, 0]), found[0])
    assert distance(one.bool(), other.bool()).dtype == torch.float32


@BOTH
def test_there_may_be_no_samples(distance: Any) -> None:
    assert distance(torch.zeros(4, 0, 3), torch.zeros(4, 0, 3)).shape == (0, 3)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_a_time_constant_is_positive(tau: float) -> None:
    with pytest.raises(ValueError, match=r"^van_rossum: tau must be a number in \(0, ∞\), got"):
        van_rossum(train(), train(), tau)


@pytest.mark.parametrize("cost", [-0.1, math.inf, math.nan])
def test_a_cost_is_not_negative(cost: float) -> None:
    with pytest.raises(ValueError, match=r"^victor_purpura: cost must be .* in \[0, ∞\), got"):
        victor_purpura(train(), train(), cost)


@BOTH
def test_what_does_not_fit_is_refused(distance: Any) -> None:
    with pytest.raises(ValueError, match=r"^v.*: first and second must have .* \[9, 1\] and \[4, "):
        distance(train(), train(steps=4))
    with pytest.raises(TypeError, match=r"^v.*: second must be a real tensor .* got a list"):
        distance(train(), [1.0])
    with pytest.raises(
        ValueError, match=r"^v.*: both recordings .* names, got \['a'\] and \['b'\]"
    ):
        distance({"a": train()}, {"b": train()})
