"""Encoders: values to spikes over time, ``[B, …]`` or a signal ``[T, B, …]`` → ``[T, B, …]``.

Functions of tensors: they know no layer, keep no gradient, and draw from the generator they are
given. Time is the first dimension of what they return.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tracetorch.errors import check_dense
from tracetorch.parameters import checked_integer
from tracetorch.snn.masks import check_positive, check_sequence, check_within


def _check_values(x: object, low: float, high: float) -> None:
    """TypeError or ValueError unless ``x`` is a floating-point tensor with values in range."""
    check_dense("x must be a floating-point tensor [B, …]", x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else repr(x)
        raise TypeError(f"x must be a floating-point tensor [B, …], got {got}")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(
            f"x must be [B, …] with at least one sample, got the shape {list(x.shape)}"
        )
    if not bool(((x >= low) & (x <= high) & x.isfinite()).all()):
        allowed = f"[{low:g}, {high:g}]" if high < math.inf else f"[{low:g}, ∞)"
        ends = f"{x.min().item():g} to {x.max().item():g}"
        raise ValueError(f"x must lie in {allowed}, got values from {ends}")


def _exact(x: Tensor) -> Tensor:
    """Without its graph, in a type that tells rates and timesteps apart."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def rate(x: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """A spike in each timestep with probability ``x``, independently: Bernoulli.

    ``decoders.mean`` gives ``x`` back to a standard deviation of √(x·(1 − x) / T).

    Args:
        x: probabilities ``[B, …]`` in 0…1.
        steps: T, at least 1.
        generator: where the numbers are drawn from; torch's own where None.

    Returns:
        Spikes of 0 and 1, ``[T, B, …]``, of the type of ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value or ``steps`` is out of range.

    Example:
        >>> spikes = rate(torch.tensor([[0.0, 1.0]]), 3)
        >>> spikes.tolist()
        [[[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]]

    Source: Eshraghian et al., arXiv 2109.12894 (rate coding).
    """
    _check_values(x, 0.0, 1.0)
    steps = checked_integer("encoders", "steps", steps, low=1)
    wanted = _exact(x)
    drawn = torch.rand((steps, *x.shape), generator=generator, dtype=wanted.dtype, device=x.device)
    return (drawn < wanted).to(x.dtype)


def poisson(x: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of spikes in each timestep, of mean ``x``, independently: Poisson.

    Unlike :func:`rate`, several spikes fit into one timestep, and ``x`` may be above 1. At 0.1 one
    timestep in 214 holds more than one.

    Args:
        x: spikes per timestep ``[B, …]``, not negative.
        steps: T, at least 1.
        generator: where the numbers are drawn from; torch's own where None.

    Returns:
        Whole numbers ``[T, B, …]``, of the type of ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value or ``steps`` is out of range.

    Example:
        >>> counts = poisson(torch.tensor([0.0, 3.0]), 1000)
        >>> counts.mean(0).round().tolist()
        [0.0, 3.0]

    Source: Heeger, Poisson model of spike generation, 2000.
    """
    _check_values(x, 0.0, math.inf)
    steps = checked_integer("encoders", "steps", steps, low=1)
    return torch.poisson(x.detach().expand(steps, *x.shape), generator)


def latency(x: Tensor, steps: int, *, tau: float | None = None, threshold: float = 0.01) -> Tensor:
    r"""One spike each, the earlier the larger ``x`` is.

    Linear (``tau`` None): in timestep :math:`\lfloor (1 - x) T \rfloor`, so that
    :math:`1 - (t + 1/2) / T` gives ``x`` back to :math:`1 / 2T`; 0 stays silent.

    Logarithmic: when a leaky integrator of time constant ``tau``, driven by ``x``, passes the
    threshold: :math:`\lfloor \tau \ln \frac{x}{x - \theta} \rfloor`. Silent where that is
    never, or only after T.

    Args:
        x: ``[B, …]`` in 0…1.
        steps: T, at least 1.
        tau: the integrator's time constant in timesteps, positive; None: linear.
        threshold: :math:`\theta` of the logarithmic code, in (0, 1); unused in the linear one.

    Returns:
        Spikes of 0 and 1, ``[T, B, …]``, of the type of ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value, ``steps``, ``tau`` or ``threshold`` is out of range.

    Example:
        >>> latency(torch.tensor([[1.0, 0.5, 0.0]]), 4)[:, 0].T.tolist()
        [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]

    Source: Eshraghian et al., arXiv 2109.12894 (latency coding; the RC circuit's spike time).
    """
    _check_values(x, 0.0, 1.0)
    steps = checked_integer("encoders", "steps", steps, low=1)
    check_within("threshold", threshold, 0.0, 1.0, "a number in (0, 1)", open_ends=True)
    dtype, x = x.dtype, _exact(x)
    if tau is None:
        time = torch.floor((1 - x) * steps)
    else:
        check_positive("tau", tau, "a number of timesteps in (0, ∞)")
        reached = x > threshold
        above = torch.where(reached, x - threshold, torch.ones_like(x))
        time = torch.floor(tau * torch.log(x / above))
        time = torch.where(reached, time, torch.full_like(x, math.inf))
    step = torch.arange(steps, device=x.device).reshape(-1, *(1,) * x.ndim)
    return (step == time).to(dtype)


def delta(x: Tensor, threshold: float) -> Tensor:
    r"""A spike where a signal changes by more than the threshold within one timestep.

    :math:`s_t = \mathrm{sign}(x_t - x_{t-1})` where :math:`|x_t - x_{t-1}| > \theta`, else 0; the
    first timestep has nothing before it and stays silent. Slow changes are lost: see
    :func:`step_forward`, which does not lose them.

    Args:
        x: a signal ``[T, B, …]``.
        threshold: :math:`\theta`, positive, in the signal's unit.

    Returns:
        Spikes of −1, 0 and 1, ``[T, B, …]``, of the type of ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``x`` has the wrong shape, or ``threshold`` is not positive.

    Example:
        >>> delta(torch.tensor([0.0, 1.0, 1.1, 0.0])[:, None], 0.5).flatten().tolist()
        [0.0, 1.0, 0.0, -1.0]

    Source: Petro, Kasabov and Kiss, Selection and optimization of temporal spike encoding methods
    for spiking neural networks, IEEE TNNLS 31, 2020 (threshold-based representation).
    """
    check_sequence("x", x)
    check_positive("threshold", threshold)
    change = torch.diff(x.detach(), dim=0, prepend=x.detach()[:1])
    return torch.where(change.abs() > threshold, change.sign(), torch.zeros_like(change))


def step_forward(x: Tensor, threshold: float) -> Tensor:
    r"""A spike where a signal leaves a base line by more than the threshold; the base follows.

    :math:`b_0 = x_0`; where :math:`x_t > b_{t-1} + \theta`: a positive spike and :math:`b_t =
    b_{t-1} + \theta`, and likewise downwards. ``decoders.step_forward`` gives the base line back:
    while the signal changes by no more than :math:`\theta` a timestep, it is never further than
    :math:`\theta` from the signal.

    Args:
        x: a signal ``[T, B, …]``.
        threshold: :math:`\theta`, positive, in the signal's unit.

    Returns:
        Spikes of −1, 0 and 1, ``[T, B, …]``, of the type of ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``x`` has the wrong shape, or ``threshold`` is not positive.

    Example:
        >>> step_forward(torch.tensor([0.0, 0.4, 0.8, 0.8, -0.2])[:, None], 0.5).flatten().tolist()
        [0.0, 0.0, 1.0, 0.0, -1.0]

    Source: Petro, Kasabov and Kiss, IEEE TNNLS 31, 2020 (step-forward encoding).
    """
    check_sequence("x", x)
    check_positive("threshold", threshold)
    base, spikes = x.detach()[0], []
    for value in x.detach():  # the base line is a recurrence
        away = value - base
        spike = torch.where(away.abs() > threshold, away.sign(), torch.zeros_like(away))
        base = base + threshold * spike
        spikes.append(spike)
    return torch.stack(spikes)


def centres(neurons: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    r"""Where the Gaussian receptive fields of :func:`population` lie, ``[neurons]``.

    :math:`\mu_i = \text{low} + \frac{2i - 3}{2} \cdot \frac{\text{high} - \text{low}}{m - 2}` for
    i = 1…m: evenly, the first and the last half a step outside of the range.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``neurons`` is below 3, or ``low`` not below ``high``.

    Example:
        >>> centres(4).tolist()
        [-0.25, 0.25, 0.75, 1.25]

    Source: Bohte, La Poutré and Kok, Unsupervised clustering with spiking neurons by sparse
    temporal coding and multilayer RBF networks, IEEE Trans. Neural Networks 13, 2002.
    """
    neurons = checked_integer("centres", "neurons", neurons, low=3)
    for name, value in (("low", low), ("high", high)):
        check_within(name, value, -math.inf, math.inf, "a finite number", open_ends=True)
    if not low < high:
        raise ValueError(f"low must be below high, got low={low!r} and high={high!r}")
    order = torch.arange(1, neurons + 1, dtype=torch.float64)
    return (low + (2 * order - 3) / 2 * (high - low) / (neurons - 2)).to(torch.get_default_dtype())


def population(
    x: Tensor,
    neurons: int,
    steps: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    sharpness: float = 1.5,
    cutoff: float = 0.1,
) -> Tensor:
    r"""Several neurons for each value, by Gaussian receptive fields; the nearest fires first.

    A neuron's activation is :math:`e^{-(x - \mu_i)^2 / 2 \sigma^2}` with :math:`\sigma =
    \frac{1}{\beta} \cdot \frac{\text{high} - \text{low}}{m - 2}`, and its spike time
    the linear :func:`latency` of it.

    Args:
        x: ``[B, …]``, in low…high.
        neurons: m for each value, at least 3.
        steps: T, at least 1.
        low: lower end of the range that is covered.
        high: upper end.
        sharpness: :math:`\beta`, positive; the source takes 1.5 and values in 1…2.
        cutoff: a neuron of a lower activation stays silent, in [0, 1).

    Returns:
        Spikes of 0 and 1, ``[T, B, …, neurons]``, of the type of ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> spikes = population(torch.tensor([[0.3]]), 4, 10)
        >>> spikes.argmax(0).tolist(), spikes.sum(0).tolist()           # the last one is silent
        ([[[7, 0, 5, 0]]], [[[1.0, 1.0, 1.0, 0.0]]])

    Source: Bohte, La Poutré and Kok, IEEE Trans. Neural Networks 13, 2002.
    """
    middle = centres(neurons, low, high)
    check_positive("sharpness", sharpness)
    check_within("cutoff", cutoff, 0.0, 1.0, "a number in [0, 1)")
    _check_values(x, low, high)
    values = _exact(x)
    apart = (values[..., None] - middle.to(values)) * sharpness * (neurons - 2) / (high - low)
    activation = torch.exp(-apart.square() / 2)
    return latency(torch.where(activation < cutoff, 0, activation), steps).to(x.dtype)
