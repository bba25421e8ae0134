"""Layers in bfloat16 that learn their surrogate's slope, on float32 inputs: fused is eager.

Outputs and states are. Of gradients only this is: a loop adds those of a parameter up in the
parameter's own sixteen bits, timestep after timestep, and rounds each time; a kernel adds in
float32 and rounds once. Both are held to the timesteps' own gradients, added up in float32.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import snn
from tracetorch.snn import quantizers, surrogates

STEPS, ROUNDING = 50, 2.0**-8

CASES: dict[str, tuple[type[snn.Layer], str, str]] = {
    "sigmoid, probabilistic": (snn.LIB, "sigmoid", "probabilistic"),
    "sigmoid, round": (snn.LIB, "sigmoid", "round"),
    "sigmoid, bernoulli": (snn.LIB, "sigmoid", "bernoulli"),
    "atan, probabilistic": (snn.SRLIB, "atan", "probabilistic"),
    "gaussian, round": (snn.DLIB, "gaussian", "round"),
}


def made(name: str, weights: torch.dtype = torch.bfloat16) -> snn.Layer:
    kind, surrogate, quantizer = CASES[name]
    spike_fn = getattr(surrogates, surrogate)(learn_slope=True)
    given = {n: torch.linspace(0.4, 0.7, 6) for n in kind.parameter_names() if "thresh" in n}
    layer = kind(6, **given, spike_fn=spike_fn, quant_fn=getattr(quantizers, quantizer)())
    layer.to(weights)
    return layer


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(STEPS, 4, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def weighted(y: Tensor) -> Tensor:
    return (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()


def unrolled(layer: tt.Layer, x: Tensor, backend: str) -> tuple[dict[str, Tensor], ...]:
    """Outputs and states; gradients."""
    torch.manual_seed(7)
    layer.zero_states()
    x = x.clone().requires_grad_()
    with tt.backends.use(backend):
        y = layer.unroll(x)
    names = ["grad x", *[name for name, _ in layer.named_parameters()]]
    found = torch.autograd.grad(weighted(y), [x, *layer.parameters()])
    return {"y": y, **layer.get_states()}, dict(zip(names, found, strict=True))


def added_up(layer: tt.Layer, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each parameter the timesteps' gradients, summed in float32; and their sizes, likewise."""
    torch.manual_seed(7)
    layer.zero_states()
    given: list[dict[str, Tensor]] = []
    outputs = []
    with tt.backends.use("eager"):
        for timestep in x:
            own = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
            outputs.append(torch.func.functional_call(layer, own, (timestep,)))
            given.append(own)
    weighted(torch.stack(outputs)).backward()
    found: dict[str, Any] = {}
    for name in given[0]:
        parts = [own[name].grad for own in given if own[name].grad is not None]
        whole = torch.stack([part.float() for part in parts])
        found[name] = whole.sum(0), whole.abs().sum(0)
    return found


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_states_are_those_of_the_loop(name: str) -> None:
    layer, x = made(name), inputs()
    fused, _ = unrolled(layer, x, "cpp")
    eager, _ = unrolled(layer, x, "eager")
    assert fused.keys() == eager.keys()
    assert fused["y"].dtype == torch.float32
    for what, value in eager.items():
        torch.testing.assert_close(fused[what], value, rtol=1e-6, atol=1e-6, msg=what)
    assert bool((eager["y"] > 0).any())


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_rounded_once_and_else_those_of_the_loop(name: str) -> None:
    layer, x = made(name), inputs()
    _, fused = unrolled(layer, x, "cpp")
    _, eager = unrolled(layer, x, "eager")
    torch.testing.assert_close(fused["grad x"], eager["grad x"], rtol=1e-5, atol=1e-5)
    exact = added_up(layer, x)
    assert "spike_fn.raw_slope" in exact
    for what, (whole, size) in exact.items():
        assert fused[what].dtype == torch.bfloat16
        # of a timestep's own share, and of the sum
        error = (fused[what].float() - whole).abs()
        assert bool((error <= 2 * ROUNDING * size).all()), (what, error, size)
        # of each of the sums on the way
        error = (eager[what].float() - whole).abs()
        assert bool((error <= 2 * ROUNDING * STEPS * size).all()), (what, error, size)


@pytest.mark.parametrize("name", ["sigmoid, probabilistic", "gaussian, round"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_in_float32_has_the_loops_gradients_for_inputs_of_any_type(
    name: str, stored: torch.dtype
) -> None:
    layer, x = made(name, torch.float32), inputs(stored)
    (fused, gradients), (eager, expected) = (unrolled(layer, x, b) for b in ("cpp", "eager"))
    for what, value in {**eager, **expected}.items():
        got = {**fused, **gradients}[what]
        assert got.dtype == value.dtype
        rounding = torch.finfo(value.dtype).eps
        scale = max(1.0, float(value.detach().abs().max()))
        torch.testing.assert_close(got, value, rtol=20 * rounding, atol=20 * rounding * scale)


def test_a_layer_in_bfloat16_steps_for_inputs_in_bfloat16() -> None:
    layer, x = made("sigmoid, probabilistic"), inputs(torch.bfloat16)
    with pytest.raises(tt.BackendError, match=r"no kernels for states in torch\.bfloat16"):
        unrolled(layer, x, "cpp")
    (fused, gradients), (eager, expected) = (unrolled(layer, x, b) for b in ("auto", "eager"))
    for what, value in {**eager, **expected}.items():
        assert torch.equal({**fused, **gradients}[what], value)
