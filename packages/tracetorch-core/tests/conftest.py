"""What the core's tests share: the sample layers of ``tracetorch.testing``, and how to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import tracetorch as tt
from tracetorch import testing

hypothesis.settings.register_profile("core", deadline=None, print_blob=True, max_examples=60)
hypothesis.settings.load_profile("core")

MAKERS: dict[str, Callable[..., tt.Layer]] = {
    "Trace": testing.Trace,
    "AdaptiveLIF": testing.AdaptiveLIF,
    "StateSpace": testing.StateSpace,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[..., tt.Layer]:
    """Each of the three sample layers in turn: ``make(num_neurons, dim=…)``."""
    return MAKERS[request.param]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=[".safetensors", ".pt"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where to save states: in each of the two formats."""
    return tmp_path / f"states{request.param}"
