"""Outputs of chunks put in their place as they come: ``torch.cat``, without holding them twice.

Each chunk's output is copied into the whole sequence's memory at once and may then be freed. What
autograd keeps of it is a tensor of its shape that holds a single value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten


def mapped(change: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Outputs in their nesting, each changed; of several, those in the same place together."""
    if all(isinstance(output, Tensor) for output in (first, *others)):
        return change(first, *others)  # torch's way through a tree of one takes longer
    return tree_map(change, first, *others)


class Assembly:
    """Outputs of a sequence ``[T, …]``, in any nesting, from those of its chunks.

    Args:
        steps: T.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._done = steps, 0
        self._nesting: TreeSpec | None = None
        self._wholes: list[Tensor] = []
        self._sizes: list[int] = []
        self._moved: list[list[Tensor]] = []

    def add(self, chunk: Any) -> None:
        """Take the next chunk's outputs, ``[t, …]``.

        Raises:
            ValueError: they are of another kind than those before.
        """
        leaves, nesting = tree_flatten(chunk)
        if self._nesting is None:
            self._nesting = nesting
            self._wholes = [leaf.new_empty(self._steps, *leaf.shape[1:]) for leaf in leaves]
            self._moved = [[] for _ in leaves]
        now, before = _kinds(leaves), _kinds(self._wholes)
        if nesting != self._nesting or now != before:
            raise ValueError(
                f"unroll: forward must give outputs of one kind at every timestep, got {now} "
                f"after {self._done} of {self._steps} timesteps, and {before} until then"
            )
        size = len(leaves[0]) if leaves else 0
        for moved, leaf, whole in zip(self._moved, leaves, self._wholes, strict=True):
            moved.append(_Moved.apply(leaf, whole[self._done : self._done + size]))
        self._done += size
        self._sizes.append(size)

    def whole(self) -> Any:
        """The outputs of the whole sequence, once all chunks are there."""
        wholes = [
            _Joined.apply(self._sizes, [whole], *moved)
            for whole, moved in zip(self._wholes, self._moved, strict=True)
        ]
        return self._nesting and tree_unflatten(wholes, self._nesting)


def assembled(chunks: Iterable[Any], steps: int) -> Any:
    """The outputs ``[T, …]`` of T ``steps`` from those of its chunks, as they come."""
    assembly = Assembly(steps)
    for chunk in chunks:
        assembly.add(chunk)
        del chunk  # or it would be there until the next one is
    return assembly.whole()


def _kinds(leaves: Iterable[Tensor]) -> list[str]:
    return [f"{leaf.dtype} {list(leaf.shape[1:])} on {leaf.device}" for leaf in leaves]


class _Moved(torch.autograd.Function):
    """A chunk, whose values are from now on at their place in the whole."""

    @staticmethod
    def forward(ctx: Any, chunk: Tensor, place: Tensor) -> Tensor:
        place.copy_(chunk)
        return chunk.new_zeros(()).expand(chunk.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Joined(torch.autograd.Function):
    """The whole, in which the chunks' values are already."""

    @staticmethod
    def forward(ctx: Any, sizes: list[int], whole: list[Tensor], *moved: Tensor) -> Tensor:
        ctx.sizes = sizes
        return whole[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *torch.split(gradients[0], ctx.sizes)
