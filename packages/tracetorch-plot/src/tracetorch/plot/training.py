"""Curves over training or time: measures with their spread over seeds, and rates in their band.

Knows no model: what was measured comes in by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from tracetorch.plot import style
from tracetorch.plot.arguments import Array, Values, filled, finite, levels, mask_of, named, numbers


def training(
    curves: Mapping[str, Values | Sequence[Any]],
    *,
    xlabel: str = "epoch",
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The mean over seeds of each curve, in a band of one standard deviation to either side.

    Args:
        curves: by name: ``[epochs]``, or ``[seeds, epochs]``; tensors, arrays or lists. One seed
            has no band.
        xlabel: what is counted from 1.
        ylabel: what was measured, with its unit.
        ax: where to draw; a new figure where None.

    Returns:
        The axes: a line for each curve, labelled with its name and how many seeds.

    Raises:
        TypeError: an argument is of another kind; ``ax`` is no Axes.
        ValueError: no curve, one of another shape or empty, or a value is not finite.

    Example:
        >>> ax = training({"loss": [[3.0, 1.0], [5.0, 1.0]]})
        >>> ax.lines[0].get_xydata().tolist()
        [[1.0, 4.0], [2.0, 1.0]]
    """
    found = {name: _seeds(f"curves[{name!r}]", c) for name, c in named("curves", curves).items()}
    ax = style.axes(ax, (6.0, 3.6))
    for index, (name, values) in enumerate(found.items()):
        _with_band(ax, name, values, style.line(index))
    style.dress(ax, xlabel, ylabel)
    style.whole_numbers(ax, "x")
    style.legend(ax)
    return ax


def _seeds(place: str, values: Values | Sequence[Any]) -> Array:
    """``[seeds, epochs]``."""
    curves = filled(place, numbers(place, values), "[epochs] or [seeds, epochs]", (1, 2))
    return finite(place, np.atleast_2d(curves)).astype(np.float64)


def _with_band(ax: Axes, name: str, values: Array, look: Mapping[str, Any]) -> None:
    seeds, epochs = values.shape
    when, mean = np.arange(1, epochs + 1), values.mean(0)
    label = f"{name} ({seeds} seeds)" if seeds > 1 else name
    ax.plot(when, mean, linewidth=1.5, label=label, marker="o" if epochs == 1 else None, **look)
    if seeds > 1:
        spread = values.std(0, ddof=1)
        ax.fill_between(
            when, mean - spread, mean + spread, color=look["color"], alpha=0.2, linewidth=0
        )


def rates(
    rates: Mapping[str, Values | Sequence[Any]],
    band: tuple[float, float] | None = None,
    *,
    xlabel: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How much each layer fires, over training or over time, with the band wanted shaded.

    Args:
        rates: by layer: a sequence of rates ``[epochs]`` in 0 … 1; or spikes ``[T, B, N…]``, whose
            rate at each timestep is the share of values that are not zero. Of a recording, its
            outputs; with ``lengths``, a sample counts while it lasts.
        band: the lowest and the highest rate wanted, within 0 … 1.
        xlabel: ``"epoch"``, or ``"timestep"`` where any are spikes, if None.
        ax: where to draw; a new figure where None.

    Returns:
        The axes: a line for each layer.

    Raises:
        TypeError: an argument is of another kind; ``ax`` is no Axes.
        ValueError: no layer, a shape is another or empty, a value is not finite, a rate lies
            outside 0 … 1, or ``band`` is none.

    Example:
        >>> import torch
        >>> ax = rates({"lif": [0.0, 0.1, 0.12]}, band=(0.05, 0.2))
        >>> ax.lines[0].get_ydata().tolist()
        [0.0, 0.1, 0.12]
    """
    layers = [name for name in named("rates", rates) if _is_rate(rates, name)]
    given = {name: numbers(f"rates[{name!r}]", rates[name]) for name in layers}
    found = {name: _rate(f"rates[{name!r}]", v, rates) for name, v in given.items()}
    wanted = _band(band)
    over_time = any(values.ndim > 1 for values in given.values())
    ax = style.axes(ax, (7.0, 3.6))
    for index, (name, curve) in enumerate(found.items()):
        when = np.arange(len(curve)) + (0 if over_time else 1)
        marker = "o" if len(curve) == 1 else None
        ax.plot(when, curve, linewidth=1.5, label=name, marker=marker, **style.line(index))
    if wanted:
        ax.axhspan(*wanted, color=style.inside(ax), alpha=0.15, linewidth=0, label="wanted")
    style.dress(ax, xlabel or ("timestep" if over_time else "epoch"), "firing rate")
    style.whole_numbers(ax, "x")
    ax.set_ylim(bottom=0.0)
    style.legend(ax)
    return ax


def _is_rate(recording: Mapping[str, Any], name: str) -> bool:
    """Any name of a plain mapping, the outputs of a recording that has some."""
    outputs = [key for key in recording if key.rpartition(".")[2] == "out"]
    recorded = hasattr(recording, "mask") or hasattr(recording, "lengths")
    return name in outputs or not (outputs and recorded)


def _rate(place: str, values: Array, recording: Mapping[str, Any]) -> Array:
    """One rate for each step."""
    found = finite(place, filled(place, values, "[epochs] or [T, B, N…]", range(1, 100)))
    if found.ndim == 1:
        if found.min() < 0 or found.max() > 1:
            raise ValueError(f"{place} must be in [0, 1], got {found.min():g} … {found.max():g}")
        return found
    fired = (found != 0).reshape(*found.shape[:2], -1).mean(-1)
    mask = mask_of(recording, len(found))
    if mask is None or found.ndim < 3:
        share: Array = fired.mean(1)
        return share
    steps = mask.sum(1)
    if not steps.any():
        raise ValueError(f"{place} has no timesteps: the lengths of all samples are 0")
    counted: Array = (fired * mask).sum(1)[steps > 0] / steps[steps > 0]
    return counted


def _band(band: tuple[float, float] | None) -> list[float]:
    wanted = levels("band", band)
    if wanted and (len(wanted) != 2 or not 0 <= wanted[0] < wanted[1] <= 1):
        raise ValueError(f"band must be (low, high) with 0 ≤ low < high ≤ 1, got {band!r}")
    return wanted
