"""A model of all kinds of layers, and a loss: what tests of training, and their workers, use."""

from __future__ import annotations

from torch import Tensor, nn
from tracetorch import Model, rnn, snn


class Mixed(Model):
    """Spikes, a trace that is not learned, a recurrent layer and a state-space layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 6),
            snn.DSRLITS(6, pos_rec_weight=0.5, neg_rec_weight=-0.5, pos_threshold=0.5),
            snn.SLIEMA(6, learn_alpha=False),
            rnn.GRU(6, 5),
            rnn.SelectiveSSM(5, 4, state_size=3),
            snn.LIB(4, beta_rank=0),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


def loss_of(y: Tensor) -> Tensor:
    """A mean over the batch, so that the mean over equal shares is the whole."""
    return (y - 0.4).square().mean()
