"""Layers by number, weakly: what may stand in a constant where a layer cannot. Knows no layer."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

_layers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number(layer: Any) -> int:
    """A new number by which ``layer`` can be found as long as it lives."""
    new = next(_numbers)
    _layers[new] = layer
    return new


def numbered(number: int) -> Any:
    """The living layer of that number."""
    return _layers[number]
