"""What a layer is made of: distributions of its parameters, and surrogates. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from tracetorch.plot import style
from tracetorch.plot.arguments import (
    Array,
    Values,
    array,
    checked_count,
    filled,
    finite,
    levels,
    named,
    numbers,
)

# ---------------------------------------------------------------------- parameters


def distributions(
    before: Mapping[str, Values | float],
    after: Mapping[str, Values | float] | None = None,
    *,
    bins: int = 30,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Histograms of decays, half-lives, thresholds: a panel for each, before and after training.

    Values that are all alike are a dashed line, since their histogram would hide the others.

    Args:
        before: by name, with its unit (``"half-life (timesteps)"``): a number or values of any
            shape.
        after: the same names; None draws ``before`` alone.
        bins: how many equal intervals from the lowest to the highest value, at least 1.
        figure: an empty one to draw in; a new one where None.

    Returns:
        The figure, with one axes for each name. Heights are shares: they add up to 1.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: nothing to draw, other names in ``after``, or a value is not finite.

    Example:
        >>> import torch
        >>> figure = distributions({"decay": torch.rand(50)}, {"decay": torch.rand(50)}, bins=5)
        >>> [(each.get_label(), len(each.get_data().values)) for each in figure.axes[0].patches]
        [('before', 5), ('after', 5)]
    """
    stages = {"before": _flat("before", before)}
    if after is not None:
        stages["after"] = _flat("after", after)
        if set(after) != set(before):
            raise ValueError(
                f"after must have the names of before, {sorted(before)}, got {sorted(after)}"
            )
    checked_count("bins", bins)
    rows, columns = _grid(len(before))
    size = (3.4 * columns, 2.6 * rows)
    figure, grid = style.panels(figure, rows, columns, size)
    for ax in grid.flat[len(before) :]:
        ax.remove()
    for ax, name in zip(grid.flat, before, strict=False):
        _histograms(ax, {stage: values[name] for stage, values in stages.items()}, bins)
        style.dress(ax, name, "share")
        if len(stages) > 1:
            style.legend(ax)
    return figure


def _flat(argument: str, values: Mapping[str, Values | float]) -> dict[str, Array]:
    found = {}
    for name, value in named(argument, values).items():
        place = f"{argument}[{name!r}]"
        flat = numbers(place, value).reshape(-1)
        found[name] = finite(place, filled(place, flat, "tensor", [1])).astype(np.float64)
    return found


def _grid(count: int) -> tuple[int, int]:
    columns = min(count, 3)
    return -(-count // columns), columns


def _histograms(ax: Axes, stages: Mapping[str, Array], bins: int) -> None:
    edges = np.histogram_bin_edges(np.concatenate(list(stages.values())), bins)
    colours = (style.PALETTE[0], style.PALETTE[3])
    for colour, (stage, values) in zip(colours, stages.items(), strict=False):
        if np.ptp(values) == 0:
            label = f"{stage}: {values[0]:.4g}"
            ax.axvline(values[0], color=colour, linestyle="--", linewidth=1.5, label=label)
            continue
        shares = np.histogram(values, edges)[0] / len(values)
        shaded: dict[str, Any] = {
            "fill": True,
            "facecolor": to_rgba(colour, 0.3),
            "edgecolor": colour,
        }
        ax.stairs(shares, edges, label=stage, linewidth=1.2, **shaded)
    ax.set_ylim(bottom=0.0)
    ax.locator_params(axis="x", nbins=4)


# ---------------------------------------------------------------------- surrogates


def surrogate(
    functions: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    span: tuple[float, float] = (-2.0, 2.0),
    points: int = 401,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Functions of the distance to the threshold, and beside them their gradients.

    Args:
        functions: by name; each takes a tensor of distances (membrane − threshold) and returns one
            of the same shape, elementwise: those of ``tracetorch.snn.surrogates``, or any other.
        span: the lowest and the highest distance.
        points: how many distances between, ends included, at least 2.
        figure: an empty one to draw in; a new one where None.

    Returns:
        The figure; its ``axes`` are the functions and the gradients, which autograd computes in
        float64.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``span`` does not rise, a function returns another shape, is not finite, or has
            no gradient: it would train nothing.

    Example:
        >>> import torch
        >>> figure = surrogate({"sigmoid": torch.sigmoid}, span=(-1.0, 1.0), points=3)
        >>> [ax.lines[0].get_ydata()[1].item() for ax in figure.axes]
        [0.5, 0.25]

    Source: Neftci et al., Surrogate gradient learning in spiking neural networks, arXiv 1901.09948.
    """
    named("functions", functions)
    low, high = _span(span)
    grid = torch.linspace(low, high, checked_count("points", points, low=2), dtype=torch.float64)
    curves = {name: _evaluated(name, f, grid) for name, f in functions.items()}
    figure, axes = style.panels(figure, 1, 2, (9.0, 3.2))
    for index, (name, both) in enumerate(curves.items()):
        for ax, heights in zip(axes[0], both, strict=True):
            ax.plot(grid.numpy(), heights, linewidth=1.5, label=name, **style.line(index))
    for ax, title in zip(axes[0], ("function", "gradient"), strict=True):
        ax.axvline(0.0, color=style.inside(ax), linewidth=0.8, linestyle=":")
        style.dress(ax, "membrane − threshold", title)
    style.legend(axes[0, 0])
    return figure


def _span(span: tuple[float, float]) -> tuple[float, float]:
    ends = levels("span", span)
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(f"span must be (low, high) with low < high, got {span!r}")
    return ends[0], ends[1]


def _evaluated(name: str, function: Callable[[Tensor], Tensor], grid: Tensor) -> list[Array]:
    """Values and gradients at the points of the grid."""
    place = f"functions[{name!r}]"
    with torch.enable_grad():
        u = grid.clone().requires_grad_()
        y = function(u)
        if not isinstance(y, Tensor) or y.shape != u.shape:
            got = list(y.shape) if isinstance(y, Tensor) else repr(y)
            raise ValueError(f"{place} must return the shape it is given, {list(u.shape)}: {got}")
        if not y.requires_grad:
            raise ValueError(f"{place} has no gradient: nothing would be trained through it")
        (slope,) = torch.autograd.grad(y.sum(), u)
    return [finite(place, array(place, each)) for each in (y, slope)]
