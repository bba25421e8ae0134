"""SelectiveSSM against the spec in NumPy, the paper's scan, and another implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch import rnn

SSM = rnn.SelectiveSSM
Stepped = Callable[[rnn.Layer, Tensor], Tensor]


def numpy_scan(layer: SSM, x: Any, h: Any) -> tuple[Any, Any]:
    """Spec §5 for ``x`` [T, B, D] and ``h`` [B, D, N], one scalar state at a time."""
    w = {key: value.double().numpy() for key, value in layer.state_dict().items()}
    channels, states = w["A_log"].shape
    rank, outputs, h = w["dt_proj.weight"].shape[1], [], h.copy()
    for t, b in np.ndindex(*x.shape[:2]):
        now = x[t, b]
        projected = w["x_proj.weight"] @ now
        delta, B, C = projected[:rank], projected[rank : rank + states], projected[rank + states :]
        y = np.zeros(channels)
        for d in range(channels):
            step = math.log1p(math.exp(w["dt_proj.weight"][d] @ delta + w["dt_proj.bias"][d]))
            for n in range(states):
                decay = math.exp(-step * math.exp(w["A_log"][d, n]))
                h[b, d, n] = decay * h[b, d, n] + step * now[d] * B[n]
                y[d] += C[n] * h[b, d, n]
            y[d] += w["D"][d] * now[d]
        outputs.append(w["out_proj.weight"] @ y)
    return np.reshape(outputs, (*x.shape[:2], -1)), h


def paper_scan(layer: SSM, u: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 2 for a whole ``u`` [B, L, D]: discretise everything, then scan."""
    rank, states = layer.dt_rank, layer.state_size
    delta, B, C = torch.split(layer.x_proj(u), [rank, states, states], dim=-1)
    delta = F.softplus(layer.dt_proj(delta))
    dA = torch.exp(torch.einsum("bld,dn->bldn", delta, -torch.exp(layer.A_log)))
    dBu = torch.einsum("bld,bln,bld->bldn", delta, B, u)
    h, ys = u.new_zeros(u.shape[0], u.shape[2], states), []
    for t in range(u.shape[1]):
        h = dA[:, t] * h + dBu[:, t]
        ys.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return layer.out_proj(torch.stack(ys, 1) + u * layer.D), h


def perturbed(*sizes: int, **options: int) -> SSM:
    """A float64 layer whose A and D are no longer as initialised."""
    layer = SSM(*sizes, **options).double()
    with torch.no_grad():
        layer.A_log += 0.3 * torch.randn_like(layer.A_log)
        layer.D += torch.randn_like(layer.D)
        layer.dt_proj.bias += 3
    return layer


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_the_specs_equations_in_numpy(sizes: tuple[int, ...], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = perturbed(*sizes)
    x = torch.randn(steps, 2, sizes[0], dtype=torch.float64)
    h = torch.randn(2, sizes[0], sizes[2], dtype=torch.float64)
    layer.set_states({"h": h})
    y = torch.stack([layer(timestep) for timestep in x])
    expected, final = numpy_scan(layer, x.numpy(), h.numpy())
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(layer.h.detach(), final, rtol=1e-10, atol=1e-10)


def test_the_papers_scan_with_gradients() -> None:
    layer = perturbed(6, 4, state_size=5, dt_rank=2)
    x = torch.randn(3, 20, 6, dtype=torch.float64)
    results = []
    for own in (True, False):
        layer.zero_grad()
        u = x.clone().requires_grad_()
        if own:
            y, h = layer.unroll(u.transpose(0, 1)).transpose(0, 1), layer.h
        else:
            y, h = paper_scan(layer, u)
        (y.square().sum() + h.sum()).backward()
        results.append([y, h, u.grad, *(p.grad.clone() for p in layer.parameters())])
    assert len(results[0]) == 3 + 6
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pscan", [False, True], ids=["sequential", "parallel"])
def test_mambapy_with_the_same_weights(pscan: bool) -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    config = mamba.MambaConfig(d_model=8, n_layers=1, d_state=4, expand_factor=2, pscan=pscan)
    block = mamba.MambaBlock(config)
    with torch.no_grad():
        block.A_log += 0.2 * torch.randn_like(block.A_log)
        block.D += torch.randn_like(block.D)
    layer = SSM(config.d_inner, config.d_model, config.d_state, config.dt_rank)
    theirs = block.state_dict()
    layer.load_state_dict({key: theirs[key] for key in layer.state_dict()})
    x = torch.randn(2, 16, config.d_inner)
    expected = block.out_proj(block.ssm(x, None))
    y = layer.unroll(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "dim"), [((3,), 0), ((3, 5), 0), ((5, 3, 2, 6), -3)])
@pytest.mark.parametrize("positive", [False, True])
def test_channels_anywhere_in_inputs_of_any_rank(
    shape: tuple[int, ...], dim: int, positive: bool, stepped: Stepped
) -> None:
    place = dim % len(shape)
    layer = perturbed(3, 4, state_size=2, dim=place if positive else place - len(shape))
    x = torch.randn(4, *shape, dtype=torch.float64)
    last = x.movedim(place + 1, -1)
    flat = last.reshape(4, -1, 3).numpy()
    expected, final = numpy_scan(layer, flat, np.zeros((flat.shape[1], 3, 2)))
    around = last.shape[1:-1]
    y = stepped(layer, x).movedim(place + 1, -1).detach()
    np.testing.assert_allclose(y, expected.reshape(4, *around, 4), rtol=1e-10, atol=1e-10)
    h = layer.h.detach().movedim(place, -2)
    assert layer.h.shape == (*shape[:place], 3, *shape[place + 1 :], 2)
    np.testing.assert_allclose(h, final.reshape(*around, 3, 2), rtol=1e-10, atol=1e-10)


def test_projections_of_a_whole_sequence_are_those_of_its_timesteps() -> None:
    layer = perturbed(6, 4, state_size=5, dt_rank=2)
    x = torch.randn(7, 2, 6, dtype=torch.float64)
    for whole, parts in zip(
        layer.project(x), zip(*map(layer.project, x), strict=True), strict=True
    ):
        torch.testing.assert_close(whole, torch.stack(parts), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- initialisation


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 40), states=st.integers(1, 20), rank=st.integers(1, 9))
def test_initial_values_lie_where_mamba_has_them(channels: int, states: int, rank: int) -> None:
    layer = SSM(channels, 3, states, rank)
    rates = torch.arange(1.0, states + 1).expand(channels, states)
    assert torch.equal(layer.A_log, rates.log())
    torch.testing.assert_close(layer.A, -rates, rtol=1e-6, atol=0)
    assert torch.equal(layer.D, torch.ones(channels))
    steps = F.softplus(layer.dt_proj.bias.double())
    assert steps.min() >= 0.001 * (1 - 1e-4)
    assert steps.max() <= 0.1 * (1 + 1e-4)
    assert layer.dt_proj.weight.abs().max() <= rank**-0.5


def test_initial_step_sizes_are_log_uniform_and_fill_their_range() -> None:
    layer = SSM(20_000, 1, 1, 4)
    place = (F.softplus(layer.dt_proj.bias.double()).log10() + 3) / 2
    levels = (torch.arange(20_000) + 0.5) / 20_000
    distance = (place.detach().sort().values - levels).abs().max()
    assert distance < 1.63 / math.sqrt(20_000)  # Kolmogorov-Smirnov, 1 %
    weight = layer.dt_proj.weight.detach().flatten().sort().values * 4**0.5
    uniform = (torch.arange(80_000) + 0.5) / 40_000 - 1
    assert (weight - uniform).abs().max() < 2 * 1.63 / math.sqrt(80_000)


def test_projections_start_as_torchs_linear_layers() -> None:
    torch.manual_seed(3)
    layer = SSM(32, 5, 4)
    torch.manual_seed(3)
    expected = nn.Linear(32, layer.dt_rank + 8, bias=False).weight
    assert torch.equal(layer.x_proj.weight, expected)
    assert layer.out_proj.weight.abs().max() <= 32**-0.5
    assert layer.out_proj.weight.abs().max() > 0.9 * 32**-0.5


def test_names_are_mambas() -> None:
    keys = {"x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D", "out_proj.weight"}
    assert SSM(3, 4).state_dict().keys() == keys


@pytest.mark.parametrize(("channels", "rank"), [(1, 1), (16, 1), (17, 2), (128, 8)])
def test_default_rank_of_the_step_sizes(channels: int, rank: int) -> None:
    assert SSM(channels, 2).dt_proj.weight.shape == (channels, rank)
    assert SSM(channels, 2).x_proj.weight.shape == (rank + 32, channels)


def test_assigning_a_goes_through_the_logarithm() -> None:
    layer = SSM(3, 4, 2)
    stored = layer.A_log
    layer.A = -2.0
    assert layer.A_log is stored
    torch.testing.assert_close(stored.detach(), torch.full((3, 2), math.log(2.0)))
    with pytest.raises(ValueError, match=r"A must be in \(-∞, 0\).*got 1.0"):
        layer.A = 1.0


# ---------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_keep_the_state_in_float32(dtype: torch.dtype) -> None:
    layer, x = SSM(6, 4, 5), torch.randn(10, 2, 6).to(dtype)
    y = layer.unroll(x)
    h = layer.h
    layer.zero_states()
    expected = layer.unroll(x.float())
    assert torch.equal(h, layer.h)
    assert torch.equal(y, expected.to(dtype))


def test_a_float64_input_keeps_a_float64_state_on_float32_weights() -> None:
    layer, x = SSM(6, 4, 5), torch.randn(10, 2, 6, dtype=torch.float64)
    y = layer.unroll(x)
    assert (y.dtype, layer.h.dtype) == (torch.float64, torch.float64)
    expected, final = numpy_scan(layer, x.numpy(), np.zeros((2, 6, 5)))
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.h.detach(), final, rtol=1e-5, atol=1e-6)


def test_under_autocast_only_the_projections_are_rounded() -> None:
    layer, x = SSM(6, 4, 5), torch.randn(50, 2, 6)
    expected = layer.unroll(x)
    layer.zero_states()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer.unroll(x)
    assert (y.dtype, layer.h.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dt, B, _ = layer.project(x[0])
    layer.zero_states()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x[0])
    torch.testing.assert_close(layer.h, (dt * x[0])[..., None] * B[:, None], rtol=1e-6, atol=0)
