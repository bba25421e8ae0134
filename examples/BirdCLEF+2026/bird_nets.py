"""Two nets over the frames of a sound: a selective state space, and spikes. Knows no file.

A timestep is a patch of four frames, so all that goes from one to the next is in the states: a
sound of any length may come in pieces.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bird_sounds import SAMPLE_RATE, WINDOW_SECONDS
from common.audio import LogMel, PerBand

BANDS, HOP = 64, 500  # a frame every 15.6 ms
PATCH = 4  # frames of a timestep
TIMESTEPS = WINDOW_SECONDS * SAMPLE_RATE // HOP // PATCH  # of a window
CHANNELS, TONES, WIDTH = (16, 32), (28, 12), 128  # the convolutions' channels, what they leave


def front_end() -> LogMel:
    """Frames of 32 ms between 150 Hz and 15 kHz; the same for both nets."""
    return LogMel(SAMPLE_RATE, BANDS, window=1024, hop=HOP, lowest=150.0, highest=15_000.0)


def patches(frames: Tensor) -> Tensor:
    """``[B, frames, bands]`` → ``[T, B, 4, bands]``: four frames are a timestep."""
    batch, count, bands = frames.shape
    return frames.view(batch, count // PATCH, PATCH, bands).transpose(0, 1)


class BirdNet(tt.Model):
    """What is heard in each timestep.

    Args:
        kind: a key of ``NETS``.
        labels: how many there are to tell apart.
    """

    def __init__(self, kind: str, labels: int) -> None:
        super().__init__()
        self.normal = PerBand(BANDS)
        self.front, self.body = NETS[kind](labels)

    def forward(self, patch: Tensor) -> Tensor:
        """One timestep: ``[B, 4, bands]`` → logits ``[B, labels]``."""
        logits: Tensor = self.body(self.front(self.normal(patch)[:, None]))
        return logits


class Residual(nn.Module):
    """A layer over what is normalised, added to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.normal, self.layer = nn.LayerNorm(WIDTH), layer

    def forward(self, x: Tensor) -> Tensor:
        """``[B, WIDTH]`` → the same shape."""
        added: Tensor = self.layer(self.normal(x))
        return x + added


def _convolutions() -> tuple[nn.Conv2d, nn.Conv2d]:
    """Over all frames of a patch and nine bands, then five of what is left: ``[B, 32, 1, 12]``."""
    first, second = CHANNELS
    return nn.Conv2d(1, first, (PATCH, 9), (1, 2)), nn.Conv2d(first, second, (1, 5), (1, 2))


def _selective(labels: int) -> tuple[nn.Module, nn.Module]:
    one, other = _convolutions()
    front = nn.Sequential(one, nn.SiLU(), other, nn.SiLU(), nn.Flatten())
    blocks = [Residual(rnn.SelectiveSSM(WIDTH, WIDTH)) for _ in range(2)]
    inward, outward = nn.Linear(CHANNELS[1] * TONES[1], WIDTH), nn.Linear(WIDTH, labels)
    return front, nn.Sequential(inward, *blocks, nn.LayerNorm(WIDTH), outward)


def _spiking(labels: int) -> tuple[nn.Module, nn.Module]:
    """Everything after the first convolution gets spikes; logits are leaky sums of spikes."""
    one, other = _convolutions()
    first, second = (snn.LIB(count, beta=0.6, dim=-3) for count in CHANNELS)
    front = nn.Sequential(one, first, other, second, nn.Flatten())
    inward, outward = nn.Linear(CHANNELS[1] * TONES[1], WIDTH), nn.Linear(WIDTH, labels)
    hidden = snn.SRLIB(WIDTH)
    snn.init.heterogeneous(hidden, alpha=3.0, beta=8.0)
    return front, nn.Sequential(inward, hidden, outward, snn.LI(labels, beta=0.8))


NETS: dict[str, Callable[[int], tuple[nn.Module, nn.Module]]] = {
    "ssm": _selective,
    "spiking": _spiking,
}

# what a figure shows of a net, and whether it is spikes
SHOWN = {"ssm": ("body.2.layer", False), "spiking": ("body.1", True)}


def pooled(logits: Tensor) -> Tensor:
    """Logits of timesteps ``[T, B, labels]`` → of the window they are ``[B, labels]``.

    The logarithm of the mean of their exponentials: near the highest, with a gradient for all.
    """
    return logits.logsumexp(0) - math.log(len(logits))
