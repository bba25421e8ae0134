"""Encoders and decoders: NumPy loops, statistics, and that decoding undoes encoding."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracetorch.snn import decoders, encoders

UNIT = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(
    lambda values: torch.tensor([values], dtype=torch.float64)
)
FEW = settings(max_examples=50, deadline=None)


# ---------------------------------------------------------------------- chance


@pytest.mark.parametrize("encode", [encoders.rate, encoders.poisson])
def test_chance_is_seeded_by_its_generator_alone(encode: Callable[..., Tensor]) -> None:
    x = torch.rand(3, 2, 4)

    def draw(seed: int) -> Tensor:
        return encode(x, 50, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    first = draw(0)
    assert first.shape == (50, 3, 2, 4)
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_rate_recovers_probabilities_within_its_standard_deviation() -> None:
    x, steps = torch.linspace(0, 1, 400, dtype=torch.float64)[None], 10_000
    spikes = encoders.rate(x, steps, generator=torch.Generator().manual_seed(0))
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    error = decoders.mean(spikes) - x
    deviation = (x * (1 - x) / steps).sqrt()
    assert (error.abs() <= 4 * deviation).all()
    inner = deviation > 0
    assert (error[inner] / deviation[inner]).std().item() == pytest.approx(1, abs=0.15)


def test_rate_is_independent_over_time() -> None:
    spikes = encoders.rate(torch.full((1, 1), 0.3), 40_000, generator=torch.Generator())
    s = spikes.flatten() - spikes.mean()
    assert abs((s[1:] * s[:-1]).mean().item() / s.var().item()) < 4 / math.sqrt(40_000)


def test_poisson_has_the_mean_and_variance_of_its_rate() -> None:
    x = torch.tensor([[0.0, 0.5, 3.0]], dtype=torch.float64)
    counts = encoders.poisson(x, 40_000, generator=torch.Generator().manual_seed(0))[:, 0]
    np.testing.assert_allclose(counts.mean(0), x[0], atol=0.05)
    np.testing.assert_allclose(counts.var(0), x[0], atol=0.1)
    assert counts.max() > 1


# ---------------------------------------------------------------------- latency


@given(UNIT, st.integers(1, 40))
@FEW
def test_linear_latency_is_undone_to_half_a_timestep(x: Tensor, steps: int) -> None:
    spikes = encoders.latency(x, steps)
    assert (spikes.sum(0) <= 1).all()
    first = decoders.first_spike(spikes).double()
    found = torch.where(spikes.any(0), 1 - (first + 0.5) / steps, 0.0)
    assert ((found - x).abs() <= 0.5 / steps + 1e-9).all()
    assert not spikes[:, x == 0].any()


@given(UNIT, st.integers(1, 60), st.floats(0.5, 20), st.floats(0.01, 0.9))
@FEW
def test_logarithmic_latency_is_when_an_integrator_passes_the_threshold(
    x: Tensor, steps: int, tau: float, threshold: float
) -> None:
    first = decoders.first_spike(encoders.latency(x, steps, tau=tau, threshold=threshold))[0]
    for value, found in zip(x[0].tolist(), first.tolist(), strict=True):
        time = tau * math.log(value / (value - threshold)) if value > threshold else math.inf
        # in float64, at a timestep's very edge, either one
        assert {min(math.floor(t), steps) if t < math.inf else steps for t in
                (time * (1 - 1e-12), time * (1 + 1e-12))} & {found}  # fmt: skip


# ---------------------------------------------------------------------- changes

SIGNAL = st.lists(st.floats(-1, 1), min_size=2, max_size=30)


@given(SIGNAL, st.floats(0.05, 0.8))
@FEW
def test_delta_is_a_loop_over_changes(values: list[float], threshold: float) -> None:
    found = encoders.delta(torch.tensor(values, dtype=torch.float64)[:, None], threshold)
    wanted = [0.0]
    for before, after in itertools.pairwise(values):
        change = after - before
        wanted.append(math.copysign(1, change) if abs(change) > threshold else 0.0)
    assert found.flatten().tolist() == wanted


@given(SIGNAL, st.floats(0.05, 0.8))
@FEW
def test_step_forward_is_a_loop_with_a_base_line(values: list[float], threshold: float) -> None:
    found = encoders.step_forward(torch.tensor(values, dtype=torch.float64)[:, None], threshold)
    base, wanted = values[0], []
    for value in values:
        spike = (value - base > threshold) - (base - value > threshold)
        base += threshold * spike
        wanted.append(float(spike))
    assert found.flatten().tolist() == wanted


@given(SIGNAL, st.floats(0.05, 0.8), st.floats(-5, 5))
@FEW
def test_step_forward_is_undone_to_a_threshold(
    changes: list[float], threshold: float, start: float
) -> None:
    """For a signal that moves by no more than the threshold in a timestep."""
    x = start + threshold * torch.tensor(changes, dtype=torch.float64).cumsum(0)[:, None]
    found = decoders.step_forward(encoders.step_forward(x, threshold), threshold, start=x[0])
    assert ((found - x).abs() <= threshold + 1e-9).all()


def test_signals_of_many_neurons_are_encoded_each_on_its_own() -> None:
    x = torch.randn(20, 3, 2, 4, generator=torch.Generator().manual_seed(0)).cumsum(0)
    for encode in (encoders.delta, encoders.step_forward):
        whole = encode(x, 0.8)
        single = [encode(x[:, b, i, j][:, None], 0.8)[:, 0] for b, i, j in np.ndindex(3, 2, 4)]
        assert torch.equal(whole.flatten(1), torch.stack(single, 1))
        assert set(whole.unique().tolist()) == {-1.0, 0.0, 1.0}


# ---------------------------------------------------------------------- population


@given(UNIT, st.integers(3, 12), st.floats(-3, 3), st.floats(0.1, 4))
@FEW
def test_population_is_a_loop_over_gaussian_fields(
    unit: Tensor, neurons: int, low: float, width: float
) -> None:
    high, steps = low + width, 20
    x = (low + width * unit).clamp(low, high)
    spikes = encoders.population(x, neurons, steps, low=low, high=high)
    assert spikes.shape == (steps, *x.shape, neurons)
    sigma = width / (neurons - 2) / 1.5
    for b, i in np.ndindex(*x.shape):
        for m in range(1, neurons + 1):
            centre = low + (2 * m - 3) / 2 * width / (neurons - 2)
            activation = math.exp(-((float(x[b, i]) - centre) ** 2) / (2 * sigma**2))
            fired = spikes[:, b, i, m - 1].nonzero().flatten().tolist()
            edge = abs(activation - 0.1) < 1e-4
            if activation < 0.1 and not edge:
                assert fired == []
            elif not edge:
                # centres are float32: at a timestep's edge, either one
                assert len(fired) == 1
                assert abs(fired[0] + 0.5 - (1 - activation) * steps) <= 0.5 + 1e-3


@given(st.floats(0, 1), st.integers(3, 20))
@FEW
def test_the_first_spikes_of_a_population_tell_the_value(value: float, neurons: int) -> None:
    x, steps = torch.tensor([[value]], dtype=torch.float64), 1000
    first = decoders.first_spike(encoders.population(x, neurons, steps))[0, 0]
    middle = encoders.centres(neurons).double()
    found = middle[first == first.min()].mean().item()
    spacing = 1 / (neurons - 2)
    assert abs(found - value) <= 0.51 * spacing


# ---------------------------------------------------------------------- decoders

LENGTHS = torch.tensor([5, 0, 2])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_decoders_are_loops(lengths: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 2, 4, generator=generator, dtype=torch.float64)
    spikes = (x > 1).double() - (x < -1.2).double()
    found = {
        "count": decoders.count(spikes, lengths=lengths),
        "mean": decoders.mean(x, lengths=lengths),
        "first": decoders.first_spike(spikes, lengths=lengths),
        "last": decoders.last_membrane(x, lengths=lengths),
        "highest": decoders.max_membrane(x, lengths=lengths),
    }
    silent = 0
    for b, i, j in np.ndindex(3, 2, 4):
        end = 5 if lengths is None else int(lengths[b])
        s, u = spikes[:end, b, i, j].tolist(), x[:end, b, i, j].tolist()
        fired = [t for t in range(end) if s[t] != 0]
        silent += not fired
        wanted = {
            "count": sum(s),
            "mean": sum(u) / end if end else 0,
            "first": fired[0] if fired else end,
            "last": u[-1] if end else 0,
            "highest": max(u, default=0),
        }
        for name, value in wanted.items():
            assert found[name][b, i, j].item() == pytest.approx(value, rel=1e-12), name
    assert silent
    assert found["first"].dtype == torch.int64


def test_decoders_do_not_read_padding() -> None:
    x = torch.rand(5, 3, 4, dtype=torch.float64)
    padded = torch.arange(5)[:, None] >= LENGTHS
    spoilt = x.clone()
    spoilt[padded] = math.nan
    for decode in (
        decoders.count,
        decoders.mean,
        decoders.first_spike,
        decoders.last_membrane,
        decoders.max_membrane,
    ):
        found = decode(spoilt.requires_grad_(), lengths=LENGTHS)
        assert torch.equal(found, decode(x, lengths=LENGTHS))
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(found.sum(), spoilt)
            assert (gradient[padded] == 0).all()
            assert gradient.isfinite().all()


def test_gradients_of_decoders() -> None:
    x = torch.rand(5, 3, 2, dtype=torch.float64, requires_grad=True)
    for decode in (decoders.count, decoders.mean, decoders.last_membrane, decoders.max_membrane):
        assert torch.autograd.gradcheck(lambda x, d=decode: d(x, lengths=LENGTHS), (x,))
    assert torch.autograd.gradcheck(lambda x: decoders.step_forward(x, 0.5), (x,))


def test_the_last_membrane_is_no_view() -> None:
    x = torch.zeros(3, 1, 1)
    decoders.last_membrane(x).fill_(1)
    assert not x.any()


# ---------------------------------------------------------------------- errors

X = torch.rand(2, 3)
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: encoders.rate(X + 1, 5), ValueError, "x must lie in [0, 1], got values from 1."),
    (lambda: encoders.rate(X - 1, 5), ValueError, "x must lie in [0, 1], got values from -"),
    (
        lambda: encoders.rate(X * math.nan, 5),
        ValueError,
        "x must lie in [0, 1], got values from na",
    ),
    (lambda: encoders.poisson(-X, 5), ValueError, "x must lie in [0, ∞), got values from -"),
    (lambda: encoders.poisson(X / 0, 5), ValueError, "x must lie in [0, ∞), got values from inf"),
    (lambda: encoders.rate(X.long(), 5), TypeError, "x must be a floating-point tensor [B, …]"),
    (lambda: encoders.rate(X[:0], 5), ValueError, "at least one sample, got the shape [0, 3]"),
    (lambda: encoders.rate(X, 0), ValueError, "steps must be an integer of at least 1, got 0"),
    (lambda: encoders.latency(X, 2.0), TypeError, "steps must be an integer"),  # type: ignore[arg-type]
    (lambda: encoders.latency(X, 2, tau=0.0), ValueError, "tau must be a number of timesteps"),
    (lambda: encoders.latency(X, 2, threshold=1.0), ValueError, "threshold must be a number in"),
    (lambda: encoders.delta(X, 0.0), ValueError, "threshold must be a number in (0, ∞), got 0.0"),
    (lambda: encoders.step_forward(X[0], 1.0), ValueError, "x must be [T, B, …]"),
    (lambda: encoders.population(X, 2, 5), ValueError, "neurons must be an integer of at least 3"),
    (lambda: encoders.population(X + 2, 5, 5), ValueError, "x must lie in [0, 1], got values"),
    (lambda: encoders.population(X, 5, 5, sharpness=0.0), ValueError, "sharpness must be"),
    (lambda: encoders.population(X, 5, 5, cutoff=1.5), ValueError, "cutoff must be"),
    (lambda: encoders.centres(5, 1.0, 1.0), ValueError, "low must be below high, got low=1.0"),
    (lambda: encoders.centres(2.5), TypeError, "neurons must be an integer"),  # type: ignore[arg-type]
    (lambda: decoders.count(X.long()), TypeError, "spikes must be a floating-point tensor"),
    (lambda: decoders.mean(X[:, 0]), ValueError, "x must be [T, B, …]"),
    (
        lambda: decoders.last_membrane(X, lengths=torch.tensor([1, 2])),
        ValueError,
        "lengths must have one entry for each of the 3 samples, got the shape [2]",
    ),
    (lambda: decoders.step_forward(X, -1.0), ValueError, "threshold must be"),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG)
def test_bad_arguments_are_refused(
    call: Callable[[], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        call()


# ---------------------------------------------------------------------- narrow types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_keep_rates_and_timesteps(dtype: torch.dtype) -> None:
    low = torch.full((2000,), 1e-4, dtype=dtype)
    spikes = encoders.rate(low, 500, generator=torch.Generator().manual_seed(0))
    assert spikes.dtype == dtype
    assert 0.5e-4 < spikes.float().mean().item() < 2e-4
    values = torch.linspace(0.01, 1, 50).to(dtype)
    for encoded in (encoders.latency(values, 5000), encoders.population(values, 4, 5000, cutoff=0)):
        assert encoded.dtype == dtype
        assert encoded.sum(0).max() <= 1
    assert torch.equal(
        encoders.latency(values, 5000).argmax(0), encoders.latency(values.float(), 5000).argmax(0)
    )
