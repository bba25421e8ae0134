"""Products with a matrix that add the rows of those inputs that are not zero. Knows no module.

The weights are read as they lie in memory, input after input, and are never copied. Whether there
are few enough events is counted in the input at each call; it depends on nothing else, so that
the same input gives the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from tracetorch.engine import build, memory
from tracetorch.engine.cpp import header

ENTRIES = {torch.float32: "run_float", torch.float64: "run_double"}
# weights below which a call costs more than it saves, and outputs below which rows are too short
SMALLEST, NARROWEST = 1 << 16, 32
# up to so many samples, up to what share of inputs events are faster; and with more samples
_SHARES, _SHARE = ((16, 1.0), (64, 0.5)), 0.3
# samples from which memory for the outputs is kept from call to call
_MANY = 17

_threads = torch.get_num_threads
_pack, _pack_sizes = struct.Struct("4P").pack, struct.Struct("4q").pack


def most(samples: int, inputs: int) -> int:
    """Up to how many inputs that are not zero a product goes by events."""
    share = next((share for up_to, share in _SHARES if samples <= up_to), _SHARE)
    return int(share * samples * inputs)


def prepare() -> None:
    """Compile the kernels, or have them from the cache.

    Raises:
        BuildError: they cannot be compiled or loaded here.
    """
    for dtype in ENTRIES:
        _kernel(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``x @ weight.T + bias`` by events; None where there are too many.

    Args:
        x: ``[…, inputs]``, contiguous, on the CPU, of a type in ``ENTRIES``.
        weight: ``[outputs, inputs]`` of the same type, of strides ``(1, outputs)``.
        bias: ``[outputs]``, contiguous.
    """
    outputs, inputs = weight.shape
    samples, dtype = x.numel() // inputs, x.dtype
    shape = [*x.shape]
    shape[-1] = outputs
    y = memory.empty(shape, dtype, x.device) if samples >= _MANY else x.new_empty(*shape)
    pointers = _pack(
        x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr()
    )
    given = _pack_sizes(samples, inputs, outputs, most(samples, inputs))
    return y if _kernel(dtype)(pointers, given, _threads()) else None


@functools.cache
def _kernel(dtype: torch.dtype) -> Callable[[bytes, bytes, int], int]:
    source = f"#include <vector>\n{header('prelude.h')}\n{header('events.h')}"
    run: Callable[[bytes, bytes, int], int] = getattr(build.library(source), ENTRIES[dtype])
    run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)  # type: ignore[attr-defined]
    run.restype = ctypes.c_int64  # type: ignore[attr-defined]
    return run
