"""How the neuron's time grows with T, N, B and threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace

import torch

from benchmarks.effort import Context
from benchmarks.harness import OURS, Data, Rounds, compare, increments, median
from benchmarks.onm import case
from benchmarks.peers import EVERYONE
from benchmarks.tables import milliseconds, ratio, table
from benchmarks.workload import Shape, cotangent

TITLE = "Scaling"
ABOUT = """\
The neuron alone, forward and backward, with nothing else in turn and each time after an untimed
repetition; ×: how many times as long the plain loop and SpikingJelly take, in turn with it."""
LONGEST_LOOP = 1000  # timesteps: beyond, the others are left out
NARROW = 32  # neurons with which the longest sequence still fits the CPU's last cache


def measure(context: Context) -> Data:
    """One axis at a time, the other two as in the goals' shape."""
    effort = context.effort
    base = Shape(effort.timesteps, neurons=effort.goal)
    narrow = base._replace(neurons=min(NARROW, effort.goal))
    axes = {
        "T": [base._replace(timesteps=t) for t in effort.lengths],
        "T, narrow": [narrow._replace(timesteps=t) for t in effort.lengths],
        "N": [base._replace(neurons=n) for n in effort.widths],
        "B": [base._replace(batch=b, neurons=min(128, effort.goal)) for b in effort.batches],
    }
    found: Data = {
        axis: [_entry(shape, context, effort.brief) for shape in shapes]
        for axis, shapes in axes.items()
    }
    found["threads"] = threads(base, context)
    return found


def threads(shape: Shape, context: Context) -> list[Data]:
    """The same with 1, 2, 4, … threads, as many as there are cores."""
    before, found = torch.get_num_threads(), []
    count = 1
    try:
        while count <= (os.cpu_count() or 1):
            torch.set_num_threads(count)
            found.append({**_entry(shape, context, context.effort.brief), "threads": count})
            count *= 2
    finally:
        torch.set_num_threads(before)
    return found


def _entry(shape: Shape, context: Context, rounds: Rounds) -> Data:
    keys = ["ours"]
    if shape.timesteps <= LONGEST_LOOP:
        keys += ["plain", *(key for key in context.peers if key == "spikingjelly")]
    cases = [case(EVERYONE[key](shape), shape, with_linear=False) for key in keys]
    ours, *others = [c.contender(cotangent(shape)) for c in cases]
    return {
        **shape._asdict(),
        "compared": compare([ours], replace(rounds, settle=1)),
        "others": compare([ours, *others], rounds) if others else {},
    }


# ------------------------------------------------------------------ tables


def per_timestep(entries: list[Data]) -> list[float]:
    """Seconds of each added timestep, between neighbouring lengths."""
    lengths = [entry["timesteps"] for entry in entries]
    return increments(lengths, [median(entry["compared"], OURS) for entry in entries])


def unevenness(costs: Iterable[float]) -> float:
    """By how much the largest exceeds the smallest, as a share; infinite where one is negative."""
    ordered = sorted(costs)
    return ordered[-1] / ordered[0] - 1 if ordered[0] > 0 else math.inf


def render(data: Data) -> str:
    """One table an axis."""
    parts = [ABOUT]
    for axis, letter in (("T", "timesteps"), ("T, narrow", "timesteps")):
        added = ["–", *(f"{1e6 * value:.2f}" for value in per_timestep(data[axis]))]
        rows = [[*row, step] for row, step in zip(_rows(data[axis], letter), added, strict=True)]
        header = ["T", "ms", "ns per neuron and timestep", "×", "µs per added timestep"]
        parts += [_title("T", data[axis][0], ("batch", "neurons")), table(header, rows)]
    for axis, letter, fixed in (
        ("N", "neurons", ("timesteps", "batch")),
        ("B", "batch", ("timesteps", "neurons")),
        ("threads", "threads", ("timesteps", "batch", "neurons")),
    ):
        header = [axis, "ms", "ns per neuron and timestep", "×"]
        parts += [_title(axis, data[axis][0], fixed), table(header, _rows(data[axis], letter))]
    return "\n\n".join(parts)


def _title(axis: str, entry: Data, fixed: tuple[str, ...]) -> str:
    letters = {"timesteps": "T", "batch": "B", "neurons": "N"}
    return f"### {axis}, at " + ", ".join(f"{letters[key]}={entry[key]}" for key in fixed)


def _rows(entries: list[Data], letter: str) -> list[list[str]]:
    rows = []
    for entry in entries:
        compared = entry["compared"]
        updates = entry["timesteps"] * entry["batch"] * entry["neurons"]
        loops = entry["others"]
        others = " / ".join(f"{ratio(loops, name):.1f}" for name in loops if name != OURS)
        spread = compared[OURS]["phases"]["total"]
        each = f"{1e9 * spread['median'] / updates:.2f}"
        rows.append([str(entry[letter]), milliseconds(spread), each, others or "–"])
    return rows
