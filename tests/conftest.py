"""What the tests across packages share: every layer of the library, and two of a user's own."""

from __future__ import annotations

import doctest
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import tracetorch as tt
from tracetorch import rnn, snn, testing

PAGE = Path(__file__).parents[1] / "docs" / "own-layer.md"
VALUES = {"alpha": 0.4, "beta": 0.8, "gamma": 0.6, "threshold": 0.5, "scale": 0.7}


def _layer_of_the_docs() -> type[tt.Layer]:
    """The class that docs/own-layer.md defines, in an importable module of its own."""
    module = sys.modules["own_layer"] = types.ModuleType("own_layer")
    examples = doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8"))
    defined = next(i for i, e in enumerate(examples) if e.source.startswith("class AdaptiveLIF"))
    exec("".join(example.source for example in examples[: defined + 1]), vars(module))
    kind: type[tt.Layer] = module.AdaptiveLIF
    return kind


KINDS = {
    **{kind.__name__: kind for kind in (*snn.LAYERS, *rnn.LAYERS)},
    "AdaptiveLIF": testing.AdaptiveLIF,
    "the layer of the docs": _layer_of_the_docs(),
}


def _value(name: str, n: int) -> torch.Tensor:
    """A value per neuron, another for each neuron and polarity."""
    value = VALUES.get(name.split("_")[-1], -0.6)
    return value * torch.linspace(0.8, 1.1, n) * (0.9 if name.startswith("neg_") else 1.0)


def _build(name: str, n: int = 4, dim: int = -1) -> tt.Layer:
    """A layer n → n of that name; its neurons differ, and recurrence is on."""
    kind = KINDS[name]
    if issubclass(kind, snn.Layer):
        return kind(n, **{name: _value(name, n) for name in kind.parameter_names()}, dim=dim)
    if kind in rnn.LAYERS:
        return kind(n, n, dim=dim)
    return kind(n, dim=dim)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def build() -> Callable[..., tt.Layer]:
    """``build(name, n=4, dim=-1)``: a layer n → n, all neurons different, recurrence on."""
    return _build


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each of the 40 layers, and of two that a user wrote."""
    return str(request.param)


# ------------------------------------------------------------------ examples


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Callable[..., None]]]:
    """``in_process(script)(*options)``: what it does on its command line, in this process."""

    def main(script: types.ModuleType) -> Callable[..., None]:
        def call(*options: object) -> None:
            monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, options)])
            script.main()

        return call

    threads = torch.get_num_threads()
    yield main
    torch.set_num_threads(threads)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return (
            isinstance(other, (list, tuple))
            and len(one) == len(other)
            and all(map(_equal, one, other))
        )
    return one == other


@pytest.fixture
def equal() -> Callable[[object, object], bool]:
    """``equal(one, other)``: nested dicts, lists and tensors, bit for bit."""
    return _equal
