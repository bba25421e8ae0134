"""Memory for whole sequences, used again: touching fresh pages takes longer than the kernels do.

A freed block waits here for the next sequence of about its size, as on CUDA it would in torch's
caching allocator. ``$TRACETORCH_KEEP_MB`` bounds what waits (0: nothing does); by default it is a
sixteenth of the machine's memory, at most 1 GiB. :func:`empty_cache` gives it all back.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Block = NDArray[np.uint8]

# smaller ones the C library keeps by itself
_LEAST = 128 << 10
_ALIGNED = 64
_KEEP_MB = "TRACETORCH_KEEP_MB"


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty``; on the CPU a large one in memory that was used before."""
    if device.type == "cpu" and (size := math.prod(shape) * dtype.itemsize) >= _LEAST:
        # not a view: what a user writes into in place must be nobody's
        storage = _pool().take(size).untyped_storage()
        return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload, no-any-return]
    return torch.empty(shape, dtype=dtype, device=device)


def empty_cache() -> None:
    """Give the blocks that wait for another sequence back to the system."""
    _pool().trim(0)


def limit() -> int:
    """Bytes that may wait.

    Raises:
        ValueError: ``$TRACETORCH_KEEP_MB`` is no whole number from 0 on.
    """
    chosen = os.environ.get(_KEEP_MB)
    if chosen is None:
        return min(_physical() // 16, 1 << 30)
    if not chosen.isdecimal():
        raise ValueError(f"{_KEEP_MB} must be a whole number of megabytes, got {chosen!r}")
    return int(chosen) << 20


def _physical() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 32


class Pool:
    """Blocks of bytes; what is handed out comes back when the last tensor on it is gone.

    Nothing here counts: a block may come back at any moment, in any thread, even in the middle of
    another method here (from the garbage collector).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()
        self._waiting: list[_Block] = []

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return sum(block.nbytes for block in tuple(self._waiting))

    def take(self, size: int) -> Tensor:
        """``size`` bytes, uninitialised; the rest of their block is lost until they come back."""
        block = self._found(size)
        if block is None:
            block = np.empty(size + _ALIGNED, np.uint8)
        start = -block.ctypes.data % _ALIGNED
        view = block[start : start + size]
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.from_numpy(view)

    def trim(self, limit: int) -> None:
        """Let go of the blocks that have waited longest, until no more than ``limit`` wait."""
        with self._lock:
            while self.waiting > limit:
                self._waiting.pop(0)

    def unlock(self) -> None:
        """Start with a new lock, as the only thread there is."""
        self._lock = threading.RLock()

    def _found(self, size: int) -> _Block | None:
        """The smallest block that fits and is not much too large."""
        with self._lock:
            fitting = [b for b in self._waiting if size <= b.nbytes - _ALIGNED <= size + size // 4]
            if not fitting:
                return None
            best = min(fitting, key=len)
            self._waiting[:] = [block for block in self._waiting if block is not best]
            return best

    def _give_back(self, block: _Block) -> None:
        with self._lock:
            self._waiting.append(block)
            self.trim(self._limit)


@functools.cache
def _pool() -> Pool:
    pool = Pool(limit())
    if hasattr(os, "register_at_fork"):  # a thread that the child does not have may hold it
        os.register_at_fork(after_in_child=pool.unlock)
    return pool
