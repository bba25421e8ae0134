"""The tools together: a net that is silent by default is seen, mended, trained and drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from matplotlib.image import imread
from torch import Tensor, nn
from tracetorch import measures, plot, snn

FOLDER = Path(__file__).parents[1] / "examples" / "mnist"
BAND, STEPS = (0.05, 0.2), 20


class Deep(tt.Model):
    """Five spiking layers as torch initialises them, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [784, 100, 100, 100, 100, 100]
        self.maps = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.lifs = nn.ModuleList(map(snn.LIB, sizes[1:]))
        self.outward, self.readout = nn.Linear(100, 10), snn.LIB(10)

    def forward(self, x: Tensor) -> Tensor:
        for linear, lif in zip(self.maps, self.lifs, strict=True):
            x = lif(linear(x))
        y: Tensor = self.readout(self.outward(x))
        return y


@pytest.fixture(scope="module")
def digits() -> Any:
    spec = importlib.util.spec_from_file_location("digits_of_mnist", FOLDER / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def spikes_of(images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return snn.encoders.rate(images.flatten(1), STEPS, generator=generator)


def rates(model: Deep, x: Tensor) -> dict[str, float]:
    """Of each layer, from what is recorded of an unrolled sequence."""
    model.zero_states()
    with torch.no_grad(), tt.record(model, "lifs.*.out") as rec:
        model.unroll(x, fold=True)
    found: Any = measures.firing_rate(rec, over="all")
    return {name: value.item() for name, value in found.items()}


def test_a_silent_net_is_seen_mended_trained_and_drawn(digits: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, (train, test) = Deep(), digits
    x = spikes_of(train.images[:64], 0)

    before = model.summary(x)
    dead = [row.name for row in before.rows if row.neurons and row.silent == row.neurons]
    assert dead == ["lifs.3", "lifs.4", "readout"]
    assert f"silent: {', '.join(dead)}" in str(before).splitlines()

    report = snn.init.calibrate(model, x, BAND)
    assert [row.layer for row in report.rows if not row.ok] == []
    calibrated = rates(model, x)
    assert all(BAND[0] <= rate <= BAND[1] for rate in calibrated.values()), calibrated
    after = model.summary(x)
    assert not any(row.neurons and row.silent == row.neurons for row in after.rows)
    assert after.unfolded == ""
    assert {row.path for row in after.rows} == {"fused", ""}

    losses, course = fitted(model, train)
    scores = snn.decoders.count(run(model, spikes_of(test.images[:500], 1)))
    assert (scores.argmax(-1) == test.labels[:500]).float().mean() > 0.75
    trained = rates(model, x)
    assert all(0.02 < rate < 0.3 for rate in trained.values()), trained

    model.zero_states()
    with torch.no_grad(), tt.record(model, "lifs.0.mem", "lifs.0.out") as rec:
        model.unroll(x)
    drawn = {
        "raster": plot.raster(rec, name="lifs.0.out").figure,
        "activity": plot.activity(rec["lifs.0.out"][:, 0], rec["lifs.0.mem"][:, 0], 1.0),
        "network": plot.network(after).figure,
        "training": plot.training({"loss": torch.tensor([losses])}).figure,
        "rates": plot.rates(course, band=BAND).figure,
    }
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert imread(tmp_path / f"{name}.png")[..., :3].std() > 0.01, name


def run(model: Deep, x: Tensor) -> Tensor:
    model.zero_states()
    y: Tensor = model.unroll(x)
    return y


def fitted(model: Deep, train: Any) -> tuple[list[float], dict[str, list[float]]]:
    """Three passes over a thousand digits; losses, and every layer's rate, over training."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses: list[float] = []
    course: dict[str, list[float]] = {}
    for epoch in range(3):
        for start in range(0, 1000, 50):
            chosen = slice(start, start + 50)
            x = spikes_of(train.images[chosen], epoch * 1000 + start)
            model.zero_states()
            with tt.record(model, "lifs.*.out", detach=False) as rec:
                y = model.unroll(x)
            loss = snn.losses.count_cross_entropy(y, train.labels[chosen])
            for name, spikes in rec.items():
                loss = loss + snn.regularizers.lower_rate(spikes, 0.02)
                loss = loss + 10 * snn.regularizers.upper_rate(spikes, 0.2, population=True)
                course.setdefault(name, []).append((spikes != 0).float().mean().item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, course


def test_what_is_recorded_is_the_equation_of_the_layer() -> None:
    torch.manual_seed(0)
    linear, lif = nn.Linear(3, 5), snn.LIB(5, 0.8, 0.5)
    x = torch.randn(20, 4, 3) * 3
    with torch.no_grad(), tt.record(lif) as rec:
        lif.unroll(linear(x))
    spikes, membranes = rec["out"], rec["mem"]
    assert 0.1 < spikes.mean() < 0.9
    before = torch.cat([torch.zeros(1, 4, 5), membranes[:-1]])
    charged = 0.8 * before + linear(x).detach()
    torch.testing.assert_close(spikes, (charged > 0.5).float())
    torch.testing.assert_close(membranes, charged - 0.5 * spikes)
