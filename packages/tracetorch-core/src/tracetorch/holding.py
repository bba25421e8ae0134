"""What a value holds, one step deep. Knows kinds of values, nothing of what is done with them."""

from __future__ import annotations

import contextlib
import enum
import functools
import sys
import types
import weakref
from collections import UserDict, UserList, deque
from typing import Any

import torch

_LEAVES = (
    str, bytes, int, float, complex, type(None), type, types.ModuleType, types.FunctionType,
    types.BuiltinFunctionType, enum.Enum, torch.dtype, torch.device, torch.Size,
    weakref.ProxyType, weakref.CallableProxyType,
)  # fmt: skip
# of Python's own, those that are made to be written to
_OPEN = (types.SimpleNamespace, UserDict, UserList)


def is_leaf(value: Any) -> bool:
    """Whether there is nothing in it that could change."""
    return type(value) in _LEAVES or isinstance(value, _LEAVES)


def settled(module: str | None) -> bool:
    """Whether code of a module is this library's, torch's, NumPy's or Python's."""
    root = (module or "").partition(".")[0]
    return root in ("tracetorch", "torch", "numpy") or root in sys.stdlib_module_names


def foreign(kind: type) -> bool:
    """Whether objects of a class are Python's, torch's or NumPy's, and what they hold theirs."""
    module = kind.__module__ or ""
    return kind not in _OPEN and settled(module) and not module.startswith("tracetorch")


def written(kind: type) -> list[type]:
    """Of a class and its bases, those that a user wrote."""
    return [base for base in kind.__mro__ if not settled(base.__module__)]


def slots_of(kind: type) -> list[str]:
    """Names of what objects of a class hold outside of their ``__dict__``."""
    return [
        name
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType) and name != "__dict__"
    ]


def attributes(value: Any) -> dict[str, Any]:
    """What an object holds by name."""
    found = {}
    for name in (*slots_of(type(value)), "__dict__"):
        with contextlib.suppress(Exception):  # unset, and whatever else the class makes of that
            found[name] = getattr(value, name)
    named = found.pop("__dict__", {})
    return {**found, **named}


def items(value: Any) -> list[Any] | None:
    """What is in a container, or in what wraps something; None where it is neither."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, functools.cached_property):
        return [value.func]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    return None
