"""The figures of the introduction: a leak, surrogates, names, and time folded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tracetorch import plot, snn

from pages import diagrams, figures

DECAYS = (0.5, 0.9, 0.98)
STEEP = {
    "sigmoid(4)": snn.surrogates.sigmoid(4.0),
    "atan(2)": snn.surrogates.atan(2.0),
    "triangle(1)": snn.surrogates.triangle(1.0),
    "superspike(10)": snn.surrogates.superspike(10.0),
}


def pulses() -> Tensor:
    """A pulse alone, a burst, and a slow train, each of 0.4: ``[100, 1]``."""
    when = [8, *range(30, 46, 2), *range(62, 92, 7)]
    x = torch.zeros(100, 1)
    x[when] = 0.4
    return x


def leak() -> Figure:
    """Above one another: pulses, membranes that forget them at three paces, one that spikes."""
    x = pulses()
    figure = Figure(figsize=(9, 4.8), facecolor="none", layout="constrained")
    rows: list[Axes] = list(figure.subplots(3, 1, sharex=True, height_ratios=(1, 3, 3)))
    plot.raster(x, ax=rows[0]).set(xlabel="", ylabel="input", yticks=[])
    leaky = snn.LI(3, beta=torch.tensor(DECAYS))
    membranes = plot.traces(leaky.unroll(x[:, None].expand(-1, 1, 3)), ax=rows[1])
    for line, decay in zip(membranes.lines, DECAYS, strict=True):
        line.set_label(f"LI, β = {decay}")
    plot.style.legend(membranes)
    spiking, mem, spikes = snn.LIB(1, beta=0.9, threshold=1.0), [], []
    for timestep in x:
        spikes.append(spiking(timestep[None]))
        mem.append(spiking.mem)
    plot.traces(torch.stack(mem), threshold=1.0, spikes=torch.stack(spikes), ax=rows[2])
    rows[2].lines[0].set_label("LIB, β = 0.9")
    plot.style.legend(rows[2])
    membranes.set_xlabel("")
    figure.align_ylabels(rows)
    return figure


def surrogates() -> Figure:
    """Four curves through the threshold, and what backward makes of them."""
    figure = Figure(figsize=(9, 3.2), facecolor="none", layout="constrained")
    return plot.surrogate(STEEP, span=(-1.5, 1.5), figure=figure)


def names() -> Figure:
    """What four layers put out for one wave, side by side."""
    figure = Figure(figsize=(9, 3.6), facecolor="none", layout="constrained")
    wave = 0.4 * torch.sin(2 * torch.pi * torch.arange(100) / 50)
    layers = (snn.LI(1), snn.LIB(1), snn.LIT(1), snn.LITS(1, pos_scale=0.5, neg_scale=2.0))
    parts = figure.subfigures(1, len(layers), facecolor="none")
    for part, layer in zip(parts, layers, strict=True):
        plot.response(layer, {type(layer).__name__: wave}, figure=part)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "leak": leak,
    "surrogates": surrogates,
    "names": names,
}


def draw(folder: Path) -> None:
    """Write all of them, the figures on no ground, the diagram as HTML."""
    for name, make in FIGURES.items():
        with rc_context({**figures.LOOK, "svg.hashsalt": name}), torch.no_grad():
            make().savefig(folder / f"{name}.svg", format="svg", metadata={"Date": None})
    (folder / "folded.html").write_text(diagrams.folded(), encoding="utf-8")
