"""Kernels with autograd: as operators of torch where it looks on, else called directly.

``tracetorch::unroll`` and ``tracetorch::unroll_backward`` name their program by its digest, so that
``torch.compile`` keeps them whole. Outside of that a plain autograd function calls the kernels:
torch's way through an operator written in Python takes ten times as long as a short sequence.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.engine.aside import Aside
from tracetorch.engine.definition import Definition
from tracetorch.engine.last_use import last_use
from tracetorch.engine.program import Plan, registered
from tracetorch.mode import Way, batched, transformed, way

_library: Any = torch.library.Library("tracetorch", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "unroll(Tensor x, Tensor[] states, Tensor[] parameters, Tensor?[] aside, str program, "
    "bool[] wanted) -> Tensor[]"
)
_library.define(
    "unroll_backward(Tensor x, Tensor?[] cotangents, Tensor[] kept, Tensor[] parameters, "
    "Tensor?[] aside, str program, bool[] wanted) -> Tensor[]"
)

_definitions: weakref.WeakValueDictionary[str, Definition] = weakref.WeakValueDictionary()


class Served(NamedTuple):
    """How sequences of a step run: by a program that others may share, and what it is made of."""

    plan: Plan
    definition: Definition | None


def served(plan: Plan, definition: Definition | None) -> Served:
    """The step, as it was traced, by this plan; the operators know it by the program's name."""
    if definition is not None:
        _definitions[plan.program.name] = definition
    return Served(plan, definition)


def run(
    by: Served,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    aside: Aside,
    single: bool = False,
) -> Sequence[Tensor]:
    """``y``, new and recorded states of a sequence, or of one timestep, directly."""
    if any(by.plan.flags):
        SAVING.now = not single
        try:
            fused: Sequence[Tensor] = _Fused.apply(by, single, aside, x, *states, *parameters)
        finally:
            SAVING.now = False
        return fused
    return by.plan.forward(x, states, parameters, aside, single)


class _Flag(threading.local):
    """Whether something is going on in this thread."""

    now = False


# what autograd saves will be asked for once in a backward pass; a backward pass asks for it
SAVING, TAKING = _Flag(), _Flag()


class _Fused(torch.autograd.Function):
    """A plan's two directions."""

    @staticmethod
    def forward(
        ctx: Any, by: Served, single: bool, aside: Aside, x: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        plan, count = by.plan, len(by.plan.program.traced.states)
        states, parameters = rest[:count], rest[count:]
        outputs = plan.forward(x, states, parameters, aside, single)
        ctx.by, ctx.single, ctx.aside = by, single, aside
        ctx.set_materialize_grads(False)
        tracked = tuple(ctx.needs_input_grad[3:])
        constant = plan.constant(tracked, not single and len(x) > 1)
        ctx.mark_non_differentiable(*[outputs[index] for index in constant])
        ctx.save_for_backward(x, *rest, *outputs[plan.ends :])
        return tuple(outputs[: plan.ends])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        found = _gradients(ctx.by, ctx.single, ctx.aside, _taken(ctx), cotangents)
        return None, None, None, *found


def _taken(ctx: Any) -> Sequence[Tensor]:
    """What a forward pass saved, for good where this is the last to ask."""
    TAKING.now = True
    try:
        return saved_by(ctx)
    finally:
        TAKING.now = False


def saved_by(ctx: Any) -> Sequence[Tensor]:
    """What a forward pass saved.

    Raises:
        RuntimeError: a backward pass has used it up; the message says what is usually the reason.
    """
    try:
        saved: Sequence[Tensor] = ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            "a tt.Layer is differentiated a second time, most often because its states still hold "
            "the graph of the batch before: call zero_states() before new sequences, or "
            "detach_states() to go on with the same ones, after each backward pass; "
            "retain_graph=True is for differentiating one loss twice"
        ) from error
    return saved


def _gradients(
    by: Served,
    single: bool,
    aside: Aside,
    saved: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    """For each of x, states, parameters. ``saved``: these, then what a sequence kept."""
    plan = by.plan
    inputs = len(plan.program.inputs)
    states = 1 + len(plan.program.traced.states)
    parameters, kept = saved[states:inputs], saved[inputs:]
    if torch.is_grad_enabled() or transformed() or batched(cotangents):
        return _replay(by, single, aside, saved[:inputs], cotangents)
    if single:
        kept = plan.remembered(saved[1:states])
        found = plan.backward(saved[0], cotangents, kept, parameters, aside, single)
        return plan.placed(found, cotangents, False)
    again = len(saved[0]) > 1
    if way(saved) is Way.DIRECT:
        in_place = plan.in_place and last_use(saved)
        found = plan.backward(saved[0], cotangents, kept, parameters, aside, single, in_place)
        return plan.placed(found, cotangents, again)
    x = saved[0]
    found = torch.ops.tracetorch.unroll_backward(
        x, list(cotangents), kept, parameters, list(aside), plan.program.name, list(plan.flags)
    )
    return plan.placed(found, cotangents, again)


def _replay(
    by: Served,
    single: bool,
    aside: Aside,
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The same gradients, differentiable: the step itself over the saved tensors."""
    if by.definition is None:
        raise RuntimeError(
            "a second derivative through a compiled graph needs the layer that was compiled: "
            "keep it until then"
        )
    with torch.enable_grad():
        # under names of their own: a state may have come from the same x and parameters
        inputs = [tensor.view_as(tensor) for tensor in inputs]
        ends = by.definition.run(by.plan.program.real, inputs, aside, single, by.plan.recorded)
    return differentiated(ends, cotangents, inputs, by.plan.flags, torch.is_grad_enabled())


def differentiated(
    ends: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    flags: Sequence[bool],
    again: bool,
) -> list[Tensor | None]:
    """The vector-Jacobian product for the flagged inputs; ``again``: differentiable once more."""
    reached = [
        (end, cotangent)
        for end, cotangent in zip(ends, cotangents, strict=True)
        if cotangent is not None and end.requires_grad
    ]
    asked = [tensor for tensor, flag in zip(inputs, flags, strict=True)
             if flag and tensor.requires_grad]  # fmt: skip
    gradients = iter(
        torch.autograd.grad(
            [end for end, _ in reached],
            asked,
            [cotangent for _, cotangent in reached],
            create_graph=again,
            allow_unused=True,
        )
    )
    return [
        next(gradients) if flag and tensor.requires_grad else None
        for tensor, flag in zip(inputs, flags, strict=True)
    ]


# ---------------------------------------------------------------------- the operators


def _unroll(
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    aside: list[Tensor | None],
    program: str,
    wanted: list[bool],
) -> list[Tensor]:
    plan = registered(program).plan(tuple(wanted))
    return plan.forward(x, states, parameters, Aside(*aside), False)


def _unroll_shapes(
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    aside: list[Tensor | None],
    program: str,
    wanted: list[bool],
) -> list[Tensor]:
    del parameters, aside
    return registered(program).plan(tuple(wanted)).outputs(x, states, False)


def _unroll_backward(
    x: Tensor,
    cotangents: list[Tensor | None],
    kept: list[Tensor],
    parameters: list[Tensor],
    aside: list[Tensor | None],
    program: str,
    wanted: list[bool],
) -> list[Tensor]:
    plan = registered(program).plan(tuple(wanted))
    return plan.backward(x, cotangents, kept, parameters, Aside(*aside), False)


def _unroll_backward_shapes(
    x: Tensor,
    cotangents: list[Tensor | None],
    kept: list[Tensor],
    parameters: list[Tensor],
    aside: list[Tensor | None],
    program: str,
    wanted: list[bool],
) -> list[Tensor]:
    del cotangents, kept, aside
    return registered(program).plan(tuple(wanted)).gradient_shapes(x, parameters)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, states, parameters, aside, program, wanted = inputs
    ctx.aside = Aside(*aside)
    plan, ctx.states = registered(program).plan(tuple(wanted)), len(states)
    ctx.by = Served(plan, _definitions.get(program))
    kept = output[plan.ends :]
    ctx.set_materialize_grads(False)
    tracked = tuple([tensor.requires_grad for tensor in (x, *states, *parameters)])
    constant = plan.constant(tracked, len(x) > 1)
    ctx.mark_non_differentiable(*[output[index] for index in constant], *kept)
    ctx.save_for_backward(x, *states, *parameters, *kept)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    states, ends = 1 + ctx.states, ctx.by.plan.ends
    found = _gradients(ctx.by, False, ctx.aside, saved_by(ctx), gradients[:ends])
    return found[0], list(found[1:states]), list(found[states:]), None, None, None


for _device in ("CPU", "CUDA"):
    _library.impl("unroll", _unroll, _device)
    _library.impl("unroll_backward", _unroll_backward, _device)
torch.library.register_fake("tracetorch::unroll", _unroll_shapes, lib=_library)
torch.library.register_fake("tracetorch::unroll_backward", _unroll_backward_shapes, lib=_library)
torch.library.register_autograd(
    "tracetorch::unroll", _differentiate, setup_context=_save, lib=_library
)
