"""A stream on disk in pieces, in a process of its own: ``streamed.py RAW SAFETENSORS SAMPLES``.

Prints, as JSON, what the model made of each file and by how many bytes the resident peak has
grown. The test imports the model and its measure from here.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tracetorch as tt
from safetensors import safe_open
from torch import Tensor
from tracetorch import snn

PIECE, NEURONS = 2048, 32


class Net(tt.Model):
    """Spikes, in numbers that are exact, and a trace of them."""

    def __init__(self) -> None:
        super().__init__()
        self.lif, self.trace = snn.LIB(NEURONS, threshold=1.5), snn.LI(NEURONS, beta=0.99)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.trace(self.lif(x))
        return y


def memmap(file: Path, samples: int) -> Iterator[Tensor]:
    """Pieces ``[T, B, N]``, of a mapping each: what is read stays resident while it is mapped."""
    row = samples * NEURONS * 4
    for start in range(0, file.stat().st_size, PIECE * row):
        rows = min(PIECE, (file.stat().st_size - start) // row)
        shape = (rows, samples, NEURONS)
        mapped = np.memmap(file, dtype="float32", mode="r", offset=start, shape=shape)
        yield torch.tensor(mapped)


def safetensors(file: Path, samples: int) -> Iterator[Tensor]:
    """The same from slices of the tensor ``x``."""
    with safe_open(file, "np") as opened:
        steps = opened.get_slice("x").get_shape()[0]
    for start in range(0, steps, PIECE):
        with safe_open(file, "np") as opened:
            yield torch.from_numpy(opened.get_slice("x")[start : min(start + PIECE, steps)])


WAYS: dict[str, Callable[[Path, int], Iterator[Tensor]]] = {
    "memmap": memmap,
    "safetensors": safetensors,
}


def found(net: Net, pieces: Iterator[Tensor]) -> dict[str, Any]:
    """Numbers that every timestep has a part in."""
    total = 0.0
    with torch.no_grad():
        for piece in pieces:
            total += net.unroll(piece).double().sum().item()
    states = {name: state.tolist() for name, state in net.get_states().items()}
    return {"total": total, "states": states}


def main(files: list[Path], samples: int) -> None:
    """All of each file, after a first piece that loads and compiles what there is to."""
    torch.set_num_threads(1)
    came = {}
    for (how, pieces), file in zip(WAYS.items(), files, strict=True):
        net = Net()
        found(net, iter([next(pieces(file, samples))]))
        net.zero_states()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        came[how] = found(net, pieces(file, samples))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        came[how]["grown"] = grown * 1024
    sys.stdout.write(json.dumps(came))


if __name__ == "__main__":
    main([*map(Path, sys.argv[1:3])], int(sys.argv[3]))
