"""Which code a user wrote, whether in the place of ours, and what it names. Runs none of it."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])

_SETTLED = ("tracetorch", "torch", "numpy", "builtins")


def settled(module: str | None) -> bool:
    """Whether code of a module is this library's, torch's, NumPy's or Python's."""
    root = (module or "").partition(".")[0]
    return root in _SETTLED or root in sys.stdlib_module_names


def written(kind: type) -> list[type]:
    """Of a class and its bases, those that a user wrote."""
    return [base for base in kind.__mro__ if not settled(base.__module__)]


_standard: set[Callable[..., Any]] = set()


def standard(method: _Method) -> _Method:
    """A method of the library's own base classes: :func:`own` asks whether there is another."""
    _standard.add(method)
    return method


def own(function: Callable[..., Any]) -> bool:
    """Whether it stands in the place of a ``standard`` one; ``torch.compile`` asks once."""
    return function not in _standard


own._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Names(NamedTuple):
    """What a function, or one made in it, names.

    Attributes:
        read: globals that it reads.
        imported: modules that it imports.
        mentioned: all names of globals, attributes and methods.
        written: globals and variables of an enclosing function that it assigns to.
    """

    read: frozenset[str]
    imported: frozenset[str]
    mentioned: frozenset[str]
    written: frozenset[str]


def names_of(function: types.FunctionType) -> Names:
    """What a function names."""
    return _names(function.__code__)


@functools.cache
def _names(code: types.CodeType) -> Names:
    read, imported, written = set(), set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            imported.add(step.argval)
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars
        ):
            written.add(step.argval)
    mentioned = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = _names(const)
            read |= inner.read
            imported |= inner.imported
            mentioned |= inner.mentioned
            written |= inner.written - {*code.co_cellvars}
    return Names(*map(frozenset, (read, imported, mentioned, written)))


def cells_of(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    """The variables of enclosing functions that a function holds, as far as they have a value."""
    pairs = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return ((n, cell) for n, cell in pairs if n != "__class__" and cell != _EMPTY)


_EMPTY = types.CellType()
_CACHED: Any = type(functools.cache(len))


def unwrapped(value: Any) -> Any:
    """The function behind what a class or decorator makes of one; the value itself elsewhere."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    if isinstance(value, functools.cached_property):
        return value.func
    if isinstance(value, _CACHED):
        return value.__wrapped__
    return value
