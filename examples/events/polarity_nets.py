"""Spiking nets for events, with ternary or binary spikes, at equal parameters. Knows no data.

With ternary spikes the polarity of an event is its sign, all the way through the net. With binary
ones it is told by two channels.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import tracetorch as tt
from event_recordings import Sensor
from torch import Tensor, nn
from tracetorch import snn

FIRING = {kind.__name__: kind for kind in snn.LAYERS if kind.firing is not None}
WIDTHS = 16, 32, 32  # channels of the ternary net; of another the first one differs
UNITS = 128, 128  # neurons, where a sensor has one row
REFERENCE = "LIT"
FASTEST, SLOWEST = 0.4, 0.95  # decays of a layer's membranes, one for each channel


class EventNet(tt.Model):
    """Convolutions of stride 2, or linear layers for a sensor of one row, each followed by spikes.

    Args:
        neurons: name of the spiking layers, a key of ``FIRING``.
        sensor: its size.
        channels: of a frame.
        classes: how many.
        first: channels, or neurons, of the first layer; those of the others are fixed.
    """

    def __init__(
        self, neurons: str, sensor: Sensor, channels: int, classes: int, first: int
    ) -> None:
        super().__init__()
        one_row = sensor.height == 1
        widths = [first, *(UNITS if one_row else WIDTHS)[1:]]
        make = _linears if one_row else _convolutions
        weighted, size = make(sensor, [channels, *widths])
        self.weighted = nn.ModuleList(weighted)
        dim = -1 if one_row else -3
        self.spiking = nn.ModuleList(spiking_layer(neurons, width, dim) for width in widths)
        self.outward = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """A frame of each recording ``[B, C, H, W]`` → class scores ``[B, classes]``."""
        for weighted, spiking in zip(self.weighted, self.spiking, strict=True):
            x = spiking(weighted(x))
        scores: Tensor = self.outward(x.flatten(1))
        return scores

    def classify(self, x: Tensor) -> Tensor:
        """Whole recordings ``[T, B, C, H, W]`` → their mean scores ``[B, classes]``."""
        self.zero_states()
        scores: Tensor = self.unroll(x).mean(0)
        return scores


def matched(neurons: str, sensor: Sensor, channels: int, classes: int) -> EventNet:
    """A net with those neurons and as many parameters as the ternary one, to a percent or so.

    The width of its first layer is chosen; two channels of input and a third parameter for each
    neuron both take their share.
    """
    usual = (UNITS if sensor.height == 1 else WIDTHS)[0]

    def total(neurons: str, channels: int, first: int) -> int:
        with torch.random.fork_rng(devices=[]):  # only to be counted
            net = EventNet(neurons, sensor, channels, classes, first)
        return net.num_parameters().total

    # affine in the first width: two nets say how much it takes
    least, more = (total(neurons, channels, first) for first in (1, 2))
    first = 1 + round((total(REFERENCE, 1, usual) - least) / (more - least))
    return EventNet(neurons, sensor, channels, classes, first)


def spiking_layer(neurons: str, width: int, dim: int) -> tt.Layer:
    """So many of them, their membranes' decays from fast to slow.

    A neuron of the next layer compares what a slow one still knows with what a fast one sees now:
    that is what tells a direction.
    """
    kind: Any = FIRING[neurons]  # each has a constructor of its own
    decays = torch.linspace(FASTEST, SLOWEST, width)
    betas = {name: decays for name in kind.parameter_names() if name.endswith("beta")}
    layer: tt.Layer = kind(width, **betas, dim=dim, spike_fn=snn.surrogates.fast_sigmoid())
    return layer


def _convolutions(sensor: Sensor, widths: list[int]) -> tuple[list[nn.Module], int]:
    """Each halves the image; and how many values the last one puts out."""
    height, width = sensor.height, sensor.width
    made: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        kernel = 3 if made else 5
        made.append(nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2))
        height, width = -(-height // 2), -(-width // 2)
    return made, widths[-1] * height * width


def _linears(sensor: Sensor, widths: list[int]) -> tuple[list[nn.Module], int]:
    """The first takes all channels of the one row."""
    sizes = [widths[0] * sensor.width, *widths[1:]]
    made: list[nn.Module] = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    made[0] = nn.Sequential(nn.Flatten(), made[0])
    return made, sizes[-1]
