"""Decoders: spikes and membranes over time to one value each, ``[T, B, …]`` → ``[B, …]``.

Functions of tensors: they know no layer. Only timesteps before ``lengths[b]`` are read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tracetorch.snn.masks import (
    check_positive,
    check_sequence,
    checked_lengths,
    durations,
    masked,
)


def count(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """The sum over time: how many spikes, negative ones taken off.

    Args:
        spikes: ``[T, B, …]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Returns:
        ``[B, …]``, differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[1.0]], [[0.0]], [[1.0]]])
        >>> count(spikes).item(), count(spikes, lengths=torch.tensor([2])).item()
        (2.0, 1.0)

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.2 (spike count).
    """
    check_sequence("spikes", spikes)
    return masked(spikes, checked_lengths(lengths, spikes)).sum(0)


def mean(x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """The mean over time: the rate of spikes, or the mean membrane; 0 over no timesteps.

    Args:
        x: ``[T, B, …]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Returns:
        ``[B, …]``, differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[1.0]], [[0.0]], [[1.0]], [[0.0]]])
        >>> mean(spikes).item(), mean(spikes, lengths=torch.tensor([1])).item()
        (0.5, 1.0)

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.2 (spike count over time).
    """
    check_sequence("x", x)
    lengths = checked_lengths(lengths, x)
    return masked(x, lengths).sum(0) / durations(x, lengths)


def first_spike(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """The timestep of each neuron's first spike, of either sign; a silent one's sequence length.

    For a latency with a gradient see :func:`tracetorch.snn.losses.latency`.

    Args:
        spikes: ``[T, B, …]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Returns:
        int64 ``[B, …]`` in 0…T.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
        >>> first_spike(spikes).tolist()
        [[1, 3]]

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 7.6 (time to first spike).
    """
    check_sequence("spikes", spikes)
    lengths = checked_lengths(lengths, spikes)
    fired = masked(spikes.detach(), lengths) != 0
    ends = torch.full((spikes.shape[1],), len(spikes), device=spikes.device)
    ends = (ends if lengths is None else lengths).reshape(-1, *(1,) * (spikes.ndim - 2))
    return torch.where(fired.any(0), fired.to(torch.uint8).argmax(0), ends)


def last_membrane(membranes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """The value in each sample's last timestep; 0 where it has none.

    Args:
        membranes: ``[T, B, …]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Returns:
        ``[B, …]``, differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> membranes = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
        >>> last_membrane(membranes, lengths=torch.tensor([1, 2])).tolist()
        [[1.0], [4.0]]
    """
    check_sequence("membranes", membranes)
    lengths = checked_lengths(lengths, membranes)
    if lengths is None:
        return membranes[-1].clone()
    last = (lengths - 1).clamp(min=0)
    found = membranes[last, torch.arange(len(last), device=last.device)]
    there = (lengths > 0).reshape(-1, *(1,) * (found.ndim - 1))
    return torch.where(there, found, torch.zeros_like(found))


def max_membrane(membranes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """The highest value of each neuron over time; 0 where a sample has no timestep.

    Unlike ``membranes.amax(0)`` it is that of the sample's own timesteps, also where all of them
    lie below the zeros that stand after its end.

    Args:
        membranes: ``[T, B, …]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Returns:
        ``[B, …]``. The gradient goes to the timestep of the maximum, in equal parts where there are
        several.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> membranes = torch.tensor([[[-1.0], [2.0]], [[0.0], [4.0]]])
        >>> max_membrane(membranes, lengths=torch.tensor([1, 2])).tolist()
        [[-1.0], [4.0]]

    Source: Cramer, Stradmann, Schemmel and Zenke, The Heidelberg spiking data sets for the
    systematic evaluation of spiking neural networks, arXiv 1910.07407 (maximum over time).
    """
    check_sequence("membranes", membranes)
    lengths = checked_lengths(lengths, membranes)
    highest = masked(membranes, lengths, -math.inf).amax(0)
    if lengths is None:
        return highest
    there = (lengths > 0).reshape(-1, *(1,) * (highest.ndim - 1))
    return torch.where(there, highest, torch.zeros_like(highest))


def step_forward(spikes: Tensor, threshold: float, start: float | Tensor = 0.0) -> Tensor:
    """The base line that ``encoders.step_forward`` followed: a signal again.

    Args:
        spikes: of −1, 0 and 1, ``[T, B, …]``.
        threshold: what it was encoded with, positive.
        start: the signal's first value: a number, or ``[B, …]``.

    Returns:
        The signal ``[T, B, …]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``spikes`` has the wrong shape, or ``threshold`` is not positive.

    Example:
        >>> spikes = torch.tensor([0.0, 1.0, 1.0, -1.0])[:, None]
        >>> step_forward(spikes, 0.5, start=2.0).flatten().tolist()
        [2.0, 2.5, 3.0, 2.5]

    Source: Petro, Kasabov and Kiss, Selection and optimization of temporal spike encoding methods
    for spiking neural networks, IEEE TNNLS 31, 2020 (step-forward decoding).
    """
    check_sequence("spikes", spikes)
    check_positive("threshold", threshold)
    return start + threshold * spikes.cumsum(0)
