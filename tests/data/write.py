"""Writes the files of this folder, with the version of the library that it is run with.

    python tests/data/write.py states 1.0.0         # states-1.0.0.pt, .safetensors, .npz
    python tests/data/write.py checkpoint 1.0.0     # checkpoint-1.0.0.pt, .npz

Uses nothing that the first version did not have, so that it runs with each. The ``.npz`` holds, as
arrays, what the file must give back.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

HERE = Path(__file__).parent


class Net(tt.Model):
    """One layer of every kind of state there was from the first version on."""

    def __init__(self) -> None:
        super().__init__()
        self.spiking = nn.Sequential(snn.DSRLITS(2, pos_rec_weight=0.5), snn.SRLIB(2), snn.LI(2))
        self.precise = snn.LIB(2, 0.8, 0.4).double()
        self.cells = [rnn.SimpleRNN(2, 2), rnn.LSTM(2, 2), {"gru": rnn.GRU(2, 2)}]
        self.scan = rnn.SelectiveSSM(2, 2, 3)
        self.unused = snn.LIB(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spiking(x) + x
        x = self.precise(x.double()).float() + x
        x = self.cells[1](self.cells[0](x))
        y: Tensor = self.scan(self.cells[2]["gru"](x))
        return y

    def weights(self) -> list[Tensor]:
        """All parameters, also of the cells, which torch does not see in their list."""
        layers = [layer for _, layer in self.named_layers()]
        return [weight for layer in layers for weight in layer.parameters()]


class Run:
    """A net that is trained, with two kinds of parts besides."""

    def __init__(self) -> None:
        self.net = Net()
        self.optimizer = torch.optim.SGD(self.net.weights(), 0.05, momentum=0.9)
        self.generator = torch.Generator().manual_seed(3)
        self.losses: list[float] = []

    def advance(self) -> Tensor:
        """One step of training on the next piece of a stream; its outputs."""
        x = 2 * torch.rand(4, 3, 2, generator=self.generator) + torch.rand(()) * random.random()
        y = self.net.unroll(x * float(np.random.rand() + 0.5))
        loss = y.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.net.detach_states()
        self.losses.append(loss.item())
        return y.detach()


def seeded() -> None:
    """All global generators at their beginning."""
    torch.manual_seed(0)
    random.seed(1)
    np.random.seed(2)


def save(name: str, arrays: dict[str, Any]) -> None:
    """The expected values, compressed."""
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def states(version: str) -> None:
    """States after a few timesteps; ``unused`` has none yet."""
    seeded()
    net = Net()
    with torch.no_grad():
        net.unroll(2 * torch.rand(5, 3, 2))
    for suffix in (".pt", ".safetensors"):
        net.save_states(HERE / f"states-{version}{suffix}")
    save(f"states-{version}", {name: state.numpy() for name, state in net.get_states().items()})


def checkpoint(version: str) -> None:
    """A run after two steps; expected are its third step, and what is drawn then."""
    seeded()
    run = Run()
    run.advance()
    run.advance()
    parts = {"optimizer": run.optimizer, "generator": run.generator}
    file = HERE / f"checkpoint-{version}.pt"
    tt.save_checkpoint(file, run.net, **parts, losses=run.losses, settings={"lr": 0.05}, step=2)
    outputs = run.advance()
    weights = torch.cat([weight.detach().flatten() for weight in run.net.weights()])
    drawn = [*torch.rand(2).tolist(), random.random(), np.random.rand()]
    arrays = {"outputs": outputs, "losses": run.losses, "weights": weights, "drawn": drawn}
    save(f"checkpoint-{version}", {name: np.asarray(value) for name, value in arrays.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["states", "checkpoint"])
    parser.add_argument("version", help="as it stands in the files' names")
    options = parser.parse_args()
    {"states": states, "checkpoint": checkpoint}[options.kind](options.version)
