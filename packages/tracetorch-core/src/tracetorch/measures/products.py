"""The products with weights in the timesteps of a layer, seen as they are computed.

A kernel shows nothing of them, so a layer that has matrices is stepped while it is counted; what
is around it stays folded. Knows layers one at a time, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tracetorch.calls import check_input, timesteps
from tracetorch.effective import effective, promoted
from tracetorch.layer import Layer
from tracetorch.measures.connections import Tally, at_one
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


class Watched(Passage):
    """A layer's calls as they are; where a sequence has to begin again, so do the tallies.

    Args:
        tallies: of the modules around the layer.
    """

    transparent = True

    def __init__(self, tallies: Sequence[Tally]) -> None:
        self._tallies = tallies

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """The timestep."""
        return self._as_it_is(layer, layer, x)

    def unroll(self, layer: Any, x: Tensor, resets: Tensor | None) -> Tensor:
        """The sequence."""
        return self._as_it_is(layer, layer.unroll, x, resets)

    def _as_it_is(self, layer: Any, compute: Callable[..., Tensor], *given: Any) -> Tensor:
        layer.tt.passage = None
        try:
            return compute(*given)
        finally:
            layer.tt.passage = self

    def refuse_states(self, layer: Any) -> None:
        """They may be read."""

    def place(self) -> Any:
        """What was counted so far."""
        return [tally.place() for tally in self._tallies]

    def back(self, place: Any) -> None:
        """That again, and nothing of what came since."""
        for tally, then in zip(self._tallies, place, strict=True):
            tally.back(then)


class Stepped(Watched):
    """A layer's calls, timestep by timestep, the products in them counted."""

    def __init__(self, tallies: Sequence[Tally]) -> None:
        super().__init__(tallies)
        self._products = _Products()

    @property
    def count(self) -> Count:
        """Of all calls so far."""
        return self._products.count

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """The timestep."""
        check_input(layer, x)
        specs, dtype = layer.tt.declaration.parameters.values(), promoted(layer, x.dtype)
        values = effective(layer, specs, layer.tt.constants, layer.tt.compiled)
        cast = [value.to(dtype) for value in values]
        with self._products.of((*layer.parameters(), *layer.buffers()), (*values, *cast)):
            fields = layer.tt.declaration.parameter_fields(*cast)
            y, layer.tt.states = timestep(layer, x, fields)
        return y

    def unroll(self, layer: Any, x: Tensor, resets: Tensor | None) -> Tensor:
        """All timesteps, one after the other."""
        return torch.stack([*timesteps(layer, x, resets, self.call)])

    def place(self) -> Any:
        """What was counted so far."""
        return self.count, super().place()

    def back(self, place: Any) -> None:
        """That again, and nothing of what came since."""
        self._products.count, tallies = place
        super().back(tallies)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, matrix products with weights are counted.

    Attributes:
        count: of those so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = Count()
        self._weights: set[int] = set()
        self._lasting: set[int] = set()
        self._fans: dict[Any, Tensor] = {}

    def of(self, held: Iterable[Tensor], made: Iterable[Tensor]) -> _Products:
        """Of these weights: those that a layer holds, and those that were made for a timestep."""
        self._lasting = {_memory(weight) for weight in held}
        self._weights = self._lasting | {_memory(weight) for weight in made}
        return self

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
            self._add(left, right[:, None] if right.ndim == 1 else right)
        elif _memory(left) in self._weights:
            # of a matrix and a vector, or the other way round
            activations = right[None] if right.ndim == 1 else right.transpose(-1, -2)
            self._add(activations, left.transpose(-1, -2))

    def _add(self, activations: Tensor, weights: Tensor) -> None:
        """Of activations ``[…, m, k]`` and weights ``[…, k, n]``."""
        fan, ones = self._fan(weights), at_one(activations).sum(-2)
        others = (activations != 0).sum(-2) - ones
        dense = activations.numel() * weights.shape[-1]
        self.count += Count(dense, int((others * fan).sum()), int((ones * fan).sum()))

    def _fan(self, weights: Tensor) -> Tensor:
        """How many connections leave each activation."""
        if _memory(weights) not in self._lasting:
            return (weights != 0).sum(-1)
        key = weights.data_ptr(), weights.shape, weights.stride()
        if key not in self._fans:
            self._fans[key] = (weights != 0).sum(-1)
        return self._fans[key]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
