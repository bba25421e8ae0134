"""Three nets that hear utterances frame by frame: spiking, state space, and torch's GRU.

All have an input brought to mean 0 and deviation 1 in each feature, class scores of every frame,
and for their answer the mean of these over an utterance's own frames. They know no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import tracetorch as tt
from common.audio import PerBand
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tracetorch import rnn, snn
from tracetorch.measures import Count, operations

RATES = (0.05, 0.15)  # spikes per neuron and frame, to begin with
BOUND, CALM = 0.05, 4.0  # the rate that costs nothing, and what more than it costs


def mean_over(frames: Tensor, lengths: Tensor) -> Tensor:
    """Zero after each one's end, ``[T, B, …]`` → the mean over its own frames, ``[B, …]``."""
    return frames.sum(0) / lengths.to(frames)[:, None]


class Stepped(tt.Model):
    """A net whose ``forward`` is one frame, ``[B, features]`` → class scores ``[B, classes]``.

    Attributes:
        front: what brings the input to mean 0 and deviation 1.
        net: the rest.
        watched: titles of the outputs that :meth:`within` shows, by ``tt.record``'s names.
    """

    front: PerBand
    net: nn.Sequential
    watched: Mapping[str, str]

    def forward(self, x: Tensor) -> Tensor:
        """One frame ``[B, features]`` → class scores ``[B, classes]``."""
        scores: Tensor = self.net(self.front(x))
        return scores

    def classify(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Utterances ``[T, B, features]``, from fresh states → class scores ``[B, classes]``."""
        self.zero_states()
        return mean_over(self.unroll(x, lengths=lengths), lengths)

    @torch.no_grad()
    def within(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """By title, what layers put out ``[T, B, neurons]``, zero after each one's end."""
        with tt.record(self, *self.watched) as recorded:
            self.classify(x, lengths)
        return {title: recorded[name] for name, title in self.watched.items()}

    def cost(self, x: Tensor, lengths: Tensor) -> Count:
        """The synaptic operations of these utterances, all together."""
        self.zero_states()
        return operations(self, x, lengths).total

    def learnt(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores, and what is to be added to the loss: nothing."""
        return self.classify(x, lengths), x.new_zeros(())


class Spiking(Stepped):
    """Two layers of adapting neurons: each spike makes the next one later.

    Time constants are drawn for every neuron, and learn. The scores are sums of the last layer's
    spikes.
    """

    watched = MappingProxyType({"net.1.out": "first layer", "net.3.out": "second layer"})

    def __init__(self, features: int, classes: int, width: int) -> None:
        super().__init__()
        self.front = PerBand(features)
        self.net = nn.Sequential(
            nn.Linear(features, width),
            adapting(width),
            nn.Linear(width, width),
            adapting(width),
            nn.Linear(width, classes),
        )

    def begin(self, x: Tensor, lengths: Tensor) -> None:
        """Scale the weights until both layers fire on these utterances."""
        snn.init.calibrate(self, x, RATES, lengths=lengths)

    def learnt(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores, and a penalty on neurons that fire more often than ``BOUND``."""
        with tt.record(self, *self.watched, detach=False) as recorded:
            scores = self.classify(x, lengths)
        trains = dict(recorded).values()
        restless = [snn.regularizers.upper_rate(s, BOUND, lengths=lengths) for s in trains]
        return scores, CALM * torch.stack(restless).sum()


def adapting(width: int) -> snn.SRLIB:
    """Its own spikes, smoothed, count against the membrane."""
    layer = snn.SRLIB(width, rec_weight=-0.5)
    snn.init.heterogeneous(layer, alpha=3.0, beta=10.0, gamma=10.0)
    return layer


class StateSpace(Stepped):
    """Two blocks of a linear recurrence, each normalised before, gated after, and bypassed."""

    watched = MappingProxyType({"net.1.ssm.out": "first block", "net.2.ssm.out": "second block"})

    def __init__(self, features: int, classes: int, width: int) -> None:
        super().__init__()
        self.front = PerBand(features)
        self.net = nn.Sequential(
            nn.Linear(features, width),
            Block(width),
            Block(width),
            nn.LayerNorm(width),
            nn.Linear(width, classes),
        )

    def begin(self, x: Tensor, lengths: Tensor) -> None:
        """Nothing to do."""


class Block(nn.Module):
    """``x + GLU(GELU(SSM(LayerNorm(x))))``, as in the papers of S4 and S5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.ssm = nn.LayerNorm(width), rnn.S5(width, width, d_state=32)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(width, 2 * width), nn.GLU())

    def forward(self, x: Tensor) -> Tensor:
        """``[…, width]`` → the same shape."""
        mixed: Tensor = self.mix(self.ssm(self.norm(x)))
        return x + mixed


class Gated(nn.Module):
    """torch's own GRU on packed sequences: what the other two are compared with."""

    def __init__(self, features: int, classes: int, width: int) -> None:
        super().__init__()
        self.front, self.gru = PerBand(features), nn.GRU(features, width)
        self.head = nn.Linear(width, classes)

    def begin(self, x: Tensor, lengths: Tensor) -> None:
        """Nothing to do."""

    def hear(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states ``[T, B, width]``, zero after each one's end."""
        packed = pack_padded_sequence(self.front(x), lengths, enforce_sorted=False)
        heard, _ = pad_packed_sequence(self.gru(packed)[0], total_length=len(x))
        return heard

    def classify(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Utterances ``[T, B, features]`` → class scores ``[B, classes]``.

        The mean of a linear map is the map of the mean, so it is taken once.
        """
        scores: Tensor = self.head(mean_over(self.hear(x, lengths), lengths))
        return scores

    def learnt(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores, and what is to be added to the loss: nothing."""
        return self.classify(x, lengths), x.new_zeros(())

    @torch.no_grad()
    def within(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The hidden states."""
        return {"hidden states": self.hear(x, lengths)}

    def cost(self, x: Tensor, lengths: Tensor) -> Count:
        """Each weight once a frame; only the hidden states before the first frame are zero."""
        dense = int(lengths.sum()) * sum(p.numel() for p in self.parameters() if p.ndim == 2)
        return Count(dense, dense - len(lengths) * self.gru.weight_hh_l0.numel())


Listener = Spiking | StateSpace | Gated

LISTENERS: dict[str, Callable[[int, int, int], Listener]] = {
    "spiking": Spiking,
    "ssm": StateSpace,
    "gru": Gated,
}


def listener(kind: str, features: int, classes: int, neurons: int) -> Listener:
    """A net with as many parameters as a GRU of so many neurons, to the nearest width.

    Args:
        kind: a key of ``LISTENERS``.
        features: of a frame.
        classes: to tell apart.
        neurons: of the GRU.
    """

    def size(kind: str, width: int) -> int:
        with torch.random.fork_rng(devices=[]):
            return learnable(LISTENERS[kind](features, classes, width))

    wanted, low, high = size("gru", neurons), 1, 2
    while size(kind, high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(kind, middle) < wanted else (low, middle)
    width = min(low, high, key=lambda width: abs(size(kind, width) - wanted))
    return LISTENERS[kind](features, classes, width)


def learnable(net: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in net.parameters())
