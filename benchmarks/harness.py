"""Timing contenders side by side: alternating rounds, medians and quartiles. Knows no library.

A contender measures one repetition itself and returns seconds by phase, so that what it prepares
and frees stays outside of what is timed.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Seconds: TypeAlias = Mapping[str, float]
Data: TypeAlias = dict[str, Any]  # what goes into the JSON file

OURS = "traceTorch"
TOTAL = "total"


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        name: how the tables call it.
        measure: one repetition; seconds by phase.
        note: what a reader must know to compare it.
        peer: whether it is another library, of those that the goals compare with.
    """

    name: str
    measure: Callable[[], Seconds]
    note: str = ""
    peer: bool = False


@dataclass(frozen=True)
class Rounds:
    """How long to go on: ``least`` rounds, then until ``seconds`` are spent or ``most`` done.

    ``warmup`` repetitions of each contender come before the first round, ``settle`` before each
    that is timed.
    """

    least: int = 5
    most: int = 25
    seconds: float = 8.0
    warmup: int = 1
    settle: int = 0


_clock: Callable[[], float] = time.perf_counter


def now() -> float:
    """Seconds of the clock in force."""
    return _clock()


@contextmanager
def timed_by(clock: Callable[[], float]) -> Iterator[None]:
    """Another clock within the block, for instance the processor's own."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


def training(
    run: Callable[[], Tensor], cotangent: Tensor, leaves: Sequence[Tensor], reset: Callable[[], Any]
) -> Callable[[], Seconds]:
    """One repetition of a forward and a backward pass.

    Args:
        run: the forward pass.
        cotangent: the gradient of its output.
        leaves: tensors whose gradients are dropped before each repetition.
        reset: back to fresh states, before each repetition.
    """

    def measure() -> Seconds:
        for leaf in leaves:
            leaf.grad = None
        reset()
        start = now()
        y = run()
        middle = now()
        y.backward(cotangent)  # type: ignore[no-untyped-call]
        end = now()
        return {"forward": middle - start, "backward": end - middle, TOTAL: end - start}

    return measure


def applied(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """The run on this input."""
    return lambda: run(x)


def inference(run: Callable[[], Any], reset: Callable[[], Any]) -> Callable[[], Seconds]:
    """One repetition of a forward pass without gradients."""

    def measure() -> Seconds:
        reset()
        with torch.no_grad():
            start = now()
            y = run()
            end = now()
        del y
        return {TOTAL: end - start}

    return measure


def compare(contenders: Sequence[Contender], rounds: Rounds) -> Data:
    """Time all, in turn and each round beginning with another; medians and quartiles by name."""
    taken: dict[str, list[Seconds]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        for _ in range(rounds.warmup):
            contender.measure()
    started = time.perf_counter()
    for done in range(rounds.most):
        with undisturbed():
            for at in range(len(contenders)):
                contender = contenders[(at + done) % len(contenders)]
                for _ in range(rounds.settle):
                    contender.measure()
                taken[contender.name].append(contender.measure())
        if done + 1 >= rounds.least and time.perf_counter() - started > rounds.seconds:
            break
    return {
        contender.name: {
            "phases": spreads(taken[contender.name]),
            "note": contender.note,
            "peer": contender.peer,
        }
        for contender in contenders
    }


@contextmanager
def undisturbed() -> Iterator[None]:
    """A round without the garbage collector; what it left behind is freed before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spreads(taken: Sequence[Seconds]) -> dict[str, Data]:
    """Median and quartiles of every phase."""
    return {phase: spread([seconds[phase] for seconds in taken]) for phase in taken[0]}


def spread(values: Sequence[float]) -> Data:
    """Median, lower and upper quartile, count."""
    ordered = sorted(values)
    if len(ordered) < 2:
        low = high = ordered[0]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {"median": statistics.median(ordered), "low": low, "high": high, "count": len(ordered)}


def median(data: Data, name: str, phase: str = TOTAL) -> float:
    """The median of a phase of one contender in what :func:`compare` returned."""
    return float(data[name]["phases"][phase]["median"])


def fastest_peer(data: Data, phase: str = TOTAL) -> str | None:
    """The name of the fastest other library; None where there is none."""
    peers = [name for name, entry in data.items() if entry["peer"]]
    return min(peers, key=lambda name: median(data, name, phase), default=None)


def increments(sizes: Sequence[int], costs: Sequence[float]) -> list[float]:
    """Cost of each added unit of size, between neighbouring sizes."""
    pairs = itertools.pairwise(zip(sizes, costs, strict=True))
    return [(cost - before) / (size - smaller) for (smaller, before), (size, cost) in pairs]
