"""How often and when neurons fire: counts, rates, sparsity, the silent and the busy ones.

Pure functions of spikes ``[T, B, …]`` and of recordings; know no layer and no model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracetorch.measures.arguments import (
    Spikes,
    checked_number,
    checked_positive,
    counted,
    measure,
)


@measure
def spike_counts(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """How many spikes each neuron emits in each sample.

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.
            A recording's own where it has some and none are given.

    Returns:
        Integers ``[B, …]``; of a recording, a dict of them by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[0.0, 1.0]], [[-1.0, 0.5]], [[0.0, 0.0]]])
        >>> spike_counts(spikes)
        tensor([[1, 2]])
        >>> spike_counts({"lif.out": spikes}, lengths=torch.tensor([1]))
        {'lif.out': tensor([[0, 1]])}

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.2 (spike count).
    """
    return counted(Spikes("spike_counts", spikes, lengths).fired)


@measure
def firing_rate(
    spikes: Tensor, *, over: str = "time", dt: float = 1.0, lengths: Tensor | None = None
) -> Tensor:
    """Spikes per timestep, or per second.

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        over: what is averaged: ``"time"``, ``"batch"`` (time and samples) or ``"all"`` (neurons
            as well). A longer sample weighs more.
        dt: how long a timestep is, in (0, ∞); in seconds, rates are in Hz.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B, …]`` over time, ``[…]`` over the batch, a scalar over all. NaN where no timestep
        counts. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
        >>> firing_rate(spikes)
        tensor([[0.5000, 1.0000]])
        >>> firing_rate(spikes, over="all", dt=0.001)
        tensor(750.)

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.2 (spike count over time).
    """
    if over not in ("time", "batch", "all"):
        raise ValueError(f"firing_rate: over must be 'time', 'batch' or 'all', got {over!r}")
    dt = checked_positive("firing_rate", "dt", dt)
    given = Spikes("firing_rate", spikes, lengths, neurons=over == "batch")
    return given.real(_rate(given, over) / dt)


def _rate(given: Spikes, over: str) -> Tensor:
    """Spikes per timestep in float64."""
    counts, steps = counted(given.fired), given.steps.double()
    if over == "time":
        return counts / steps
    if over == "batch":
        return counts.sum(0) / steps.sum()
    return counts.sum() / (steps.sum() * counts[:1].numel())


@measure
def activation_sparsity(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """The share of zeros among all activations, over timesteps, samples and neurons.

    Args:
        spikes: ``[T, B, …]``, or a recording; any activations.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        A scalar in [0, 1]; NaN where no timestep counts. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> activation_sparsity(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]]))
        tensor(0.7500)

    Source: Yik et al., NeuroBench, arXiv 2304.04640.
    """
    given = Spikes("activation_sparsity", spikes, lengths)
    return given.real(1 - _rate(given, "all"))


@measure
def dead(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Which neurons never fire, in no sample.

    Args:
        spikes: ``[T, B, …]`` with at least one dimension of neurons, or a recording.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        Booleans ``[…]``, one for each neuron. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> dead(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]]))
        tensor([False,  True])
    """
    return ~Spikes("dead", spikes, lengths, neurons=True).fired.any(0).any(0)


@measure
def saturated(spikes: Tensor, *, share: float = 0.9, lengths: Tensor | None = None) -> Tensor:
    """Which neurons fire nearly always: in at least this share of all timesteps.

    Args:
        spikes: ``[T, B, …]`` with at least one dimension of neurons, or a recording.
        share: of the timesteps of all samples, in (0, 1].
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        Booleans ``[…]``, one for each neuron; False where no timestep counts. Of a recording, a
        dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> saturated(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor([ True, False])
    """
    share = checked_number("saturated", "share", share, "a number in (0, 1]", lambda s: 0 < s <= 1)
    return _rate(Spikes("saturated", spikes, lengths, neurons=True), "batch") >= share


@measure
def first_spike_latency(
    spikes: Tensor, *, dt: float = 1.0, silent: float = math.inf, lengths: Tensor | None = None
) -> Tensor:
    """When each neuron first fires: 0 for a spike in the first timestep.

    Args:
        spikes: ``[T, B, …]``, or a recording; whatever is not zero is a spike.
        dt: how long a timestep is, in (0, ∞), as seconds or any other unit of the result.
        silent: the value of neurons that do not fire; any number, NaN and ∞ included.
        lengths: integers ``[B]`` in 0…T, the timesteps of each sample that count; all where None.

    Returns:
        ``[B, …]``, in timesteps times ``dt``. Of a recording, a dict by name.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
        >>> first_spike_latency(spikes)
        tensor([[1., inf]])

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.6 (time to first spike).
    """
    dt = checked_positive("first_spike_latency", "dt", dt)
    silent = checked_number("first_spike_latency", "silent", silent, "a number", lambda v: True)
    given = Spikes("first_spike_latency", spikes, lengths)
    first = given.fired.view(torch.uint8).argmax(0)  # of equal ones, torch takes the first
    return given.real(torch.where(given.fired.any(0), first.double() * dt, silent))
