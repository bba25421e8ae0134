"""Every figure beside the picture of it that was looked at and found good.

To renew them, after looking at the new ones: ``TRACETORCH_RENEW=1 pytest
packages/tracetorch-plot/tests/test_pictures.py``. A failure leaves the new picture and the
difference in pytest's temporary folder, and says where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import tracetorch as tt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from PIL import Image
from tracetorch import plot

REFERENCES = Path(__file__).parent / "references"
MADE_BY = "3.11."  # other releases of matplotlib have letters and pixels of images of their own
# root mean square over pixels of 0 … 255
TOLERANCE = 2.0 if matplotlib.__version__.startswith(MADE_BY) else 16.0
DPI = 72


def waves(steps: int, neurons: int) -> np.ndarray:
    """The same numbers with every release of NumPy and torch."""
    when, neuron = np.arange(steps)[:, None], np.arange(neurons)
    return np.sin(when / (3 + neuron)) + 0.5 * np.cos(when * (1 + neuron) / 11)


SPIKES = np.sign(np.trunc(waves(60, 12)))
ROWS = [
    SimpleNamespace(
        name=f"blocks.{i}",
        kind="LIB" if i % 2 else "Linear",
        input=(1, 8 * i + 8),
        output=(1, 8 * i + 16),
        parameters=9**i,
        rate=(None, 0.0, None, 0.25, None, 0.9)[i % 6],
    )
    for i in range(10)
]
CONSTANT = {"decay": 0.9, "threshold": 1.0}
SPREAD = {"decay": 0.9 + waves(60, 2) / 30, "threshold": 1 + waves(60, 2) / 4}

AXES: dict[str, Callable[[Any], Any]] = {
    "raster": lambda ax: plot.raster(SPIKES, ax=ax),
    "raster_image": lambda ax: plot.raster(np.sign(np.trunc(waves(900, 90))), ax=ax),
    "raster_silent": lambda ax: plot.raster(0 * SPIKES, ax=ax),
    "traces": lambda ax: plot.traces(
        waves(60, 2), threshold=(-1.0, 1.0), spikes=SPIKES[:, :2], ax=ax
    ),
    "traces_many": lambda ax: plot.traces(waves(60, 30), threshold=1.0, ax=ax),
    "heatmap": lambda ax: plot.heatmap(waves(60, 12), label="membrane", ax=ax),
    "feature_maps": lambda ax: plot.feature_maps(waves(30, 15).reshape(10, 9, 5) ** 2, ax=ax),
    "phase": lambda ax: plot.phase(waves(60, 2)[:, :1], waves(60, 2)[:, 1:], ax=ax),
    "rates": lambda ax: plot.rates(
        {f"layer {i}": abs(waves(9, 4)[:, i]) / 8 for i in range(4)}, (0.05, 0.15), ax=ax
    ),
    "training": lambda ax: plot.training(
        {"loss": 2 + waves(9, 5).T / 3, "one": waves(9, 1)[:, 0]}, ylabel="nats", ax=ax
    ),
    "network": lambda ax: plot.network(SimpleNamespace(rows=ROWS), ax=ax),
}
FIGURES: dict[str, Callable[[Any], Any]] = {
    "activity": lambda figure: plot.activity(SPIKES, waves(60, 12), 1.0, neurons=2, figure=figure),
    "distributions": lambda figure: plot.distributions(CONSTANT, SPREAD, bins=8, figure=figure),
    "surrogate": lambda figure: plot.surrogate(
        {"sigmoid": torch.sigmoid, "tanh": torch.tanh}, figure=figure
    ),
    "response": lambda figure: plot.response(
        tt.testing.AdaptiveLIF(1), ["step", "ramp"], steps=50, threshold=1.0, figure=figure
    ),
}
PICTURES = [*AXES, *FIGURES, "traces_dark", "activity_dark", "network_dark", "rates_transparent"]
GROUNDS = {"dark": "#0d1117", "transparent": "none"}


def drawn(name: str) -> Figure:
    """Places are fixed, so that letters of another release move no line."""
    name, _, ground = name.partition("_") if name.endswith(tuple(GROUNDS)) else (name, "", "")
    size = (6.0, 3.6) if name in FIGURES or name == "network" else (4.0, 2.4)
    figure = Figure(size, facecolor=GROUNDS.get(ground, "white"), dpi=DPI)
    figure.subplots_adjust(0.14, 0.2, 0.95, 0.78, wspace=0.35, hspace=0.6)
    if name in FIGURES:
        FIGURES[name](figure.subfigures(facecolor="none"))
    else:
        AXES[name](figure.add_subplot(facecolor="none"))
    return figure


def write(name: str, path: Path) -> None:
    figure = drawn(name)
    FigureCanvasAgg(figure).print_png(path)
    with Image.open(path) as image:  # a few colours do, and keep the folder small
        small = image.convert("RGBA").quantize(64, method=Image.Quantize.FASTOCTREE)
    small.save(path, optimize=True)


def softened(path: Path) -> str:
    """Beside the picture: a third as large, in which letters of any release are grey alike."""
    with Image.open(path) as image:
        whole = Image.new("RGBA", image.size, "white")
        whole.alpha_composite(image.convert("RGBA"))
    soft = path.with_name(f"{path.stem}-soft.png")
    whole.convert("RGB").reduce(3).save(soft)
    return str(soft)


@pytest.fixture(autouse=True)
def _matplotlibs_own_style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_the_one_that_was_looked_at(name: str, tmp_path: Path) -> None:
    expected, path = REFERENCES / f"{name}.png", tmp_path / f"{name}.png"
    if os.environ.get("TRACETORCH_RENEW"):
        REFERENCES.mkdir(exist_ok=True)
        write(name, expected)
    copy = tmp_path / f"{name}-expected.png"
    copy.write_bytes(expected.read_bytes())
    write(name, path)
    assert compare_images(softened(copy), softened(path), tol=TOLERANCE) is None


def test_the_tolerance_tells_them_apart(tmp_path: Path) -> None:
    """One in the place of another of its size is noticed, with any release of matplotlib."""
    paths = {}
    for name in ("raster", "traces", "traces_many", "heatmap", "phase", "rates", "training"):
        paths[name] = tmp_path / f"{name}.png"
        write(name, paths[name])
    for one in paths:
        for other in paths:
            if one < other:
                found = compare_images(softened(paths[one]), softened(paths[other]), tol=16.0)
                assert found is not None, (one, other)


def test_there_is_no_picture_of_nothing_and_all_are_small() -> None:
    found = [*REFERENCES.glob("*.png")]
    assert {path.stem for path in found} == {*PICTURES}
    assert sum(path.stat().st_size for path in found) < 1_000_000
