"""Spikes and membranes over time: a raster, traces, and the two above each other.

Figures are made without pyplot, so nothing global is touched and no window opens.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

POSITIVE, NEGATIVE = "tab:blue", "tab:red"


def raster(spikes: Tensor, *, ax: Axes | None = None) -> Axes:
    """A mark for every spike: neuron over timestep; negative spikes in their own colour.

    Args:
        spikes: ``[T, N]``; zero is silence, the sign is the polarity.
        ax: where to draw; a new figure where None.

    Raises:
        TypeError: ``spikes`` is no floating-point tensor.
        ValueError: it is not ``[T, N]``, is empty, or has values that are not finite.

    Example:
        >>> import torch
        >>> ax = raster(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        >>> [marks.get_offsets().tolist() for marks in ax.collections]
        [[[0.0, 1.0]], [[1.0, 0.0]]]
    """
    values = _checked("spikes", spikes)
    ax = _axes(ax)
    for sign, colour, label in ((1, POSITIVE, "positive"), (-1, NEGATIVE, "negative")):
        timestep, neuron = np.nonzero(sign * values > 0)
        if len(timestep):
            ax.scatter(timestep, neuron, s=14, marker="|", color=colour, label=label)
    ax.set(xlabel="timestep", ylabel="neuron", ylim=(-0.5, values.shape[1] - 0.5))
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def traces(
    values: Tensor, *, threshold: float | tuple[float, ...] | None = None, ax: Axes | None = None
) -> Axes:
    """A line for every neuron's membrane over timesteps, with dashed threshold lines.

    Args:
        values: ``[T, N]``, in the membrane's own unit.
        threshold: one or several heights for a dashed line.
        ax: where to draw; a new figure where None.

    Raises:
        TypeError: ``values`` is no floating-point tensor.
        ValueError: it is not ``[T, N]``, is empty, or has values that are not finite.

    Example:
        >>> import torch
        >>> ax = traces(torch.zeros(5, 2), threshold=1.0)
        >>> len(ax.lines)
        3
    """
    heights = _checked("values", values)
    ax = _axes(ax)
    ax.plot(heights, linewidth=1.0, alpha=0.85)
    if threshold is not None:
        for level in threshold if isinstance(threshold, tuple) else (threshold,):
            ax.axhline(level, color="0.3", linestyle="--", linewidth=1.0)
    ax.set(xlabel="timestep", ylabel="membrane", xlim=(-0.5, len(heights) - 0.5))
    return ax


def activity(
    spikes: Tensor,
    membranes: Tensor,
    threshold: float | tuple[float, ...] | None = None,
    *,
    neurons: int = 4,
) -> Figure:
    """A raster of all neurons above the membranes of the most active ones, one time axis.

    Args:
        spikes: ``[T, N]``.
        membranes: ``[T, N]``, of the same neurons.
        threshold: one or several heights for a dashed line.
        neurons: how many membranes to draw, at least 1.

    Raises:
        TypeError: a tensor is not of floating-point numbers.
        ValueError: shapes differ or are not ``[T, N]``, or ``neurons`` is below 1.

    Example:
        >>> import torch
        >>> figure = activity(torch.eye(6), torch.rand(6, 6), threshold=1.0)
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['neuron', 'membrane']
    """
    fired, _ = _checked("spikes", spikes), _checked("membranes", membranes)
    if spikes.shape != membranes.shape:
        raise ValueError(
            f"spikes and membranes must be of the same [T, N], got {list(spikes.shape)} and "
            f"{list(membranes.shape)}"
        )
    if neurons < 1:
        raise ValueError(f"neurons must be at least 1, got {neurons!r}")
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    raster(spikes, ax=above).set_xlabel("")
    busiest = np.argsort(-(fired != 0).sum(axis=0), kind="stable")[:neurons]
    traces(membranes[:, busiest.tolist()], threshold=threshold, ax=below)
    for line, neuron in zip(below.lines, busiest, strict=False):
        line.set_label(f"neuron {neuron}")
    below.legend(loc="upper right", fontsize="small", ncols=2, frameon=False)
    return figure


def _axes(ax: Axes | None) -> Axes:
    return Figure(figsize=(9.0, 3.0), layout="constrained").add_subplot() if ax is None else ax


def _checked(name: str, values: Tensor) -> NDArray[np.float64]:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else repr(values)
        raise TypeError(f"{name} must be a floating-point tensor [T, N], got {got}")
    if values.ndim != 2 or values.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty [T, N], got the shape {list(values.shape)}; choose one "
            f"sample and flatten its neurons, as in {name}[:, 0].flatten(1)"
        )
    array: NDArray[np.float64] = values.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array
