"""Time folded into the batch: a model's ``forward`` once for a whole sequence.

Modules without memory see ``[T·B, …]``; each layer unfolds time, runs its own sequence and folds
back. Whether that is the loop's answer was decided before; what can still be noticed on the way (a
layer called twice, its states read, another first dimension) is raised.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from tracetorch.layer import Layer
from tracetorch.passage import Passage, Timesteps
from tracetorch.reasons import Unfoldable, Unfolded
from tracetorch.sequences.assembling import mapped
from tracetorch.states import alike


class Fold(Passage):
    """How many timesteps of how many samples are folded together; what layers are called through.

    Args:
        steps: T.
        batch: B.
        below: what the layers' calls went through before, of each.
        resets: before which timesteps which samples restart, ``[T, B]``.
    """

    transparent = False

    def __init__(
        self,
        steps: int,
        batch: int,
        below: dict[Layer, Passage | None],
        resets: Tensor | None,
    ) -> None:
        self._steps, self._batch, self._below, self._resets = steps, batch, below, resets
        self._used = _Used(self)
        self._thread = None if torch.compiler.is_compiling() else threading.get_ident()

    def apart(self, x: Any) -> Tensor:
        """``[T·B, …]`` → ``[T, B, …]``."""
        if not isinstance(x, Tensor) or x.shape[:1] != (self._steps * self._batch,):
            got = list(x.shape) if isinstance(x, Tensor) else repr(x)
            raise Unfoldable(Unfolded.BATCH, got, f"{self._steps}·{self._batch}")
        return x.reshape(self._steps, self._batch, *x.shape[1:])

    def output(self, leaf: Any) -> Tensor:
        """An output of ``forward``, the same."""
        if not isinstance(leaf, Tensor):
            raise Unfoldable(Unfolded.OUTPUTS)
        return self.apart(leaf)

    def refuse(self, layer: Any, why: Unfolded) -> NoReturn:
        """Unfoldable; RuntimeError in another thread, which has nothing to do with that."""
        if self._thread is not None and self._thread != threading.get_ident():
            raise RuntimeError(in_use(layer))
        raise Unfoldable(why, type(layer).__name__)

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """All timesteps, in the layer's own order of time."""
        if self._thread is not None and self._thread != threading.get_ident():
            raise RuntimeError(in_use(layer))
        steps = self.apart(x)
        layer.tt.passage = self._below[layer]
        with Timesteps(under_way=False):
            resets = () if self._resets is None else (self._resets,)
            y: Tensor = layer.unroll(steps, *resets)
        layer.tt.passage = self._used
        return y.flatten(0, 1)

    def unroll(self, layer: Any, x: Tensor, resets: Tensor | None) -> Tensor:
        """Unfoldable: there is no timestep to do it in."""
        self.refuse(layer, Unfolded.WITHIN)

    def refuse_states(self, layer: Any) -> None:
        """Unfoldable: there is no state of this timestep."""
        self.refuse(layer, Unfolded.STATES)


class _Used(Passage):
    """Stands where a layer has been called already."""

    transparent = False

    def __init__(self, fold: Fold) -> None:
        self._fold = fold

    def call(self, layer: Any, x: Tensor) -> Tensor:
        self._fold.refuse(layer, Unfolded.TWICE)

    def unroll(self, layer: Any, x: Tensor, resets: Tensor | None) -> Tensor:
        self._fold.refuse(layer, Unfolded.WITHIN)

    def refuse_states(self, layer: Any) -> None:
        self._fold.refuse(layer, Unfolded.STATES)


def in_use(what: object) -> str:
    """What to say to a second thread."""
    return (
        f"{type(what).__name__} is in use in another thread: its states are of one sequence; give "
        f"each thread a model of its own, as with copy.deepcopy(model)"
    )


def folded(
    forward: Callable[[Tensor], Any],
    layers: Sequence[Layer],
    x: Tensor,
    resets: Tensor | None = None,
) -> Any:
    """``forward`` over ``x`` ``[T, B, …]`` at once, outputs ``[T, B, …]``.

    Args:
        forward: the model's, of one timestep.
        layers: those that unfold time; their states are the caller's to restore.
        x: a sequence, time first, batch second.
        resets: before which timesteps which samples restart, ``[T, B]``.

    Raises:
        Unfoldable: see the module.
    """
    refuse_flat(x)
    below = {layer: layer.tt.passage for layer in layers}
    fold = Fold(x.shape[0], x.shape[1], below, resets)
    for layer in layers:
        layer.tt.passage = fold
    try:
        with Timesteps(under_way=True):
            outputs = forward(x.flatten(0, 1))
        uncalled = [layer for layer in layers if layer.tt.passage is fold]
        outputs = _owned(mapped(fold.output, outputs), x)
    finally:
        for layer in layers:
            layer.tt.passage = below[layer]
    if resets is not None:
        for layer in uncalled:
            layer.zero_states(resets.any(0))
    return outputs


def refuse_flat(x: Tensor) -> None:
    """Unfoldable where a timestep has no batch."""
    if x.ndim < (3 if x.is_floating_point() else 2):
        raise Unfoldable(Unfolded.FLAT)


def _owned(outputs: Any, x: Tensor) -> Any:
    """Outputs as those of a loop, which share no memory with the input or with one another."""
    taken = [x]

    def own(output: Tensor) -> Tensor:
        taken.append(output.clone() if any(alike(output, t) for t in taken) else output)
        return taken[-1]

    return outputs if torch.compiler.is_compiling() else mapped(own, outputs)
