"""Things by number, weakly: what may stand in a constant where they cannot. Knows none of them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

_owners: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_makers: dict[str, Callable[[Any], Any]] = {}
_numbers = itertools.count()


def number(owner: Any, make: Callable[[Any], Any]) -> str:
    """A new number by which what ``make`` makes of an owner can be had as long as that lives.

    Spelled out: of numbers that differ ``torch.compile`` would make a variable.
    """
    new = str(next(_numbers))
    _owners[new] = owner
    _makers[new] = make
    weakref.finalize(owner, _makers.pop, new, None).atexit = False
    return new


def numbered(number: str) -> Any:
    """What is made of the living owner of that number."""
    return _makers[number](_owners[number])
