"""Quantisers: firing probability → what is emitted, with a straight-through gradient."""

from __future__ import annotations

from torch import Tensor, nn
from tracetorch import Random


def straight_through(emitted: Tensor, probability: Tensor) -> Tensor:
    """``emitted`` exactly, with the gradient of ``probability``.

    Example:
        >>> import torch
        >>> p = torch.tensor(0.3, requires_grad=True)
        >>> y = straight_through(torch.tensor(1.0), p)
        >>> y.backward(); (y.item(), p.grad.item())
        (1.0, 1.0)
    """
    # p − p is exactly 0, so no rounding touches what is emitted
    return emitted + (probability - probability.detach())


class _Quantizer(nn.Module):
    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}()"


class Round(_Quantizer):
    """1 where the probability is above 1/2, else 0."""

    def forward(self, probability: Tensor) -> Tensor:
        """Probability → 0 or 1."""
        return straight_through((probability > 0.5).to(probability.dtype), probability)


class Bernoulli(_Quantizer):
    """A draw from the layer's stream of random numbers: 1 with the given probability, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.uniform = Random()

    def forward(self, probability: Tensor) -> Tensor:
        """Probability → 0 or 1."""
        draw = self.uniform(probability) < probability
        return straight_through(draw.to(probability.dtype), probability)


class Probabilistic(_Quantizer):
    """The probability itself: graded spikes, smooth in everything."""

    def forward(self, probability: Tensor) -> Tensor:
        """Probability, as it is."""
        return probability


def round() -> Round:  # noqa: A001
    """Emit 1 where the firing probability is above 1/2: deterministic spikes.

    Example:
        >>> import torch
        >>> round()(torch.tensor([0.2, 0.5, 0.7]))
        tensor([0., 0., 1.])
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
