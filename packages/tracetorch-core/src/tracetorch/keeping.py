"""What can be reached from modules, as it is: to notice what code changes, and to undo it.

Attributes, containers, plain objects, classes, tensors and arrays, generators of random numbers;
not what is in iterators, closures and globals.
"""

from __future__ import annotations

import contextlib
import operator
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tracetorch.holding import foreign, is_leaf, items, slots_of, written

# attributes of every module that torch looks after
TORCHS = frozenset(vars(nn.Module())) - {"training"}

# containers of more are compared, but what is in them is not looked at
_MANY = 1000
# arrays, and tensors, of more are taken for data, which nobody writes to, and not copied
_LARGE_ARRAY, _LARGE_TENSOR = 1 << 16, 1 << 24


class Kept:
    """Everything that can be reached from some modules, as it is now.

    What cannot be looked at, compared or put back is left alone.

    Args:
        modules: where to begin; of these, submodules are to be listed too.
        besides: modules that are not looked at.
        copies: of which tensors to keep copies, so that :meth:`restore` undoes what is written
            into them and :meth:`changed` sees what torch does not count as a write: all, all but
            parameters, or none.
        draws: watch the random numbers of Python and NumPy.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        besides: Iterable[nn.Module] = (),
        copies: Literal["none", "no parameters", "all"] = "none",
        draws: bool = False,
    ) -> None:
        self._roots, self._besides = list(modules), list(besides)
        self._copies, self._draws = copies, draws
        self.modules: list[nn.Module] = []
        self._records: list[_Record] = []
        self._statistics: set[int] = set()
        self.look()

    def look(self) -> None:
        """Take everything as it is now."""
        self.modules, self._records, self._statistics = [], [], set()
        for module in self._roots:
            self._records += self._of_module(module)
        if not torch.compiler.is_compiling():
            with torch._C.DisableTorchFunction():
                self._look_into({id(module) for module in (*self._roots, *self._besides)})

    def changed(self) -> list[str]:
        """Names of what is something else now, or holds something else.

        Not the statistics that torch's own normalizations write: those of a batch are theirs.
        """
        if torch.compiler.is_compiling():
            return [name for record in self._records for name in record.changed()]
        found: set[str] = set()
        with torch._C.DisableTorchFunction():
            for record in self._records:
                try:
                    if names := record.changed():
                        found.update(names)
                except Exception:  # noqa: S110 - of a user's class, which does not want to be read
                    pass
        return sorted(found)

    def restore(self) -> None:
        """Put everything back."""
        self._undo(lambda record: record.restore())

    def rewind(self) -> None:
        """Put back what is still there, for code to run again; modules it made are there then."""
        self._undo(lambda record: record.rewind())

    def _undo(self, undo: Callable[[_Record], None]) -> None:
        if torch.compiler.is_compiling():
            for record in self._records:
                undo(record)
            return
        with torch._C.DisableTorchFunction():
            for record in self._records:
                with contextlib.suppress(Exception):
                    undo(record)

    def _look_into(self, seen: set[int]) -> None:
        if self._draws:
            self._records.append(_Generator("the random numbers of Python", _PYTHON))
            self._records.append(_Generator("the random numbers of NumPy", _NUMPY))
        for record in self._records:  # which grows
            for key, value in record.inside():
                if id(value) not in seen and not is_leaf(value):
                    seen.add(id(value))
                    with contextlib.suppress(Exception):
                        self._records += self._of(record.named(key), value)
            for kind in _about(type(record.value))[0] if record.is_object else ():
                if id(kind) not in seen:
                    seen.add(id(kind))
                    self._records.append(_Class(kind))

    def _of(self, name: str, value: Any) -> list[_Record]:
        if isinstance(value, Tensor):
            copied = self._copies == "all" or (
                self._copies == "no parameters" and not isinstance(value, nn.Parameter)
            )
            copied &= value.numel() <= _LARGE_TENSOR
            return [_Tensor(name, value, copied, id(value) not in self._statistics)]
        if isinstance(value, nn.Module):
            return self._of_module(value)
        if isinstance(value, (dict, list, set, deque, bytearray)):
            return [_Items(name, value)]
        if (held := items(value)) is not None:
            return [_Fixed(name, value, held)]
        if isinstance(value, np.ndarray):
            return [_Array(name, value)] if value.size <= _LARGE_ARRAY else []
        if isinstance(value, _GENERATORS):
            return [_Generator(name, value)]
        if foreign(type(value)):
            return []
        kind, slots = type(value).__name__, _about(type(value))[1]
        found: list[_Record] = [_Slots(kind, value, slots)] if slots else []
        return [*found, _Object(kind, value)] if hasattr(value, "__dict__") else found

    def _of_module(self, module: nn.Module) -> list[_Record]:
        if isinstance(module, torch.jit.ScriptModule):
            return []
        self.modules.append(module)
        name, held = type(module).__name__, module._buffers
        if isinstance(module, _NormBase):
            own = ("running_mean", "running_var", "num_batches_tracked")
            self._statistics.update([id(held[buffer]) for buffer in own if buffer in held])
        found: list[_Record] = [
            _Object(name, module, private_of(module)),
            _Attributes(name, module._parameters),
            _Attributes(name, held),
            _Attributes(name, module._modules),
        ]
        if not torch.compiler.is_compiling() and (slots := _about(type(module))[1]):
            found.append(_Slots(name, module, slots))
        return found


class _Record:
    """One thing that can change."""

    name: str
    value: Any
    is_object = False

    def changed(self) -> Iterable[str]:
        """Names of what has."""
        return ()

    def restore(self) -> None:
        """Put it back; what has not changed is not written to."""

    def rewind(self) -> None:
        """See :meth:`Kept.rewind`."""
        self.restore()

    def inside(self) -> Iterable[tuple[str, Any]]:
        """What is in it."""
        return ()

    def named(self, key: str) -> str:
        """The name of what is in it."""
        return self.name


class _Named(_Record):
    """What holds others by name."""

    _before: dict[str, Any]

    def _changed(self) -> list[str]:
        """Which names stand for something else now."""
        raise NotImplementedError

    def changed(self) -> Iterable[str]:
        return [self.named(name) for name in self._changed()]

    def inside(self) -> Iterable[tuple[str, Any]]:
        return self._before.items()

    def named(self, key: str) -> str:
        return f"{self.name}.{key}"


def _others(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = {**now, **before}
    return [n for n in names if now.get(n, _GONE) is not before.get(n, _GONE)]


class _Attributes(_Named):
    def __init__(
        self, name: str, value: dict[str, Any], private: frozenset[str] = frozenset()
    ) -> None:
        self.name, self.value, self._held, self._private = name, value, value, private
        self._before = dict(value)

    def _changed(self) -> list[str]:
        before, now = self._before, self._held
        same = len(before) == len(now) and all(map(operator.is_, before.values(), now.values()))
        if same and before.keys() == now.keys():
            return []
        return [name for name in _others(before, now) if name not in self._private]

    def restore(self) -> None:
        if self._changed():
            for name in self._held.keys() - self._before.keys() - self._private:
                del self._held[name]
            self._held.update(self.inside())

    def rewind(self) -> None:
        still = {n for n, value in self._held.items() if not isinstance(value, nn.Module)}
        self._held.update({n: value for n, value in self.inside() if n in still})

    def inside(self) -> Iterable[tuple[str, Any]]:
        return [(n, value) for n, value in self._before.items() if n not in self._private]


class _Object(_Attributes):
    """The attributes of an object or module."""

    is_object = True

    def __init__(self, name: str, value: Any, private: frozenset[str] = frozenset()) -> None:
        super().__init__(name, vars(value), private)
        self.value = value


class _Slots(_Named):
    is_object = True

    def __init__(self, name: str, value: Any, names: Iterable[str]) -> None:
        self.name, self.value, self._names = name, value, tuple(names)
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        return {name: getattr(self.value, name, _GONE) for name in self._names}

    def _changed(self) -> list[str]:
        return _others(self._before, self._now())

    def restore(self) -> None:
        for name in self._changed():
            if self._before[name] is _GONE:
                object.__delattr__(self.value, name)
            else:
                object.__setattr__(self.value, name, self._before[name])


class _Class(_Named):
    """What stands in a class that a user wrote."""

    def __init__(self, value: type) -> None:
        self.name, self.value = value.__name__, value
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        return {n: value for n, value in vars(self.value).items() if not n.startswith("__")}

    def _changed(self) -> list[str]:
        return _others(self._before, self._now())

    def restore(self) -> None:
        for name in self._changed():
            if name in self._before:
                setattr(self.value, name, self._before[name])
            else:
                delattr(self.value, name)


class _Items(_Record):
    """What is in a list, dict, set or deque."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self._before = name, value, _copied(value)

    def changed(self) -> Iterable[str]:
        return [self.name] if _differ(self._before, self.value) else ()

    def restore(self) -> None:
        if _differ(self._before, self.value):
            self.value.clear()
            grow = getattr(self.value, "extend", None) or self.value.update
            grow(self._before)

    def rewind(self) -> None:
        if not any(isinstance(item, nn.Module) for item in items(self.value) or ()):
            self.restore()

    def inside(self) -> Iterable[tuple[str, Any]]:
        return [("", v) for v in items(self._before) or ()] if len(self._before) <= _MANY else ()


class _Fixed(_Record):
    """What holds other things and cannot change itself."""

    def __init__(self, name: str, value: Any, held: list[Any]) -> None:
        self.name, self.value, self._held = name, value, held

    def inside(self) -> Iterable[tuple[str, Any]]:
        return [("", value) for value in self._held[:_MANY]]


class _Tensor(_Record):
    def __init__(self, name: str, value: Tensor, copied: bool, counts: bool) -> None:
        self.name, self.value, self._version = name, value, _version(value)
        self._before = self._data = None
        if copied and _dense(value):
            self._before, self._data = value.detach().clone(), value.data
        self._counts = counts

    def changed(self) -> Iterable[str]:
        same = _version(self.value) == self._version
        if same and self._before is not None:  # what is written by way of .data is not counted
            same = _equal(self._before, self.value)
        return () if same or not self._counts else [self.name]

    def restore(self) -> None:
        if self._before is not None and self._data is not None:
            if self.value.shape != self._before.shape:
                self.value.data = self._data.resize_(self._before.shape)
            if not _equal(self._before, self.value):
                with torch.no_grad():
                    self.value.copy_(self._before)
            self._version = _version(self.value)


def _dense(tensor: Tensor) -> bool:
    """Whether it can be copied and compared like any other."""
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return ordinary and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


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
        return () if repr(_place(self.value)) == repr(self._before) else [self.name]

    def restore(self) -> None:
        place, generator = self._before, self.value
        if isinstance(generator, torch.Generator):
            generator.set_state(torch.tensor(place, dtype=torch.uint8))
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = place
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(place)
        else:
            generator.setstate(place)


def _place(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, np.random.Generator):
        state = generator.bit_generator.state
        return {**state, "state": {k: _listed(v) for k, v in state["state"].items()}}
    if isinstance(generator, np.random.RandomState):
        name, key, *rest = generator.get_state()
        return (name, _listed(key), *rest)
    return generator.getstate()


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
# of classes, those that a user wrote of them and their bases, and their slots
_kinds: weakref.WeakKeyDictionary[type, tuple[list[type], list[str]]] = weakref.WeakKeyDictionary()


def _about(kind: type) -> tuple[list[type], list[str]]:
    known = _kinds.get(kind)
    if known is None:
        known = _kinds[kind] = written(kind), slots_of(kind)
    return known


_PYTHON: Any = getattr(random, "_inst")  # noqa: B009 - not in its stubs
_NUMPY: Any = np.random.mtrand._rand


def private_of(module: nn.Module) -> frozenset[str]:
    """Names of attributes that torch and this library keep for themselves."""
    own: frozenset[str] = getattr(type(module), "_tracetorch_private", TORCHS)
    return own


def _copied(value: Any) -> Any:
    kind = next((kind for kind in (dict, set) if isinstance(value, kind)), list)
    return kind(value)


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
    return before.shape == now.shape and (
        torch.equal(before, now)
        or bool(((before == now) | ((before != before) & (now != now))).all())
    )


_GONE = object()
