"""What the specification says of each layer's name, and random layers to test with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tracetorch import snn

NAME = re.compile(r"(D?)(S?)(R?)LI(EMA|B|TS|T)?")
DEFAULTS = {"alpha": 0.5, "beta": 0.9, "gamma": 0.9, "threshold": 1.0, "scale": 1.0}
DRAWN = {"alpha": (0.3, 0.9), "beta": (0.5, 0.95), "gamma": (0.3, 0.9), "threshold": (0.2, 0.6)}


@dataclass(frozen=True)
class Anatomy:
    """A layer read off the letters of its name (dynamics.md, section 4)."""

    dual: bool
    synapse: bool
    recurrent: bool
    suffix: str

    @classmethod
    def of(cls, name: str) -> Anatomy:
        found = NAME.fullmatch(name)
        assert found, name
        dual, synapse, recurrent, suffix = found.groups()
        return cls(bool(dual), bool(synapse), bool(recurrent), suffix or "")

    @property
    def fires(self) -> bool:
        return self.suffix in ("B", "T", "TS")

    def _halves(self, name: str) -> list[str]:
        return [f"pos_{name}", f"neg_{name}"] if self.dual else [name]

    @property
    def parameters(self) -> dict[str, float]:
        """Names in the constructor's order, with their defaults."""
        names = [*self._halves("alpha")] if self.synapse else []
        names += self._halves("beta")
        names += self._halves("gamma") if self.recurrent else []
        names += ["threshold"] if self.suffix == "B" else []
        names += ["pos_threshold", "neg_threshold"] if self.suffix in ("T", "TS") else []
        names += ["pos_scale", "neg_scale"] if self.suffix == "TS" else []
        names += self._halves("rec_weight") if self.recurrent else []
        return {name: DEFAULTS.get(name.split("_")[-1], 0.0) for name in names}

    @property
    def states(self) -> set[str]:
        names = ["mem", *["syn"] * self.synapse, *["rec"] * self.recurrent]
        return {half for name in names for half in self._halves(name)} | (
            {"prev_output"} if self.recurrent else set()
        )


def _draw(name: str, rng: np.random.Generator, size: tuple[int, ...]) -> torch.Tensor:
    low, high = DRAWN.get(name.split("_")[-1], (0.3, 1.3))
    value = rng.uniform(low, high, size)
    if name.endswith("rec_weight"):
        value *= rng.choice([-1.0, 1.0], size)
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(scope="session")
def anatomy() -> Callable[[type[snn.Layer]], Anatomy]:
    return lambda cls: Anatomy.of(cls.__name__)


@pytest.fixture(scope="session")
def build() -> Callable[..., snn.Layer]:
    """A layer whose parameters all differ, in float64 unless asked otherwise.

    ``equal_halves`` gives both polarities of a dual layer the values of the single one.
    """

    def make(
        cls: type[snn.Layer],
        n: int = 4,
        *,
        rank: int = 1,
        learn: bool = True,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        equal_halves: bool = False,
        **others: object,
    ) -> snn.Layer:
        anatomy = Anatomy.of(cls.__name__)
        size = (n,) if rank else ()
        arguments: dict[str, object] = {}
        for name in anatomy.parameters:
            split = name.removeprefix("pos_").removeprefix("neg_")
            shared = equal_halves and split not in ("threshold", "scale")
            key = split if shared else name
            rng = np.random.default_rng([seed, *key.encode()])
            arguments |= {name: _draw(key, rng, size), f"learn_{name}": learn}
        layer: snn.Layer = cls(n, **arguments, **others)
        return layer.to(dtype)

    return make
