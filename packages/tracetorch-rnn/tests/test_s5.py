"""S5 against its equations in NumPy, and the dense HiPPO-N system that it starts as."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tracetorch import rnn
from tracetorch.rnn import spectra

METHODS = ["zoh", "bilinear"]


def parts(layer: rnn.S5) -> tuple[Any, Any, Any, Any, Any]:
    """Λ, Δ, B̃, C̃ and D."""
    w = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    rates = -np.exp(w["log_Lambda_re"]) + 1j * w["Lambda_im"]
    B, C = (w[name][..., 0] + 1j * w[name][..., 1] for name in "BC")
    return rates, np.exp(w["log_dt"]), B, C, w["D"]


def numpy_layer(layer: rnn.S5, x: Any, h: Any) -> tuple[Any, Any]:
    """The docstring's equations for ``x`` [T, B, in] and ``h`` [B, n]."""
    rates, dt, B, C, D = parts(layer)
    if layer.discretization == "zoh":
        decay, gain = np.exp(dt * rates), (np.exp(dt * rates) - 1) / rates
    else:
        decay, gain = (1 + dt * rates / 2) / (1 - dt * rates / 2), dt / (1 - dt * rates / 2)
    outputs, h = [], h.copy()
    for t, b in np.ndindex(*x.shape[:2]):
        for n in range(h.shape[1]):
            h[b, n] = decay[n] * h[b, n] + gain[n] * (B[n] @ x[t, b])
        outputs.append(2 * (C @ h[b]).real + D @ x[t, b])
    return np.reshape(outputs, (*x.shape[:2], -1)), h


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)),
    steps=st.sampled_from([1, 2, 9, 40]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 2**31),
)
def test_the_equations_in_numpy(
    sizes: tuple[int, int, int, int], steps: int, method: str, seed: int
) -> None:
    torch.manual_seed(seed)
    features, out, half, blocks = sizes
    layer = rnn.S5(features, out, 2 * half * blocks, blocks, discretization=method).double()
    with torch.no_grad():
        layer.log_dt += 2
        layer.log_Lambda_re += 0.5 * torch.randn_like(layer.log_Lambda_re)
    x = torch.randn(steps, 2, features, dtype=torch.float64)
    h = torch.randn(2, 2, half * blocks, dtype=torch.float64)
    expected, final = numpy_layer(layer, x.numpy(), h[0].numpy() + 1j * h[1].numpy())
    for run in (lambda x: torch.stack([layer(timestep) for timestep in x]), layer.unroll):
        layer.set_states({"h_re": h[0], "h_im": h[1]})
        y = run(x)
        np.testing.assert_allclose(y.detach(), expected, rtol=1e-10, atol=1e-10)
        got = layer.h_re.detach().numpy() + 1j * layer.h_im.detach().numpy()
        np.testing.assert_allclose(got, final, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_at_first_it_is_a_dense_system_of_hippo_matrices(method: str, blocks: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    dt, size = 0.05, 4
    torch.set_default_dtype(torch.float64)
    try:
        layer = rnn.S5(3, 2, size * blocks, blocks, dt_min=dt, dt_max=dt, discretization=method)
    finally:
        torch.set_default_dtype(torch.float32)
    root = np.sqrt(np.arange(size) + 0.5)
    upper = np.triu(np.outer(root, root), 1)
    A = np.kron(np.eye(blocks), upper - upper.T - np.eye(size) / 2)
    V = np.kron(np.eye(blocks), spectra.hippo_normal(size)[1])
    _, _, B, C, D = parts(layer)
    system = A, 2 * (V @ B).real, 2 * (C @ V.conj().T).real, D
    Ad, Bd, *_ = signal.cont2discrete(system, dt, method=method)
    h, expected = np.zeros(size * blocks), []
    x = torch.randn(50, 3, dtype=torch.float64)
    for value in x.numpy():
        h = Ad @ h + Bd @ value
        expected.append(system[2] @ h + D @ value)
    y = layer.unroll(x).detach()
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


def test_initial_values() -> None:
    layer = rnn.S5(300, 200, 64, blocks=4, dt_min=0.01, dt_max=0.2).double()
    values = np.tile(spectra.hippo_normal(16)[0], 4)
    np.testing.assert_allclose(layer.Lambda_im.detach(), values.imag, rtol=1e-6)
    np.testing.assert_allclose(layer.Lambda_re.detach(), values.real, rtol=1e-6)
    assert 0.01 * (1 - 1e-5) <= layer.dt.min() <= layer.dt.max() <= 0.2 * (1 + 1e-5)
    # a unitary change of basis keeps what real and imaginary part have together
    for value, variance in ((layer.B, 1 / 300), (layer.C, 1 / 64)):
        assert abs(value.square().sum(-1).mean().item() / variance - 1) < 0.1
    assert abs(layer.D.var().item() * 300 - 1) < 0.1
    names = {"log_Lambda_re", "Lambda_im", "log_dt", "B", "C", "D"}
    assert layer.state_dict().keys() == names
    assert layer.B.shape == (32, 300, 2)
    assert layer.C.shape == (200, 32, 2)


def test_maps_start_as_random_real_ones_in_the_basis_of_eigenvectors() -> None:
    layer = rnn.S5(500, 400, 8).double()
    _, _, B, C, _ = parts(layer)
    V = spectra.hippo_normal(8)[1]
    real, out = 2 * (V @ B).real, 2 * (C @ V.conj().T).real
    np.testing.assert_allclose(V.conj().T @ real, B, atol=1e-6)
    np.testing.assert_allclose(out @ V, C, atol=1e-6)
    assert abs(real.std() * math.sqrt(500) - 1) < 0.1
    assert abs(out.std() * math.sqrt(8) - 1) < 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_state": 5}, ValueError, r"d_state must be even \(pairs of conjugates\), got 5"),
        ({"d_state": None}, TypeError, "d_state must be an integer of at least 2, got None"),
        ({"blocks": 0}, ValueError, "blocks must be an integer of at least 1, got 0"),
        ({"d_state": 12, "blocks": 4}, ValueError, r"a multiple of 2·blocks = 8, got 12"),
        ({"discretization": "foh"}, ValueError, r"one of \['zoh', 'bilinear'\], got 'foh'"),
        ({"dt_min": -1}, ValueError, "must hold, got dt_min=-1, dt_max=0.1"),
        ({"dt_min": True}, TypeError, "dt_min must be a number, got True"),
    ],
)
def test_bad_arguments_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^S5: .*{message}"):
        rnn.S5(3, 4, **options)
