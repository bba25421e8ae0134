"""The products with weights in the timesteps of a layer, seen as they are computed.

A kernel shows nothing of them, so a layer that has matrices is stepped while it is counted; what
is around it stays folded. Knows layers one at a time, and no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tracetorch.calls import check_input
from tracetorch.effective import effective, promoted
from tracetorch.layer import Layer
from tracetorch.measures.connections import at_one
from tracetorch.measures.counts import Count
from tracetorch.passage import Passage
from tracetorch.timestep import timestep

_aten = torch.ops.aten
# torch's operations that are matrix products, and the place of the first of the two operands
_PRODUCTS: dict[Any, int] = {
    _aten.mm: 0,
    _aten.bmm: 0,
    _aten.mv: 0,
    _aten.addmm: 1,
    _aten.baddbmm: 1,
    _aten.addmv: 1,
}


def has_matrices(layer: Layer) -> bool:
    """Whether anything that a layer or a module in it holds may connect neurons."""
    return any(tensor.ndim >= 2 for tensor in (*layer.parameters(), *layer.buffers()))


class Stepped(Passage):
    """A layer's calls, timestep by timestep, the products in them counted.

    Attributes:
        count: of all calls so far.
    """

    transparent = True

    def __init__(self) -> None:
        self.count = Count()

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """The timestep."""
        check_input(layer, x)
        specs, dtype = layer.tt.declaration.parameters.values(), promoted(layer, x.dtype)
        values = effective(layer, specs, layer.tt.constants, layer.tt.compiled)
        cast = [value.to(dtype) for value in values]
        held = (*values, *cast, *layer.parameters(), *layer.buffers())
        with _Products(held) as products:
            fields = layer.tt.declaration.parameter_fields(*cast)
            y, layer.tt.states = timestep(layer, x, fields)
        self.count += products.count
        return y

    def unroll(self, layer: Any, x: Tensor) -> Tensor:
        """All timesteps, one after the other."""
        return torch.stack([self.call(layer, step) for step in x])

    def refuse_states(self, layer: Any) -> None:
        """They may be read."""


class _Products(TorchDispatchMode):
    """Within it, matrix products with any of these weights are counted.

    Attributes:
        count: of those so far.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {_memory(weight) for weight in weights}
        self.count = Count()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        at = _PRODUCTS.get(func.overloadpacket)
        if at is None:
            # in inference mode, what is made of products comes here whole
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {})) if parts is NotImplemented else parts
        self._look(*args[at : at + 2])
        return func(*args, **(kwargs or {}))

    def _look(self, left: Tensor, right: Tensor) -> None:
        if _memory(right) in self._weights:
            self.count += _product(left, right)
        elif _memory(left) in self._weights:
            if right.ndim == 1:  # of a matrix and a vector
                self.count += _product(right[None], left.t())
            else:
                self.count += _product(right.transpose(-1, -2), left.transpose(-1, -2))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _product(activations: Tensor, weights: Tensor) -> Count:
    """Of activations ``[…, m, k]`` and weights ``[…, k, n]``, or ``[k]``."""
    if weights.ndim == 1:
        weights = weights[:, None]
    fan, ones = (weights != 0).sum(-1), at_one(activations).sum(-2)
    others = (activations != 0).sum(-2) - ones
    dense = activations.numel() * weights.shape[-1]
    return Count(dense, int((others * fan).sum()), int((ones * fan).sum()))
