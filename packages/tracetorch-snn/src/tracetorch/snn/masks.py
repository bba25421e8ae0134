"""Which timesteps count: sequences ``[T, B, …]`` and lengths ``[B]``, checked and masked.

Knows tensors alone: shared by losses, regularisers and decoders.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tracetorch.errors import check_dense

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_REDUCTIONS = ("mean", "sum", "none")


def check_sequence(name: str, x: object, ndim: int | None = None) -> None:
    """TypeError or ValueError unless ``x`` is a floating-point ``[T, B, …]`` that is not empty.

    Args:
        name: of the argument, for the message.
        x: what was given.
        ndim: how many dimensions it must have; at least 2 where None.
    """
    layout = "[T, B, …]" if ndim is None else "[T, B, classes]"
    check_dense(f"{name} must be a floating-point tensor {layout}", x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else repr(x)
        raise TypeError(f"{name} must be a floating-point tensor {layout}, got {got}")
    if (x.ndim < 2 if ndim is None else x.ndim != ndim) or x.numel() == 0:
        raise ValueError(
            f"{name} must be {layout} with at least one timestep and one sample, got the shape "
            f"{list(x.shape)}"
        )


def check_positive(name: str, value: object, what: str = "a number in (0, ∞)") -> None:
    """TypeError or ValueError unless ``value`` is a positive, finite number."""
    check_within(name, value, 0.0, math.inf, what, open_ends=True)


def check_within(
    name: str, value: object, low: float, high: float, what: str, open_ends: bool = False
) -> None:
    """TypeError unless ``value`` is a number; ValueError unless it lies between the ends."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    if not (low < value < high if open_ends else low <= value <= high):
        raise ValueError(f"{name} must be {what}, got {value!r}")


def checked_lengths(lengths: object, x: Tensor) -> Tensor | None:
    """``lengths`` as int64 on the device of ``x`` ``[T, B, …]``; None where all timesteps count.

    Raises:
        TypeError: it is no tensor of integers.
        ValueError: it has not one entry per sample, or one outside 0…T.
    """
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        got = lengths.dtype if isinstance(lengths, Tensor) else repr(lengths)
        raise TypeError(f"lengths must be a tensor of integers [B], got {got}")
    steps, batch = x.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths must have one entry for each of the {batch} samples, got the shape "
            f"{list(lengths.shape)}"
        )
    if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(f"lengths must lie in 0…{steps}, got {lengths.tolist()}")
    return lengths.to(x.device, torch.int64)


def counting(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Booleans ``[T, B, 1, …]``: where a timestep of ``x`` ``[T, B, …]`` counts; None for all."""
    if lengths is None:
        return None
    step = torch.arange(len(x), device=x.device)[:, None]
    return (step < lengths).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


def masked(x: Tensor, lengths: Tensor | None, value: float = 0.0) -> Tensor:
    """``x`` ``[T, B, …]`` with ``value`` where no timestep counts, whatever stands there."""
    counts = counting(lengths, x)
    return x if counts is None else torch.where(counts, x, x.new_full((), value))


def durations(x: Tensor, lengths: Tensor | None) -> Tensor:
    """How many timesteps count: ``[B, 1, …]`` of one timestep's dimensions, in the type of ``x``.

    At least 1, to divide by: where none counts, what is divided is 0.
    """
    steps = x.new_full((x.shape[1],), float(len(x))) if lengths is None else lengths.to(x.dtype)
    return steps.clamp(min=1).reshape(-1, *(1,) * (x.ndim - 2))


def reduced(values: Tensor, lengths: Tensor | None, reduction: str) -> Tensor:
    """One value per sample ``[B]`` → their mean or sum, or as they are.

    A sample of no timesteps says nothing: its value is 0, and the mean is over the others.

    Raises:
        ValueError: there is no such reduction.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if lengths is not None:
        values = torch.where(lengths > 0, values, torch.zeros_like(values))
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.mean() if lengths is None else values.sum() / (lengths > 0).sum().clamp(min=1)


def magnitude(spikes: Tensor) -> Tensor:
    """Spikes of either sign as positive ones; unlike ``abs``, with a gradient at silence."""
    return torch.where(spikes < 0, -spikes, spikes)
