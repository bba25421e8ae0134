"""What is wrong with a graph, or cannot be said in one."""

from __future__ import annotations


class NIRError(ValueError):
    """A graph is malformed, or a model has what NIR cannot express; the message names the node."""


def node_error(name: str, kind: str, message: str) -> NIRError:
    """An error that belongs to one node of a graph, or layer of a model."""
    return NIRError(f"{kind} {name!r}: {message}")
