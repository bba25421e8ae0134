"""What stands between a call of a layer and its timestep, while timesteps are under way at once.

Knows neither layers nor models, only that a thread is in the middle of a model's forward pass.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from tracetorch.reasons import Unfoldable, Unfolded


class Passage(Protocol):
    """What calls of a layer go through instead of its timestep.

    Attributes:
        transparent: it only looks on: the timestep is one like any other.
    """

    transparent: bool

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """What a call of the layer returns."""
        raise NotImplementedError

    def unroll(self, layer: Any, x: Tensor) -> Tensor:
        """What the layer's ``unroll`` returns."""
        raise NotImplementedError

    def refuse_states(self, layer: Any) -> None:
        """Raise where the layer's states must not be read or changed from outside now."""
        raise NotImplementedError


_thread = threading.local()


def under_way() -> bool:
    """Whether this thread is in a forward pass over several timesteps, outside of its layers."""
    return getattr(_thread, "under_way", False)


@contextlib.contextmanager
def timesteps(under_way: bool) -> Iterator[None]:
    """Within it, several timesteps are under way at once, or not any more."""
    if torch.compiler.is_compiling():
        yield
        return
    before, _thread.under_way = getattr(_thread, "under_way", False), under_way
    try:
        yield
    finally:
        _thread.under_way = before


def refuse_strangers(layer: Any) -> None:
    """Unfoldable where timesteps are under way at once, but the model does not know the layer."""
    if under_way():
        raise Unfoldable(Unfolded.HELD, type(layer).__name__)
