"""The one walk over layers: wherever they hide in a module, each once, under a stable name.

Registered submodules come first, under torch's own names. Then everything a module holds in
ordinary attributes: containers and plain objects, at any depth. What a *plain object* refers to
is taken as the module's own, except modules that are or contain a ``tt.Model``: a trainer or
logger that points at a model (this one or another) does not drag it in.
"""

from __future__ import annotations

import contextlib
import enum
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.layer import Layer
from tracetorch.modules import Bookkeeping

# what holds no layers; a bound method is called back on whatever it is of: that is not held
_ENDS = (
    Tensor, np.ndarray, bytearray, str, bytes, int, float, complex, type(None), type,
    types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, enum.Enum,
    torch.dtype, torch.device, weakref.ProxyType, weakref.CallableProxyType, Bookkeeping,
)  # fmt: skip
# attributes that torch looks after
_TORCHS = frozenset(vars(nn.Module()))

Found = Iterator[tuple[str, Layer]]


class Boundary(nn.Module):
    """Marks modules that own their layers (``tt.Model``): plain objects do not lead into them."""


def named_layers(root: nn.Module) -> Found:
    """Every layer of ``root`` with its qualified name; ``""`` if ``root`` itself is one.

    Args:
        root: any module; a layer is found in its submodules, containers and plain objects.

    Returns:
        Pairs of name and layer, each layer once, in the order of the walk.

    Example:
        >>> import tracetorch as tt
        >>> net = nn.Sequential(nn.Linear(2, 3), tt.testing.Trace(3))
        >>> [name for name, layer in named_layers(net)]
        ['1']
    """
    names: dict[str, int] = {}
    for name, layer in _in_module(root, "", {}, in_object=False):
        names[name] = names.get(name, 0) + 1
        yield (name if names[name] == 1 else f"{name}#{names[name]}"), layer


def unregistered(root: nn.Module) -> Iterator[Layer]:
    """The layers that torch does not see, nor a model that it sees."""
    reached = set(map(id, root.modules()))
    inner = [m for m in root.modules() if isinstance(m, Boundary) and m is not root]
    reached.update(id(layer) for model in inner for _, layer in named_layers(model))
    for _, layer in named_layers(root):
        if id(layer) not in reached:
            yield layer
            reached.update(map(id, layer.modules()))


def _in_module(module: nn.Module, path: str, seen: dict[int, object], in_object: bool) -> Found:
    inside = [(_join(path, name), m) for name, m in module.named_modules() if id(m) not in seen]
    seen.update((id(m), m) for _, m in inside)
    yield from ((name, m) for name, m in inside if isinstance(m, Layer))
    for name, m in inside:
        for attribute, value in list(vars(m).items()):
            if attribute not in _TORCHS:
                yield from _in_value(value, _join(name, attribute), seen, in_object)


def _in_value(value: Any, path: str, seen: dict[int, object], in_object: bool) -> Found:
    if type(value) in _ENDS or isinstance(value, _ENDS) or id(value) in seen:
        return
    if isinstance(value, nn.Module):
        if not (in_object and any(isinstance(m, Boundary) for m in value.modules())):
            yield from _in_module(value, path, seen, in_object)
        return
    seen[id(value)] = value
    plain = not isinstance(value, (Mapping, list, tuple, deque, set, frozenset))
    for key, item in _items(value, seen, in_object):
        yield from _in_value(item, _join(path, key), seen, in_object or plain)


def _items(value: Any, seen: dict[int, object], in_object: bool) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        entries = enumerate(list(value.items()))
        return [(_key(key, index), item) for index, (key, item) in entries]
    if isinstance(value, (list, tuple, deque)):
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return _in_order_of_construction(value, seen, in_object)
    return list(_attributes(value).items())


def _attributes(value: Any) -> dict[str, Any]:
    """What a plain object holds by name."""
    slots = [
        name
        for base in type(value).__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
    found = {}
    for name in (*slots, "__dict__"):
        with contextlib.suppress(Exception):  # unset, and whatever else the class makes of that
            found[name] = getattr(value, name)
    named = found.pop("__dict__", {})
    return {**found, **named}


def _key(key: Any, index: int) -> str:
    """A key's name: itself, or its place where its ``repr`` may differ from process to process."""
    if isinstance(key, str):
        return key
    parts = key if isinstance(key, tuple) else (key,)
    lasting = all(isinstance(part, (str, bytes, int, float, complex, type(None))) for part in parts)
    return repr(key) if lasting else str(index)


def _in_order_of_construction(
    items: Any, seen: dict[int, object], in_object: bool
) -> list[tuple[str, Any]]:
    ordered = []
    for item in items:
        layers = [layer for _, layer in _in_value(item, "", dict(seen), in_object)]
        if layers:
            ordered.append((sorted(layer.tt.construction for layer in layers), item))
    ordered.sort(key=lambda pair: pair[0])
    return [(str(index), item) for index, (_, item) in enumerate(ordered)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
