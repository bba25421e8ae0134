"""Sequences and timesteps through fused kernels: which program serves a request, and its answer.

What cannot be served here is answered with None, and why is said: the step then runs by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tracetorch import mode
from tracetorch.choice import AUTO, BackendError, cannot, chosen
from tracetorch.effective import weights_of
from tracetorch.engine import operators, segments
from tracetorch.engine.aside import Aside
from tracetorch.engine.cpp import REAL, STORED, abridged
from tracetorch.engine.definition import Definition
from tracetorch.engine.findings import Findings
from tracetorch.engine.lane import Lane
from tracetorch.engine.launch import BuildError
from tracetorch.engine.operators import Served
from tracetorch.engine.program import Program, register
from tracetorch.engine.reads import Reads
from tracetorch.engine.request import Request, Subject
from tracetorch.engine.targets import TARGETS, serving
from tracetorch.engine.trace import Traced, scene_of, trace
from tracetorch.mode import Way
from tracetorch.numbering import numbered
from tracetorch.reasons import Reason, Refused, Unfused

# Operations of a timestep below which they are faster one by one, without gradients and with: to
# call a kernel takes as long as three, to call its autograd function as six.
_FEWEST = {False: 4, True: 7}
# a step whose attributes change from call to call is not worth a kernel for each
_MOST = 32


class Answer(NamedTuple):
    """What was computed.

    Attributes:
        y: outputs, of a sequence ``[T, …]``.
        states: the final ones, in the declaration's order.
        random: seed and count of the random numbers, as they were at the start.
        recorded: states after every timestep, ``[T, …]``, in the order of the request.
    """

    y: Tensor
    states: Sequence[Tensor]
    random: Tensor | None
    recorded: Sequence[Tensor] = ()


class Kind(NamedTuple):
    """What requests have in common that one program serves.

    Attributes:
        real: the type of states and parameters.
        stored: that of the input.
        device: where they are, by its type.
        ndim: dimensions of a timestep.
        flags: which gradients are wanted, of x, states, parameters.
        single: single timesteps.
        recorded: as in a request.
    """

    real: torch.dtype
    stored: torch.dtype
    device: str
    ndim: int
    flags: tuple[bool, ...]
    single: bool = False
    recorded: tuple[str, ...] = ()


class Tracing(NamedTuple):
    """What came of tracing a step.

    Attributes:
        reads: what the step had read, then; it is another one where that is no longer there.
        traced: its graphs, or why there are none.
        definition: itself, as it was then.
        weights: types of the weights that were not declared.
        served: the programs made of it by types, flags and target; or why there is none.
    """

    reads: Reads
    traced: Traced | Reason
    definition: Definition | None
    weights: tuple[torch.dtype, ...]
    served: dict[object, Served | Reason]


# ---------------------------------------------------------------------- answers


def unroll(request: Request) -> Answer | None:
    """A checked sequence through a kernel; None where it has to be stepped.

    Raises:
        BackendError: a backend was asked for by name, and cannot take the sequence.
    """
    subject, x = request.subject, request.x
    if not torch.compiler.is_dynamo_compiling() and mode.recording():  # the trace of the step too
        cannot(subject.module, Reason(Unfused.WATCHED))
        return None
    if torch.compiler.is_compiling():
        ready(subject.findings.number, request.real, x.ndim - 1)
    own = tracing(subject, request.real, x.ndim - 1)
    parameters = _parameters(request, own)
    way = mode.way((x, *request.states, *parameters))
    why: Reason | None = Reason(Unfused.WATCHED) if way is Way.STEP else _hindered(request)
    if why is None:
        flags = _flags(x, request.states, parameters)
        types = (request.real, x.dtype, x.device.type)
        count = 1 + len(request.states)
        if way is Way.OPERATOR:
            name = None
            if not request.recorded:
                name = program_name(subject.findings.number, x.ndim - 1, *types, *flags)
            if name is None:
                return None
            aside = Aside(request.random(), _bytes(request))
            run = torch.ops.tracetorch.unroll
            found = run(x, request.states, parameters, [*aside], name, flags)
            return Answer(found[0], found[1:count], aside.random)
        kind = Kind(*types, x.ndim - 1, flags, recorded=request.recorded)
        by = served(subject, own, kind)
        if isinstance(by, Served):
            random = request.random() if by.plan.draws else None
            aside = Aside(random, _bytes(request))
            found = _run(by, x, request.states, parameters, aside)
            return Answer(found[0], found[1:count], random, found[count : by.plan.ends])
        why = by
    cannot(subject.module, why if request.besides is None else f"{request.besides}; {why}")
    return None


def _run(
    by: Served,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    aside: Aside,
) -> Sequence[Tensor]:
    """A sequence, timestep after timestep or, where that is faster, in segments at once."""
    plan = by.plan
    affine = plan.program.affine and not plan.recorded and aside.resets is None
    count = segments.count(len(x), x.shape[1:].numel(), x.device) if affine else 1
    if count > 1:
        found = segments.unroll(
            lambda x, states: operators.run(by, x, states, parameters, aside), x, states, count
        )
        if found is not None:
            return found
    return operators.run(by, x, states, parameters, aside)


def _bytes(request: Request) -> Tensor | None:
    """Which samples restart, as kernels read it: a copy, which nobody writes into."""
    resets = request.resets
    return None if resets is None else resets.to(torch.uint8, memory_format=torch.contiguous_format)


def steps_fused() -> bool:
    """Whether single timesteps may go through kernels, where nothing is being compiled."""
    return chosen() in (AUTO, "cpp") and mode.undisturbed()


def step(request: Request) -> Answer | None:
    """One checked timestep through a kernel; None where its operations are as fast, or have to be.

    On the CPU alone, where it was measured to be faster than the operations one by one. What it
    was served by is kept for the next one, in the findings.
    """
    x, findings = request.x, request.subject.findings
    findings.lane = None
    if not x.is_cpu:
        return None
    own = tracing(request.subject, request.real, x.ndim)
    parameters = _parameters(request, own)
    for tensor in (x, *request.states, *parameters):
        if type(tensor) not in mode.PLAIN:
            return None
    if _hindered(request) is not None:
        return None
    flags = _flags(x, request.states, parameters)
    kind = Kind(request.real, x.dtype, "cpu", x.ndim, flags, single=True)
    by = served(request.subject, own, kind)
    if isinstance(by, Reason):
        return None
    if not by.plan.draws and not own.weights:
        findings.lane = Lane(by, own.reads, request)
    random = request.random() if by.plan.draws else None
    found = operators.run(by, x, request.states, parameters, Aside(random), single=True)
    return Answer(found[0], found[1:], random)


def _parameters(request: Request, own: Tracing) -> Sequence[Tensor]:
    """The declared ones, and the module's other weights."""
    if not own.weights:
        return request.parameters
    weights = weights_of(request.subject.module, request.subject.declaration.parameters)
    return [*request.parameters, *[weight.to(request.real) for weight in weights.values()]]


def source(
    subject: Subject,
    ndim: int,
    real: torch.dtype,
    stored: torch.dtype,
    backward: bool,
    backend: str,
) -> str:
    """The source of a step's kernel, with every gradient that can be asked for.

    Raises:
        ValueError: there is no such backend.
        BackendError: there is no kernel; the message says why.
    """
    if backend not in TARGETS:
        raise ValueError(f"kernel_source: backend must be one of {[*TARGETS]}, got {backend!r}")
    try:
        kind = Kind(real, stored, "", ndim, ())
        program = _program(subject, tracing(subject, real, ndim), kind, backend)
    except Refused as why:
        raise BackendError(f"{subject.module!r} has no kernel: {why}") from None
    return abridged(program.source(program.gradients, backward))


# ---------------------------------------------------------------------- who is served


def _hindered(request: Request) -> Reason | None:
    """Why these tensors are for the step to take: a kernel would read whatever is at an address."""
    x, declared = request.x, request.subject.declaration.parameters
    if x.layout is not torch.strided:
        return Reason(Unfused.LAYOUT, (str(x.layout),))
    device = x.device
    for tensor in request.states:
        if tensor.device != device:
            return Reason(Unfused.ELSEWHERE, (str(device),))
    for spec, parameter in zip(declared.values(), request.parameters, strict=True):
        if parameter.device != device:
            return Reason(Unfused.ELSEWHERE, (str(device),))
        if parameter.shape != spec.shape:
            shapes = str(list(parameter.shape)), str(list(spec.shape))
            return Reason(Unfused.DECLARED, (spec.name, *shapes))
    return None


def _flags(x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which gradients to compute, of x, states, parameters.

    Those of the states, known anyhow, are among them whenever there are any: so one kernel serves
    the first timestep or chunk and the ones after it.
    """
    if not torch.is_grad_enabled():
        return (False,) * (1 + len(states) + len(parameters))
    own = [tensor.requires_grad for tensor in (x, *parameters)]
    through = True in own or True in [state.requires_grad for state in states]
    return (own[0], *[through] * len(states), *own[1:])


def program_name(
    subject: str, ndim: int, real: torch.dtype, stored: torch.dtype, device: str, *flags: bool
) -> str | None:
    """The registered, compiled program of a step for these types; None where it must step.

    Asked and answered in constants: ``torch.compile`` takes the answer as one. ``subject``: its
    number. ``flags``: for input, states and parameters, whether a gradient is wanted.
    """
    found: Subject = numbered(subject)
    by = served(found, tracing(found, real, ndim), Kind(real, stored, device, ndim, flags))
    if isinstance(by, Reason):
        cannot(found.module, by)
        return None
    return by.plan.program.name


program_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def ready(subject: str, real: torch.dtype, ndim: int) -> bool:
    """Trace the step of this number outside of what is being compiled."""
    return isinstance(tracing(numbered(subject), real, ndim).traced, Traced)


ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


def served(subject: Subject, own: Tracing, kind: Kind) -> Served | Reason:
    """The compiled plan of a step for requests of a kind; or why there is none."""
    key = (kind, chosen(), subject.dim)
    by = own.served.get(key)
    if by is None:
        if len(own.served) >= _MOST:
            own.served.pop(next(iter(own.served)))
        by = own.served[key] = _prepared(subject, own, kind)
    return by


def _prepared(subject: Subject, own: Tracing, kind: Kind) -> Served | Reason:
    try:
        program = _program(subject, own, kind, serving(kind.device).name)
        differentiated = any(kind.flags)
        if kind.single and program.traced.operations < _FEWEST[differentiated]:
            return Reason(Unfused.ASKED)
        plan = program.plan(kind.flags)
        plan.prepare()
    except Refused as why:
        return why.reason
    except BuildError as error:
        return Reason(Unfused.BUILD, (str(error),))
    return operators.served(plan, own.definition)


def _program(subject: Subject, own: Tracing, kind: Kind, backend: str) -> Program:
    real, stored = kind.real, kind.stored
    if real not in REAL or stored not in STORED:
        raise Refused(Unfused.TYPES, real, stored)
    if isinstance(own.traced, Reason):
        raise Refused(own.traced)
    dim = subject.dim if subject.dim < 0 else subject.dim - kind.ndim
    names = [*subject.declaration.states]
    recorded = tuple(own.traced.states[names.index(name)] for name in kind.recorded)
    return register(Program(own.traced, real, stored, subject.neurons, dim, backend, recorded))


def tracing(subject: Subject, real: torch.dtype, ndim: int) -> Tracing:
    """What came of tracing the step, as it is now."""
    known = subject.findings.traced.setdefault((real, ndim, subject.neurons), [])
    for place, found in enumerate(known):
        if found.reads.last() and (not found.weights or found.weights == _weights(subject)):
            if place:
                known.insert(0, known.pop(place))
            return found  # type: ignore[no-any-return]
    del known[_MOST - 1 :]
    known.insert(0, _traced(subject, real, ndim))
    return known[0]  # type: ignore[no-any-return]


def _traced(subject: Subject, real: torch.dtype, ndim: int) -> Tracing:
    scene = scene_of(subject)
    reads = scene.reads
    weights = weights_of(subject.module, subject.declaration.parameters)
    definition = None
    try:
        traced: Traced | Reason = trace(subject, scene, real, ndim)
        definition = Definition(subject, scene, [*weights])
    except Refused as why:
        traced = why.reason
    except Exception as error:  # the user's own, on a sample: stepping will show what it is
        traced = Reason(Unfused.RAISES, (type(error).__name__, str(error)))
    return Tracing(reads, traced, definition, _weights(subject), {})


def _weights(subject: Subject) -> tuple[torch.dtype, ...]:
    weights = weights_of(subject.module, subject.declaration.parameters)
    return tuple([weight.dtype for weight in weights.values()])


def why_stepped(findings: Findings | None) -> Reason | None:
    """Why a step has no kernel, as was found last; None: it has one, or none was asked for."""
    for known in findings.traced.values() if findings is not None else ():
        for own in known[:1]:
            if isinstance(own.traced, Reason):
                return own.traced
            for by in reversed(own.served.values()):
                if isinstance(by, Reason) and by.why is not Unfused.ASKED:
                    return by
    return None


def programs(findings: Findings) -> list[Served]:
    """How a step's sequences and timesteps run, as far as they were asked for and have kernels."""
    known = [own for found in findings.traced.values() for own in found]
    return [by for own in known for by in own.served.values() if isinstance(by, Served)]
