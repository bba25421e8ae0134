"""One timestep by a layer's own ``step``: the definition that everything faster is held to.

What the step is given is prepared here (states that fit, neurons last, effective parameters), and
what it returns is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch import randomness
from tracetorch.effective import promoted
from tracetorch.errors import StateError
from tracetorch.layer_states import RESTART, States, standing
from tracetorch.modules import parts
from tracetorch.randomness import RANDOM, Drawing, Random, after, lent
from tracetorch.states import alike, moved


def timestep(layer: Any, x: Tensor, parameters: Any) -> tuple[Tensor, States]:
    """The output and the new states of one timestep of a checked input.

    Args:
        layer: a layer; its states are the ones to begin with.
        x: in the user's layout.
        parameters: effective values by attribute, in the states' type.

    Raises:
        StateError: a state does not fit the input, or the step is not what a step must be.
    """
    declared, place = layer.tt.declaration, layer.dim % x.ndim
    dtype = promoted(layer, x.dtype)
    old = begun(layer, x, dtype)
    last = moved(x, place, x.ndim - 1).to(dtype)
    random = random_state(layer, x)
    with drawing(layer, random, x):
        new, y = _checked(layer, old, last, parameters)
    check_shapes(layer, "step", new, old)
    kept: States = {}
    for name, spec in declared.states.items():
        # what others write into the input or the output is not to change a state
        found = new[name].clone() if alike(new[name], last) else new[name]
        kept[name] = spec.from_last(found.to(dtype), place)
    if random is not None:
        kept[RANDOM] = after(random, 1)
    if any(alike(y, other) for other in (last, *old, *new.values())):
        y = y.clone()
    return moved(y, -1, -1 if layer.dim == y.ndim - 1 else layer.dim).to(x.dtype), kept


def begun(layer: Any, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The states that a timestep begins with, neurons last."""
    specs, place = layer.tt.declaration.states.values(), layer.dim % x.ndim
    pairs = zip(specs, standing(layer, x, dtype), strict=True)
    return [spec.to_last(state, place) for spec, state in pairs]


def _checked(
    layer: Any, old: list[Tensor], x: Tensor, parameters: Any
) -> tuple[Mapping[str, Tensor], Tensor]:
    """What ``step`` returns, where it is what it should be."""
    declared = layer.tt.declaration
    states = declared.state_fields(*old)
    unwritten = versions(layer, x, old)
    try:
        found: Any = layer.step(states, x, parameters)
    except AttributeError as error:
        for what, fields in (("states", states), ("parameters", parameters)):
            known = ", ".join(fields._fields)
            if error.obj is fields:
                raise AttributeError(
                    f"{layer!r}: step reads {error.name!r}, which is none of its {what}: "
                    f"{known or 'it has none'}",
                    name=error.name,
                    obj=fields,
                ) from None
        raise
    answer = answered(layer, "step", "output)", found)
    refuse_writes(layer, "step", unwritten)
    return answer


Versions = list[tuple[str, Tensor, int]]


def versions(layer: Any, x: Tensor, old: Sequence[Tensor]) -> Versions:
    """How often a layer's input and states have been written to, where torch counts it."""
    if torch.compiler.is_compiling():
        return []
    given = {"x": x, **dict(zip(layer.tt.declaration.states, old, strict=True))}
    return [(name, t, t._version) for name, t in given.items() if not t.is_inference()]


def refuse_writes(layer: Any, method: str, before: Versions) -> None:
    """StateError where a method has written to what it was given."""
    for name, tensor, version in before:
        if tensor._version != version:
            raise StateError(
                layer, f"{method} writes into {name} in place; it must compute new tensors instead"
            )


def answered(
    layer: Any, method: str, wanted: str, found: Any
) -> tuple[Mapping[str, Tensor], Tensor]:
    """What a layer's own method returned: every state by name, and an output.

    Raises:
        StateError: it is something else; the message says what is ``wanted`` after the states.
    """
    declared = layer.tt.declaration.states
    if not (
        isinstance(found, tuple)
        and len(found) == 2
        and isinstance(found[0], Mapping)
        and isinstance(found[1], Tensor)
        and all(isinstance(state, Tensor) for state in found[0].values())
    ):
        names = ", ".join(f"{name!r}: tensor" for name in declared)
        raise StateError(
            layer, f"{method} must return ({{{names}}}, {wanted}, got {outlined(found)}"
        )
    if found[0].keys() != declared.keys():
        raise StateError(
            layer, f"{method} must return the states {sorted(declared)}, got {sorted(found[0])}"
        )
    return found[0], found[1]


def check_shapes(layer: Any, method: str, new: Mapping[str, Tensor], old: Sequence[Tensor]) -> None:
    """StateError unless the states that a method returned have the shapes they had."""
    for name, state in zip(layer.tt.declaration.states, old, strict=True):
        if new[name].shape != state.shape:
            raise StateError(
                layer,
                f"{method} must return {name} in its own shape {list(state.shape)} (neurons last), "
                f"got {list(new[name].shape)}",
            )


def outlined(value: object) -> str:
    """What something is that should be something else, at a length that can be read."""
    if isinstance(value, tuple):
        return f"({', '.join(map(outlined, value))})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"a {type(value).__name__}"


# ---------------------------------------------------------------------- random numbers


def sources(layer: Any) -> list[Random]:
    """What draws random numbers in its step."""
    return [part for part in parts(layer) if isinstance(part, Random)]


def random_state(layer: Any, x: Tensor) -> Tensor | None:
    """Seed and count of the random numbers, new where there are none yet, if it draws any."""
    if not layer._modules or not sources(layer):
        return None
    random: Tensor | None = layer.tt.states.get(RANDOM)
    if random is None:
        return randomness.new(x.device)
    if random.device != x.device:
        raise StateError(
            layer,
            f"the standing state {RANDOM} is on {random.device}, the input on {x.device}; "
            f"{RESTART}, or move the layer with .to()",
        )
    return random


def drawing(
    layer: Any, random: Tensor | None, x: Tensor
) -> contextlib.AbstractContextManager[None]:
    """Within it, the layer's step draws the numbers of the timestep of this input."""
    if random is None:
        return contextlib.nullcontext()
    return lent(sources(layer), Drawing(random, x.movedim(layer.dim, -1).shape))
