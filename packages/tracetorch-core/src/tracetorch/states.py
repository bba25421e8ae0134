"""States of one timestep: their shapes, whether they fit, restarting samples. Knows no file.

A state has the shape of its layer's input with the layer's own sizes in place of the neurons:
``[…, size, *extra]`` once the neurons are moved last. Users see it with the neurons at ``dim``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch import mode


@dataclass(frozen=True)
class StateSpec:
    """The sizes a state has at, and after, the neurons' place: ``(size, *extra)``."""

    sizes: tuple[int, ...]

    def shape(self, timestep: torch.Size, dim: int) -> tuple[int, ...]:
        """The state's shape in the user's layout for an input ``timestep``, neurons at ``dim``."""
        size, *extra = self.sizes
        return (*timestep[:dim], size, *timestep[dim + 1 :], *extra)

    def neuron_dim(self, ndim: int, dim: int) -> int | None:
        """Where the neurons of a state of ``ndim`` dimensions are; None if it has too few."""
        rank = ndim - len(self.sizes) + 1
        return dim % rank if -rank <= dim < rank else None

    def holds(self, state: Tensor, dim: int) -> bool:
        """Whether a tensor has this spec's sizes in their places."""
        place = self.neuron_dim(state.ndim, dim)
        if place is None:
            return False
        extra = state.shape[state.ndim - len(self.sizes) + 1 :]
        return (state.shape[place], *extra) == self.sizes

    def to_last(self, state: Tensor, dim: int) -> Tensor:
        """The user's layout → neurons last (before the extra sizes)."""
        return moved(state, dim, state.ndim - len(self.sizes))

    def from_last(self, state: Tensor, dim: int) -> Tensor:
        """Neurons last → the user's layout."""
        return moved(state, state.ndim - len(self.sizes), dim)


def moved(tensor: Tensor, source: int, destination: int) -> Tensor:
    """``movedim``, but the tensor itself where both places are the same number.

    A view that moves nothing is still a node of the graph: it costs as much as an operation, and
    changes the order in which gradients are added up.
    """
    return tensor if source == destination else tensor.movedim(source, destination)


def finite(*tensors: Tensor) -> bool:
    """Whether no value is infinite or not a number; each tensor is read once.

    A sum is finite only where all of its terms are. Of numbers near the largest of their type it
    may not be: then this says no.

    Example:
        >>> import torch
        >>> finite(torch.full((4096,), 60.0, dtype=torch.float16), torch.ones(2))
        True
        >>> finite(torch.tensor([1.0, float("-inf")]))
        False
    """
    wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    sums = [tensor.detach().sum(dtype=dtype) for tensor, dtype in zip(tensors, wide, strict=True)]
    return bool(torch.stack(sums).isfinite().all())


_is_alias_of: Any = getattr(torch._C, "_is_alias_of")  # noqa: B009 - not in its stubs


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether what is written into one shows in the other."""
    return one is other or (not torch.compiler.is_compiling() and _is_alias_of(one, other))


def restarted(state: Tensor, mask: Tensor) -> Tensor:
    """``state`` with zeros for the samples (dimension 0) where ``mask`` is true."""
    return keep_where(~mask, state, torch.zeros_like(state))


def keep_where(mask: Tensor, state: Tensor, other: Tensor) -> Tensor:
    """``state`` for the samples (dimension 0) where ``mask`` is true, else ``other``."""
    if state.shape[:1] != mask.shape:
        raise ValueError(
            f"a mask or lengths over {len(mask)} samples needs them at dimension 0 of every state "
            f"and output of a timestep, got one of shape {list(state.shape)}"
        )
    return torch.where(mask.view(-1, *(1,) * (state.ndim - 1)), state, other)


class IncompatibleStates(NamedTuple):
    """Which names did not fit when states were put in place; none at all where ``strict``.

    Attributes:
        missing: states that were not given; they stay as they are.
        unexpected: names that were given, of no state; they are left out.

    Example:
        >>> import torch, tracetorch as tt
        >>> layer = tt.testing.Trace(2)
        >>> layer.set_states({"membrane": torch.zeros(1, 2)}, strict=False)
        IncompatibleStates(missing=['mem'], unexpected=['membrane'])
    """

    missing: list[str]
    unexpected: list[str]


def compared(given: Set[str], own: Set[str]) -> IncompatibleStates:
    """Names of states that were given, against those there are."""
    return IncompatibleStates(sorted(own - given, key=str), sorted(given - own, key=str))


def checked_states(states: object) -> Mapping[str, Tensor | None]:
    """A mapping of states by name; TypeError otherwise."""
    if not isinstance(states, Mapping):
        raise TypeError(f"states must be a mapping of names to tensors or None, got {states!r}")
    return states


def checked_mask(mask: object) -> Tensor:
    """A boolean mask over the batch; TypeError or ValueError otherwise."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else repr(mask)
        raise TypeError(f"mask must be a boolean tensor over the batch, got {got}")
    if mask.ndim != 1:
        raise ValueError(f"mask must have one dimension, the batch, got shape {list(mask.shape)}")
    return mask


def checked_resets(resets: object) -> Tensor:
    """Which samples restart before which timesteps, booleans; TypeError otherwise."""
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        got = resets.dtype if isinstance(resets, Tensor) else repr(resets)
        raise TypeError(f"resets must be a boolean tensor over time and batch, got {got}")
    return resets


def any_restarts(mask: Tensor) -> bool:
    """Whether there is anything to do; a graph that is being made is for any mask."""
    return torch.compiler.is_compiling() or mode.transformed() or bool(mask.any())


def between_restarts(resets: Tensor) -> list[tuple[int, int]]:
    """Where the stretches of a sequence begin and end within which no sample restarts."""
    starts = {0, *resets.any(1).nonzero().flatten().tolist()}
    return [*itertools.pairwise([*sorted(starts), len(resets)])]


def checked_index(index: object) -> Tensor:
    """Places of samples in the batch, or a mask over it; TypeError or ValueError otherwise."""
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if isinstance(index, (list, tuple)) and all(type(place) is int for place in index):
        index = torch.tensor(index, dtype=torch.int64)
    if not isinstance(index, Tensor) or index.dtype not in kinds:
        got = index.dtype if isinstance(index, Tensor) else repr(index)
        raise TypeError(
            f"index must be a tensor of integers, samples of the batch, or a boolean mask over it, "
            f"got {got}"
        )
    if index.ndim != 1:
        raise ValueError(f"index must have one dimension, got shape {list(index.shape)}")
    return index if index.dtype == torch.bool else index.long()
