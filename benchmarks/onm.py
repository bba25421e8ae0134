"""The Open Neuromorphic workload, its neuron alone, and that neuron against copying its bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import legacy
from benchmarks.effort import Context
from benchmarks.harness import TOTAL, Contender, Data, Rounds, Seconds, compare, training
from benchmarks.peers import CHUNKED, EVERYONE, OWN, Neuron, Run, ours
from benchmarks.tables import comparison
from benchmarks.workload import (
    Shape,
    cotangent,
    differing,
    linear,
    network_input,
    neuron_input,
    plain_loop,
)

MANY = 1024  # neurons, beyond which rounds are brief

TITLE = "The Open Neuromorphic workload"
ABOUT = """\
A linear layer N → N and a LIF neuron over a whole sequence, forward and backward, and the neuron
alone. Every contender applies its linear layer to all timesteps at once, which suits all of them
best. All are one model: reset by subtraction, decay 0.9, threshold 1. Before anything is timed,
their spikes are compared; the share that differs (decisions within rounding) is in the table."""


def measure(context: Context) -> Data:
    """The network for each N, the neuron alone and copying for the goals' N."""
    effort = context.effort
    check_gradients(Shape(50, 4, 33))
    shapes = [Shape(effort.timesteps, neurons=neurons) for neurons in effort.neurons]
    goal = Shape(effort.timesteps, neurons=effort.goal)
    return {
        "neuron": compared(goal, context, with_linear=False),
        "network": [
            compared(shape, context, with_linear=True, compiled=shape == goal) for shape in shapes
        ],
        "goal": str(goal),
        "copying": copying(goal, effort.rounds),
    }


@dataclass(frozen=True)
class Case:
    """One contender on one shape: what runs, on what, and all whose gradients are wanted."""

    neuron: Neuron
    run: Run
    x: Tensor
    leaves: list[Tensor]

    def spikes(self) -> Tensor:
        """Spikes ``[T, B, N]`` from fresh states."""
        self.neuron.reset()
        with torch.no_grad():
            return self.run(self.x)

    def contender(self, cotangent: Tensor) -> Contender:
        """Its training step, to be timed."""
        neuron = self.neuron
        measure = training(lambda: self.run(self.x), cotangent, self.leaves, neuron.reset)
        return Contender(neuron.name, measure, neuron.note, neuron.peer)


def case(neuron: Neuron, shape: Shape, *, with_linear: bool) -> Case:
    """The neuron alone, or behind a linear layer."""
    if not with_linear:
        x = neuron_input(shape).requires_grad_()
        return Case(neuron, neuron.sequence, x, [x, *neuron.parameters])
    first = linear(shape.neurons)
    leaves = [*neuron.parameters, *first.parameters()]
    return Case(neuron, neuron.after(first), network_input(shape), leaves)


def compared(shape: Shape, context: Context, *, with_linear: bool, compiled: bool = True) -> Data:
    """All contenders on one shape: checked, then timed."""
    own = [*OWN, *CHUNKED] if with_linear and compiled else [*OWN]
    keys = [*own, "plain", *["plain_compiled"] * compiled, *context.peers]
    cases = [case(EVERYONE[key](shape), shape, with_linear=with_linear) for key in keys]
    expected = cases[0].spikes()
    shares: Data = {c.neuron.name: share_differing(c, expected) for c in cases}
    contenders = [c.contender(cotangent(shape)) for c in cases]
    if context.worker is not None:
        shares[legacy.NAME] = old_version(context.worker, shape, expected, with_linear)
        contenders.append(old_contender(context.worker))
    rounds = context.effort.rounds if shape.neurons <= MANY else context.effort.brief
    timed = compare(contenders, rounds)
    return {"shape": str(shape), "differing": shares, "compared": timed}


def share_differing(case: Case, expected: Tensor) -> float | None:
    """The share of its spikes that differ; None where it is another model."""
    if not case.neuron.same:
        return None
    return differing(case.spikes(), expected, case.neuron.name)


def old_version(worker: legacy.Worker, shape: Shape, expected: Tensor, with_linear: bool) -> float:
    """Its share of spikes that differ; the worker is then ready to be timed on this shape."""
    worker.ask(do="case", shape=list(shape), linear=with_linear)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spikes.pt"
        worker.ask(do="spikes", file=str(file))
        return differing(torch.load(file, weights_only=True), expected, legacy.NAME)


def old_contender(worker: legacy.Worker) -> Contender:
    """What the worker was last asked to prepare."""
    return Contender(legacy.NAME, lambda: worker.ask(do="time"), legacy.NOTE, peer=True)


# ------------------------------------------------------------------ copying


def copying(shape: Shape, rounds: Rounds) -> Data:
    """The neuron against moving the bytes it must: x → y forward, x and dy → dx backward."""
    x, g, there = neuron_input(shape).requires_grad_(), cotangent(shape), torch.empty(shape)
    neuron = ours(shape)
    data = x.detach()
    contenders = [
        Contender(
            neuron.name,
            training(lambda: neuron.sequence(x), g, [x, *neuron.parameters], neuron.reset),
        ),
        Contender(
            "moving, into fresh memory",
            _moving(lambda: data.clone(), lambda: data + g),
            "x.clone(); x + dy",
        ),
        Contender(
            "moving, into standing memory",
            _moving(lambda: there.copy_(data), lambda: torch.add(data, g, out=there)),
            "y.copy_(x); add(x, dy, out=dx)",
        ),
    ]
    return {"shape": str(shape), "compared": compare(contenders, rounds)}


def _moving(forward: Callable[[], Any], backward: Callable[[], Any]) -> Callable[[], Seconds]:
    """One repetition of both; what is made is freed outside of the time."""

    def measure() -> Seconds:
        start = time.perf_counter()
        y = forward()
        middle = time.perf_counter()
        dx = backward()
        end = time.perf_counter()
        del y, dx
        return {"forward": middle - start, "backward": end - middle, TOTAL: end - start}

    return measure


def check_gradients(shape: Shape) -> None:
    """The plain loop's gradients of the input are ours; AssertionError where they are not."""
    x = neuron_input(shape).requires_grad_()
    outputs = ours(shape).sequence(x), plain_loop(torch.zeros_like(x[0]), x)[1]
    fused, looped = (torch.autograd.grad(y, x, cotangent(shape))[0] for y in outputs)
    torch.testing.assert_close(fused, looped, rtol=1e-4, atol=1e-4)


def render(data: Data) -> str:
    """The tables."""
    parts = [ABOUT]
    titled = [("Linear and neuron", entry) for entry in data["network"]]
    for title, entry in [*titled, ("The neuron alone", data["neuron"])]:
        text = comparison(entry["compared"], differing=entry["differing"])
        parts += [f"### {title}, {entry['shape']}", text]
    copied = data["copying"]
    about = "What any kernel must move: forward one array in and one out, backward two in, one out."
    parts += [f"### The neuron against moving its bytes, {copied['shape']}", about]
    return "\n\n".join([*parts, comparison(copied["compared"])])
