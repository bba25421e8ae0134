"""The process's generators of random numbers, left where they were by what is only tried out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def left_alone(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Within it, torch, Python and NumPy may draw; afterwards their generators are as before.

    Args:
        devices: CUDA devices whose generators may be drawn from, besides the CPU's.
    """
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device.index for device in devices if device.type == "cuda"]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def watched() -> Iterator[list[str]]:
    """The list, once it is left, of those that have moved within it."""
    before = _places()
    moved: list[str] = []
    yield moved
    moved += [name for name, place in _places().items() if place != before[name]]


def everywhere() -> dict[str, Any]:
    """Where they are, as plain values: torch's of every device, Python's and NumPy's."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
    }


def put_back(places: dict[str, Any]) -> None:
    """Where :func:`everywhere` found them; those of devices that are not here are left out."""
    torch.set_rng_state(places["torch"])
    if torch.cuda.is_available():
        for device, place in enumerate(places["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(place, device)
    random.setstate(places["python"])
    kind, keys, *rest = places["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def _places() -> dict[str, Any]:
    return {
        "the random numbers of Python": random.getstate(),
        "the random numbers of NumPy": str([*map(_plain, np.random.get_state())]),
        "the random numbers of torch": torch.get_rng_state().numpy().tobytes(),
    }


def _plain(part: Any) -> Any:
    return part.tobytes() if isinstance(part, np.ndarray) else part
