"""What `import` costs, and the first call of a new layer, cold and from the cache.

Run as a program with the name of a layer: the fresh process in which its first call is timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import snn

from benchmarks.effort import Context
from benchmarks.harness import Data, spread
from benchmarks.legacy import ROOT
from benchmarks.tables import table
from benchmarks.workload import Shape, network_input

TITLE = "Import and first call"
ABOUT = """\
Fresh processes. `import tracetorch` is what it takes after `import torch`. The first call is
`unroll` forward and backward of a layer new to the process: cold with an empty kernel cache (the
compiler runs), warm with a filled one; the second call is there to compare."""

# torch is imported first in both, so that disk caches and torch's own spread cancel
IMPORT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import tracetorch
print(middle - start, time.perf_counter() - middle)
"""


class Refractory(tt.Layer):
    """A layer of a user's own: after a spike the neuron is silent for some timesteps."""

    def __init__(self, num_neurons: int, beta: float = 0.9, pause: float = 3.0) -> None:
        super().__init__(num_neurons)
        self.pause = pause
        self.add_state("mem", "rest")
        self.add_parameter("beta", beta, constraint=tt.constraints.sigmoid)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """Leak, fire where not at rest, rest."""
        mem = p.beta * states.mem + x
        u = torch.where(states.rest > 0, torch.zeros_like(mem), torch.sigmoid(4 * (mem - 1)))
        rest = torch.where(u > 0.5, torch.full_like(mem, self.pause), states.rest - 1)
        return {"mem": mem * (1 - u), "rest": rest}, u


LAYERS: dict[str, type[tt.Layer]] = {
    "LIB": snn.LIB,
    "DSRLITS": snn.DSRLITS,
    "a user's own": Refractory,
}


def measure(context: Context) -> Data:
    """Imports, then each layer cold and warm."""
    return {
        "import": imports(3 * context.effort.processes),
        "first": {name: first_calls(name, context.effort.processes) for name in LAYERS},
    }


def imports(count: int) -> Data:
    """Seconds of both imports, after one process to warm the disk cache."""
    command = [sys.executable, "-c", IMPORT]
    rows = [
        [float(word) for word in subprocess.check_output(command, text=True).split()]
        for _ in range(count + 1)
    ][1:]
    torch_seconds, own_seconds = zip(*rows, strict=True)
    return {"torch": spread(torch_seconds), "tracetorch": spread(own_seconds)}


def first_calls(name: str, count: int) -> Data:
    """Cold: a new cache folder for each process; warm: the last of these again."""
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as folder:
        for at in range(count):
            cold.append(_fresh(name, os.path.join(folder, str(at))))
        for _ in range(count):
            warm.append(_fresh(name, os.path.join(folder, str(count - 1))))
    return {
        "cold": spread([seconds[0] for seconds in cold]),
        "warm": spread([seconds[0] for seconds in warm]),
        "second": spread([seconds[1] for seconds in warm]),
    }


def _fresh(name: str, cache: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.startup", name]
    environment = {**os.environ, "TRACETORCH_CACHE_DIR": cache}
    done = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    seconds: list[float] = json.loads(done.splitlines()[-1])
    return seconds


def here(name: str) -> list[float]:
    """Seconds of the first two calls in this process, which must have done nothing before."""
    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(x.mul(2).sum(), x)  # torch's own first use
    x = network_input(Shape(50)).requires_grad_()
    layer, seconds = LAYERS[name](x.shape[-1]), []
    for _ in range(2):
        layer.zero_states()
        start = time.perf_counter()
        torch.autograd.backward(layer.unroll(x).sum())
        seconds.append(time.perf_counter() - start)
    return seconds


def worst(data: Data, kind: str) -> float:
    """The largest median over the layers, in seconds."""
    return max(float(entry[kind]["median"]) for entry in data["first"].values())


def render(data: Data) -> str:
    """The tables, in seconds."""
    imported = [[f"`import {name}`", _seconds(s)] for name, s in data["import"].items()]
    called = [
        [name, *(_seconds(entry[kind]) for kind in ("cold", "warm", "second"))]
        for name, entry in data["first"].items()
    ]
    header = ["layer", "first, cold, s", "first, from the cache, s", "second, s"]
    return "\n\n".join([ABOUT, table(["", "s"], imported), table(header, called)])


def _seconds(values: Data) -> str:
    return f"{values['median']:.3f} ({values['low']:.3f}–{values['high']:.3f})"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(here(sys.argv[1])) + "\n")
