"""A step is what it does whenever it is called: kernels that would do something else are not made.

Every layer here is held to its own steps, and has to say why it has no kernel, or to have one.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import gc
import itertools
import math
import random
import types
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from tracetorch.engine import reads
from tracetorch.testing import AdaptiveLIF, Trace

Step = Callable[..., Any]


def made(step: Step, num_neurons: int = 3, **attributes: Any) -> tt.Layer:
    """A layer with one state, mem, one parameter, beta, and this step."""

    class Made(tt.Layer):
        def __init__(self) -> None:
            super().__init__(num_neurons)
            self.add_state("mem")
            self.add_parameter("beta", 0.5, constraint=tt.constraints.sigmoid)
            for name, value in attributes.items():
                setattr(self, name, value)

    Made.step = step  # type: ignore[method-assign]
    return Made()


def stepped(layer: tt.Layer, x: Tensor) -> Tensor:
    """What a loop makes of it, from no state."""
    layer.zero_states()
    with tt.backends.use("eager"):
        return torch.stack([layer(timestep) for timestep in x])


def unrolled(layer: tt.Layer, x: Tensor, backend: str = "auto") -> Tensor:
    layer.zero_states()
    with tt.backends.use(backend):
        return layer.unroll(x)


def leaky(scale: Callable[[Any, Tensor, Any], Any]) -> Step:
    """A leaky integrator of the input times something."""

    def step(self: Any, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + x * scale(self, x, p)
        return {"mem": mem}, mem

    return step


class Mean(torch.autograd.Function):
    """Passes on a gradient that is divided by the number of samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / grad.shape[0]


class Clipped(torch.autograd.Function):
    """Looks at the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad if grad.numpy().max() < 1 else grad / 2


def _only_parameters(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    return {"mem": states.mem + x}, 2 * p.beta


def _state_of_parameters(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    return {"mem": p.beta.expand(x.shape[-1])}, states.mem + x


def _transposed(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = p.beta * states.mem + x.mT
    return {"mem": mem}, mem


def _handled(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = p.beta * states.mem + x
    try:
        y = torch.cumsum(mem, -1)
    except Exception:
        y = mem
    return {"mem": mem}, y


def _handled_look(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = p.beta * states.mem + x
    try:
        y = mem / mem.detach().numpy().max()
    except Exception:
        y = mem
    return {"mem": mem}, y


def _first(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = p.beta * states.mem + (x if self.get_states() else 3 * x)
    return {"mem": mem}, mem


def _bits(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = p.beta * states.mem + (x.view(torch.int32) > 5).to(x.dtype)
    return {"mem": mem}, mem


def _through(function: Any) -> Step:
    def step(self: Any, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + function.apply(x)
        return {"mem": mem}, mem

    return step


OTHERWISE = "it computes something else"
IMPURE = {
    "number of samples": (leaky(lambda self, x, p: 1 / x.shape[0]), OTHERWISE),
    "many samples": (leaky(lambda self, x, p: 2 if x.size(0) < 3 else 1), OTHERWISE),
    "size of a parameter": (leaky(lambda self, x, p: p.beta.numel()), OTHERWISE),
    "rank of a parameter": (leaky(lambda self, x, p: 1 + p.beta.ndim), OTHERWISE),
    "gradients on": (leaky(lambda self, x, p: 1 + torch.is_grad_enabled()), OTHERWISE),
    "gradient wanted": (leaky(lambda self, x, p: 1 + x.requires_grad), OTHERWISE),
    "in the derivative": (_through(Mean), OTHERWISE),
    "look in the derivative": (_through(Clipped), "looks at values (Tensor.numpy)"),
    "output of parameters": (_only_parameters, "y is [3] for an input of [1, 3]"),
    "transposed": (_transposed, "shows a tensor in another way"),
    "one sample": (leaky(lambda self, x, p: 2 if len(x) == 1 else 1), OTHERWISE),
    "handled": (_handled, "cumsum at"),
    "handled look": (_handled_look, "looks at values (Tensor.numpy)"),
    "first timestep": (_first, "it reads the layer's states from before"),
    "bits": (_bits, "shows a tensor in another way"),
}


@pytest.mark.parametrize("name", IMPURE)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_what_a_sample_does_not_show_has_no_kernel(name: str, samples: int, grad: bool) -> None:
    step, says = IMPURE[name]
    if name == "transposed":
        samples = 3
    layer, found = made(step), []
    for run in (stepped, unrolled):
        x = torch.randn(4, samples, 3, generator=torch.manual_seed(1)).requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            y = run(layer, x)
        if grad:
            y.square().sum().backward()
        found.append((y, x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    with pytest.raises(tt.BackendError) as caught:
        unrolled(layer, torch.randn(4, 3, 3), "cpp")
    assert says in str(caught.value)


def test_a_state_that_only_parameters_make_is_an_error_as_in_steps() -> None:
    for run in (stepped, unrolled):
        with pytest.raises(tt.StateError, match=r"must return mem in its own shape \[2, 3\]"):
            run(made(_state_of_parameters), torch.randn(4, 2, 3))


def _written_into(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = (p.beta * states.mem).add_(x)  # add_.Tensor
    return {"mem": mem}, (2 * mem).tanh_()  # tanh_


def test_a_step_may_write_into_what_it_has_made() -> None:
    layer, x = made(_written_into), torch.randn(5, 2, 3)
    torch.testing.assert_close(unrolled(layer, x, "cpp"), stepped(layer, x))


class Holder:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _counting() -> Step:
    count = 0

    def scale(self: Any, x: Tensor, p: Any) -> int:
        nonlocal count
        count += 1
        return count

    return leaky(scale)


def _hoards(self: Any, x: Tensor, p: Any) -> int:
    self._past["inputs"].append(1)
    return len(self._past["inputs"])


def _counts(self: Any, x: Tensor, p: Any) -> int:
    self.holder.inner.count += 1
    return int(self.holder.inner.count)


def _counts_in_an_array(self: Any, x: Tensor, p: Any) -> float:
    self.count += 1
    return float(self.count[0])


MUTABLE = "and what is in it may change unseen"
CHANGING: dict[str, tuple[Callable[[], Step], Callable[[], dict[str, Any]], str]] = {
    "private container": (
        lambda: leaky(_hoards), lambda: {"_past": {"inputs": []}},
        f"its step reads Made._past, a dict, {MUTABLE}",
    ),
    "plain object": (
        lambda: leaky(_counts),
        lambda: {"holder": types.SimpleNamespace(inner=Holder())},
        f"its step reads Made.holder, a SimpleNamespace, {MUTABLE}",
    ),
    "array": (
        lambda: leaky(_counts_in_an_array), lambda: {"count": np.zeros(1)},
        f"its step reads Made.count, a ndarray, {MUTABLE}",
    ),
    "attribute": (
        lambda: leaky(_counts_itself), lambda: {"count": 0}, "it changes Made.count; a step must",
    ),
    "class": (
        lambda: leaky(_counts_for_all), dict, "it changes type(self).count; a step must be pure",
    ),
    "random": (lambda: leaky(lambda self, x, p: random.random()), dict, OTHERWISE),
    "closure": (_counting, dict, "it changes count; a step must be pure"),
    "iterator": (
        lambda: leaky(lambda self, x, p: next(self.numbers)),
        lambda: {"numbers": iter(itertools.count(1).__next__, 0)},
        f"its step reads Made.numbers, a callable_iterator, {MUTABLE}",
    ),
}  # fmt: skip


def _counts_itself(self: Any, x: Tensor, p: Any) -> int:
    self.count += 1
    return int(self.count)


def _counts_for_all(self: Any, x: Tensor, p: Any) -> int:
    type(self).count = 2
    return 1


@pytest.mark.parametrize("name", CHANGING)
def test_a_step_that_changes_something_has_no_kernel_and_nothing_is_changed(name: str) -> None:
    step, attributes, says = CHANGING[name]
    layer, other = made(step(), **attributes()), made(step(), **attributes())
    x = torch.randn(4, 2, 3)
    with pytest.raises(tt.BackendError) as caught:
        unrolled(layer, x, "cpp")
    assert says in str(caught.value)
    random.seed(3)
    expected = stepped(other, x)
    random.seed(3)
    assert torch.equal(unrolled(layer, x), expected)


# ---------------------------------------------------------------------- what a kernel is made of

GAIN = 2.0
GAINS = [2.0]


def doubled(x: Tensor) -> Tensor:
    return GAIN * x


class Settings:
    gain = 1.0


def defaulted(x: Tensor, by: float = 1.0) -> Tensor:
    return x * by * defaulted.more  # type: ignore[attr-defined]


defaulted.more = 1.0  # type: ignore[attr-defined]
settings = types.ModuleType("settings")
settings.gain = 1.0  # type: ignore[attr-defined]


class Surrogate(torch.autograd.Function):
    slope = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * Surrogate.slope

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * Surrogate.slope


class Kind(enum.Enum):
    PLAIN = 1.0
    TURNED = -1.0


@dataclasses.dataclass(frozen=True)
class Options:
    gain: float = 1.0


class Tuned(Trace):
    """Reads what can be changed in many ways, each of which puts something else in a place."""

    scale: Any = 1.5

    def __init__(self) -> None:
        super().__init__(3)
        self.pair, self.flag, self.kind, self.options = (1.0, 2.0), 1, Kind.PLAIN, Options()
        offset = 0.0
        self.curve = lambda x: torch.sigmoid(x) + offset
        self.zero, self.part = 0.0, functools.partial(torch.mul, 1.0)
        self.table = types.MappingProxyType({"gain": 1.0})

    @staticmethod
    def static(x: Tensor) -> Tensor:
        return x * settings.gain  # type: ignore[attr-defined]

    @property
    def factor(self) -> float:
        return Settings.gain + self.pair[1]

    def shaped(self, x: Tensor) -> Tensor:
        return x + 1

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        x = doubled(self.curve(self.shaped(x))) * self.kind.value * self.options.gain
        x = Surrogate.apply(defaulted(self.static(x))) * self.factor * self.table["gain"]
        x = self.part(x) + math.copysign(0.5, self.zero)
        return super().step(states, (-x if self.flag is True else x) * self.scale, p)


@contextmanager
def tuned(change: str) -> Iterator[Tuned]:
    """A layer that has run, with this changed since."""
    global GAIN
    layer = Tuned()
    unrolled(layer, torch.ones(2, 1, 3))
    kept = {name: vars(Tuned)[name] for name in ("scale", "shaped", "step")}
    try:
        if change == "tuple":
            layer.pair = (1.0, 5.0)
        elif change == "enum":
            layer.kind = Kind.TURNED
        elif change == "frozen":
            layer.options = Options(3.0)
        elif change == "proxy":
            layer.table = types.MappingProxyType({"gain": 7.0})
        elif change == "partial":
            layer.part = functools.partial(torch.mul, 4.0)
        elif change == "closure":
            layer.curve.__closure__[0].cell_contents = 0.25
        elif change == "settings":
            Settings.gain = 3.0
        elif change == "module":
            settings.gain = 3.0  # type: ignore[attr-defined]
        elif change == "surrogate":
            Surrogate.slope = 3.0
        elif change == "default":
            defaulted.__defaults__ = (3.0,)
        elif change == "of a function":
            defaulted.more = 3.0  # type: ignore[attr-defined]
        elif change == "sign of zero":
            layer.zero = -0.0
        elif change == "type":
            layer.flag = True
        elif change == "class attribute":
            Tuned.scale = 2.5
        elif change == "method":
            Tuned.shaped = lambda self, x: x - 1  # type: ignore[method-assign]
        elif change == "step":
            Tuned.step = Trace.step  # type: ignore[method-assign]
        else:
            GAIN = 4.0
        yield layer
    finally:
        GAIN, Settings.gain, Surrogate.slope = 2.0, 1.0, 1.0
        settings.gain = defaulted.more = 1.0  # type: ignore[attr-defined]
        defaulted.__defaults__ = (1.0,)
        for name, value in kept.items():
            setattr(Tuned, name, value)


CHANGES = (
    "tuple", "enum", "frozen", "proxy", "partial", "closure", "type", "class attribute", "method",
    "step", "global", "settings", "module", "surrogate", "default", "of a function", "sign of zero",
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_after_a_kernel_was_made_is_computed_with(change: str) -> None:
    x = torch.randn(5, 2, 3)
    before = unrolled(Tuned(), x, "cpp")
    with tuned(change) as layer:
        y = unrolled(layer, x, "cpp")
        torch.testing.assert_close(y, stepped(layer, x), rtol=1e-6, atol=1e-6)
        layer.zero_states()
        torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(y, before)


def _by_default(x: Any, by: list[float] = [2.0]) -> float:  # noqa: B006
    return by[0]


def _defaulting(self: Any, x: Any, p: Any) -> float:
    return _by_default(x)


def _closing() -> Step:
    gains = [2.0]
    return leaky(lambda self, x, p: gains[0])


HELD: dict[str, tuple[Callable[[], Step], dict[str, Any], str]] = {
    "list": (lambda: leaky(lambda s, x, p: s.held[0]), {"held": [2.0]}, "Made.held, a list"),
    "dict": (lambda: leaky(lambda s, x, p: s.held["a"]), {"held": {"a": 2.0}}, "Made.held, a dict"),
    "set": (lambda: leaky(lambda s, x, p: len(s.held)), {"held": {1, 2}}, "Made.held, a set"),
    "deque": (lambda: leaky(lambda s, x, p: s.held[0]), {"held": deque([2.0])}, "held, a deque"),
    "array": (lambda: leaky(lambda s, x, p: float(s.held[0])), {"held": np.ones(2)}, "a ndarray"),
    "object": (
        lambda: leaky(lambda s, x, p: s.held.gain), {"held": types.SimpleNamespace(gain=2.0)},
        "Made.held, a SimpleNamespace",
    ),
    "a user's dict": (
        lambda: leaky(lambda s, x, p: s.held["a"]), {"held": UserDict(a=2.0)}, "held, a UserDict",
    ),
    "in a tuple": (lambda: leaky(lambda s, x, p: s.held[0][0]), {"held": ([2.0],)}, "a list"),
    "closure": (_closing, {}, "gains, a list"),
    "global": (lambda: leaky(lambda s, x, p: GAINS[0]), {}, "GAINS, a list"),
    "default": (lambda: leaky(_defaulting), {}, "a default of _by_default, a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_what_could_change_unseen_is_read_by_steps_alone(name: str) -> None:
    step, attributes, says = HELD[name]
    layer, x = made(step(), **attributes), torch.randn(4, 2, 3)
    with pytest.raises(tt.BackendError) as caught:
        unrolled(layer, x, "cpp")
    assert f"its step reads {says}" in str(caught.value) or says in str(caught.value)
    assert "make it a state or parameter" in str(caught.value)
    assert torch.equal(unrolled(layer, x), stepped(layer, x))
    assert says in tt.backends.status(layer)[""]


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class Still(Trace):
    """Holds nothing that can change within, so that a glance shows whether it has."""

    base = 1.0

    def __init__(self) -> None:
        super().__init__(3)
        self.shift, self.base, self.gain = 1, 3.0, Gain()

    def bent(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        x = self.bent(self.gain(x)) * getattr(self, "extra", 1) + self.base * GAIN
        return super().step(states, -x if self.shift is True else x, p)


def _other_gain(layer: Still) -> None:
    layer.gain = Gain()
    layer.gain.by = 9.0


STILL: dict[str, Callable[[Still], None]] = {
    "attribute": lambda layer: setattr(layer, "base", 4.0),
    "type": lambda layer: setattr(layer, "shift", True),
    "deleted": lambda layer: delattr(layer, "base"),
    "added": lambda layer: setattr(layer, "extra", 5),
    "added to the class": lambda layer: setattr(Still, "extra", 5),
    "module": _other_gain,
    "in a module": lambda layer: setattr(layer.gain, "by", 5.0),
    "method": lambda layer: setattr(Still, "bent", lambda self, x: 2 * x),
    "method of a module": lambda layer: setattr(Gain, "forward", lambda self, x: 3 * x),
    "method of a layer": lambda layer: setattr(layer, "bent", lambda x: 2 * x),
    "step": lambda layer: setattr(Still, "step", Trace.step),
    "global": lambda layer: globals().update(GAIN=4.0),
}


@pytest.mark.parametrize("change", STILL)
def test_a_glance_shows_whether_a_kernel_is_still_right(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((Still, "bent"), (Still, "step"), (Gain, "forward")):
        monkeypatch.setattr(owner, name, vars(owner)[name])
    monkeypatch.setattr(Still, "extra", None, raising=False)
    monkeypatch.setitem(globals(), "GAIN", 2.0)
    monkeypatch.delattr(Still, "extra")
    layer, x = Still(), torch.randn(5, 2, 3)
    before = unrolled(layer, x, "cpp")
    (traced,) = layer.tt.findings.traced.values()
    made = len(traced)
    assert torch.equal(unrolled(layer, x, "cpp"), before)
    assert len(traced) == made
    STILL[change](layer)
    y = unrolled(layer, x, "cpp")
    torch.testing.assert_close(y, stepped(layer, x), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(y, before)


@pytest.mark.parametrize("graph", [False, True])
def test_reads_are_compared_in_a_graph_of_torchs_too(
    graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: graph)
    held, found = {"gain": 2.0}, reads.Reads()
    found.note(held, "gain", held["gain"])
    assert found.last()
    held["gain"] = 3.0
    assert found.last() == (graph and not reads._COMPILED)


def test_names_of_any_alphabet_are_kept_apart() -> None:
    class Greek(tt.Layer):
        def __init__(self) -> None:
            super().__init__(3)
            self.add_state("α", "β", "x_", "y_", "grad_y_")
            self.add_parameter("γ", 0.9)
            self.add_parameter("δ", 0.3)
            self.inner = nn.Linear(1, 1, bias=False)
            self.inner.weight = nn.Parameter(torch.tensor(0.7))
            self.add_parameter("inner_weight", 0.2)

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            one = p.γ * states.α + x * p.inner_weight
            two = p.δ * states.β + one + self.inner.weight * states.x_
            sums = {"y_": states.y_ * p.δ + x, "grad_y_": states.grad_y_ - states.y_}
            return {"α": one, "β": two, "x_": x + one, **sums}, one - two + sums["grad_y_"]

    layer, found = Greek(), []
    for backend in ("eager", "cpp"):
        x = torch.randn(6, 2, 3, generator=torch.manual_seed(0)).requires_grad_()
        y = unrolled(layer, x, backend)
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found.append([y, *gradients, *layer.get_states().values()])
    torch.testing.assert_close(found[0], found[1])
    assert "γ" not in layer.kernel_source(backend="triton").replace("# γ", "")


# ---------------------------------------------------------------------- second derivatives


def penalty(layer: tt.Layer, x: Tensor, meanwhile: Callable[[], None]) -> list[Tensor]:
    """Second derivatives of a sequence, with something done in between."""
    y = unrolled(layer, x)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    meanwhile()
    return list(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()]))


class Bent(Trace):
    power = 3.0

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + torch.tanh(x) * self.factor
        return {"mem": mem}, torch.sigmoid(mem)

    factor = 1.0


def test_second_derivatives_are_those_of_what_was_computed() -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = Bent(3).double()
    expected = penalty(copy.deepcopy(layer), x, lambda: None)

    def change() -> None:
        layer.factor = 5.0
        layer.dim = 0

    # a twin with the very same kernels, that computes something else by now
    twin = copy.deepcopy(layer)
    unrolled(twin, x)
    twin.factor = 3.0
    torch.testing.assert_close(penalty(layer, x, change), expected)


@pytest.mark.parametrize("by", ["tuple", "function", "method", "module"])
def test_gradients_that_can_be_differentiated_reach_what_a_step_reads(by: str) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.full((3,), 0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.k)

    class Scaled(Trace):
        def __init__(self) -> None:
            super().__init__(3)
            self.scale, self.gain = Scale(), 2.0
            self.order, self.call = (self.scale,), lambda x: self.scale(x)
            self.method = self.scaled
            self.by = by

        def scaled(self, x: Tensor) -> Tensor:
            y: Tensor = self.scale(x)
            return y

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            scale = {
                "tuple": self.order[0], "function": self.call, "method": self.method,
                "module": self.scale,
            }[self.by]  # fmt: skip
            return super().step(states, scale(x) * self.gain, p)

    layer, found = Scaled().double(), []
    for backend in ("eager", "cpp"):
        layer.gain = 2.0
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 2, 3).requires_grad_()
        y = unrolled(layer, x, backend)
        layer.gain = 2.0 if backend == "eager" else 9.0
        inputs = [x, layer.scale.k, layer.raw_beta]
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), inputs)
        found.append((first, second))
    torch.testing.assert_close(found[0], found[1])


def test_second_derivatives_need_no_layer_that_is_still_there() -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = penalty(Bent(3).double(), x, lambda: None)[0]
    y = unrolled(Bent(3).double(), x)
    gc.collect()
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first.square().sum(), x)[0], expected)


# ---------------------------------------------------------------------- outputs


def _hard(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    spike = (states.mem + x > 1).to(x.dtype)
    return {"mem": p.beta * states.mem + x, "last": spike}, spike


def _both(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    return {"mem": p.beta * states.mem + x, "last": x.detach()}, states.last + states.mem


@pytest.mark.parametrize("step", [_hard, _both])
@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_what_has_no_gradient_asks_for_none(step: Step, backend: str) -> None:
    layer = made(step)
    layer.add_state("last")
    y = unrolled(layer, torch.randn(4, 2, 3, requires_grad=True), backend)
    assert y.requires_grad == (step is _both)
    assert layer.mem.requires_grad
    assert not layer.last.requires_grad


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_a_state_has_the_gradient_of_a_parameter_from_the_second_timestep(
    steps: int, backend: str
) -> None:
    layer = made(_both)
    layer.add_state("last")
    assert unrolled(layer, torch.randn(steps, 2, 3), backend).requires_grad == (steps == 2)


def _apart(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    other = 0.9 * states.last + x
    return {"mem": p.beta * states.mem + x, "last": other}, other


@pytest.mark.parametrize("run", ["step", "unroll", "chunks", "one"])
@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_gradients_are_where_eager_has_them(run: str, backend: str) -> None:
    layer, x = made(_apart), torch.randn(4, 2, 3)
    layer.add_state("last")
    with tt.backends.use("auto" if run == "step" and backend == "cpp" else backend):
        if run == "step":
            y = [layer(step) for step in x][-1]
        elif run == "one":
            y = layer.unroll(x[:1])
        else:
            y = [layer.unroll(part) for part in x.split(4 if run == "unroll" else 2)][-1]
    assert not y.requires_grad
    assert not layer.last.requires_grad
    assert layer.mem.requires_grad
    layer.zero_states()
    x.requires_grad_()
    with tt.backends.use(backend):
        layer.unroll(x).sum().backward()
    assert layer.raw_beta.grad is None
    assert x.grad is not None


def _last(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    return {"mem": x}, states.mem


def _view(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    mem = p.beta * states.mem + x
    return {"mem": mem[:]}, mem.view(mem.shape)


def _passing(self: Any, states: Any, x: Tensor, p: Any) -> Any:
    return {"mem": p.beta * states.mem + x}, x


@pytest.mark.parametrize("step", [_last, _view, _passing])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_what_others_write_into_changes_nothing_else(step: Step, backend: str) -> None:
    layer, other, xs = made(step), made(step), torch.randn(4, 2, 3)
    with torch.no_grad(), tt.backends.use(backend):
        for x in xs:
            mine, before = x.clone(), layer.mem
            y, kept = layer(mine), None if before is None else before.clone()
            assert torch.equal(y, other(x.clone()))
            y.fill_(7)
            assert torch.equal(mine, x)
            mine.fill_(8)
            assert torch.equal(layer.mem, other.mem)
            assert before is None or torch.equal(before, kept)


# ---------------------------------------------------------------------- around the call


def test_a_forward_of_one_layer_alone_runs_at_every_timestep() -> None:
    layer, x = AdaptiveLIF(3), torch.randn(5, 2, 3)
    plain = layer.forward
    layer.forward = lambda x: plain(2 * x)  # type: ignore[method-assign]
    y = layer.unroll(x)
    assert torch.equal(y, torch.stack([*map(AdaptiveLIF(3), 2 * x)]))


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_hooks_inside_a_layer_see_every_timestep(backend: str) -> None:
    layer, x, seen = Still(), torch.randn(4, 2, 3), []
    plain = unrolled(layer, x)
    hook = layer.gain.register_forward_hook(lambda *call: seen.append(1) or call[2] * 2)
    y = unrolled(layer, x, backend)
    assert torch.equal(y, stepped(layer, x))
    assert len(seen) == 8
    hook.remove()
    assert torch.equal(unrolled(layer, x), plain)


def test_hooks_on_every_module_see_every_timestep() -> None:
    layer, seen = Trace(3), []
    hook = register_module_forward_hook(lambda *call: seen.append(call[2].shape))
    try:
        layer.unroll(torch.randn(4, 2, 3))
    finally:
        hook.remove()
    assert seen == [(2, 3)] * 4
