"""What stands between a call of a layer and its timestep, while timesteps are under way at once.

Knows neither layers nor models, only that a thread is in the middle of a model's forward pass.
"""

from __future__ import annotations

import threading
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

    def unroll(self, layer: Any, x: Tensor, resets: Tensor | None) -> Tensor:
        """What the layer's ``unroll`` returns."""
        raise NotImplementedError

    def refuse_states(self, layer: Any) -> None:
        """Raise where the layer's states must not be read or changed from outside now."""
        raise NotImplementedError

    def place(self) -> object:
        """How far what it keeps of the calls has come."""
        return None

    def back(self, place: Any) -> None:
        """Forget the calls that have come since: they have failed, and count as not made."""
        del place


_thread = threading.local()


def under_way() -> bool:
    """Whether this thread is in a forward pass over several timesteps, outside of its layers."""
    return getattr(_thread, "under_way", False)


def active() -> Tensor | None:
    """Which samples of the batch ``[B]`` this thread's timesteps are for; None: for all."""
    found: Tensor | None = getattr(_thread, "active", None)
    return found


class Active:
    """Within it, some samples' sequences are over; theirs are no timesteps any more."""

    def __init__(self, samples: Tensor | None) -> None:
        self._now = samples
        self._before: Tensor | None = None

    def __enter__(self) -> None:
        if not torch.compiler.is_compiling():
            self._before = active()
            _thread.active = self._now

    def __exit__(self, *_: object) -> None:
        if not torch.compiler.is_compiling():
            _thread.active = self._before


class Timesteps:
    """Within it, several timesteps are under way at once, or not any more."""

    def __init__(self, under_way: bool) -> None:
        self._now, self._before = under_way, False

    def __enter__(self) -> None:
        if not torch.compiler.is_compiling():
            self._before = under_way()
            _thread.under_way = self._now

    def __exit__(self, *_: object) -> None:
        if not torch.compiler.is_compiling():
            _thread.under_way = self._before


def refuse_strangers(layer: Any) -> None:
    """Unfoldable where timesteps are under way at once, but the model does not know the layer."""
    if under_way():
        raise Unfoldable(Unfolded.HELD, type(layer).__name__)
