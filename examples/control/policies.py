"""Policies for poles whose velocities are hidden: three ways to remember. Knows no environment."""

from __future__ import annotations

from collections.abc import Callable

import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

SEEN, ACTIONS = 2, 2
LOUD = 3.0  # an input near the middle of the track would not make a neuron fire


class Policy(tt.Model):
    """What to do and what to expect, from a layer that remembers.

    Args:
        remembering: what the recurrent layer is, a key of ``LAYERS``.
        neurons: its size.
        memory: False: states restart at every timestep, whoever calls.
    """

    def __init__(self, remembering: str, neurons: int, memory: bool = True) -> None:
        super().__init__()
        self.memory = memory
        self.inward = nn.Linear(SEEN, neurons)
        self.before, self.remembering, self.after = LAYERS[remembering](neurons)
        self.actor, self.critic = nn.Linear(neurons, ACTIONS), nn.Linear(neurons, 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 2]`` → logits of the actions ``[B, 2]``, and the expected return ``[B]``."""
        held = self.after(self.remembering(self.before(self.inward(seen))))
        return self.actor(held), self.critic(held).squeeze(-1)

    def restart(self, fresh: Tensor) -> None:
        """Forget where ``fresh`` ``[B]`` is True; without a memory, everywhere."""
        self.zero_states(fresh if self.memory else None)


class Louder(nn.Module):
    """The input, three times as large."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return LOUD * x


def _spiking(neurons: int) -> tuple[nn.Module, tt.Layer, nn.Module]:
    """Recurrent spikes, decays from fast to slow, and traces of them that are read."""
    alpha, beta = torch.linspace(0.1, 0.9, neurons), torch.linspace(0.3, 0.95, neurons)
    traces = snn.LI(neurons, torch.linspace(0.3, 0.9, neurons))
    return Louder(), snn.SRLIB(neurons, alpha=alpha, beta=beta), traces


LAYERS: dict[str, Callable[[int], tuple[nn.Module, tt.Layer, nn.Module]]] = {
    "gru": lambda neurons: (nn.Tanh(), rnn.GRU(neurons, neurons), nn.Identity()),
    "lstm": lambda neurons: (nn.Tanh(), rnn.LSTM(neurons, neurons), nn.Identity()),
    "spiking": _spiking,
}
