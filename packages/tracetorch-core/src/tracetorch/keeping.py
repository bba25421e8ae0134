"""What a module's attributes and buffers were: to notice what code changes, and to undo it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards, buffers hold what they held before; those that still do are not written to."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in buffers:
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)


class Kept:
    """A module's attributes, buffers included, as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.attributes = module, dict(vars(module))
        self.contents = {
            name: value.copy()
            for name, value in self.attributes.items()
            if type(value) in (list, dict, set, deque) and not name.startswith("_")
        }
        self.buffers = dict(module._buffers)

    def changed(self) -> list[str]:
        """Names of attributes that are other objects, or containers of others, now."""
        now = vars(self.module)
        names = _other(self.attributes, now) | _other(self.buffers, self.module._buffers)
        names |= {n for n, before in self.contents.items() if _differ(before, self.attributes[n])}
        return [f"{type(self.module).__name__}.{name}" for name in sorted(names)]

    def restore(self) -> None:
        """Put attributes, buffers and containers back."""
        for now, before in (
            (vars(self.module), self.attributes),
            (self.module._buffers, self.buffers),
        ):
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update(before)
        for name, copy in self.contents.items():
            value = self.attributes[name]
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(copy)


def _differ(before: Any, now: Any) -> bool:
    """Whether a container holds other objects than before, or in another order."""
    if len(before) != len(now):
        return True
    if isinstance(before, dict):
        return _differ([*before, *before.values()], [*now, *now.values()])
    if isinstance(before, set):
        return bool(before != now)
    return any(one is not other for one, other in zip(before, now, strict=True))


def _other(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    return {n for n in {*now, *before} if now.get(n, _GONE) is not before.get(n, _GONE)}


_GONE = object()
