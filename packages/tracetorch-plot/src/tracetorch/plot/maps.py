"""Values as colours: neurons over time, channels of feature maps. Knows no marks or lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from tracetorch.plot import style
from tracetorch.plot.arguments import (
    Array,
    Data,
    array,
    checked_count,
    checked_index,
    filled,
    finite,
    sample_of,
    series,
)

# above so many neurons or timesteps neighbours are averaged
CELLS = (1000, 2000)


def heatmap(
    values: Data,
    *,
    label: str = "",
    name: str | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Every value as a colour, neuron over timestep, with a colour bar.

    Above 1000 neurons or 2000 timesteps, means of neighbours. Where one is negative, the colours
    are those of two signs around zero.

    Args:
        values: ``[T, N]``, or ``[T, B, N…]`` of which one sample is drawn: a tensor, an array, or
            a recording.
        label: of the colour bar: what it is, and its unit.
        name: which of a recording; None: the only one, or the only state.
        sample: which one of the batch, in ``0 … B − 1``.
        ax: where to draw; a new figure where None. The colour bar stands beside it.

    Returns:
        The axes of the map.

    Raises:
        TypeError: ``values`` is none of these or not of real numbers; ``ax`` is no Axes.
        ValueError: the shape is another or empty, there is no such name or sample, or a value is
            not finite.

    Example:
        >>> import torch
        >>> ax = heatmap(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
        >>> ax.images[0].get_array().tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    cells = series("values", values, name=name, sample=sample).T
    neurons, timesteps = cells.shape
    ax = style.axes(ax)
    tall, wide = (-(-n // most) for n, most in zip(cells.shape, CELLS, strict=True))
    cells = _means(_means(cells, tall, 0), wide, 1)
    right, top = cells.shape[1] * wide - 0.5, cells.shape[0] * tall - 0.5
    image = _coloured(ax, cells, origin="lower", extent=(-0.5, right, -0.5, top))
    style.dress(ax, "timestep", "neuron")
    style.whole_numbers(ax, "x", "y")
    ax.set(xlim=(-0.5, timesteps - 0.5), ylim=(-0.5, neurons - 0.5))
    style.scale(ax, image, label)
    return ax


def _means(values: Array, size: int, axis: int) -> Array:
    """Blocks of ``size`` neighbours along an axis, averaged; the last one may be smaller."""
    if size == 1:
        return values
    starts = np.arange(0, values.shape[axis], size)
    sums = np.add.reduceat(values, starts, axis=axis)
    counts = np.diff(np.append(starts, values.shape[axis]))
    means: Array = sums / (counts if axis else counts[:, None])
    return means


def colours(values: Array) -> dict[str, Any]:
    """Colour map and limits: from lowest to highest, or the same reach on both sides of zero.

    Values that are all alike get limits that differ, and so a place on the colour bar.
    """
    low, high = float(np.min(values)), float(np.max(values))
    if low < 0:
        reach = max(-low, high)
        return {"cmap": style.SIGNED, "clim": (-reach, reach)}
    if low == high:
        low, high = min(low, 0.0), high or 1.0
    return {"cmap": style.AMOUNT, "clim": (low, high)}


def _coloured(ax: Axes, cells: Array, **options: Any) -> AxesImage:
    image = ax.imshow(cells, aspect="auto", **options)
    image.set(**colours(cells))
    return image


def feature_maps(
    maps: Data,
    *,
    timestep: int | None = None,
    columns: int | None = None,
    label: str = "",
    name: str | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """All channels beside one another, in one range of colours.

    Args:
        maps: ``[C, H, W]``, or ``[T, B, C, H, W]`` of which one sample is drawn: a tensor, an
            array, or a recording.
        timestep: which one, in ``0 … T − 1``; None: the mean over time, of spikes their rate.
        columns: how many channels stand in a row; as many as make a square where None.
        label: of the colour bar: what it is, and its unit.
        name: which of a recording; None: the only one, or the only output (``….out``).
        sample: which one of the batch, in ``0 … B − 1``.
        ax: where to draw; a new figure where None.

    Returns:
        The axes: one image of all the maps, a cell of nothing between neighbours. The ticks are
        numbers of channels: that of the row plus that of the column.

    Raises:
        TypeError: ``maps`` is none of these or not of real numbers; ``ax`` is no Axes.
        ValueError: the shape is another or empty, there is no such name, sample or timestep, or a
            value is not finite.

    Example:
        >>> import torch
        >>> ax = feature_maps(torch.arange(4.0).reshape(4, 1, 1))
        >>> ax.images[0].get_array().tolist()
        [[0.0, None, 1.0], [None, None, None], [2.0, None, 3.0]]
    """
    channels = _channels(maps, timestep, name, sample)
    count, height, width = channels.shape
    if columns is None:
        columns = arrangement(count, height, width)
    columns = min(checked_count("columns", columns), count)
    ax = style.axes(ax, (6.0, 5.0))
    image = _coloured(ax, mosaic(channels, columns))
    ax.set_aspect("equal")
    style.dress(ax, "channel", "channel")
    rows = -(-count // columns)
    _number(ax, "x", range(columns), width, "+")
    _number(ax, "y", range(0, rows * columns, columns), height, "")
    ax.spines[["left", "bottom"]].set_visible(False)
    style.scale(ax, image, label)
    return ax


def _channels(maps: Data, timestep: int | None, name: str | None, sample: int) -> Array:
    """``[C, H, W]`` of whatever was given."""
    shape = "[C, H, W] or [T, B, C, H, W]"
    if not isinstance(maps, Mapping) and np.ndim(maps) == 3:
        if timestep is not None:
            raise ValueError(f"timestep must be None for maps of [C, H, W], got {timestep!r}")
        if name is not None:
            raise ValueError(f"name chooses from a recording, but maps is none; got {name!r}")
        checked_index("sample", sample, 1)
        return finite("maps", filled("maps", array("maps", maps), shape, [3]))
    over = sample_of("maps", maps, name=name, sample=sample, kinds=("out",), unbatched=())
    if over.ndim != 4:
        raise ValueError(f"maps must be a non-empty {shape}, got a sample of {list(over.shape)}")
    if timestep is None:
        mean: Array = over.mean(0)
        return mean
    one: Array = over[checked_index("timestep", timestep, len(over))]
    return one


def arrangement(count: int, height: int, width: int) -> int:
    """How many maps in a row make all of them about a square."""
    return min(max(round(math.sqrt(count * height / width)), 1), count)


def mosaic(channels: Array, columns: int) -> Array:
    """``[C, H, W]`` → an image of rows of maps, with NaN between them and where there is none."""
    count, height, width = channels.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + 1, width + 1), np.nan)
    cells[:count, :height, :width] = channels
    cells = cells.reshape(rows, columns, height + 1, width + 1).transpose(0, 2, 1, 3)
    whole = cells.reshape(rows * (height + 1), columns * (width + 1))
    return np.ma.masked_invalid(whole[:-1, :-1])


def _number(ax: Axes, axis: str, channels: range, size: int, sign: str) -> None:
    """Ticks in the middle of maps, at most eight of them."""
    every = -(-len(channels) // 8)
    middles = [place * (size + 1) + (size - 1) / 2 for place in range(0, len(channels), every)]
    labels = [f"{sign}{channel}" for channel in channels[::every]]
    ax.set(**{f"{axis}ticks": middles, f"{axis}ticklabels": labels})
    ax.tick_params(axis=axis, length=0)  # type: ignore[arg-type, unused-ignore]
