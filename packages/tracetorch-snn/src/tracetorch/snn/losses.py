"""Losses on spikes and membranes over time, ``[T, B, classes]``, each from its source.

Functions of tensors: they know no layer and no model. Every one gives a value per sample and then
reduces; of a padded sequence only the timesteps before ``lengths[b]`` are read, so that the mean
is the mean over the samples on their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from tracetorch.snn.decoders import max_membrane
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


def _checked(
    name: str, x: Tensor, targets: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Classes as int64 on the device of ``x``, and the lengths, where they fit it."""
    check_sequence(name, x, ndim=3)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        got = targets.dtype if isinstance(targets, Tensor) else repr(targets)
        raise TypeError(f"targets must be a tensor of integers [B], got {got}")
    batch, classes = x.shape[1:]
    if targets.shape != (batch,):
        raise ValueError(
            f"targets must have one class for each of the {batch} samples of {name} "
            f"[T, B, classes], time first, got the shape {list(targets.shape)}"
        )
    if not torch.compiler.is_compiling() and bool(((targets < 0) | (targets >= classes)).any()):
        raise ValueError(f"targets must lie in 0…{classes - 1}, got {targets.tolist()}")
    return targets.to(x.device, torch.int64), checked_lengths(lengths, x)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each sample: ``[B, classes]`` → ``[B]``."""
    return functional.cross_entropy(logits, targets, reduction="none")


def _each_timestep(x: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
    """The cross-entropy of each timestep, 0 where it does not count: ``[T, B]``."""
    logits = masked(x, lengths)
    every = _cross_entropy(logits.flatten(0, 1), targets.repeat(len(x)))
    return masked(every.reshape(x.shape[:2]), lengths)


def count_cross_entropy(
    spikes: Tensor,
    targets: Tensor,
    *,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of spike counts: :math:`-\log \mathrm{softmax}(\sum_t s_t)_y`.

    Args:
        spikes: ``[T, B, classes]``; the sum over time is a class's logit.
        targets: the class of each sample, integers ``[B]`` in 0…classes − 1.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
        >>> loss = count_cross_entropy(spikes, torch.tensor([0]))           # of the counts 2 and 1
        >>> abs(loss.item() - math.log(1 + math.exp(-1))) < 1e-6
        True

    Source: Eshraghian et al., Training spiking neural networks using lessons from deep learning,
    arXiv 2109.12894 (cross-entropy spike count loss).
    """
    targets, lengths = _checked("spikes", spikes, targets, lengths)
    counts = masked(spikes, lengths).sum(0)
    return reduced(_cross_entropy(counts, targets), lengths, reduction)


def count_mse(
    spikes: Tensor,
    targets: Tensor,
    *,
    correct: float = 0.8,
    incorrect: float = 0.2,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared distance of each class's rate from what is wanted of it, the mean over classes.

    The rate is the number of spikes per timestep; ``correct`` is wanted of the target class and
    ``incorrect`` of the others, so that no neuron is taught to be silent.

    Args:
        spikes: ``[T, B, classes]``.
        targets: the class of each sample, integers ``[B]``.
        correct: the wanted rate of the target class, in 0…1.
        incorrect: the wanted rate of the other classes, in 0…1.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> loss = count_mse(spikes, torch.tensor([0]), correct=1.0, incorrect=0.5)
        >>> loss.item()                                                  # (0² + 0.5²) / 2
        0.125

    Source: Shrestha and Orchard, SLAYER, arXiv 1810.08646 (spike count loss), as a rate.
    """
    targets, lengths = _checked("spikes", spikes, targets, lengths)
    for name, value in (("correct", correct), ("incorrect", incorrect)):
        check_within(name, value, 0.0, 1.0, "a rate in 0…1")
    rates = masked(spikes, lengths).sum(0) / durations(spikes, lengths)
    wanted = torch.full_like(rates, incorrect).scatter(1, targets[:, None], correct)
    return reduced((rates - wanted).square().mean(1), lengths, reduction)


def timestep_cross_entropy(
    x: Tensor,
    targets: Tensor,
    *,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of every timestep, summed over time: :math:`\sum_t \mathrm{CE}(x_t, y)`.

    It asks for the target class in every timestep, so errors do not have to reach far back.

    Args:
        x: spikes or membranes ``[T, B, classes]``, the logits of each timestep.
        targets: the class of each sample, integers ``[B]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> loss = timestep_cross_entropy(torch.zeros(5, 1, 2), torch.tensor([1]))
        >>> abs(loss.item() - 5 * math.log(2)) < 1e-6
        True

    Source: Eshraghian et al., arXiv 2109.12894 (cross-entropy spike rate loss, and its sibling
    on membranes).
    """
    targets, lengths = _checked("x", x, targets, lengths)
    return reduced(_each_timestep(x, targets, lengths).sum(0), lengths, reduction)


def tet(
    x: Tensor,
    targets: Tensor,
    *,
    weight: float = 0.05,
    level: float = 1.0,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Temporal efficient training: each timestep's cross-entropy, and its outputs held together.

    :math:`\frac{1}{T} \sum_t (1 - \lambda) \, \mathrm{CE}(x_t, y) + \lambda \, \mathrm{MSE}(x_t,
    \varphi)`, where the second term keeps single timesteps from running away.

    Args:
        x: spikes, membranes or other outputs ``[T, B, classes]``, the logits of each timestep.
        targets: the class of each sample, integers ``[B]``.
        weight: of the second term, :math:`\lambda` in 0…1.
        level: where it holds the outputs, :math:`\varphi`; the paper takes the threshold.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> x, targets = torch.zeros(5, 1, 2), torch.tensor([1])
        >>> tet(x, targets, weight=1.0, level=3.0).item()      # the distance from 3, alone
        9.0

    Source: Deng et al., Temporal efficient training of spiking neural network via gradient
    re-weighting, ICLR 2022, arXiv 2202.11946.
    """
    targets, lengths = _checked("x", x, targets, lengths)
    check_within("weight", weight, 0.0, 1.0, "a number in 0…1")
    check_within("level", level, -math.inf, math.inf, "a finite number", open_ends=True)
    apart = masked((masked(x, lengths) - level).square().mean(2), lengths)
    each = (1 - weight) * _each_timestep(x, targets, lengths) + weight * apart
    return reduced(each.sum(0) / durations(each, lengths), lengths, reduction)


def max_membrane_cross_entropy(
    membranes: Tensor,
    targets: Tensor,
    *,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of each class's highest membrane: :math:`\mathrm{CE}(\max_t u_t, y)`.

    Of :func:`tracetorch.snn.decoders.max_membrane`, whose largest is the class that is found.
    Only the timestep of the maximum gets a gradient. For readouts that do not fire (``LI``).

    Args:
        membranes: ``[T, B, classes]``.
        targets: the class of each sample, integers ``[B]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> membranes = torch.tensor([[[0.0, 2.0]], [[1.0, -5.0]]])
        >>> loss = max_membrane_cross_entropy(membranes, torch.tensor([1]))
        >>> abs(loss.item() - math.log(1 + math.exp(1 - 2))) < 1e-6
        True

    Source: Cramer, Stradmann, Schemmel and Zenke, The Heidelberg spiking data sets for the
    systematic evaluation of spiking neural networks, arXiv 1910.07407 (maximum-over-time loss).
    """
    targets, lengths = _checked("membranes", membranes, targets, lengths)
    highest = max_membrane(membranes, lengths=lengths)
    return reduced(_cross_entropy(highest, targets), lengths, reduction)


def latency(spikes: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    r"""Timesteps before each neuron's first spike, with a gradient.

    :math:`\sum_t \prod_{r \le t} (1 - s_r)`: the product is 1 as long as no spike has come, then
    0, so for spikes of 0 and 1 the sum is exactly the first spike's timestep, and the number of
    timesteps where there is none. As a polynomial in the spikes it has a gradient, which
    goes through each spike's surrogate: an earlier spike would shorten the latency. A neuron
    that is late or silent is told so in every timestep until its first spike, and the first spike
    how long the next would take.

    Args:
        spikes: ``[T, B, …]`` of 0 and ±1, or of firing probabilities.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Returns:
        ``[B, …]`` in 0…T, in timesteps, of the type of ``spikes``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]], requires_grad=True)
        >>> latency(spikes).tolist()
        [[3.0, 1.0]]
        >>> latency(spikes).sum().backward()
        >>> spikes.grad[:, 0, 0].tolist()                               # of the silent one
        [-3.0, -2.0, -1.0]

    Source: the mean waiting time is the sum of the survivor function; Gerstner et al., Neuronal
    Dynamics, Cambridge 2014, section 7.5.
    """
    check_sequence("spikes", spikes)
    lengths = checked_lengths(lengths, spikes)
    waiting = (1 - masked(magnitude(spikes), lengths)).cumprod(0)
    return masked(waiting, lengths).sum(0)


def first_spike_cross_entropy(
    spikes: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of latencies: the target class is to fire first.

    :math:`-\log \mathrm{softmax}(-t / \text{temperature})_y`, with the latencies :math:`t` of
    :func:`latency`, through which the gradient goes; a silent neuron fires "at the end".

    Args:
        spikes: ``[T, B, classes]`` of 0 and 1, or of firing probabilities.
        targets: the class of each sample, integers ``[B]``.
        temperature: the lead in timesteps that multiplies the odds by e, positive.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]])  # at 0 and at 2
        >>> loss = first_spike_cross_entropy(spikes, torch.tensor([0]))
        >>> abs(loss.item() - math.log(1 + math.exp(-2))) < 1e-6
        True

    Source: Mostafa, Supervised learning based on temporal coding in spiking neural networks,
    arXiv 1606.08165 (cross-entropy of negative spike times), with the surrogate's
    gradient.
    """
    targets, lengths = _checked("spikes", spikes, targets, lengths)
    check_positive("temperature", temperature, "a number of timesteps in (0, ∞)")
    logits = -latency(spikes, lengths=lengths) / temperature
    return reduced(_cross_entropy(logits, targets), lengths, reduction)


def van_rossum(
    spikes: Tensor,
    targets: Tensor,
    *,
    tau: float = 10.0,
    lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared van Rossum distance to target trains, the mean over neurons.

    :math:`D^2 = \frac{1}{\tau} \int_0^\infty (f - g)^2 \, dt`, where every spike of a train leaves
    a trace :math:`e^{-t / \tau}`; exactly, as the sum :math:`\frac12 \sum_{t, t'} d_t d_{t'}
    e^{-|t - t'| / \tau}` over the differences d of the trains. A spike too many costs 1/2, two
    that are far apart 1. Of spikes of 0 and 1 it is the square of ``tt.measures.van_rossum``, but
    it has a gradient: a spike near the right time is drawn towards it.

    Args:
        spikes: ``[T, B, …]``.
        targets: the trains wanted, of the same shape.
        tau: time constant of the filter in timesteps, positive.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        reduction: ``"mean"`` over samples, ``"sum"``, or ``"none"`` for ``[B]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument has the wrong shape or is out of range.

    Example:
        >>> spikes, targets = torch.zeros(2, 5, 1, 1)
        >>> targets[2] = 1.0
        >>> van_rossum(spikes, targets).item()
        0.5

    Source: van Rossum, A novel spike distance, Neural Computation 13, 2001; Zenke and Ganguli,
    SuperSpike, arXiv 1705.11146.
    """
    check_sequence("spikes", spikes)
    check_sequence("targets", targets)
    if spikes.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape {list(spikes.shape)} of spikes, got {list(targets.shape)}"
        )
    check_positive("tau", tau, "a number of timesteps in (0, ∞)")
    lengths = checked_lengths(lengths, spikes)
    apart = masked(spikes, lengths) - masked(targets, lengths)
    apart = apart.reshape(*apart.shape[:2], -1)
    nearby = torch.einsum("ts,sbn->tbn", _nearness(apart, tau), apart)
    return reduced((apart * nearby).sum(0).mean(1) / 2, lengths, reduction)


def _nearness(x: Tensor, tau: float) -> Tensor:
    """Of any two timesteps of ``x``, 1 where they are the same: ``[T, T]``."""
    step = torch.arange(len(x), device=x.device, dtype=torch.float64)
    return torch.exp(-(step[:, None] - step).abs() / tau).to(x.dtype)
