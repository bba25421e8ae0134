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

Pair: TypeAlias = tuple[Tensor, Tensor]

positive = Constraint("exp", torch.exp, torch.log, low=0.0)

METHODS = ("zoh", "bilinear")

# Timesteps of a segment; and states from which on segments only cost memory traffic. Measured on
# two threads: 7 times as fast as the loop for 64 states and T = 10 000, even at about 10 000.
_LENGTH, _WIDE = 16, 1 << 13
_CONTIGUOUS = torch.contiguous_format


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
    if compiling or x.is_meta:
        return True
    # a sum is finite only where all of its terms are
    return bool(torch.stack([tensor.detach().sum() for tensor in (x, *states)]).isfinite().all())


def unrounded(device_type: str) -> AbstractContextManager[Any]:
    """Within it autocast is off, so that no state is rounded to 16 bits."""
    # autocast knows every device but meta, and refuses to be asked about that
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return autocast(device_type, enabled=False)
    return nullcontext()


# ---------------------------------------------------------------------- recurrence


def recurrence(start: Tensor, inputs: Tensor, decay: Tensor) -> Tensor:
    """h_t = decay · h_{t-1} + inputs_t for complex numbers, differentiable.

    Args:
        start: h before the first timestep, ``[…, 2]``.
        inputs: ``[T, …, 2]``, at least one timestep.
        decay: ``[…, 2]``, broadcast with ``start``.

    Returns:
        h after every timestep, ``[T, …, 2]``.
    """
    if torch.compiler.is_compiling():
        return _by_steps(start, inputs, decay, reverse=False)
    h: Tensor = _Recurrence.apply(start, inputs, decay, False)
    return h


class _Recurrence(torch.autograd.Function):
    """Its gradient with respect to the inputs is the same recurrence, backward in time."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, inputs: Tensor, decay: Tensor, reverse: bool) -> Tensor:
        h = torch.view_as_real(
            _scanned(_complex(inputs), _complex(start), _complex(decay), reverse)
        )
        ctx.save_for_backward(start, decay, h)
        ctx.reverse = reverse
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (gradient,) = gradients
        start, decay, h = ctx.saved_tensors
        back = torch.view_as_real(_complex(decay).conj().resolve_conj())
        nothing, again = torch.zeros_like(start), not ctx.reverse
        run = _by_steps if mode.batched([gradient]) else _Recurrence.apply
        found = run(nothing, gradient, back, again)
        first, now, before = (-1, found[:-1], h[1:]) if ctx.reverse else (0, found[1:], h[:-1])
        into = _complex(back) * _complex(found[first])
        power = None
        if ctx.needs_input_grad[2]:
            own = _complex(found[first]) * _complex(start).conj()
            own = own + (_complex(now) * _complex(before).conj()).sum(0)
            power = torch.view_as_real(own.sum_to_size(decay.shape[:-1]))
        return torch.view_as_real(into), found, power, None


def _complex(pairs: Tensor) -> Tensor:
    *around, last = pairs.stride()
    aligned = last == 1 and not any(step % 2 for step in (*around, pairs.storage_offset()))
    return torch.view_as_complex(pairs if aligned else pairs.clone(memory_format=_CONTIGUOUS))


def _parts(value: Tensor) -> Pair:
    return value[..., 0], value[..., 1]


def _by_steps(start: Tensor, inputs: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    """The loop, for whoever wants to see its operations: a compiler, ``is_grads_batched``."""
    now, given, found = _parts(start), _parts(decay), []
    for value in _ordered(inputs.unbind(0), reverse):
        carried, own = times(given, now), _parts(value)
        now = carried[0] + own[0], carried[1] + own[1]
        found.append(paired(now))
    return torch.stack([*_ordered(found, reverse)])


def _ordered(values: Iterable[Tensor], reverse: bool) -> list[Tensor]:
    return [*values][::-1] if reverse else [*values]


def _scanned(inputs: Tensor, start: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    """The recurrence over complex tensors, without gradients."""
    steps = len(inputs)
    narrow = inputs.is_cuda or start.numel() < _WIDE
    h = torch.empty_like(inputs)
    if steps < 2 * _LENGTH or not narrow:
        _loop(inputs, start, decay, h, reverse)
        return h
    # what does not fill a segment comes last in the order of computation
    rest = steps % _LENGTH
    whole = slice(rest, None) if reverse else slice(steps - rest)
    left = slice(rest) if reverse else slice(steps - rest, None)
    end = _segments(inputs[whole], start, decay, h[whole], reverse)
    _loop(inputs[left], end, decay, h[left], reverse)
    return h


def _loop(inputs: Tensor, now: Tensor, decay: Tensor, h: Tensor, reverse: bool) -> None:
    rows = zip(inputs.unbind(0), h.unbind(0), strict=True)
    for value, place in [*rows][::-1] if reverse else rows:
        now = torch.addcmul(value, decay, now, out=place)


def _segments(inputs: Tensor, start: Tensor, decay: Tensor, h: Tensor, reverse: bool) -> Tensor:
    """All segments side by side, each from zero; then what each adds to all that follow it.

    Returns:
        The last states.
    """
    cut = inputs.view(len(inputs) // _LENGTH, _LENGTH, *inputs.shape[1:])
    own = h.view(cut.shape)
    _loop(cut.transpose(0, 1), torch.zeros_like(start), decay, own.transpose(0, 1), reverse)
    carried = torch.stack([decay] * _LENGTH).cumprod(0)
    last = 0 if reverse else -1
    ends = _scanned(own[:, last].contiguous(), start, carried[-1], reverse)
    begun = torch.cat([ends[1:], start[None]]) if reverse else torch.cat([start[None], ends[:-1]])
    around = start.ndim - decay.ndim
    factors = carried.flip(0) if reverse else carried
    own.addcmul_(factors.view(_LENGTH, *(1,) * around, *decay.shape), begun[:, None])
    return ends[last]


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
