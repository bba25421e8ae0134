"""Layers by number, weakly: what may stand in a constant where a layer cannot. Knows no layer."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

_layers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number(layer: Any) -> str:
    """A new number by which ``layer`` can be found as long as it lives.

    Spelled out: of numbers that differ ``torch.compile`` would make a variable.
    """
    new = str(next(_numbers))
    _layers[new] = layer
    return new


def numbered(number: str) -> Any:
    """The living layer of that number."""
    return _layers[number]
