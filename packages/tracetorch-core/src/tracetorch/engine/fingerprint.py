"""What a step may read besides tensors, as a key: another key, another kernel.

Attributes of the layer and its modules and what these hold, to some depth; of classes and functions
that are neither ours nor torch's also class attributes, closures and globals.
"""

from __future__ import annotations

import functools
import itertools
import operator
import sys
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.keeping import foreign, private_of, slots_of

if TYPE_CHECKING:
    from tracetorch.layer import Layer

# objects and functions within one another that are looked into
_DEPTH = 3
# what has more items is known by what it is alone: to look at it would take longer than a timestep
_MANY = 1000
_PLAIN = frozenset((
    int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device
))  # fmt: skip


def fingerprint(layer: Layer) -> Fingerprint:
    """What the step of a layer may read now."""
    known = layer._known
    if known.look is None or not known.look.lasts():
        known.look = _Look(layer)
    return known.look.found


class Fingerprint:
    """A key, hashed once."""

    __slots__ = ("_content", "_hash")

    def __init__(self, content: tuple[Any, ...]) -> None:
        self._content, self._hash = content, hash(content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self._content == other._content


class _Look:
    """A look at everything, which a glance can show to have been enough."""

    def __init__(self, layer: Layer) -> None:
        self._owner: Any = type(layer)
        self._step = self._owner.step
        # where something was found, and whether all that was is the same as long as it is there
        self._places: list[tuple[Mapping[str, Any], str]] = []
        self._full: list[Mapping[str, Any]] = []
        self._lasting = True
        self.found = Fingerprint((_Same(self._step), *self._modules(layer, [])))
        self._values, self._sizes = self._now(), [*map(len, self._full)]

    def lasts(self) -> bool:
        """Whether in every place there is still the same, and nothing is in new ones."""
        try:
            return (
                self._lasting
                and self._owner.step is self._step
                and [*map(len, self._full)] == self._sizes
                and all(map(operator.is_, self._now(), self._values))
            )
        except KeyError:
            return False

    def _now(self) -> list[Any]:
        return [held[name] for held, name in self._places]

    def _modules(self, module: nn.Module, seen: list[nn.Module]) -> list[Any]:
        """The attributes of a module and of those in it."""
        seen.append(module)
        own, kind = vars(module), type(module)
        names = sorted(own.keys() - private_of(module))
        found = [kind, *self._read(own, names, _DEPTH)]
        for written in _written(kind):
            held: Mapping[str, Any] = vars(written)
            self._full.append(held)
            names = [name for name in held if not name.startswith("__")]
            found += self._read(held, names, _DEPTH)
        self._places += [(module._modules, name) for name in module._modules]
        self._full += [own, module._modules]
        for name, part in module._modules.items():
            if part is None or part in seen:
                found.append((name, None if part is None else seen.index(part)))
            else:
                found.append((name, *self._modules(part, seen)))
        return found

    def _read(self, held: Mapping[str, Any], names: Iterable[str], depth: int) -> list[Any]:
        places = [(held, name) for name in names]
        self._places += places
        return [(name, self._content(held[name], depth)) for held, name in places]

    def _content(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if isinstance(value, (nn.Module, type, types.ModuleType)) or not depth or _large(value):
            return _Same(value)
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, tuple):
            return kind, *[self._content(item, depth - 1) for item in value]
        if isinstance(value, types.MethodType):
            owner = self._content(value.__self__, depth - 1)
            return self._content(value.__func__, depth), owner
        if not isinstance(value, (Tensor, np.ndarray, list, dict)) and foreign(kind):
            return _Same(value)
        self._lasting = False  # for what follows changes within
        if isinstance(value, Tensor):
            return kind, value.shape, value.dtype  # a step that reads its values has no kernel
        if isinstance(value, np.ndarray):
            return _Same(value), value.dtype, value.shape, value.tobytes()
        if isinstance(value, list):
            return kind, *[self._content(item, depth - 1) for item in value]
        if isinstance(value, dict):
            pairs = value.items()
            return kind, *[(self._content(k, 1), self._content(v, depth - 1)) for k, v in pairs]
        held = {name: getattr(value, name, None) for name in slots_of(value)}
        held |= getattr(value, "__dict__", {})
        pairs = held.items()
        return _Same(value), *[(name, self._content(item, depth - 1)) for name, item in pairs]

    def _function(self, function: types.FunctionType, depth: int) -> Any:
        """A function, what it closes over and, of its globals, what is no class or module."""
        if _settled(function.__module__):
            return _Same(function)
        cells, known = function.__closure__ or (), function.__globals__
        closed = [cell.cell_contents for cell in cells if cell != _EMPTY]
        # the class, which super() looks up in a cell, stays what it is
        self._lasting &= all(isinstance(v, type) for v in closed) and len(closed) == len(cells)
        names = [name for name in _names(function.__code__) if name in known]
        found = [self._content(value, depth - 1) for value in closed]
        return _Same(function), *found, *self._read(known, names, depth - 1)


def _large(value: Any) -> bool:
    size = value.size if isinstance(value, np.ndarray) else isinstance(value, _HOLDS) and len(value)
    return int(size) > _MANY


_HOLDS = (list, tuple, dict)
_EMPTY = types.CellType()


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that code, or a function made in it, may look up."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *itertools.chain(*inner))))


def _written(kind: type) -> list[type]:
    """Of a class and its bases, those that a user wrote."""
    return [k for k in kind.__mro__ if not _settled(k.__module__)]


def _settled(module: str | None) -> bool:
    """Whether code is of this library, torch, NumPy or Python."""
    root = (module or "").partition(".")[0]
    return root in ("tracetorch", "torch", "numpy") or root in sys.stdlib_module_names


class _Same:
    """An object as a key: equal to itself alone, and kept alive so that its place is not reused."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value
