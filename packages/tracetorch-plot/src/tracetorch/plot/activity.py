"""Spikes and membranes over time: a raster, traces, and the two above each other.

Knows where marks go, not how an argument became an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from tracetorch.plot import style
from tracetorch.plot.arguments import Array, Data, Levels, checked_count, levels, numbers, series

# above so many spikes a raster is an image of at most so many cells
MARKS, CELLS = 20_000, (300, 1000)
# above so many neurons traces are a median and its bands
CURVES = 24


def raster(
    spikes: Data, *, name: str | None = None, sample: int = 0, ax: Axes | None = None
) -> Axes:
    """A mark for every spike: neuron over timestep; negative spikes in their own colour.

    Above 20 000 spikes it is an image of at most 300 × 1000 cells: the more of a cell's timesteps
    and neurons spike, the more opaque it is; its colour is the mixture of the polarities.

    Args:
        spikes: ``[T, N]``, or ``[T, B, N…]`` of which one sample is drawn: a tensor, an array, or
            a recording; zero is silence, the sign is the polarity.
        name: which of a recording; None: the only one, or the only output (``….out``).
        sample: which one of the batch, in ``0 … B − 1``. Of a recording with ``lengths``, its own
            timesteps are drawn.
        ax: where to draw; a new figure where None.

    Returns:
        The axes; ``ax.figure.savefig`` writes a file.

    Raises:
        TypeError: ``spikes`` is none of these or not of real numbers; ``ax`` is no Axes.
        ValueError: the shape is another or empty, there is no such name or sample, or a value is
            not finite.

    Example:
        >>> import torch
        >>> ax = raster(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        >>> [marks.get_offsets().tolist() for marks in ax.collections]
        [[[0.0, 1.0]], [[1.0, 0.0]]]

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, chapter 7.
    """
    values = series("spikes", spikes, name=name, sample=sample, kinds=("out",))
    ax = style.axes(ax)
    (_marks if np.count_nonzero(values) <= MARKS else _image)(ax, values)
    style.dress(ax, "timestep", "neuron")
    if not values.any():
        style.note(ax, "no spikes")
    style.whole_numbers(ax, "x", "y")
    ax.set(xlim=(-0.5, len(values) - 0.5), ylim=(-0.5, values.shape[1] - 0.5))
    return ax


def _marks(ax: Axes, values: Array) -> None:
    _, neurons = values.shape
    height = ax.bbox.height * 72 / ax.figure.figure.dpi / neurons
    size = min(max(0.8 * height, 2.5), 12.0)
    for sign, colour, label in (
        (1, style.POSITIVE, "positive"),
        (-1, style.NEGATIVE, "negative"),
    ):
        timestep, neuron = np.nonzero(sign * values > 0)
        if len(timestep):
            ax.scatter(timestep, neuron, s=size**2, marker="|", color=colour, label=label)


def _image(ax: Axes, values: Array) -> None:
    """Cells of whole timesteps and neurons, so that none is drawn larger than another."""
    tall, wide = (-(-n // most) for n, most in zip(values.shape[::-1], CELLS, strict=True))
    positive, negative = (_counted(sign * values > 0, tall, wide) for sign in (1, -1))
    total = positive + negative
    share = np.divide(negative, total, out=np.zeros_like(total), where=total > 0)[..., None]
    rows, columns = total.shape
    cells = np.empty((rows, columns, 4))
    cells[..., :3] = (1 - share) * to_rgb(style.POSITIVE) + share * to_rgb(style.NEGATIVE)
    full = np.quantile(total[total > 0], 0.99)  # a few dense cells do not make all others pale
    cells[..., 3] = np.where(total > 0, np.clip(0.15 + 0.85 * total / full, 0.0, 1.0), 0.0)
    right, top = columns * wide - 0.5, rows * tall - 0.5
    ax.imshow(cells, origin="lower", aspect="auto", extent=(-0.5, right, -0.5, top))


def _counted(fired: Array, tall: int, wide: int) -> Array:
    """``[T, N]`` → how many fired in each cell, ``[⌈N/tall⌉, ⌈T/wide⌉]``."""
    timesteps, neurons = fired.shape
    rows, columns = -(-neurons // tall), -(-timesteps // wide)
    timestep, neuron = np.nonzero(fired)
    cell = neuron // tall * columns + timestep // wide
    return np.bincount(cell, minlength=rows * columns).reshape(rows, columns).astype(float)


def traces(
    values: Data,
    *,
    threshold: Levels | None = None,
    spikes: Data | None = None,
    name: str | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """A line for every neuron's membrane over timesteps, with dashed threshold lines.

    Above 24 neurons: their median, with the bands of the middle 50 % and of 90 %.

    Args:
        values: ``[T, N]``, or ``[T, B, N…]`` of which one sample is drawn, in the membrane's own
            unit: a tensor, an array, or a recording.
        threshold: one or several heights for a dashed line.
        spikes: of the same shape; each is a tick in its neuron's row above the lines (below them
            where it is negative), and a ring on the line: the membrane after its reset.
        name: which of a recording; None: the only one, or the only state. Of ``spikes`` that are a
            recording, the only output is taken.
        sample: which one of the batch, in ``0 … B − 1``.
        ax: where to draw; a new figure where None.

    Returns:
        The axes.

    Raises:
        TypeError: an argument is of another kind; ``ax`` is no Axes.
        ValueError: a shape is another or empty, there is no such name or sample, a value is not
            finite, or spikes are to be marked on more than 24 neurons.

    Example:
        >>> import torch
        >>> ax = traces(torch.zeros(5, 2), threshold=1.0)
        >>> len(ax.lines)
        3
    """
    heights = series("values", values, name=name, sample=sample)
    fired = None if spikes is None else series("spikes", spikes, sample=sample, kinds=("out",))
    if fired is not None:
        _check_pair("spikes", fired, "values", heights)
        if heights.shape[1] > CURVES:
            raise ValueError(
                f"spikes are marked on at most {CURVES} neurons, got {heights.shape[1]}; choose "
                f"some, as in values[..., :{CURVES}]"
            )
    across = levels("threshold", threshold)
    ax = style.axes(ax)
    return _traces(ax, heights, across, fired, range(heights.shape[1]))


def _traces(
    ax: Axes, heights: Array, across: list[float], fired: Array | None, neurons: Iterable[int]
) -> Axes:
    """``neurons`` are what the columns are called."""
    if heights.shape[1] > CURVES:
        _bands(ax, heights)
    else:
        _curves(ax, heights, neurons)
    for height in across:
        style.level(ax, height)
    style.dress(ax, "timestep", "membrane")
    style.whole_numbers(ax, "x")
    ax.set_xlim(-0.5, len(heights) - 0.5)
    if fired is not None:
        _events(ax, heights, fired)
    style.legend(ax)
    return ax


def _curves(ax: Axes, heights: Array, neurons: Iterable[int]) -> None:
    marker = "o" if len(heights) == 1 else None  # a line needs two points
    for index, neuron in enumerate(neurons):
        look = {"label": f"neuron {neuron}", "marker": marker, **style.line(index)}
        ax.plot(heights[:, index], linewidth=1.2, **look)


def _bands(ax: Axes, heights: Array) -> None:
    """Quantiles across neurons at each timestep."""
    low, lower, middle, upper, high = np.quantile(heights, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
    when, colour = np.arange(len(heights)), style.PALETTE[0]
    ax.fill_between(when, low, high, color=colour, alpha=0.2, linewidth=0, label="90 % of neurons")
    ax.fill_between(when, lower, upper, color=colour, alpha=0.35, linewidth=0, label="50 %")
    marker = "o" if len(heights) == 1 else None
    ax.plot(when, middle, color=colour, linewidth=1.2, marker=marker, label="median")


def _events(ax: Axes, heights: Array, fired: Array) -> None:
    """Ticks in a row for each neuron, above all lines or below them, and rings on the lines."""
    colours = np.array([to_rgb(style.line(i)["color"]) for i in range(heights.shape[1])])
    low, high = ax.get_ylim()
    row = (high - low) * min(0.06, 0.4 / heights.shape[1])
    for edge, sign in ((high, 1), (low, -1)):
        when, neuron = np.nonzero(sign * fired > 0)
        if len(when):
            where = edge + sign * row * (neuron + 1)
            ax.scatter(when, where, s=18, marker="|", color=colours[neuron])
    when, neuron = np.nonzero(fired)
    rings: dict[str, Any] = {"s": 14, "facecolors": "none", "edgecolors": colours[neuron]}
    ax.scatter(when, heights[when, neuron], **rings)
    for label, marker in (("spike", "|"), ("reset", "$\\circ$")):
        ax.scatter([], [], s=30, marker=marker, color=style.inside(ax), label=label)


def activity(
    spikes: Data,
    membranes: Data | None = None,
    threshold: Levels | None = None,
    *,
    neurons: int = 4,
    name: str | None = None,
    sample: int = 0,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """A raster of all neurons above the membranes of the most active ones, one time axis.

    Args:
        spikes: ``[T, N]``, or ``[T, B, N…]`` of which one sample is drawn: a tensor or an array.
            Or a recording that has a layer's output (``….out``) and membrane (``….mem``).
        membranes: of the same neurons, in the same shape; None where ``spikes`` is a recording.
        threshold: one or several heights for a dashed line; where it is one for each neuron,
            those of the membranes that are drawn.
        neurons: how many membranes to draw, 1 to 24.
        name: of the layer in the recording; None where only one has an output.
        sample: which one of the batch, in ``0 … B − 1``.
        figure: an empty one to draw in; a new one where None.

    Returns:
        The figure; its ``axes`` are the raster and the traces.

    Raises:
        TypeError: an argument is of another kind, or membranes are missing.
        ValueError: shapes differ or are none of these, there is no such name or sample, a value is
            not finite, or ``neurons`` is out of range.

    Example:
        >>> import torch
        >>> figure = activity(torch.eye(6), torch.rand(6, 6), threshold=1.0)
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['neuron', 'membrane']
    """
    fired, heights = _pair(spikes, membranes, name, sample)
    _check_pair("spikes", fired, "membranes", heights)
    if checked_count("neurons", neurons) > CURVES:
        raise ValueError(f"neurons must be at most {CURVES}, got {neurons!r}")
    busiest = np.argsort(-np.count_nonzero(fired, axis=0), kind="stable")[:neurons]
    across = levels("threshold", threshold)
    if threshold is not None and (own := numbers("threshold", threshold)).shape == fired.shape[1:]:
        across = [*dict.fromkeys(own[busiest].tolist())]
    figure, grid = style.panels(figure, 2, 1, (9.0, 5.0), sharex=True, height_ratios=(3, 2))
    above, below = grid[:, 0]
    raster(fired, ax=above).set_xlabel("")
    _traces(below, heights[:, busiest], across, fired[:, busiest], busiest)
    return figure


def _pair(
    spikes: Data, membranes: Data | None, name: str | None, sample: int
) -> tuple[Array, Array]:
    """Both as ``[T, N]``, from a recording or from two arguments."""
    if isinstance(spikes, Mapping):
        if membranes is not None:
            raise TypeError("membranes must be None where spikes is a recording: it has both")
        out = _output(spikes, name)
        state = f"{out.removesuffix('out')}mem"
        fired = series("spikes", spikes, name=out, sample=sample)
        return fired, series("spikes", spikes, name=state, sample=sample)
    if membranes is None:
        raise TypeError("membranes must be given where spikes is no recording, got None")
    fired = series("spikes", spikes, name=name, sample=sample)
    return fired, series("membranes", membranes, sample=sample)


def _output(recording: Mapping[str, object], layer: str | None) -> str:
    outputs = [key for key in recording if key.rpartition(".")[2] == "out"]
    if layer is not None and f"{layer}.out" in outputs:
        return f"{layer}.out"
    layers = ", ".join(repr(key.removesuffix("out").removesuffix(".")) for key in outputs)
    if layer is not None or len(outputs) != 1:
        raise ValueError(
            f"name must be one of the layers whose output was recorded: {layers or 'none was'}; "
            f"got {layer!r}"
        )
    return outputs[0]


def _check_pair(one: str, values: Array, other: str, others: Array) -> None:
    if values.shape != others.shape:
        raise ValueError(
            f"{one} and {other} must be of the same [T, N], got {list(values.shape)} and "
            f"{list(others.shape)}"
        )
