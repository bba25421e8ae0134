"""Conversions between the ways to say how long a leaky trace remembers.

Pure functions on floats and tensors; a value outside a domain is a ``ValueError`` that says the
domain and the value. Called, ``tt.functional(model)`` is a :class:`tracetorch.Functional`.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value", float, Tensor)


def _check(name: str, value: float | Tensor, low: float, high: float, domain: str) -> None:
    if isinstance(value, Tensor):
        fits = bool(((value > low) & (value < high) & value.isfinite()).all())
    else:
        fits = low < value < high and math.isfinite(value)
    if not fits:
        raise ValueError(f"{name} must be {domain}, got {value!r}")


def _log2(value: Value) -> Value:
    # pyright loses constrained type variables here and in halflife_to_decay; mypy follows them
    return torch.log2(value) if isinstance(value, Tensor) else math.log2(value)  # pyright: ignore


def _checked_decay(decay: Value) -> Value:
    _check("decay", decay, 0.0, 1.0, "in (0, 1), per timestep")
    return decay


def halflife_to_decay(halflife: Value) -> Value:
    r"""The decay after which ``halflife`` timesteps leave half: :math:`d = 2^{-1/h}`.

    Args:
        halflife: timesteps, positive; a float or a tensor of any shape.

    Returns:
        The decay per timestep in (0, 1), of the same kind and shape.

    Raises:
        ValueError: ``halflife`` is not positive and finite, or so short or long that the
            decay rounds to 0 or 1 in its own precision.

    Example:
        >>> halflife_to_decay(1.0)
        0.5
        >>> round(halflife_to_decay(10.0) ** 10, 12)
        0.5

    Source: the definition of a half-life, :math:`d^h = 1/2`.
    """
    _check("halflife", halflife, 0.0, math.inf, "in (0, ∞), in timesteps")
    decay: Value = 2.0 ** (-1.0 / halflife)  # pyright: ignore
    _check("halflife's decay", decay, 0.0, 1.0, "in (0, 1) in its own precision")
    return decay


def decay_to_halflife(decay: Value) -> Value:
    r"""Timesteps until half is left: :math:`h = -1 / \log_2 d`.

    Args:
        decay: per timestep, in (0, 1); a float or a tensor of any shape.

    Raises:
        ValueError: ``decay`` lies outside (0, 1).

    Example:
        >>> decay_to_halflife(0.5)
        1.0

    Source: the definition of a half-life, :math:`d^h = 1/2`.
    """
    return -1.0 / _log2(_checked_decay(decay))


def timesteps_to_decay(timesteps: Value) -> Value:
    r"""The decay of a time constant in timesteps (Euler): :math:`d = 1 - 1/\tau`.

    Args:
        timesteps: the time constant :math:`\tau`, above 1; a float or a tensor of any shape.

    Raises:
        ValueError: ``timesteps`` is not in (1, ∞), or its decay rounds to 1.

    Example:
        >>> timesteps_to_decay(10.0)
        0.9

    Source: Euler's step of :math:`\tau \dot u = -u`; Gerstner et al., Neuronal Dynamics, Cambridge
    2014, section 1.3.
    """
    _check("timesteps", timesteps, 1.0, math.inf, "in (1, ∞)")
    decay: Value = 1.0 - 1.0 / timesteps
    _check("timesteps' decay", decay, 0.0, 1.0, "in (0, 1) in its own precision")
    return decay


def decay_to_timesteps(decay: Value) -> Value:
    r"""The time constant of a decay (Euler), in timesteps: :math:`\tau = 1 / (1 - d)`.

    Args:
        decay: per timestep, in (0, 1); a float or a tensor of any shape.

    Raises:
        ValueError: ``decay`` lies outside (0, 1).

    Example:
        >>> decay_to_timesteps(0.75)
        4.0

    Source: Euler's step of :math:`\tau \dot u = -u`; Gerstner et al., Neuronal Dynamics, Cambridge
    2014, section 1.3.
    """
    return 1.0 / (1.0 - _checked_decay(decay))


def hippo_decays(
    n: int,
    scale: float,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""A spectrum of decays after HiPPO's diagonal: :math:`d_k = e^{-k \cdot scale}, k = 1…n`.

    Args:
        n: how many decays, at least 1.
        scale: step between neighbouring rates, positive, per timestep.
        dtype: of the result; torch's default where None.
        device: of the result.

    Returns:
        Tensor of shape ``[n]``, falling, every element in (0, 1).

    Raises:
        TypeError: ``n`` is no integer.
        ValueError: ``n`` below 1, ``scale`` not in (0, ∞), or a decay that rounds to 0 or 1.

    Example:
        >>> hippo_decays(3, max_halflife_to_hippo_scale(1.0))
        tensor([0.5000, 0.2500, 0.1250])

    Source: Gu et al., HiPPO, arXiv 2008.07669 (diagonal of the LegS matrix).
    """
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n must be an integer of at least 1, got {n!r}")
    if n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}")
    _check("scale", scale, 0.0, math.inf, "in (0, ∞), per timestep")
    order = torch.arange(1, n + 1, dtype=dtype or torch.get_default_dtype(), device=device)
    decays = torch.exp(-order * scale)
    if not bool(((decays > 0) & (decays < 1)).all()):
        raise ValueError(
            f"scale must leave every one of the {n} decays in (0, 1) in {decays.dtype}, "
            f"got {scale!r} with decays from {decays[-1].item():g} to {decays[0].item():g}"
        )
    return decays


def max_halflife_to_hippo_scale(halflife: float) -> float:
    r"""The scale of :func:`hippo_decays` whose slowest decay has this half-life: ln 2 / h.

    Args:
        halflife: timesteps, positive.

    Raises:
        ValueError: ``halflife`` is not positive and finite.

    Example:
        >>> round(max_halflife_to_hippo_scale(10.0), 6)
        0.069315

    Source: the slowest decay's half-life, :math:`(e^{-scale})^h = 1/2`.
    """
    _check("halflife", halflife, 0.0, math.inf, "in (0, ∞), in timesteps")
    return math.log(2.0) / halflife
