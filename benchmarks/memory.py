"""Peak memory of a training step, each in a fresh process. Run as a program: that process."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
from importlib.util import find_spec

import torch
import tracetorch as tt
from torch import nn
from tracetorch import snn

from benchmarks import legacy
from benchmarks.effort import Context
from benchmarks.harness import OURS, Data, increments
from benchmarks.onm import case
from benchmarks.peers import CHUNKED, EVERYONE, OWN
from benchmarks.recurrent import SSM_SHAPE, mambapy, ssm
from benchmarks.resident import peak_of_training
from benchmarks.tables import megabytes, table
from benchmarks.workload import BETA, Shape, cotangent, linear, network_input

DEEP = 4  # linear layers and layers of spikes, in turn
FIRING = 0.3  # their threshold: most layers' inputs are weak
PACKED = "pack_spikes=True"

TITLE = "Peak memory of a training step"
ABOUT = """\
What one step (forward, backward, gradients) adds to the resident memory of a fresh process, its
input and the gradient of its output not counted. The Open Neuromorphic workload, linear layer
included. Median and range over the processes: how the C library's allocator fits many small
tensors differs from process to process, by a factor of two for loops."""


def measure(context: Context) -> Data:
    """Every library on the goals' shape, ours for each T, and the scan."""
    effort = context.effort
    shape = Shape(effort.timesteps, neurons=effort.goal)
    scan = SSM_SHAPE._replace(timesteps=effort.scan)
    keys = [*OWN, *CHUNKED, "plain", *context.peers]
    peaks = {key: peak(key, shape, effort.processes) for key in keys}
    if context.worker is not None:
        peaks["legacy"] = old_version(shape, effort.processes)
    scans = ["ssm", *["mambapy"] * (find_spec("mambapy") is not None)]
    return {
        "shape": str(shape),
        "peaks": peaks,
        "deep": {key: peak(key, shape, effort.processes) for key in ("deep", "deep_packed")},
        "lengths": list(effort.lengths),
        "of lengths": [peak("ours", shape._replace(timesteps=t), 1) for t in effort.lengths],
        "scan shape": str(scan),
        "scan": {key: peak(key, scan, effort.processes) for key in scans},
    }


def peak(key: str, shape: Shape, processes: int) -> Data:
    """Name and bytes of a contender, measured in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.memory", key, *map(str, shape)]
    answers = [
        json.loads(subprocess.check_output(command, cwd=legacy.ROOT, text=True).splitlines()[-1])
        for _ in range(processes)
    ]
    return {**answers[0], **_summary([answer["bytes"] for answer in answers])}


def old_version(shape: Shape, processes: int) -> Data:
    """The same of tracetorch 0.16.4."""
    found = []
    for _ in range(processes):
        with legacy.started() as worker:
            worker.ask(do="case", shape=list(shape), linear=True)
            found.append(worker.ask(do="memory"))
    return {"name": legacy.NAME, "peer": True, **_summary(found)}


def _summary(found: list[int]) -> Data:
    return {"bytes": statistics.median(found), "low": min(found), "high": max(found)}


# ------------------------------------------------------------------ within the process


def here(key: str, shape: Shape) -> Data:
    """Measure in this process, which must have done nothing before."""
    if key in ("ssm", "mambapy"):
        return _scan(key, shape)
    if key in ("deep", "deep_packed"):
        return _deep(shape, packed=key == "deep_packed")
    neuron = EVERYONE[key](shape)
    c = case(neuron, shape, with_linear=True)
    added = peak_of_training(c.run, c.x, cotangent(shape), c.leaves, neuron.reset)
    return {"name": neuron.name, "peer": neuron.peer, "bytes": added}


class Deep(tt.Model):
    """Several linear layers, spikes behind each: one timestep."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        parts = [
            part for _ in range(DEEP) for part in (linear(neurons), snn.LIB(neurons, BETA, FIRING))
        ]
        self.net = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes ``[B, N]`` of one timestep ``[B, N]``."""
        y: torch.Tensor = self.net(x)
        return y


def _deep(shape: Shape, *, packed: bool) -> Data:
    model = Deep(shape.neurons)
    run = functools.partial(model.unroll, pack_spikes=packed)
    leaves = list(model.parameters())
    x = network_input(shape)
    added = peak_of_training(run, x, cotangent(shape), leaves, model.zero_states)
    name = f"{OURS}, {PACKED}" if packed else OURS
    return {"name": name, "peer": False, "bytes": added}


def _scan(key: str, shape: Shape) -> Data:
    layer = ssm(shape)
    run, parameters = (
        (layer.unroll, list(layer.parameters())) if key == "ssm" else mambapy(layer, shape)
    )
    x = torch.randn(shape).requires_grad_()
    dy = cotangent(shape._replace(neurons=layer.out_features))
    added = peak_of_training(run, x, dy, [x, *parameters], layer.zero_states)
    name = "SelectiveSSM" if key == "ssm" else "mambapy, parallel scan"
    return {"name": name, "peer": key != "ssm", "bytes": added}


# ------------------------------------------------------------------ tables


def leanest_peer(data: Data) -> Data | None:
    """The other library that takes the least; None where none was measured."""
    peers = [entry for entry in data["peaks"].values() if entry["peer"]]
    return min(peers, key=lambda entry: entry["bytes"], default=None)


def render(data: Data) -> str:
    """The tables."""
    lengths, added = data["lengths"], [entry["bytes"] for entry in data["of lengths"]]
    per_step = ["–", *(f"{1e-3 * value:.0f}" for value in increments(lengths, added))]
    rows = zip(lengths, map(megabytes, added), per_step, strict=True)
    return "\n\n".join(
        [
            ABOUT,
            f"### {data['shape']}",
            _peaks(data["peaks"]),
            f"### {DEEP} linear layers and LIB in turn, {data['shape']}",
            _peaks(data["deep"]),
            "### traceTorch by length",
            table(["T", "MB", "kB per added timestep"], rows),
            f"### The selective scan, {data['scan shape']}",
            _peaks(data["scan"]),
        ]
    )


def _peaks(peaks: Data) -> str:
    entries = sorted(peaks.values(), key=lambda entry: entry["bytes"])
    own = next(iter(peaks.values()))["bytes"]
    rows = [
        [
            entry["name"],
            f"{megabytes(entry['bytes'])} ({megabytes(entry['low'])}–{megabytes(entry['high'])})",
            f"{entry['bytes'] / own:.2f}",
        ]
        for entry in entries
    ]
    return table(["", "MB", "÷ ours"], rows)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(here(sys.argv[1], Shape(*map(int, sys.argv[2:])))) + "\n")
