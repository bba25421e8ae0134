"""Which weights feed a spiking layer, read off what a timestep computes.

One timestep is run with gradients; at each spiking layer its output is cut from what made it. From
a layer's input the graph of autograd is then followed backwards to the nearest weights. Names of
modules play no part. Knows torch's modules and layers' calls, nothing of rates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# what is added to an input is no weight of it
_ADDING = ("AddBackward", "SubBackward")
_NORMALISING = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
)  # fmt: skip


def incoming(
    model: nn.Module, x: Tensor, spiking: Mapping[str, nn.Module]
) -> dict[str, list[nn.Parameter]]:
    """The weights nearest to each spiking layer, of those between it and other spiking layers.

    Args:
        model: called once with ``x``; its parameters have to require gradients.
        x: one timestep ``[B, …]``.
        spiking: layers by name; a weight within one of ``model``'s layers feeds none.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in spiking}
    with contextlib.ExitStack() as hooks, torch.enable_grad():
        for name, layer in spiking.items():
            hooks.enter_context(_cut(layer, inputs[name]))
        model(_leaf(x) if x.is_floating_point() else x)
    weights = _weights(model)
    return {name: _nearest(found, weights) for name, found in inputs.items()}


def _leaf(x: Tensor) -> Tensor:
    """A leaf of these values; copied, since a leaf itself refuses what is done in place."""
    return x.detach().requires_grad_().clone()


@contextlib.contextmanager
def _cut(layer: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    """Within it, the layer's inputs are kept, and its output is a leaf of its own."""

    def cut(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs.append(given[0])
        return _leaf(output)

    handle = layer.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _weights(model: nn.Module) -> dict[int, bool]:
    """By id, every parameter; True for those that scale an input: matrices, norms' gains."""
    kinds: dict[int, bool] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            gain = isinstance(module, _NORMALISING) and name == "weight"
            matrix = not isinstance(module, _NORMALISING) and parameter.ndim >= 2
            kinds[id(parameter)] = gain or matrix
    return kinds


def _nearest(inputs: Iterable[Tensor], weights: Mapping[int, bool]) -> list[nn.Parameter]:
    """On every way back from the inputs, the first operation that has weights: those."""
    roots = [x.grad_fn for x in inputs if x.grad_fn is not None]
    below = _Below(weights)
    found: dict[int, nn.Parameter] = {}
    seen: set[Any] = set()
    while roots:
        node = roots.pop()
        if node in seen:
            continue
        seen.add(node)
        here = below.weights_of(node)
        found.update({id(weight): weight for weight in here})
        if not here:
            roots += [edge for edge in _edges(node) if below.carries_data(edge)]
    return list(found.values())


def _edges(node: Any) -> list[Any]:
    return [edge for edge, _ in node.next_functions if edge is not None]


class _Below:
    """What the graph leads to: data (the input, outputs of spiking layers) or parameters alone."""

    def __init__(self, weights: Mapping[int, bool]) -> None:
        self._weights = weights
        self._data: dict[Any, bool] = {}

    def carries_data(self, node: Any) -> bool:
        """Whether a leaf that is no parameter lies below; without recursion, graphs are deep."""
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [edge for edge in _edges(top) if edge not in self._data]
            if missing and top not in self._data:
                stack += missing
                continue
            stack.pop()
            leaf = getattr(top, "variable", None)
            own = leaf is not None and id(leaf) not in self._weights
            self._data[top] = own or any(self._data[edge] for edge in _edges(top))
        return self._data[node]

    def weights_of(self, node: Any) -> list[nn.Parameter]:
        """The weights that an operation applies to data, views and functions of them included."""
        if node.name().startswith(_ADDING):
            return []
        if not self.carries_data(node):  # as an embedding's: what it looks up are the weights
            return self._leaves([node])
        return self._leaves([edge for edge in _edges(node) if not self.carries_data(edge)])

    def _leaves(self, nodes: list[Any]) -> list[nn.Parameter]:
        found, seen = [], set(nodes)
        while nodes:
            node = nodes.pop()
            leaf = getattr(node, "variable", None)
            if leaf is not None and self._weights.get(id(leaf), False):
                found.append(leaf)
            fresh = [edge for edge in _edges(node) if edge not in seen]
            seen.update(fresh)
            nodes += fresh
        return found
