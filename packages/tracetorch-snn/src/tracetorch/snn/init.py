"""Weights and time constants to begin with, so that a net fires from the first timestep.

:func:`calibrate` measures on data; the others are closed forms that need none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tracetorch import Layer
from tracetorch.constraints import sigmoid
from tracetorch.functional import timesteps_to_decay
from tracetorch.snn.calibration import Calibrated, Calibration, calibrate
from tracetorch.snn.layer import LeakyIntegrator
from tracetorch.snn.masks import check_positive, check_within

__all__ = [
    "Calibrated",
    "Calibration",
    "calibrate",
    "fluctuation_driven",
    "heterogeneous",
]

_ROUNDS = 1000


# ---------------------------------------------------------------------- fluctuations


def fluctuation_driven(
    weight: Tensor,
    layer: LeakyIntegrator,
    rate: float,
    *,
    xi: float = 1.0,
    mean: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw weights so that the membrane's fluctuations reach the threshold, xi sigmas away.

    With n inputs that spike independently with probability :math:`\nu` in each timestep, a layer
    that does not fire has the membrane :math:`u_t = \sum_j w_j \sum_s k_s x_{j, t - s}`, where its
    kernel sums up to :math:`\bar\epsilon = \sum k_s` and :math:`\hat\epsilon = \sum k_s^2`:

    ========================  ===========================  =====================================
    layer                     mean                         variance (over time)
    ========================  ===========================  =====================================
    membrane                  :math:`1 / (1 - \beta)`      :math:`1 / (1 - \beta^2)`
    synapse and membrane      :math:`1 / (1 - \beta)`      :math:`\frac{(1 - \alpha)(1 + \alpha
                                                           \beta)}{(1 + \alpha)(1 - \alpha\beta)
                                                           (1 - \beta^2)}`
    average (EMA)             times :math:`1 - \beta`      times :math:`(1 - \beta)^2`
    ========================  ===========================  =====================================

    So normal weights of the mean :math:`\mu_w = \mu_u / (n \nu \bar\epsilon)` and the variance
    :math:`\sigma_w^2 = \frac{((\theta - \mu_u) / \xi)^2}{n \nu (1 - \nu) \hat\epsilon} - \mu_w^2`
    give it the wanted mean, and the threshold lies xi standard deviations above that. The
    variance is that over time, averaged over neurons; their means differ as well. The source has
    Poisson spikes in continuous time, hence :math:`\nu` for :math:`\nu (1 - \nu)` and integrals.

    Args:
        weight: of a ``Linear`` or convolution before the layer: ``[out, in, …]``; the fan-in n is
            the product of all dimensions but the first. Overwritten in place.
        layer: its decays and threshold are read. Of two thresholds the lower one is taken;
            recurrence of the layer is not counted.
        rate: :math:`\nu`, spikes per input and timestep, in (0, 1).
        xi: :math:`\xi`, standard deviations from the mean to the threshold, positive; the smaller,
            the more spikes. Measured with decays of 0.9, 100 inputs each and a rate of 0.1: at
            1 the rates of ten layers fall from 0.06 to 0.005, at 0.8 they stay in 0.07…0.19.
        mean: :math:`\mu_u`, below the threshold.
        generator: where the numbers are drawn from; torch's own where None.

    Returns:
        ``weight``.

    Raises:
        TypeError: an argument is of the wrong kind, or the layer does not fire.
        ValueError: an argument is out of range, decays per neuron do not fit the weight, a dual
            layer has unequal decays, or no weights have this mean and so little variance.

    Example:
        >>> from torch import nn
        >>> from tracetorch import snn
        >>> linear, lif = nn.Linear(400, 100), snn.LIB(100, beta=0.9)
        >>> weight = fluctuation_driven(linear.weight, lif, rate=0.05, xi=2.0)
        >>> wanted = (1 / 2.0) / math.sqrt(400 * 0.05 * 0.95 / (1 - 0.9**2))
        >>> abs(weight.std().item() / wanted - 1) < 0.02
        True

    Source: Rossbroich, Gygax and Zenke, Fluctuation-driven initialization for spiking neural
    network training, Neuromorphic Computing and Engineering 2, 2022, arXiv 2206.10226.
    """
    _check_weight(weight)
    check_within("rate", rate, 0.0, 1.0, "a rate in (0, 1)", open_ends=True)
    check_positive("xi", xi, "a positive number of standard deviations")
    check_within("mean", mean, -math.inf, math.inf, "a finite number", open_ends=True)
    threshold = _threshold(layer)
    if not bool((mean < threshold).all()):
        raise ValueError(
            f"mean must lie below the threshold, got {mean!r} and {threshold.min().item():g}"
        )
    total, squares = _kernel(layer)
    inputs = weight[0].numel()
    average = mean / (inputs * rate * total)
    spread = ((threshold - mean) / xi).square() / (inputs * rate * (1 - rate) * squares)
    variance = spread - average.square()
    if bool((variance < 0).any()):
        raise ValueError(
            f"mean must be nearer to 0, or xi lower: {inputs} weights that give a mean of {mean!r} "
            f"make it fluctuate by more than the threshold's {xi!r} standard deviations allow"
        )
    with torch.no_grad():
        drawn = torch.empty_like(weight).normal_(generator=generator)
        deviation = _per_row("weight", variance.sqrt(), weight)
        return weight.copy_(drawn * deviation + _per_row("weight", average, weight))


def _check_weight(weight: object) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else repr(weight)
        raise TypeError(f"weight must be a floating-point tensor [out, in, …], got {got}")
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"weight must be [out, in, …], got the shape {list(weight.shape)}")


def _threshold(layer: object) -> Tensor:
    """The lower one, in float64."""
    if not isinstance(layer, LeakyIntegrator) or layer.firing is None:
        raise TypeError(f"layer must be a layer of tracetorch.snn that fires, got {layer!r}")
    names = [name for name in layer.firing.parameters if name.endswith("threshold")]
    values = [getattr(layer, name).detach().double() for name in names]
    return values[0] if len(values) == 1 else torch.minimum(*values)


def _kernel(layer: LeakyIntegrator) -> tuple[Tensor, Tensor]:
    """The sums of the membrane's response to one input spike, and of its square."""
    beta = _decay(layer, "beta")
    total, squares = 1 / (1 - beta), 1 / (1 - beta**2)
    if layer.synapse:
        alpha = _decay(layer, "alpha")
        squares = squares * (1 - alpha) * (1 + alpha * beta) / ((1 + alpha) * (1 - alpha * beta))
    if layer.average:
        total, squares = total * (1 - beta), squares * (1 - beta) ** 2
    return total, squares


def _decay(layer: LeakyIntegrator, name: str) -> Tensor:
    """In float64; that of both halves of a dual layer."""
    halves: list[Tensor] = [
        getattr(layer, half + name).detach().double() for half in layer.polarity
    ]
    if not torch.allclose(halves[0], halves[-1]):
        raise ValueError(f"layer must have equal halves of {name} for a closed form, got {layer!r}")
    return halves[0]


def _per_row(name: str, value: Tensor, weight: Tensor) -> Tensor:
    """One value, or one per output neuron, to broadcast over a weight ``[out, in, …]``."""
    if value.ndim and len(value) != len(weight):
        raise ValueError(
            f"{name} must have a row for each of the layer's {len(value)} neurons, whose decays or "
            f"thresholds are their own, got the shape {list(weight.shape)}"
        )
    return (
        value.to(weight).reshape(-1, *(1,) * (weight.ndim - 1)) if value.ndim else value.to(weight)
    )


# ---------------------------------------------------------------------- time constants


def heterogeneous(
    layer: Layer,
    *,
    shape: int = 3,
    bounds: tuple[float, float] = (1.5, 1000.0),
    generator: torch.Generator | None = None,
    **timesteps: float,
) -> None:
    r"""Give every neuron time constants of its own, gamma-distributed.

    :math:`\tau \sim \Gamma(k, m / k)` with the mean m and the shape k; what lies outside of the
    bounds is drawn again. A time constant becomes a decay as :math:`d = 1 - 1 / \tau`
    (:func:`tracetorch.functional.timesteps_to_decay`).

    Args:
        layer: of this package or of one's own. A decay is any parameter that it declares by
            ``add_parameter`` with a constraint to (0, 1), ``tt.constraints.sigmoid``; those named
            must be of rank 1, one per neuron.
        shape: k, a whole number from 1; 1 is the exponential distribution, higher ones are
            narrower (a standard deviation of m / √k).
        bounds: the shortest and longest time constant, in timesteps, above 1.
        generator: where the numbers are drawn from; torch's own where None.
        timesteps: the mean time constant of each decay by its name, within the bounds:
            ``beta=20.0, alpha=5.0``, or ``pos_beta=…, neg_beta=…`` of a dual layer.

    Raises:
        TypeError: an argument is of the wrong kind, or no decay is named.
        ValueError: the layer has no such decay, it is of rank 0, or a number is out of range;
            nothing has changed then.

    Example:
        >>> from tracetorch import snn
        >>> from tracetorch.functional import decay_to_timesteps
        >>> lif = snn.LIB(10_000)
        >>> heterogeneous(lif, beta=20.0, generator=torch.Generator().manual_seed(0))
        >>> tau = decay_to_timesteps(lif.beta.detach())
        >>> round(tau.mean().item()), round(tau.std().item())
        (20, 12)

    Source: Perez-Nieves, Leung, Dragotti and Goodman, Neural heterogeneity promotes robust
    learning, Nature Communications 12, 2021 (gamma distribution of shape 3).
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a tt.Layer, got {layer!r}")
    if not isinstance(shape, int) or isinstance(shape, bool):
        raise TypeError(f"shape must be an integer of at least 1, got {shape!r}")
    if shape < 1:
        raise ValueError(f"shape must be an integer of at least 1, got {shape!r}")
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise TypeError(f"bounds must be two numbers of timesteps above 1, got {bounds!r}")
    if not 1 < bounds[0] < bounds[1] < math.inf:
        raise ValueError(f"bounds must be two numbers of timesteps above 1, got {bounds!r}")
    decays = {name: _of_rank_one(layer, name) for name in timesteps}
    if not decays:
        raise TypeError(f"timesteps must name a decay of {layer!r}, as in beta=20.0")
    for name, mean in timesteps.items():
        what = f"a mean within the bounds {bounds[0]:g}…{bounds[1]:g}, in timesteps"
        check_within(name, mean, *bounds, what)
    drawn = {n: _gamma(decays[n], timesteps[n], shape, bounds, generator) for n in timesteps}
    found = {name: timesteps_to_decay(tau) for name, tau in drawn.items()}
    for name, decay in found.items():
        setattr(layer, name, decay)


def _of_rank_one(layer: Layer, name: str) -> Tensor:
    declared = layer.tt.declaration.parameters
    known = [n for n, spec in declared.items() if spec.constraint.domain == sigmoid.domain]
    if not known:
        raise ValueError(
            f"{layer!r} declares no decay: a parameter added by add_parameter(name, value, "
            f"constraint=tt.constraints.sigmoid)"
        )
    if name not in known:
        raise ValueError(f"{layer!r} has no decay {name!r}; it has {', '.join(known)}")
    value: Tensor = getattr(layer, name).detach()
    if value.ndim == 0:
        raise ValueError(
            f"{layer!r}: {name} is of rank 0, one value for all neurons; make the layer with "
            f"{name}_rank=1"
        )
    return value


def _gamma(
    like: Tensor,
    mean: float,
    shape: int,
    bounds: tuple[float, float],
    generator: torch.Generator | None,
) -> Tensor:
    """Gamma-distributed within bounds: a whole shape is a sum of so many exponential numbers."""

    def draw() -> Tensor:
        parts: Any = torch.empty(shape, *like.shape, dtype=like.dtype, device=like.device)
        found: Tensor = parts.exponential_(shape / mean, generator=generator).sum(0)
        return found

    tau = draw()
    for _ in range(_ROUNDS):
        outside = (tau < bounds[0]) | (tau > bounds[1])
        if not bool(outside.any()):
            return tau
        tau = torch.where(outside, draw(), tau)
    raise ValueError(f"bounds must leave more of the distribution of mean {mean!r}, got {bounds!r}")
