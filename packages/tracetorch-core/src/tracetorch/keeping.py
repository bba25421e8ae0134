"""What can be reached from modules, as it is: to notice what code changes, and to undo it.

Attributes, containers, plain objects, tensors and arrays, generators of random numbers of Python
and NumPy; not what is in iterators, closures and globals.
"""

from __future__ import annotations

import enum
import operator
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# attributes of every module that torch looks after
TORCHS = frozenset(vars(nn.Module())) - {"training"}
_LEAVES = (
    str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, enum.Enum,
    torch.dtype, torch.device, torch.Size,
)  # fmt: skip

# containers of more are compared, but what is in them is not looked at
_MANY = 1000
# arrays of more are taken for data, which nobody writes to
_LARGE = 1 << 16


class Kept:
    """Everything that can be reached from some modules, as it is now.

    Args:
        modules: where to begin; of these, submodules are to be listed too.
        besides: modules that are not looked at.
        thorough: keep copies of tensors, so that :meth:`restore` undoes what is written into them
            and :meth:`changed` sees what torch does not count as a write; watch the random numbers
            of Python and NumPy.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        besides: Iterable[nn.Module] = (),
        thorough: bool = False,
    ) -> None:
        self._records: list[_Record] = []
        self._thorough = thorough
        self._statistics: set[int] = set()
        modules = list(modules)
        for module in modules:
            self._records += self._of_module(module)
        if not torch.compiler.is_compiling():
            self._look_into({id(module) for module in (*modules, *besides)})

    def changed(self) -> list[str]:
        """Names of what is something else now, or holds something else.

        Not the statistics that torch's own normalizations write: those of a batch are theirs.
        """
        return sorted({name for record in self._records for name in record.changed()})

    def restore(self) -> None:
        """Put everything back."""
        for record in self._records:
            record.restore()

    def rewind(self) -> None:
        """Put back what is still there, for code to run again; modules it made are there then."""
        for record in self._records:
            record.rewind()

    def _look_into(self, seen: set[int]) -> None:
        if self._thorough:
            self._records.append(_Generator("the random numbers of Python", _PYTHON))
            self._records.append(_Generator("the random numbers of NumPy", _NUMPY))
        for record in self._records:  # which grows
            for key, value in record.inside():
                if id(value) not in seen and not is_leaf(value):
                    seen.add(id(value))
                    self._records += self._of(record.named(key), value)

    def _of(self, name: str, value: Any) -> list[_Record]:
        if isinstance(value, nn.Parameter):
            return []  # only an optimizer writes to it
        if isinstance(value, Tensor):
            return [_Tensor(name, value, self._thorough, id(value) not in self._statistics)]
        if isinstance(value, nn.Module):
            return self._of_module(value)
        if isinstance(value, (dict, list, set, deque)):
            return [_Items(name, value)]
        if isinstance(value, tuple):
            return [_Tuple(name, value)]
        if isinstance(value, np.ndarray):
            return [_Array(name, value)] if value.size <= _LARGE else []
        if isinstance(value, _GENERATORS):
            return [_Generator(name, value)]
        if foreign(type(value)):
            return []
        kind, slots = type(value).__name__, slots_of(value)
        found: list[_Record] = [_Slots(kind, value, slots)] if slots else []
        return [*found, _Attributes(kind, vars(value))] if hasattr(value, "__dict__") else found

    def _of_module(self, module: nn.Module) -> list[_Record]:
        if isinstance(module, _NormBase):
            self._statistics.update([id(buffer) for buffer in module._buffers.values()])
        name = type(module).__name__
        return [
            _Attributes(name, vars(module), private_of(module)),
            _Attributes(name, module._buffers),
            _Attributes(name, module._modules),
        ]


class _Record:
    """One thing that can change."""

    name: str
    value: Any

    def changed(self) -> Iterable[str]:
        """Names of what has."""
        return ()

    def restore(self) -> None:
        """Put it back."""

    def rewind(self) -> None:
        """See :meth:`Kept.rewind`."""
        self.restore()

    def inside(self) -> Iterable[tuple[str, Any]]:
        """What is in it."""
        return ()

    def named(self, key: str) -> str:
        """The name of what is in it."""
        return self.name


class _Attributes(_Record):
    """By name, what an object or module has."""

    def __init__(
        self, name: str, value: dict[str, Any], private: frozenset[str] = frozenset()
    ) -> None:
        self.name, self.value, self._private = name, value, private
        self._before = dict(value)

    def changed(self) -> Iterable[str]:
        before, now = self._before, self.value
        if not _differ(before, now):
            return ()
        names = {**now, **before}.keys() - self._private
        return [self.named(n) for n in names if now.get(n, _GONE) is not before.get(n, _GONE)]

    def restore(self) -> None:
        for name in self.value.keys() - self._before.keys() - self._private:
            del self.value[name]
        self.value.update(self.inside())

    def rewind(self) -> None:
        still = {n for n, value in self.value.items() if not isinstance(value, nn.Module)}
        self.value.update({n: value for n, value in self.inside() if n in still})

    def inside(self) -> Iterable[tuple[str, Any]]:
        return [(n, value) for n, value in self._before.items() if n not in self._private]

    def named(self, key: str) -> str:
        return f"{self.name}.{key}"


class _Slots(_Record):
    def __init__(self, name: str, value: Any, names: Iterable[str]) -> None:
        self.name, self.value, self._names = name, value, tuple(names)
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        return {name: getattr(self.value, name, _GONE) for name in self._names}

    def changed(self) -> Iterable[str]:
        now = self._now()
        return [self.named(n) for n in self._names if now[n] is not self._before[n]]

    def restore(self) -> None:
        for name, value in self._before.items():
            if value is not _GONE:
                object.__setattr__(self.value, name, value)
            elif hasattr(self.value, name):
                object.__delattr__(self.value, name)

    def inside(self) -> Iterable[tuple[str, Any]]:
        return self._before.items()

    def named(self, key: str) -> str:
        return f"{self.name}.{key}"


class _Items(_Record):
    """What is in a list, dict, set or deque."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self._before = name, value, _copied(value)

    def changed(self) -> Iterable[str]:
        return [self.name] if _differ(self._before, self.value) else ()

    def restore(self) -> None:
        if _differ(self._before, self.value):
            self.value.clear()
            grow = self.value.extend if isinstance(self.value, (list, deque)) else self.value.update
            grow(self._before)

    def rewind(self) -> None:
        if not any(isinstance(item, nn.Module) for item in _listed(self.value)):
            self.restore()

    def inside(self) -> Iterable[tuple[str, Any]]:
        return [("", v) for v in _listed(self._before)] if len(self._before) <= _MANY else ()


class _Tuple(_Record):
    def __init__(self, name: str, value: tuple[Any, ...]) -> None:
        self.name, self.value = name, value

    def inside(self) -> Iterable[tuple[str, Any]]:
        return [("", value) for value in self.value[:_MANY]]


class _Tensor(_Record):
    def __init__(self, name: str, value: Tensor, copied: bool, counts: bool) -> None:
        self.name, self.value, self._version = name, value, _version(value)
        self._before = value.detach().clone() if copied else None
        self._counts = counts

    def changed(self) -> Iterable[str]:
        same = _version(self.value) == self._version
        if same and self._before is not None:  # what is written by way of .data is not counted
            same = _equal(self._before, self.value)
        return () if same or not self._counts else [self.name]

    def restore(self) -> None:
        if self._before is not None:
            if not _equal(self._before, self.value):
                with torch.no_grad():
                    self.value.copy_(self._before)
            self._version = _version(self.value)


class _Array(_Record):
    def __init__(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self.name, self.value, self._before = name, value, value.copy()

    def changed(self) -> Iterable[str]:
        return () if self._before.tobytes() == self.value.tobytes() else [self.name]

    def restore(self) -> None:
        if self.value.flags.writeable:
            self.value[...] = self._before


class _Generator(_Record):
    """Where a generator of random numbers is in its stream."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self._before = name, value, _place(value)

    def changed(self) -> Iterable[str]:
        same = pickle.dumps(_place(self.value)) == pickle.dumps(self._before)
        return () if same else [self.name]

    def restore(self) -> None:
        place = self._before
        if isinstance(self.value, np.random.Generator):
            self.value.bit_generator.state = place
        elif isinstance(self.value, np.random.RandomState):
            self.value.set_state(place)
        else:
            self.value.setstate(place)


def _place(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.getstate()


_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
_PYTHON: Any = getattr(random, "_inst")  # noqa: B009 - not in its stubs
_NUMPY: Any = np.random.mtrand._rand


def is_leaf(value: Any) -> bool:
    """Whether there is nothing in it that could be of use here or change."""
    return type(value) in _LEAVES or isinstance(value, _LEAVES)


def foreign(kind: type) -> bool:
    """Whether a class is of Python, torch or NumPy: what its objects hold is their own affair."""
    root = kind.__module__.partition(".")[0]
    return kind is not types.SimpleNamespace and (
        root in ("torch", "numpy") or root in sys.stdlib_module_names
    )


def slots_of(value: Any) -> list[str]:
    """Names of what an object holds outside of its ``__dict__``."""
    return [
        name
        for kind in type(value).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, types.MemberDescriptorType) and name != "__dict__"
    ]


def private_of(module: nn.Module) -> frozenset[str]:
    """Names of attributes that torch and this library keep for themselves."""
    own: frozenset[str] = getattr(type(module), "_private", TORCHS)
    return own


def _copied(value: Any) -> Any:
    kind = next((kind for kind in (dict, set) if isinstance(value, kind)), list)
    return kind(value)


def _listed(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _differ(before: Any, now: Any) -> bool:
    """Whether a container holds other objects than before, or in another order."""
    if len(before) != len(now):
        return True
    if isinstance(before, set):
        return bool(before != now)
    if isinstance(before, dict):
        return not all(map(operator.is_, before, now)) or _differ(
            list(before.values()), list(now.values())
        )
    return not all(map(operator.is_, before, now))


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _equal(before: Tensor, now: Tensor) -> bool:
    """Whether values are the same, NaN included."""
    with torch._C.DisableTorchFunction():
        return before.shape == now.shape and (
            torch.equal(before, now)
            or bool(((before == now) | ((before != before) & (now != now))).all())
        )


_GONE = object()
