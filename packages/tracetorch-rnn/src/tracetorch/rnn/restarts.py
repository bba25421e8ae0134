"""Samples that restart within a sequence, as sequences of their own: packed, as torch packs them.

Between two restarts a sample's timesteps are one sequence. All of them, the longest first, make a
packed sequence, which torch's kernels go through at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """Where the pieces of ``[T, B]`` lie in a packed sequence.

    Attributes:
        order: of the packed timesteps, their places in ``[T·B]``.
        back: of the places in ``[T·B]``, their packed timesteps.
        sizes: how many pieces have a first timestep, a second one, …; on the CPU.
        samples: of each piece, its sample.
        carried: whether a piece begins with its sample's standing state.
        last: of each sample, its last piece.
    """

    order: Tensor
    back: Tensor
    sizes: Tensor
    samples: Tensor
    carried: Tensor
    last: Tensor


def pieces(resets: Tensor) -> Pieces:
    """Cut ``[T, B]`` at the restarts.

    Args:
        resets: booleans ``[T, B]``: a sample restarts before the timestep.

    Example:
        >>> import torch
        >>> found = pieces(torch.tensor([[False, True], [False, False], [True, False]]))
        >>> found.order.tolist(), found.sizes.tolist()
        ([1, 0, 4, 3, 2, 5], [3, 2, 1])
        >>> found.samples.tolist(), found.carried.tolist(), found.last.tolist()
        ([1, 0, 0], [False, True, False], [2, 0])
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
    order = (since * len(lengths) + rank[piece]).flatten().argsort()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=resets.device)
    begins = (starts.t() & ~resets.t()).flatten()[starts.t().flatten()]
    own = torch.arange(samples, device=resets.device)[:, None].expand(samples, steps)
    return Pieces(
        order,
        back,
        torch.bincount(since.flatten()).cpu(),
        own[starts.t()][longest],
        begins[longest],
        rank[piece[-1]],
    )
