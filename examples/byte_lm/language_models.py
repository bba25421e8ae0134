"""The nets: bytes in, a score for each byte that may come next out. Knows no text.

Whatever remembers is a layer within residual blocks; all else is the same in every kind of net.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

BYTES = 256
STATES = 8  # per channel, of a selective scan


class Residual(nn.Module):
    """What comes in, and what some modules make of it once it is normalised: ``[…, width]``."""

    def __init__(self, width: int, *inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        y: Tensor = x + self.inner(self.norm(x))
        return y


def _mamba(width: int) -> Iterator[nn.Module]:
    yield Residual(width, rnn.Mamba(width, width, d_state=STATES))


def _ssm(width: int) -> Iterator[nn.Module]:
    yield Residual(width, rnn.SelectiveSSM(width, width, STATES))
    yield Residual(width, nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def _spiking(width: int) -> Iterator[nn.Module]:
    neurons = 4 * width
    firing = snn.LITS(neurons, spike_fn=snn.surrogates.fast_sigmoid())
    snn.init.heterogeneous(firing, beta=8.0)
    yield Residual(width, nn.Linear(width, neurons), firing, nn.Linear(neurons, width))


def _lstm(width: int) -> Iterator[nn.Module]:
    yield Residual(width, rnn.LSTM(width, width))


def _mixed(width: int) -> Iterator[nn.Module]:
    yield from _mamba(width)
    yield from _spiking(width)


BLOCKS: dict[str, Callable[[int], Iterator[nn.Module]]] = {
    "mamba": _mamba,
    "ssm": _ssm,
    "spiking": _spiking,
    "mixed": _mixed,
    "lstm": _lstm,
}


class Shape(NamedTuple):
    """Of a net, and how it learns best.

    Attributes:
        width: of the stream of activations between blocks.
        blocks: how many.
        steps: of the optimizer.
        learning_rate: the highest, of Adam.
    """

    width: int
    blocks: int
    steps: int
    learning_rate: float


# of equal numbers of parameters, within 2 %, and equal processor time on the README's machine
SHAPES = {
    "mamba": Shape(128, 2, 12_000, 6e-3),
    "ssm": Shape(118, 3, 12_200, 6e-3),
    "spiking": Shape(118, 2, 18_000, 6e-3),
    "mixed": Shape(122, 1, 13_500, 6e-3),
    "lstm": Shape(118, 2, 18_800, 6e-3),
}


class ByteLM(tt.Model):
    """Bytes ``[B]`` of one timestep → logits ``[B, 256]`` of the next.

    Args:
        kind: of its blocks, one of ``BLOCKS``.
        width: of the stream of activations between them.
        blocks: how many.
    """

    def __init__(self, kind: str, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.blocks = nn.Sequential(*(m for _ in range(blocks) for m in BLOCKS[kind](width)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(x))))
        return logits
