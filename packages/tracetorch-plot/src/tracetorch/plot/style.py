"""Colours, axes and legends of every figure. Knows no data.

Nothing global is touched: no rcParams are written, pyplot is not imported, no window opens. What is
drawn for reading (labels, ticks, legends) takes its colour from what lies behind it.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

# Okabe & Ito, Color Universal Design (2008), without black and yellow, which one of the two
# backgrounds swallows
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
LINES = ("solid", "dashed", "dotted", "dashdot")

# on white, on a background that is not known (4.5 : 1 on both white and black), on black
DARK, MIDDLE, LIGHT = "#262626", "#767676", "#d9d9d9"

AMOUNT, SIGNED = "viridis", "RdBu_r"
TIME = LinearSegmentedColormap.from_list("time", ["#0072B2", "#CC79A7", "#E69F00"])


def ink(*surfaces: Any) -> str:
    """The colour that can be read on surfaces: the first lies on top of the others.

    Example:
        >>> ink("white"), ink("none"), ink("none", "#0d1117")
        ('#262626', '#767676', '#d9d9d9')
    """
    left, brightness = 1.0, 0.0
    for surface in surfaces:
        red, green, blue, alpha = to_rgba(surface)
        brightness += left * alpha * (0.299 * red + 0.587 * green + 0.114 * blue)
        left *= 1.0 - alpha
    if left > 0.5:
        return MIDDLE
    return DARK if brightness > 0.5 * (1.0 - left) else LIGHT


def outside(ax: Axes) -> str:
    """The ink around the axes, on the figure."""
    return ink(ax.figure.get_facecolor(), ax.figure.figure.get_facecolor())


def inside(ax: Axes) -> str:
    """The ink within the axes."""
    figure = ax.figure
    return ink(ax.get_facecolor(), figure.get_facecolor(), figure.figure.get_facecolor())


def panels(
    figure: Figure | SubFigure | None,
    rows: int,
    columns: int,
    size: tuple[float, float],
    **options: Any,
) -> tuple[Figure, NDArray[Any]]:
    """Empty axes in a grid, on the ground of their figure: a new one where None.

    Raises:
        TypeError: ``figure`` is no figure of matplotlib.
        ValueError: it has axes already.
    """
    if figure is None:
        figure = Figure(figsize=size, layout="constrained")
    if not isinstance(figure, (Figure, SubFigure)):
        raise TypeError(f"figure must be a Figure or SubFigure of matplotlib, got {figure!r}")
    if figure.axes:
        raise ValueError(f"figure must be empty, got one with {len(figure.axes)} axes")
    if isinstance(figure, Figure) and figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    clear = {"facecolor": "none"}
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw=clear, **options)
    return figure.figure, grid  # type: ignore[return-value, unused-ignore]


def axes(ax: Axes | None, size: tuple[float, float] = (9.0, 3.0)) -> Axes:
    """Those given, or new ones in a figure of this size in inches.

    Raises:
        TypeError: ``ax`` is no Axes of matplotlib.
    """
    if ax is None:
        new: Axes = panels(None, 1, 1, size)[1][0, 0]
        return new
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be an Axes of matplotlib, got {ax!r}")
    return ax


def dress(ax: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """Labels, ticks and two spines in the ink of the figure."""
    colour = outside(ax)
    ax.set_xlabel(xlabel, color=colour)
    ax.set_ylabel(ylabel, color=colour)
    if title:
        ax.set_title(title, color=colour, fontsize="medium")
    ax.tick_params(which="both", colors=colour)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set_color(colour)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(colour)
    return ax


def whole_numbers(ax: Axes, *names: str) -> None:
    """Ticks at integers alone, on ``"x"``, ``"y"`` or both."""
    for name in names:
        getattr(ax, f"{name}axis").set_major_locator(
            MaxNLocator("auto", integer=True, min_n_ticks=1)
        )


def line(index: int) -> dict[str, Any]:
    """Colour and dashes of a line among many: 24 that differ."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": LINES[index // len(PALETTE) % len(LINES)],
    }


def level(ax: Axes, height: float) -> None:
    """A dashed line across: a threshold."""
    ax.axhline(height, color=inside(ax), linestyle="--", linewidth=1.0)


def note(ax: Axes, words: str) -> None:
    """In the middle of the axes: why there is nothing."""
    look: dict[str, Any] = {"horizontalalignment": "center", "verticalalignment": "center"}
    ax.text(0.5, 0.5, words, transform=ax.transAxes, color=inside(ax), **look)


def legend(ax: Axes) -> None:
    """Outside the axes, where it hides no data: above them, or beside them if it is long.

    Titles stand above it, whenever they are set, and a common factor of the ticks beside it.
    """
    labels = ax.get_legend_handles_labels()[1]
    if not labels:
        return
    sizes = [len(label) + 7 for label in labels]  # a letter is half as wide as high
    room = ax.bbox.width * 72 / ax.figure.figure.dpi / 5
    columns = len(labels) if sum(sizes) <= room else max(int(room // max(sizes)), 1)
    look: dict[str, Any] = {"frameon": False, "labelcolor": outside(ax), "borderaxespad": 0.2}
    if len(labels) <= 4 * columns:
        look |= {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": columns}
        ax.legend(fontsize="small", **look)
    else:
        look |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        ax.legend(fontsize="small" if len(labels) <= 16 else "x-small", **look)
    ax.yaxis.get_offset_text().set_horizontalalignment("right")
    if not any(isinstance(inner.get_axes_locator(), _OnLegend) for inner in ax.child_axes):
        # matplotlib lifts titles above whatever axes there are within these
        above = ax.inset_axes((0.0, 1.0, 1.0, 0.0))
        above.set_axis_off()
        above.set_axes_locator(_OnLegend(ax))


class _OnLegend:
    """Where axes are to stand: on those of their figure's axes that hold the legend."""

    def __init__(self, ax: Axes) -> None:
        self._ax = ax

    def __call__(self, ax: object, renderer: RendererBase) -> Bbox:
        """The place in shares of the figure, when it is drawn."""
        del ax
        legend = self._ax.get_legend()
        place = self._ax.bbox if legend is None else legend.get_window_extent(renderer)
        return place.transformed(self._ax.figure.transSubfigure.inverted())


def scale(ax: Axes, drawn: ScalarMappable | Collection, label: str, whole: bool = False) -> None:
    """A colour bar beside the axes, with ticks at integers alone if they are whole numbers."""
    colour = outside(ax)
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02)
    bar.set_label(label, color=colour)
    if whole:
        bar.locator = MaxNLocator("auto", integer=True, min_n_ticks=1)
    bar.ax.tick_params(colors=colour)
    bar.ax.yaxis.get_offset_text().set_color(colour)
    bar.outline.set_visible(False)  # type: ignore[operator, unused-ignore]
