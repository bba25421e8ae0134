"""Which engine runs whole sequences: what there is, why one is not, and the choice.

``auto`` (the default) takes the fastest that can serve a layer and is silent about it; ``eager`` is
the layer's own ``step`` in a loop. A backend chosen by name that cannot serve a layer is an error.

Example:
    >>> import tracetorch as tt
    >>> sorted(tt.backends.status())
    ['cpp', 'eager', 'triton']
    >>> with tt.backends.use("eager"):
    ...     tt.backends.chosen()
    'eager'
    >>> tt.backends.chosen()
    'auto'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tracetorch import choice
from tracetorch.choice import AUTO, EAGER, BackendError, chosen
from tracetorch.engine import memory
from tracetorch.engine.serving import why_stepped
from tracetorch.engine.targets import TARGETS
from tracetorch.walk import named_layers

__all__ = ["READY", "BackendError", "chosen", "empty_cache", "select", "status", "use"]

READY = "ready"
"""What :func:`status` says of a backend or layer that has nothing in its way."""


def status(module: nn.Module | None = None) -> dict[str, str]:
    """Each backend with ``"ready"``, or why it is not there.

    Args:
        module: a model or layer; then, of each of its layers by name, ``"ready"`` or why it was
            stepped when it was last asked.

    Returns:
        Names of backends, or of layers, with that word or the reason.

    Example:
        >>> import torch, tracetorch as tt
        >>> class Listing(tt.testing.Trace):
        ...     gains = [1.0, 2.0]
        ...     def step(self, states, x, p):
        ...         return super().step(states, x * self.gains[0], p)
        >>> layer = Listing(3)
        >>> y = layer.unroll(torch.ones(4, 2, 3))
        >>> tt.backends.status(layer)[""].partition(";")[0]
        'its step reads Listing.gains, a list, and what is in it may change unseen'
    """
    if module is not None:
        whys = {name: why_stepped(layer.tt.findings) for name, layer in named_layers(module)}
        return {name: READY if why is None else str(why) for name, why in whys.items()}
    found = {name: target.missing() or READY for name, target in TARGETS.items()}
    return {**found, EAGER: READY}


def select(name: str) -> None:
    """Choose for the whole process.

    Args:
        name: ``"auto"``, ``"eager"``, or a backend that :func:`status` lists.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it is not ready; :func:`status` says why.

    Example:
        >>> select("auto")
        >>> chosen()
        'auto'
    """
    choice.choose(_checked(name))


@contextmanager
def use(name: str) -> Iterator[None]:
    """Choose within a ``with`` block, in this thread.

    Args:
        name: ``"auto"``, ``"eager"``, or a backend that :func:`status` lists.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it is not ready; :func:`status` says why.

    Example:
        >>> with use("eager"):
        ...     chosen()
        'eager'
    """
    with choice.choosing(_checked(name)):
        yield


def empty_cache() -> None:
    """Give the memory that waits for the next sequence on the CPU back to the system.

    Outputs and gradients of sequences lie in blocks that are kept for the next one, up to
    ``$TRACETORCH_KEEP_MB`` (by default a sixteenth of the machine's memory, at most 1 GiB).

    Example:
        >>> empty_cache()
    """
    memory.empty_cache()


def _checked(name: str) -> str:
    names = (AUTO, *TARGETS, EAGER)
    if name not in names:
        raise ValueError(f"the backend must be one of {', '.join(names)}, got {name!r}")
    if name in TARGETS and (why := TARGETS[name].missing()):
        raise BackendError(f"the backend {name!r} is not ready: {why}")
    return name
