"""Regularisers on activity: rates that stay in bounds, synaptic operations, membranes in a band.

Functions of tensors ``[T, B, …]`` to be added to a loss, scaled by whoever adds them. They know no
layer and no model; ``lengths`` as in :mod:`tracetorch.snn.losses`.
"""

from __future__ import annotations

import math

from torch import Tensor
from tracetorch.snn.masks import (
    check_positive,
    check_sequence,
    check_within,
    checked_lengths,
    durations,
    magnitude,
    masked,
    reduced,
)


def _rates(spikes: Tensor, bound: float, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Spikes per timestep of each neuron ``[B, N]``, and the lengths, checked."""
    check_sequence("spikes", spikes)
    check_within("bound", bound, 0.0, 1.0, "a rate in 0…1")
    lengths = checked_lengths(lengths, spikes)
    counts = masked(magnitude(spikes), lengths).sum(0)
    return (counts / durations(spikes, lengths)).reshape(len(counts), -1), lengths


def lower_rate(
    spikes: Tensor,
    bound: float,
    *,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Wakes neurons: :math:`\frac{1}{N} \sum_i \max(0, \text{bound} - r_i)^2`, each on its own.

    Args:
        spikes: ``[T, B, …]``; a negative spike counts as one. At silence the gradient asks
            for positive spikes.
        bound: the rate, in spikes per timestep, under which a neuron is pushed up, in 0…1.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])         # rates 0.5 and 0
        >>> lower_rate(spikes, 0.5).item()
        0.125

    Source: Zenke and Vogels, The remarkable robustness of surrogate gradient learning for
    instilling complex function in spiking neural networks, Neural Computation 33, 2021
    (per-neuron lower threshold), with rates in place of counts.
    """
    rates, lengths = _rates(spikes, bound, lengths)
    return reduced((bound - rates).clamp(min=0).square().mean(1), lengths, reduction)


def upper_rate(
    spikes: Tensor,
    bound: float,
    *,
    population: bool = False,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Calms neurons: :math:`\frac{1}{N} \sum_i \max(0, r_i - \text{bound})^2`.

    Args:
        spikes: ``[T, B, …]``; a negative spike counts as one.
        bound: the rate, in spikes per timestep, above which it is pushed down, in 0…1.
        population: bound the mean rate of all neurons, :math:`\max(0, \bar r - \text{bound})^2`,
            as the source does, so that single ones may fire more.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])         # rates 1 and 0
        >>> upper_rate(spikes, 0.5).item(), upper_rate(spikes, 0.5, population=True).item()
        (0.125, 0.0)

    Source: Zenke and Vogels, Neural Computation 33, 2021 (population upper threshold).
    """
    rates, lengths = _rates(spikes, bound, lengths)
    if population:
        rates = rates.mean(1, keepdim=True)
    return reduced((rates - bound).clamp(min=0).square().mean(1), lengths, reduction)


def synaptic_operations(
    spikes: Tensor,
    fan_out: float | Tensor,
    *,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Additions that spikes cause downstream, per sample: :math:`\sum_t \sum_i |s_i| \, c_i`.

    Args:
        spikes: ``[T, B, …]`` of one layer.
        fan_out: synapses that a spike reaches: a positive number for all neurons (the columns'
            height of a ``Linear``), or a tensor that broadcasts to a sample's timestep, ``[…]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> spikes = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]])
        >>> synaptic_operations(spikes, torch.tensor([10.0, 1.0])).item()
        12.0

    Source: Sorbaro et al., Optimizing the energy consumption of spiking neural networks for
    neuromorphic applications, arXiv 1912.01268.
    """
    check_sequence("spikes", spikes)
    lengths = checked_lengths(lengths, spikes)
    if isinstance(fan_out, Tensor):
        _check_fan_out(fan_out, spikes)
        fan_out = fan_out.to(spikes)
    else:
        check_positive("fan_out", fan_out, "a positive number of synapses, or a tensor of them")
    operations = masked(magnitude(spikes), lengths).sum(0) * fan_out
    return reduced(operations.reshape(len(operations), -1).sum(1), lengths, reduction)


def _check_fan_out(fan_out: Tensor, spikes: Tensor) -> None:
    neurons = spikes.shape[2:]
    shape, ndim = tuple(fan_out.shape), fan_out.ndim
    pairs = zip(reversed(shape), reversed(neurons), strict=False)
    if ndim > len(neurons) or any(have not in (1, want) for have, want in pairs):
        raise ValueError(
            f"fan_out must broadcast to one timestep of one sample, {list(neurons)}, got the "
            f"shape {list(shape)}"
        )


def membrane_band(
    membranes: Tensor,
    low: float,
    high: float,
    *,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared distance of membranes from a band, the mean over neurons and timesteps.

    Nothing within it, :math:`(u - \text{high})^2` above, :math:`(\text{low} - u)^2` below: keeps
    membranes where the surrogate has a gradient.

    Args:
        membranes: ``[T, B, …]``.
        low: lower end of the band.
        high: upper end, not below ``low``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> import torch
        >>> membranes = torch.tensor([[[0.5, 3.0]], [[-1.0, 1.0]]])
        >>> membrane_band(membranes, 0.0, 1.0).item()                   # (0 + 4 + 1 + 0) / 4
        1.25

    Source: Guo et al., RecDis-SNN: rectifying membrane potential distribution for directly
    training spiking neural networks, CVPR 2022, for why; the band here is the plainest form of it.
    """
    check_sequence("membranes", membranes)
    for name, value in (("low", low), ("high", high)):
        check_within(name, value, -math.inf, math.inf, "a finite number", open_ends=True)
    if low > high:
        raise ValueError(f"low must not be above high, got low={low!r} and high={high!r}")
    lengths = checked_lengths(lengths, membranes)
    # a membrane in the band stands for one that does not count
    held = masked(membranes, lengths, low)
    outside = (held - held.clamp(low, high)).square().sum(0) / durations(membranes, lengths)
    return reduced(outside.reshape(len(outside), -1).mean(1), lengths, reduction)
