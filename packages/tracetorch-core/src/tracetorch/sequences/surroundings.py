"""What lies outside of a model and its code refers to: globals, closures, class attributes.

Found by the names that the code of ``forward``, and of what it calls, mentions. While a copy of the
model runs, copies of these stand in their places.
"""

from __future__ import annotations

import functools
import sys
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

    def changed(self) -> bool:
        """Whether something else has come to where the copy was put."""
        now = self.place.now()
        if now is self.copy or type(now) is not dict or self.place.key[1] != "__dict__":
            return now is not self.copy
        held: dict[str, Any] = self.copy
        return now.keys() != held.keys() or any(now[key] is not held[key] for key in held)


def surroundings(copier: Copier) -> list[Site]:
    """Of what has been copied: every place that its code refers to.

    Raises:
        Unfoldable: something there cannot be copied.
    """
    sites: list[Site] = []
    done: set[Any] = set()
    mentioned: set[str] = set()
    while True:  # until nothing more comes of what has come
        places: list[Place] = []
        functions = dict.fromkeys(f for f in _functions(copier) if f not in done)
        for function in functions:
            done.add(function)
            mentioned |= names_of(function).mentioned
            places += _places(function, copier)
        for kind in _users(copier):
            names = sorted(mentioned & vars(kind).keys())
            places += [_of_class(kind, name) for name in names if not name.startswith("__")]
        for owner in (*copier.shared.values(),):
            places += _of_the_one(owner, mentioned)
        places = [place for place in places if place.key not in done]
        if not functions and not places:
            return sites
        for place in places:
            if place.key not in done:
                done.add(place.key)
                sites += _site(place, copier)


def _functions(copier: Copier) -> list[types.FunctionType]:
    """Those that were found, and what Python calls of the classes that were found."""
    called = [
        function
        for kind in _users(copier)
        for name, value in vars(kind).items()
        if (name == "forward" or name.startswith("__")) and (function := _function(value))
    ]
    return [f for f in (*copier.functions, *called) if not settled(f.__module__)]


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
    for name in names.imported & sys.modules.keys():
        copier.look(sys.modules[name])


def _of_the_one(owner: Any, mentioned: set[str]) -> list[Place]:
    """What something holds by name of which there is only one: of a user's own class, all of it."""
    held, name = vars(owner), getattr(owner, "__name__", type(owner).__name__)
    if not written(type(owner)):
        return [_item(held, key, f"{name}.{key}") for key in sorted(mentioned & held.keys())]

    def put(attributes: dict[str, Any]) -> None:
        held.clear()
        held.update(attributes)

    return [Place((id(owner), "__dict__"), f"an attribute of {name}", held.copy, put)]


def _of_class(kind: type, name: str) -> Place:
    get = functools.partial(vars(kind).__getitem__, name)
    put = functools.partial(setattr, kind, name)
    return Place((id(kind), name), f"{kind.__name__}.{name}", get, put)


def _site(place: Place, copier: Copier) -> list[Site]:
    original = place.get()
    function = _function(original)
    if function is not None:
        copier.look(function)
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
