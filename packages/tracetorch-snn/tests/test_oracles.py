"""One LIF neuron against the recordings of other simulators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import snn

DT, TAU, THRESHOLD, ROWS = 1e-4, 2.5e-3, 0.1, 1000
INPUT_AT = [60, 220, 270, 310, 320, 350, 370, 400, 410, *range(430, 531, 10)]
INPUT_AT += [*range(670, 781, 10), 840, 850]
SUBTRACTIVE, TO_VALUE = [450, 500, 710, 760], [460, 510, 710, 760]


class ResetLIF(tt.Layer):
    """Euler update, reset to zero: a layer of one's own."""

    def __init__(
        self, num_neurons: int, beta: Any = 1 - DT / TAU, threshold: Any = THRESHOLD, dim: int = -1
    ) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem")
        self.add_parameter("beta", beta, constraint=tt.constraints.sigmoid)
        self.add_parameter("threshold", threshold, constraint=tt.constraints.softplus)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        mem = p.beta * states.mem + (1 - p.beta) * x
        spike = (mem > p.threshold).to(mem.dtype)
        return {"mem": torch.where(spike > 0, 0.0, mem)}, spike


def exact(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def subtractive() -> tuple[tt.Layer, float]:
    """v·e^(−dt/τ) + (dt/τ)·x; the input carries the factor."""
    return snn.LIB(1, exact(math.exp(-DT / TAU)), exact(THRESHOLD)), DT / TAU


def to_value() -> tuple[tt.Layer, float]:
    return ResetLIF(1, exact(1 - DT / TAU), exact(THRESHOLD)), 1.0


def record(layer: tt.Layer, scale: float) -> tuple[list[float], list[int]]:
    inputs = torch.zeros(ROWS, 1, dtype=torch.float64)
    inputs[INPUT_AT] = scale
    membranes, spikes = [], []
    for at, x in enumerate(inputs):
        if layer(x).item():
            spikes.append(at)
        membranes.append(layer.get_states()["mem"].item())
    return membranes, spikes


@pytest.mark.parametrize(
    ("make", "rows"), [(subtractive, SUBTRACTIVE), (to_value, TO_VALUE)], ids=["subtract", "reset"]
)
def test_fires_in_the_recorded_rows(make: Any, rows: list[int]) -> None:
    assert record(*make())[1] == rows


@pytest.fixture
def recordings() -> Path:
    for folder in Path(__file__).resolve().parents:
        found = folder / "shared" / "oracles" / "nir"
        if found.is_dir():
            return found
    pytest.skip("no shared/oracles/nir above this repository: the recordings are kept outside it")


@pytest.mark.parametrize(
    ("file", "make"), [("lif_rockpool.csv", subtractive), ("lif_norse.csv", to_value)]
)
def test_membrane_follows_the_recording(recordings: Path, file: str, make: Any) -> None:
    """The recordings were computed in float32, whose next number above 0.1 is 7e-9 away."""
    inputs, membrane, spikes = np.loadtxt(recordings / file, delimiter=",").T
    assert np.flatnonzero(inputs).tolist() == INPUT_AT
    got, rows = record(*make())
    assert rows == np.flatnonzero(spikes).tolist()
    np.testing.assert_allclose(got, membrane, rtol=0, atol=5e-8)
