"""Draws ``gallery.png``, every figure of ``tracetorch.plot`` side by side: ``python gallery.py``.

Needs ``tracetorch-snn``. Spikes and states are those of its layers, driven by bursts; rates and
losses are made up.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from torch import Tensor
from tracetorch import plot, snn

DARK = "#0d1117"
STEPS, NEURONS = 240, 48


def bursts(generator: torch.Generator) -> Tensor:
    """Input ``[T, 1, N]``: two waves that travel over the neurons, and noise."""
    when, neuron = torch.arange(STEPS)[:, None], torch.arange(NEURONS)
    wave = torch.sin(when / 18 - neuron / 9).clamp(0) + torch.sin(when / 31 + neuron / 7).clamp(0)
    noise = torch.randn(STEPS, NEURONS, generator=generator)
    return (0.22 * wave + 0.12 * noise)[:, None]


def recorded(layer: snn.Layer, x: Tensor) -> dict[str, Tensor]:
    """Output and states over time, each ``[T, 1, N]``, as ``tt.record`` names them."""
    seen: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for timestep in x:
            values = {"out": layer(timestep), **layer.get_states()}
            for name, value in values.items():
                seen.setdefault(f"lif.{name}", []).append(value)
    return {name: torch.stack(values) for name, values in seen.items()}


def rows(rates: list[float]) -> SimpleNamespace:
    """What a summary of a small convolutional net looks like."""
    sizes = [(2, 34, 34), (16, 16, 16), (32, 8, 8), (10,)]
    found = []
    for index, rate in enumerate(rates):
        shapes = ((1, *sizes[index]), (1, *sizes[index + 1]))
        kind, count = ("Linear", 20_490) if index == 2 else ("Conv2d", 304 * 15**index)
        fields = {"input": shapes[0], "output": shapes[1], "parameters": count, "rate": None}
        found.append(SimpleNamespace(name=f"block{index}.weight", kind=kind, **fields))
        fields = {"input": shapes[1], "output": shapes[1], "parameters": 2, "rate": rate}
        found.append(SimpleNamespace(name=f"block{index}.lif", kind="LIB", **fields))
    return SimpleNamespace(rows=found)


def figures() -> dict[str, Callable[[SubFigure], object]]:
    """By name: what draws into a part of the gallery."""
    generator = torch.Generator().manual_seed(3)
    x = bursts(generator)
    lif = recorded(snn.LIB(NEURONS, beta=0.9, threshold=1.0), x)
    ternary = recorded(snn.LIT(NEURONS, beta=0.9), x - x.mean())
    synaptic = recorded(snn.SLIB(NEURONS, alpha=0.85, beta=0.9, threshold=1.0), 4 * x)
    epochs = torch.arange(1, 21)
    noise = torch.randn(2, 5, 20, generator=generator)
    loss = {
        "training": 0.15 + 2.1 * torch.exp(-epochs / 5) + 0.05 * noise[0],
        "held out": 0.35 + 1.9 * torch.exp(-epochs / 5) + 0.09 * noise[1],
    }
    rates = {
        f"block{index}.lif": 0.12 + (start - 0.12) * torch.exp(-epochs / (2 + index))
        for index, start in enumerate((0.42, 0.2, 0.0))
    }
    half_lives = 10 * torch.rand(200, generator=generator) + 5
    after = half_lives * torch.exp(0.6 * torch.randn(200, generator=generator))
    before = {"half-life (timesteps)": half_lives, "threshold": 1.0}
    trained = {"half-life (timesteps)": after, "threshold": 1 + 0.2 * noise[0].flatten()}
    curves = {name: getattr(snn.surrogates, name)() for name in ("atan", "triangle", "superspike")}
    place = torch.arange(12.0)
    grating = torch.stack(
        [
            torch.cos(1.1 * (place[:, None] * torch.sin(a) + place * torch.cos(a))).clamp(0)
            for a in torch.arange(12) * torch.pi / 12
        ]
    )
    slif = snn.SLIB(1, alpha=0.8, beta=0.9, threshold=1.0)
    return {
        "raster": lambda f: plot.raster(ternary, ax=axes(f)),
        "traces": lambda f: plot.traces(
            lif["lif.mem"][:90, :, 20:22], threshold=1.0, spikes=lif["lif.out"][:90, :, 20:22],
            ax=axes(f),
        ),
        "activity": lambda f: plot.activity(lif, threshold=1.0, neurons=2, figure=f),
        "heatmap": lambda f: plot.heatmap(synaptic, name="lif.syn", label="current", ax=axes(f)),
        "rates": lambda f: plot.rates(rates, (0.05, 0.2), ax=axes(f)),
        "training": lambda f: plot.training(loss, ylabel="loss (nats)", ax=axes(f)),
        "response": lambda f: plot.response(slif, steps=60, threshold=1.0, figure=f),
        "surrogate": lambda f: plot.surrogate(curves, figure=f),
        "distributions": lambda f: plot.distributions(before, trained, bins=20, figure=f),
        "phase": lambda f: plot.phase(
            synaptic["lif.syn"][:80], synaptic["lif.mem"][:80], names=("syn", "mem"), ax=axes(f)
        ),
        "feature_maps": lambda f: plot.feature_maps(grating, label="rate", columns=6, ax=axes(f)),
        "network": lambda f: plot.network(rows([0.21, 0.06, 0.0]), ax=axes(f)),
    }  # fmt: skip


def axes(figure: SubFigure) -> Axes:
    """Axes on the ground of their part."""
    return figure.add_subplot(facecolor="none")


def main() -> None:
    """Every figure on white, the first row of them on a dark ground again."""
    drawing = figures()
    whole = Figure((18.0, 17.5), layout="constrained", dpi=80)
    cells = iter(whole.subfigures(5, 3, wspace=0.02, hspace=0.02).flat)
    for name in drawing:
        cell = next(cells)
        cell.suptitle(f"plot.{name}", family="monospace", fontsize=12)
        drawing[name](cell)
    for name in ("activity", "training", "network"):
        cell = next(cells)
        cell.set_facecolor(DARK)
        cell.suptitle(f"plot.{name}", family="monospace", fontsize=12, color="white")
        drawing[name](cell)
    drawn = BytesIO()
    whole.savefig(drawn, format="png")
    shades = [round(round(value * 42 / 255) * 255 / 42) for value in range(256)]  # a small file
    few = Image.open(drawn).convert("RGB").point(shades * 3)
    few.save(Path(__file__).with_name("gallery.png"), optimize=True)


if __name__ == "__main__":
    main()
