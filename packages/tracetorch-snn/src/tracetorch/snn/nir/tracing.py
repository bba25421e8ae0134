"""What a model calls in a timestep, and with what: by torch.fx, with layers as they are.

Knows no NIR.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from tracetorch import Layer, named_layers
from tracetorch.errors import first_line
from tracetorch.snn.nir.errors import NIRError

Shape = tuple[int, ...]
ADDITIONS = (operator.add, operator.iadd, torch.add)
OURS = "tracetorch.snn.nir.modules"


@dataclass(frozen=True)
class Call:
    """One call of a module, or of ``torch.flatten``, which then is a module.

    Attributes:
        name: of the module; with the number of the call where there are several.
        module: what is called; None for an input, and for an output.
        reads: the names of the calls whose results are added up to be its input.
        shape: of the input, without the batch.
    """

    name: str
    module: nn.Module | None
    reads: tuple[str, ...]
    shape: Shape


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, Layer) or type(m).__module__ == OURS
        return ours or super().is_leaf_module(m, module_qualified_name)


@dataclass
class Trace:
    """The calls of a model's timestep.

    Attributes:
        inputs: the arguments of ``forward``.
        calls: in order.
        outputs: what is returned.
    """

    inputs: list[Call]
    calls: list[Call]
    outputs: list[Call]


def trace(model: nn.Module, sample: Tensor) -> Trace:
    """The calls of one timestep; the model and its states are left as they are.

    Args:
        model: in whose place a copy in evaluation mode is called.
        sample: one timestep, ``[B, …]``.

    Raises:
        NIRError: its ``forward`` cannot be traced, fails, or does something else than to call
            modules, add and flatten.
    """
    root = copy.deepcopy(model).eval()
    if isinstance(root, Layer) or type(root).__module__.startswith(("torch.nn.modules", OURS)):
        root = root if isinstance(root, nn.Sequential) else nn.Sequential(root)
    for _, layer in named_layers(root):
        layer.zero_states()
    try:
        graph = _Tracer().trace(root)
    except Exception as error:  # whatever a forward does to a proxy
        raise NIRError(
            f"forward of {type(model).__name__} cannot be traced by torch.fx "
            f"({first_line(error)}); it may call modules, add and flatten, and not branch by values"
        ) from None
    traced = fx.GraphModule(root, graph)
    try:
        with torch.no_grad():
            ShapeProp(traced).propagate(sample)
    except Exception as error:  # whatever a module says of its input
        raise NIRError(f"a timestep of shape {list(sample.shape)} fails: {error}") from None
    return _Reader(dict(traced.named_modules()), graph).read()


class _Reader:
    def __init__(self, modules: dict[str, nn.Module], graph: fx.Graph) -> None:
        self.modules, self.graph = modules, graph
        self.sums: dict[fx.Node, tuple[str, ...]] = {}
        self.counts: dict[str, int] = {}
        self.found = Trace([], [], [])

    def read(self) -> Trace:
        for node in self.graph.nodes:
            getattr(self, f"_{node.op}")(node)
        return self.found

    def _placeholder(self, node: fx.Node) -> None:
        if self.found.inputs:
            raise NIRError(f"forward has a second argument, {node.target!r}; NIR needs one")
        self._put(node, Call(self._named("input"), None, (), _shape(node)), self.found.inputs)

    def _output(self, node: fx.Node) -> None:
        found = node.args[0]
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if not isinstance(one, fx.Node):
                raise NIRError(f"forward must return tensors, got {one!r}")
            call = Call(self._named("output"), None, self.sums[one], _shape(one))
            self.found.outputs.append(call)

    def _call_module(self, node: fx.Node) -> None:
        name = str(node.target)
        module = self.modules[name]
        first = self._only(node, name)
        if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
            self.sums[node] = self.sums[first]
            return
        if isinstance(module, Layer) and name in self.counts:
            raise NIRError(
                f"layer {name!r} is called twice in a timestep, which NIR cannot express"
            )
        call = Call(self._named(name), module, self.sums[first], _shape(first))
        self._put(node, call, self.found.calls)

    def _call_function(self, node: fx.Node) -> None:
        if node.target in ADDITIONS:
            self._add(node, node.args)
        elif node.target is torch.flatten:
            self._flatten(node)
        else:
            name = getattr(node.target, "__name__", repr(node.target))
            raise NIRError(_beyond(f"calls {name}"))

    def _call_method(self, node: fx.Node) -> None:
        if node.target in ("add", "add_"):
            self._add(node, node.args)
        elif node.target == "flatten":
            self._flatten(node)
        else:
            raise NIRError(_beyond(f"calls Tensor.{node.target}"))

    def _get_attr(self, node: fx.Node) -> None:
        raise NIRError(_beyond(f"reads the tensor {node.target!r}"))

    def _add(self, node: fx.Node, terms: Sequence[Any]) -> None:
        if node.kwargs or len(terms) != 2 or not all(isinstance(one, fx.Node) for one in terms):
            raise NIRError(_beyond("adds something that no module has put out"))
        shapes = [_shape(one) for one in terms]
        if shapes[0] != shapes[1]:
            raise NIRError(_beyond(f"adds shapes {list(shapes[0])} and {list(shapes[1])}"))
        summed = tuple(name for one in terms for name in self.sums[one])
        if len(set(summed)) < len(summed):
            raise NIRError(_beyond(f"adds {summed[0]!r} to itself"))
        self.sums[node] = summed

    def _flatten(self, node: fx.Node) -> None:
        first = node.args[0]
        if not isinstance(first, fx.Node):
            raise NIRError(_beyond("flattens something that no module has put out"))
        arguments = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        module = nn.Flatten(**{"start_dim": 0, "end_dim": -1, **arguments})  # type: ignore[arg-type]
        call = Call(self._named("flatten"), module, self.sums[first], _shape(first))
        self._put(node, call, self.found.calls)

    def _only(self, node: fx.Node, name: str) -> fx.Node:
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            raise NIRError(f"layer {name!r} must be called with one tensor that modules have made")
        return node.args[0]

    def _put(self, node: fx.Node, call: Call, where: list[Call]) -> None:
        where.append(call)
        self.sums[node] = (call.name,)

    def _named(self, name: str) -> str:
        taken = {call.name for call in (*self.found.inputs, *self.found.calls, *self.found.outputs)}
        taken |= set(self.modules) - {name}
        self.counts[name] = self.counts.get(name, 0) + 1
        put = name if self.counts[name] == 1 else f"{name}_{self.counts[name]}"
        while put in taken:
            put += "_"
        return put


def _shape(node: fx.Node) -> Shape:
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape"):
        raise NIRError(f"{node.name} must be a tensor, for NIR knows no other values")
    return tuple(meta.shape[1:])


def _beyond(what: str) -> str:
    return f"forward {what}, which NIR cannot express; it may call modules, add and flatten"
