"""What every layer computes: against an independent loop, by hand, and at the threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tracetorch import snn

Array = NDArray[np.float64]
STEPS = 100


def split(u: Array) -> tuple[Array, Array]:
    return np.where(u >= 0, u, 0.0), np.where(u < 0, u, 0.0)


def fire(suffix: str, mem: Array, v: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """Output, what the reset subtracts, positive and negative spikes (dynamics.md, section 2)."""
    if suffix not in ("B", "T", "TS"):
        none = np.zeros_like(mem)
        return mem, none, none, none
    if suffix == "B":
        s = (mem > v["threshold"]).astype(np.float64)
        return s, s * v["threshold"], s, np.zeros_like(s)
    pos = (mem > v["pos_threshold"]).astype(np.float64)
    neg = (-mem > v["neg_threshold"]).astype(np.float64)
    reset = pos * v["pos_threshold"] - neg * v["neg_threshold"]
    if suffix == "T":
        return pos - neg, reset, pos, neg
    return v["pos_scale"] * pos - v["neg_scale"] * neg, reset, pos, neg


def single_step(a: Any, s: dict[str, Array], v: dict[str, Array], x: Array) -> tuple[Array, ...]:
    i = x
    if a.synapse:
        s["syn"] = v["alpha"] * s["syn"] + (1 - v["alpha"]) * x
        i = s["syn"]
    if a.recurrent:
        s["rec"] = v["gamma"] * s["rec"] + (1 - v["gamma"]) * s["prev_output"]
        i = i + v["rec_weight"] * s["rec"]
    gain = 1 - v["beta"] if a.suffix == "EMA" else 1.0
    mem = v["beta"] * s["mem"] + gain * i
    out, reset, pos, neg = fire(a.suffix, mem, v)
    s["mem"] = mem - reset
    s["prev_output"] = out
    return out, pos, neg


def dual_step(a: Any, s: dict[str, Array], v: dict[str, Array], x: Array) -> tuple[Array, ...]:
    inflow = dict(zip(("pos_", "neg_"), split(x), strict=True))
    back = dict(zip(("pos_", "neg_"), split(s["prev_output"]), strict=True))
    halves = ("pos_", "neg_")
    if a.synapse:
        for h in halves:
            s[h + "syn"] = v[h + "alpha"] * s[h + "syn"] + (1 - v[h + "alpha"]) * inflow[h]
        inflow = dict(zip(halves, split(s["pos_syn"] + s["neg_syn"]), strict=True))
    if a.recurrent:
        for h in halves:
            s[h + "rec"] = v[h + "gamma"] * s[h + "rec"] + (1 - v[h + "gamma"]) * back[h]
        r = dict(zip(halves, split(s["pos_rec"] + s["neg_rec"]), strict=True))
        inflow = {h: inflow[h] + v[h + "rec_weight"] * r[h] for h in halves}
    for h in halves:
        gain = 1 - v[h + "beta"] if a.suffix == "EMA" else 1.0
        s[h + "mem"] = v[h + "beta"] * s[h + "mem"] + gain * inflow[h]
    out, reset, pos, neg = fire(a.suffix, s["pos_mem"] + s["neg_mem"], v)
    for h in halves:
        s[h + "mem"] = s[h + "mem"] - reset / 2
    s["prev_output"] = out
    return out, pos, neg


@pytest.mark.parametrize(("dim", "around"), [(-1, (3,)), (-3, (2, 2, 2)), (1, (2, 3))])
@pytest.mark.parametrize("learn", [True, False], ids=["learned", "fixed"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("cls", snn.LAYERS)
def test_every_layer_computes_its_equations(
    cls: type[snn.Layer],
    rank: int,
    learn: bool,
    dim: int,
    around: tuple[int, ...],
    anatomy: Callable[..., Any],
    build: Callable[..., snn.Layer],
) -> None:
    a, n = anatomy(cls), 4
    layer = build(cls, n, rank=rank, learn=learn, dim=dim)
    v = {name: getattr(layer, name).detach().numpy() for name in a.parameters}
    assert all(value.shape == ((n,) if rank else ()) for value in v.values())
    assert all(len(np.unique(value)) == value.size for value in v.values())
    states: dict[str, Array] = defaultdict(lambda: np.zeros((*around, n)))
    step = dual_step if a.dual else single_step
    fired = np.zeros(2)
    silent = 0
    for x in np.random.default_rng(1).normal(0, 0.7, (STEPS, *around, n)):
        out, pos, neg = step(a, states, v, x)
        y = layer(torch.tensor(np.moveaxis(x, -1, dim)))
        np.testing.assert_allclose(
            np.moveaxis(y.detach().numpy(), dim, -1), out, rtol=1e-12, atol=1e-12
        )
        kept = layer.get_states()
        assert kept.keys() == a.states
        for name, state in kept.items():
            np.testing.assert_allclose(
                np.moveaxis(state.detach().numpy(), dim, -1),
                states[name],
                rtol=1e-12,
                atol=1e-12,
                err_msg=name,
            )
        fired += pos.sum(), neg.sum()
        silent += int(((pos == 0) & (neg == 0)).sum())
    assert silent > 0
    assert (fired[0] > 0) == a.fires
    assert (fired[1] > 0) == (a.suffix in ("T", "TS"))


# parameters, inputs, outputs and states worked out by hand from the equations
BY_HAND: dict[str, tuple[tuple[float, ...], list[float], dict[str, list[float]]]] = {
    "LI": (
        (0.5,),  # beta
        [1, 0, 2, -1, 0.5, 0],
        {
            "out": [1, 0.5, 2.25, 0.125, 0.5625, 0.28125],
            "mem": [1, 0.5, 2.25, 0.125, 0.5625, 0.28125],
        },
    ),
    "LIB": (
        (0.5, 1.0),  # beta, threshold
        [0.75, 0.75, 0.75, -0.5, 1.5, 2, 0],
        {
            "out": [0, 1, 0, 0, 1, 1, 0],
            "mem": [0.75, 0.125, 0.8125, -0.09375, 0.453125, 1.2265625, 0.61328125],
        },
    ),
    "SLIB": (
        (0.5, 0.25, 0.6),  # alpha, beta, threshold
        [1, 1, 0, -1, 2, 0],
        {
            "out": [0, 1, 0, 0, 1, 0],
            "syn": [0.5, 0.75, 0.375, -0.3125, 0.84375, 0.421875],
            "mem": [0.5, 0.275, 0.44375, -0.2015625, 0.193359375, 0.47021484375],
        },
    ),
    "RLIB": (
        (0.5, 0.5, 1.0, 0.5),  # beta, gamma, threshold, rec_weight
        [1.5, 0.75, 0.25, 1, 0, 0],
        {
            "out": [1, 1, 0, 1, 0, 0],
            "rec": [0, 0.5, 0.75, 0.375, 0.6875, 0.34375],
            "mem": [0.5, 0.25, 0.75, 0.5625, 0.625, 0.484375],
            "prev_output": [1, 1, 0, 1, 0, 0],
        },
    ),
    "DLITS": (
        (0.5, 0.25, 1.0, 0.5, 2.0, 3.0),  # betas, thresholds, scales
        [1.5, -0.25, -2, 0, 1, -0.5, -1],
        {
            "out": [2, 0, -3, 0, 2, 0, -3],
            "pos_mem": [1, 0.5, 0.5, 0.25, 0.625, 0.3125, 0.40625],
            "neg_mem": [
                -0.5,
                -0.375,
                -1.84375,
                -0.4609375,
                -0.615234375,
                -0.65380859375,
                -0.9134521484375,
            ],
        },
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_traces_worked_out_by_hand(name: str) -> None:
    parameters, inputs, expected = BY_HAND[name]
    values = [torch.tensor(value, dtype=torch.float64) for value in parameters]
    layer = getattr(snn, name)(1, *values)
    seen = defaultdict(list)
    for x in inputs:
        seen["out"].append(layer(torch.tensor([x], dtype=torch.float64)).item())
        for state, value in layer.get_states().items():
            seen[state].append(value.item())
    assert seen.keys() == expected.keys()
    for key, trace in expected.items():
        assert seen[key] == pytest.approx(trace, rel=0, abs=1e-14), key


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["LIB", "RLIB", "DLIB", "DRLIB", "LIT", "RLITS", "DLIT", "DRLITS"])
def test_fires_above_the_threshold_and_never_at_it(
    name: str, dtype: torch.dtype, anatomy: Callable[..., Any]
) -> None:
    """The first membrane of a layer without synapse is its input, exactly."""
    n, cls = 1000, getattr(snn, name)
    a = anatomy(cls)
    thresholds = [q for q in a.parameters if q.endswith("threshold")]
    values = torch.logspace(-2, 2, n, dtype=torch.float64)
    layer = cls(n, **{q: values * (at + 1) for at, q in enumerate(thresholds)}).to(dtype)
    for sign, threshold in zip((1, -1), thresholds, strict=False):
        at = getattr(layer, threshold).detach()
        bits = BITS[at.element_size()]
        above = (at.view(bits) + 1).view(dtype)  # the next float up
        assert (above > at).all()
        for membrane, spike in ((at, 0), (above, sign)):
            layer.zero_states()
            y = layer(sign * membrane)
            assert y.dtype == dtype
            assert torch.equal(y, torch.full_like(y, spike))
            mem = sum(state for key, state in layer.get_states().items() if "mem" in key)
            assert isinstance(mem, torch.Tensor)
            left = sign * membrane - spike * at
            assert ((mem - left).abs() <= torch.finfo(dtype).eps * at).all()
