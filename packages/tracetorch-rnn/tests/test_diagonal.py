"""Complex recurrences, powers and discretisation against NumPy, SciPy and matrix exponentials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracetorch.rnn import diagonal

LENGTH = diagonal._LENGTH


def pairs(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, 2, dtype=torch.float64)


def decays(*shape: int) -> Tensor:
    """Within the unit disk."""
    size, angle = torch.rand(*shape, dtype=torch.float64), 7 * torch.rand(*shape)
    return torch.stack([size * torch.cos(angle), size * torch.sin(angle)], -1)


def as_complex(value: Tensor) -> Any:
    return value.detach()[..., 0].numpy() + 1j * value.detach()[..., 1].numpy()


def numpy_recurrence(start: Any, inputs: Any, decay: Any, resets: Any = None) -> Any:
    h, found = start, []
    for t, value in enumerate(inputs):
        if resets is not None:
            h = np.where(resets[t][:, None], 0, h)
        h = decay * h + value
        found.append(h)
    return np.stack(found)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("steps", [1, 2, LENGTH, 2 * LENGTH - 1, 2 * LENGTH, 2 * LENGTH + 1, 700])
def test_the_recurrence_is_the_loop_whether_in_segments_or_not(
    steps: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr(diagonal, "_WIDE", 0)
    start, inputs, decay = pairs(2, 3), pairs(steps, 2, 3), decays(3)
    for resets in (None, *(torch.rand(steps, 2) < rate for rate in (0.0, 0.02, 0.3, 1.0))):
        h = diagonal.recurrence(start, inputs, decay, resets)
        expected = numpy_recurrence(*map(as_complex, (start, inputs, decay)), resets)
        np.testing.assert_allclose(as_complex(h), expected, rtol=1e-12, atol=1e-12)


def test_what_is_before_a_restart_leaves_nothing_behind_it() -> None:
    start, inputs, decay = pairs(2, 3), pairs(4 * LENGTH, 2, 3), decays(3)
    resets = torch.zeros(len(inputs), 2, dtype=torch.bool)
    at = 2 * LENGTH + 3
    resets[at, 0] = True
    alone = diagonal.recurrence(torch.zeros_like(start[:1]), inputs[at:, :1], decay)
    for height in (1e16, float("inf")):
        loud = inputs.clone()
        loud[at - 5, 0] = height
        h = diagonal.recurrence(start, loud, decay, resets)
        torch.testing.assert_close(h[at:, :1], alone, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 5 * LENGTH),
    around=st.lists(st.integers(0, 3), max_size=2),
    kept=st.booleans(),
    rate=st.sampled_from([None, 0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_gradients_of_the_recurrence_are_those_of_its_operations(
    steps: int, around: list[int], kept: bool, rate: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    decay = decays(*([1] * len(around) if kept else []), 3)
    leaves = [t.requires_grad_() for t in (pairs(*around, 3), pairs(steps, *around, 3), decay)]
    found, resets, keep = [], None, None
    if around and rate is not None:
        resets = torch.rand(steps, around[0]) < rate
        keep = ~resets.view(steps, around[0], *[1] * len(around))
    stepped = diagonal._by_steps(*leaves, keep, reverse=False)
    for h in (diagonal.recurrence(*leaves, resets), stepped):
        loss = (h * torch.cos(torch.arange(h.numel()).view(h.shape))).sum() + h.square().sum()
        found.append([h, *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("restarting", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 2 * LENGTH + 1])
def test_second_derivatives_of_the_recurrence_agree_with_differences(
    steps: int, restarting: bool
) -> None:
    leaves = [t.requires_grad_() for t in (pairs(1, 1), pairs(steps, 1, 1), decays(1))]
    resets = torch.arange(steps)[:, None] % 5 == 2 if restarting else None

    def run(*leaves: Tensor) -> Tensor:
        return diagonal.recurrence(*leaves, resets)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_pairs_may_lie_anywhere_in_memory() -> None:
    start, inputs, decay = pairs(4, 3), pairs(40, 4, 3), decays(3)
    expected = diagonal.recurrence(start, inputs, decay)
    spread = torch.empty(40, 4, 3, 3, dtype=torch.float64)[..., 1:]
    spread.copy_(inputs)
    apart = torch.empty(2, 4, 3, dtype=torch.float64).permute(1, 2, 0).copy_(start)
    got = diagonal.recurrence(apart, spread, decay)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    turned = inputs.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    weights = torch.randn(2, 40, 4, 3, dtype=torch.float64).permute(1, 2, 3, 0)
    (gradient,) = torch.autograd.grad((diagonal.recurrence(start, turned, decay)), turned, weights)
    own = inputs.clone().requires_grad_()
    looped = diagonal._by_steps(start, own, decay, None, reverse=False)
    torch.testing.assert_close(gradient, torch.autograd.grad(looped, own, weights)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65])
def test_powers_are_those_of_numpy_and_differentiable_twice(count: int) -> None:
    value = decays(3)
    expected = as_complex(value) ** np.arange(count)[:, None]
    np.testing.assert_allclose(as_complex(diagonal.powers(value, count)), expected, atol=1e-14)
    value = value[:1].requires_grad_()
    few = min(count, 5)
    assert torch.autograd.gradcheck(lambda v: diagonal.powers(v, few), [value])
    assert torch.autograd.gradgradcheck(lambda v: diagonal.powers(v, few), [value])


# ---------------------------------------------------------------------- discretisation


def real_system(rate: complex) -> tuple[Any, Any]:
    """h' = a h + u for a real u as a system of two real states."""
    return np.array([[rate.real, -rate.imag], [rate.imag, rate.real]]), np.array([[1.0], [0.0]])


rates = st.builds(complex, st.floats(-20, -1e-3), st.floats(-200, 200))


@settings(max_examples=60, deadline=None)
@given(rate=rates, dt=st.floats(1e-4, 2))
def test_zero_order_hold_is_a_matrix_exponential(rate: complex, dt: float) -> None:
    A, B = real_system(rate)
    whole = np.zeros((3, 3))
    whole[:2, :2], whole[:2, 2:] = A * dt, B * dt
    expected = torch.linalg.matrix_exp(torch.tensor(whole)).numpy()
    (re, im), (b_re, b_im) = one_mode("zoh", rate, dt)
    np.testing.assert_allclose([[re, -im], [im, re]], expected[:2, :2], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose([b_re, b_im], expected[:2, 2], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", diagonal.METHODS)
@settings(max_examples=40, deadline=None)
@given(rate=rates, dt=st.floats(1e-4, 2))
def test_scipys_discretisation(method: str, rate: complex, dt: float) -> None:
    signal = pytest.importorskip("scipy.signal")
    A, B = real_system(rate)
    Ad, Bd, *_ = signal.cont2discrete((A, B, np.eye(2), np.zeros((2, 1))), dt, method=method)
    (re, im), (b_re, b_im) = one_mode(method, rate, dt)
    np.testing.assert_allclose([[re, -im], [im, re]], Ad, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose([b_re, b_im], Bd[:, 0], rtol=1e-8, atol=1e-10)


def one_mode(method: str, rate: complex, dt: float) -> list[list[float]]:
    values = [torch.tensor(v, dtype=torch.float64) for v in (dt, rate.real, rate.imag)]
    return [[part.item() for part in pair] for pair in diagonal.discretised(method, *values)]


def test_small_steps_lose_no_digits_in_float32() -> None:
    values = [torch.tensor(v, dtype=torch.float64) for v in (1e-5, -0.5, 3.0)]
    for method in diagonal.METHODS:
        _, exact = diagonal.discretised(method, *values)
        _, rounded = diagonal.discretised(method, *(v.float() for v in values))
        for part, expected in zip(rounded, exact, strict=True):
            torch.testing.assert_close(part.double(), expected, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e-1), (0.5, 0.5)])
def test_draws_are_log_uniform(low: float, high: float) -> None:
    drawn = diagonal.log_uniform(low, high, 20_000).double().log()
    assert low * (1 - 1e-5) <= drawn.min().exp() <= drawn.max().exp() <= high * (1 + 1e-5)
    if low < high:
        span = torch.tensor(high / low).log()
        place = (drawn.sort().values - torch.tensor(low).log()) / span
        levels = (torch.arange(20_000) + 0.5) / 20_000
        assert (place - levels).abs().max() < 1.63 / 20_000**0.5  # Kolmogorov-Smirnov, 1 %
