"""Layers as boxes, in the order in which they come. Knows of a summary the fields of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from tracetorch.plot import style

# boxes above one another; a box, and the way to the next one, in units of the axes
DEEP, WIDTH, HEIGHT, GAP, ASIDE = 8, 4.8, 0.8, 0.4, 0.7


class Summary(Protocol):
    """What :func:`network` draws: ``model.summary(x)``, or anything with such rows."""

    @property
    def rows(self) -> Sequence[Any]:
        """In order, with the fields that :func:`network` lists."""
        ...


def network(summary: Summary, *, ax: Axes | None = None) -> Axes:
    """Layers as boxes with their sizes, parameters and rates; arrows from each to the next.

    The more a layer fires, the deeper its colour; one that never does has a red edge. Eight boxes
    stand below one another, then the next column begins.

    Args:
        summary: of a model, as ``model.summary(x)`` returns it: its ``rows`` have ``name``,
            ``kind``, ``input`` and ``output`` (shapes of one timestep, batch first, or None),
            ``parameters`` (a count) and ``rate`` (the share of outputs that are not zero, or None).
        ax: where to draw; None: a new figure, large enough to read every box.

    Returns:
        The axes; each row is a patch with the row's name as its ``gid``.

    Raises:
        TypeError: ``summary`` has no ``rows``, or a row lacks a field; ``ax`` is no Axes.
        ValueError: there are no rows, or a rate lies outside 0 … 1.

    Example:
        >>> from types import SimpleNamespace as Row
        >>> row = Row(name="lif", kind="LIB", input=(2, 8), output=(2, 8), parameters=16, rate=0.1)
        >>> ax = network(Row(rows=[row]))
        >>> [text.get_text() for text in ax.texts]
        ['lif', 'LIB', '8 → 8 · 16 parameters', '10 %']
    """
    rows = _rows(summary)
    columns, deep = -(-len(rows) // DEEP), min(len(rows), DEEP)
    wide, tall = columns * (WIDTH + ASIDE) - ASIDE, deep * (HEIGHT + GAP) - GAP
    if ax is None:
        ax = style.axes(None, (0.75 * wide + 0.3, 0.75 * tall + 0.3))
        ax.set_position((0.0, 0.0, 1.0, 1.0))
    ax = style.axes(ax)
    ax.set(xlim=(-0.1, wide + 0.1), ylim=(-tall - 0.1, 0.1))
    ax.set_axis_off()
    size = _font_size(ax, wide, tall)
    corners = [_corner(index) for index in range(len(rows))]
    for row, corner in zip(rows, corners, strict=True):
        _box(ax, row, corner, size)
    for one, other in pairwise(corners):
        _arrow(ax, one, other)
    return ax


def _rows(summary: Summary) -> Sequence[Any]:
    rows: Sequence[Any] | None = getattr(summary, "rows", None)
    if rows is None:
        raise TypeError(
            f"summary must have rows, as model.summary(x) has, got {type(summary).__name__}"
        )
    if not rows:
        raise ValueError("summary must have at least one row, got none")
    for index, row in enumerate(rows):
        for field in ("name", "kind", "input", "output", "parameters", "rate"):
            if not hasattr(row, field):
                raise TypeError(f"summary.rows[{index}] must have the field {field!r}, got {row!r}")
        if row.rate is not None and not 0 <= row.rate <= 1:
            raise ValueError(f"summary.rows[{index}].rate must be in [0, 1], got {row.rate!r}")
    return rows


def _font_size(ax: Axes, wide: float, tall: float) -> float:
    """Points, so that two lines fit into a box, with 40 letters across."""
    points = 72 / ax.figure.figure.dpi
    across = ax.bbox.width * points * WIDTH / (wide + 0.2) / 30
    down = ax.bbox.height * points * HEIGHT / (tall + 0.2) / 2.9
    return min(max(min(across, down), 1.0), 10.0)


def _corner(index: int) -> tuple[float, float]:
    """Lower left corner of a box."""
    column, row = divmod(index, DEEP)
    return column * (WIDTH + ASIDE), -row * (HEIGHT + GAP) - HEIGHT


def _box(ax: Axes, row: Any, corner: tuple[float, float], size: float) -> None:
    ink, (left, bottom) = style.inside(ax), corner
    silent = row.rate == 0
    box = FancyBboxPatch(
        corner,
        WIDTH,
        HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor=to_rgba(style.POSITIVE, 0.5 * (row.rate or 0.0) ** 0.5),
        edgecolor=style.NEGATIVE if silent else ink,
        linewidth=1.8 if silent else 0.8,
    )
    box.set_gid(row.name)
    ax.add_patch(box)
    above, below = bottom + 0.7 * HEIGHT, bottom + 0.28 * HEIGHT
    near, far = left + 0.12, left + WIDTH - 0.12
    look: dict[str, Any] = {"color": ink, "fontsize": size, "verticalalignment": "center"}
    ax.text(near, above, _cut(row.name, 22), fontweight="bold", **look)
    ax.text(far, above, _cut(row.kind, 16), horizontalalignment="right", **look)
    look["fontsize"] = 0.9 * size
    ax.text(near, below, f"{_sizes(row)} · {_count(row.parameters)}", **look)
    if row.rate is not None:
        share = "silent" if silent else f"{100 * row.rate:.3g} %"
        ax.text(far, below, share, horizontalalignment="right", **look)


def _arrow(ax: Axes, one: tuple[float, float], other: tuple[float, float]) -> None:
    """From the lower edge to the box below, or between the columns up to the head of the next."""
    if one[0] == other[0]:
        middle = one[0] + WIDTH / 2
        points = [(middle, one[1]), (middle, other[1] + HEIGHT)]
    else:
        way, low, high = other[0] - ASIDE / 2, one[1] + HEIGHT / 2, other[1] + HEIGHT / 2
        points = [(one[0] + WIDTH, low), (way, low), (way, high), (other[0], high)]
    look: dict[str, Any] = {"color": style.inside(ax), "linewidth": 0.8}
    ax.plot(*zip(*points[:-1], strict=True), **look)
    ax.add_patch(
        FancyArrowPatch(
            *points[-2:], arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, **look
        )
    )


def _cut(text: str, most: int) -> str:
    """The end of a long name tells more than its beginning."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _sizes(row: Any) -> str:
    shapes = [
        "?" if shape is None else "×".join(map(str, shape[1:])) for shape in (row.input, row.output)
    ]
    return " → ".join(shapes)


def _count(parameters: int) -> str:
    """1 parameter, 16 parameters, 12.3k, 4.5M."""
    if parameters >= 1_000_000:
        return f"{parameters / 1_000_000:.3g}M parameters"
    if parameters >= 10_000:
        return f"{parameters / 1_000:.3g}k parameters"
    return f"{parameters} parameter{'' if parameters == 1 else 's'}"
