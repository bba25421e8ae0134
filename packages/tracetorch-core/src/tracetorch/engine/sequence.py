"""Whole sequences of a layer through fused kernels, as operators of torch with autograd.

``tracetorch::unroll`` and ``tracetorch::unroll_backward`` name their program by its digest, so that
``torch.compile`` keeps them whole. What cannot be served here is answered with None: the layer
then steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tracetorch import backends
from tracetorch.engine import build
from tracetorch.engine.cpp import REAL, STORED, render
from tracetorch.engine.graph import Refused
from tracetorch.engine.launch import interpreted, missing
from tracetorch.engine.program import Program, register, registered
from tracetorch.engine.trace import replaced, trace, weights_of
from tracetorch.numbering import numbered

if TYPE_CHECKING:
    from tracetorch.layer import Layer

_library: Any = torch.library.Library("tracetorch", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "unroll(Tensor x, Tensor[] states, Tensor[] parameters, str program, bool[] wanted) -> Tensor[]"
)
_library.define(
    "unroll_backward(Tensor x, Tensor?[] cotangents, Tensor[] kept, Tensor[] parameters, "
    "str program, bool[] wanted) -> Tensor[]"
)


def unroll(layer: Layer, x: Tensor) -> Tensor | None:
    """A checked sequence ``[T, …]`` through kernels, final states put in place; or None."""
    if backends.chosen() == "eager" or _transformed():
        return None
    dtype = layer._state_dtype(x)
    states = [
        layer._standing(state, spec, x[0], dtype) for state, spec in layer._state_specs.items()
    ]
    weights = [weight.to(dtype) for weight in weights_of(layer).values()]
    parameters = [*layer._parameters_as(dtype), *weights]
    flags = [torch.is_grad_enabled() and t.requires_grad for t in (x, *states, *parameters)]
    name = program_name(layer._number, x.ndim - 1, dtype, x.dtype, x.device.type, *flags)
    if name is None:
        return None
    y, *rest = torch.ops.tracetorch.unroll(x, states, parameters, name, flags)
    layer._states = dict(zip(layer._state_specs, rest, strict=False))
    return y  # type: ignore[no-any-return]


def source(layer: Layer, ndim: int, dtype: torch.dtype, backward: bool) -> str:
    """The source of a layer's kernel, with every gradient that can be asked for."""
    try:
        program = _program(layer, ndim, layer._promoted(dtype), dtype, "cpu")
    except Refused as why:
        raise backends.BackendError(f"{layer!r} has no kernel: {why}") from None
    return render(program.kernel(program.gradients, backward))


def _transformed() -> bool:
    """Whether torch is differentiating or batching in a way kernels do not take part in."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def program_name(
    number: int, ndim: int, real: torch.dtype, stored: torch.dtype, device: str, *flags: bool
) -> str | None:
    """The registered, compiled program of a layer for these types; None where it must step.

    Asked and answered in constants: ``torch.compile`` takes the answer as one. ``flags``: for
    input, states and parameters, whether a gradient is wanted.
    """
    layer = numbered(number)
    key = (ndim, real, stored, device, flags, backends.chosen(), _fingerprint(layer))
    if key not in layer._programs:
        layer._programs[key] = _prepared(layer, ndim, real, stored, device, flags)
    name: str | None = layer._programs[key]
    return name


program_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _prepared(
    layer: Layer,
    ndim: int,
    real: torch.dtype,
    stored: torch.dtype,
    device: str,
    flags: Sequence[bool],
) -> str | None:
    try:
        program = _program(layer, ndim, real, stored, device)
        program.prepare(flags)
    except (Refused, build.BuildError) as why:
        backends.cannot(layer, str(why))
        return None
    _users.setdefault(program.name, weakref.WeakSet()).add(layer)
    return program.name


def _program(
    layer: Layer, ndim: int, real: torch.dtype, stored: torch.dtype, device: str
) -> Program:
    backend = _backend(device)
    if real not in REAL or stored not in STORED:
        raise Refused(f"there are no kernels for states in {real} and inputs in {stored}")
    _check_ordinary(layer)
    try:
        traced = trace(layer, real, ndim)
    except Refused:
        raise
    except Exception as error:  # the user's own code, on a sample: stepping will show what it is
        raise Refused(f"its step raised {type(error).__name__} on a sample: {error}") from error
    dim = layer.dim if layer.dim < 0 else layer.dim - ndim
    return register(Program(traced, real, stored, layer.num_neurons, dim, backend))


def _backend(device: str) -> str:
    """The backend for tensors on a device, of the chosen kind."""
    chosen = backends.chosen()
    serving = {"cpu": "cpp", "cuda": "triton"}.get(device)
    if chosen == "triton" and interpreted():
        serving = "triton"
    if serving is None or chosen not in ("auto", serving):
        kind = "" if chosen == "auto" else f"{chosen} "
        raise Refused(f"there are no {kind}kernels for tensors on {device}")
    if serving == "triton" and (why := missing()):
        raise Refused(why)
    return serving


_users: dict[str, weakref.WeakSet[Layer]] = {}


def _check_ordinary(layer: Layer) -> None:
    from tracetorch.layer import Layer as Base

    for method in ("forward", "_advance", "__call__"):
        if getattr(type(layer), method) is not getattr(Base, method):
            raise Refused(f"{type(layer).__name__} has its own {method}")
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        raise Refused("it has hooks, which run at every timestep")


def _fingerprint(layer: Layer) -> tuple[Any, ...]:
    """What a step may read besides tensors: the simple attributes of the layer and its modules."""
    return tuple(
        (type(module), *((k, _content(v)) for k, v in vars(module).items() if k not in _MANAGED))
        for module in layer.modules()
    )


_MANAGED = frozenset(vars(nn.Module())) - {"training"} | {
    "_specs", "_state_specs", "_states", "_baked", "_fold", "_construction", "_number", "_programs",
    "_state_fields", "_parameter_fields",
}  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def _content(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_content, value))
    if isinstance(value, dict):
        return (dict, *((_content(k), _content(v)) for k, v in value.items()))
    return _Same(value)


class _Same:
    """An object as a key: equal to itself alone, and kept alive so that its place is not reused."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


# ---------------------------------------------------------------------- the operators


def _unroll(
    x: Tensor, states: list[Tensor], parameters: list[Tensor], program: str, wanted: list[bool]
) -> list[Tensor]:
    return registered(program).forward(x, states, parameters, wanted)


def _unroll_shapes(
    x: Tensor, states: list[Tensor], parameters: list[Tensor], program: str, wanted: list[bool]
) -> list[Tensor]:
    del parameters
    return registered(program).outputs(x, states, wanted)


def _unroll_backward(
    x: Tensor,
    cotangents: list[Tensor | None],
    kept: list[Tensor],
    parameters: list[Tensor],
    program: str,
    wanted: list[bool],
) -> list[Tensor]:
    return registered(program).backward(x, cotangents, kept, parameters, wanted)


def _unroll_backward_shapes(
    x: Tensor,
    cotangents: list[Tensor | None],
    kept: list[Tensor],
    parameters: list[Tensor],
    program: str,
    wanted: list[bool],
) -> list[Tensor]:
    del cotangents, kept
    return registered(program).gradient_shapes(x, parameters, wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, states, parameters, ctx.program, ctx.wanted = inputs
    ctx.states, ctx.parameters = len(states), len(parameters)
    kept = output[1 + len(states) :]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, *states, *parameters, *kept)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    states, parameters = rest[: ctx.states], rest[ctx.states : ctx.states + ctx.parameters]
    kept = rest[ctx.states + ctx.parameters :]
    cotangents = gradients[: 1 + ctx.states]
    if torch.is_grad_enabled():
        found = _replay(ctx.program, x, states, parameters, cotangents, ctx.wanted)
    else:
        found = _placed(ctx, torch.ops.tracetorch.unroll_backward(
            x, cotangents, kept, parameters, ctx.program, ctx.wanted
        ))  # fmt: skip
    return found[0], found[1 : 1 + ctx.states], found[1 + ctx.states :], None, None


def _placed(ctx: Any, gradients: list[Tensor]) -> list[Tensor | None]:
    """The computed gradients in the order of x, states, parameters; None where there is none."""
    program = registered(ctx.program)
    names = ("x", *program.traced.states, *program.traced.parameters)
    found = dict(zip(program.wanted(ctx.wanted), gradients, strict=True))
    return [found.get(f"grad {name}") for name in names]


def _replay(
    name: str,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The same gradients, differentiable: the layer's own step over the saved tensors."""
    layer = next(iter(_users[name]), None)
    if layer is None:
        raise RuntimeError(
            "a second derivative needs the layer that computed the first: keep it until then"
        )
    own, weights = parameters[: len(layer._specs)], parameters[len(layer._specs) :]
    dtype = states[0].dtype if states else parameters[0].dtype
    now, ys = [state.movedim(layer.dim, -1) for state in states], []
    with replaced(layer, dict(zip(weights_of(layer), weights, strict=True))):
        for timestep in x:
            inflow = timestep.movedim(layer.dim, -1).to(dtype)
            new, y = layer.step(layer._state_fields(*now), inflow, layer._parameter_fields(*own))
            now = [new[state] for state in layer._state_specs]
            ys.append(y.movedim(-1, layer.dim).to(x.dtype))
    ends = [torch.stack(ys), *(state.movedim(-1, layer.dim) for state in now)]
    reached = [(end, g) for end, g in zip(ends, cotangents, strict=True)
               if g is not None and end.requires_grad]  # fmt: skip
    sources = [x, *states, *parameters]
    asked = [source for source, flag in zip(sources, wanted, strict=True) if flag]
    gradients = iter(
        torch.autograd.grad(
            [end for end, _ in reached],
            asked,
            [gradient for _, gradient in reached],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(gradients) if flag else None for flag in wanted]


for _device in ("CPU", "CUDA"):
    _library.impl("unroll", _unroll, _device)
    _library.impl("unroll_backward", _unroll_backward, _device)
torch.library.register_fake("tracetorch::unroll", _unroll_shapes, lib=_library)
torch.library.register_fake("tracetorch::unroll_backward", _unroll_backward_shapes, lib=_library)
torch.library.register_autograd(
    "tracetorch::unroll", _differentiate, setup_context=_save, lib=_library
)
