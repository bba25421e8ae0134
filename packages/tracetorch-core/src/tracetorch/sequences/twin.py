"""A copy of a model to try things out on, in copies of what its code refers to.

Everything that can be reached from the model is copied: attributes, containers, objects, tensors
(which share their memory until one is written to), bound methods, closures. While the copy runs,
copies also stand in for what lies elsewhere: globals, class attributes, defaults and attributes of
functions that the code of its ``forward`` names. Afterwards all is as it was, and :meth:`Twin.changes`
tells what the copies have become. What cannot be copied is named.
"""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import enum
import functools
import re
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tracetorch import mode
from tracetorch.declaration import Bookkeeping
from tracetorch.reasons import Unfoldable, Unfolded
from tracetorch.written import cells_of, names_of, settled, unwrapped, written

_ATOMIC = (
    str, bytes, int, float, complex, type(None), type(...), type(NotImplemented), range, type,
    types.ModuleType, types.FunctionType, types.CodeType, property, staticmethod, classmethod,
    re.Pattern, enum.Enum, torch.dtype, torch.device, torch.layout, np.dtype, np.generic,
)  # fmt: skip
_CACHED: Any = type(functools.cache(len))
_GONE = object()
# more objects than a model and what its code names should be
_MOST = 200_000


class _Pair(NamedTuple):
    name: str
    original: Any
    copy: Any


class _Site(NamedTuple):
    """A place outside of the model that its code refers to."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]
    original: Any
    copy: Any


class Twin:
    """See the module.

    Args:
        model: what to copy.

    Raises:
        Unfoldable: something cannot be copied; the reason names it.

    Attributes:
        model: the copy.
        modules: all copies of modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._memo: dict[int, Any] = {}
        self._pairs: list[_Pair] = []
        self._functions: list[types.FunctionType] = []
        self._statistics: set[int] = set()
        self.modules: list[nn.Module] = []
        self.model: nn.Module = self._copied(model, type(model).__name__)
        self._training = [module.training for module in self.modules]
        self._sites = [*self._surroundings()]
        self._found: set[str] = set()

    def run(self, what: Callable[[], None]) -> None:
        """Run something with the copy; what it does to the surroundings is done to copies."""
        context = contextvars.copy_context()
        for site in self._sites:
            site.put(site.copy)
        try:
            context.run(what)
        finally:
            for site in reversed(self._sites):
                if _now(site.get) is not site.copy:
                    self._found.add(site.name)
                site.put(site.original)
        for variable in context:
            if variable.get(_GONE) is not context[variable]:
                self._found.add(f"the context variable {variable.name}")

    def train(self, training: bool) -> None:
        """All copies of modules, however they are held, in training or evaluation."""
        for module in self.modules:
            module.training = training

    def changes(self) -> list[str]:
        """Names of what the copy has changed.

        Not the statistics that torch's own normalizations write: those of a batch are theirs.
        """
        for module, training in zip(self.modules, self._training, strict=True):
            module.training = training
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for pair in self._pairs:
                if id(pair.original) not in self._statistics:
                    self._found.update(self._differing(pair))
        return sorted(self._found)

    # ------------------------------------------------------------------ copying

    def _copied(self, value: Any, name: str) -> Any:
        if isinstance(value, _ATOMIC):
            if isinstance(value, types.FunctionType):
                self._functions.append(value)
            return value if not _extended(value) else self._kept(value, name)
        known = self._memo.get(id(value), _GONE)
        return known if known is not _GONE else self._kept(value, name)

    def _kept(self, value: Any, name: str) -> Any:
        if len(self._memo) > _MOST:
            raise Unfoldable(Unfolded.UNCOPIED, f"{name} with all that it holds")
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, Bookkeeping):
            return value.renewed()
        try:
            found = self._made(value, name)
        except Unfoldable:
            raise
        except Exception as error:
            kind = type(value).__name__
            raise Unfoldable(Unfolded.UNCOPIED, f"{name} ({kind}: {error})") from None
        if id(value) not in self._memo:
            self._remember(value, found, name)
        return found

    def _remember(self, value: Any, found: Any, name: str) -> None:
        self._memo[id(value)] = found
        self._pairs.append(_Pair(name, value, found))  # keeps both alive, so that ids stay theirs

    def _made(self, value: Any, name: str) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return value.copy(order="K")
        if isinstance(value, types.MethodType):
            self._functions.append(value.__func__)
            return types.MethodType(value.__func__, self._copied(value.__self__, name))
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            if owner is None or isinstance(owner, (types.ModuleType, type)):
                return value
            return getattr(self._copied(owner, name), value.__name__)
        if isinstance(value, _CACHED):
            self._functions += [f for f in (value.__wrapped__,) if isinstance(f, types.FunctionType)]
            return functools.lru_cache(**value.cache_parameters())(value.__wrapped__)
        if isinstance(value, (weakref.ref, *weakref.ProxyTypes)):
            return self._reference(value, name)
        if isinstance(value, (tuple, frozenset)):
            items = [self._copied(item, name) for item in value]
            if all(map(_same, items, value)):
                return value
            return tuple.__new__(kind, items) if isinstance(value, tuple) else kind(items)
        if isinstance(value, nn.Module):
            return self._module(value, name)
        if hasattr(value, "__deepcopy__"):
            return value.__deepcopy__(self._memo)
        return self._rebuilt(value, name)

    def _module(self, module: nn.Module, name: str) -> nn.Module:
        compiled = vars(module).get("_modules", {}).get("_orig_mod")
        if compiled is not None and type(module).__module__.startswith("torch._dynamo"):
            found: nn.Module = self._copied(compiled, name)
            return found
        if isinstance(module, _NormBase):
            own = ("running_mean", "running_var", "num_batches_tracked")
            self._statistics.update(id(module._buffers.get(buffer)) for buffer in own)
        if isinstance(module, torch.jit.ScriptModule):
            found = module.__deepcopy__(self._memo)  # type: ignore[no-untyped-call]
        else:
            found = self._rebuilt(module, name)
        self.modules.append(found)
        return found

    def _rebuilt(self, value: Any, name: str) -> Any:
        parts = _reduced(value)
        if isinstance(parts, str):
            return value
        make, args, state, items, pairs = parts
        found = make(*[self._copied(arg, name) for arg in args])
        self._remember(value, found, name)
        if state is not None:
            own = self._state(value, state, name)
            if hasattr(found, "__setstate__"):
                found.__setstate__(own)
            else:
                named, slots = own if isinstance(own, tuple) else (own, None)
                if named:
                    vars(found).update(named)
                for slot, held in (slots or {}).items():
                    object.__setattr__(found, slot, held)
        for item in items or ():
            found.append(self._copied(item, name))
        for key, item in pairs or ():
            found[self._copied(key, name)] = self._copied(item, name)
        return found

    def _state(self, owner: Any, state: Any, name: str) -> Any:
        """A copy of an object's state, in which things are named by its attributes."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            return self._state(owner, state[0], name), self._state(owner, state[1], name)
        if type(state) is not dict:
            return self._copied(state, name)
        found = {}
        for key, item in state.items():
            if isinstance(owner, nn.Module) and key in ("_parameters", "_buffers", "_modules"):
                found[key] = self._state(owner, item, name)
                self._remember(item, found[key], _attribute(owner, key))
            else:
                found[key] = self._copied(item, _attribute(owner, key))
        return found

    def _tensor(self, tensor: Tensor, name: str) -> Tensor:
        if type(tensor) not in mode.PLAIN:
            found: Tensor = tensor.__deepcopy__(self._memo)
            return found
        data = _shared(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            found = nn.Parameter(data, requires_grad=tensor.requires_grad)
        else:
            found = data.requires_grad_(tensor.requires_grad)
        self._remember(tensor, found, name)
        if tensor.is_leaf and tensor.grad is not None:
            found.grad = self._copied(tensor.grad, f"{name}.grad")
        for key, held in vars(tensor).items():
            vars(found)[key] = self._copied(held, f"{name}.{key}")
        return found

    def _reference(self, value: Any, name: str) -> Any:
        if isinstance(value, weakref.ref):
            target = value()
            return value if target is None else type(value)(self._copied(target, name))
        try:
            target = value.__repr__.__self__
        except ReferenceError:
            return value
        return weakref.proxy(self._copied(target, name))

    # ------------------------------------------------------------------ comparing

    def _differing(self, pair: _Pair) -> Iterator[str]:
        name, one, other = pair
        if one is other:
            return
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if not _same_tensor(one, other) or not self._match(vars(one), vars(other)):
                yield name
            elif one.is_leaf and not self._match(one.grad, other.grad):
                yield name
            return
        try:
            yield from self._differing_parts(name, one, other)
        except Exception:  # of a user's class, which does not want to be read any more
            yield name

    def _differing_parts(self, name: str, one: Any, other: Any) -> Iterator[str]:
        held, now = vars_of(one), vars_of(other)
        if held is not None and now is not None:
            for key in {**held, **now}:
                if key == "tt" and isinstance(one, nn.Module):
                    continue
                if not self._match(held.get(key, _GONE), now.get(key, _GONE)):
                    yield _attribute(one, key)
            if isinstance(one, nn.Module):
                return
        if isinstance(one, np.ndarray):
            same = one.shape == other.shape and one.tobytes() == other.tobytes()
        elif isinstance(one, (set, frozenset)):
            same = len(one) == len(other) and {*map(self._expected, one)} == {*other}
        elif isinstance(one, (weakref.ref, *weakref.ProxyTypes, *_CALLS)):
            same = True
        else:
            parts, found = _reduced(one), _reduced(other)
            same = self._match_parts(parts, found, held is not None)
        if not same:
            yield name

    def _match_parts(self, one: Any, other: Any, looked: bool) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return bool(one == other)
        states = (one[2], other[2])
        if looked:  # into the dictionary of attributes: what is beside it are slots
            slots = [state[1] for state in states if isinstance(state, tuple) and len(state) == 2]
            states = (slots[0], slots[1]) if len(slots) == 2 else (None, None)
        listed = [[*(part or ())] for part in (one[3], other[3], one[4], other[4])]
        return (
            self._match(one[1], other[1])
            and self._match(*states)
            and self._match(listed[0], listed[1])
            and self._match(listed[2], listed[3])
        )

    def _expected(self, value: Any) -> Any:
        return self._memo.get(id(value), value)

    def _match(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether something is the copy of something, or the same once more."""
        if other is one or other is self._memo.get(id(one), _GONE):
            return True
        if id(one) in self._memo or type(one) is not type(other) or depth > 20:
            return False
        if isinstance(one, _ATOMIC):
            return bool(one == other) or one != one
        if isinstance(one, (tuple, list)):
            return len(one) == len(other) and all(
                self._match(a, b, depth + 1) for a, b in zip(one, other, strict=True)
            )
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(
                self._match(item, other[key], depth + 1) for key, item in one.items()
            )
        if isinstance(one, np.ndarray):
            return one.shape == other.shape and one.tobytes() == other.tobytes()
        if isinstance(one, Tensor):
            return _same_tensor(one, other)
        return False

    # ------------------------------------------------------------------ surroundings

    def _surroundings(self) -> Iterator[_Site]:
        """Globals, class attributes, closures, defaults: what the code of ``forward`` names."""
        classes = {
            base: None
            for pair in [*self._pairs]
            for kind in (type(pair.original), type(type(pair.original)))
            for base in written(kind)
        }
        queue = [*self._functions]
        for base in classes:
            queue += [f for n in ("forward", "__call__") if (f := _function(vars(base).get(n)))]
        seen: set[Any] = set()
        while queue:
            function = queue.pop()
            if function in seen or settled(function.__module__):
                continue
            seen.add(function)
            before = len(self._functions)
            mentioned = names_of(function).mentioned
            for site in self._places(function, mentioned, classes):
                key = (site[0], site[1])
                if key in seen:
                    continue
                seen.add(key)
                yield from self._site(*site, queue, classes)
            queue += self._functions[before:]

    def _places(
        self, function: types.FunctionType, mentioned: frozenset[str], classes: dict[type, None]
    ) -> Iterator[tuple[int, str, str, Any, Callable[[], Any], Callable[[Any], None]]]:
        """Where a function finds things: an owner's id, a name there, a name to say, how to."""
        own = function.__name__
        for name, cell in cells_of(function):
            yield (id(cell), name, f"{name} of {own}", cell, *_attribute_of(cell, "cell_contents"))
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                says = f"a default of {own}"
                yield (id(function), name, says, function, *_attribute_of(function, name))
        for name in vars(function):
            if name != "__wrapped__":
                says = f"{own}.{name}"
                yield (id(function), name, says, function, *_item_of(vars(function), name))
        known = function.__globals__
        for name in names_of(function).read | names_of(function).written:
            if name in known:
                yield (id(known), name, f"the global {name}", known, *_item_of(known, name))
                value = known[name]
                if isinstance(value, types.ModuleType) and not settled(value.__name__):
                    for inner in mentioned & vars(value).keys():
                        says = f"{name}.{inner}"
                        yield (id(value), inner, says, value, *_item_of(vars(value), inner))
        for kind in [*classes]:
            for name in mentioned & vars(kind).keys():
                if not name.startswith("__"):
                    says = f"{kind.__name__}.{name}"
                    yield (id(kind), name, says, kind, *_attribute_of(kind, name))

    def _site(
        self,
        owner: int,
        key: str,
        name: str,
        held: Any,
        get: Callable[[], Any],
        put: Callable[[Any], None],
        queue: list[types.FunctionType],
        classes: dict[type, None],
    ) -> Iterator[_Site]:
        del owner
        original = vars(held)[key] if isinstance(held, type) else _now(get)
        function = _function(original)
        if function is not None:
            queue.append(function)
            if not isinstance(original, _CACHED):
                return
        for kind in (original,) if isinstance(original, type) else (type(original),):
            classes.update(dict.fromkeys([*written(kind), *written(type(kind))]))
        if isinstance(original, types.ModuleType) or hasattr(type(original), "__set__"):
            return
        if isinstance(original, type) or settled(getattr(type(original), "__module__", "")) and (
            isinstance(original, (types.BuiltinFunctionType, functools.partial))
        ):
            return
        large = isinstance(original, (Tensor, np.ndarray)) and _size(original) > 1 << 24
        copy = original if large else self._copied(original, name)
        yield _Site(name, get, put, original, copy)


_CALLS = (types.MethodType, types.BuiltinFunctionType, functools.partial, _CACHED)


def vars_of(value: Any) -> dict[str, Any] | None:
    """The dictionary of an object's attributes, if it has one."""
    held = getattr(value, "__dict__", None)
    return held if type(held) is dict else None


def _attribute(owner: Any, name: object) -> str:
    return f"{type(owner).__name__}.{name}"


def _extended(value: Any) -> bool:
    """Whether a value of a kind that cannot change is of a subclass that can."""
    kind = type(value)
    if not isinstance(value, (str, bytes, int, float, complex)) or isinstance(value, enum.Enum):
        return False
    return kind not in (str, bytes, int, float, complex, bool) and bool(vars_of(value))


def _reduced(value: Any) -> Any:
    """What a value is made of, as pickle and copy have it; a name, where it stands for itself."""
    reduce = copyreg.dispatch_table.get(type(value))
    parts = reduce(value) if reduce else value.__reduce_ex__(4)
    return parts if isinstance(parts, str) else (*parts, *(None,) * 5)[:5]


def _same(one: Any, other: Any) -> bool:
    return one is other


def _now(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception:  # it has been deleted
        return _GONE


def _function(value: Any) -> types.FunctionType | None:
    found = unwrapped(value)
    return found if isinstance(found, types.FunctionType) else None


def _attribute_of(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return functools.partial(getattr, owner, name), functools.partial(setattr, owner, name)


def _item_of(held: dict[str, Any], name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return functools.partial(held.__getitem__, name), functools.partial(held.__setitem__, name)


def _size(value: Any) -> int:
    return int(value.numel() if isinstance(value, Tensor) else value.size)


def _shared(tensor: Tensor) -> Tensor:
    """A copy that shares its memory until one of the two is written to, where torch can do that."""
    with contextlib.suppress(Exception):
        return torch._lazy_clone(tensor)  # type: ignore[no-any-return]
    return tensor.clone()


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether values are the same, NaN included, and what torch is to do with them."""
    if (one.shape, one.dtype, one.requires_grad) != (other.shape, other.dtype, other.requires_grad):
        return False
    if one.is_meta or one.layout is not torch.strided or one.is_quantized:
        return True
    address: Any = torch._C._data_address if hasattr(torch._C, "_data_address") else None
    if address is not None and address(one) == address(other):
        return True
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
