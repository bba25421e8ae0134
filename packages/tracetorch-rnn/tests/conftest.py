"""What the tests share: small layers of every kind in float64, driven step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from tracetorch import rnn

MAKERS: dict[str, Callable[..., rnn.Layer]] = {
    "SimpleRNN": rnn.SimpleRNN,
    "LSTM": rnn.LSTM,
    "GRU": rnn.GRU,
    "SelectiveSSM": rnn.SelectiveSSM,
    "S4D": rnn.S4D,
    "S5": rnn.S5,
    "LRU": rnn.LRU,
    "Mamba": rnn.Mamba,
}
EXTRA: dict[str, dict[str, int]] = {
    "SelectiveSSM": {"state_size": 2, "dt_rank": 2},
    "S4D": {"d_state": 4},
    "S5": {"d_state": 4},
    "LRU": {"d_state": 3},
    "Mamba": {"d_state": 2, "d_conv": 3, "dt_rank": 2},
}


def _small(name: str, dim: int = -1) -> rnn.Layer:
    return MAKERS[name](3, 4, dim=dim, **EXTRA.get(name, {}))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small() -> Callable[..., rnn.Layer]:
    """``small(name, dim=-1)``: a layer 3 → 4."""
    return _small


@pytest.fixture
def layer(name: str) -> rnn.Layer:
    """Each layer 3 → 4 in turn, float64."""
    return _small(name).double()


@pytest.fixture
def stepped() -> Callable[[rnn.Layer, Tensor], Tensor]:
    """``stepped(layer, x)``: the outputs of calling it on ``x[0], x[1], …``."""
    return lambda layer, x: torch.stack([layer(timestep) for timestep in x])
