"""Activation checkpointing: the recomputation starts from the states the forward pass had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tracetorch import choice
from tracetorch.layer import Layer
from tracetorch.layer_states import States
from tracetorch.passage import Passage, Timesteps, under_way
from tracetorch.recomputation import restoring
from tracetorch.walk import named_layers

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


class _Standing(NamedTuple):
    """What a layer's call goes by."""

    states: States
    passage: Passage | None


class _Forward(NamedTuple):
    """What a forward pass went by: the layers, whether time was folded, the backend chosen."""

    layers: dict[Layer, _Standing]
    folded: bool
    backend: str


def restored_states(module: nn.Module) -> Callable[[], Contexts]:
    """The ``context_fn`` with which ``torch.utils.checkpoint`` may recompute ``module``.

    Checkpointing runs a forward pass twice; without this, the second run would start from the
    states the first one left. A layer that is recomputed without it raises ``RuntimeError``.
    Torch's normalizations take the statistics of the batch again, and leave their running ones
    alone. What else a forward pass may keep (attributes, buffers) is not put back: hold it in a
    state.

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

    Source: Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174, for the
    recomputation.
    """

    def contexts() -> Contexts:
        recorded: list[_Forward] = []

        @contextmanager
        def record() -> Iterator[None]:
            recorded[:] = [_Forward(_standing(module), under_way(), choice.chosen())]
            yield

        @contextmanager
        def restore() -> Iterator[None]:
            before = _standing(module)
            then = recorded[0] if recorded else _Forward(before, False, choice.chosen())
            for layer in before:
                # a layer that the forward pass itself made had no states before it
                new = _Standing(dict.fromkeys(layer.tt.states), None)
                layer.tt.states, layer.tt.passage = then.layers.get(layer, new)
            try:
                with ExitStack() as stack:
                    stack.enter_context(restoring(before))
                    stack.enter_context(Timesteps(then.folded))
                    stack.enter_context(choice.choosing(then.backend))
                    stack.enter_context(statistics_kept(normalizations(module)))
                    yield
            finally:
                for layer, standing in before.items():
                    layer.tt.states, layer.tt.passage = standing

        return _Reusable(record), _Reusable(restore)

    return contexts


def _standing(module: nn.Module) -> dict[Layer, _Standing]:
    return {
        layer: _Standing(layer.tt.states, layer.tt.passage) for _, layer in named_layers(module)
    }


def normalizations(module: nn.Module) -> list[nn.Module]:
    """Those of torch in it that keep running statistics."""
    return [part for part in module.modules() if isinstance(part, _NormBase)]


@contextmanager
def statistics_kept(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, normalizations of torch in training write into copies of their statistics.

    Nothing is written back afterwards: torch would count that, and refuse what was saved before.
    """
    found = [part for part in norms if part.training]
    before = [dict(part._buffers) for part in found]
    for part in found:
        held = part._buffers.items()
        part._buffers.update({n: None if b is None else b.clone() for n, b in held})
    try:
        yield
    finally:
        for part, buffers in zip(found, before, strict=True):
            part._buffers.update(buffers)


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
