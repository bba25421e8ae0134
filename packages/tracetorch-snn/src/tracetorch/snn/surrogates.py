"""Surrogates: smooth curves from the distance to the threshold to a firing probability.

Forward, a curve is the probability that a quantiser turns into spikes; backward, its derivative
*is* the surrogate gradient. Each is one row of a table: how to compute it for a given slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tracetorch import constraints
from tracetorch.parameters import to_raw


def _sigmoid(u: Tensor) -> Tensor:
    return torch.sigmoid(u)


def _atan(u: Tensor) -> Tensor:
    return 0.5 + torch.atan(math.pi / 2 * u) / math.pi


def _fast_sigmoid(u: Tensor) -> Tensor:
    return 0.5 + 0.5 * u / (1 + u.abs())


def _triangle(u: Tensor) -> Tensor:
    v = u.clamp(-1, 1)
    return 0.5 + v - 0.5 * v * v.abs()


def _gaussian(u: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(u / math.sqrt(2)))


def _boxcar(u: Tensor) -> Tensor:
    return (u + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class _Curve:
    """``probability(slope · u)``, or ``1/2 + (that − 1/2) · 2/slope`` for unit peaks."""

    probability: Callable[[Tensor], Tensor]
    unit_peak: bool = False


_CURVES = {
    "sigmoid": _Curve(_sigmoid),
    "atan": _Curve(_atan),
    "fast_sigmoid": _Curve(_fast_sigmoid),
    "triangle": _Curve(_triangle),
    "gaussian": _Curve(_gaussian),
    "boxcar": _Curve(_boxcar),
    "superspike": _Curve(_fast_sigmoid, unit_peak=True),
}


class Surrogate(nn.Module):
    """A named curve with its slope; see the functions of this module for the curves.

    Every curve is 1/2 at the threshold and rises through it, so that with rounding it fires
    exactly where the membrane is above the threshold.

    Args:
        name: of the curve.
        slope: how steep it is, positive (``superspike``: above 2).
        learn_slope: make the slope an ``nn.Parameter`` (stored as ``raw_slope``, softplus).

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``name`` is unknown or ``slope`` out of range.

    Example:
        >>> import torch
        >>> Surrogate("sigmoid", 4.0)(torch.zeros(2))
        tensor([0.5000, 0.5000])

    Source: Neftci, Mostafa and Zenke, Surrogate gradient learning in spiking neural networks, IEEE
    Signal Processing Magazine 36, 2019, arXiv 1901.09948.
    """

    def __init__(self, name: str, slope: float, learn_slope: bool = False) -> None:
        super().__init__()
        if name not in _CURVES:
            raise ValueError(f"surrogate must be one of {', '.join(_CURVES)}, got {name!r}")
        self.name = name
        self._floor = 2.0 if _CURVES[name].unit_peak else 0.0
        if not isinstance(slope, (int, float)) or isinstance(slope, bool):
            raise TypeError(f"{name}: slope must be a number, got {slope!r}")
        if not self._floor < slope < math.inf:
            raise ValueError(f"{name}: slope must be in ({self._floor:g}, ∞), got {slope!r}")
        self._slope: float | None = None if learn_slope else float(slope)
        if learn_slope:
            raw = to_raw(name, "slope", slope - self._floor, constraints.softplus)
            self.raw_slope = nn.Parameter(raw)

    @property
    def slope(self) -> float | Tensor:
        """The steepness, a float or a tensor of rank 0 where it is learned."""
        if self._slope is not None:
            return self._slope
        return constraints.softplus.forward(self.raw_slope) + self._floor

    def _slope_in(self, dtype: torch.dtype) -> float | Tensor:
        """The slope as it is computed with: not rounded to 16 bits where the membrane is not."""
        if self._slope is not None:
            return self._slope
        return constraints.softplus.forward(self.raw_slope.to(dtype)) + self._floor

    def forward(self, u: Tensor) -> Tensor:
        """Distance ``u`` from the threshold, membrane − threshold → probability in [0, 1]."""
        curve, slope = _CURVES[self.name], self._slope_in(u.dtype)
        probability = curve.probability(slope * u)
        return 0.5 + (probability - 0.5) * 2 / slope if curve.unit_peak else probability

    def __repr__(self) -> str:
        if isinstance(self.slope, Tensor):
            slope = "…" if self.slope.is_meta else f"{float(self.slope.detach()):.4g}"
            return f"{self.name}(slope={slope}, learn_slope=True)"
        return f"{self.name}(slope={self._slope:g})"


def sigmoid(slope: float = 4.0, learn_slope: bool = False) -> Surrogate:
    r"""The logistic curve :math:`\sigma(ku)`.

    Args:
        slope: k, positive; at the threshold the derivative is k/4.
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not positive, or not finite.

    Example:
        >>> import torch
        >>> sigmoid(4.0)(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.0180, 0.5000, 0.9820])

    Source: Zenke and Vogels, The remarkable robustness of surrogate gradient learning for
    instilling complex function in spiking neural networks, Neural Computation 33, 2021.
    """
    return Surrogate("sigmoid", slope, learn_slope)


def atan(slope: float = 2.0, learn_slope: bool = False) -> Surrogate:
    r"""The arctangent curve :math:`1/2 + \arctan(\pi k u/2)/\pi`, derivative k/2/(1 + (πku/2)²).

    Args:
        slope: k, positive; at the threshold the derivative is k/2.
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not positive, or not finite.

    Example:
        >>> import torch
        >>> atan(2.0)(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.9019])

    Source: Fang et al., arXiv 2007.05785.
    """
    return Surrogate("atan", slope, learn_slope)


def fast_sigmoid(slope: float = 4.0, learn_slope: bool = False) -> Surrogate:
    r"""The rational curve :math:`1/2 + ku/(2 + 2|ku|)`, derivative k/2/(1 + k|u|)².

    Args:
        slope: k, positive; at the threshold the derivative is k/2.
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not positive, or not finite.

    Example:
        >>> import torch
        >>> fast_sigmoid(4.0)(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.9000])

    Source: Zenke and Ganguli, SuperSpike, Neural Computation 30, 2018, arXiv 1705.11146; the
    derivative is theirs times k/2.
    """
    return Surrogate("fast_sigmoid", slope, learn_slope)


def triangle(slope: float = 1.0, learn_slope: bool = False) -> Surrogate:
    r"""A piecewise quadratic whose derivative is the triangle k·max(0, 1 − k|u|).

    Args:
        slope: k, positive; at the threshold the derivative is k.
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not positive, or not finite.

    Example:
        >>> import torch
        >>> triangle(1.0)(torch.tensor([-1.0, 0.0, 0.5]))
        tensor([0.0000, 0.5000, 0.8750])

    Source: Bellec et al., arXiv 1803.09574.
    """
    return Surrogate("triangle", slope, learn_slope)


def gaussian(slope: float = 2.0, learn_slope: bool = False) -> Surrogate:
    r"""The normal distribution function Φ(ku); its derivative is a bell of width 1/k.

    Args:
        slope: k, positive; at the threshold the derivative is k/√(2π).
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not positive, or not finite.

    Example:
        >>> import torch
        >>> gaussian(1.0)(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.8413])

    Source: Yin et al., arXiv 2103.12593.
    """
    return Surrogate("gaussian", slope, learn_slope)


def boxcar(slope: float = 1.0, learn_slope: bool = False) -> Surrogate:
    r"""The ramp clamp(ku + 1/2, 0, 1): a straight-through gradient k where |ku| ≤ 1/2.

    Args:
        slope: k, positive; at the threshold the derivative is k.
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not positive, or not finite.

    Example:
        >>> import torch
        >>> boxcar(1.0)(torch.tensor([-1.0, 0.0, 0.25]))
        tensor([0.0000, 0.5000, 0.7500])

    Source: Wu, Deng, Li, Zhu and Shi, Spatio-temporal backpropagation for training high-performance
    spiking neural networks, Frontiers in Neuroscience 12, 2018, arXiv 1706.02609 (rectangle).
    """
    return Surrogate("boxcar", slope, learn_slope)


def superspike(slope: float = 10.0, learn_slope: bool = False) -> Surrogate:
    r"""SuperSpike, derivative 1/(1 + k|u|)² with its peak at 1 for every slope above 2.

    Args:
        slope: k, above 2; at the threshold the derivative is 1.
        learn_slope: make it an ``nn.Parameter``.

    Returns:
        Distance from the threshold → firing probability, a module.

    Raises:
        TypeError: ``slope`` is no real number.
        ValueError: ``slope`` is not above 2, or not finite.

    Example:
        >>> import torch
        >>> superspike(10.0)(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.5909])

    Source: Zenke and Ganguli, arXiv 1705.11146.
    """
    return Surrogate("superspike", slope, learn_slope)
