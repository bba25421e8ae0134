"""A network's boxes: what they say, where they stand, and that their words fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from tracetorch import plot
from tracetorch.plot.style import NEGATIVE


def row(index: int = 0, **fields: Any) -> SimpleNamespace:
    given = {
        "name": f"encoder.blocks.{index}.lif", "kind": "DSLITS", "input": (2, 128, 28, 28),
        "output": (2, 128, 14, 14), "parameters": 589_824, "rate": 0.123,
    }  # fmt: skip
    return SimpleNamespace(**{**given, **fields})


def summary(count: int, **fields: Any) -> Any:
    return SimpleNamespace(rows=[row(i, **fields) for i in range(count)])


def boxes(ax: Any) -> list[FancyBboxPatch]:
    return [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]


def test_a_box_says_what_its_row_has() -> None:
    rows = [
        row(name="fc", kind="Linear", input=(3, 8), output=None, parameters=1, rate=None),
        row(name="lif", kind="LIB", input=(3, 8), output=(3,), parameters=2_500_000, rate=0.0),
    ]
    ax = plot.network(SimpleNamespace(rows=rows))
    assert [text.get_text() for text in ax.texts] == [
        "fc", "Linear", "8 → ? · 1 parameter",
        "lif", "LIB", "8 →  · 2.5M parameters", "silent",
    ]  # fmt: skip
    assert [box.get_gid() for box in boxes(ax)] == ["fc", "lif"]
    assert boxes(ax)[1].get_edgecolor() == to_rgba(NEGATIVE)


def test_the_more_it_fires_the_deeper_its_colour() -> None:
    rows = [row(rate=rate) for rate in (None, 0.0, 0.05, 0.3, 1.0)]
    alphas = [b.get_facecolor()[3] for b in boxes(plot.network(SimpleNamespace(rows=rows)))]
    assert alphas[0] == alphas[1] == 0
    assert alphas == sorted(alphas)
    assert len({*alphas[1:]}) == 4


@pytest.mark.parametrize("count", [1, 2, 8, 9, 20])
def test_boxes_are_joined_in_order_and_overlap_nowhere(count: int) -> None:
    ax = plot.network(summary(count))
    places = [box.get_bbox() for box in boxes(ax)]
    assert len(places) == count
    for i, one in enumerate(places):
        assert not any(one.overlaps(other) for other in places[:i])
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == count - 1
    for arrow, place in zip(arrows, places[1:], strict=True):
        x, y = arrow._posA_posB[1]
        assert x in (place.x0, pytest.approx((place.x0 + place.x1) / 2))
        assert place.y0 < y <= place.y1 + 1e-9


@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("size", [None, (4.0, 3.0)])
def test_words_stay_in_their_box_and_apart(count: int, size: tuple[float, float] | None) -> None:
    ax = None if size is None else Figure(size).subplots()
    ax = plot.network(summary(count, kind="SelectiveStateSpaceModel"), ax=ax)
    ax.figure.draw_without_rendering()
    places = [box.get_window_extent() for box in boxes(ax)]
    words = [text.get_window_extent() for text in ax.texts]
    for i, word in enumerate(words):
        place = places[i // 4]
        assert place.x0 <= word.x0 < word.x1 <= place.x1
        assert place.y0 <= word.y0 < word.y1 <= place.y1
        assert not any(word.overlaps(other) for other in words[:i])
    if size is None:
        assert min(text.get_fontsize() for text in ax.texts) >= 7


def test_of_a_long_name_the_end_is_shown() -> None:
    ax = plot.network(summary(1, name="a.very.long.way.down.to.the.layer.lif"))
    assert ax.texts[0].get_text() == "…down.to.the.layer.lif"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (SimpleNamespace(rows=[]), ValueError, "summary must have at least one row, got none"),
        ({}, TypeError, r"summary must have rows, as model.summary\(x\) has, got dict"),
        (SimpleNamespace(rows=[3]), TypeError, r"summary.rows\[0\] must have the field 'name'"),
        (summary(1, rate=1.5), ValueError, r"rows\[0\].rate must be in \[0, 1\], got 1.5"),
    ],
)
def test_what_is_no_summary_is_refused(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plot.network(given)
