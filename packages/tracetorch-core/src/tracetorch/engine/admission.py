"""Which layers and calls may go through kernels at all, and what a traced step depends on."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tracetorch import backends
from tracetorch.keeping import foreign, private_of, slots_of

if TYPE_CHECKING:
    from tracetorch.layer import Layer


def transformed() -> bool:
    """Whether torch is differentiating or batching in a way kernels do not take part in."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def bypassed() -> bool:
    """Whether sequences are stepped for now: chosen, or under a transform of torch."""
    return backends.chosen() == "eager" or transformed()


def batched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether torch differentiates for several cotangents at once (``is_grads_batched``)."""
    if torch.compiler.is_compiling():
        return False
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 - not in its stubs
    legacy = functorch.is_legacy_batchedtensor
    return any(tensor is not None and legacy(tensor) for tensor in tensors)


def recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether torch looks on, with tensors of another kind or a mode, and has to see operators."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return True
    return not all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)


_anywhere: Any = nn.modules.module._has_any_global_hook


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, its own or those on every module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _anywhere()
    )


def overridden(layer: Layer, *methods: str) -> str | None:
    """The first of these methods that the layer does not have from ``tt.Layer``."""
    from tracetorch.layer import Layer as Base

    kind, own = type(layer), vars(layer)
    for name in methods:
        if getattr(kind, name) is not getattr(Base, name):
            return name
        if name in own and not hasattr(own[name], "looks_on"):
            return name
    return None


def peculiar(layer: Layer) -> str | None:
    """What of a layer asks for a call at every timestep; None where a sequence serves as well."""
    if method := overridden(layer, "forward", "_advance", "__call__"):
        return f"{type(layer).__name__} has its own {method}"
    if hooked(layer):
        return "it has hooks, which run at every timestep"
    return None


def parts(module: nn.Module) -> list[nn.Module]:
    """The module and those in it, as ``modules()``; one that is held twice comes twice."""
    found = [module]
    for part in module._modules.values():
        if part is not None:
            found += parts(part)
    return found


def fingerprint(layer: Layer) -> tuple[Any, ...]:
    """What a step may read besides tensors, as far as it can be found by looking.

    Attributes of the layer and its modules and what these hold, to some depth; of classes and
    functions that are neither ours nor torch's also class attributes, closures and globals.
    """
    return _Same(type(layer).step), *[_attributes(part) for part in parts(layer)]


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    own: dict[str, Any] = vars(module)
    kind: Any = type(module)
    content = [(key, _content(own[key], _DEPTH)) for key in own.keys() - private_of(module)]
    for written in _written(kind):
        names = [name for name in vars(written) if not name.startswith("__")]
        content += [(name, _content(vars(written)[name], _DEPTH)) for name in names]
    return kind, *content


_DEPTH = 3
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
_PLAINLY = frozenset(_PLAIN)


def _content(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _PLAINLY:
        return kind, value
    if isinstance(value, Tensor):
        return kind, value.shape, value.dtype  # a step that reads its values has no kernel
    if isinstance(value, (nn.Module, type, types.ModuleType)) or not depth or _large(value):
        return _Same(value)
    if isinstance(value, (list, tuple)):
        return kind, *[_content(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return kind, *[(_content(k, 1), _content(v, depth - 1)) for k, v in value.items()]
    if isinstance(value, np.ndarray):
        return _Same(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, types.MethodType):
        return _content(value.__func__, depth), _content(value.__self__, depth - 1)
    if isinstance(value, types.FunctionType):
        return _function(value, depth)
    if foreign(kind):
        return _Same(value)
    held = {name: getattr(value, name, None) for name in slots_of(value)}
    held |= getattr(value, "__dict__", {})
    return _Same(value), *[(name, _content(item, depth - 1)) for name, item in held.items()]


def _large(value: Any) -> bool:
    """Whether to look through it at every timestep would take too long."""
    size = value.size if isinstance(value, np.ndarray) else isinstance(value, _HOLDS) and len(value)
    return int(size) > 1000


_HOLDS = (list, tuple, dict)


def _function(function: types.FunctionType, depth: int) -> Any:
    """A function, what it closes over and, of its globals, what is no class or module."""
    if _settled(function.__module__):
        return _Same(function)
    cells, known = function.__closure__ or (), function.__globals__
    read = [cell.cell_contents for cell in cells if cell != _EMPTY_CELL]
    read += [known[name] for name in _names(function.__code__) if name in known]
    shown = [v for v in read if not isinstance(v, (type, types.ModuleType))]
    return _Same(function), *[_content(value, depth - 1) for value in shown]


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that code, or a function made in it, may look up."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *itertools.chain(*inner))))


@functools.cache
def _written(kind: type) -> list[type]:
    """Of a class and its bases, those that a user wrote."""
    return [k for k in kind.__mro__ if not _settled(k.__module__)]


def _settled(module: str | None) -> bool:
    """Whether code is of this library, torch, NumPy or Python."""
    root = (module or "").partition(".")[0]
    return root in ("tracetorch", "torch", "numpy") or root in sys.stdlib_module_names


_EMPTY_CELL = types.CellType()


class _Same:
    """An object as a key: equal to itself alone, and kept alive so that its place is not reused."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value
