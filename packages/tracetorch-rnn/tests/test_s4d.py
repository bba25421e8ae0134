"""S4D against its equations in NumPy, SciPy's discretisation, a convolution, and the paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tracetorch import rnn
from tracetorch.rnn import s4d, spectra

METHODS = ["zoh", "bilinear"]


def perturbed(*sizes: int, **options: Any) -> rnn.S4D:
    """A float64 layer whose parameters are no longer as initialised, with large steps."""
    layer = rnn.S4D(*sizes, **options).double()
    with torch.no_grad():
        layer.log_dt += 2
        layer.log_A_real += 0.5 * torch.randn_like(layer.log_A_real)
        layer.A_imag += torch.randn_like(layer.A_imag)
    return layer


def raw(layer: rnn.S4D) -> dict[str, Any]:
    return {name: value.numpy() for name, value in layer.state_dict().items()}


def numpy_layer(layer: rnn.S4D, x: Any, h: Any) -> tuple[Any, Any]:
    """The docstring's equations for ``x`` [T, B, D] and ``h`` [B, D, n], one state at a time."""
    w, outputs, h = raw(layer), [], h.copy()
    for t, b in np.ndindex(*x.shape[:2]):
        y = w["D"] * x[t, b]
        for d, n in np.ndindex(*h.shape[1:]):
            dt = math.exp(w["log_dt"][d])
            A = complex(-math.exp(w["log_A_real"][d, n]), w["A_imag"][d, n])
            if layer.discretization == "zoh":
                decay, into = np.exp(dt * A), (np.exp(dt * A) - 1) / A
            else:
                decay, into = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
            h[b, d, n] = decay * h[b, d, n] + into * x[t, b, d]
            y[d] += 2 * (complex(*w["C"][d, n]) * h[b, d, n]).real
        outputs.append(w["out_proj.weight"] @ y)
    return np.reshape(outputs, (*x.shape[:2], -1)), h


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    steps=st.integers(1, 9),
    chunk=st.integers(1, 9),
    init=st.sampled_from([*spectra.INITIALISATIONS]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 2**31),
)
def test_the_equations_in_numpy(
    sizes: tuple[int, int, int], steps: int, chunk: int, init: str, method: str, seed: int
) -> None:
    torch.manual_seed(seed)
    features, out, half = sizes
    layer = perturbed(features, out, 2 * half, init=init, discretization=method)
    x = torch.randn(steps, 2, features, dtype=torch.float64)
    h = torch.randn(2, 2, features, half, dtype=torch.float64)
    expected, final = numpy_layer(layer, x.numpy(), h[0].numpy() + 1j * h[1].numpy())
    for run in (lambda x: torch.stack([layer(timestep) for timestep in x]), layer.unroll):
        layer.set_states({"h_re": h[0], "h_im": h[1]})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s4d, "_CHUNK", chunk)
            y = run(x)
        np.testing.assert_allclose(y.detach(), expected, rtol=1e-10, atol=1e-10)
        got = layer.h_re.detach().numpy() + 1j * layer.h_im.detach().numpy()
        np.testing.assert_allclose(got, final, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", s4d._LENGTHS)
def test_restarts_are_the_loop_in_chunks_of_any_length(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s4d, "_LENGTHS", (length,))
    layer, x = perturbed(2, 3, d_state=4), torch.randn(140, 3, 2, dtype=torch.float64)
    resets, found = torch.rand(140, 3) < 0.03, []
    for at_once in (True, False):
        layer.set_states({n: torch.ones(3, 2, 2, dtype=x.dtype) for n in ("h_re", "h_im")})
        own, outputs = x.clone().requires_grad_(), []
        for mask, now in zip(resets, own, strict=True) if not at_once else ():
            layer.zero_states(mask)
            outputs.append(layer(now))
        y = layer.unroll(own, resets) if at_once else torch.stack(outputs)
        loss = y.sin().sum() + layer.h_re.sin().sum() + layer.h_im.sin().sum()
        found.append([y, *torch.autograd.grad(loss, [own, *layer.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 12, 512])
def test_the_length_of_chunks_follows_how_often_samples_restart(steps: int) -> None:
    pieces, best = 512 // steps, {1: 4, 12: 24, 512: 64}[steps]
    assert s4d._fitting(torch.full((16 * pieces,), steps), states=32) == best


@pytest.mark.parametrize("method", METHODS)
def test_scipys_discretisation_of_the_real_system(method: str) -> None:
    signal = pytest.importorskip("scipy.signal")
    layer, x = perturbed(2, 3, 4, discretization=method), np.random.default_rng(0).normal(size=90)
    w, outputs = raw(layer), []
    for d in range(2):
        A, C = np.zeros((4, 4)), np.zeros((1, 4))
        for n in range(2):
            at = slice(2 * n, 2 * n + 2)
            re, im = -np.exp(w["log_A_real"][d, n]), w["A_imag"][d, n]
            A[at, at] = [[re, -im], [im, re]]
            C[0, at] = 2 * w["C"][d, n] * [1, -1]
        B = np.tile([[1.0], [0.0]], (2, 1))
        Ad, Bd, *_ = signal.cont2discrete((A, B, C, 0), np.exp(w["log_dt"][d]), method=method)
        h, own = np.zeros((4, 1)), []
        for value in x:
            h = Ad @ h + Bd * value
            own.append((C @ h).item() + w["D"][d] * value)
        outputs.append(own)
    expected = np.transpose(outputs) @ w["out_proj.weight"].T
    y = layer.unroll(torch.tensor(x)[:, None].expand(90, 2))
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-9, atol=1e-9)


def test_a_sequence_is_a_convolution_with_the_papers_kernel() -> None:
    layer, steps = perturbed(3, 3, 8, init="legs"), 150
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(3))
    w, x = raw(layer), torch.randn(steps, 2, 3, dtype=torch.float64)
    A, dt = -np.exp(w["log_A_real"]) + 1j * w["A_imag"], np.exp(w["log_dt"])[:, None]
    C = (w["C"][..., 0] + 1j * w["C"][..., 1]) * (np.exp(dt * A) - 1) / A
    kernel = 2 * np.einsum("dn,dnl->dl", C, np.exp((dt * A)[..., None] * np.arange(steps))).real
    y = layer.unroll(x).detach().numpy()
    for b, d in np.ndindex(2, 3):
        own = x[:, b, d].numpy()
        expected = np.convolve(own, kernel[d])[:steps] + w["D"][d] * own
        np.testing.assert_allclose(y[:, b, d], expected, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- initialisation


def test_spectra_are_the_papers() -> None:
    layers = {init: rnn.S4D(2, 1, 4, init=init).double() for init in spectra.INITIALISATIONS}
    imag = {
        "lin": [0, math.pi],
        "inv": [12 / math.pi, 4 / (3 * math.pi)],
        "real": [0, 0],
    }
    for init, expected in imag.items():
        layer = layers[init]
        torch.testing.assert_close(
            layer.A_imag.detach(), torch.tensor([expected] * 2).double(), rtol=1e-6, atol=0
        )
        real = [-1.0, -2.0] if init == "real" else [-0.5, -0.5]
        torch.testing.assert_close(
            layer.A_real.detach(), torch.tensor([real] * 2).double(), rtol=1e-6, atol=0
        )
    values = spectra.hippo_normal(4)[0]
    np.testing.assert_allclose(layers["legs"].A_imag[0].detach(), values.imag, rtol=1e-6)


@pytest.mark.parametrize("size", [2, 4, 32])
def test_hippo_legs_is_its_normal_part_less_a_matrix_of_rank_one(size: int) -> None:
    values, vectors = spectra.hippo_normal(size)
    n = np.arange(size)
    legs = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1)
    half = (vectors * values) @ vectors.conj().T
    normal = 2 * half.real
    low = np.sqrt(np.outer(n + 0.5, n + 0.5))
    np.testing.assert_allclose(normal, legs + low, rtol=1e-9, atol=1e-9)
    assert (values.imag > 0).all()
    assert (np.diff(values.imag) > 0).all()


def test_other_initial_values() -> None:
    layer = rnn.S4D(4000, 1, 2, dt_min=0.01, dt_max=0.2).double()
    assert 0.01 * (1 - 1e-5) <= layer.dt.min() < 0.0105
    assert 0.19 < layer.dt.max() <= 0.2 * (1 + 1e-5)
    for value, variance in ((layer.C, 0.5), (layer.D, 1.0)):
        assert abs(value.var().item() - variance) < 0.1
        assert abs(value.mean().item()) < 0.1
    names = {"log_dt", "log_A_real", "A_imag", "C", "D", "out_proj.weight"}
    assert layer.state_dict().keys() == names


def test_assigning_goes_through_the_logarithms() -> None:
    layer = rnn.S4D(3, 4, 2)
    layer.dt, layer.A_real = 0.5, -2.0
    torch.testing.assert_close(layer.log_dt.detach(), torch.full((3,), math.log(0.5)))
    torch.testing.assert_close(layer.log_A_real.detach(), torch.full((3, 1), math.log(2.0)))
    with pytest.raises(ValueError, match=r"A_real must be in \(-∞, 0\).*got 1.0"):
        layer.A_real = 1.0
    with pytest.raises(ValueError, match=r"dt must be in \(0, ∞\).*got 0"):
        layer.dt = 0.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_state": 3}, ValueError, r"d_state must be even \(pairs of conjugates\), got 3"),
        ({"d_state": 0}, ValueError, "d_state must be an integer of at least 2, got 0"),
        ({"d_state": 2.0}, TypeError, "d_state must be an integer of at least 2, got 2.0"),
        ({"init": "hippo"}, ValueError, r"init must be one of \['lin', 'inv', .*, got 'hippo'"),
        ({"init": None}, TypeError, r"init must be one of \['lin', 'inv', .*, got None"),
        ({"discretization": "euler"}, ValueError, r"one of \['zoh', 'bilinear'\], got 'euler'"),
        ({"dt_min": 0}, ValueError, "0 < dt_min ≤ dt_max < ∞ must hold, got dt_min=0, dt_max=0.1"),
        ({"dt_min": 0.2}, ValueError, "must hold, got dt_min=0.2, dt_max=0.1"),
        ({"dt_max": float("nan")}, ValueError, "must hold, got dt_min=0.001, dt_max=nan"),
        ({"dt_max": "1"}, TypeError, "dt_max must be a number, got '1'"),
    ],
)
def test_bad_arguments_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^S4D: .*{message}"):
        rnn.S4D(3, 4, **options)
