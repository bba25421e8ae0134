"""A layer's ``step`` → two graphs: the timestep, and its vector-Jacobian product.

The step runs on a small sample while every operation of torch that it calls is written down;
then torch's own autograd runs backward through it and is written down too, so that a surrogate
keeps its own derivative. A step that looks at its data (branches on it, takes it to Python or
NumPy) is refused. (Tensors on the ``meta`` device would forbid it by themselves, but they bring in
torch's compiler, seconds of import.) So is one that comes out otherwise for a sample of another
size, for parameters of another shape, without gradients, or the next time.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from tracetorch.engine.admission import hooked, parts
from tracetorch.engine.graph import (
    INPUT,
    Graph,
    Node,
    Refused,
    draws_of,
    ordered,
    read_by,
    verify,
)
from tracetorch.engine.ops import BY_ATEN, TABLE
from tracetorch.keeping import Kept
from tracetorch.looking import Blind, Looked
from tracetorch.randomness import RANDOM, lent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetorch.layer import Layer

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Traced:
    """A timestep and its vector-Jacobian product over named inputs.

    Attributes:
        states: labels of the states, in the layer's order: their names, unless one is x or y.
        parameters: labels of what else the step reads, in the order kernels take it: the layer's
            parameters, then weights of its submodules by their dotted names.
        forward: ``new <state>`` and ``y`` over the inputs ``<state>``, ``x``, ``<parameter>``.
        backward: ``grad <input>`` over these and ``grad new <state>``, ``grad y``; inputs that
            nothing depends on are absent.
    """

    states: tuple[str, ...]
    parameters: tuple[str, ...]
    forward: Mapping[str, Node]
    backward: Mapping[str, Node]

    def __post_init__(self) -> None:
        plain = {*self.states, "x", *self.parameters}
        cotangents = {f"grad {name}" for name in _outputs(self.states)}
        verify(self.forward, plain)
        verify(self.backward, plain | cotangents)

    @cached_property
    def operations(self) -> int:
        """How many there are in a timestep, forward."""
        return sum(node.op in TABLE for node in ordered(self.forward.values()))

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return bool(draws_of(self.forward.values()))

    @cached_property
    def _reads(self) -> dict[str, set[str]]:
        """Of each input with a gradient, what that is computed from."""
        return {n.removeprefix("grad "): read_by([node]) for n, node in self.backward.items()}

    def reached(self, inputs: Iterable[str], again: bool) -> set[str]:
        """The outputs that have a gradient where these inputs do.

        ``again``: what reaches a state counts in the timesteps that follow, too.
        """
        known = set(inputs)
        while True:
            read = {name for at in known for name in self._reads.get(at, ())}
            found = {name for name in _outputs(self.states) if f"grad {name}" in read}
            more = {name for name in self.states if again and f"new {name}" in found}
            if more <= known:
                return found
            known |= more

    def remembered(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """The states whose past is needed to compute these outputs of ``backward``."""
        read = read_by(self.backward[name] for name in outputs)
        needed = {name for name in self.states if name in read}
        while True:
            read = read_by(self.forward[f"new {name}"] for name in needed)
            grown = needed | {name for name in self.states if name in read}
            if grown == needed:
                return tuple(name for name in self.states if name in needed)
            needed = grown


def trace(layer: Layer, dtype: torch.dtype, ndim: int) -> Traced:
    """Trace the step of a layer for inputs of ``ndim`` dimensions, computing in ``dtype``.

    Raises:
        Refused: the step does something the engine has no kernel for; the message says what.
    """
    weights = weights_of(layer)
    _check_sizes(layer, weights)
    graph = Graph()
    # the dimensions around the neurons: of size 2, of others that all differ, and from 1 on
    around = [(2,) * (ndim - 1), range(3, ndim + 2), range(1, ndim)]
    recorders = [_Recorder((*sizes, layer.num_neurons), dtype, graph) for sizes in around]
    with _unchanged(layer), _stateless(layer):
        traced, other = (_sampled(layer, weights, recorder) for recorder in recorders[:2])
        plain = _sampled(layer, weights, recorders[2], plain=True)
    if traced != other:
        raise Refused(
            "it computes something else for another number of samples, or each time it is called"
        )
    if traced.forward != plain.forward:
        raise Refused("it computes something else without gradients, or by its parameters' shapes")
    return traced


def _sampled(
    layer: Layer, weights: Mapping[str, Tensor], recorder: _Recorder, plain: bool = False
) -> Traced:
    """The step over one sample.

    Parameters are as large as the input, so that no gradient is a sum; ``plain``: of their own
    shapes instead, without gradients and so without the backward graph.
    """
    states, own, more = (
        tuple(map(_label, names)) for names in (layer._state_specs, layer._specs, weights)
    )
    shapes = dict.fromkeys((*states, "x", *own, *more), recorder.shape)
    if plain:
        shapes |= {_label(name): spec.shape for name, spec in layer._specs.items()}
        shapes |= {_label(name): tuple(weight.shape) for name, weight in weights.items()}
    inputs = {name: recorder.given(name, shape) for name, shape in shapes.items()}
    placed = {name: inputs[_label(name)] for name in weights}
    cotangents = {name: recorder.given(f"grad {name}") for name in _outputs(states)}
    with (
        torch.set_grad_enabled(not plain),
        _own_hooks(),
        torch.autograd.set_detect_anomaly(False),
        replaced(layer, placed),
        lent(layer._sources(), _Draws(recorder)),
        recorder,
    ):
        if not plain:
            for tensor in inputs.values():
                tensor.requires_grad_()
        fields = layer._state_fields(*(inputs[name] for name in states))
        parameters = layer._parameter_fields(*(inputs[name] for name in own))
        new, y = _blindly(lambda: layer.step(fields, inputs["x"], parameters))
        if new.keys() != layer._state_specs.keys():
            raise Refused(f"it returns the states {sorted(new)}, not {sorted(layer._state_specs)}")
        ends = (*(new[name] for name in layer._state_specs), y)
        outputs = dict(zip(_outputs(states), ends, strict=True))
        forward = {name: recorder.output(name, value) for name, value in outputs.items()}
        backward = {} if plain else _backward(recorder, outputs, inputs, cotangents)
    if recorder.refused is not None:
        raise recorder.refused  # the step has handled it, and computed something else instead
    return Traced(states, (*own, *more), forward, backward)


def _label(name: str) -> str:
    """By what a state, parameter or weight is known here, where the input is x and the output y."""
    return f"own {name}" if name in ("x", "y", RANDOM) else name


@contextmanager
def _stateless(layer: Layer) -> Iterator[None]:
    """Refuses a step that reads a state of the layer instead of the one it is given."""
    states = layer._states
    layer._states = standing = _Standing(states)
    try:
        yield
    finally:
        layer._states = states
    if standing.read:
        standing.refuse()


class _Standing(dict[str, Any]):
    read = False

    def refuse(self, *_: Any) -> Any:
        self.read = True
        raise Refused("it reads the layer's states from before; the timestep's own are in states")

    __iter__ = __len__ = get = items = values = keys = copy = refuse

    def __getitem__(self, name: str) -> Any:
        self.read = True
        raise Refused(f"it reads self.{name}; the timestep's own is in states")


@contextmanager
def _unchanged(layer: Layer) -> Iterator[None]:
    """Refuses a step that changes anything it can reach; afterwards all is as it was."""
    kept = Kept(parts(layer), copies="all", draws=True)
    try:
        yield
        changed = kept.changed()
    finally:
        kept.restore()
    if changed:
        raise Refused(f"it changes {', '.join(changed)}; a step must be pure")


def trace_function(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[str], dtype: torch.dtype
) -> Traced:
    """Trace an elementwise function of a state ``h`` and inputs, that returns new h and y.

    Raises:
        Refused: it does something the engine has no kernel for; the message says what.
    """
    recorder = _Recorder((2,), dtype, Graph())
    held = {name: recorder.given(name).requires_grad_() for name in ("h", *inputs)}
    cotangents = {name: recorder.given(f"grad {name}") for name in _outputs(("h",))}
    with torch.enable_grad(), _own_hooks(), recorder:
        outputs = dict(zip(_outputs(("h",)), function(*held.values()), strict=True))
        forward = {name: recorder.output(name, value) for name, value in outputs.items()}
        backward = _backward(recorder, outputs, held, cotangents)
    return Traced(("h",), tuple(inputs), forward, backward)


def _own_hooks() -> saved_tensors_hooks:
    """What surrounds us may have hooks on saved tensors (checkpointing has): not for the sample."""
    return saved_tensors_hooks(_same_tensor, _same_tensor)


def _same_tensor(tensor: Tensor) -> Tensor:
    return tensor


def _blindly(compute: Callable[[], _Found]) -> _Found:
    try:
        with Blind():
            return compute()
    except Looked as looked:
        raise Refused(f"the step looks at values ({looked})") from None


def _outputs(states: Sequence[str]) -> tuple[str, ...]:
    return (*(f"new {name}" for name in states), "y")


def _backward(
    recorder: _Recorder,
    outputs: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    cotangents: Mapping[str, Tensor],
) -> dict[str, Node]:
    reached = [name for name, value in outputs.items() if value.requires_grad]
    if not reached:
        return {}
    end = _Seeded.apply([cotangents[name] for name in reached], *(outputs[n] for n in reached))
    # not torch.autograd.grad, within which nothing looks out for what a derivative looks at
    run = torch.autograd.Variable._execution_engine.run_backward
    seed = torch.ones_like(end)
    gradients = _blindly(
        lambda: run((end,), (seed,), False, False, tuple(inputs.values()), True, False)
    )
    return {
        f"grad {name}": recorder.node(gradient)
        for name, gradient in zip(inputs, gradients, strict=True)
        if gradient is not None
    }


class _Seeded(torch.autograd.Function):
    """Starts a backward pass from given cotangents.

    ``torch.autograd.grad`` takes them too, but then imports a symbolic algebra system to compare
    their shapes.
    """

    @staticmethod
    def forward(ctx: Any, cotangents: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        return None, *ctx.cotangents


def weights_of(layer: Layer) -> dict[str, Tensor]:
    """Parameters and buffers of the layer that no ``add_parameter`` declared."""
    held = sum([len(part._parameters) + len(part._buffers) for part in parts(layer)])
    if held == len(layer._specs):
        return {}  # as for most layers, at every timestep
    declared = {spec.raw_name for spec in layer._specs.values()}
    named = itertools.chain(layer.named_parameters(), layer.named_buffers())
    return {name: tensor for name, tensor in named if name not in declared}


def _check_sizes(layer: Layer, weights: Mapping[str, Tensor]) -> None:
    for part in parts(layer)[1:]:
        if hooked(part):
            raise Refused(f"its {type(part).__name__} has hooks, which run at every timestep")
    neurons = (layer.num_neurons,)
    for name, state in layer._state_specs.items():
        if state.sizes != neurons:
            raise Refused(f"the state {name} has the sizes {state.sizes}, not one per neuron")
    for name, spec in layer._specs.items():
        if spec.shape not in ((), neurons):
            raise Refused(f"{name} has the shape {spec.shape}, not one value per neuron or layer")
    for name, weight in weights.items():
        if not weight.is_floating_point() or tuple(weight.shape) not in ((), neurons):
            raise Refused(
                f"{name} is {list(weight.shape)} {weight.dtype}, not one value per neuron or layer"
            )


@contextmanager
def replaced(layer: Layer, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The weights of submodules replaced, outside ``nn.Module``'s registration."""
    if not tensors:
        yield
        return
    from torch.nn.utils.stateless import _reparametrize_module

    with _reparametrize_module(layer, dict(tensors)):
        yield


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is computed, as a graph; a tensor is known by its storage.

    Autograd hands back what it saved in new tensor objects, but on the same storage, and nothing
    here writes in place.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking would import the compiler

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape, self.dtype, self.graph = shape, dtype, graph
        self.refused: Refused | None = None
        self._nodes: dict[int, Node] = {}
        self._alive: list[Tensor] = []

    def given(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor that stands for an input; of the sample's size where no other is said."""
        tensor = torch.ones(self.shape if shape is None else shape, dtype=self.dtype)
        self._know(tensor, self.graph.input(name))
        return tensor

    def output(self, name: str, value: object) -> Node:
        """The node of what the step returned."""
        if not isinstance(value, Tensor) or tuple(value.shape) != self.shape:
            got = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise Refused(f"{name} is {got} for an input of {list(self.shape)}, not elementwise")
        if value.dtype != self.dtype:
            raise Refused(f"{name} is {value.dtype}, not the states' {self.dtype}")
        return self.node(value)

    def node(self, value: Any) -> Node:
        """The node of an argument: a tensor seen before, or a number."""
        if isinstance(value, bool) or not isinstance(value, (Tensor, int, float)):
            raise Refused(f"the argument {value!r} is neither a tensor nor a number")
        if not isinstance(value, Tensor):
            return self.graph.const(value)
        key = _storage(value)
        if key not in self._nodes:
            raise Refused(
                f"it reads a tensor of shape {list(value.shape)} that is neither a state, "
                f"a parameter nor computed from them"
            )
        return self._nodes[key]

    def _know(self, tensor: Tensor, node: Node) -> None:
        self._nodes[_storage(tensor)] = node
        self._alive.append(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func).removeprefix("aten.").removesuffix(".default")
        out = func(*args, **kwargs)
        base, _, overload = name.partition(".")
        try:
            if base.endswith("_") and not base.startswith("_"):
                self._write(base[:-1] + ("." + overload if overload else ""), out, args, kwargs)
            elif "out" in kwargs:
                raise Refused("with out= has no kernel")
            elif isinstance(out, Tensor) and _storage(out) in self._nodes:
                self._check_alias(base, out, args[0])
            else:
                self._know(out, self._translated(name, out, args, kwargs))
        except Refused as refused:
            self.refused = Refused(f"{name} at {_where()}: {refused}")
            raise self.refused from None
        return out

    def _write(
        self, name: str, out: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """A write in place into what was computed here: its storage is another node from now on."""
        target = self.node(args[0])
        if target.op == INPUT:
            raise Refused(f"writes in place into {target.label}; a step must be pure")
        node = self._translated(name, out, args, kwargs)
        self._nodes[_storage(out)] = self._converted(node, target.gives)

    def _check_alias(self, name: str, out: Tensor, whole: Tensor) -> None:
        """The same memory must be the same values in the same places."""
        if name == "expand" and out.shape == self.shape:
            return
        for what in (Tensor.size, Tensor.stride, Tensor.is_neg):
            if what(out) != what(whole) or out.dtype != whole.dtype:
                raise Refused("shows a tensor in another way; the engine takes elementwise steps")

    def _translated(
        self, name: str, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Node:
        if not isinstance(out, Tensor):
            raise Refused("is not elementwise")
        make = _SPECIAL.get(name)
        if make is None and name not in BY_ATEN:
            raise Refused("has no row in the table of operations (tracetorch.engine.ops)")
        if out.dtype not in (self.dtype, torch.bool):
            raise Refused(f"computes in {out.dtype}, not in the states' {self.dtype}")
        if make is not None:
            return make(self, args, kwargs)
        unused = {key: value for key, value in kwargs.items() if value != _NEUTRAL.get(key)}
        if unused:
            raise Refused(f"with the options {unused} has no kernel")
        row = BY_ATEN[name]
        given = (*args, *row.defaults[len(args) - len(row.takes) + len(row.defaults) :])
        if len(given) != len(row.takes):
            raise Refused(f"with the arguments {given[len(row.takes) :]} has no kernel")
        nodes = [self.node(arg) for arg in given]
        return self.graph.op(row.name, *map(self._converted, nodes, row.takes))

    def _converted(self, node: Node, kind: str) -> Node:
        if node.gives == kind:
            return node
        return self.graph.op("to_float" if kind == "f" else "to_bool", node)


class _Draws:
    """The stream of the sample: every number another node."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder, self._drawn = recorder, 0

    def draw(self, like: Tensor) -> Tensor:
        """A number that stands for the next ones."""
        recorder = self._recorder
        if like.shape != recorder.shape or like.dtype != recorder.dtype:
            raise Refused(f"draws random numbers of {list(like.shape)} {like.dtype}")
        drawn = torch.full(recorder.shape, 0.5, dtype=recorder.dtype)
        recorder._know(drawn, recorder.graph.random(self._drawn))
        self._drawn += 1
        return drawn


_NEUTRAL: dict[str, Any] = {"alpha": 1}

_Make = Callable[[_Recorder, Sequence[Any], Mapping[str, Any]], Node]


def _scaled_sum(sign: str) -> _Make:
    def make(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
        graph, (left, right) = recorder.graph, map(recorder.node, args[:2])
        if left.gives == right.gives == "b":
            raise Refused("of booleans has no kernel")
        left, right = recorder._converted(left, "f"), recorder._converted(right, "f")
        alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
        return graph.op(sign, left, graph.op("mul", right, graph.const(alpha)))

    return make


def _filled(value: float | None) -> _Make:
    """A constant; None reads it from the arguments after the shape."""

    def make(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
        del kwargs
        return recorder.graph.const(args[-1] if value is None else value)

    return make


def _clamp(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    node = recorder.node(args[0])
    bounds = {"min": kwargs.get("min"), "max": kwargs.get("max")}
    bounds.update(zip(bounds, args[1:], strict=False))
    for name, op in (("min", "maximum"), ("max", "minimum")):
        if bounds[name] is not None:
            node = recorder.graph.op(op, node, recorder.node(bounds[name]))
    return node


def _hardtanh(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    return _clamp(recorder, (*args, *(-1.0, 1.0)[len(args) - 1 :]), kwargs)


def _cast(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    node, kind = recorder.node(args[0]), kwargs.get("dtype", args[0].dtype)
    return recorder._converted(node, "b" if kind == torch.bool else "f")


def _reflected_pow(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    del kwargs
    return recorder.graph.op("pow", *map(recorder.node, args))


def _select(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    """``masked_fill(x, mask, value)``."""
    del kwargs
    x, mask, value = map(recorder.node, args)
    return recorder.graph.op("where", mask, value, x)


def _same(recorder: _Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    del kwargs
    return recorder.node(args[0])


_SPECIAL: dict[str, _Make] = {
    "add.Tensor": _scaled_sum("add"),
    "sub.Tensor": _scaled_sum("sub"),
    "add.Scalar": _scaled_sum("add"),
    "sub.Scalar": _scaled_sum("sub"),
    "clamp": _clamp,
    "hardtanh": _hardtanh,
    "_to_copy": _cast,
    "clone": _same,
    "zeros_like": _filled(0.0),
    "ones_like": _filled(1.0),
    "full_like": _filled(None),
    "zeros": _filled(0.0),
    "new_zeros": _filled(0.0),
    "ones": _filled(1.0),
    "full": _filled(None),
    "scalar_tensor": _filled(None),
    "pow.Scalar": _reflected_pow,
    "masked_fill.Scalar": _select,
    "masked_fill.Tensor": _select,
}


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _where() -> str:
    """The innermost source line outside torch and the engine: where the step asked for it."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if (
            not name.startswith(("torch.", "tracetorch.engine", "tracetorch.looking"))
            and name != "torch"
        ):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
