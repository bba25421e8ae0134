"""Inter-spike intervals: their mean, coefficient of variation and local variation.

Pure functions of spikes ``[T, B, …]`` and of recordings; know no layer and no model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tracetorch.measures.arguments import Spikes, checked_positive, measure


class Intervals(NamedTuple):
    """All inter-spike intervals of a tensor of spikes, those of a neuron one after the other.

    Attributes:
        durations: ``[K]``, how long each is.
        trains: integers ``[K]``, whose it is: a place in the flattened ``[B, …]``.

    Example:
        >>> found = interspike_intervals(torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1))
        >>> found.durations.tolist(), found.trains.tolist()
        ([2.0, 1.0], [0, 0])
    """

    durations: Tensor
    trains: Tensor


def _intervals(given: Spikes) -> Intervals:
    """In timesteps."""
    trains, times = given.fired.flatten(1).t().nonzero(as_tuple=True)
    within = trains[1:] == trains[:-1]
    return Intervals(times.diff()[within], trains[1:][within])


def _summed(given: Spikes, trains: Tensor, values: Tensor) -> Tensor:
    """The sum for each neuron of each sample: ``[B, …]``."""
    shape = given.fired.shape[1:]
    sums = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    return sums.index_add_(0, trains, values).view(shape)


def _counted(given: Spikes, found: Intervals) -> Tensor:
    """How many intervals each neuron of each sample has: ``[B, …]``."""
    return _summed(given, found.trains, torch.ones_like(found.trains))


@measure
def interspike_intervals(
    spikes: Tensor, *, dt: float = 1.0, lengths: Tensor | None = None
) -> Intervals:
    """The times between successive spikes of the same neuron, of all neurons and samples.

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        dt: how long a timestep is, in (0, ∞), as seconds or any other unit of the result.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.
            A recording's own where it has some and none are given.

    Returns:
        Durations ``[K]``, and which place of the flattened ``[B, …]`` each belongs to. Of a
        recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 1.0]]])
        >>> interspike_intervals(spikes)
        Intervals(durations=tensor([1., 2., 2.]), trains=tensor([0, 0, 1]))

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.3.
    """
    dt = checked_positive("interspike_intervals", "dt", dt)
    given = Spikes("interspike_intervals", spikes, lengths)
    found = _intervals(given)
    return found._replace(durations=given.real(found.durations.double() * dt))


@measure
def interval_mean(spikes: Tensor, *, dt: float = 1.0, lengths: Tensor | None = None) -> Tensor:
    """The mean inter-spike interval of each neuron in each sample.

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        dt: how long a timestep is, in (0, ∞), as seconds or any other unit of the result.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B, …]``, in timesteps times ``dt``; NaN with fewer than 2 spikes. Of a recording, a
        dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
        >>> interval_mean(spikes)
        tensor([[1.5000,    nan]])

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.3.
    """
    dt = checked_positive("interval_mean", "dt", dt)
    given = Spikes("interval_mean", spikes, lengths)
    found = _intervals(given)
    total = _summed(given, found.trains, found.durations).double()
    return given.real(total * dt / _counted(given, found))


@measure
def interval_cv(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    r"""The coefficient of variation of each neuron's inter-spike intervals, :math:`\sigma / \mu`.

    0 for a clock, 1 for a Poisson process. The standard deviation is that of the intervals
    themselves (divided by their number).

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B, …]``; NaN with fewer than 3 spikes. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.zeros(5, 1, 2)
        >>> spikes[[0, 2, 4], 0, 0] = 1.0
        >>> spikes[[0, 1, 4], 0, 1] = 1.0
        >>> interval_cv(spikes)
        tensor([[0.0000, 0.5000]])

    Source: Softky and Koch, Journal of Neuroscience 13 (1993).
    """
    given = Spikes("interval_cv", spikes, lengths)
    found = _intervals(given)
    number, total = _counted(given, found), _summed(given, found.trains, found.durations)
    squares = _summed(given, found.trains, found.durations**2)
    cv = (number * squares - total**2).double().sqrt() / total
    return given.real(torch.where(number < 2, torch.nan, cv))


@measure
def local_variation(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    r"""How unlike successive inter-spike intervals are, whatever the slow changes of the rate.

    .. math::
        L_V = \frac{3}{n - 1} \sum_{i=1}^{n-1}
              \left( \frac{I_i - I_{i+1}}{I_i + I_{i+1}} \right)^2

    of the n intervals of a neuron: 0 for a clock, 1 for a Poisson process, at most 3.

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B, …]`` in [0, 3); NaN with fewer than 3 spikes. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.zeros(5, 1, 2)
        >>> spikes[[0, 2, 4], 0, 0] = 1.0
        >>> spikes[[0, 1, 4], 0, 1] = 1.0
        >>> local_variation(spikes)
        tensor([[0.0000, 0.7500]])

    Source: Shinomoto, Shima and Tanji, Neural Computation 15 (2003).
    """
    given = Spikes("local_variation", spikes, lengths)
    found = _intervals(given)
    within = found.trains[1:] == found.trains[:-1]
    before, after = found.durations[:-1][within], found.durations[1:][within]
    unlike = ((before - after) / (before + after).double()) ** 2
    number = _counted(given, found)
    total = _summed(given, found.trains[1:][within], unlike)
    return given.real(torch.where(number < 2, torch.nan, 3 * total / (number - 1)))
