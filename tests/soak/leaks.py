"""Memory over many timesteps and many layers: it reaches a plateau."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

PARTS = 10
# of the last two thirds: what an allocator may still come to hold, and what nothing should
MEGABYTES, OBJECTS = 12.0, 300


class Net(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), snn.RLIB(4), rnn.GRU(4, 4), snn.LI(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


def measured(what: str, work: Callable[[], Iterator[None]]) -> str:
    """Ten parts of the work; AssertionError where the last six still add something."""
    memory, objects = [], []
    for _ in work():
        gc.collect()
        memory.append(resident())
        objects.append(len(gc.get_objects()))
    start = len(memory) * 4 // 10
    grown, more = memory[-1] - memory[start], objects[-1] - objects[start]
    said = f"{what}: {grown:+.1f} MB, {more:+d} objects over the last {PARTS - start} tenths"
    assert grown < MEGABYTES, f"{said}; {[round(value) for value in memory]}"
    assert more < OBJECTS, f"{said}; {objects}"
    return said


def stepping(count: int, track: bool) -> Iterator[None]:
    model, x = Net(), torch.rand(3, 4)
    with torch.set_grad_enabled(track):
        for number in range(count):
            y = model(x)
            if track and number % 20 == 19:
                y.sum().backward()
                model.detach_states()
            if number % (count // PARTS) == count // PARTS - 1:
                yield


def unrolling(count: int) -> Iterator[None]:
    """Sequences of all lengths, folded and stepped, trained on."""
    model = Net()
    for number in range(count):
        model.zero_states()
        x = torch.rand(1 + number % 9, 1 + number % 4, 4)
        model.unroll(x, fold=False if number % 10 == 0 else None).sum().backward()
        if number % (count // PARTS) == count // PARTS - 1:
            yield


def making(count: int) -> Iterator[None]:
    """Layers made, used and dropped; some of them in models that are decided on."""
    kinds = [*snn.LAYERS[::4], rnn.GRU, tt.testing.AdaptiveLIF]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        layer = kind(3, 3) if kind is rnn.GRU else kind(3)
        layer(torch.rand(2, 3))
        if number % 5 == 0:
            layer.zero_states()
            layer.unroll(torch.rand(3, 2, 3)).sum().backward()
        if number % 100 == 0:
            model = Net()
            model.unroll(torch.rand(3, 2, 4)).sum().backward()
        if number % (count // PARTS) == count // PARTS - 1:
            yield


def run(seed: int, count: int) -> str:
    """``count`` timesteps, and a tenth as many layers; AssertionError is a finding."""
    torch.manual_seed(seed)
    return "; ".join((
        measured(f"{count} timesteps", lambda: stepping(count, track=False)),
        measured(f"{count // 2} with gradients", lambda: stepping(count // 2, track=True)),
        measured(f"{count // 50} sequences", lambda: unrolling(count // 50)),
        measured(f"{count // 10} layers", lambda: making(count // 10)),
    ))  # fmt: skip
