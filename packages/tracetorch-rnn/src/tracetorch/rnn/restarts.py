"""Samples that restart within a sequence, for kernels that know nothing of restarts.

What lies between two restarts of a sample is a sequence of its own, a piece. All of them stand side
by side (:func:`pieces`), or those of a sample one after the other, apart (:func:`apart`); or they
are cut into chunks, most of which begin from nothing, or leave nothing behind (:func:`chunks`).
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


def piece_lengths(resets: Tensor) -> Tensor:
    """How many timesteps the pieces of ``[T, B]`` have, sample by sample in the order of time."""
    starts = resets.t().clone()
    starts[:, 0] = True
    return torch.bincount(starts.flatten().cumsum(0) - 1)


# Kinds of chunks, in the order they lie in: what begins from nothing and leaves nothing, of at most
# half the length and longer; what hands a state on, or begins with one, or both.
SHORT, ALONE, FIRST, BETWEEN, LAST = range(5)


class Chunks(NamedTuple):
    """Where the pieces of ``[T, B]`` lie when they are cut into chunks of a length.

    They lie sorted by kind, a ``SHORT`` one in half the length. The state a chunk begins with was
    handed on by the one before it in its piece, or is its sample's standing one.

    Attributes:
        rows: of the places in ``[T·B]``, theirs one chunk after the other; other rows are empty.
        sizes: how many rows there are of each kind.
        steps: how many rows a chunk of each kind has.
        order: of those that hand a state on, one piece after the other in the order of time, their
            places among them.
        first: whether such a one, in that order, is the first of its piece.
        carried: which of them, in that order, begin with a sample's standing state; whose it is.
        sources: what each chunk begins with that does not begin from nothing: a row of the states
            that were handed on, in that order, and behind them of the samples' standing ones.
        last: of each sample, how many timesteps its last chunk has, its source, and whether it
            has one.
    """

    rows: Tensor
    sizes: list[int]
    steps: list[int]
    order: Tensor
    first: Tensor
    carried: tuple[Tensor, Tensor]
    sources: Tensor
    last: tuple[Tensor, Tensor, Tensor]


def chunks(resets: Tensor, length: int) -> Chunks:
    """Cut ``[T, B]`` at the restarts, and what is between them into chunks.

    Args:
        resets: booleans ``[T, B]``: a sample restarts before the timestep.
        length: timesteps of a chunk, even; the last one of a piece may have fewer.

    Example:
        >>> import torch
        >>> found = chunks(torch.tensor([[False, True], [False, False], [True, False]]), 2)
        >>> found.rows.view(3, 2).tolist(), found.sizes
        ([[3, 1], [4, 2], [0, 5]], [1, 0, 2, 0, 4])
        >>> found.sources.tolist(), found.last[0].tolist()
        ([1, 0], [1, 1])
    """
    steps, samples = resets.shape
    resets = resets.t()  # samples first: their chunks are numbered one sample after the other
    starts = resets.clone()
    starts[:, 0] = True
    time = torch.arange(steps, device=resets.device).expand(samples, steps)
    since = time - torch.where(starts, time, 0).cummax(1).values
    begins = since % length == 0
    chunk = (begins.flatten().cumsum(0) - 1).view(samples, steps)
    own = torch.arange(samples, device=resets.device)[:, None].expand(samples, steps)[begins]
    first = (since == 0)[begins]
    standing = (starts & ~resets)[begins]
    hands = torch.cat([~first[1:], first.new_zeros(1)])
    reads = ~first | standing
    handed = hands.cumsum(0) - 1
    source = torch.where(first, int(hands.sum()) + own, handed.roll(1))

    kinds = torch.where(hands, torch.where(reads, BETWEEN, FIRST), torch.where(reads, LAST, ALONE))
    short = (kinds == ALONE) & (torch.bincount(chunk.flatten()) <= length // 2)
    kinds[short] = SHORT
    by_kind = kinds.argsort(stable=True)
    counts = torch.bincount(kinds, minlength=LAST + 1)
    lengths = [length // 2, *[length] * LAST]
    slot = torch.empty_like(by_kind)
    slot[by_kind] = torch.arange(len(slot), device=slot.device)
    row = slot * length - torch.where(short, slot, counts[SHORT]) * (length - length // 2)
    ends = chunk[:, -1]
    (carried,) = standing[hands].nonzero(as_tuple=True)
    return Chunks(
        (row[chunk] + since % length).t().flatten(),
        [count * steps for count, steps in zip(counts.tolist(), lengths, strict=True)],
        lengths,
        slot[hands] - counts[:FIRST].sum(),
        first[hands],
        (carried, own[hands][carried]),
        source[by_kind][(~reads).sum() :],
        (since[:, -1] % length + 1, source[ends], reads[ends]),
    )
