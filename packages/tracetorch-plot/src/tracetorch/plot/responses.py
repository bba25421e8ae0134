"""What the states of a layer do: its responses to signals, and phase portraits.

Knows of a layer that it is called with a timestep and has ``get_states``, and nothing of models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tracetorch as tt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from tracetorch.plot import style
from tracetorch.plot.arguments import (
    Array,
    Data,
    Levels,
    Values,
    array,
    checked_count,
    checked_index,
    chosen,
    filled,
    finite,
    levels,
    named,
    numbers,
    series,
)

# timesteps counted from the start of the signal, and the last one, → heights
SIGNALS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "pulse": lambda since, last: (since == 0).double(),
    "step": lambda since, last: (since >= 0).double(),
    "ramp": lambda since, last: since.double().clamp(0) / last,
}


def response(
    layer: tt.Layer,
    inputs: Sequence[str] | Mapping[str, Values] = ("pulse", "step", "ramp"),
    *,
    steps: int = 100,
    amplitude: float = 1.0,
    threshold: Levels | Mapping[str, Levels] | None = None,
    neuron: int = 0,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """One layer's states and output over time, for a pulse, a step and a ramp.

    A copy of the layer runs from fresh states, in evaluation mode and without gradients; all its
    neurons get the same input, one is drawn. The layer itself is left alone.

    Args:
        layer: any ``tt.Layer``.
        inputs: names among ``"pulse"`` (a single timestep), ``"step"`` and ``"ramp"`` (up to the
            amplitude at the end), all from a tenth of the time on; or signals of one's own by
            name, each ``[T]``.
        steps: T of the named inputs, at least 2.
        amplitude: their height.
        threshold: dashed lines in the panel of the state ``mem``, or by the name of a state.
        neuron: which one, in ``0 … N − 1``.
        figure: an empty one to draw in; a new one where None.

    Returns:
        The figure: a column for each input; below one another the input, each state (a line for
        each of its further dimensions, at most 8), and the output.

    Raises:
        TypeError: ``layer`` is no ``tt.Layer``, or an argument is of another kind.
        ValueError: an unknown input or state, no such neuron, or a value is not finite.

    Example:
        >>> import tracetorch as tt
        >>> figure = response(tt.testing.Trace(1, beta=0.5), ["pulse"], steps=10)
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['input', 'mem', 'output']
        >>> figure.axes[1].lines[0].get_ydata()[:4].round(3).tolist()
        [0.0, 1.0, 0.5, 0.25]

    Source: Oppenheim and Willsky, Signals and Systems, Prentice Hall 1997 (impulse and step
    response).
    """
    if not isinstance(layer, tt.Layer):
        raise TypeError(f"layer must be a tt.Layer, got {type(layer).__name__}")
    checked_index("neuron", neuron, layer.num_neurons)
    signals = _signals(inputs, steps, amplitude)
    runs = [_run(layer, signal, neuron) for signal in signals.values()]
    rows = list(runs[0])
    across = _across(threshold, rows[1:-1])
    spiking = len(np.unique([value for run in runs for value in run["output"].flat])) <= 3
    size = (1.0 + 2.8 * len(runs), 0.6 + 1.3 * len(rows))
    figure, grid = style.panels(figure, len(rows), len(runs), size, sharex="col", sharey="row")
    for column, (title, run) in enumerate(zip(signals, runs, strict=True)):
        for ax, row in zip(grid[:, column], rows, strict=True):
            first = ax is grid[0, column]
            _respond(ax, run[row], row, spiking)
            for height in across.get(row, []):
                style.level(ax, height)
            style.dress(ax, "", row if column == 0 else "", title if first else "")
        grid[-1, column].set_xlabel("timestep")
        style.whole_numbers(grid[-1, column], "x")
    figure.align_ylabels(list(grid[:, 0]))
    return figure


def _signals(
    inputs: Sequence[str] | Mapping[str, Values], steps: int, amplitude: float
) -> dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        own = {}
        for name, values in named("inputs", inputs).items():
            place = f"inputs[{name!r}]"
            signal = finite(place, filled(place, numbers(place, values), "[T]", [1]))
            own[name] = torch.from_numpy(signal.copy())
        return own
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    checked_count("steps", steps, low=2)
    (height,) = levels("amplitude", amplitude)
    if not names or not SIGNALS.keys() >= set(names):
        raise ValueError(f"inputs must be among {', '.join(SIGNALS)}, got {list(names)!r}")
    since = torch.arange(steps) - steps // 10
    return {name: height * SIGNALS[name](since, int(since[-1])) for name in names}


def _across(
    threshold: Levels | Mapping[str, Levels] | None, states: Sequence[str]
) -> dict[str, list[float]]:
    if threshold is None:
        return {}
    by_state = threshold if isinstance(threshold, Mapping) else {"mem": threshold}
    for name in by_state:
        if name not in states:
            raise ValueError(
                f"threshold must be of one of the states {', '.join(states) or '(none)'}, "
                f"got {name!r}"
            )
    return {name: levels("threshold", heights) for name, heights in by_state.items()}


def _run(layer: tt.Layer, signal: Tensor, neuron: int) -> dict[str, Array]:
    """Input, states and output of one neuron, each ``[T, lines]``, by the names of the rows."""
    twin = copy.deepcopy(layer).eval()
    twin.zero_states()
    shape = [1] * (twin.dim + 1 if twin.dim >= 0 else 1 - twin.dim)
    shape[twin.dim] = twin.num_neurons
    like = next((p for p in twin.parameters() if p.is_floating_point()), torch.empty(0))
    rows = []
    with torch.no_grad():
        for value in signal.to(like):
            y = twin(value.expand(shape))
            states = {name: s for name, s in twin.get_states().items() if s.is_floating_point()}
            seen = {"input": value, **states, "output": y}
            rows.append({name: _of(neuron, twin.num_neurons, each) for name, each in seen.items()})
    return {name: finite(name, np.stack([row[name] for row in rows])) for name in rows[0]}


def _of(neuron: int, count: int, seen: Tensor) -> Array:
    """One neuron's values: a state of another size has no such neuron, and shows its first ones."""
    flat = array("state", seen).reshape(-1)
    lines = flat.reshape(count, -1)[neuron] if len(flat) % count == 0 else flat
    return lines[:8]


def _respond(ax: Axes, values: Array, row: str, spiking: bool) -> None:
    when = np.arange(len(values))
    if spiking and row == "output":
        ax.vlines(when, 0.0, values[:, 0], color=style.PALETTE[3], linewidth=1.2)
        ax.axhline(0.0, color=style.PALETTE[3], linewidth=0.8)
    else:
        shades = {"input": 2, "output": 3}
        ax.plot(when, values, color=style.PALETTE[shades.get(row, 0)], linewidth=1.2)


def phase(
    horizontal: Data,
    vertical: Values | None = None,
    *,
    neuron: int = 0,
    names: tuple[str, str] | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Two states of a neuron against each other, time as colour, from a ring to a dot.

    Args:
        horizontal: ``[T, N]``, or ``[T, B, N…]`` of which one sample is drawn: a tensor or an
            array. Or a recording that has both.
        vertical: the other state, in the same shape; None where ``horizontal`` is a recording.
        neuron: which one, in ``0 … N − 1``.
        names: of both states, the horizontal one first: in the recording (None: its only two
            states), or just to label the axes.
        sample: which one of the batch, in ``0 … B − 1``.
        ax: where to draw; a new figure where None. The colour bar stands beside it.

    Returns:
        The axes.

    Raises:
        TypeError: an argument is of another kind, or ``vertical`` is missing.
        ValueError: shapes differ or are none of these, there is no such name, sample or neuron, a
            value is not finite, or there are fewer than 2 timesteps.

    Example:
        >>> import torch
        >>> ax = phase(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
        >>> [piece.tolist() for piece in ax.collections[0].get_segments()]
        [[[0.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [2.0, 0.0]]]

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, chapter 4 (phase plane).
    """
    across, up, labels = _two(horizontal, vertical, names, sample)
    checked_index("neuron", neuron, across.shape[1])
    path = np.stack([across[:, neuron], up[:, neuron]], axis=-1)
    if len(path) < 2:
        raise ValueError("horizontal must have at least 2 timesteps to draw a path, got 1")
    ax = style.axes(ax, (5.5, 4.5))
    pieces = LineCollection(
        list(np.stack([path[:-1], path[1:]], axis=1)), cmap=style.TIME, linewidth=1.5
    )
    pieces.set_array(np.arange(1, len(path)))
    pieces.set_clim(0, len(path) - 1)
    pieces.set_rasterized(len(path) > 5000)
    ax.add_collection(pieces)
    ink, (start, *_, end) = style.inside(ax), path
    ax.scatter(start[0], start[1], s=40, facecolors="none", edgecolors=ink, zorder=3)
    ax.scatter(end[0], end[1], s=40, color=ink, zorder=3)
    ax.autoscale_view()
    style.dress(ax, *labels)
    style.scale(ax, pieces, "timestep", whole=True)
    return ax


def _two(
    horizontal: Data, vertical: Values | None, names: tuple[str, str] | None, sample: int
) -> tuple[Array, Array, tuple[str, str]]:
    """Both states ``[T, N]``, and what to call them."""
    if isinstance(horizontal, Mapping):
        if vertical is not None:
            raise TypeError("vertical must be None where horizontal is a recording: it has both")
        keys = names or _only_two(horizontal)
        one, other = (chosen("horizontal", horizontal, key, ()) for key in keys)
        across = series("horizontal", horizontal, name=one, sample=sample)
        return across, series("horizontal", horizontal, name=other, sample=sample), (one, other)
    if vertical is None:
        raise TypeError("vertical must be given where horizontal is no recording, got None")
    across = series("horizontal", horizontal, sample=sample)
    up = series("vertical", vertical, sample=sample)
    if across.shape != up.shape:
        raise ValueError(
            f"horizontal and vertical must be of the same [T, N], got {list(across.shape)} and "
            f"{list(up.shape)}"
        )
    return across, up, names or ("", "")


def _only_two(recording: Mapping[str, Any]) -> tuple[str, str]:
    states = [key for key in recording if key.rpartition(".")[2] not in ("in", "out")]
    if len(states) != 2:
        raise ValueError(f"names must choose two of {', '.join(map(repr, states))}, got None")
    return states[0], states[1]
