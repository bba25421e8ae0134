"""A glance at a model: which layers it has, and whether anything shallow in it has changed.

Attributes of its modules, what is directly in their lists and dictionaries, how often torch has
counted a write into their tensors. What lies deeper was looked at when it was decided to fold.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from tracetorch.layer import Layer
from tracetorch.modules import HOOKS, gathers, hooked, hooked_everywhere
from tracetorch.walk import named_layers

_CONTAINERS = (dict, list, set, deque)
# attributes that torch looks after; what of them matters here is looked at by itself
_TORCHS = frozenset(vars(nn.Module()))


class Glance:
    """What a model's modules hold at a glance, as it is now.

    Attributes:
        layers: the model's, however deep.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[Layer] = [layer for _, layer in named_layers(model)]
        found = {id(module): module for module in _modules(model)}
        found |= {id(part): part for layer in self.layers for part in layer.modules()}
        self._modules = [*found.values()]
        self._hooks = [vars(module)[name] for module in self._modules for name in HOOKS]
        # parameters that lie in many processes are exchanged around calls
        apart = any(map(gathers, self._modules))
        self._held = [
            (type(module).__name__, held)
            for module in self._modules
            for held in _held(module)
            if not (apart and held is module._parameters)
        ]
        self._inside = [
            (f"{kind}.{name}", value)
            for kind, held in self._held
            for name, value in held.items()
            if issubclass(type(value), _CONTAINERS) and name not in _TORCHS
        ]
        self._views = [
            *[held.values() for _, held in self._held],
            *[_view(value) for _, value in self._inside],
        ]
        self._sizes = [*map(len, self._views)]
        self._values = tuple(itertools.chain.from_iterable(self._views))
        # statistics that torch's own normalizations write are those of a batch
        self._tensors = [
            (f"{type(module).__name__}.{name}", tensor)
            for module in self._modules
            for held in (
                module._parameters,
                {} if isinstance(module, _NormBase) else module._buffers,
            )
            for name, tensor in held.items()
            if tensor is not None and not is_lazy(tensor) and not tensor.is_inference()
        ]

    def holds(self) -> bool:
        """Whether all attributes, and what is directly in them, are what they were."""
        return [*map(len, self._views)] == self._sizes and all(
            map(operator.is_, itertools.chain.from_iterable(self._views), self._values)
        )

    def writes(self) -> list[int]:
        """How often torch has counted a write into each tensor."""
        return [tensor._version for _, tensor in self._tensors]

    def hooked(self) -> str | None:
        """The class of the first module with hooks."""
        if not any(self._hooks) and not hooked_everywhere():
            return None
        inside = {id(part) for layer in self.layers for part in layer.modules()}
        for module in self._modules:
            if hooked(module) and (id(module) in inside or not gathers(module)):
                return type(module).__name__
        return None

    def changes(self, writes: list[int]) -> list[str]:
        """Names of what has changed since, and of what was written into since ``writes``."""
        held, now = self.holds(), self.writes()
        if held and now == writes:
            return []
        found = set()
        if not held:
            values = iter(self._values)
            names = [(kind, held) for kind, held in self._held] + self._inside
            for (owner, held), view, size in zip(names, self._views, self._sizes, strict=True):
                before = [*itertools.islice(values, size)]
                if len(view) != size or not all(map(operator.is_, view, before)):
                    found.add(_named(owner, held, before))
        pairs = zip(self._tensors, writes, now, strict=True)
        return sorted(found | {name for (name, _), one, other in pairs if one != other})


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """Those that torch knows, and those directly in a container."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        yield module
        for value in vars(module).values():
            if issubclass(type(value), (list, tuple, dict)):
                for item in value.values() if isinstance(value, dict) else value:
                    if issubclass(type(item), nn.Module) and item is not module:
                        yield from item.modules()


def _held(module: nn.Module) -> list[dict[str, Any]]:
    stores = (vars(module), module._parameters, module._buffers, module._modules)
    return [store for store in stores if store]


def _view(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _named(owner: str, held: Any, before: list[Any]) -> str:
    """What of a dictionary of attributes is another, or the container itself."""
    if not isinstance(held, dict) or "." in owner:
        return owner
    gone: Iterable[Any] = {id(value) for value in before}
    new = [name for name, value in held.items() if id(value) not in gone]
    return f"{owner}.{new[0]}" if new else owner
