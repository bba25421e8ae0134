"""A threshold that rises with each spike and falls back: what to give a layer to have one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Adaptation:
    """A firing threshold that its own spikes raise: θ + raised, raised ← ρ·raised + jump·s.

    The layer has two more parameters, ``rho`` and ``jump``, and one more state, ``raised``: how far
    the threshold, or both of a ternary layer, lies above its value at rest. What a spike takes off
    the membrane stays that value.

    Args:
        decay: ρ, in (0, 1), of what is raised, per timestep; a number or a tensor
            ``[num_neurons]``.
        jump: above 0, what a spike raises it by; a number or a tensor ``[num_neurons]``.
        rank: 0 = one scalar for the layer, 1 = one value per neuron.
        learn: True = ``nn.Parameter``, False = buffer.
        detach: no gradient goes through s, so none from what is raised to the spikes that raised
            it; ρ and the jump have theirs.

    Raises:
        TypeError: ``detach`` is neither True nor False.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> neuron = snn.LIB(1, 0.5, 1.0, adaptation=snn.Adaptation(decay=0.5, jump=1.0))
        >>> [neuron(torch.tensor([1.6])).item() for _ in range(6)]
        [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]

    Source: Bellec et al., Long short-term memory and learning-to-learn in networks of spiking
    neurons, NeurIPS 2018, arXiv 1803.09574.
    """

    decay: float | Tensor = 0.95
    jump: float | Tensor = 0.1
    rank: int = 1
    learn: bool = True
    detach: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.detach, bool):
            raise TypeError(f"Adaptation: detach must be True or False, got {self.detach!r}")
