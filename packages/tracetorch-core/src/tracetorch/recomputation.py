"""Whose states are as they were, for a forward pass that runs again within a backward pass."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_local = threading.local()


def restored() -> frozenset[nn.Module]:
    """The layers whose states this thread has put back for a recomputation."""
    return getattr(_local, "restored", frozenset())


@contextmanager
def restoring(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, these may be recomputed."""
    outer = restored()
    _local.restored = outer.union(layers)
    try:
        yield
    finally:
        _local.restored = outer


def recomputing() -> bool:
    """Whether this thread is in a backward pass."""
    return torch._C._current_graph_task_id() != -1


def refuse_plain_recomputation(layer: nn.Module) -> None:
    """RuntimeError where a layer is called inside a backward pass with unrestored states."""
    if recomputing() and layer not in restored():
        raise RuntimeError(
            f"{layer!r} is recomputed in a backward pass from states that have moved on; "
            f"checkpoint with use_reentrant=False, context_fn=tt.restored_states(model)"
        )
