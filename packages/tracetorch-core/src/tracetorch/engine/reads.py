"""What a step has read besides tensors: where each thing was found, to see whether it is there yet.

What is read has to be plain, so that the thing itself is all there is to look at.
"""

from __future__ import annotations

import enum
import functools
import operator
import types
from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from tracetorch.written import settled

GONE = object()

_PLAIN = (
    int, float, complex, str, bytes, bool, type(None), type(...), range, slice, enum.Enum,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.finfo,
    torch.iinfo, np.generic, np.dtype,
)  # fmt: skip


def plain(value: Any) -> bool:
    """Whether nothing in it can change."""
    if isinstance(value, _PLAIN):  # of which a subclass may keep attributes of its own
        return isinstance(value, enum.Enum) or not getattr(value, "__dict__", None)
    if isinstance(value, (tuple, frozenset)):
        return all(map(plain_or_code, value)) and not getattr(value, "__dict__", None)
    return frozen(value) and all(map(plain_or_code, vars(value).values()))


def frozen(value: Any) -> bool:
    """Whether it is of a dataclass that nobody can assign to."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen and hasattr(value, "__dict__")


def plain_or_code(value: Any) -> bool:
    """Whether it is plain, or a function of torch, Python or this library."""
    return plain(value) or foreign_code(value)


def foreign_code(value: Any) -> bool:
    """Whether it is a function, class or module that no user wrote."""
    if isinstance(value, types.ModuleType):
        return settled(value.__name__)
    if isinstance(value, (types.FunctionType, type)):
        return settled(value.__module__)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or isinstance(owner, (types.ModuleType, type))
    if isinstance(value, functools.partial):
        given = (*value.args, *value.keywords.values())
        return foreign_code(value.func) and all(map(plain, given))
    owned = isinstance(value, (types.MethodType, torch.nn.Module))
    return callable(value) and settled(type(value).__module__) and not owned


# before, torch.compile could not read functions and classes: its graphs do not see them change
_COMPILED = TorchVersion(torch.__version__) >= "2.7"


class Reads:
    """Places in which something was found, each with what it was."""

    def __init__(self) -> None:
        self._look: list[tuple[Any, Any]] = []
        self._found: list[Any] = []
        self._sized: list[Sized] = []
        self._counted: list[int] = []
        self._noted: set[tuple[int, Any]] = set()

    def note(self, held: Any, name: Any, value: Any) -> None:
        """That ``held.get(name)`` is this; ``GONE``: there is none."""
        if (id(held), name) not in self._noted:
            self._noted.add((id(held), name))
            self._look.append((held, name))
            self._found.append(value)

    def note_size(self, held: Sized) -> None:
        """That it has as many items as now."""
        if (id(held), len) not in self._noted:
            self._noted.add((id(held), len))
            self._sized.append(held)
            self._counted.append(len(held))

    def last(self) -> bool:
        """Whether everywhere there is still the same."""
        if torch.compiler.is_compiling() and not _COMPILED:
            return True
        now = [held.get(name, GONE) for held, name in self._look]
        return (
            all(map(operator.is_, now, self._found))
            and [len(held) for held in self._sized] == self._counted
        )


class Attributes:
    """What an object has by name, as a mapping; for what is not in a dictionary that can be had."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def get(self, name: str, default: Any = None) -> Any:
        """``getattr``, with the default for whatever goes wrong."""
        try:
            return getattr(self.owner, name)
        except Exception:  # of a user's class, which does not want to be read
            return default
