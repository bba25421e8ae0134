"""Figures stay on their own canvas, and can be read on any ground."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import matplotlib
import pytest
import torch
import tracetorch as tt
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from tracetorch import plot
from tracetorch.plot import style

X = torch.rand(20, 3)
ROW = SimpleNamespace(name="a", kind="b", input=(1, 2), output=(1, 2), parameters=3, rate=0.5)
ON_AXES: dict[str, Callable[[Any], Any]] = {
    "raster": lambda ax: plot.raster(X.round(), ax=ax),
    "traces": lambda ax: plot.traces(X, threshold=0.5, spikes=X.round(), ax=ax),
    "heatmap": lambda ax: plot.heatmap(X, label="membrane", ax=ax),
    "feature_maps": lambda ax: plot.feature_maps(torch.rand(3, 4, 4), ax=ax),
    "phase": lambda ax: plot.phase(X, X.square(), ax=ax),
    "rates": lambda ax: plot.rates({"a": [0.1, 0.2]}, (0.1, 0.2), ax=ax),
    "training": lambda ax: plot.training({"a": X}, ax=ax),
    "network": lambda ax: plot.network(SimpleNamespace(rows=[ROW, ROW]), ax=ax),
}
ON_FIGURES: dict[str, Callable[[Any], Any]] = {
    "activity": lambda figure: plot.activity(X.round(), X, 0.5, figure=figure),
    "distributions": lambda figure: plot.distributions({"a": X}, {"a": X + 1}, figure=figure),
    "surrogate": lambda figure: plot.surrogate({"a": torch.sigmoid}, figure=figure),
    "response": lambda figure: plot.response(tt.testing.Trace(2), threshold=1.0, figure=figure),
}


def test_every_figure_is_here() -> None:
    assert {*ON_AXES, *ON_FIGURES, "animate"} == {*plot.__all__}


# ---------------------------------------------------------------------- nothing global

ALONE = """
import sys
import matplotlib
before = matplotlib.rcParams.copy()
import torch
from tracetorch import plot
plot.activity(torch.eye(5), torch.rand(5, 5), threshold=1.0).savefig({path!r} + ".png")
plot.animate(torch.eye(5), {path!r} + ".gif")
plot.heatmap(torch.rand(5, 5))
assert matplotlib.rcParams.copy() == before
print([name for name in ("matplotlib.pyplot", "tkinter") if name in sys.modules])
"""


def test_neither_pyplot_nor_a_window_nor_the_global_style_is_touched(tmp_path: Any) -> None:
    code = ALONE.format(path=str(tmp_path / "figure"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [*ON_AXES, *ON_FIGURES])
def test_rc_params_and_pyplots_figures_stay(name: str) -> None:
    from matplotlib import pyplot

    before = matplotlib.rcParams.copy()
    {**ON_AXES, **ON_FIGURES}[name](None)
    assert matplotlib.rcParams.copy() == before
    assert pyplot.get_fignums() == []


# ---------------------------------------------------------------------- where to draw


@pytest.mark.parametrize("name", ON_AXES)
def test_given_axes_are_drawn_in_and_returned(name: str) -> None:
    figure = Figure()
    one, other = figure.subplots(1, 2)
    assert ON_AXES[name](one) is one
    assert one.has_data() or one.patches
    assert not other.has_data()
    assert not other.patches


@pytest.mark.parametrize("name", ON_FIGURES)
def test_given_figures_are_drawn_in_and_returned(name: str) -> None:
    figure = Figure()
    assert ON_FIGURES[name](figure) is figure
    assert len(figure.axes) == len(ON_FIGURES[name](None).axes)
    whole = Figure()
    left, right = whole.subfigures(1, 2)
    assert ON_FIGURES[name](left) is whole
    assert len(left.axes) == len(figure.axes)
    assert not right.axes


@pytest.mark.parametrize("name", ON_FIGURES)
def test_a_figure_that_is_in_use_is_refused(name: str) -> None:
    figure = Figure()
    figure.subplots(1, 2)
    with pytest.raises(ValueError, match=r"^figure must be empty, got one with 2 axes$"):
        ON_FIGURES[name](figure)
    with pytest.raises(TypeError, match=r"^figure must be a Figure or SubFigure .* got 3$"):
        ON_FIGURES[name](3)


# ---------------------------------------------------------------------- room for all

NAMES = [f"layer {i} of the model" for i in range(10)]
MORE: dict[str, Callable[[Any], Any]] = {
    "tiny": lambda ax: plot.training({"a": 1e-7 * X, NAMES[0]: 1e-7 * X}, ax=ax),
    "two rows": lambda ax: plot.rates({name: [0.1, 0.2] for name in NAMES[:4]}, ax=ax),
    "beside": lambda ax: plot.training(dict.fromkeys(NAMES, X), ax=ax),
    "twice": lambda ax: plot.rates({"a": [0.1, 0.2]}, ax=plot.training({"b": X}, ax=ax)),
}
CROWDED: dict[str, Callable[[Any], Any]] = {
    **ON_AXES,
    **MORE,
    **ON_FIGURES,
    "alike": lambda figure: plot.distributions(
        dict.fromkeys("abcd", 0.912345), dict.fromkeys("abcd", 1e-6 * X), figure=figure
    ),
}


def under_a_legend(figure: Figure) -> list[str]:
    """The texts that a legend stands on, when it is drawn."""
    figure.draw_without_rendering()
    found = []
    for ax in figure.axes:
        if (legend := ax.get_legend()) is None:
            continue
        place, own = legend.get_window_extent(), legend.findobj(matplotlib.text.Text)
        for text in figure.findobj(matplotlib.text.Text):
            if text.get_text() and text not in own and place.overlaps(text.get_window_extent()):
                found.append(text.get_text())
        assert place.ymin >= ax.bbox.ymax or place.xmin >= ax.bbox.xmax
    return found


def entitle(figure: Figure) -> None:
    for ax in figure.axes:
        for place in ("left", "center", "right"):
            ax.set_title(f"to the {place}", loc=place)


@pytest.mark.parametrize("name", CROWDED)
def test_no_legend_stands_on_a_title_or_a_label(name: str) -> None:
    figure = Figure((9.0, 4.0), layout="constrained")
    on_axes = name in ON_AXES or name in MORE
    CROWDED[name](figure.add_subplot() if on_axes else figure)
    entitle(figure)
    assert under_a_legend(figure) == []


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_no_legend_stands_on_a_title_that_was_there_before(layout: Any) -> None:
    figure = Figure((9.0, 4.0), layout=layout)
    ax = figure.add_subplot()
    entitle(figure)
    plot.training({"a": X, NAMES[0]: X, NAMES[1]: X}, ax=ax)
    assert under_a_legend(figure) == []


def test_titles_come_down_again_where_a_legend_goes() -> None:
    figure = Figure((6.0, 4.0))
    ax = plot.training({"a": X}, ax=figure.add_subplot())
    ax.set_title("curves")

    def height() -> float:
        figure.draw_without_rendering()
        return float(ax.title.get_window_extent().ymin)

    above = height()
    ax.get_legend().remove()
    assert ax.bbox.ymax < height() < above - 10


def test_a_figure_with_a_legend_can_be_kept() -> None:
    ax = plot.training({"a": X})
    ax.set_title("curves")
    assert under_a_legend(pickle.loads(pickle.dumps(ax.figure))) == []


# ---------------------------------------------------------------------- grounds


def contrast(one: str, other: str) -> float:
    """Of the Web Content Accessibility Guidelines 2.1: 1 … 21, to be read from 4.5 on."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("ground", ["white", "black", "#0d1117", "#eaeaf2", "#555555", "#cccccc"])
def test_ink_can_be_read_on_any_ground(ground: str) -> None:
    assert contrast(style.ink(ground), ground) >= 4.5
    assert style.ink("none", ground) == style.ink(ground) == style.ink(to_rgba(ground, 0.9), ground)


def test_where_the_ground_is_not_known_ink_can_be_read_on_both() -> None:
    assert min(contrast(style.ink("none"), ground) for ground in ("white", "black")) >= 4.5


def test_lines_are_seen_on_white_and_on_black() -> None:
    for colour in (*style.PALETTE, style.POSITIVE, style.NEGATIVE):
        assert min(contrast(colour, ground) for ground in ("white", "black")) >= 2.2


@pytest.mark.parametrize("ground", ["white", "#0d1117"])
@pytest.mark.parametrize("name", [*ON_AXES, *ON_FIGURES])
def test_all_that_is_to_be_read_can_be_read(name: str, ground: str) -> None:
    figure = Figure(facecolor=ground)
    if name in ON_AXES:
        ON_AXES[name](figure.add_subplot(facecolor="none"))
    else:
        ON_FIGURES[name](figure)
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]
    assert texts
    for text in texts:
        assert contrast(text.get_color(), ground) >= 4.5, text


def test_within_white_axes_on_a_dark_figure_ink_is_dark() -> None:
    ax = Figure(facecolor="black").add_subplot(facecolor="white")
    plot.traces(X, threshold=0.5, ax=ax)
    assert ax.lines[-1].get_color() == style.DARK
    assert ax.xaxis.label.get_color() == style.LIGHT
