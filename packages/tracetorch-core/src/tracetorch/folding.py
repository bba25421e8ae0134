"""Time folded into the batch: a model's ``forward`` once for a whole sequence.

Modules without memory see ``[T·B, …]``; each layer that is marked for it unfolds time, runs its
own sequence and folds back. What cannot be folded is noticed where that is possible: a layer
called twice or not held by the model, its states read or changed, anything else changed that can
be reached from the model, values looked at, another first dimension, hooks. Knows layers, no model.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tracetorch.engine.admission import hooked
from tracetorch.keeping import Kept
from tracetorch.looking import Blind, Looked
from tracetorch.states import alike


class Unfoldable(BaseException):
    """A forward pass cannot take a whole sequence at once; the message says why.

    Not for what surrounds a layer in the user's ``forward`` to handle.
    """


class Fold(NamedTuple):
    """How many timesteps of how many samples are folded together.

    ``kept``: what a layer that unfolds them is to have been left as, but by itself.
    """

    steps: int
    batch: int
    kept: Kept

    def apart(self, x: Any) -> Tensor:
        """``[T·B, …]`` → ``[T, B, …]``."""
        if not isinstance(x, Tensor) or x.shape[:1] != (self.steps * self.batch,):
            got = list(x.shape) if isinstance(x, Tensor) else repr(x)
            raise Unfoldable(
                f"a value of {got} does not have the {self.steps}·{self.batch} timesteps and "
                f"samples at dimension 0"
            )
        return x.reshape(self.steps, self.batch, *x.shape[1:])


# what a layer's mark becomes once it has been called
USED = Fold(0, 0, Kept(()))

_thread = threading.local()


def under_way() -> bool:
    """Whether this thread is in a forward pass over folded time, outside of the marked layers."""
    return getattr(_thread, "folded", False)


@contextlib.contextmanager
def time_is(folded: bool) -> Iterator[None]:
    """Says within which code time is folded into the batch, and within which it is not."""
    if torch.compiler.is_compiling():
        yield
        return
    before, _thread.folded = under_way(), folded
    try:
        yield
    finally:
        _thread.folded = before


def folded(
    forward: Callable[[Tensor], Any],
    kept: Kept,
    layers: Mapping[Any, Kept],
    x: Tensor,
) -> Any:
    """``forward`` over ``x`` ``[T, B, …]`` at once, outputs ``[T, B, …]``.

    Args:
        forward: the model's, of one timestep.
        kept: what must stay as it is.
        layers: those that unfold time, each with what of it only itself may change; their states
            are the caller's to restore.
        x: a sequence, time first, batch second.

    Raises:
        Unfoldable: see the module; what was kept is as it was before.
        RuntimeError: ``forward`` wrote into tensors of which there are no copies.
    """
    if x.ndim < (3 if x.is_floating_point() else 2):
        raise Unfoldable("a timestep has no batch dimension to fold time into")
    fold = Fold(x.shape[0], x.shape[1], kept)
    for layer, own in layers.items():
        layer._fold = fold._replace(kept=own)
    try:
        with time_is(folded=True):
            outputs = forward(x.flatten(0, 1))
        if not all(isinstance(leaf, Tensor) for leaf in tree_leaves(outputs)):
            raise Unfoldable("forward returns something else than tensors")
        apart = _owned(tree_map(fold.apart, outputs), x)
    except BaseException:
        kept.restore()
        raise
    finally:
        for layer in layers:
            layer._fold = None
    watched = [kept, *layers.values()]
    if changed := _changed(watched):
        for one in watched:
            one.restore()
        if lost := _changed(watched):
            raise RuntimeError(
                f"forward wrote into {', '.join(lost)} for the first time, over a whole sequence "
                f"at once; hold it in a state of a tt.Layer, or call the model step by step"
            )
        raise Unfoldable(f"forward changes {', '.join(changed)}: state outside tt layers")
    return apart


def _changed(watched: Sequence[Kept]) -> list[str]:
    return [name for kept in watched for name in kept.changed()]


def _owned(outputs: Any, x: Tensor) -> Any:
    """Outputs as those of a loop, which share no memory with the input or with one another."""
    taken = [x]

    def own(output: Tensor) -> Tensor:
        taken.append(output.clone() if any(alike(output, t) for t in taken) else output)
        return taken[-1]

    return outputs if torch.compiler.is_compiling() else tree_map(own, outputs)


def hooked_modules(modules: Sequence[nn.Module]) -> str | None:
    """The first of these with hooks, which run at every timestep, said in words."""
    for module in modules:
        if hooked(module):
            return f"{type(module).__name__} has hooks, which run at every timestep"
    return None


@contextlib.contextmanager
def looking_out() -> Iterator[None]:
    """Within it, a forward pass that looks at values is unfoldable."""
    try:
        with Blind():
            yield
    except Looked as looked:
        raise Unfoldable(f"forward looks at values ({looked})") from None
