"""What torch's modules hold and run besides ``forward``: parts and hooks. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Bookkeeping:
    """What this library keeps on a user's module: in it is nothing of the user's."""

    def renewed(self) -> Bookkeeping:
        """The same for a copy of the module."""
        raise NotImplementedError


class Observer(Bookkeeping):
    """A forward hook that only looks on, so that it makes no difference to how a model runs.

    It sees a timestep ``[B, …]``, or several at once, ``[T·B, …]``. In a copy of the module it
    sees nothing. Not for what is within a layer: a kernel runs no hooks.

    Args:
        look: is given the module, the tuple of its inputs, and the output.
    """

    def __init__(self, look: Callable[[nn.Module, tuple[Any, ...], Any], None]) -> None:
        self._look = look

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Look on."""
        self._look(module, inputs, output)

    def renewed(self) -> Observer:
        """One that does nothing."""
        return Observer(_nothing)


def _nothing(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    del module, inputs, output


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
    own = any(getattr(module, name) for name in HOOKS)
    return (own and not _observed(_hooks(module))) or hooked_everywhere()


def gathers(module: nn.Module) -> bool:
    """Whether its hooks are those of torch's ``fully_shard``, and any others only look on.

    They gather parameters around a call, whatever it is given.
    """
    hooks = _hooks(module)
    return (
        any(map(_of_sharding, hooks))
        and not hooked_everywhere()
        and _observed([hook for hook in hooks if not _of_sharding(hook)])
    )


def _of_sharding(hook: object) -> bool:
    owner = type(getattr(hook, "__self__", None))
    return owner.__module__.startswith("torch.distributed.fsdp.")


def _hooks(module: nn.Module) -> list[object]:
    return [hook for name in HOOKS for hook in getattr(module, name).values()]


def _observed(hooks: list[object]) -> bool:
    """Whether hooks only look on."""
    return all(isinstance(hook, Observer) for hook in hooks)


def hooked_everywhere() -> bool:
    """Whether every module's call runs hooks."""
    return bool(
        _everywhere._global_forward_hooks
        or _everywhere._global_forward_pre_hooks
        or _everywhere._global_backward_hooks
        or _everywhere._global_backward_pre_hooks
    )
