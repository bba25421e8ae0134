"""What a kernel's launch is, for any target. Knows none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

# tensors in the kernel's order (None for null), then its sizes
Launch = Callable[[Sequence["Tensor | None"], Sequence[int]], None]


class BuildError(Exception):
    """A kernel cannot be made here; the message says why."""


def in_order(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its values in memory as they are, one after the other."""
    if tensor is None:
        return None
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()
