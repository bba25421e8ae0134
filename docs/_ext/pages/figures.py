"""The figure of every layer's page: its states and output for the same three inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from matplotlib import rc_context
from matplotlib.figure import Figure
from tracetorch import plot

STEPS = 100
# on no ground, a figure stands on a light page as on a dark one
LOOK = {"axes.facecolor": "none", "font.size": 9}
# what the defaults would hide: the halves of a pair differ, and a layer hears itself
_SHOWN = {"neg_beta": 0.7, "rec_weight": 0.5, "pos_rec_weight": 0.5, "neg_rec_weight": 0.5}


def inputs() -> dict[str, torch.Tensor]:
    """A pulse, a step that ends, and a wave of both signs, each ``[T]``."""
    when = torch.arange(STEPS, dtype=torch.float64)
    return {
        "pulse": 1.5 * (when == 10).double(),
        "step": 0.25 * ((when >= 10) & (when < 60)).double(),
        "wave": 0.4 * torch.sin(2 * torch.pi * when / 50),
    }


def arguments(kind: type[Any]) -> dict[str, float]:
    """What a layer's figure is drawn with, other than its defaults."""
    names = kind.parameter_names() if hasattr(kind, "parameter_names") else ()
    return {name: value for name, value in _SHOWN.items() if name in names}


def made(kind: type[Any]) -> str:
    """The call that makes the layer of the figure."""
    sizes = ["1"] if hasattr(kind, "parameter_names") else ["1", "1"]
    given = [f"{name}={value}" for name, value in arguments(kind).items()]
    package = kind.__module__.split(".")[1]
    return f"{package}.{kind.__name__}({', '.join(sizes + given)})"


def layer(kind: type[Any]) -> tt.Layer:
    """The layer of the figure."""
    torch.manual_seed(0)
    sizes = (1,) if hasattr(kind, "parameter_names") else (1, 1)
    found: tt.Layer = kind(*sizes, **arguments(kind))
    return found


def draw(kind: type[Any], path: Path) -> None:
    """Write the figure."""
    with rc_context({**LOOK, "svg.hashsalt": kind.__name__}):
        figure: Figure = Figure(figsize=(9, 6), facecolor="none", layout="constrained")
        plot.response(layer(kind), inputs(), figure=figure)
        rows = len(figure.axes) // 3
        figure.set_size_inches(9, 0.5 + 0.95 * rows)
        figure.savefig(path, format="svg", metadata={"Date": None})
