"""Activation checkpointing: the recomputation starts from the states the forward pass had."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tracetorch.keeping import Kept

if TYPE_CHECKING:
    from tracetorch.folding import Fold
    from tracetorch.layer import Layer

_local = threading.local()

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def restored_states(module: nn.Module) -> Callable[[], Contexts]:
    """The ``context_fn`` with which ``torch.utils.checkpoint`` may recompute ``module``.

    Checkpointing runs a forward pass twice; without this, the second run would start from the
    states the first one left. A layer that is recomputed without it raises ``RuntimeError``. What
    else can be reached from the module's modules (attributes, containers, buffers, generators of
    random numbers) is as it was, too, and afterwards as the forward pass left it; but not which
    modules there are, where the forward pass makes some.

    Args:
        module: a model, a layer, or any module that contains layers.

    Example:
        >>> import torch, tracetorch as tt
        >>> from torch.utils.checkpoint import checkpoint
        >>> class Decay(tt.Layer):
        ...     def __init__(self, n):
        ...         super().__init__(n)
        ...         self.add_state("mem")
        ...         self.add_parameter("beta", 0.5, constraint=tt.constraints.sigmoid)
        ...     def step(self, states, x, p):
        ...         mem = p.beta * states.mem + x
        ...         return {"mem": mem}, mem
        >>> layer, x = Decay(1), torch.ones(1, 1, requires_grad=True)
        >>> y = checkpoint(layer, x, use_reentrant=False, context_fn=tt.restored_states(layer))
        >>> y.sum().backward()
        >>> x.grad
        tensor([[1.]])
    """
    from tracetorch.walk import named_layers

    def contexts() -> Contexts:
        recorded: dict[Layer, _Standing] = {}
        attributes: list[Kept] = []

        @contextmanager
        def record() -> Iterator[None]:
            recorded.update({layer: _standing(layer) for _, layer in named_layers(module)})
            attributes[:] = [Kept(module.modules(), copies="no parameters", draws=True)]
            yield

        @contextmanager
        def restore() -> Iterator[None]:
            standing = {layer: _standing(layer) for _, layer in named_layers(module)}
            # also of what is written in place: a batch norm counts a batch once
            now = Kept(module.modules(), copies="no parameters", draws=True)
            for kept in attributes:
                kept.rewind()
            for layer in standing:
                # a layer that the forward pass itself made had no states before it
                new = (dict.fromkeys(layer._states), None)
                layer._states, layer._fold = recorded.get(layer, new)
            outer = _restored()
            _local.restored = outer | standing.keys()
            try:
                yield
            finally:
                now.restore()
                _local.restored = outer
                for layer, before in standing.items():
                    layer._states, layer._fold = before

        return _Reusable(record), _Reusable(restore)

    return contexts


# a layer's states, and how time is folded into its batch
_Standing = tuple[dict[str, Tensor | None], "Fold | None"]


def _standing(layer: Layer) -> _Standing:
    return layer._states, layer._fold


class _Reusable(AbstractContextManager[None]):
    """Enters a new context each time: a retained graph is recomputed in every backward pass."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._entered.pop().__exit__(kind, error, trace)


def _restored() -> frozenset[nn.Module]:
    """The layers whose states this thread has restored for a recomputation."""
    return getattr(_local, "restored", frozenset())


def refuse_plain_recomputation(layer: nn.Module) -> None:
    """RuntimeError where a layer is called inside a backward pass with unrestored states."""
    if torch.compiler.is_compiling():
        return
    if torch._C._current_graph_task_id() != -1 and layer not in _restored():
        raise RuntimeError(
            f"{layer!r} is recomputed in a backward pass from states that have moved on; "
            f"checkpoint with use_reentrant=False, context_fn=tt.restored_states(model)"
        )
