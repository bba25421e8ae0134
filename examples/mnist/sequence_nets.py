"""Four nets that read digits piece by piece, each with as many parameters. Knows no digits.

Each has two layers that remember: spiking neurons of the library, torch's gated cells, or a state
space in blocks as its papers have them. The spiking one sets how many parameters there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
import torch.nn.functional as F
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

CLASSES = 10
NEURONS = 128  # of each spiking layer
MODES = 32  # of each state space: complex states, every one with its own decay and frequency


class Net(tt.Model):
    """Modules in a row; the class scores come out of the last.

    Args:
        modules: from ``[B, kernel_size]`` to ``[B, 10]``.
        watched: the last layer that remembers, as a qualified name.
    """

    def __init__(self, *modules: nn.Module, watched: str) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)
        self.watched = watched

    def forward(self, x: Tensor) -> Tensor:
        """Pixels ``[B, kernel_size]`` of one timestep → class scores ``[B, 10]``."""
        scores: Tensor = self.net(x)
        return scores


# ------------------------------------------------------------------ spiking


def spiking(kernel_size: int) -> Net:
    """Two layers of spiking neurons that remember for different times, read by a leaky sum."""
    return Net(
        nn.Linear(kernel_size, NEURONS),
        spiking_memory(),
        nn.Linear(NEURONS, NEURONS),
        spiking_memory(),
        nn.Linear(NEURONS, CLASSES),
        snn.LI(CLASSES, 0.95),
        watched="net.3",
    )


def spiking_memory() -> snn.SRLIB:
    """Synapse, membrane and recurrence; decays are spread from fast to slow."""
    alpha, beta = torch.linspace(0.1, 0.9, NEURONS), torch.linspace(0.5, 0.98, NEURONS)
    return snn.SRLIB(NEURONS, alpha=alpha, beta=beta, threshold_rank=0)


# ------------------------------------------------------------------ gated cells


def lstm(kernel_size: int, units: int) -> Net:
    """Two layers of LSTM with so many units together."""
    return _cells(rnn.LSTM, kernel_size, units)


def gru(kernel_size: int, units: int) -> Net:
    """Two layers of GRU with so many units together."""
    return _cells(rnn.GRU, kernel_size, units)


def _cells(kind: type[rnn.LSTM] | type[rnn.GRU], kernel_size: int, units: int) -> Net:
    second = units // 2
    first = units - second
    cells = kind(kernel_size, first), kind(first, second)
    return Net(*cells, nn.Linear(second, CLASSES), watched="net.1")


# ------------------------------------------------------------------ state spaces


class Block(nn.Module):
    """A state space and what is not linear, beside a way straight through: Smith et al. (2023).

    Args:
        features: that go in and come out.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.memory = rnn.S5(features, features, 2 * MODES)
        self.mix = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, features]`` → the same."""
        read = F.gelu(self.memory(self.norm(x)))
        return x + read * self.mix(read).sigmoid()


def ssm(kernel_size: int, features: int) -> Net:
    """Two blocks of a diagonal state space, S5."""
    return Net(
        nn.Linear(kernel_size, features),
        Block(features),
        Block(features),
        nn.LayerNorm(features),
        nn.Linear(features, CLASSES),
        watched="net.2.memory",
    )


# ------------------------------------------------------------------ one size

SIZED: dict[str, Callable[[int, int], Net]] = {"lstm": lstm, "gru": gru, "ssm": ssm}
MODELS = ["snn", *SIZED]


def net(name: str, kernel_size: int) -> Net:
    """One of ``MODELS``, as near as it comes to the spiking one's number of parameters.

    Args:
        name: which.
        kernel_size: pixels of a timestep, at least 1.
    """
    if name == "snn":
        return spiking(kernel_size)
    return SIZED[name](kernel_size, size(SIZED[name], kernel_size))


def size(make: Callable[[int, int], Net], kernel_size: int) -> int:
    """That with which ``make`` comes nearest to the spiking net; generators stay where they are."""

    def surplus(units: int) -> int:
        return make(kernel_size, units).num_parameters().total - wanted

    with torch.random.fork_rng(devices=[]):
        wanted = spiking(kernel_size).num_parameters().total
        above = bisect_left(range(1000), 0, lo=2, key=surplus)
        return min((above - 1, above), key=lambda units: abs(surplus(units)))
