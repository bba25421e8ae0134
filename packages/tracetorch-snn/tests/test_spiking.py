"""Spike and quantisation functions: the exact default, other pairs, chance, the user's own."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import snn

FIRING = [cls for cls in snn.LAYERS if cls.__name__.endswith(("B", "T", "TS"))]
SILENT = [cls for cls in snn.LAYERS if cls not in FIRING]
SURROGATES = ["sigmoid", "atan", "fast_sigmoid", "triangle", "gaussian", "boxcar", "superspike"]


def shifted(u: Tensor) -> Tensor:
    """A user's spike function that passes 1/2 at u = 1/3, not at the threshold."""
    return torch.sigmoid(3 * u - 1)


def stretched(u: Tensor, factor: float) -> Tensor:
    return torch.sigmoid(factor * u)


def tripled(p: Tensor) -> Tensor:
    """A user's quantisation function."""
    return 3 * p


class Learned(nn.Module):
    """A user's module with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.25))

    def forward(self, u: Tensor) -> Tensor:
        return torch.sigmoid(4 * (u - self.shift))


def around_threshold(n: int = 2001) -> tuple[snn.Layer, Tensor, Tensor]:
    layer = snn.LIB(n, threshold=1.0)
    x = torch.linspace(-2, 4, n)
    return layer, x, x - layer.threshold.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_default_pair_is_exact_where_the_rounded_sigmoid_is_not(dtype: torch.dtype) -> None:
    n = 20_000
    layer = snn.LIB(n, threshold=torch.linspace(0.1, 3, n)).to(dtype)
    threshold = layer.threshold.detach()
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    ulps = torch.randint(-3, 4, (n,), generator=torch.Generator().manual_seed(0), dtype=bits)
    x = (threshold.view(bits) + ulps).view(dtype)
    fires = x > threshold
    assert 0 < fires.float().mean() < 1
    assert torch.equal(layer(x).detach(), fires.to(dtype))
    rounded = torch.sigmoid(4 * (x - threshold)) > 0.5
    assert (rounded != fires).any()  # else this test shows nothing


def test_default_pair_is_a_sigmoid_of_slope_four_and_rounding() -> None:
    named = {
        "spike_fn": snn.surrogates.sigmoid(slope=4.0),
        "quant_fn": snn.quantizers.round(),
    }
    results = []
    for given in ({}, named):
        layer, x, _ = around_threshold()
        layer = snn.LIB(layer.num_neurons, **given)
        x.requires_grad_()
        y = layer(x)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    u = around_threshold()[2]
    sigma = torch.sigmoid(4 * u)
    for y, gradient in results:
        assert torch.equal(y, (u > 0).float())
        torch.testing.assert_close(gradient, 4 * sigma * (1 - sigma), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SURROGATES)
def test_named_surrogates_round_at_the_threshold(name: str) -> None:
    layer, x, u = around_threshold()
    away = u.abs() > 1e-3
    layer = snn.LIB(layer.num_neurons, spike_fn=getattr(snn.surrogates, name)())
    assert torch.equal(layer(x).detach()[away], (u > 0).float()[away])


SPIKE_FNS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "function": (shifted, shifted),
    "partial": (functools.partial(stretched, factor=0.1), lambda u: torch.sigmoid(0.1 * u)),
    "torch module": (nn.Sigmoid(), torch.sigmoid),
    "own module": (Learned(), lambda u: torch.sigmoid(4 * (u - 0.25))),
}
QUANT_FNS: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
    (None, lambda p: (p > 0.5).to(p.dtype)),
    (snn.quantizers.round(), lambda p: (p > 0.5).to(p.dtype)),
    (snn.quantizers.probabilistic(), lambda p: p),
    (tripled, lambda p: 3 * p),
]


@pytest.mark.parametrize("name", SPIKE_FNS)
@pytest.mark.parametrize("cls", FIRING)
def test_any_other_pair_computes_the_quantiser_of_the_spike_function(
    cls: type[snn.Layer], name: str, anatomy: Callable[..., Any]
) -> None:
    """Rounding fires where f(u) is above 1/2, wherever that is; a quantiser sees f(u) itself.

    Of the pairs of a layer each function and each quantiser is once in a kernel: compiling takes
    most of the time. Over the layers every pair is.
    """
    n, a, (spike_fn, f) = 601, anatomy(cls), SPIKE_FNS[name]
    x = torch.linspace(-6, 6, n, dtype=torch.float64)
    compiled = (FIRING.index(cls) + [*SPIKE_FNS].index(name)) % len(QUANT_FNS)
    for at, (quant_fn, q) in enumerate(QUANT_FNS):
        layer = cls(n, spike_fn=spike_fn, quant_fn=quant_fn).double()
        mem = x / 2 if a.synapse else x  # alpha is 0.5
        theta = 1.0
        expected = q(f(mem - theta))
        if a.suffix != "B":
            expected = expected - q(f(-mem - theta))
        away = (mem.abs() - theta).abs().sub(1 / 3).abs() > 1e-6
        away &= (mem.abs() - theta).abs() > 1e-6
        away &= ((mem.abs() - theta) - 0.25).abs() > 1e-6
        with tt.backends.use("auto" if at == compiled else "eager"):
            got = layer(x).detach()
        torch.testing.assert_close(got[away], expected[away], rtol=1e-6, atol=1e-6)


def test_rounding_takes_one_half_for_no_spike() -> None:
    p = torch.tensor([0.0, 0.5, 0.5 + 2**-24, 0.7, 1.0])
    assert snn.quantizers.round()(p).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.77, 0.99])
def test_bernoulli_fires_as_often_as_its_probability_says(p: float) -> None:
    draws = 100_000
    torch.manual_seed(13)
    spikes = snn.quantizers.bernoulli()(torch.full((draws,), p))
    assert set(spikes.tolist()) == {0.0, 1.0}
    assert abs(spikes.mean().item() - p) < 5 * math.sqrt(p * (1 - p) / draws)


def test_bernoulli_is_certain_at_both_ends() -> None:
    p = torch.tensor([0.0, 1.0]).repeat(10_000)
    assert torch.equal(snn.quantizers.bernoulli()(p), p)


def test_stochastic_layer_fires_with_the_surrogate_probability_per_neuron() -> None:
    draws, n = 50_000, 7
    layer = snn.LIB(n, quant_fn=snn.quantizers.bernoulli())
    torch.manual_seed(17)
    x = torch.linspace(0.2, 1.8, n)
    frequency = layer(x.expand(draws, n)).detach().mean(0)
    p = torch.sigmoid(4 * (x - 1))
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()


@pytest.mark.parametrize("cls", FIRING)
def test_same_seed_same_spikes(cls: type[snn.Layer]) -> None:
    xs = torch.randn(20, 16, 8, generator=torch.Generator().manual_seed(0))
    layer = cls(8, quant_fn=snn.quantizers.bernoulli())

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        layer.zero_states()
        return torch.stack([layer(x) for x in xs]).detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("quantizer", ["round", "bernoulli", "probabilistic"])
@pytest.mark.parametrize("name", SURROGATES)
def test_gradient_goes_straight_through_the_quantiser(name: str, quantizer: str) -> None:
    """Whatever is emitted, the input's gradient is that of the surrogate alone."""
    n = 101
    layer = snn.LIB(
        n,
        spike_fn=getattr(snn.surrogates, name)(),
        quant_fn=getattr(snn.quantizers, quantizer)(),
    ).double()
    x = torch.linspace(-0.51, 2.52, n, dtype=torch.float64).requires_grad_()
    layer(x).sum().backward()
    u = (x.detach() - layer.threshold.detach()).requires_grad_()
    (expected,) = torch.autograd.grad(getattr(snn.surrogates, name)()(u).sum(), u)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("argument", ["spike_fn", "quant_fn"])
@pytest.mark.parametrize("bad", [3, "sigmoid", torch.zeros(3), nn.Sigmoid], ids=repr)
@pytest.mark.parametrize("cls", FIRING)
def test_what_is_no_function_is_refused(cls: type[snn.Layer], bad: object, argument: str) -> None:
    with pytest.raises(TypeError, match=argument) as error:
        cls(4, **{argument: bad})
    assert repr(bad) in str(error.value)
    assert "function or module" in str(error.value)


@pytest.mark.parametrize("argument", ["spike_fn", "quant_fn"])
@pytest.mark.parametrize("cls", SILENT)
def test_layer_that_does_not_fire_takes_no_spike_function(
    cls: type[snn.Layer], argument: str
) -> None:
    with pytest.raises(TypeError, match=argument):
        cls(4, **{argument: torch.sigmoid})


@pytest.mark.parametrize("name", SURROGATES)
def test_slope_is_a_parameter_only_if_learned(name: str) -> None:
    factory = getattr(snn.surrogates, name)
    own = {key for key, _ in snn.LIB(4).named_parameters()}
    fixed = snn.LIB(4, spike_fn=factory(slope=5.0))
    learned = snn.LIB(4, spike_fn=factory(slope=5.0, learn_slope=True))
    assert {key for key, _ in fixed.named_parameters()} == own
    (key,) = {key for key, _ in learned.named_parameters()} - own
    assert key in learned.state_dict()
    u = torch.linspace(-1, 1, 201)
    torch.testing.assert_close(learned.spike_fn(u).detach(), fixed.spike_fn(u))
    # one step of an optimizer moves the curve
    before = learned.spike_fn(u).detach().clone()
    learned(torch.tensor([0.0, 0.93, 0.96, 1.7])).sum().backward()
    torch.optim.SGD(learned.parameters(), lr=1.0).step()
    assert not torch.equal(learned.spike_fn(u).detach(), before)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("slope", [0.0, -1.0, math.nan, math.inf], ids=repr)
def test_slope_must_be_positive_and_finite(name: str, slope: float) -> None:
    with pytest.raises(ValueError, match="slope") as error:
        getattr(snn.surrogates, name)(slope=slope)
    assert repr(slope) in str(error.value)
    assert "∞)" in str(error.value)


@pytest.mark.parametrize("slope", ["4", None, True], ids=repr)
def test_slope_must_be_a_number(slope: object) -> None:
    with pytest.raises(TypeError, match="slope") as error:
        snn.surrogates.sigmoid(slope=slope)  # type: ignore[arg-type]
    assert repr(slope) in str(error.value)


@pytest.fixture
def every_warning_raises() -> Iterator[None]:
    torch.set_warn_always(True)  # torch shows some only once per process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("every_warning_raises")
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("name", SURROGATES)
def test_repr_says_the_slope_and_warns_of_nothing(name: str, learn: bool) -> None:
    f = getattr(snn.surrogates, name)(slope=3.5, learn_slope=learn)
    assert name in repr(f)
    assert "slope=3.5" in repr(f)
    assert "\n" not in repr(snn.LIB(3, spike_fn=f))


def test_module_of_the_user_is_a_submodule_and_learns() -> None:
    layer = snn.LIB(4, spike_fn=Learned())
    assert layer.spike_fn.shift is layer.get_parameter("spike_fn.shift")
    layer(torch.linspace(0.5, 1.5, 4)).sum().backward()
    assert layer.spike_fn.shift.grad.abs() > 0


def halved(u: Tensor) -> Tensor:
    return u[..., ::2]


def alone(u: Tensor) -> Tensor:
    return u[..., :1]  # would be broadcast


def absent(u: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("function", "got"),
    [(halved, "shape [2, 2]"), (alone, "shape [2, 1]"), (Tensor.sum, "shape []"), (absent, "None")],
)
@pytest.mark.parametrize("argument", ["spike_fn", "quant_fn"])
@pytest.mark.parametrize("cls", FIRING)
def test_a_function_that_is_not_elementwise_is_named(
    cls: type[snn.Layer], argument: str, function: Callable[[Tensor], Any], got: str
) -> None:
    layer = cls(3, **{argument: function})
    says = f"{argument} must return a tensor of its input's shape [2, 3], got {got}; "
    for run in (lambda: layer(torch.ones(2, 3)), lambda: layer.unroll(torch.ones(4, 2, 3))):
        with pytest.raises(tt.StateError, match=re.escape(says)) as error:
            run()
        assert error.value.layer is layer
        assert str(error.value).startswith(f"{cls.__name__}(3, ")
        assert layer.get_states() == {}


@pytest.mark.parametrize("cls", FIRING)
def test_functions_of_the_user_still_have_a_kernel_and_one_graph(cls: type[snn.Layer]) -> None:
    layer, x = cls(3, spike_fn=shifted, quant_fn=tripled), torch.randn(2, 3)
    assert "sigmoid" in layer.kernel_source()
    expected = layer(x)
    layer.zero_states()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("quantizer", ["round", "bernoulli", "probabilistic"])
@pytest.mark.parametrize("name", SURROGATES)
def test_copies_fire_alike(
    name: str, quantizer: str, learn: bool, copied: Callable[[Any], Any]
) -> None:
    layer = snn.LIT(
        50,
        spike_fn=getattr(snn.surrogates, name)(slope=3.7, learn_slope=learn),
        quant_fn=getattr(snn.quantizers, quantizer)(),
    )
    x = torch.linspace(-3, 3, 50)
    torch.manual_seed(3)
    expected = layer(x)
    layer.zero_states()
    twin = copied(layer)
    torch.manual_seed(3)
    assert torch.equal(twin(x), expected)
    assert {key for key, _ in twin.named_parameters()} == {k for k, _ in layer.named_parameters()}


@pytest.mark.parametrize("cls", FIRING)
def test_pickled_layer_keeps_the_functions_of_the_user(cls: type[snn.Layer]) -> None:
    layer = cls(30, spike_fn=torch.sigmoid, quant_fn=torch.round)
    x = torch.linspace(-4, 4, 30)
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin(x), layer(x))
    assert twin.spike_fn is torch.sigmoid


def test_a_function_takes_the_place_of_a_module_and_back() -> None:
    layer, x = snn.LIB(2, 0.5, 1.0), torch.full((3, 1, 2), 0.8)
    before = layer.unroll(x)
    layer.zero_states()
    layer.spike_fn = lambda u: torch.ones_like(u)
    assert layer.unroll(x).tolist() == torch.ones(3, 1, 2).tolist()
    layer.spike_fn = snn.surrogates.sigmoid()
    layer.zero_states()
    assert torch.equal(layer.unroll(x), before)
    with pytest.raises(TypeError, match=r"spike_fn must be what surrogates\.sigmoid makes"):
        layer.spike_fn = snn.surrogates.sigmoid  # type: ignore[assignment]
    assert torch.equal(snn.LIB(2, 0.5, 1.0).unroll(x), before)
