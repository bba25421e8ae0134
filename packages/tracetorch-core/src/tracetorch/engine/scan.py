"""Scans: a recurrence in lanes (sample, channel, state) whose outputs are summed over the states.

What a lane does is written once, elementwise; :class:`Scan` says what each input varies over. It
runs a timestep in torch, and whole sequences through kernels traced from the same function, as the
operators ``tracetorch::scan`` and ``tracetorch::scan_backward``. Memory grows with the sequences
and a fraction of the states, never with all states of all timesteps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracetorch import mode
from tracetorch.choice import BackendError, cannot
from tracetorch.engine.cpp import REAL, abridged
from tracetorch.engine.launch import BuildError, in_order
from tracetorch.engine.operators import differentiated, saved_by
from tracetorch.engine.scan_kernel import CHANNEL, FIXED, STATE, ScanKernel
from tracetorch.engine.targets import TARGETS, Target, serving
from tracetorch.engine.trace import Traced, trace_function
from tracetorch.mode import Way
from tracetorch.reasons import Reason, Refused, Unfused
from tracetorch.states import restarted

_scans: dict[str, Scan] = {}

_library: Any = torch.library.Library("tracetorch", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "scan(Tensor h, Tensor[] inputs, Tensor? resets, str name, str backend, bool training) "
    "-> Tensor[]"
)
_library.define(
    "scan_backward(Tensor?[] cotangents, Tensor kept, Tensor[] inputs, Tensor? resets, "
    "str name, str backend) -> Tensor[]"
)


@dataclass(frozen=True, eq=False)
class Scan:
    """A recurrence over D channels of N states each.

    Attributes:
        name: what it is known by in compiled graphs; of several scans, the last.
        lane: ``(h, *inputs) → (new h, share of y)``, elementwise and pure.
        axes: the inputs by name, in the order of ``lane``, each with what it varies over: ``d``
            (one value per channel and timestep), ``n`` (per state and timestep), ``dn`` (per
            channel and state, constant in time and the same for all samples).

    Raises:
        ValueError: an axis is none of these.

    Example:
        >>> import torch
        >>> def lane(h, x, a):
        ...     h = a * h + x
        ...     return h, h
        >>> scan = Scan("sum of traces", lane, {"x": "d", "a": "dn"})
        >>> h, y = scan.step(torch.ones(1, 2, 3), torch.ones(1, 2), torch.full((2, 3), 0.5))
        >>> h.shape, y
        (torch.Size([1, 2, 3]), tensor([[4.5000, 4.5000]]))
    """

    name: str
    lane: Callable[..., tuple[Tensor, Tensor]]
    axes: Mapping[str, str]

    def __post_init__(self) -> None:
        for name, axis in self.axes.items():
            if axis not in (CHANNEL, STATE, FIXED):
                raise ValueError(f"scan {self.name}: {name} must vary over d, n or dn, not {axis}")
            if name in ("h", "y"):
                raise ValueError(
                    f"scan {self.name}: an input cannot be {name}, its state or output"
                )
        _scans[self.name] = self

    def step(self, h: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """One timestep in torch.

        Args:
            h: states ``[…, D, N]``.
            inputs: in the order of ``axes``: ``[…, D]``, ``[…, N]`` or ``[D, N]``.

        Returns:
            The new states ``[…, D, N]`` and y ``[…, D]``.
        """
        placed = (_spread(t, axis) for t, axis in zip(inputs, self.axes.values(), strict=True))
        new, share = self.lane(h, *placed)
        return new, share.sum(-1)

    def sequence(
        self, h: Tensor, *inputs: Tensor, owner: object, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """All timesteps in one kernel; None where they have to be stepped, which is said.

        Args:
            h: states ``[…, D, N]``.
            inputs: in the order of ``axes``: ``[T, …, D]``, ``[T, …, N]`` or ``[D, N]``.
            owner: whose recurrence it is, for the log and for errors.
            resets: before which timesteps which samples restart, boolean ``[T, B]``; B is the first
                dimension of ``h``.

        Returns:
            The last states ``[…, D, N]`` and y ``[T, …, D]``.

        Raises:
            BackendError: a backend was asked for by name, and cannot take it.
        """
        backend = WATCHED
        if mode.way((h, *inputs)) is not Way.STEP:
            training = torch.is_grad_enabled()
            backend = serving_scan(self.name, h.dtype, h.device.type, training)
        if backend.startswith(_NONE):
            cannot(owner, backend.removeprefix(_NONE))
            return None
        around = h.shape[:-2]
        flat = [
            t if axis == FIXED else t.reshape(t.shape[0], around.numel(), t.shape[-1])
            for t, axis in zip(inputs, self.axes.values(), strict=True)
        ]
        states = h.reshape(around.numel(), *h.shape[-2:])
        if resets is not None:
            resets = resets.to(torch.uint8).unsqueeze(-1)
            resets = resets.expand(*resets.shape[:2], around[1:].numel()).flatten(1)
        training = torch.is_grad_enabled() and any(t.requires_grad for t in (states, *flat))
        y, new, *_ = torch.ops.tracetorch.scan(states, flat, resets, self.name, backend, training)
        return new.reshape(h.shape), y.reshape(y.shape[0], *around, y.shape[-1])

    def source(
        self, owner: object, real: torch.dtype, backward: bool = False, backend: str = "cpp"
    ) -> str:
        """The source of its kernel, without the headers.

        Args:
            owner: whose recurrence it is, for errors.
            real: the type that is computed in, float32 or float64.
            backward: the kernel of the backward pass instead of the forward.
            backend: ``"cpp"`` or ``"triton"``.

        Raises:
            ValueError: there is no such backend.
            BackendError: there is no kernel; the message says why.
        """
        if backend not in TARGETS:
            names = [*TARGETS]
            raise ValueError(f"kernel_source: backend must be one of {names}, got {backend!r}")
        try:
            return abridged(TARGETS[backend].render_scan(self.kernel(real, backward)))
        except Refused as why:
            raise BackendError(f"{owner!r} has no kernel: {why}") from None

    @functools.cache  # noqa: B019 - scans live as long as the process
    def traced(self, real: torch.dtype) -> Traced:
        """The lane's graphs in the type ``real``, float32 or float64.

        Raises:
            Refused: there is no kernel for the lane's function or the type.
        """
        if real not in REAL:
            raise Refused(Unfused.TYPES, real, real)
        traced = trace_function(self.lane, tuple(self.axes), real)
        if "grad h" not in traced.backward:
            raise Refused(Unfused.MEMORYLESS)
        return traced

    def kernel(self, real: torch.dtype, backward: bool) -> ScanKernel:
        """What one direction computes, ``backward`` or forward, in the type ``real``."""
        return _kernel(self, real, backward)


@functools.cache
def _kernel(scan: Scan, real: torch.dtype, backward: bool) -> ScanKernel:
    return ScanKernel(scan.traced(real), scan.axes, real, backward)


def _spread(tensor: Tensor, axis: str) -> Tensor:
    """An input of one timestep, to be broadcast with states."""
    if axis == FIXED:
        return tensor
    return tensor.unsqueeze(-1 if axis == CHANNEL else -2)


# ---------------------------------------------------------------------- who is served

# what an answer begins with that is a reason instead
_NONE = "no: "
WATCHED = f"{_NONE}{Reason(Unfused.WATCHED)}"


def serving_scan(name: str, real: torch.dtype, device: str, training: bool) -> str:
    """The backend whose kernels, compiled, a scan has; or why there is none.

    Asked and answered in constants: ``torch.compile`` takes the answer as one.
    """
    try:
        target = serving(device)
    except Refused as why:
        return f"{_NONE}{why}"
    failure = _failure(_scans[name], real, target.name, training)
    return target.name if failure is None else f"{_NONE}{failure}"


serving_scan._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _failure(scan: Scan, real: torch.dtype, backend: str, training: bool) -> str | None:
    """Compile what is needed; or why there is no kernel."""
    try:
        kernels = [scan.kernel(real, backward) for backward in (False, True)[: 1 + training]]
        TARGETS[backend].prepare(kernels)
    except (Refused, BuildError) as why:
        return str(why)
    return None


def _run(
    kernel: ScanKernel, backend: str, tensors: Sequence[Tensor | None], sizes: Sequence[int]
) -> None:
    TARGETS[backend].launch(kernel)([in_order(tensor) for tensor in tensors], sizes)


def _width(backend: str, like: Tensor, *sizes: int) -> int:
    """Channels of a block; ``sizes``: B, D, N."""
    target: Target = TARGETS[backend]
    return target.scan_width(like.device, *sizes)


# ---------------------------------------------------------------------- the operators


def _scan(
    h: Tensor,
    inputs: list[Tensor],
    resets: Tensor | None,
    name: str,
    backend: str,
    training: bool,
) -> list[Tensor]:
    kernel = _scans[name].kernel(h.dtype, backward=False)
    y, new, *kept = outputs = _scan_shapes(h, inputs, resets, name, backend, training)
    sizes = (y.shape[0], *h.shape, _width(backend, h, *h.shape))
    _run(kernel, backend, [h, *inputs, y, new, kept[0] if kept else None, resets], sizes)
    return outputs


def _scan_shapes(
    h: Tensor,
    inputs: list[Tensor],
    resets: Tensor | None,
    name: str,
    backend: str,
    training: bool,
) -> list[Tensor]:
    """Outputs ``[T, B, D]``, the last states and, for training, kept states."""
    del backend, resets
    samples, channels, states = h.shape
    steps = _steps(inputs, name)
    period = ScanKernel.period
    kept = [h.new_empty((steps + period - 1) // period, samples, states, channels)] * training
    return [h.new_empty(steps, samples, channels), h.new_empty(h.shape), *kept]


def _steps(inputs: Sequence[Tensor], name: str) -> int:
    axes = _scans[name].axes.values()
    return next(t.shape[0] for t, axis in zip(inputs, axes, strict=True) if axis != FIXED)


def _scan_backward(
    cotangents: list[Tensor | None],
    kept: Tensor,
    inputs: list[Tensor],
    resets: Tensor | None,
    name: str,
    backend: str,
) -> list[Tensor]:
    kernel = _scans[name].kernel(kept.dtype, backward=True)
    _, samples, states, channels = kept.shape
    width = _width(backend, kept, samples, channels, states)
    steps, groups = _steps(inputs, name), -(-channels // width)
    shapes = {
        CHANNEL: (steps, samples, channels),
        STATE: (groups, steps, samples, states),
        FIXED: (samples, channels, states),
    }
    axes = [kernel.axes.get(name.removeprefix("grad "), "h") for name in kernel.gradients]
    found = [kept.new_empty(shapes[FIXED if axis == "h" else axis]) for axis in axes]
    sizes = (steps, samples, channels, states, width)
    _run(kernel, backend, [kept, *inputs, *cotangents, *found, resets], sizes)
    return [_whole(gradient, axis) for gradient, axis in zip(found, axes, strict=True)]


def _whole(gradient: Tensor, axis: str) -> Tensor:
    """Of blocks of channels, or of samples, their sum."""
    return gradient.sum(0) if axis in (STATE, FIXED) else gradient


def _scan_backward_shapes(
    cotangents: list[Tensor | None],
    kept: Tensor,
    inputs: list[Tensor],
    resets: Tensor | None,
    name: str,
    backend: str,
) -> list[Tensor]:
    del cotangents, resets, backend
    kernel = _scans[name].kernel(kept.dtype, backward=True)
    _, samples, states, channels = kept.shape
    shapes = dict(zip(kernel.axes, (t.shape for t in inputs), strict=True))
    shapes["h"] = torch.Size((samples, channels, states))
    return [kept.new_empty(shapes[name.removeprefix("grad ")]) for name in kernel.gradients]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    h, given, ctx.resets, ctx.name, ctx.backend, training = inputs
    ctx.set_materialize_grads(False)
    if training:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(h, output[2], *given)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    h, kept, *inputs = saved_by(ctx)
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    if torch.is_grad_enabled() or mode.transformed() or mode.batched(gradients):
        found = _replay(ctx.name, h, inputs, ctx.resets, gradients[:2], needed)
    else:
        kernel = _scans[ctx.name].kernel(h.dtype, backward=True)
        values = torch.ops.tracetorch.scan_backward(
            gradients[:2], kept, inputs, ctx.resets, ctx.name, ctx.backend
        )
        named = dict(zip(kernel.gradients, values, strict=True))
        found = [named.get(f"grad {name}") for name in ("h", *kernel.axes)]
    return found[0], found[1:], None, None, None, None


def _replay(
    name: str,
    h: Tensor,
    inputs: Sequence[Tensor],
    resets: Tensor | None,
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The same gradients, differentiable: the steps over the saved tensors."""
    with torch.enable_grad():
        h, *inputs = (tensor.view_as(tensor) for tensor in (h, *inputs))
        scan, now, ys = _scans[name], h, []
        for t in range(_steps(inputs, name)):
            axes = scan.axes.values()
            own = [i if axis == FIXED else i[t] for i, axis in zip(inputs, axes, strict=True)]
            if resets is not None:
                now = restarted(now, resets[t].bool())
            now, y = scan.step(now, *own)
            ys.append(y)
        ends = torch.stack(ys), now
    return differentiated(ends, cotangents, (h, *inputs), needed, torch.is_grad_enabled())


for _device in ("CPU", "CUDA"):
    _library.impl("scan", _scan, _device)
    _library.impl("scan_backward", _scan_backward, _device)
torch.library.register_fake("tracetorch::scan", _scan_shapes, lib=_library)
torch.library.register_fake("tracetorch::scan_backward", _scan_backward_shapes, lib=_library)
torch.library.register_autograd(
    "tracetorch::scan", _differentiate, setup_context=_save, lib=_library
)
