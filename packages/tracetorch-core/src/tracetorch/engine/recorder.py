"""Writes down what torch computes, as a graph: one node for every elementwise operation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tracetorch.engine.graph import INPUT, Graph, Node, Untranslated
from tracetorch.engine.ops import BY_ATEN
from tracetorch.reasons import Refused, Unfused


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
        # weights of another type, which operations widen, and gradients that are rounded to theirs
        self._other: set[int] = set()
        self._rounded: set[int] = set()
        self._alive: list[Tensor] = []

    def given(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A tensor that stands for an input; of the sample's size where no other is said."""
        kind = dtype or self.dtype
        tensor = torch.ones(self.shape if shape is None else shape, dtype=kind)
        self.know(tensor, self.graph.input(name))
        if kind != self.dtype:
            self._other.add(_storage(tensor))
        return tensor

    def output(self, name: str, value: object) -> Node:
        """The node of what the step returned.

        Raises:
            Refused: it is nothing that a kernel could put out.
        """
        try:
            return self._output(name, value)
        except Untranslated as why:
            raise Refused(Unfused.RESULT, why) from None

    def _output(self, name: str, value: object) -> Node:
        if not isinstance(value, Tensor) or tuple(value.shape) != self.shape:
            got = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise Untranslated(
                f"{name} is {got} for an input of {list(self.shape)}, not elementwise"
            )
        if value.dtype != self.dtype:
            raise Untranslated(f"{name} is {value.dtype}, not the states' {self.dtype}")
        return self.node(value)

    def gradient(self, value: Tensor) -> Node:
        """The node of a gradient, which may have been rounded to the type of what it belongs to."""
        self._rounded.discard(_storage(value))
        return self.node(value)

    def node(self, value: Any) -> Node:
        """The node of an argument: a tensor seen before, or a number."""
        if isinstance(value, bool) or not isinstance(value, (Tensor, int, float)):
            raise Untranslated(f"the argument {value!r} is neither a tensor nor a number")
        if not isinstance(value, Tensor):
            return self.graph.const(value)
        key = _storage(value)
        if key not in self._nodes:
            raise Untranslated(
                f"it reads a tensor of shape {list(value.shape)} that is neither a state, "
                f"a parameter nor computed from them"
            )
        if key in self._rounded:
            raise Untranslated(f"it rounds to {value.dtype} on the way")
        return self._nodes[key]

    def know(self, tensor: Tensor, node: Node) -> None:
        """From now on, what the tensor holds is this node."""
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
                raise Untranslated("with out= has no kernel")
            elif isinstance(out, Tensor) and _storage(out) in self._nodes:
                self._check_alias(base, out, args[0])
            else:
                self.know(out, self._translated(name, out, args, kwargs))
        except Untranslated as why:
            self.refused = Refused(Unfused.OPERATION, name, _where(), why)
            raise self.refused from None
        return out

    def _write(
        self, name: str, out: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """A write in place into what was computed here: its storage is another node from now on."""
        target = self.node(args[0])
        if target.op == INPUT:
            raise Untranslated(f"writes in place into {target.label}; a step must be pure")
        node = self._translated(name, out, args, kwargs)
        self._nodes[_storage(out)] = self.converted(node, target.gives)

    def _check_alias(self, name: str, out: Tensor, whole: Tensor) -> None:
        """The same memory must be the same values in the same places."""
        if name == "expand" and out.shape == self.shape:
            return
        for what in (Tensor.size, Tensor.stride, Tensor.is_neg):
            if what(out) != what(whole) or out.dtype != whole.dtype:
                raise Untranslated(
                    "shows a tensor in another way; the engine takes elementwise steps"
                )

    def _translated(
        self, name: str, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Node:
        if not isinstance(out, Tensor):
            raise Untranslated("is not elementwise")
        make = _SPECIAL.get(name)
        if make is None and name not in BY_ATEN:
            raise Untranslated("has no row in the table of operations (tracetorch.engine.ops)")
        if name == "_to_copy" and out.is_floating_point() and out.dtype != self.dtype:
            self._rounded.add(_storage(out))
        elif out.dtype not in (self.dtype, torch.bool):
            raise Untranslated(f"computes in {out.dtype}, not in the states' {self.dtype}")
        if make is not None:
            return make(self, args, kwargs)
        unused = {key: value for key, value in kwargs.items() if value != _NEUTRAL.get(key)}
        if unused:
            raise Untranslated(f"with the options {unused} has no kernel")
        row = BY_ATEN[name]
        given = (*args, *row.defaults[len(args) - len(row.takes) + len(row.defaults) :])
        if len(given) != len(row.takes):
            raise Untranslated(f"with the arguments {given[len(row.takes) :]} has no kernel")
        nodes = [self.node(arg) for arg in given]
        return self.graph.op(row.name, *map(self.converted, nodes, row.takes))

    def converted(self, node: Node, kind: str) -> Node:
        """The node as a number or a truth value, whichever is asked for."""
        if node.gives == kind:
            return node
        return self.graph.op("to_float" if kind == "f" else "to_bool", node)


class Draws:
    """The stream of the sample: every number another node."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._drawn = recorder, 0

    def draw(self, like: Tensor) -> Tensor:
        """A number that stands for the next ones."""
        recorder = self._recorder
        if like.shape != recorder.shape or like.dtype != recorder.dtype:
            raise Untranslated(f"draws random numbers of {list(like.shape)} {like.dtype}")
        drawn = torch.full(recorder.shape, 0.5, dtype=recorder.dtype)
        recorder.know(drawn, recorder.graph.random(self._drawn))
        self._drawn += 1
        return drawn


_NEUTRAL: dict[str, Any] = {"alpha": 1}

_Make = Callable[[Recorder, Sequence[Any], Mapping[str, Any]], Node]


def _scaled_sum(sign: str) -> _Make:
    def make(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
        graph, (left, right) = recorder.graph, map(recorder.node, args[:2])
        if left.gives == right.gives == "b":
            raise Untranslated("of booleans has no kernel")
        left, right = recorder.converted(left, "f"), recorder.converted(right, "f")
        alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
        return graph.op(sign, left, graph.op("mul", right, graph.const(alpha)))

    return make


def _filled(value: float | None) -> _Make:
    """A constant; None reads it from the arguments after the shape."""

    def make(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
        del kwargs
        return recorder.graph.const(args[-1] if value is None else value)

    return make


def _clamp(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    node = recorder.node(args[0])
    bounds = {"min": kwargs.get("min"), "max": kwargs.get("max")}
    bounds.update(zip(bounds, args[1:], strict=False))
    for name, op in (("min", "maximum"), ("max", "minimum")):
        if bounds[name] is not None:
            node = recorder.graph.op(op, node, recorder.node(bounds[name]))
    return node


def _hardtanh(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    return _clamp(recorder, (*args, *(-1.0, 1.0)[len(args) - 1 :]), kwargs)


def _cast(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    node, kind = recorder.node(args[0]), kwargs.get("dtype", args[0].dtype)
    return recorder.converted(node, "b" if kind == torch.bool else "f")


def _reflected_pow(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    del kwargs
    return recorder.graph.op("pow", *map(recorder.node, args))


def _select(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
    """``masked_fill(x, mask, value)``."""
    del kwargs
    x, mask, value = map(recorder.node, args)
    return recorder.graph.op("where", mask, value, x)


def _same(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
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
    """The innermost source line outside torch and the engine: where the step asked for it.

    Of a derivative there is no such line, but the name of what is differentiated.
    """
    node: Any = torch._C._current_autograd_node()
    if node is not None:
        return f"{node.name()}, a derivative"
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if (
            not name.startswith(("torch.", "tracetorch.engine", "tracetorch.looks"))
            and name != "torch"
        ):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
