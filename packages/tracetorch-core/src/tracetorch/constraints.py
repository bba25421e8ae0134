"""Constraints: smooth maps from an unbounded stored value to an effective one, with inverses.

A constraint and its inverse are one named object. This module knows no layer and no module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Constraint:
    r"""A bijection from the real line (what is stored and learned) to an open interval.

    Args:
        name: how error messages and ``repr`` call it.
        forward: raw → effective, differentiable, elementwise.
        inverse: effective → raw, exact on the open interval ``(low, high)``.
        low: lower end of the domain of effective values, exclusive.
        high: upper end, exclusive.

    Both functions should be importable by name (no lambda), so that layers pickle.

    Raises:
        ValueError: ``low`` is not below ``high``.

    Example:
        >>> import torch, tracetorch as tt
        >>> positive = Constraint("exponential", torch.exp, torch.log, low=0.0)
        >>> positive.domain
        'in (0, ∞)'
        >>> tt.constraints.sigmoid.forward(torch.tensor(0.0))
        tensor(0.5000)
        >>> tt.constraints.softplus.inverse(torch.tensor(1.0))
        tensor(0.5413)
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"Constraint {self.name!r}: low must be below high, got {self.low} and {self.high}"
            )

    def __repr__(self) -> str:
        return f"<constraint {self.name}: {self.domain}>"

    @property
    def domain(self) -> str:
        """The open interval of effective values, as text."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "any finite number"
        return f"in ({_bound(self.low)}, {_bound(self.high)})"

    def admits(self, value: Tensor) -> bool:
        """Whether all of ``value``, of any shape, lies in the interval and has finite raw values.

        A tensor on the ``meta`` device has no values that could be asked, and is admitted.
        """
        if value.is_meta:
            return True
        inside = (value > self.low) & (value < self.high) & value.isfinite()
        return bool(inside.all()) and bool(self.inverse(value).isfinite().all())


def _bound(value: float) -> str:
    return {math.inf: "∞", -math.inf: "-∞"}.get(value, f"{value:g}")


def _sigmoid(raw: Tensor) -> Tensor:
    return torch.sigmoid(raw)


def _logit(value: Tensor) -> Tensor:
    return torch.logit(value)


def _softplus(raw: Tensor) -> Tensor:
    # torch's own threshold, 20, leaves out what float64 still holds
    return F.softplus(raw, threshold=40.0)


def _softplus_inverse(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def _identity(value: Tensor) -> Tensor:
    return value


def _negative_exp(raw: Tensor) -> Tensor:
    return -torch.exp(raw)


def _log_of_negative(value: Tensor) -> Tensor:
    return torch.log(-value)


sigmoid = Constraint("sigmoid", _sigmoid, _logit, 0.0, 1.0)
"""The logistic curve 1/(1 + exp(-raw)), in (0, 1): decays.

Source: the inverse is the logit of Berkson, Application of the logistic function to bio-assay,
Journal of the American Statistical Association 39, 1944.
"""
softplus = Constraint("softplus", _softplus, _softplus_inverse, 0.0, math.inf)
"""log(1 + exp(raw)), in (0, ∞): thresholds, slopes.

Source: Dugas et al., Incorporating second-order functional knowledge for better option pricing,
NIPS 2000.
"""
identity = Constraint("identity", _identity, _identity)
"""The raw value itself, any finite number: weights, scales."""
negative_exp = Constraint("negative_exp", _negative_exp, _log_of_negative, -math.inf, 0.0)
"""-exp(raw), in (-∞, 0): the decay rates of state spaces.

Source: Gu et al., On the parameterization and initialization of diagonal state space models, arXiv
2206.11893.
"""
