"""Which backend is chosen, and what happens where it cannot serve. Knows no backend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

log = logging.getLogger("tracetorch")

AUTO, EAGER = "auto", "eager"

_everywhere = AUTO
_here: ContextVar[str | None] = ContextVar("tracetorch_backend", default=None)
_said: set[str] = set()


class BackendError(RuntimeError):
    """A backend chosen by name cannot serve; the message names the layer and says why."""


def chosen() -> str:
    """The choice in force here; in a compiled graph, the one it was compiled under.

    Returns:
        ``"auto"``, ``"eager"`` or the name of a backend.

    Example:
        >>> chosen()
        'auto'
    """
    return _here.get() or _everywhere


# torch 2.6 cannot read a context variable while it compiles
chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(name: str) -> None:
    """For the whole process; whether the name is one is the caller's to know."""
    global _everywhere
    _everywhere = name


@contextmanager
def choosing(name: str) -> Iterator[None]:
    """Within a ``with`` block, in this thread."""
    token = _here.set(name)
    try:
        yield
    finally:
        _here.reset(token)


def cannot(layer: object, why: object) -> None:
    """Say once in the log that a layer runs eagerly; BackendError if one was asked for by name."""
    if chosen() not in (AUTO, EAGER):
        raise BackendError(f"{layer!r} cannot run on the backend {chosen()!r}: {why}")
    if not torch.compiler.is_compiling():
        say(f"{type(layer).__name__} runs step by step: {why}")


def say(message: str) -> None:
    """To the log, once."""
    if message not in _said:
        _said.add(message)
        log.info("%s", message)
