"""LRU against its equations in NumPy, and the paper's initialisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracetorch import rnn
from tracetorch.rnn.mixing import MixingSSM


def numpy_layer(layer: rnn.LRU, x: Any, h: Any) -> tuple[Any, Any]:
    """The docstring's equations for ``x`` [T, B, in] and ``h`` [B, N], one state at a time."""
    w = {name: value.numpy() for name, value in layer.state_dict().items()}
    B, C = w["B_re"] + 1j * w["B_im"], w["C_re"] + 1j * w["C_im"]
    outputs, h = [], h.copy()
    for t, b in np.ndindex(*x.shape[:2]):
        for n in range(h.shape[1]):
            decay = np.exp(complex(-math.exp(w["nu_log"][n]), math.exp(w["theta_log"][n])))
            h[b, n] = decay * h[b, n] + math.exp(w["gamma_log"][n]) * (B[n] @ x[t, b])
        outputs.append((C @ h[b]).real + w["D"] @ x[t, b])
    return np.reshape(outputs, (*x.shape[:2], -1)), h


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    steps=st.sampled_from([1, 2, 9, 40]),
    seed=st.integers(0, 2**31),
)
def test_the_equations_in_numpy(sizes: tuple[int, int, int], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = rnn.LRU(*sizes).double()
    with torch.no_grad():
        layer.gamma_log += torch.randn_like(layer.gamma_log)
    x = torch.randn(steps, 2, sizes[0], dtype=torch.float64)
    h = torch.randn(2, 2, sizes[2], dtype=torch.float64)
    expected, final = numpy_layer(layer, x.numpy(), h[0].numpy() + 1j * h[1].numpy())
    for run in (lambda x: torch.stack([layer(timestep) for timestep in x]), layer.unroll):
        layer.set_states({"h_re": h[0], "h_im": h[1]})
        y = run(x)
        np.testing.assert_allclose(y.detach(), expected, rtol=1e-10, atol=1e-10)
        got = layer.h_re.detach().numpy() + 1j * layer.h_im.detach().numpy()
        np.testing.assert_allclose(got, final, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- initialisation


def is_uniform(values: Tensor, low: float, high: float) -> bool:
    """Kolmogorov and Smirnov's test at 1 %."""
    place = (values.detach().double().sort().values - low) / (high - low)
    levels = (torch.arange(len(place)) + 0.5) / len(place)
    return bool((place - levels).abs().max() < 1.63 / len(place) ** 0.5)


@pytest.mark.parametrize(
    ("r_min", "r_max", "phase"), [(0.0, 1.0, 2 * math.pi), (0.9, 0.999, 0.3), (0.2, 0.4, 1.0)]
)
def test_decays_are_uniform_on_the_ring(r_min: float, r_max: float, phase: float) -> None:
    layer = rnn.LRU(1, 1, 20_000, r_min, r_max, phase)
    # uniform on a ring: the square of the radius is uniform, and so is the angle
    assert is_uniform(torch.exp(-2 * layer.nu.double()), r_min**2, r_max**2)
    assert is_uniform(layer.theta, 0, phase)
    size = torch.exp(-layer.nu.double())
    torch.testing.assert_close(
        layer.gamma.double().square() + size.square(), torch.ones_like(size), rtol=0, atol=1e-5
    )


def test_states_have_the_variance_of_what_enters_them() -> None:
    layer = rnn.LRU(4, 1, 64, r_min=0.5, r_max=0.9).double()
    with torch.no_grad():
        layer.unroll(torch.randn(40, 4000, 4, dtype=torch.float64))
    entering = layer.B_re.square().sum(1) + layer.B_im.square().sum(1)
    standing = layer.h_re.square().mean(0) + layer.h_im.square().mean(0)
    torch.testing.assert_close(standing, entering.detach(), rtol=0.15, atol=0)


def test_maps_start_normal_by_their_sizes() -> None:
    layer = rnn.LRU(300, 200, 100)
    for value, variance in (
        (layer.B_re, 1 / 600),
        (layer.B_im, 1 / 600),
        (layer.C_re, 1 / 100),
        (layer.C_im, 1 / 100),
        (layer.D, 1 / 300),
    ):
        assert abs(value.var().item() / variance - 1) < 0.05
        assert abs(value.mean().item()) < 0.01
    ring = {"nu_log", "theta_log", "gamma_log"}
    assert layer.state_dict().keys() == ring | {"B_re", "B_im", "C_re", "C_im", "D"}


def test_no_value_of_what_is_stored_makes_it_unstable() -> None:
    layer, x = rnn.LRU(2, 2, 3), torch.randn(3000, 1, 2)
    with torch.no_grad():
        layer.nu_log.copy_(torch.tensor([-8.0, 0.0, 8.0]))
        layer.theta_log.fill_(5.0)
        y = layer.unroll(x)
    assert y.isfinite().all()
    assert layer.h_re.abs().max() < 3000 * x.abs().max() * layer.B_re.abs().sum()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_state": 0}, ValueError, "d_state must be an integer of at least 1, got 0"),
        ({"d_state": "8"}, TypeError, "d_state must be an integer of at least 1, got '8'"),
        ({"r_min": -0.1}, ValueError, "0 ≤ r_min < r_max ≤ 1 must hold, got r_min=-0.1, r_max=1"),
        ({"r_max": 1.1}, ValueError, "must hold, got r_min=0, r_max=1.1"),
        ({"r_min": 0.5, "r_max": 0.5}, ValueError, "must hold, got r_min=0.5, r_max=0.5"),
        ({"r_min": None}, TypeError, "r_min must be a number, got None"),
        ({"max_phase": 0}, ValueError, r"max_phase must be in \(0, 2π\], got 0"),
        ({"max_phase": 7.0}, ValueError, r"max_phase must be in \(0, 2π\], got 7.0"),
        ({"max_phase": "pi"}, TypeError, "max_phase must be a number, got 'pi'"),
    ],
)
def test_bad_arguments_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^LRU: .*{message}"):
        rnn.LRU(3, 4, **options)


def test_a_base_without_maps_says_so() -> None:
    class Empty(MixingSSM):
        def __init__(self) -> None:
            super().__init__(3, 4, 2, -1)

    with pytest.raises(NotImplementedError, match=r"Empty must define maps\(self, p\)"):
        Empty()(torch.ones(1, 3))
