"""Which layers and calls may go through kernels at all, and what a traced step depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tracetorch import backends
from tracetorch.keeping import private_of

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


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def overridden(layer: Layer, *methods: str) -> str | None:
    """The first of these methods that the layer's class does not have from ``tt.Layer``."""
    from tracetorch.layer import Layer as Base

    kind = type(layer)
    own = [name for name in methods if getattr(kind, name) is not getattr(Base, name)]
    return own[0] if own else None


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
    """What a step may read besides tensors: the simple attributes of the layer and its modules."""
    return tuple([_attributes(part) for part in parts(layer)])


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    own = vars(module)
    return type(module), *[(key, _content(own[key])) for key in own.keys() - private_of(type(module))]


_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def _content(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_content, value))
    if isinstance(value, dict):
        return (dict, *((_content(k), _content(v)) for k, v in value.items()))
    return _Same(value)


class _Same:
    """An object as a key: equal to itself alone, and kept alive so that its place is not reused."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value
