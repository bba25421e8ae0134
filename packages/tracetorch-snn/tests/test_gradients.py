"""Gradients: numerically, by hand through the reset, at zero, and of each surrogate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from tracetorch import snn

DUAL = [cls for cls in snn.LAYERS if cls.__name__.startswith("D")]
FIRING = [cls for cls in snn.LAYERS if cls.__name__.endswith(("B", "T", "TS"))]


class Sequence(nn.Module):
    """Steps a layer through time from given states; every tensor involved is an argument."""

    def __init__(self, layer: snn.Layer, states: list[str]) -> None:
        super().__init__()
        self.layer, self.states = layer, states

    def forward(self, xs: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        self.layer.set_states(dict(zip(self.states, states, strict=True)))
        ys = torch.stack([self.layer(x) for x in xs])
        final = self.layer.get_states()
        return ys, *(final[name] for name in self.states)


def leaf(value: NDArray[np.float64]) -> Tensor:
    return torch.tensor(value, requires_grad=True)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("cls", snn.LAYERS)
def test_gradcheck_of_input_states_and_parameters(
    cls: type[snn.Layer], rank: int, anatomy: Callable[..., Any], build: Callable[..., snn.Layer]
) -> None:
    a, n, rng = anatomy(cls), 2, np.random.default_rng(3)
    smooth = {"quant_fn": snn.quantizers.probabilistic()} if a.fires else {}
    layer = build(cls, n, rank=rank, **smooth)
    states = sorted(a.states)
    whole = Sequence(layer, states)
    names = [f"layer.raw_{name}" for name in a.parameters]
    assert dict(whole.named_parameters()).keys() == set(names)
    raws = [whole.get_parameter(name).detach().clone().requires_grad_() for name in names]
    # well away from 0, where a dual layer's halves meet
    xs = leaf(rng.uniform(0.5, 1.5, (3, 2, n)) * rng.choice([-1, 1], (3, 2, n)))
    initial = [
        leaf(rng.uniform(0.2, 0.6, (2, n)) * (-1 if name.startswith("neg_") else 1))
        for name in states
    ]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, tensors[1 + len(states) :], strict=True))
        return functional_call(whole, given, tensors[: 1 + len(states)])  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (xs, *initial, *raws), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_surrogate_gradient_of_lib_is_bptt_through_the_reset(rank: int) -> None:
    steps, batch, n = 20, 3, 4
    rng = np.random.default_rng(5)
    size = (n,) if rank else ()
    beta, theta = rng.uniform(0.6, 0.95, size), rng.uniform(0.4, 0.8, size)
    xs, start = rng.normal(0.3, 0.6, (steps, batch, n)), rng.normal(0, 0.4, (batch, n))
    on_spikes, on_mem = rng.normal(size=(steps, batch, n)), rng.normal(size=(batch, n))

    # forward, then backward by hand: exact spikes, derivative 4·σ′(4u)
    mem, before, pre, spikes = start, [], [], []
    for x in xs:
        before.append(mem)
        pre.append(beta * mem + x)
        spikes.append((pre[-1] > theta).astype(float))
        mem = pre[-1] - spikes[-1] * theta
    d_mem, d_xs = on_mem, np.zeros_like(xs)
    d_beta, d_theta = np.zeros((batch, n)), np.zeros((batch, n))
    for t in reversed(range(steps)):
        probability = 1 / (1 + np.exp(-4 * (pre[t] - theta)))
        d_spike = on_spikes[t] - theta * d_mem
        d_u = d_spike * 4 * probability * (1 - probability)
        d_theta -= d_u + spikes[t] * d_mem
        d_xs[t] = d_mem + d_u
        d_beta += d_xs[t] * before[t]
        d_mem = beta * d_xs[t]
    summed = 0 if rank else (0, 1)
    d_raw_beta = d_beta.sum(summed) * beta * (1 - beta)
    d_raw_theta = d_theta.sum(summed) * (1 - np.exp(-theta))

    layer = snn.LIB(n, torch.tensor(beta), torch.tensor(theta))
    inputs, initial = leaf(xs), leaf(start)
    ys, final = Sequence(layer, ["mem"])(inputs, initial)
    assert np.array_equal(ys.detach().numpy(), spikes)
    assert 0 < ys.mean() < 1
    ((ys * torch.tensor(on_spikes)).sum() + (final * torch.tensor(on_mem)).sum()).backward()
    for tensor, expected in [
        (inputs, d_xs),
        (initial, d_mem),
        (layer.raw_beta, d_raw_beta),
        (layer.raw_threshold, d_raw_theta),
    ]:
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inputs", ["sparse", "zero", "dense"])
@pytest.mark.parametrize("cls", DUAL)
def test_dual_layer_with_equal_halves_is_its_single_counterpart(
    cls: type[snn.Layer],
    inputs: str,
    anatomy: Callable[..., Any],
    build: Callable[..., snn.Layer],
) -> None:
    """Outputs and every gradient; inputs and standing states are exactly 0 where it matters."""
    single_cls = getattr(snn, cls.__name__.removeprefix("D"))
    steps, batch, n, rng = 12, 3, 4, np.random.default_rng(7)
    keep = {"sparse": 0.3, "zero": 0.0, "dense": 1.0}[inputs]
    values = rng.normal(0, 1.0, (steps, batch, n)) * (rng.random((steps, batch, n)) < keep)
    weights = torch.tensor(rng.normal(size=(steps, batch, n)))
    gradients: list[dict[str, Tensor]] = []
    outputs = []
    for kind in (single_cls, cls):
        layer = build(kind, n, equal_halves=True)
        states = sorted(anatomy(kind).states)
        zeros = {name: leaf(np.zeros((batch, n))) for name in states}
        xs = leaf(values)
        ys, *final = Sequence(layer, states)(xs, *zeros.values())
        loss = (ys * weights).sum()
        for name, state in zip(states, final, strict=True):
            # only what both layers have: the sum of a state's halves
            loss = loss + (state * weights[0 if "mem" in name else 1]).sum()
        loss.backward()
        outputs.append(ys.detach())
        gradients.append({"x": xs.grad} | {key: state.grad for key, state in zeros.items()})  # type: ignore[dict-item]
        gradients[-1] |= {key: raw.grad for key, raw in layer.named_parameters()}  # type: ignore[misc]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    if anatomy(cls).fires and inputs != "zero":
        assert outputs[0].abs().sum() > 0
    single, dual = gradients
    assert (single["x"].abs() > 0).any()
    for name, expected in single.items():
        stem = name.removeprefix("raw_")
        halves = [f"{'raw_' * name.startswith('raw_')}{sign}_{stem}" for sign in ("pos", "neg")]
        if name in dual:
            got = dual[name]
        elif name.startswith("raw_"):
            got = dual[halves[0]] + dual[halves[1]]
        else:  # a state: both halves reach the sum alike
            torch.testing.assert_close(dual[halves[0]], dual[halves[1]], rtol=1e-12, atol=1e-12)
            got = dual[halves[0]]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12, msg=name)


def phi(v: Tensor) -> Tensor:
    return torch.exp(-v * v / 2) / math.sqrt(2 * math.pi)


# probability and derivative by the definition, as functions of u and the slope k
CURVES: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "sigmoid": (
        lambda u, k: 1 / (1 + torch.exp(-k * u)),
        lambda u, k: k * torch.exp(-k * u) / (1 + torch.exp(-k * u)) ** 2,
    ),
    "atan": (
        lambda u, k: 0.5 + torch.atan(math.pi * k * u / 2) / math.pi,
        lambda u, k: k / 2 / (1 + (math.pi * k * u / 2) ** 2),
    ),
    "fast_sigmoid": (
        lambda u, k: 0.5 + k * u / (2 + 2 * k * u.abs()),
        lambda u, k: k / 2 / (1 + k * u.abs()) ** 2,
    ),
    "triangle": (
        lambda u, k: torch.where(
            u < 0, (1 + k * u).clamp(min=0) ** 2 / 2, 1 - (1 - k * u).clamp(min=0) ** 2 / 2
        ),
        lambda u, k: k * (1 - k * u.abs()).clamp(min=0),
    ),
    "gaussian": (
        lambda u, k: 0.5 * torch.erfc(-k * u / math.sqrt(2)),
        lambda u, k: k * phi(k * u),
    ),
    "boxcar": (
        lambda u, k: (k * u + 0.5).clamp(0, 1),
        lambda u, k: k * ((k * u).abs() < 0.5).to(u.dtype),
    ),
    "superspike": (
        lambda u, k: 0.5 + u / (1 + k * u.abs()),
        lambda u, k: 1 / (1 + k * u.abs()) ** 2,
    ),
}
GRID = torch.arange(-600, 601, dtype=torch.float64) / 200


@pytest.mark.parametrize("slope", [2.5, 4.0, 10.0])
@pytest.mark.parametrize("name", CURVES)
def test_surrogate_is_its_formula_and_so_is_its_derivative(name: str, slope: float) -> None:
    probability, derivative = CURVES[name]
    corner = 0.5 if name == "boxcar" else math.nan  # no derivative there
    grid = GRID[((slope * GRID).abs() != corner)]
    u = grid.clone().requires_grad_()
    f = getattr(snn.surrogates, name)(slope=slope)
    p = f(u)
    assert (grid == 0).any()
    (gradient,) = torch.autograd.grad(p.sum(), u)
    torch.testing.assert_close(p.detach(), probability(grid, slope), rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, derivative(grid, slope), rtol=1e-11, atol=1e-12)
    assert (p.diff() >= 0).all()
    assert p.min() >= 0
    assert p.max() <= 1
    assert f(torch.zeros((), dtype=torch.float64)).item() == 0.5


@pytest.mark.parametrize("name", CURVES)
def test_default_slope_stays_a_probability_far_from_the_threshold(name: str) -> None:
    far = torch.tensor([-1e30, -1e6, 0.0, 1e6, 1e30])
    p = getattr(snn.surrogates, name)()(far)
    assert (p.diff() >= 0).all()
    assert p[0] >= 0
    assert p[2] == 0.5
    assert p[-1] <= 1


@pytest.mark.parametrize("name", CURVES)
def test_layer_passes_the_surrogate_derivative_back(name: str) -> None:
    """One step of LIB with an exact spike: the input's gradient is f′(x − θ)."""
    n, slope = 64, 3.0
    layer = snn.LIB(n, spike_fn=getattr(snn.surrogates, name)(slope=slope)).double()
    x = torch.linspace(-1.03, 3.01, n, dtype=torch.float64).requires_grad_()
    y = layer(x)
    y.sum().backward()
    u = x.detach() - layer.threshold.detach()
    assert torch.equal(y.detach(), (u > 0).double())
    torch.testing.assert_close(x.grad, CURVES[name][1](u, slope), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CURVES)
def test_gradcheck_of_a_learned_slope(name: str) -> None:
    f = getattr(snn.surrogates, name)(slope=3.0, learn_slope=True)
    layer = snn.LIB(3, 0.8, 0.5, spike_fn=f, quant_fn=snn.quantizers.probabilistic()).double()
    whole = Sequence(layer, ["mem"])
    (key,) = [name for name, _ in whole.named_parameters() if "slope" in name]
    raw = whole.get_parameter(key).detach().clone().requires_grad_()
    xs = leaf(np.random.default_rng(11).normal(0.4, 0.3, (4, 2, 3)))
    mem = torch.zeros(2, 3, dtype=torch.float64)

    def run(raw: Tensor, xs: Tensor) -> tuple[Tensor, ...]:
        return functional_call(whole, {key: raw}, (xs, mem))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (raw, xs), eps=1e-6, atol=1e-7)
    assert run(raw, xs)[0].sum().requires_grad
    assert torch.autograd.grad(run(raw, xs)[0].sum(), raw)[0].abs() > 0


@pytest.mark.parametrize("cls", FIRING)
def test_learned_slope_gets_the_surrogate_gradient_behind_exact_spikes(
    cls: type[snn.Layer], build: Callable[..., snn.Layer], anatomy: Callable[..., Any]
) -> None:
    """∂σ(ku)/∂k = u·σ′(ku), although the spikes themselves do not depend on the slope."""
    n, a = 5, anatomy(cls)
    f = snn.surrogates.sigmoid(slope=3.0, learn_slope=True)
    layer = build(cls, n, spike_fn=f)
    x = torch.linspace(-2, 2, n, dtype=torch.float64)
    y = layer(x)
    y.sum().backward()
    v = {name: getattr(layer, name).detach() for name in a.parameters}

    def half(name: str) -> Tensor:
        if not a.dual:
            return v[name]
        return torch.where(x >= 0, v[f"pos_{name}"], v[f"neg_{name}"])

    mem = (1 - half("alpha")) * x if a.synapse else x
    if a.suffix == "B":
        distances = [(mem - v["threshold"], torch.ones(n))]
    else:
        ones = torch.ones(n)
        scales = (v["pos_scale"], v["neg_scale"]) if a.suffix == "TS" else (ones, ones)
        distances = [
            (mem - v["pos_threshold"], scales[0]),
            (-mem - v["neg_threshold"], -scales[1]),
        ]
    expected = sum(
        float((scale * u * torch.sigmoid(3 * u) * (1 - torch.sigmoid(3 * u))).sum())
        for u, scale in distances
    )
    (raw,) = [p for key, p in layer.named_parameters() if "slope" in key]
    assert raw.grad is not None
    slope_of_raw = 1 - math.exp(-3.0)  # d softplus(raw)/d raw at softplus(raw) = 3
    assert raw.grad.item() == pytest.approx(expected * slope_of_raw, rel=1e-6, abs=1e-7)
