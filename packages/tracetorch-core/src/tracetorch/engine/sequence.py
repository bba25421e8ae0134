"""A layer's sequences and timesteps through fused kernels: which program serves, and the call.

What cannot be served here is answered with None: the layer then steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracetorch import backends
from tracetorch.engine import build, operators, segments
from tracetorch.engine.admission import (
    bypassed,
    overridden,
    peculiar,
    recorded,
    transformed,
)
from tracetorch.engine.cpp import REAL, STORED, abridged
from tracetorch.engine.fingerprint import fingerprint
from tracetorch.engine.graph import Refused
from tracetorch.engine.launch import serving
from tracetorch.engine.operators import Served
from tracetorch.engine.program import RENDERERS, Program, register
from tracetorch.engine.trace import Traced, trace, weights_of
from tracetorch.numbering import number, numbered
from tracetorch.randomness import RANDOM, after

if TYPE_CHECKING:
    from tracetorch.layer import Layer

# Operations of a timestep below which they are faster one by one, without gradients and with: to
# call a kernel takes as long as three, to call its autograd function as six.
_FEWEST = {False: 4, True: 7}
# a layer whose attributes change from step to step is not worth a kernel for each
_MOST_PROGRAMS = 32


def unroll(layer: Layer, x: Tensor) -> Tensor | None:
    """A checked sequence ``[T, …]`` through kernels, final states put in place; or None."""
    if bypassed():
        return None
    if why := peculiar(layer):
        backends.cannot(layer, why)
        return None
    states, parameters = _arguments(layer, x[0])
    if why := _misfit(layer, x, states, parameters):
        backends.cannot(layer, why)
        return None
    flags = _flags(x, states, parameters)
    types = (x.ndim - 1, _real(states, parameters, x), x.dtype, x.device.type)
    if recorded((x, *states, *parameters)):
        name = program_name(number_of(layer), *types, *flags)
        if name is None:
            return None
        random = layer._random(x)
        y, *rest = torch.ops.tracetorch.unroll(x, states, parameters, random, name, flags)
    else:
        by = _served(layer, *types, flags)
        if by is None:
            return None
        random = layer._random(x)
        y, *rest = _run(by, x, states, parameters, random)
    _keep(layer, rest, random, len(x))
    return y  # type: ignore[no-any-return]


def _run(
    by: Served,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    random: Tensor | None,
) -> Sequence[Tensor]:
    """A sequence, timestep after timestep or, where that is faster, in segments at once."""
    affine = by.plan.program.affine
    count = segments.count(len(x), x.shape[1:].numel(), x.device) if affine else 1
    if count > 1:
        found = segments.unroll(
            lambda x, states: operators.run(by, x, states, parameters, None), x, states, count
        )
        if found is not None:
            return found
    return operators.run(by, x, states, parameters, random)


def step(layer: Layer, x: Tensor) -> Tensor | None:
    """One checked timestep through a kernel, new states put in place; or None.

    On the CPU, where it was measured to be faster than the operations one by one.
    """
    if backends.chosen() not in ("auto", "cpp") or x.device.type != "cpu" or transformed():
        return None
    if torch.compiler.is_compiling() or _operations(layer, x) < _FEWEST[torch.is_grad_enabled()]:
        return None
    if overridden(layer, "_advance", "_sequence"):
        return None
    states, parameters = _arguments(layer, x)
    if _misfit(layer, x, states, parameters):
        return None
    if recorded((x, *states, *parameters)):
        return None
    flags = _flags(x, states, parameters)
    real = _real(states, parameters, x)
    by = _served(layer, x.ndim, real, x.dtype, x.device.type, flags, single=True)
    if by is None:
        return None
    random = layer._random(x)
    y, *rest = operators.run(by, x, states, parameters, random, single=True)
    _keep(layer, rest, random, 1)
    return y


def _keep(layer: Layer, states: Sequence[Tensor], random: Tensor | None, steps: int) -> None:
    """The final states (and what was kept behind them, which is let go)."""
    names = layer._state_specs
    final: dict[str, Tensor | None] = dict(zip(names, states[: len(names)], strict=True))
    if random is not None:
        final[RANDOM] = after(random, steps)
    if torch.compiler.is_compiling():
        layer._states = final
    else:  # past what a module does for attributes, which takes as long as an operation
        vars(layer)["_states"] = final


def source(layer: Layer, ndim: int, dtype: torch.dtype, backward: bool, backend: str) -> str:
    """The source of a layer's kernel, with every gradient that can be asked for."""
    if backend not in RENDERERS:
        raise ValueError(f"kernel_source: backend must be one of {[*RENDERERS]}, got {backend!r}")
    try:
        program = _program(layer, ndim, layer._promoted(dtype), dtype, backend, fingerprint(layer))
    except Refused as why:
        raise backends.BackendError(f"{layer!r} has no kernel: {why}") from None
    return abridged(program.source(program.gradients, backward))


def _operations(layer: Layer, timestep: Tensor) -> int:
    """Of how many operations a timestep is made; a great number where it cannot be traced.

    Asked before anything is computed: what comes after must be the same for every timestep, or it
    could not be recomputed.
    """
    if layer._known.operations is None:
        layer._known.operations = 1 << 30
        with contextlib.suppress(Exception):  # those of the step are its own to raise
            real = layer._state_dtype(timestep)
            layer._known.operations = _traced(
                layer, real, timestep.ndim, fingerprint(layer)
            ).operations
    return layer._known.operations


def _arguments(layer: Layer, timestep: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The standing states, and whatever else a step reads, in its own type."""
    dtype = layer._state_dtype(timestep)
    states = [
        layer._standing(name, spec, timestep, dtype) for name, spec in layer._state_specs.items()
    ]
    weights = [weight.to(dtype) for weight in weights_of(layer).values()]
    return states, [*layer._parameters_as(dtype), *weights]


def _misfit(
    layer: Layer, x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor]
) -> str | None:
    """What does not lie dense on the input's device, or as it was declared: for the step to take.

    A kernel would read whatever is at that address.
    """
    if x.layout is not torch.strided:
        return f"there are no kernels for tensors in {x.layout}"
    if any(tensor.device != x.device for tensor in (*states, *parameters)):
        return f"not all of its states and parameters are on {x.device}, as the input is"
    for spec, parameter in zip(layer._specs.values(), parameters[: len(layer._specs)], strict=True):
        if parameter.shape != spec.shape:
            return f"{spec.name} is {list(parameter.shape)}, declared {list(spec.shape)}"
    return None


def _real(states: Sequence[Tensor], parameters: Sequence[Tensor], x: Tensor) -> torch.dtype:
    return [*states, *parameters, x][0].dtype


def _flags(x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which gradients to compute, of x, states, parameters.

    Those of the states, known anyhow, are among them whenever there are any: so one kernel serves
    the first timestep or chunk and the ones after it.
    """
    own = [torch.is_grad_enabled() and t.requires_grad for t in (x, *parameters)]
    through = any(own) or (torch.is_grad_enabled() and any(s.requires_grad for s in states))
    return (own[0], *[through] * len(states), *own[1:])


def number_of(layer: Layer) -> str:
    """By which constants refer to it."""
    if not layer._known.number:  # a copy that torch made
        layer._known.number = number(layer)
    return layer._known.number


def program_name(
    layer: str, ndim: int, real: torch.dtype, stored: torch.dtype, device: str, *flags: bool
) -> str | None:
    """The registered, compiled program of a layer for these types; None where it must step.

    Asked and answered in constants: ``torch.compile`` takes the answer as one. ``layer``: its
    number. ``flags``: for input, states and parameters, whether a gradient is wanted.
    """
    by = _served(numbered(layer), ndim, real, stored, device, flags)
    return None if by is None else by.plan.program.name


program_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _served(
    layer: Layer,
    ndim: int,
    real: torch.dtype,
    stored: torch.dtype,
    device: str,
    flags: tuple[bool, ...],
    single: bool = False,
) -> Served | None:
    """The compiled plan of a layer for these types; None where it must step.

    Raises:
        BackendError: a backend was asked for by name, and cannot take the sequence.
    """
    own, known = fingerprint(layer), layer._known.programs
    key = (ndim, real, stored, device, flags, single, backends.chosen(), own)
    if key not in known:
        if len(known) >= _MOST_PROGRAMS:
            if single:
                return None
            known.pop(next(iter(known)))
        known[key] = _prepared(layer, ndim, real, stored, device, flags, single, own)
    return known[key]


def _prepared(
    layer: Layer,
    ndim: int,
    real: torch.dtype,
    stored: torch.dtype,
    device: str,
    flags: tuple[bool, ...],
    single: bool,
    own: object,
) -> Served | None:
    try:
        plan = _program(layer, ndim, real, stored, serving(device), own).plan(flags)
        plan.prepare()
    except (Refused, build.BuildError) as why:
        if not single:  # a step is its own definition, whatever is chosen for sequences
            backends.cannot(layer, str(why))
        return None
    return operators.served(plan, layer)


def _program(
    layer: Layer, ndim: int, real: torch.dtype, stored: torch.dtype, backend: str, own: object
) -> Program:
    if real not in REAL or stored not in STORED:
        raise Refused(f"there are no kernels for states in {real} and inputs in {stored}")
    traced = _traced(layer, real, ndim, own)
    dim = layer.dim if layer.dim < 0 else layer.dim - ndim
    return register(Program(traced, real, stored, layer.num_neurons, dim, backend))


def _traced(layer: Layer, real: torch.dtype, ndim: int, own: object) -> Traced:
    """The graphs of a layer whose fingerprint is ``own``, traced once."""
    key, known = (real, ndim, own), layer._known.traces
    if key not in known:
        if len(known) >= _MOST_PROGRAMS:
            known.pop(next(iter(known)))
        try:
            known[key] = trace(layer, real, ndim)
        except Refused as why:
            known[key] = str(why)
        except Exception as error:  # the user's own, on a sample: stepping will show what it is
            known[key] = f"its step raised {type(error).__name__} on a sample: {error}"
    found = known[key]
    if isinstance(found, str):
        raise Refused(found)
    return found
