"""What diagonal state-space layers share: complex recurrences over whole sequences. Knows no layer.

A complex number is a pair (real, imaginary) in the last dimension of a real tensor. What runs over
time is written here, in torch: a long sequence is cut into segments that advance side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.amp.autocast_mode import autocast
from tracetorch import Constraint, mode
from tracetorch.choice import cannot
from tracetorch.reasons import Reason, Unfused
from tracetorch.states import finite

Pair: TypeAlias = tuple[Tensor, Tensor]

positive = Constraint("exp", torch.exp, torch.log, low=0.0)

METHODS = ("zoh", "bilinear")

# Timesteps of a segment; and states from which on segments only cost memory traffic. Measured on
# two threads: 7 times as fast as the loop for 64 states and T = 10 000, even at about 10 000.
_LENGTH, _WIDE = 16, 1 << 13
_CONTIGUOUS = torch.contiguous_format

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_BUT_FIRST, _BUT_LAST = slice(1, None), slice(None, -1)


def log_uniform(low: float, high: float, *shape: int) -> Tensor:
    """Random numbers in [low, high) whose logarithms are uniform."""
    return torch.exp(math.log(low) + torch.rand(shape) * (math.log(high) - math.log(low)))


def discretised(method: str, dt: Tensor, real: Tensor, imag: Tensor) -> tuple[Pair, Pair]:
    r"""Sample h' = a h + u every ``dt``: the factors of h_t = ā h_{t-1} + b̄ u_t.

    Zero-order hold: ā = exp(dt·a), b̄ = (ā - 1)/a. Bilinear: ā = (1 + dt·a/2)/(1 - dt·a/2),
    b̄ = dt/(1 - dt·a/2).

    Args:
        method: one of ``METHODS``.
        dt: step sizes, positive; broadcast with the rates.
        real: real parts of the rates a, negative.
        imag: their imaginary parts.

    Returns:
        ā and b̄, each as real and imaginary part.
    """
    x, y = dt * real, dt * imag
    if method == "bilinear":
        # 1/(1 - dt·a/2), whose denominator is at least 1
        down = (1 - x / 2).square() + (y / 2).square()
        inverse = (1 - x / 2) / down, y / 2 / down
        return times((1 + x / 2, y / 2), inverse), (dt * inverse[0], dt * inverse[1])
    sine = torch.exp(x) * torch.sin(y)
    decay = torch.exp(x) * torch.cos(y), sine
    # exp(z) - 1 without the cancellation of a small z
    growth = torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2).square(), sine
    norm = real.square() + imag.square()
    return decay, times(growth, (real / norm, -imag / norm))


def times(one: Pair, other: Pair) -> Pair:
    """The product of complex numbers."""
    (a, b), (c, d) = one, other
    return a * c - b * d, a * d + b * c


def paired(pair: Pair) -> Tensor:
    """Real and imaginary part in a last dimension of size 2."""
    return torch.stack(pair, -1)


def at_once(owner: object, x: Tensor, *states: Tensor) -> bool:
    """Whether a sequence runs through this module; if not, it is stepped.

    Infinities, and what is no number, would reach further than in the loop: through products with
    zeros. Only a compiled graph does not look.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and mode.recording():
        return False
    if x.dtype not in (torch.float32, torch.float64):
        cannot(owner, Reason(Unfused.TYPES, (str(x.dtype), str(x.dtype))))
        return False
    return compiling or x.is_meta or finite(x, *states)


def unrounded(device_type: str) -> AbstractContextManager[Any]:
    """Within it autocast is off, so that no state is rounded to 16 bits."""
    # autocast knows every device but meta, and refuses to be asked about that
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return autocast(device_type, enabled=False)
    return nullcontext()


# ---------------------------------------------------------------------- recurrence


def recurrence(
    start: Tensor, inputs: Tensor, decay: Tensor, resets: Tensor | None = None
) -> Tensor:
    """h_t = decay · h_{t-1} + inputs_t for complex numbers, differentiable.

    Args:
        start: h before the first timestep, ``[…, 2]``.
        inputs: ``[T, …, 2]``, at least one timestep.
        decay: ``[…, 2]``, broadcast with ``start``.
        resets: before which timesteps h is zero, boolean ``[T, B]``; B is the first dimension of
            ``start``, over which ``decay`` does not vary then.

    Returns:
        h after every timestep, ``[T, …, 2]``.
    """
    keep = None
    if resets is not None:
        keep = (~resets).view(*resets.shape, *(1,) * (start.ndim - 2))
    if torch.compiler.is_compiling():
        return _by_steps(start, inputs, decay, keep, reverse=False)
    h: Tensor = _Recurrence.apply(start, inputs, decay, keep, False)
    return h


class _Recurrence(torch.autograd.Function):
    """Its gradient with respect to the inputs is the same recurrence, backward in time.

    ``keep``, boolean ``[T, B, 1, …]``: whether a timestep has anything of the one computed before.
    """

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, inputs: Tensor, decay: Tensor, keep: Tensor | None, reverse: bool
    ) -> Tensor:
        bits = None
        if keep is not None:
            bits = -keep[..., None].to(_INTEGERS[inputs.dtype])  # all of a number's, or none
        h = torch.view_as_real(
            _scanned(_complex(inputs), _complex(start), _complex(decay), bits, reverse)
        )
        ctx.save_for_backward(start, decay, h, keep)
        ctx.reverse = reverse
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (gradient,) = gradients
        start, decay, h, keep = ctx.saved_tensors
        back = torch.view_as_real(_complex(decay).conj().resolve_conj())
        nothing, again = torch.zeros_like(start), not ctx.reverse
        first, later, sooner = (
            (-1, _BUT_LAST, _BUT_FIRST) if ctx.reverse else (0, _BUT_FIRST, _BUT_LAST)
        )
        run = _by_steps if mode.batched([gradient]) else _Recurrence.apply
        found = run(nothing, gradient, back, _handed_back(keep, ctx.reverse), again)
        begun = found[first]
        if keep is not None:
            begun = begun * keep[first, ..., None]
        into = _complex(back) * _complex(begun)
        power = None
        if ctx.needs_input_grad[2]:
            own = _complex(begun) * _complex(start).conj()
            each = torch.view_as_real(_complex(found[later]) * _complex(h[sooner]).conj())
            if keep is None:
                own = own + _complex(each.sum(0))
            else:  # a product of its own for the sum, where masking were another pass
                kept = keep[later].flatten(1).to(each.dtype)
                own = own.sum(0, keepdim=True) + _complex(torch.tensordot(kept, each, 2))
            power = torch.view_as_real(own.sum_to_size(decay.shape[:-1]))
        return torch.view_as_real(into), found, power, None, None


def _handed_back(keep: Tensor | None, reverse: bool) -> Tensor | None:
    """What a timestep keeps of the gradient computed before: what that timestep kept of it."""
    if keep is None:
        return None
    whole = torch.ones_like(keep[:1])
    return torch.cat([whole, keep[:-1]] if reverse else [keep[1:], whole])


def _complex(pairs: Tensor) -> Tensor:
    *around, last = pairs.stride()
    aligned = last == 1 and not any(step % 2 for step in (*around, pairs.storage_offset()))
    return torch.view_as_complex(pairs if aligned else pairs.clone(memory_format=_CONTIGUOUS))


def _parts(value: Tensor) -> Pair:
    return value[..., 0], value[..., 1]


def _by_steps(
    start: Tensor, inputs: Tensor, decay: Tensor, keep: Tensor | None, reverse: bool
) -> Tensor:
    """The loop, for whoever wants to see its operations: a compiler, ``is_grads_batched``."""
    now, given, found = start, _parts(decay), []
    gates = [None] * len(inputs) if keep is None else keep.unbind(0)
    for value, gate in _ordered(zip(inputs.unbind(0), gates, strict=True), reverse):
        now = now if gate is None else torch.where(gate[..., None], now, 0.0)
        now = value + paired(times(given, _parts(now)))
        found.append(now)
    return torch.stack([*_ordered(found, reverse)])


def _ordered(values: Iterable[Any], reverse: bool) -> list[Any]:
    return [*values][::-1] if reverse else [*values]


def _scanned(
    inputs: Tensor, start: Tensor, decay: Tensor, bits: Tensor | None, reverse: bool
) -> Tensor:
    """The recurrence over complex tensors, without gradients."""
    steps = len(inputs)
    narrow = inputs.is_cuda or start.numel() < _WIDE
    h = torch.empty_like(inputs)
    if steps < 2 * _LENGTH or not narrow:
        _loop(inputs, start, decay, bits, h, reverse)
        return h
    # what does not fill a segment comes last in the order of computation
    rest = steps % _LENGTH
    whole = slice(rest, None) if reverse else slice(steps - rest)
    left = slice(rest) if reverse else slice(steps - rest, None)
    gates = [None, None] if bits is None else [bits[whole], bits[left]]
    end = _segments(inputs[whole], start, decay, gates[0], h[whole], reverse)
    _loop(inputs[left], end, decay, gates[1], h[left], reverse)
    return h


def _loop(
    inputs: Tensor,
    now: Tensor,
    decay: Tensor,
    bits: Tensor | None,
    h: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Step by step: the last states; all of them where there is an ``h`` to hold them."""
    own = torch.empty_like(now) if h is None or bits is not None else now
    nothing = [None] * len(inputs)
    gates = nothing if bits is None else bits.unbind(0)
    places = [own] * len(inputs) if h is None else h.unbind(0)
    timesteps = zip(inputs.unbind(0), gates, places, strict=True)
    for value, gate, place in _ordered(timesteps, reverse):
        if gate is not None:
            now = _masked(now, gate, own)
        now = torch.addcmul(value, decay, now, out=place)
    return now


def _masked(value: Tensor, bits: Tensor, out: Tensor) -> Tensor:
    """Complex numbers or exact zeros, also for infinities: several times as fast as ``where``."""
    parts, place = (torch.view_as_real(tensor).view(bits.dtype) for tensor in (value, out))
    torch.bitwise_and(parts, bits, out=place)
    return out


def _segments(
    inputs: Tensor,
    start: Tensor,
    decay: Tensor,
    bits: Tensor | None,
    h: Tensor,
    reverse: bool,
) -> Tensor:
    """All segments side by side: where each ends from zero, hence where it begins, then its states.

    Returns:
        The last states.
    """
    cut = inputs.view(len(inputs) // _LENGTH, _LENGTH, *inputs.shape[1:]).transpose(0, 1)
    own = h.view(len(cut[0]), _LENGTH, *h.shape[1:]).transpose(0, 1)
    gates = through = None
    if bits is not None:
        gates = bits.view(len(cut[0]), _LENGTH, *bits.shape[1:]).transpose(0, 1)
        through = gates.amax(0)  # minus one where all are
    added = _loop(cut, torch.zeros_like(cut[0]), decay, gates, None, reverse)
    ends = _scanned(added, start, torch.stack([decay] * _LENGTH).prod(0), through, reverse)
    begun = torch.cat([ends[1:], start[None]]) if reverse else torch.cat([start[None], ends[:-1]])
    _loop(cut, begun, decay, gates, own, reverse)
    return ends[0 if reverse else -1]


# ---------------------------------------------------------------------- powers


def powers(value: Tensor, count: int) -> Tensor:
    """value⁰, value¹, … of complex numbers, differentiable.

    Args:
        value: ``[…, 2]``.
        count: how many, at least 1.

    Returns:
        ``[count, …, 2]``.
    """
    if torch.compiler.is_compiling():
        return torch.view_as_real(_doubled(torch.view_as_complex(value.contiguous()), count))
    found: Tensor = _Powers.apply(value, count)
    return found


class _Powers(torch.autograd.Function):
    """Its gradient is one sum over what is known: the slope of value^n is n · value^(n - 1)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int) -> Tensor:
        found = torch.view_as_real(_doubled(_complex(value), count))
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (gradient,) = gradients
        found = _complex(ctx.saved_tensors[0])
        exponents = torch.arange(1, len(found), dtype=gradient.dtype, device=gradient.device)
        slopes = found[:-1].conj() * exponents.view(-1, *(1,) * (found.ndim - 1))
        return torch.view_as_real((_complex(gradient)[1:] * slopes).sum(0)), None


def _doubled(value: Tensor, count: int) -> Tensor:
    found = torch.ones_like(value)[None]
    while len(found) < count:
        # the highest so far times the value, times all so far
        found = torch.cat([found, found * (found[-1] * value)])
    return found[:count]
