"""One process of DistributedDataParallel: ``gradients.py RANK WORLD RENDEZVOUS DATA OUT``.

Saves the gradients after a backward pass over this rank's share of the batch. The test imports
the model from here too.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
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


class Unrolled(nn.Module):
    """What is wrapped: a whole sequence within one ``forward``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        self.model.zero_states()
        y: Tensor = self.model.unroll(x)
        return y


def loss_of(y: Tensor) -> Tensor:
    """A mean over the batch, so that the mean over equal shares is the whole."""
    return (y - 0.4).square().mean()


def main(rank: int, world: int, rendezvous: str, data: str, out: str) -> None:
    """Train on every ``world``-th sample, from ``rank``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    given = torch.load(data)
    model = Mixed().double()
    if rank == 0:
        # the other ranks get these from the first
        model.load_state_dict(given["weights"])
    wrapped = DistributedDataParallel(Unrolled(model))
    loss_of(wrapped(given["x"][:, rank::world])).backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
