"""What lies outside of a model and its code refers to: globals, closures, class attributes.

Found by the names that the code of ``forward``, and of what it calls, mentions. While a copy of the
model runs, copies of these stand in their places.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tracetorch.sequences.copying import CACHED, Copier, size_of
from tracetorch.written import cells_of, names_of, settled, unwrapped, written

GONE = object()
# of more elements they are taken for data, which nobody writes to
_LARGE = 1 << 24


class Place(NamedTuple):
    """Where code finds something.

    Attributes:
        key: of which thing, and by what name there.
        name: what it is called.
        get: what is there.
        put: something else there.
    """

    key: tuple[int, str]
    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]

    def now(self) -> Any:
        """What is there; ``GONE`` where it has been deleted."""
        try:
            return self.get()
        except Exception:  # whatever its owner makes of that
            return GONE


class Site(NamedTuple):
    """A place with what is there, and the copy of that."""

    place: Place
    original: Any
    copy: Any


def surroundings(copier: Copier) -> list[Site]:
    """Of what has been copied: every place that its code refers to."""
    sites: list[Site] = []
    done: set[Any] = set()
    queue = [*copier.functions]
    for kind in _users(copier):
        queue += [f for name in ("forward", "__call__") if (f := _function(vars(kind).get(name)))]
    while queue:
        function = queue.pop()
        if function in done or settled(function.__module__):
            continue
        done.add(function)
        for place in _places(function, copier):
            if place.key not in done:
                done.add(place.key)
                sites += _site(place, copier, queue)
        queue += [found for found in copier.functions if found not in done]
    return sites


def _users(copier: Copier) -> list[type]:
    """The classes that a user wrote of all that was found, and their own classes."""
    found: dict[type, None] = {}
    for kind in (*copier.classes,):
        found.update(dict.fromkeys([*written(kind), *written(type(kind))]))
    return [*found]


def _places(function: types.FunctionType, copier: Copier) -> Iterator[Place]:
    """Where a function finds things."""
    own, names = function.__name__, names_of(function)
    for name, cell in cells_of(function):
        yield _attribute(cell, "cell_contents", f"{name} of {own}")
    for name in ("__defaults__", "__kwdefaults__"):
        if getattr(function, name):
            yield _attribute(function, name, f"a default of {own}")
    for name in vars(function):
        if name != "__wrapped__":
            yield _item(vars(function), name, f"{own}.{name}")
    known = function.__globals__
    for name in (names.read | names.written) & known.keys():
        yield _item(known, name, f"the global {name}")
        value = known[name]
        if isinstance(value, types.ModuleType) and not settled(value.__name__):
            for inner in names.mentioned & vars(value).keys():
                yield _item(vars(value), inner, f"{name}.{inner}")
        elif isinstance(value, type):
            copier.classes.setdefault(value)
    for kind in _users(copier):
        for name in names.mentioned & vars(kind).keys():
            if not name.startswith("__"):
                get = functools.partial(vars(kind).__getitem__, name)
                put = functools.partial(setattr, kind, name)
                yield Place((id(kind), name), f"{kind.__name__}.{name}", get, put)


def _site(place: Place, copier: Copier, queue: list[types.FunctionType]) -> list[Site]:
    original = place.get()
    function = _function(original)
    if function is not None:
        queue.append(function)
        if not isinstance(original, CACHED):
            return []
    # descriptors of a class belong to it; modules and classes are looked into, not copied
    if isinstance(original, (types.ModuleType, type)) or hasattr(type(original), "__set__"):
        copier.copied(original, place.name)
        return []
    large = isinstance(original, (Tensor, np.ndarray)) and size_of(original) > _LARGE
    return [Site(place, original, original if large else copier.copied(original, place.name))]


def _function(value: Any) -> types.FunctionType | None:
    found = unwrapped(value)
    return found if isinstance(found, types.FunctionType) else None


def _attribute(owner: Any, key: str, name: str) -> Place:
    get, put = functools.partial(getattr, owner, key), functools.partial(setattr, owner, key)
    return Place((id(owner), key), name, get, put)


def _item(held: dict[str, Any], key: str, name: str) -> Place:
    get = functools.partial(held.__getitem__, key)
    return Place((id(held), key), name, get, functools.partial(held.__setitem__, key))
