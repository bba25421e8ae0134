"""Samples that restart within a sequence, for kernels that know nothing of restarts.

What lies between two restarts of a sample is a sequence of its own. All of them stand side by side
(:func:`pieces`), or those of a sample one after the other, apart (:func:`apart`).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """Where the pieces of ``[T, B]`` stand when they are side by side, the longest first.

    Attributes:
        order: of every place, first timesteps first, its place in ``[T·B]``; T·B where it is empty.
        back: of the places in ``[T·B]``, the places here.
        widths: how many places the first timestep has, the second one, …
        samples: of each piece, its sample.
        carried: whether a piece begins with its sample's standing state.
        last: of each sample, its last piece.
    """

    order: Tensor
    back: Tensor
    widths: list[int]
    samples: Tensor
    carried: Tensor
    last: Tensor

    def rectangles(self) -> list[tuple[int, int]]:
        """Timesteps and pieces of each stretch of one width."""
        return [(len(list(same)), width) for width, same in itertools.groupby(self.widths)]


def pieces(resets: Tensor, spare: int = 0) -> Pieces:
    """Cut ``[T, B]`` at the restarts.

    Args:
        resets: booleans ``[T, B]``: a sample restarts before the timestep.
        spare: how many places of a rectangle may be empty; without any, the sequence is packed as
            torch packs it.

    Example:
        >>> import torch
        >>> resets = torch.tensor([[False, True], [False, False], [True, False]])
        >>> found = pieces(resets)
        >>> found.order.tolist(), found.widths
        ([1, 0, 4, 3, 2, 5], [3, 2, 1])
        >>> found.samples.tolist(), found.carried.tolist(), found.last.tolist()
        ([1, 0, 0], [False, True, False], [2, 0])
        >>> found = pieces(resets, spare=1)
        >>> found.order.tolist(), found.rectangles()
        ([1, 0, 4, 3, 2, 6, 5], [(2, 3), (1, 1)])
    """
    steps, samples = resets.shape
    starts = resets.clone()
    starts[0] = True
    time = torch.arange(steps, device=resets.device)[:, None].expand(steps, samples)
    # of every timestep, how long its piece has been running, and which piece it is of
    since = time - torch.where(starts, time, 0).cummax(0).values
    piece = (starts.t().flatten().cumsum(0) - 1).view(samples, steps).t()
    lengths = torch.bincount(piece.flatten())
    longest = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(longest)
    rank[longest] = torch.arange(len(longest), device=resets.device)
    widths = _widths(torch.bincount(since.flatten()).tolist(), spare)
    above = torch.tensor([0, *itertools.accumulate(widths)], device=resets.device)
    back = (above[since] + rank[piece]).flatten()
    begins = (starts.t() & ~resets.t()).flatten()[starts.t().flatten()]
    own = torch.arange(samples, device=resets.device)[:, None].expand(samples, steps)
    return Pieces(
        _inverse(back, back.new_full((sum(widths),), len(back))),
        back,
        widths,
        own[starts.t()][longest],
        begins[longest],
        rank[piece[-1]],
    )


def _widths(sizes: list[int], spare: int) -> list[int]:
    """As wide as the timestep before, until that leaves more than ``spare`` places empty."""
    widths, empty = sizes[:1], 0
    for size in sizes[1:]:
        empty += widths[-1] - size
        if empty > spare:
            widths.append(size)
            empty = 0
        else:
            widths.append(widths[-1])
    return widths


class Apart(NamedTuple):
    """Where the timesteps of ``[T, B]`` stand when there is one more at every restart.

    Attributes:
        order: of every place in ``[steps·B]``, its place in ``[T·B]``; T·B for a restart, and
            T·B + 1 after a sample's last timestep.
        back: of the places in ``[T·B]``, the places here.
    """

    order: Tensor
    back: Tensor


def apart(resets: Tensor, unit: int = 1) -> Apart:
    """Put a timestep in at every restart but those before the first one.

    Args:
        resets: booleans ``[T, B]``: a sample restarts before the timestep.
        unit: how many timesteps more there are is a multiple of it.

    Example:
        >>> import torch
        >>> found = apart(torch.tensor([[False, True], [False, False], [True, False]]))
        >>> found.order.view(4, 2).tolist(), found.back.tolist()
        ([[0, 1], [2, 3], [6, 5], [4, 7]], [0, 1, 2, 3, 6, 5])
    """
    steps, samples = resets.shape
    more = resets.clone()
    more[0] = False
    before = more.cumsum(0)
    length = steps + -(-int(before[-1].max()) // unit) * unit
    time = torch.arange(length, device=resets.device)[:, None]
    sample = torch.arange(samples, device=resets.device)
    back = ((time[:steps] + before) * samples + sample).flatten()
    ended = time >= steps + before[-1]
    return Apart(_inverse(back, len(back) + ended.long().flatten()), back)


def _inverse(back: Tensor, order: Tensor) -> Tensor:
    """The places that ``back`` fills filled in."""
    order[back] = torch.arange(len(back), device=back.device)
    return order
