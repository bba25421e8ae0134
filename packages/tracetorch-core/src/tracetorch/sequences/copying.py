"""Copies of all that can be reached from something, each made once and known by its original.

What a function, class or module is, is shared; tensors share their memory until one is written to;
bound methods, weak references and caches lead to the copies. What cannot be copied is named.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import enum
import functools
import re
import types
import weakref
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.modules import Bookkeeping, gathers
from tracetorch.reasons import Unfoldable, Unfolded
from tracetorch.written import settled

ATOMIC = (
    str, bytes, int, float, complex, type(None), type(...), type(NotImplemented), range, type,
    types.ModuleType, types.FunctionType, types.CodeType, property, staticmethod, classmethod,
    re.Pattern, enum.Enum, torch.dtype, torch.device, torch.layout, np.dtype, np.generic,
)  # fmt: skip
CACHED: Any = type(functools.cache(len))
REFERENCES: tuple[Any, ...] = (weakref.ref, *weakref.ProxyTypes)
_STORES = ("_parameters", "_buffers", "_modules")
_PRIMITIVE = (str, bytes, int, float, complex, bool)
# more objects than a model, and what its code names, should be
_MOST = 200_000


class Pair(NamedTuple):
    """A thing, by what it is called, and its copy."""

    name: str
    original: Any
    copy: Any


class Copier:
    """Makes copies, and knows what it has made.

    Attributes:
        pairs: originals with their copies, in which they live on.
        modules: the copies of modules.
        functions: those that were found on the way, and were not copied.
        classes: the same of classes, those of what was copied among them.
        shared: what a user wrote and there is only one of, by id: modules, members of an enum,
            objects that are their own copy.
    """

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.modules: list[nn.Module] = []
        self.functions: dict[types.FunctionType, None] = {}
        self.classes: dict[type, None] = {}
        self.shared: dict[int, Any] = {}
        self._memo: dict[int, Any] = {}
        self._ours: list[Bookkeeping] = []

    def of(self, value: Any, default: Any) -> Any:
        """The copy of a value, if there is one."""
        return self._memo.get(id(value), default)

    def copied(self, value: Any, name: str) -> Any:
        """The copy of a value.

        Raises:
            Unfoldable: it, or something in it, cannot be copied.
        """
        if type(value) in weakref.ProxyTypes:  # which may be dead, and then answers nothing
            return self._reference(value, name)
        if isinstance(value, ATOMIC) and not _extended(value):
            self.look(value)
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, Bookkeeping):
            self._ours.append(value)  # one that a module makes for its copy may be gone, its id new
            return self._memo.setdefault(id(value), value.renewed())
        if len(self._memo) > _MOST:
            raise Unfoldable(Unfolded.UNCOPIED, f"{name} with all that it holds")
        self.classes.setdefault(type(value))
        try:
            found = self._made(value, name)
        except Unfoldable:
            raise
        except Exception as error:
            kind = type(value).__name__
            raise Unfoldable(Unfolded.UNCOPIED, f"{name} ({kind}: {error})") from None
        if found is value:
            self._look_at_the_one(value, name)
        if id(value) not in self._memo:
            self._remember(value, found, name)
        return found

    def release(self) -> None:
        """Forget the copies, and give originals their memory for themselves.

        What shares its memory until a write cannot be resized, as ``fully_shard`` of torch does.
        """
        originals = [pair.original for pair in self.pairs]
        for made in (self.pairs, self.modules, self._memo):
            made.clear()
        for original in originals:
            if type(original) in mode.PLAIN:
                with contextlib.suppress(Exception):  # of no memory: meta, sparse
                    original.data_ptr()

    def look(self, value: Any) -> None:
        """Note what is not copied, and may lead to more."""
        if isinstance(value, types.FunctionType):
            self.functions.setdefault(value)
        elif isinstance(value, type):
            self.classes.setdefault(value)
        elif isinstance(value, types.ModuleType):
            if not settled(value.__name__):
                self.shared[id(value)] = value
        elif type(getattr(value, "__dict__", None)) is dict:
            self.classes.setdefault(type(value))
            self.shared[id(value)] = value

    def _look_at_the_one(self, value: Any, name: str) -> None:
        """Of what is its own copy: what it holds by name can be exchanged, its items cannot."""
        self.look(value)
        items = isinstance(value, (list, dict, set, deque, bytearray))
        if items or (id(value) not in self.shared and attributes_of(value)):
            raise Unfoldable(Unfolded.UNCOPIED, f"{name} ({type(value).__name__} is one of a kind)")

    def _remember(self, value: Any, found: Any, name: str) -> None:
        self._memo[id(value)] = found
        self.pairs.append(Pair(name, value, found))  # keeps both alive, so that ids stay theirs

    def _made(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return value.copy(order="K")
        if isinstance(value, types.MethodType):
            self.look(value.__func__)
            return types.MethodType(value.__func__, self.copied(value.__self__, name))
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            shared = owner is None or isinstance(owner, (types.ModuleType, type))
            return value if shared else getattr(self.copied(owner, name), value.__name__)
        if isinstance(value, CACHED):
            cached: Any = value
            self.look(cached.__wrapped__)
            return functools.lru_cache(**cached.cache_parameters())(cached.__wrapped__)
        if isinstance(value, REFERENCES):
            return self._reference(value, name)
        if isinstance(value, (tuple, frozenset)):
            return self._fixed(value, name)
        if isinstance(value, types.MappingProxyType):
            return types.MappingProxyType(self.copied(dict(value), name))
        if isinstance(value, nn.Module):
            return self._module(value, name)
        if hasattr(type(value), "__deepcopy__"):
            return copy.deepcopy(value, self._memo)
        return self._rebuilt(value, name)

    def _fixed(self, value: Any, name: str) -> Any:
        if attributes_of(value):
            return self._rebuilt(value, name)
        kind, items = type(value), [self.copied(item, name) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return tuple.__new__(kind, items) if isinstance(value, tuple) else kind(items)

    def _module(self, module: Any, name: str) -> Any:
        if gathers(module):
            raise Unfoldable(Unfolded.SHARDED, type(module).__name__)
        if isinstance(module, torch.jit.ScriptModule):
            found = copy.deepcopy(module, self._memo)
        elif type(module).__module__.startswith("torch._dynamo"):  # compiled; this one need not be
            return self.copied(module._modules["_orig_mod"], name)
        else:
            found = self._rebuilt(module, name)
        self.modules.append(found)
        return found

    def _rebuilt(self, value: Any, name: str) -> Any:
        """Of an object, as copy and pickle take it apart."""
        parts = reduced(value)
        if isinstance(parts, str):
            return value
        make, args, state, items, pairs = parts
        found = make(*[self.copied(arg, name) for arg in args])
        self._remember(value, found, name)
        if state is not None:
            _put_state(found, self._state(value, state, name))
        for item in items or ():
            found.append(self.copied(item, name))
        for key, item in pairs or ():
            found[self.copied(key, name)] = self.copied(item, name)
        return found

    def _state(self, owner: Any, state: Any, name: str) -> Any:
        """Of an object's state, in which things are named by its attributes."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            return self._state(owner, state[0], name), self._state(owner, state[1], name)
        if type(state) is not dict:
            return self.copied(state, name)
        found = {}
        for key, item in state.items():
            if isinstance(owner, nn.Module) and key in _STORES:
                found[key] = self._state(owner, item, name)
                self._remember(item, found[key], attribute(owner, ""))
            else:
                found[key] = self.copied(item, attribute(owner, key))
        return found

    def _tensor(self, tensor: Tensor, name: str) -> Tensor:
        found: Tensor
        if type(tensor) not in mode.PLAIN:
            return copy.deepcopy(tensor, self._memo)
        data = _sharing(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            found = nn.Parameter(data, requires_grad=tensor.requires_grad)
        else:
            found = data.requires_grad_(tensor.requires_grad)
        self._remember(tensor, found, name)
        if tensor.is_leaf and tensor.grad is not None:
            found.grad = self.copied(tensor.grad, f"{name}.grad")
        for key, held in vars(tensor).items():
            vars(found)[key] = self.copied(held, f"{name}.{key}")
        return found

    def _reference(self, value: Any, name: str) -> Any:
        if issubclass(type(value), weakref.ref):
            target = value()
            return value if target is None else type(value)(self.copied(target, name))
        try:
            target = value.__repr__.__self__
        except ReferenceError:
            return value
        return weakref.proxy(self.copied(target, name))


def _put_state(found: Any, state: Any) -> None:
    if hasattr(found, "__setstate__"):
        found.__setstate__(state)
        return
    named, slots = state if isinstance(state, tuple) else (state, None)
    if named:
        vars(found).update(named)
    for slot, held in (slots or {}).items():
        object.__setattr__(found, slot, held)


def attribute(owner: Any, name: object) -> str:
    """What an attribute is called."""
    return f"{type(owner).__name__}.{name}"


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object holds by name, in its dictionary and in slots."""
    found = {}
    for base in type(value).__mro__:
        for name, member in vars(base).items() if "__slots__" in vars(base) else ():
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(Exception):  # unset, or whatever its class makes of it
                    found[name] = getattr(value, name)
    held = getattr(value, "__dict__", None)
    return {**found, **held} if type(held) is dict else found


def plainly_made(kind: type) -> bool:
    """Whether what objects of a class hold by name is all their state."""
    ways = ("__reduce_ex__", "__reduce__", "__getstate__")
    return all(getattr(kind, way, None) is getattr(object, way, None) for way in ways)


def _extended(value: Any) -> bool:
    """Whether a value of a kind that cannot change is of a subclass that can."""
    if not isinstance(value, _PRIMITIVE) or isinstance(value, enum.Enum):
        return False
    return type(value) not in _PRIMITIVE and bool(attributes_of(value))


def reduced(value: Any) -> Any:
    """What a value is made of, as pickle and copy have it; a name, where it stands for itself."""
    reduce = copyreg.dispatch_table.get(type(value))
    parts = reduce(value) if reduce else value.__reduce_ex__(4)
    return parts if isinstance(parts, str) else (*parts, *(None,) * 5)[:5]


def size_of(value: Tensor | np.ndarray[Any, Any]) -> int:
    """How many elements there are."""
    return int(value.numel() if isinstance(value, Tensor) else value.size)


def _sharing(tensor: Tensor) -> Tensor:
    """A copy that shares its memory until one of the two is written to, where torch can do that."""
    lazily: Any = getattr(torch, "_lazy_clone", torch.clone)
    with contextlib.suppress(Exception):
        return lazily(tensor)  # type: ignore[no-any-return]
    return tensor.clone()
