"""Whether a backward pass is the last to need a saved tensor: its memory may then be written to.

A gradient has the size of the sequence that it belongs to, which nobody needs once the gradient is
there: unless the graph is kept for another pass, or somebody else holds the tensor or its memory.
Both is asked of torch, and counted, at the moment itself. What is counted where nobody else does is
found out by trying, once for a process; where a torch does not count, the answer is always no.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch import mode

# bytes below which the C library has the memory anyhow
_LEAST = 128 << 10
_Owners = tuple[int, ...]


def last_use(saved: Sequence[Tensor]) -> bool:
    """Whether nobody will read the first of these again, so that its memory is free to be used.

    Args:
        saved: what the node that is being differentiated has saved, held by nothing but this.
    """
    # never by a name, which would hold it
    if mode.graph_kept() or type(saved[0]) is not Tensor or saved[0].is_leaf:
        return False
    if saved[0].numel() * saved[0].element_size() < _LEAST:
        return False
    if not saved[0].is_contiguous() or saved[0].is_neg():
        return False
    memory = saved[0].untyped_storage()
    # what cannot be resized or is shared belongs to an array, a file or another process
    if not memory.resizable() or memory.is_shared():
        return False
    del memory
    # what hooks have handed out is not held by the graph
    now, alone = _owners(saved), _alone(saved[0]._is_view())
    return len(alone) == len(now) and all(
        count <= most for count, most in zip(now, alone, strict=True)
    )


def _owners(saved: Sequence[Tensor]) -> _Owners:
    """How many hold the first of these, what it is a view of, and their memory."""
    found: list[int] = []
    for tensor in (saved[0], saved[0]._base):
        if tensor is not None:
            found += [sys.getrefcount(tensor), weakref.getweakrefcount(tensor)]
            found.append(mode.owners(tensor))
    memory = saved[0].untyped_storage()
    return (*found, sys.getrefcount(memory), mode.owners(memory))


@functools.cache
def _alone(view: bool) -> _Owners:
    """The same where nobody else does."""
    seen: list[_Owners] = []

    def look() -> None:
        x = torch.ones(1, requires_grad=True) * 2
        x = x.view(1, 1) if view else x
        y: Tensor = _Observed.apply(seen, x)
        del x
        y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]

    # in a thread, in which nobody's hooks and modes are at work
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen[0] if seen else ()


class _Observed(torch.autograd.Function):
    """Notes down who holds what it has saved, in its backward pass."""

    @staticmethod
    def forward(ctx: Any, seen: list[_Owners], x: Tensor) -> Tensor:
        ctx.seen = seen
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        saved = ctx.saved_tensors
        ctx.seen.append(_owners(saved))
        return None, gradients[0]
