"""What a step may read besides tensors, as a key: another key, another kernel.

Attributes of the layer and its modules and all that these hold, up to a number of values; of
classes and functions that are neither ours nor torch's also class attributes, closures and globals.
"""

from __future__ import annotations

import enum
import functools
import itertools
import operator
import types
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.engine.admission import HOOKS
from tracetorch.holding import attributes, foreign, items, settled, slots_of, written
from tracetorch.keeping import private_of

if TYPE_CHECKING:
    from tracetorch.layer import Layer

# what has more items is known by their number: to look at them would take longer than a timestep
_MANY = 1000
# values that are looked at in all
_MOST = 5000
_PLAIN = frozenset((int, str, bytes, bool, type(None), torch.dtype, torch.device))


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
        # what has been looked at, by the order in which it was
        self._seen: dict[int, tuple[int, Any]] = {}
        self._left = _MOST
        self.found = Fingerprint((_Same(self._step), *self._module(layer, own=True)))
        self._values, self._sizes = self._now(), [*map(len, self._full)]
        del self._seen

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

    def _read(self, held: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
        places = [(held, name) for name in names]
        self._places += places
        return [(name, self._content(held[name])) for held, name in places]

    def _module(self, module: nn.Module, own: bool = False) -> list[Any]:
        """The attributes of a module and of those in it, and whether it has hooks."""
        self._seen[id(module)] = len(self._seen), module
        held = vars(module)
        found = [type(module), *self._read(held, sorted(held.keys() - private_of(module)))]
        if slots := slots_of(type(module)):
            self._lasting = False
            found += [(name, self._content(getattr(module, name, None))) for name in slots]
        found += self._class(type(module))
        self._full += [held, module._modules]
        if not own:  # those of the layer are of its call
            hooks = [held[name] for name in HOOKS]
            self._full += hooks
            found.append((*map(len, hooks),))
        return [*found, *self._read(module._modules, module._modules)]

    def _class(self, kind: type) -> list[Any]:
        """What stands in a class, as far as a user wrote it."""
        found = []
        for base in written(kind):
            held: Mapping[str, Any] = vars(base)
            self._full.append(held)
            found += self._read(held, [name for name in held if not name.startswith("__")])
        return found

    def _content(self, value: Any) -> Any:
        try:
            return self._inside(value)
        except Exception:  # of a user's class, that does not want to be looked into
            return _Same(value)

    def _inside(self, value: Any) -> Any:
        kind, self._left = type(value), self._left - 1
        if kind in _PLAIN:
            return kind, value
        if kind in (float, complex):
            return kind, repr(value)  # 0.0 is not -0.0
        if id(value) in self._seen:
            return self._seen[id(value)][0]
        if self._left < 0 or isinstance(value, (types.ModuleType, enum.Enum)):
            return _Same(value)
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return tuple(self._module(value))
        self._seen[id(value)] = len(self._seen), value
        if isinstance(value, type):
            return _Same(value), *self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if (held := items(value)) is not None:
            return self._container(value, held)
        if isinstance(value, Tensor):
            self._lasting = False
            return kind, value.shape, value.dtype  # a step that reads its values has no kernel
        if isinstance(value, np.ndarray):
            self._lasting = False
            read = value.tobytes() if value.size <= _MANY else None
            return _Same(value), value.dtype, value.shape, read
        if foreign(kind):
            return _Same(value)
        self._lasting = False
        pairs = attributes(value).items()
        return _Same(value), *[(name, self._content(item)) for name, item in pairs]

    def _container(self, value: Any, held: list[Any]) -> Any:
        kind = type(value)
        self._lasting &= not isinstance(value, (list, dict, set, deque))
        if len(held) > _MANY:
            return _Same(value), len(held)
        if isinstance(value, (set, frozenset)):
            return kind, frozenset([self._content(item) for item in held])
        keys = [self._content(key) for key in value] if isinstance(value, dict) else []
        return kind, *keys, *[self._content(item) for item in held]

    def _function(self, function: types.FunctionType) -> Any:
        """A function with all that it reads: what it closes over, its defaults, its globals."""
        if settled(function.__module__):
            return _Same(function)
        cells, known = function.__closure__ or (), function.__globals__
        closed = [cell.cell_contents for cell in cells if cell != _EMPTY]
        # the class, which super() looks up in a cell, stays what it is
        self._lasting &= all(isinstance(v, type) for v in closed) and len(closed) == len(cells)
        names = [name for name in _names(function.__code__) if name in known]
        found = [self._content(value) for value in closed] + self._read(known, names)
        for value in (*closed, *[known[name] for name in names]):
            if isinstance(value, types.ModuleType) and not settled(value.__name__):
                held = vars(value)
                found += self._read(held, [n for n in _names(function.__code__) if n in held])
        own = function.__defaults__, function.__kwdefaults__, function.__dict__
        return _Same(function), *found, *[self._content(value) for value in own if value]


_EMPTY = types.CellType()


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that code, or a function made in it, may look up."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *itertools.chain(*inner))))


class _Same:
    """An object as a key: equal to itself alone, and kept alive so that its place is not reused."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value
