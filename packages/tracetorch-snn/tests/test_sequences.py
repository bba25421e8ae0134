"""Whole sequences through compiled kernels = the layer's own step, for each of the 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import snn
from tracetorch.effective import promoted

pytestmark = pytest.mark.skipif(
    tt.backends.status()["cpp"] != "ready", reason="there is no C++ compiler"
)

Build = Callable[..., snn.Layer]
every_layer = pytest.mark.parametrize("cls", snn.LAYERS, ids=lambda cls: cls.__name__)


def results(layer: snn.Layer, x: Tensor, backend: str, incoming: bool = True) -> dict[str, Tensor]:
    """Output, final states, and the gradients of a weighted sum of them all."""
    layer.zero_states()
    layer.zero_grad()
    draw = torch.Generator().manual_seed(3)
    x = x.detach().clone().requires_grad_()
    dtype = promoted(layer, x.dtype)
    start: dict[str, Tensor] = {}
    if incoming:
        for name in layer.state_names():
            drawn = torch.randn(x.shape[1:], generator=draw, dtype=torch.float64)
            start[name] = drawn.to(dtype).requires_grad_()
        layer.set_states(start)
    with tt.backends.use(backend):
        y = layer.unroll(x)
    found = {"y": y, **{f"final {name}": s for name, s in layer.get_states().items()}}
    terms = [
        (value * torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value)).sum()
        for value in found.values()
    ]
    torch.stack([term.double() for term in terms]).sum().backward()
    found |= {f"gradient of {name}": state.grad for name, state in start.items()}
    found |= {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    return {**found, "gradient of x": x.grad}


def assert_alike(got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert got[name] is None, name
            continue
        torch.testing.assert_close(
            got[name], value, rtol=rtol, atol=rtol * max([1.0, *value.abs().flatten().tolist()]),
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@every_layer
def test_float64_to_ten_digits(cls: type[snn.Layer], build: Build) -> None:
    """Around the period of kept states, from incoming states, with spikes of both signs."""
    layer = build(cls, 5)
    for steps in (1, 2, 15, 16, 17, 31, 32, 33, 70):
        x = 2 * torch.randn(steps, 3, 5, dtype=torch.float64)
        assert_alike(results(layer, x, "cpp"), results(layer, x, "eager"), 1e-10)


@every_layer
def test_float32_has_the_very_same_spikes(cls: type[snn.Layer], build: Build) -> None:
    layer = build(cls, 37, dtype=torch.float32)
    x = 2 * torch.randn(1000, 9, 37)
    got, expected = results(layer, x, "cpp"), results(layer, x, "eager")
    if cls.firing is not None:
        assert torch.equal(got["y"], expected["y"])
    assert_alike(got, expected, 1e-5)


LAYOUTS = [((5,), -1), ((5,), 0), ((3, 5), 1), ((2, 5, 3), -2), ((2, 5, 3), 1), ((5, 4), 0),
           ((1, 5), -1), ((0, 5), -1), ((130, 5), -1), ((51, 5, 2, 1), -3)]  # fmt: skip


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS)
@pytest.mark.parametrize("cls", [snn.LIB, snn.DSRLITS], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("rank", [0, 1])
def test_neurons_anywhere_in_any_number_of_lanes(
    cls: type[snn.Layer], build: Build, shape: tuple[int, ...], dim: int, rank: int
) -> None:
    layer = build(cls, 5, rank=rank, dim=dim)
    x = torch.randn(20, *shape, dtype=torch.float64)
    assert_alike(results(layer, x, "cpp"), results(layer, x, "eager"), 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [snn.LIB, snn.SLI, snn.DRLITS], ids=lambda cls: cls.__name__)
def test_sixteen_bit_sequences_keep_float32_states(
    cls: type[snn.Layer], build: Build, dtype: torch.dtype
) -> None:
    layer = build(cls, 6, dtype=torch.float32)
    x = (2 * torch.randn(50, 3, 6)).to(dtype)
    got, expected = results(layer, x, "cpp"), results(layer, x, "eager")
    assert got["y"].dtype == got["gradient of x"].dtype == dtype
    assert got["final mem" if "final mem" in got else "final pos_mem"].dtype == torch.float32
    assert torch.equal(got["y"], expected["y"])
    exact = {name for name in got if name not in ("y", "gradient of x")}
    assert_alike({n: got[n] for n in exact}, {n: expected[n] for n in exact}, 1e-5)
    torch.testing.assert_close(
        got["gradient of x"], expected["gradient of x"], rtol=2 * torch.finfo(dtype).eps, atol=1e-4
    )


def test_inputs_need_not_be_contiguous(build: Build) -> None:
    layer = build(snn.SRLIT, 5)
    whole = 2 * torch.randn(3, 40, 10, dtype=torch.float64)
    x = whole.transpose(0, 1)[::2, :, ::2]
    assert_alike(results(layer, x, "cpp"), results(layer, x.contiguous(), "eager"), 1e-10)


@every_layer
def test_nothing_is_learned_that_is_not_to_be(cls: type[snn.Layer], build: Build) -> None:
    layer = build(cls, 4, learn=False)
    x = torch.randn(20, 3, 4, dtype=torch.float64)
    got = results(layer, x, "cpp", incoming=False)
    assert_alike(got, results(layer, x, "eager", incoming=False), 1e-10)


def test_some_parameters_learn_and_others_do_not() -> None:
    layer = snn.DSLITS(4, learn_pos_beta=False, learn_neg_threshold=False, neg_alpha_rank=0)
    layer = layer.double()
    x = torch.randn(40, 3, 4, dtype=torch.float64)
    assert_alike(results(layer, x, "cpp"), results(layer, x, "eager"), 1e-10)


SURROGATES = ["sigmoid", "atan", "fast_sigmoid", "triangle", "gaussian", "boxcar", "superspike"]


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("quantizer", ["round", "probabilistic"])
def test_surrogates_keep_their_derivative(
    build: Build, name: str, learn: bool, quantizer: str
) -> None:
    layer = build(
        snn.SLIT,
        4,
        spike_fn=getattr(snn.surrogates, name)(3.0, learn_slope=learn),
        quant_fn=getattr(snn.quantizers, quantizer)(),
    )
    x = torch.randn(40, 3, 4, dtype=torch.float64)
    got = results(layer, x, "cpp")
    assert_alike(got, results(layer, x, "eager"), 1e-10)
    assert ("gradient of spike_fn.raw_slope" in got) == learn


class Straight(torch.autograd.Function):
    """A spike with a derivative of the user's own: 3 within 0.2 of the threshold."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return torch.where(u.abs() < 0.2, 3 * gradient, torch.zeros_like(gradient))


def spike(u: Tensor) -> Tensor:
    fired: Tensor = Straight.apply(u)
    return fired


def emitted(probability: Tensor) -> Tensor:
    return probability


def test_a_custom_derivative_of_the_users_is_kept(build: Build) -> None:
    layer = build(snn.RLIB, 4, spike_fn=spike, quant_fn=emitted)
    x = torch.randn(60, 3, 4, dtype=torch.float64)
    got = results(layer, x, "cpp")
    assert_alike(got, results(layer, x, "eager"), 1e-10)
    assert got["gradient of x"].abs().sum() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every_layer
def test_nan_and_infinity_pass_as_in_eager(
    cls: type[snn.Layer], build: Build, value: float
) -> None:
    layer = build(cls, 4)
    x = torch.randn(12, 3, 4, dtype=torch.float64)
    x[5, 1, 2] = value
    with torch.no_grad():
        answers = []
        for backend in ("cpp", "eager"):
            layer.zero_states()
            with tt.backends.use(backend):
                answers.append([layer.unroll(x), *layer.get_states().values()])
    for got, expected in zip(*answers, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("cls", [c for c in snn.LAYERS if c.__name__.endswith(("B", "T", "TS"))])
def test_a_stochastic_layer_gives_the_same_spikes_however_it_runs(cls: type[snn.Layer]) -> None:
    layer, x = cls(5, quant_fn=snn.quantizers.bernoulli()), 2 * torch.randn(50, 3, 5)
    x.requires_grad_()
    found = []
    for backend in ("eager", "cpp"):
        for run in (layer.unroll, lambda x: torch.stack([*map(layer, x)])):
            layer.zero_states()
            torch.manual_seed(3)
            with tt.backends.use(backend):
                y = run(x)
            found.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    (spikes, *gradients), *others = found
    assert 0.05 < float((spikes != 0).float().mean()) < 0.95
    for its_spikes, *its_gradients in others:
        assert torch.equal(its_spikes, spikes)
        torch.testing.assert_close(its_gradients, gradients, rtol=1e-3, atol=1e-4)


def _operations(y: Tensor) -> set[str]:
    """Of the graph behind it."""
    after, seen = [y.grad_fn], set()
    while after:
        node = after.pop()
        if node is not None and node not in seen:
            seen.add(node)
            after += [each for each, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("cls", snn.LAYERS, ids=lambda cls: cls.__name__)
def test_a_timestep_and_a_sequence_are_one_kernel_each(cls: type[snn.Layer], build: Build) -> None:
    layer, x = build(cls), torch.randn(5, 2, 4, dtype=torch.float64)
    layer(x[0])  # finds it
    layer.zero_states()
    around = {"_FusedBackward", "CloneBackward0", "torch::autograd::AccumulateGrad"}
    around |= {"SigmoidBackward0", "SoftplusBackward0"}  # of parameters
    if cls not in (snn.LI, snn.LIEMA, snn.SLI):  # of so few operations that torch's cost less
        assert "_FusedBackward" in _operations(layer(x[1])) <= around
        layer.zero_states()
    assert "_FusedBackward" in _operations(layer.unroll(x)) <= around


def test_torchs_own_random_numbers_make_a_layer_step() -> None:
    layer = snn.LIB(3, quant_fn=torch.bernoulli)
    with tt.backends.use("cpp"), pytest.raises(tt.BackendError, match="bernoulli"):
        layer.unroll(torch.rand(4, 2, 3))


def test_changing_a_function_changes_the_kernel() -> None:
    layer, x = snn.LIB(3, spike_fn=snn.surrogates.sigmoid(1.0)), torch.randn(10, 2, 3)
    for surrogate in (snn.surrogates.sigmoid(1.0), snn.surrogates.atan(5.0)):
        layer.spike_fn = surrogate
        assert_alike(results(layer, x, "cpp"), results(layer, x, "eager"), 1e-5)
