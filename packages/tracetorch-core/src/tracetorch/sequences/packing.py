"""Spikes that autograd keeps for the backward pass, kept as bits.

Hooks of torch for saved tensors, at work while timesteps are; they stand back where others are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.engine.operators import SAVING
from tracetorch.engine.spikes import Spikes, packed


class _Lent:
    """What a kernel needs as it is, and asks for once in a backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor

    def given(self) -> Tensor | None:
        """The tensor; given away, so that the kernel may use its memory, the last time."""
        tensor = self._tensor
        if not mode.graph_kept():
            self._tensor = None
        return tensor


@contextlib.contextmanager
def packing(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Within it, what autograd saves of spikes is saved in one or two bits each.

    Args:
        model: whose parameters and buffers stay in memory anyhow.
        x: the same of the input.
    """
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not mode.undisturbed()
        or not mode.saved_as_they_are()
    ):
        yield
        return
    everything = (x, *model.parameters(), *model.buffers())
    standing = {_address(tensor) for tensor in everything if _plain(tensor)}

    def pack(tensor: Tensor) -> Any:
        if not _plain(tensor) or _address(tensor) in standing:
            return tensor
        spikes = packed(tensor)
        if spikes is None and SAVING.now:
            return _Lent(tensor)
        return tensor if spikes is None else spikes

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


def _unpack(saved: Any) -> Any:
    if isinstance(saved, Spikes):
        return saved.unpacked()
    return saved.given() if isinstance(saved, _Lent) else saved


def _plain(tensor: Tensor) -> bool:
    """Whether it has memory of its own, and that is all."""
    return type(tensor) in mode.PLAIN and tensor.layout is torch.strided


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
