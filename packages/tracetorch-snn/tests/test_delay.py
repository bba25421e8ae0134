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
