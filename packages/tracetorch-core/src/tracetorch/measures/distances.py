"""Distances between spike trains: van Rossum's and Victor and Purpura's.

Pure functions of two tensors of spikes ``[T, B, …]``, or of two recordings; know no layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch.measures.arguments import (
    Spikes,
    checked_amount,
    checked_positive,
    comparison,
    counted,
)

# of a diagonal, for all trains that are worked on together: fewer than torch spreads over threads
_CELLS = 1 << 15


def _pair(owner: str, first: object, second: object, lengths: object) -> tuple[Spikes, Tensor]:
    """The first, and where the second fires."""
    one = Spikes(owner, first, lengths, name="first")
    other = Spikes(owner, second, lengths, name="second")
    if one.fired.shape != other.fired.shape:
        raise ValueError(
            f"{owner}: first and second must have the same shape, got {list(one.fired.shape)} and "
            f"{list(other.fired.shape)}"
        )
    return one, other.fired


@comparison
def van_rossum(
    first: Tensor, second: Tensor, tau: float, *, lengths: Tensor | None = None
) -> Tensor:
    r"""The distance of two spike trains as the traces that they leave.

    .. math::
        D^2 = \frac1\tau \int_0^\infty (f(t) - g(t))^2 \, dt, \qquad
        f(t) = \sum_{t_i \le t} e^{-(t - t_i)/\tau}

    A spike that only one of them has makes :math:`D^2 = 1/2`, two of them far apart make 1. The
    integral is exact, in continuous time and beyond the last timestep. Spikes count by being
    there, whatever their sign and size; there is no gradient.

    Args:
        first: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        second: of the same shape, or a recording of the same names.
        tau: the time constant, in (0, ∞) timesteps.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.
            The first recording's own where it has some and none are given.

    Returns:
        D, ``[B, …]``, one for each pair of trains. Of recordings, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range, or names differ.

    Example:
        >>> import torch
        >>> one, other = torch.zeros(2, 3, 1)
        >>> one[0] = 1.0
        >>> van_rossum(one, other, 10.0) ** 2
        tensor([0.5000])

    Source: van Rossum, A Novel Spike Distance, Neural Computation 13 (2001).
    """
    tau = checked_positive("van_rossum", "tau", tau)
    one, other = _pair("van_rossum", first, second, lengths)
    decay, kept = math.exp(-1 / tau), -math.expm1(-2 / tau)
    trace = torch.zeros(other.shape[1:], dtype=torch.float64, device=other.device)
    squares = torch.zeros_like(trace)
    # between two timesteps a trace f decays, and its square integrates to f² tau kept / 2
    for fires, fires_too in zip(one.fired.view(torch.int8), other.view(torch.int8), strict=True):
        trace.mul_(decay).add_(fires - fires_too)
        squares.addcmul_(trace, trace)
    return one.real(((kept * squares + (1 - kept) * trace**2) / 2).sqrt())


@comparison
def victor_purpura(
    first: Tensor, second: Tensor, cost: float, *, lengths: Tensor | None = None
) -> Tensor:
    r"""What it costs to turn one spike train into the other.

    To add or to remove a spike costs 1, to move it ``cost`` for each timestep. At 0 only the
    numbers of spikes matter; the higher, the more exactly spikes have to coincide (from 2 on,
    only coincidences are left). Spikes count by being there, whatever their sign and size.

    With spikes at :math:`t_i` and :math:`u_j`, the least cost is G(n, m), by

    .. math::
        G(i, j) = \min\big( G(i-1, j) + 1,\; G(i, j-1) + 1,\; G(i-1, j-1) + q |t_i - u_j| \big)

    Time goes by the product of the numbers of spikes, and many trains are worked on at once.

    Args:
        first: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        second: of the same shape, or a recording of the same names.
        cost: q, in [0, ∞) per timestep.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.
            The first recording's own where it has some and none are given.

    Returns:
        ``[B, …]``, one for each pair of trains. Of recordings, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range, or names differ.

    Example:
        >>> import torch
        >>> one, other = torch.zeros(2, 5, 1)
        >>> one[[0, 4]] = 1.0
        >>> other[1] = 1.0
        >>> victor_purpura(one, other, 0.5)
        tensor([1.5000])

    Source: Victor and Purpura, Journal of Neurophysiology 76 (1996), their D^spike[q].
    """
    cost = checked_amount("victor_purpura", "cost", cost)
    one, other = _pair("victor_purpura", first, second, lengths)
    t, n = _times(one.fired)
    u, m = _times(other)
    distances = torch.zeros(n.shape, dtype=torch.float64, device=n.device)
    # trains of like numbers together, as many as fit into a processor's cache
    for some in torch.split((n + m).argsort(), max(1, _CELLS // (len(t) + 1))):
        rows, columns = (max(numbers[some].tolist(), default=0) for numbers in (n, m))
        distances[some] = _least_cost(t[:rows, some], n[some], u[:columns, some], m[some], cost)
    return one.real(distances.view(other.shape[1:]))


def _times(fired: Tensor) -> tuple[Tensor, Tensor]:
    """When the spikes of each train are, ``[K, M]``, and how many there are, ``[M]``."""
    trains, times = fired.flatten(1).t().nonzero(as_tuple=True)
    numbers = counted(fired).flatten()
    rank = torch.arange(len(trains), device=fired.device)
    rank -= (numbers.cumsum(0) - numbers)[trains]
    most = max(numbers.tolist(), default=0)
    padded = torch.zeros(most, len(numbers), dtype=torch.float64, device=fired.device)
    padded[rank, trains] = times.double()
    return padded, numbers


def _least_cost(t: Tensor, n: Tensor, u: Tensor, m: Tensor, cost: float) -> Tensor:
    """G(n, m) of each train ``[M]``, for spikes ``[K, M]`` and ``[L, M]``.

    G is found by its diagonals i + j = s: row i of a diagonal depends on rows i and i - 1 of the
    two before it alone, so that a diagonal is one operation.
    """
    rows, columns = len(t), len(u)
    t, reverse, end = t * cost, u.flip(0) * cost, n + m
    found = torch.zeros(n.shape, dtype=torch.float64, device=t.device)
    before = last = torch.zeros(rows + 1, len(n), dtype=torch.float64, device=t.device)
    for s in range(1, rows + columns + 1):
        new = torch.full_like(last, float(s))  # where a train has no spikes left
        low, high = max(1, s - columns), min(rows, s - 1)
        if low <= high:
            moved = t[low - 1 : high] - reverse[columns - s + low : columns - s + high + 1]
            moved.abs_().add_(before[low - 1 : high])
            least = torch.minimum(last[low - 1 : high], last[low : high + 1]).add_(1)
            torch.minimum(moved, least, out=new[low : high + 1])
        ending = (end == s).nonzero()[:, 0]
        found[ending] = new[n[ending], ending]
        before, last = last, new
    return found
