"""Which layers and calls may go through kernels at all, and what a traced step depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tracetorch import backends

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


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_everywhere: Any = nn.modules.module


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, its own or those on every module."""
    return bool(
        any(getattr(module, name) for name in HOOKS)
        or _everywhere._global_forward_hooks
        or _everywhere._global_forward_pre_hooks
        or _everywhere._global_backward_hooks
        or _everywhere._global_backward_pre_hooks
    )


def overridden(layer: Layer, *methods: str) -> str | None:
    """The first of these methods that the layer does not have from ``tt.Layer``."""
    from tracetorch.layer import Layer as Base

    kind, own = type(layer), {} if torch.compiler.is_compiling() else vars(layer)
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
