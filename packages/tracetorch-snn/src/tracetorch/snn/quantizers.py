"""Quantisers: firing probability → what is emitted, with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tracetorch import Random
from tracetorch.engine import transformed


class _Carrying(torch.autograd.Function):
    """Its first argument exactly, with the gradient of its second.

    Not ``emitted + (p - p.detach())``: a compiled graph would have to compute p to add nothing.
    """

    @staticmethod
    def forward(ctx: Any, emitted: Tensor, probability: Tensor) -> Tensor:
        del ctx, probability
        return emitted.view_as(emitted)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        del ctx
        return None, gradients[0]


def carrying(emitted: Tensor, probability: Tensor) -> Tensor:
    """``emitted``, whatever ``probability`` is, with the derivatives of ``probability``.

    Args:
        emitted: what goes forward, of any shape.
        probability: what is differentiated, of the same shape.

    Returns:
        ``emitted``, in the graph of ``probability``.

    Example:
        >>> p = torch.tensor(0.3, requires_grad=True)
        >>> carrying(torch.tensor(1.0), 2 * p).backward(); p.grad
        tensor(2.)

    Source: Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
    neurons for conditional computation, arXiv 1308.3432 (straight-through estimator).
    """
    if transformed():  # forward mode and batching go through operations
        return emitted + (probability - probability.detach())
    found: Tensor = _Carrying.apply(emitted, probability)
    return found


def nothing(u: Tensor) -> Tensor:
    """0, but NaN where ``u`` is; without a mask, which a compiled graph would keep.

    Args:
        u: of any shape.

    Returns:
        Of the same shape.

    Example:
        >>> nothing(torch.tensor([3.0, torch.nan]))
        tensor([0., nan])
    """
    return u.clamp(0, 0)


def straight_through(emitted: Tensor, probability: Tensor) -> Tensor:
    """``emitted`` exactly, with the gradient of ``probability``; NaN where that is.

    Args:
        emitted: spikes, of any shape.
        probability: of firing, of the same shape.

    Returns:
        ``emitted``, in the graph of ``probability``.

    Example:
        >>> import torch
        >>> p = torch.tensor(0.3, requires_grad=True)
        >>> y = straight_through(torch.tensor(1.0), p)
        >>> y.backward(); (y.item(), p.grad.item())
        (1.0, 1.0)

    Source: Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
    neurons for conditional computation, arXiv 1308.3432 (straight-through estimator).
    """
    return carrying(emitted + nothing(probability.detach()), probability)


class _Quantizer(nn.Module):
    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}()"


class Round(_Quantizer):
    """1 where the probability is above 1/2, else 0.

    Example:
        >>> Round()(torch.tensor([0.5, 0.6]))
        tensor([0., 1.])

    Source: Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
    neurons for conditional computation, arXiv 1308.3432 (straight-through estimator).
    """

    def forward(self, probability: Tensor) -> Tensor:
        """Firing ``probability`` → 0 or 1, of any shape."""
        return straight_through((probability > 0.5).to(probability.dtype), probability)


class Bernoulli(_Quantizer):
    """A draw from the layer's stream of random numbers: 1 with the given probability, else 0.

    Example:
        >>> Bernoulli()(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])

    Source: Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
    neurons for conditional computation, arXiv 1308.3432 (stochastic binary neuron).
    """

    def __init__(self) -> None:
        super().__init__()
        self.uniform = Random()

    def forward(self, probability: Tensor) -> Tensor:
        """Firing ``probability`` → 0 or 1, of any shape."""
        draw = self.uniform(probability) < probability
        return straight_through(draw.to(probability.dtype), probability)


class Probabilistic(_Quantizer):
    """The probability itself: graded spikes, smooth in everything.

    Example:
        >>> Probabilistic()(torch.tensor([0.3]))
        tensor([0.3000])
    """

    def forward(self, probability: Tensor) -> Tensor:
        """Firing ``probability``, of any shape, as it is."""
        return probability


def round() -> Round:  # noqa: A001
    """Emit 1 where the firing probability is above 1/2: deterministic spikes.

    Example:
        >>> import torch
        >>> round()(torch.tensor([0.2, 0.5, 0.7]))
        tensor([0., 0., 1.])

    Source: Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
    neurons for conditional computation, arXiv 1308.3432 (straight-through estimator).
    """
    return Round()


def bernoulli() -> Bernoulli:
    """Emit 1 with the firing probability: stochastic spikes.

    A layer draws them from a stream of its own (see :class:`tracetorch.Random`), whose seed comes
    from torch's generator with the first timestep and is saved with the states: stepping and
    unrolling give the same spikes, on every backend.

    Example:
        >>> import torch
        >>> bernoulli()(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])

    Source: Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
    neurons for conditional computation, arXiv 1308.3432 (stochastic binary neuron).
    """
    return Bernoulli()


def probabilistic() -> Probabilistic:
    """Emit the firing probability itself.

    Example:
        >>> import torch
        >>> probabilistic()(torch.tensor([0.2, 0.7]))
        tensor([0.2000, 0.7000])
    """
    return Probabilistic()
