"""What torch is doing around a call: differentiating, batching, compiling, tracing, faking."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 - not in its stubs
_C: Any = torch._C
_KEYS: Any = getattr(torch._C, "_TorchDispatchModeKey")  # noqa: B009
# modes under which a call has no values, or is written down as the operations that it is made of
_RECORDING = (_KEYS.FAKE, _KEYS.PROXY, _KEYS.FUNCTIONAL)
_exporting: Any = getattr(torch.compiler, "is_exporting", None)


class Way(Enum):
    """How a fused kernel may be called, if at all."""

    DIRECT = "directly"
    OPERATOR = "as an operator of torch, which a graph or mode takes whole"
    STEP = "not: torch wants to see the operations of the step"


def way(tensors: Iterable[Tensor]) -> Way:
    """How a kernel over these may be called here."""
    if torch.compiler.is_compiling() and torch.compiler.is_dynamo_compiling():
        return Way.STEP if exporting() else Way.OPERATOR
    if recording() or not all(type(tensor) in PLAIN for tensor in tensors):
        return Way.STEP
    return Way.OPERATOR if _C._len_torch_dispatch_stack() else Way.DIRECT


PLAIN = (Tensor, nn.Parameter)
_FAKES = ("FakeTensor", "FunctionalTensor")


def exporting() -> bool:
    """Whether ``torch.export`` traces: its programs hold operations that every process knows."""
    return _exporting is not None and bool(_exporting())


def recording() -> bool:
    """Whether a tracer or fake mode of torch (other than ``torch.compile``) is at work."""
    if _C._get_tracing_state() is not None:
        return True
    if not _C._len_torch_dispatch_stack():
        return False
    return any(_C._get_dispatch_mode(key) is not None for key in _RECORDING)


def ordinary() -> bool:
    """Whether nothing of all that is going on: values are values, and nobody looks on."""
    return not torch.compiler.is_compiling() and undisturbed()


_modes, _transforms = _C._len_torch_dispatch_stack, _C._are_functorch_transforms_active
_tracing, _function_modes = _C._get_tracing_state, _C._len_torch_function_stack


def undisturbed() -> bool:
    """The same where it is known that nothing is being compiled."""
    return not (
        _modes() or _transforms() or _tracing() is not None or forward_ad._current_level >= 0
    )


def unwatched() -> bool:
    """The same, and no mode of ``torch.overrides`` sees which functions are called."""
    return not _function_modes() and undisturbed()


def transformed() -> bool:
    """Whether torch is differentiating or batching in a way kernels do not take part in.

    Returns:
        True within a transform of ``torch.func`` and in forward-mode differentiation.

    Example:
        >>> import torch
        >>> seen = []
        >>> def square(x):
        ...     seen.append(transformed())
        ...     return x * x
        >>> _ = torch.func.grad(square)(torch.tensor(3.0)), square(torch.tensor(3.0))
        >>> seen
        [True, False]
    """
    return _C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def batched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether torch differentiates for several cotangents at once (``is_grads_batched``)."""
    if torch.compiler.is_compiling():
        return False
    legacy = _functorch.is_legacy_batchedtensor
    return any(tensor is not None and legacy(tensor) for tensor in tensors)


_graph_kept: Any = getattr(_C._autograd, "_get_current_graph_task_keep_graph", None)
_held: Any = getattr(_C, "_storage_Use_Count", None)
_counted = _graph_kept and _held and hasattr(Tensor, "_use_count")


def graph_kept() -> bool:
    """Whether what is being differentiated may be differentiated again; True if not known."""
    return not _counted or bool(_graph_kept())


def owners(of: Tensor | torch.UntypedStorage) -> int:
    """How many references torch counts; only to be asked where the graph is not kept."""
    count: int = of._use_count() if isinstance(of, Tensor) else _held(of._cdata)
    return count


_hooks: Any = getattr(_C._autograd, "_top_saved_tensors_default_hooks", None)
_hooks_allowed: Any = getattr(_C._autograd, "_saved_tensors_hooks_is_enabled", None)


def saved_as_they_are() -> bool:
    """Whether no hooks are at work on what autograd saves, and may be; False if not known."""
    return bool(_hooks and _hooks_allowed and _hooks_allowed() and _hooks(True) is None)


is_wrapped = _functorch.is_functorch_wrapped_tensor


def left_over(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform of ``torch.func``, or a fake mode, that has ended."""
    if torch.compiler.is_compiling():
        return False
    if is_wrapped(tensor):
        return not _C._are_functorch_transforms_active()
    return type(tensor) not in PLAIN and type(tensor).__name__ in _FAKES and not recording()
