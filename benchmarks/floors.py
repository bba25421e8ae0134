"""The short form: ratios that must not fall under a generous floor. Needs no peer.

One thread, and the processor's time in place of the clock's: both sides of a ratio are then alike
on a machine that others use too. A ratio under its floor is measured again, for a slowdown of the
code stays and a disturbance goes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tracetorch import snn

from benchmarks import layers, recording, recurrent
from benchmarks.harness import Rounds, timed_by
from benchmarks.peers import looped
from benchmarks.tables import ratio, table
from benchmarks.workload import Shape

ROUNDS = Rounds(3, 7, 1.5)
SHAPE = Shape(200)
HANDFUL = (snn.LI, snn.SLIEMA, snn.LIB, snn.DLIT, snn.SRLITS)
ATTEMPTS = 3


class Floor(NamedTuple):
    """A ratio, how it is measured, and what it must not fall under."""

    what: str
    measure: Callable[[], float]
    least: float


def _fused(cls: type[snn.LeakyIntegrator]) -> float:
    entry = layers.against_eager(cls(SHAPE.neurons), SHAPE, ROUNDS)
    return ratio(entry, layers.EAGER)


def _stepped() -> float:
    layer = snn.LIB(SHAPE.neurons)
    entry = layers.against_eager(layer, SHAPE, ROUNDS, looped(layer))
    return ratio(entry, layers.EAGER)


def _handful() -> float:
    return statistics.geometric_mean(map(_fused, HANDFUL))


def _cell(name: str) -> float:
    return ratio(recurrent.cell(name, Shape(100, 16, 256), ROUNDS), recurrent.TORCH)


def _recorded() -> float:
    entry = recording.compared(SHAPE, ROUNDS, alone=False)
    return 1 / ratio(entry, recording.RECORDED)


FLOORS = (
    Floor("LIB, eager ÷ fused", lambda: _fused(snn.LIB), 3),
    Floor("DSRLITS, eager ÷ fused", lambda: _fused(snn.DSRLITS), 8),
    Floor("LIB stepped, eager ÷ through its kernel", _stepped, 1),
    Floor("a handful of layers, eager ÷ fused, geometric mean", _handful, 4),
    Floor("LSTM, torch.nn ÷ unrolled", lambda: _cell("LSTM"), 0.6),
    Floor("GRU, torch.nn ÷ unrolled", lambda: _cell("GRU"), 0.6),
    Floor("Linear and SLIB unrolled ÷ with two states recorded", _recorded, 0.67),
)


@contextmanager
def alone() -> Iterator[None]:
    """One thread, processor time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with timed_by(time.process_time):
            yield
    finally:
        torch.set_num_threads(threads)


def check() -> tuple[str, bool]:
    """The table, and whether every floor holds."""
    with alone():
        found = [(floor, _best(floor)) for floor in FLOORS]
    rows = [
        [floor.what, f"{value:.2f}", floor.least, "yes" if value >= floor.least else "**no**"]
        for floor, value in found
    ]
    holds = all(value >= floor.least for floor, value in found)
    return table(["ratio", "measured", "floor", "holds"], rows), holds


def _best(floor: Floor) -> float:
    best = 0.0
    for _ in range(ATTEMPTS):
        best = max(best, floor.measure())
        if best >= floor.least:
            break
    return best
