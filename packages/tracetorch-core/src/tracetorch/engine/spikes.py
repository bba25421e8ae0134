"""Spikes as bits: tensors of nothing but 0, 1 and -1, and back, bit for bit.

Whether a tensor is one is not declared but looked at, value for value, while it is packed: what
has any other value, a negative zero too, stays as it is.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.engine import build, memory
from tracetorch.engine.cpp import header
from tracetorch.engine.launch import BuildError

# bytes below which there is nothing to gain
LEAST = 128 << 10
_BITS = 32

# of each type the unsigned integer as wide, and 1 and a sign alone as one
_WORDS = {
    torch.float32: ("uint32_t", "0x3f800000u", "0x80000000u"),
    torch.float64: ("uint64_t", "0x3ff0000000000000u", "0x8000000000000000u"),
    torch.bfloat16: ("uint16_t", "0x3f80u", "0x8000u"),
    torch.float16: ("uint16_t", "0x3c00u", "0x8000u"),
}
_Run = Callable[[Tensor, Tensor, Tensor | None, tuple[int, int, int]], None]


@dataclass(frozen=True, eq=False)
class Spikes:
    """A tensor of spikes, in one or two bits each.

    Attributes:
        planes: where it is not zero and, if it has negative ones, where it is negative.
        shape: of the tensor.
        dtype: of the tensor.
    """

    planes: Tensor
    shape: torch.Size
    dtype: torch.dtype

    def unpacked(self) -> Tensor:
        """The tensor, in memory of its own."""
        made = memory.empty(self.shape, self.dtype, self.planes.device)
        sizes = made.numel(), self.planes.shape[1], len(self.planes)
        _runner(self.dtype)(made, self.planes, None, sizes)
        return made


def packed(tensor: Tensor) -> Spikes | None:
    """The tensor as bits; None where it is not on the CPU in one piece, small, or no spikes."""
    if tensor.device.type != "cpu" or tensor.dtype not in _WORDS or not tensor.is_contiguous():
        return None
    if tensor.numel() * tensor.element_size() < LEAST or tensor.is_neg():
        return None
    try:
        run = _runner(tensor.dtype)
    except BuildError:
        return None
    words = -(-tensor.numel() // _BITS)
    planes = torch.empty(2, words, dtype=torch.int32)
    found = torch.zeros(2, dtype=torch.int32)
    run(tensor, planes, found, (tensor.numel(), words, 0))
    other, negative = found.tolist()
    if other:
        return None
    return Spikes(planes if negative else planes[:1].clone(), tensor.shape, tensor.dtype)


@functools.cache
def _runner(dtype: torch.dtype) -> _Run:
    """Packs and unpacks; BuildError where nothing can be compiled."""
    word, one, top = _WORDS[dtype]
    types = f"typedef {word} word;\nstatic const word ONE = {one}, TOP = {top};\n"
    run = build.entry_point(f"{header('prelude.h')}\n{types}\n{header('spikes.h')}")

    def started(
        values: Tensor, planes: Tensor, found: Tensor | None, sizes: tuple[int, int, int]
    ) -> None:
        addresses = [0 if t is None else t.data_ptr() for t in (values, planes, found)]
        run(struct.pack("3P", *addresses), struct.pack("3q", *sizes), torch.get_num_threads())

    return started
