"""Mamba against its equations in NumPy, and mambapy's block: what it gave, and where installed.

``data/mambapy_block.npz`` holds what ``recorded()`` returned with mambapy 1.2.0 and torch 2.15.0 on
a CPU, in float32: weights, an input, the output, and the gradients of the sum of its squares.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from tracetorch import backends, rnn
from tracetorch.rnn import mamba

FILE = Path(__file__).parent / "data" / "mambapy_block.npz"


def recorded() -> dict[str, Any]:
    """A block of mambapy with random weights, and what it does with a random sequence."""
    theirs = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    block = theirs.MambaBlock(theirs.MambaConfig(d_model=6, n_layers=1, d_state=4, d_conv=3))
    with torch.no_grad():
        block.A_log += 0.2 * torch.randn_like(block.A_log)
        block.D += torch.randn_like(block.D)
        block.dt_proj.bias += 2
    x = torch.randn(2, 20, 6, requires_grad=True)
    y = block(x)
    weights = dict(block.named_parameters())
    gradients = torch.autograd.grad(y.square().sum(), [x, *weights.values()])
    found = {"x": x, "y": y, **weights}
    found |= {f"grad {n}": g for n, g in zip(["x", *weights], gradients, strict=True)}
    return {name: value.detach().numpy() for name, value in found.items()}


def assert_is_the_block(block: dict[str, Any]) -> None:
    block = {name: torch.from_numpy(value) for name, value in block.items()}
    layer, x = rnn.Mamba(6, 6, d_state=4, d_conv=3), block["x"].transpose(0, 1)
    assert layer.load_state_dict({name: block[name] for name in layer.state_dict()})
    x.requires_grad_()
    y = layer.unroll(x)
    torch.testing.assert_close(y.transpose(0, 1), block["y"], rtol=1e-5, atol=1e-6)
    named = dict(layer.named_parameters())
    gradients = torch.autograd.grad(y.square().sum(), [x, *named.values()])
    assert len(gradients) == 1 + 9
    torch.testing.assert_close(gradients[0].transpose(0, 1), block["grad x"], rtol=1e-4, atol=1e-5)
    for name, gradient in zip(named, gradients[1:], strict=True):
        torch.testing.assert_close(gradient, block[f"grad {name}"], rtol=1e-4, atol=1e-5)


def test_what_mambapys_block_gave() -> None:
    with np.load(FILE) as block:
        assert_is_the_block(dict(block))


def test_what_mambapys_block_gives() -> None:
    assert_is_the_block(recorded())


def numpy_layer(layer: rnn.Mamba, x: Any, window: Any, h: Any) -> tuple[Any, Any, Any]:
    """The docstring's equations for ``x`` [T, B, in], ``window`` [B, E, K-1], ``h`` [B, E, N]."""
    w = {name: value.numpy() for name, value in layer.state_dict().items()}
    channels, rank, states = layer.d_inner, layer.dt_rank, layer.d_state
    outputs, window, h = [], window.copy(), h.copy()
    for t, b in np.ndindex(*x.shape[:2]):
        u, z = np.split(w["in_proj.weight"] @ x[t, b], 2)
        seen = np.concatenate([window[b], u[:, None]], 1)
        window[b] = seen[:, 1:]
        v = silu((seen * w["conv1d.weight"][:, 0]).sum(1) + w["conv1d.bias"])
        delta, B, C = np.split(w["x_proj.weight"] @ v, [rank, rank + states])
        y = np.zeros(channels)
        for e in range(channels):
            dt = math.log1p(math.exp(w["dt_proj.weight"][e] @ delta + w["dt_proj.bias"][e]))
            for n in range(states):
                decay = math.exp(-dt * math.exp(w["A_log"][e, n]))
                h[b, e, n] = decay * h[b, e, n] + dt * v[e] * B[n]
                y[e] += C[n] * h[b, e, n]
            y[e] += w["D"][e] * v[e]
        outputs.append(w["out_proj.weight"] @ (y * silu(z)))
    return np.reshape(outputs, (*x.shape[:2], -1)), window, h


def silu(value: Any) -> Any:
    return value / (1 + np.exp(-value))


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    window=st.integers(2, 5),
    expand=st.integers(1, 2),
    steps=st.integers(1, 7),
    seed=st.integers(0, 2**31),
)
def test_the_equations_in_numpy(
    sizes: tuple[int, int, int], window: int, expand: int, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = rnn.Mamba(*sizes, d_conv=window, expand=expand, dt_rank=2).double()
    with torch.no_grad():
        layer.D += torch.randn_like(layer.D)
        layer.dt_proj.bias += 3
    x = torch.randn(steps, 2, sizes[0], dtype=torch.float64)
    states = {
        "window": torch.randn(2, layer.d_inner, window - 1, dtype=torch.float64),
        "h": torch.randn(2, layer.d_inner, sizes[2], dtype=torch.float64),
    }
    expected, *final = numpy_layer(layer, x.numpy(), *(s.numpy() for s in states.values()))
    for run in (lambda x: torch.stack([layer(timestep) for timestep in x]), layer.unroll):
        layer.set_states(states)
        y = run(x)
        np.testing.assert_allclose(y.detach(), expected, rtol=1e-10, atol=1e-10)
        for name, value in zip(states, final, strict=True):
            got = layer.get_states()[name].detach()
            np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_convolution_is_torchs(steps: int, bias: bool) -> None:
    conv = mamba.CausalConv1d(4, 3).double()
    if not bias:
        conv.bias = None
    past, u = (torch.randn(n, 2, 4, dtype=torch.float64, requires_grad=True) for n in (2, steps))
    found = conv.sequence(past, u)
    assert found is not None
    window, v = found
    whole = torch.cat([past, u])
    assert torch.equal(window, whole[-2:])
    windows = torch.stack([conv(whole[t : t + 3]) for t in range(steps)])
    torchs = F.conv1d(whole.permute(1, 2, 0), conv.weight, conv.bias, groups=4).permute(2, 0, 1)
    sources = [past, u, *conv.parameters()]
    results = [
        [y, *torch.autograd.grad((y * y.detach().cos()).sum(), sources, retain_graph=True)]
        for y in (v, F.silu(windows), F.silu(torchs))
    ]
    for ours, stepped, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stepped, theirs, rtol=1e-12, atol=1e-12)


def test_second_derivatives_of_the_convolution_agree_with_differences() -> None:
    conv = mamba.CausalConv1d(2, 3).double()
    leaves = [torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (2, 4)]

    def run(past: Tensor, u: Tensor, *weights: Tensor) -> Tensor:
        found = conv.sequence(past, u)
        assert found is not None
        return found[1]

    assert torch.autograd.gradgradcheck(run, [*leaves, *conv.parameters()])


@pytest.mark.parametrize("within", ["in_proj", "conv1d", "dt_proj", "out_proj"])
def test_hooks_within_it_run_at_every_timestep(within: str) -> None:
    layer, x = rnn.Mamba(3, 4, 2).double(), torch.randn(6, 2, 3, dtype=torch.float64)
    plain = layer.unroll(x)
    calls: list[int] = []

    def doubled(module: Any, args: Any, y: Tensor) -> Tensor:
        calls.append(1)
        return 2 * y

    layer.get_submodule(within).register_forward_hook(doubled)
    layer.zero_states()
    y = layer.unroll(x)
    assert len(calls) == 6
    assert not torch.allclose(y, plain)


def test_its_scan_runs_in_the_kernel_of_the_selective_scan() -> None:
    layer, x = rnn.Mamba(3, 4, 2).double(), torch.randn(40, 2, 3, dtype=torch.float64)
    expected = torch.stack([layer(timestep) for timestep in x])
    layer.zero_states()
    with backends.use("cpp"):
        torch.testing.assert_close(layer.unroll(x), expected, rtol=1e-10, atol=1e-10)
    assert layer.float().kernel_source() == rnn.SelectiveSSM(5, 6, 7).kernel_source()


@pytest.mark.parametrize(("features", "rank"), [(1, 1), (16, 1), (17, 2), (128, 8)])
def test_names_sizes_and_initial_values_are_mambas(features: int, rank: int) -> None:
    layer = rnn.Mamba(features, 5)
    inner = 2 * features
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "A_log": (inner, 16),
        "D": (inner,),
        "x_proj.weight": (rank + 32, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "out_proj.weight": (5, inner),
        "in_proj.weight": (2 * inner, features),
        "conv1d.weight": (inner, 1, 4),
        "conv1d.bias": (inner,),
    }
    torch.testing.assert_close(layer.A, -torch.arange(1.0, 17).expand(inner, 16))
    steps = F.softplus(layer.dt_proj.bias.double())
    assert 0.001 * (1 - 1e-4) <= steps.min() <= steps.max() <= 0.1 * (1 + 1e-4)
    assert layer.conv1d.weight.abs().max() <= 0.5
    assert layer.in_proj.weight.abs().max() <= features**-0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_state": 0}, ValueError, "d_state must be an integer of at least 1, got 0"),
        ({"d_conv": 1}, ValueError, "d_conv must be an integer of at least 2, got 1"),
        ({"d_conv": 4.0}, TypeError, "d_conv must be an integer of at least 2, got 4.0"),
        ({"expand": 0}, ValueError, "expand must be an integer of at least 1, got 0"),
        ({"expand": 1.5}, TypeError, "expand must be an integer of at least 1, got 1.5"),
        ({"dt_rank": "auto"}, TypeError, "dt_rank must be an integer of at least 1, got 'auto'"),
    ],
)
def test_bad_arguments_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^Mamba: {message}"):
        rnn.Mamba(3, 4, **options)
