"""What torch's modules hold and run besides ``forward``: parts and hooks. Knows no layer."""

from __future__ import annotations

from typing import Any

from torch import nn


def parts(module: nn.Module) -> list[nn.Module]:
    """The module and those in it, as ``modules()``; one that is held twice comes twice."""
    found = [module]
    for part in module._modules.values():
        if part is not None:
            found += parts(part)
    return found


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_everywhere: Any = nn.modules.module


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, its own or those on every module."""
    return any(getattr(module, name) for name in HOOKS) or hooked_everywhere()


def hooked_everywhere() -> bool:
    """Whether every module's call runs hooks."""
    return bool(
        _everywhere._global_forward_hooks
        or _everywhere._global_forward_pre_hooks
        or _everywhere._global_backward_hooks
        or _everywhere._global_backward_pre_hooks
    )
