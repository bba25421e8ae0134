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
from tracetorch.engine.operators import SAVING, TAKING
from tracetorch.engine.spikes import Spikes, packed


class _Kept:
    """A tensor that is kept as it is, or lent to a kernel, which asks for it once.

    Torch does not look whether it was written into since, as it does where no hooks are.
    """

    def __init__(self, tensor: Tensor, lent: bool) -> None:
        self._tensor: Tensor | None = tensor
        self._lent, self._version = lent, tensor._version

    def given(self) -> Tensor | None:
        """The tensor; given away, so that the kernel may use its memory, the last time.

        Raises:
            RuntimeError: it was written into since.
        """
        tensor = self._tensor
        if tensor is not None and tensor._version != self._version:
            raise RuntimeError(
                f"one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a {tensor.dtype} tensor {list(tensor.shape)} is at version "
                f"{tensor._version}; expected version {self._version} instead"
            )
        if self._lent and TAKING.now and not mode.graph_kept():
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
            return _Kept(tensor, lent=False)
        return packed(tensor) or _Kept(tensor, lent=SAVING.now)

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


def _unpack(saved: Any) -> Any:
    return saved.unpacked() if isinstance(saved, Spikes) else saved.given()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _plain(tensor: Tensor) -> bool:
    """Whether it has memory of its own, and that is all."""
    return type(tensor) in mode.PLAIN and tensor.layout is torch.strided
