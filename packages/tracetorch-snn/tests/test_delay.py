"""Delays: the input of that many timesteps ago, whole or between two, learned or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from tracetorch import snn


def reference(x: np.ndarray, delays: np.ndarray) -> np.ndarray:
    """By ``np.interp`` of each neuron's own course, zero before it began."""
    times = np.arange(len(x), dtype=float)
    y = np.zeros_like(x)
    for place in np.ndindex(x.shape[1:]):
        longer = np.concatenate([np.zeros(50), x[(slice(None), *place)]])
        y[(slice(None), *place)] = np.interp(
            times - delays[place[-1]], np.arange(-50, len(x)), longer
        )
    return y


@given(
    delays=st.lists(st.floats(0, 20), min_size=3, max_size=3),
    more=st.integers(0, 5),
    length=st.integers(1, 30),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_stepped_and_unrolled_is_the_course_of_then(
    delays: list[float], more: int, length: int, seed: int
) -> None:
    longest = max(1, int(np.ceil(max(delays)))) + more
    layer = snn.Delay(3, torch.tensor(delays, dtype=torch.float64), longest).double()
    x = np.random.default_rng(seed).normal(size=(length, 2, 3))
    y = layer.unroll(torch.tensor(x))
    np.testing.assert_allclose(y.numpy(), reference(x, np.array(delays)), rtol=1e-9, atol=1e-9)
    state = layer.recent
    layer.zero_states()
    stepped = torch.stack([layer(now) for now in torch.tensor(x)])
    torch.testing.assert_close(stepped, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.recent, state, rtol=0, atol=0)


@pytest.mark.parametrize("learn", [False, True])
def test_a_delay_keeps_the_contract(learn: bool) -> None:
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    delays = torch.tensor([0.3, 2.6, 1.4], dtype=torch.float64)
    tt.testing.check_layer(lambda: snn.Delay(3, delays, 4, learn_delay=learn).double(), x)
    if learn:
        make = lambda: snn.Delay(3, delays, 4, learn_delay=True).double()  # noqa: E731
        tt.testing.gradients_match_differences(make, x)


@pytest.mark.parametrize("learn", [False, True])
def test_a_delay_as_long_as_there_can_be_unrolls_as_it_steps(learn: bool) -> None:
    x = torch.randn(9, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tt.testing.step_equals_unroll(lambda: snn.Delay(3, 4.0, learn_delay=learn).double(), x)


def looped(layer: snn.Delay, x: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
    outputs = []
    for mask, now in zip(resets, x, strict=True):
        layer.zero_states(mask)
        outputs.append(layer(now))
    return torch.stack(outputs)


@given(
    delays=st.lists(st.floats(0, 6), min_size=3, max_size=3),
    around=st.sampled_from([(), (2,)]),
    rank=st.integers(0, 1),
    length=st.integers(1, 30),
    rate=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    learn=st.booleans(),
    bad=st.sampled_from([None, None, float("inf"), float("nan")]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_restarts_within_a_sequence_are_the_loop(
    delays: list[float],
    around: tuple[int, ...],
    rank: int,
    length: int,
    rate: float,
    learn: bool,
    bad: float | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    delay = torch.tensor(delays, dtype=torch.float64) if rank else delays[0]
    layer = snn.Delay(3, delay, 7, delay_rank=rank, learn_delay=learn).double()
    x, resets = torch.randn(length, 4, *around, 3).double(), torch.rand(length, 4) < rate
    standing = torch.randn(4, *around, 3, 7, dtype=torch.float64)
    if bad is not None:
        x[length // 2, 1] = bad
    found = []
    for run in (looped, snn.Delay.unroll):
        sources = [x.clone().requires_grad_(), standing.clone().requires_grad_()]
        layer.set_states({"recent": sources[1]})
        ends = [run(layer, sources[0], resets), layer.recent]
        loss = sum(((k + 1) * end.nan_to_num(0, 0, 0).sin()).sum() for k, end in enumerate(ends))
        found.append([*ends, *torch.autograd.grad(loss, [*sources, *layer.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_no_samples_restart_as_well() -> None:
    y = snn.Delay(3, 2.0).unroll(torch.rand(6, 0, 3), torch.zeros(6, 0, dtype=torch.bool))
    assert y.shape == (6, 0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_spikes_in_sixteen_bits_restart_at_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = snn.Delay(256, 2.5, longest=8).to(dtype)
    x, resets = torch.ones(100, 16, 256, dtype=dtype), torch.rand(100, 16) < 0.05
    wanted = looped(layer, x, resets)
    layer.zero_states()
    monkeypatch.setattr(snn.Delay, "step", None)
    torch.testing.assert_close(layer.unroll(x, resets), wanted)


def test_a_compiled_delay_restarts() -> None:
    layer, x = snn.Delay(3, torch.tensor([0.0, 1.5, 3.0])), torch.randn(9, 2, 3)
    resets = torch.rand(9, 2) < 0.3
    torch._dynamo.reset()
    y = torch.compile(layer.unroll, fullgraph=True, backend="eager")(x, resets)
    layer.zero_states()
    torch.testing.assert_close(y, looped(layer, x, resets))


def test_whole_delays_leave_spikes_spikes_and_a_sequence_goes_on() -> None:
    spikes = (torch.rand(40, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    layer = snn.Delay(4, torch.tensor([0.0, 1.0, 3.0, 7.0]))
    y = torch.cat([layer.unroll(part) for part in spikes.split([3, 1, 20, 16])])
    for neuron, delay in enumerate((0, 1, 3, 7)):
        assert torch.equal(y[delay:, :, neuron], spikes[: 40 - delay, :, neuron])
        assert not y[:delay, :, neuron].any()


def test_a_delay_is_learned() -> None:
    x = torch.randn(200, 1, 1, generator=torch.Generator().manual_seed(0)).cumsum(0) / 5
    target = snn.Delay(1, 6.0).unroll(x)
    layer = snn.Delay(1, 1.5, 10, learn_delay=True)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(150):
        layer.zero_states()
        loss = (layer.unroll(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(layer.delay.item() - 6.0) < 0.1


def test_recurrence_through_a_delay_in_a_model() -> None:
    class Echo(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.delay = snn.Delay(2, torch.tensor([2.0, 3.0]), dim=-3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.delay(x)
            return found

    model, x = Echo(), torch.rand(9, 3, 2, 4, 4)
    lengths = torch.tensor([9, 4, 6])
    tt.check_unroll(model, x)
    model.zero_states()
    model.unroll(x, lengths=lengths)
    assert model.delay.recent is not None
    assert torch.equal(model.delay.recent[1, 1, ..., 0], x[3, 1, 1])


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: snn.Delay(2, -1.0), ValueError, "delay must be finite and not below 0, got -1.0"),
        (lambda: snn.Delay(2, float("inf")), ValueError, "delay must be finite"),
        (lambda: snn.Delay(2, 3.5, 3), ValueError, "longest must be a number .* at least 4, got 3"),
        (lambda: snn.Delay(2, 1.0, 1.5), TypeError, r"longest must be a number .*, got 1\.5"),
        (lambda: snn.Delay(2, torch.ones(3)), ValueError, r"Delay: delay has shape \[3\]"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()
