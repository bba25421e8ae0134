"""What a call of a layer does: one timestep or a whole sequence, through the engine where it can.

Here a layer becomes a request to the engine, and an answer becomes the layer's states. What the
engine does not take runs by the layer's own ``step``, or its own ``sequence``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.choice import EAGER, cannot, chosen
from tracetorch.declaration import Record
from tracetorch.effective import effective, promoted
from tracetorch.engine import serving
from tracetorch.engine.lane import Lane
from tracetorch.engine.request import Request, Subject
from tracetorch.errors import StateError, not_dense
from tracetorch.layer_states import fitted_resets, standing
from tracetorch.modules import hooked
from tracetorch.passage import refuse_strangers
from tracetorch.randomness import RANDOM, after
from tracetorch.reasons import Reason, Unfused
from tracetorch.recomputation import refuse_plain_recomputation
from tracetorch.states import alike, any_restarts, between_restarts, moved
from tracetorch.timestep import (
    answered,
    begun,
    check_shapes,
    outlined,
    random_state,
    refuse_writes,
    timestep,
    versions,
)
from tracetorch.written import own


def peculiar(layer: nn.Module) -> Reason | None:
    """What of a layer asks for a call at every timestep; None where a sequence serves as well."""
    kind = type(layer)
    name = kind.__name__
    held = {} if torch.compiler.is_compiling() else vars(layer)
    if "forward" in held or own(kind.forward):
        return Reason(Unfused.OWN, (name, "forward"))
    if kind.__call__ is not nn.Module.__call__:
        return Reason(Unfused.OWN, (name, "__call__"))
    if hooked(layer):
        return Reason(Unfused.HOOKS, (name,))
    return None


def called(layer: Any, x: Tensor) -> Tensor:
    """One timestep: the output; the states move on.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        StateError: ``x`` does not fit the layer, or the standing state does not fit ``x``.
    """
    record, fused = layer.tt, False
    if not torch.compiler.is_compiling():
        refuse_strangers(layer)
        refuse_plain_recomputation(layer)
        fused = serving.steps_fused()
    # once, whatever runs it: a recomputation has to find the same operations in the same order
    values = _effective(layer, record)
    lane: Lane | None = record.findings.lane
    if fused and lane is not None and lane.fits(layer.dim, x, record.states.values(), values):
        y, *states = lane.run(x, record.states.values(), values)
        record.states = dict(zip(record.states, states, strict=True))
        return y
    check_input(layer, x)
    parameters = _as(promoted(layer, x.dtype), values)
    if fused and not _has_its_own_sequence(layer):
        answer = serving.step(_request(layer, x, x, parameters, single=True))
        if answer is not None:
            _keep(layer, answer, x, 1)
            return answer.y
    y, record.states = timestep(layer, x, record.declaration.parameter_fields(*parameters))
    return y


class Unrolled(NamedTuple):
    """What came of a whole sequence.

    Attributes:
        y: outputs ``[T, …]``.
        recorded: states after every timestep that were asked for; None where the layer was called
            at each.
    """

    y: Tensor
    recorded: Mapping[str, Tensor] | None


def unrolled(
    layer: Any, x: Tensor, record: Sequence[str] = (), resets: Tensor | None = None
) -> Unrolled:
    """A whole sequence; the states are the final ones, or those from before.

    Args:
        layer: a layer.
        x: ``[T, …]``.
        record: names of states that are wanted after every timestep.
        resets: which samples restart before which timesteps, boolean ``[T, B]``.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or ``resets`` no boolean one.
        StateError: ``x`` is no sequence that fits, ``resets`` has another shape, or a timestep
            fails.
    """
    if not torch.compiler.is_compiling():
        refuse_strangers(layer)
        refuse_plain_recomputation(layer)
    if why := not_dense(x):
        raise TypeError(f"{layer!r}: unroll takes a tensor [T, …], got {why}")
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[0] == 0:
        got = list(x.shape) if isinstance(x, Tensor) else outlined(x)
        raise StateError(
            layer, f"unroll takes [T, …] with time first and at least one timestep, got {got}"
        )
    check_input(layer, x[0])
    if resets is not None:
        resets = fitted_resets(layer, resets, x)
    before = layer.tt.states
    try:
        found = _at_once(layer, x, tuple(record), resets)
        if found is None:
            found = Unrolled(torch.stack([*timesteps(layer, x, resets)]), None)
        return found
    except BaseException:
        layer.tt.states = before
        raise


def timesteps(
    model: Any,
    x: Tensor,
    resets: Tensor | None,
    call: Callable[[Any, Tensor], Any] | None = None,
) -> Iterator[Any]:
    """Outputs of a layer or model timestep by timestep: the definition.

    Args:
        model: whose states restart.
        x: ``[T, …]``.
        resets: which samples restart before which timesteps, ``[T, B]``.
        call: what makes an output of it and a timestep, where that is not a call of it.
    """
    for t, now in enumerate(x):
        if resets is not None and any_restarts(resets[t]):
            model.zero_states(resets[t])
        yield model(now) if call is None else call(model, now)


def _at_once(
    layer: Any, x: Tensor, record: tuple[str, ...], resets: Tensor | None
) -> Unrolled | None:
    """The sequence by the layer's own method or a kernel; None where it has to be stepped."""
    if chosen() == EAGER or mode.transformed():
        return None
    why = peculiar(layer)
    if why is None and resets is not None and own(type(layer).zero_states):
        why = Reason(Unfused.OWN, (type(layer).__name__, "zero_states"))
    if why is not None:
        cannot(layer, why)
        return None
    why = None
    if _has_its_own_sequence(layer):
        why = Reason(Unfused.RECORDED) if record else _outdated(layer)
        y = None if why is not None else _by_its_own(layer, x, resets)
        if y is not None:
            return Unrolled(y, {})
    parameters = _as(promoted(layer, x.dtype), _effective(layer, layer.tt))
    request = _request(
        layer, x, x[0], parameters, single=False, recorded=record, resets=resets, besides=why
    )
    answer = serving.unroll(request)
    if answer is None:
        return None
    _keep(layer, answer, x[0], len(x))
    return Unrolled(answer.y, dict(zip(record, answer.recorded, strict=True)))


def _by_its_own(layer: Any, x: Tensor, resets: Tensor | None) -> Tensor | None:
    """By the method ``sequence`` of its class; None where a kernel, or its steps, are to do it.

    A method that cannot restart samples goes from restart to restart.
    """
    compiling = torch.compiler.is_compiling()
    method = layer.sequence
    # torch 2.6 does not make a constant of a method
    function = type(layer).sequence if compiling else getattr(method, "__func__", method)
    if resets is None or _restarts(function):
        return _sequence(layer, x, resets)
    if compiling:  # where they are, a graph cannot depend on
        return None
    before, ys = layer.tt.states, []
    for start, stop in between_restarts(resets):
        layer.zero_states(resets[start])
        y = _sequence(layer, x[start:stop], None)
        if y is None:
            layer.tt.states = before
            return None
        ys.append(y)
    return torch.cat(ys)


def _has_its_own_sequence(layer: Any) -> bool:
    """Whether ``sequence`` is another one than that of every layer.

    It may be a method, a property's, or set on the instance. ``torch.compile`` asks the class once,
    and of a property's compares the code: of bound methods torch 2.6 can no more.
    """
    of_class = type(layer).sequence
    if torch.compiler.is_compiling() and not isinstance(of_class, property):
        return own(of_class)
    code: object = getattr(layer.sequence, "__code__", None)
    return code is not layer._sequence_of_steps.__code__


@functools.cache
def _restarts(sequence: object) -> bool:
    """Whether ``sequence`` takes which samples restart."""
    return callable(sequence) and "resets" in inspect.signature(sequence).parameters


_restarts._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _sequence(layer: Any, x: Tensor, resets: Tensor | None) -> Tensor | None:
    """What its ``sequence`` gives, the final states put in place."""
    declared, place = layer.tt.declaration, layer.dim % (x.ndim - 1)
    dtype = promoted(layer, x.dtype)
    old = begun(layer, x[0], dtype)
    last = moved(x, place + 1, x.ndim - 1).to(dtype)
    parameters = declared.parameter_fields(*_as(dtype, _effective(layer, layer.tt)))
    unwritten = versions(layer, last, old)
    restarts = {} if resets is None else {"resets": resets}
    found = layer.sequence(declared.state_fields(*old), last, parameters, **restarts)
    refuse_writes(layer, "sequence", unwritten)
    if found is None:
        return None
    new, y = _checked(layer, found, old, x)
    kept = {name: new[name].clone() if alike(new[name], last) else new[name] for name in new}
    if any(alike(y, other) for other in (last, *kept.values())):
        y = y.clone()
    final = {n: spec.from_last(kept[n].to(dtype), place) for n, spec in declared.states.items()}
    random = random_state(layer, x[0])
    layer.tt.states = final if random is None else {**final, RANDOM: after(random, len(x))}
    return moved(y, x.ndim - 1, place + 1).to(x.dtype)


def _outdated(layer: Any) -> Reason | None:
    """Why its ``sequence`` may be another than its timesteps; None where it holds."""
    if not _has_its_own(type(layer)):
        return Reason(Unfused.OWN, (type(layer).__name__, "step"))
    for path, part in layer.named_modules():
        if part is not layer and hooked(part):
            return Reason(Unfused.HOOKS, (path,))
    return None


def _has_its_own(kind: type) -> bool:
    """Whether the class that writes the step last writes the sequence as well."""
    first = next(base for base in kind.__mro__ if {"step", "sequence"} & vars(base).keys())
    return "sequence" in vars(first)


_has_its_own._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _checked(
    layer: Any, found: Any, old: Sequence[Tensor], x: Tensor
) -> tuple[Mapping[str, Tensor], Tensor]:
    """What ``sequence`` returns, where it is what it should be."""
    new, y = answered(layer, "sequence", "outputs) or None", found)
    check_shapes(layer, "sequence", new, old)
    place = layer.dim % (x.ndim - 1) + 1
    around = [size for at, size in enumerate(x.shape) if at != place]
    if y.ndim != x.ndim or list(y.shape[:-1]) != around:
        raise StateError(
            layer,
            f"sequence must return outputs [T, …, size] (neurons last) for an input of "
            f"{list(x.shape)}, got {list(y.shape)}",
        )
    return new, y


# ---------------------------------------------------------------------- requests


def subject_of(layer: Any) -> Subject:
    """What computes the layer's timesteps, for the engine."""
    record = layer.tt
    return Subject(layer, record.declaration, layer.num_neurons, layer.dim, record.findings)


def _request(
    layer: Any,
    x: Tensor,
    timestep: Tensor,
    parameters: list[Tensor],
    *,
    single: bool,
    recorded: tuple[str, ...] = (),
    resets: Tensor | None = None,
    besides: Reason | None = None,
) -> Request:
    real = promoted(layer, timestep.dtype)
    states = standing(layer, timestep, real)
    random = functools.partial(random_state, layer, timestep)
    subject = subject_of(layer)
    return Request(subject, x, states, parameters, real, random, single, recorded, resets, besides)


def _effective(layer: Any, record: Record) -> list[Tensor]:
    specs = record.declaration.parameters.values()
    return effective(layer, specs, record.constants, record.compiled)


def _as(dtype: torch.dtype, values: list[Tensor]) -> list[Tensor]:
    return [value if value.dtype is dtype else value.to(dtype) for value in values]


def _keep(layer: Any, answer: serving.Answer, timestep: Tensor, steps: int) -> None:
    """The final states, put in place."""
    record, random = layer.tt, answer.random
    final: dict[str, Tensor | None] = dict(
        zip(record.declaration.states, answer.states, strict=True)
    )
    if random is None and RANDOM in record.states:  # of a source that the step does not ask
        random = random_state(layer, timestep)
    if random is not None:
        final[RANDOM] = after(random, steps)
    record.states = final


def check_input(layer: Any, x: object) -> None:
    """TypeError or StateError unless ``x`` is a timestep for the layer."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not_dense(x):
        raise TypeError(f"{layer!r}: the input x must be a floating-point tensor, {_instead(x)}")
    dim = layer.dim
    if not -x.ndim <= dim < x.ndim:
        raise StateError(layer, f"the input x of shape {list(x.shape)} has no dimension dim={dim}")
    if x.shape[dim] != layer.num_neurons:
        raise StateError(
            layer,
            f"the input x of shape {list(x.shape)} has {x.shape[dim]} neurons at dim={dim}, the "
            f"layer has {layer.num_neurons}",
        )


def _instead(x: object) -> str:
    """What came instead of a floating-point tensor, and the remedy."""
    if why := not_dense(x):
        return f"got {why}"
    if isinstance(x, Tensor):
        return f"got {x.dtype}; convert it with x.float()"
    if x is None:
        return "got None; does the module before it return its output?"
    return f"got {outlined(x)}; convert it with torch.as_tensor(x)"
