"""Training throughput of the MNIST examples, unrolled, eager and stepped.

Takes networks and encodings from ``examples/mnist``; digits are drawn at random, for their values
do not change the time. Run as a program it measures, so that the examples' imports stay there.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import tracetorch as tt
from torch import Tensor

from benchmarks.effort import Context
from benchmarks.harness import OURS, Contender, Data, Rounds, applied, compare, median, training
from benchmarks.legacy import ROOT
from benchmarks.peers import eager
from benchmarks.tables import milliseconds, ratio, table

TITLE = "Training the MNIST examples"
EXAMPLES = ROOT / "examples" / "mnist"
BATCH, TIMESTEPS, KERNEL_SIZE = 64, 8, 28
STEPPED = "stepped"


def measure(context: Context) -> Data:
    """A training step of both networks, or why there is none."""
    if not EXAMPLES.is_dir():
        return {"left out": "this clone has no examples/mnist"}
    rounds = context.effort.brief
    command = [sys.executable, "-m", "benchmarks.mnist", str(rounds.least), str(rounds.most)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"left out": done.stderr.strip().splitlines()[-1]}
    found: Data = json.loads(done.stdout.splitlines()[-1])
    return found


def here(rounds: Rounds) -> Data:
    """Measure in this process."""
    sys.path.insert(0, str(EXAMPLES))
    torch.manual_seed(0)
    images = torch.rand(BATCH, 1, 28, 28)
    rate: Any = importlib.import_module("monotonic")
    rows: Any = importlib.import_module("nonmonotonic")
    cases = {
        f"monotonic.py, T={TIMESTEPS}": (rate.Net(), rate.rate_coded(images, TIMESTEPS)),
        f"nonmonotonic.py, T={784 // KERNEL_SIZE}": (
            rows.Net(KERNEL_SIZE),
            rows.in_reading_order(images, KERNEL_SIZE),
        ),
    }
    return {name: steps(model, x, rounds) for name, (model, x) in cases.items()}


def steps(model: tt.Model, x: Tensor, rounds: Rounds) -> Data:
    """Forward and backward of a batch in three ways; the optimizer's step is the same for all."""
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: model.unroll,
        f"{OURS}, eager": eager(model.unroll),
        STEPPED: lambda x: torch.stack([model(timestep) for timestep in x]),
    }
    with torch.no_grad():
        dy = torch.ones_like(model.unroll(x))
    leaves = list(model.parameters())
    contenders = [
        Contender(name, training(applied(run, x), dy, leaves, model.zero_states))
        for name, run in runs.items()
    ]
    return compare(contenders, rounds)


def render(data: Data) -> str:
    """One row a network and way."""
    if "left out" in data:
        return f"Left out: {data['left out']}."
    rows = [
        [
            name if way == OURS else "",
            way,
            milliseconds(entry["phases"]["total"]),
            f"{BATCH / median(compared, way):.0f}",
            f"{ratio(compared, way):.2f}",
        ]
        for name, compared in data.items()
        for way, entry in compared.items()
    ]
    about = f"Forward and backward of a batch of {BATCH} random images, without the optimizer."
    header = ["example", "", "ms", "images per second", f"time ÷ {OURS}"]
    return f"{about}\n\n{table(header, rows)}"


if __name__ == "__main__":
    _least, _most = map(int, sys.argv[1:])
    sys.stdout.write(json.dumps(here(Rounds(_least, _most, 10.0))) + "\n")
