"""Affine layers: the loop over time against segments that run at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tracetorch import snn
from tracetorch.engine import segments

from benchmarks.effort import Context
from benchmarks.harness import OURS, Contender, Data, applied, compare, training
from benchmarks.tables import milliseconds, ratio, table
from benchmarks.workload import Shape, cotangent

TITLE = "Parallel over time"
ABOUT = """\
LI and SLIEMA, whose states are affine, forward and backward at few lanes: the kernel's loop
over time, which is what traceTorch does on a CPU, and segments of the sequence as more lanes of
the same kernel (`tracetorch.engine.segments`), 512 or 4096 lanes in all. Under 1: the segments are
faster."""
LAYERS = (snn.LI, snn.SLIEMA)


def measure(context: Context) -> Data:
    """Every layer, number of lanes and length."""
    longest = max(context.effort.lengths)
    lengths = (longest // 10, longest, 10 * longest)
    shapes = [Shape(t, 1, n) for n in (1, 16, 128) for t in lengths]
    return {
        "entries": [
            {**shape._asdict(), "layer": cls.__name__, "compared": _entry(cls, shape, context)}
            for cls in LAYERS
            for shape in shapes
        ]
    }


def _entry(cls: type[snn.LeakyIntegrator], shape: Shape, context: Context) -> Data:
    layer = cls(shape.neurons)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    runs = {OURS: layer.unroll} | {
        f"{lanes} lanes": _cut(layer.unroll, max(2, lanes // shape.neurons))
        for lanes in (512, 4096)
    }
    contenders = []
    for name, run in runs.items():
        layer.zero_states()
        torch.testing.assert_close(run(x), layer_loop(layer, x), rtol=1e-4, atol=1e-4)
        timed = training(
            applied(run, x), cotangent(shape), [x, *layer.parameters()], layer.zero_states
        )
        contenders.append(Contender(name, timed))
    return compare(contenders, context.effort.brief)


def layer_loop(layer: snn.LeakyIntegrator, x: Tensor) -> Tensor:
    """What the segments are held to."""
    layer.zero_states()
    return layer.unroll(x)


def _cut(run: Callable[[Tensor], Tensor], pieces: int) -> Callable[[Tensor], Tensor]:
    def cut(x: Tensor) -> Tensor:
        with _counting(pieces):
            return run(x)

    return cut


@contextmanager
def _counting(pieces: int) -> Iterator[None]:
    before = segments.count
    segments.count = lambda steps, lanes, device: pieces
    try:
        yield
    finally:
        segments.count = before


def render(data: Data) -> str:
    """One table."""
    rows = []
    for entry in data["entries"]:
        compared = entry["compared"]
        others = [f"{ratio(compared, name):.2f}" for name in compared if name != OURS]
        lanes = entry["batch"] * entry["neurons"]
        loop = milliseconds(compared[OURS]["phases"]["total"])
        rows.append([f"`{entry['layer']}`", str(lanes), str(entry["timesteps"]), loop, *others])
    header = ["layer", "lanes", "T", "loop, ms", "512 lanes ÷ loop", "4096 lanes ÷ loop"]
    return f"{ABOUT}\n\n{table(header, rows)}"
