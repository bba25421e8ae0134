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

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger("tracetorch")

NAMES = ("auto", "cpp", "triton", "eager")
READY = "ready"

_everywhere = "auto"
_here: ContextVar[str | None] = ContextVar("tracetorch_backend", default=None)
_said: set[str] = set()


class BackendError(RuntimeError):
    """A backend chosen by name cannot serve; the message names the layer and says why."""


def status() -> dict[str, str]:
    """Each backend with ``"ready"``, or why it is not there."""
    from tracetorch.engine import build, launch

    found = build.compiler()
    cpp = READY if found else f"no C++ compiler: none of {', '.join(build.COMPILERS)} is on PATH"
    return {"cpp": cpp, "eager": READY, "triton": launch.missing() or READY}


def chosen() -> str:
    """The choice in force here; in a compiled graph, the one it was compiled under."""
    return _here.get() or _everywhere


# torch 2.6 cannot read a context variable while it compiles
chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def select(name: str) -> None:
    """Choose for the whole process.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it is not ready; :func:`status` says why.
    """
    global _everywhere
    _everywhere = _checked(name)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Choose within a ``with`` block, in this thread.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it is not ready; :func:`status` says why.
    """
    token = _here.set(_checked(name))
    try:
        yield
    finally:
        _here.reset(token)


def empty_cache() -> None:
    """Give the memory that waits for the next sequence on the CPU back to the system.

    Outputs and gradients of sequences lie in blocks that are kept for the next one, up to
    ``$TRACETORCH_KEEP_MB`` (by default a sixteenth of the machine's memory, at most 1 GiB).
    """
    from tracetorch.engine import memory

    memory.empty_cache()


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"the backend must be one of {', '.join(NAMES)}, got {name!r}")
    if name != "auto" and (why := status()[name]) != READY:
        raise BackendError(f"the backend {name!r} is not ready: {why}")
    return name


def cannot(layer: object, why: str) -> None:
    """Say once in the log that a layer runs eagerly; BackendError if one was asked for by name."""
    if chosen() not in ("auto", "eager"):
        raise BackendError(f"{layer!r} cannot run on the backend {chosen()!r}: {why}")
    message = f"{type(layer).__name__} runs step by step: {why}"
    if message not in _said:
        _said.add(message)
        log.info("%s", message)
