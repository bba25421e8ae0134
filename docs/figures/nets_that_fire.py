"""Two deep nets that are silent with torch's weights: rates by layer, and whether they learn.

Writes ``docs/images/nets-that-fire.png`` and says what it measured:
``uv run python docs/figures/nets_that_fire.py``.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tracetorch as tt
from matplotlib.figure import Figure
from torch import Tensor, nn
from tracetorch import snn

ROOT = Path(__file__).parents[2]
STEPS, BATCH, EPOCHS, RATE = 10, 50, 5, 0.1
BAND = (0.05, 0.2)
# of Okabe and Ito, told apart by colour-blind readers
COLOURS = {"torch's default": "#999999", "calibrate": "#0072B2", "fluctuation_driven": "#E69F00"}


class Net(tt.Model):
    """Modules in their order."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        y: Tensor = self.net(x)
        return y

    def pairs(self) -> list[tuple[Tensor, snn.LIB]]:
        """Each spiking layer with the weight before it."""
        parts = list(self.net)
        found = zip(parts, parts[1:], strict=False)  # noqa: RUF007
        return [(before.weight, lif) for before, lif in found if isinstance(lif, snn.LIB)]


def mlp() -> Net:
    """Ten spiking layers of 128 neurons."""
    sizes = [784, *[128] * 10]
    parts: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):  # noqa: RUF007
        parts += [nn.Linear(inputs, outputs), snn.LIB(outputs)]
    return Net(*parts, nn.Linear(128, 10), snn.LI(10))


def conv_net() -> Net:
    """Nine spiking layers of 8 channels, 28 → 14 → 7 → 4 pixels."""
    parts: list[nn.Module] = []
    for i in range(9):
        stride = 2 if i in (0, 3, 6) else 1
        parts += [nn.Conv2d(8 if i else 1, 8, 3, stride, padding=1), snn.LIB(8, dim=-3)]
    return Net(*parts, nn.Flatten(), nn.Linear(8 * 16, 10), snn.LI(10))


def untouched(model: Net, x: Tensor) -> None:
    """Leaves torch's weights."""


def calibrated(model: Net, x: Tensor) -> None:
    """Scales them until every layer fires."""
    start = time.perf_counter()
    report = snn.init.calibrate(model, x, BAND)
    seconds = time.perf_counter() - start
    print(f"{report}\nin {seconds:.1f} s")  # noqa: T201


def closed_form(model: Net, x: Tensor) -> None:
    """Draws them anew, without looking at data."""
    for weight, lif in model.pairs():
        snn.init.fluctuation_driven(weight, lif, RATE, xi=0.8)


WAYS: dict[str, Callable[[Net, Tensor], None]] = dict(
    zip(COLOURS, (untouched, calibrated, closed_form), strict=True)
)


class Measured(NamedTuple):
    """Rates by layer before training, and accuracy on held-out digits after each epoch."""

    rates: list[float]
    accuracy: list[float]


def rates_of(model: Net, x: Tensor) -> list[float]:
    """Spikes per neuron and timestep, in order of the layers."""
    model.zero_states()
    lifs = [name for name, layer in model.named_layers() if isinstance(layer, snn.LIB)]
    with torch.no_grad(), tt.record(model, *(f"{name}.out" for name in lifs)) as record:
        model.unroll(x)
    return [(record[f"{name}.out"] != 0).double().mean().item() for name in lifs]


def encoded(images: Tensor, seed: int) -> Tensor:
    """Spikes ``[T, B, 1, 28, 28]`` of images."""
    return snn.encoders.rate(images, STEPS, generator=torch.Generator().manual_seed(seed))


def accuracy_of(model: Net, digits: Any) -> float:
    """Share of digits whose class has the highest membrane at its best."""
    model.zero_states()
    with torch.no_grad():
        membranes = model.unroll(encoded(digits.images, 0))
    return (membranes.amax(0).argmax(1) == digits.labels).double().mean().item()


def trained(model: Net, train: Any, test: Any) -> list[float]:
    """Accuracy before and after each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    found = [accuracy_of(model, test)]
    for epoch in range(EPOCHS):
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(epoch))
        for i, some in enumerate(order.split(BATCH)):
            model.zero_states()
            membranes = model.unroll(encoded(train.images[some], 1000 * epoch + i))
            loss = snn.losses.max_membrane_cross_entropy(membranes, train.labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(accuracy_of(model, test))
    return found


def measured(make: Callable[[], Net], train: Any, test: Any) -> dict[str, Measured]:
    """The same net, begun in each way."""
    found = {}
    sample = encoded(train.images[:BATCH], 0)
    for way, prepare in WAYS.items():
        torch.manual_seed(0)
        model = make()
        prepare(model, sample)
        rates = rates_of(model, encoded(test.images[:100], 1))
        found[way] = Measured(rates, trained(model, train, test))
        print(make.__name__, way, [f"{r:.4f}" for r in rates], found[way].accuracy)  # noqa: T201
    return found


def drawn(results: dict[str, dict[str, Measured]]) -> Figure:
    """A row for each net: rates by layer, accuracy by epoch."""
    figure = Figure(figsize=(9.0, 6.0), layout="constrained", facecolor="white")
    for row, (title, found) in zip(figure.subplots(2, 2), results.items(), strict=True):
        rates, accuracy = row
        rates.axhspan(*BAND, color="0.92", zorder=0, label="band asked for")
        for way, marker in zip(found, "oxs", strict=True):
            style: dict[str, Any] = {"color": COLOURS[way], "marker": marker, "label": way}
            rates.plot(range(1, len(found[way].rates) + 1), found[way].rates, **style)
            accuracy.plot([100 * a for a in found[way].accuracy], **style)
        rates.set(xlabel="layer", ylabel="rate before training", title=title, ylim=(-0.01, 0.31))
        accuracy.set(xlabel="epochs", ylabel="held-out digits right, %", ylim=(0, 100))
        accuracy.axhline(10, color="0.7", linestyle=":", linewidth=1.0)
        accuracy.set_xticks(range(EPOCHS + 1))
        for ax in row:
            ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small", ncols=2)
    return figure


def main() -> None:
    """Trains, draws, writes."""
    torch.set_num_threads(1)  # the nets are small, and the machine is shared
    sys.path.insert(0, str(ROOT / "examples" / "mnist"))
    train, test = importlib.import_module("digits").load()
    train, test = train.first(3000), test.first(500)
    results = {
        "10 layers of 128 neurons": measured(mlp, train, test),
        "9 convolutions of 8 channels": measured(conv_net, train, test),
    }
    drawn(results).savefig(ROOT / "docs" / "images" / "nets-that-fire.png", dpi=120)


if __name__ == "__main__":
    main()
