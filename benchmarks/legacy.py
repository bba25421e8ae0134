"""tracetorch 0.16.4 beside this version: a process with an environment of its own.

Both are imported as ``tracetorch``, so the old one runs in a worker that is asked for one
repetition at a time; between them it sleeps. Run as a program this module is that worker.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness, resident, workload

VERSION = "0.16.4"
NAME = f"tracetorch {VERSION}"
NOTE = "its own process; LIB(quant_fn=round_ste()), a loop; N decays and N thresholds learned"
ROOT = Path(__file__).parents[1]


class Unavailable(RuntimeError):
    """The worker could not be started or has ended; the message says why."""


class Worker:
    """The process with the old version; :func:`started` makes and ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> Any:
        """One request, one answer.

        Raises:
            Unavailable: the process has ended; what it said is on standard error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Unavailable(f"its process has ended: {error}") from error
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable(f"its process ended when asked to {request['do']}")
        return json.loads(answer)


def command() -> list[str]:
    """How to start it: uv makes the environment, with this process's version of torch.

    Raises:
        Unavailable: there is no uv.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise Unavailable("uv, which makes its environment, is not on PATH")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    torch_version = torch.__version__.split("+")[0]
    given = [f"--with=tracetorch=={VERSION}", f"--with=torch=={torch_version}"]
    options = ["--quiet", "--isolated", "--no-project", f"--python={python}"]
    return [uv, "run", *options, *given, "python", "-m", "benchmarks.legacy"]


@contextmanager
def started() -> Iterator[Worker]:
    """The worker, ended afterwards.

    Raises:
        Unavailable: it cannot be started; the reason.
    """
    process = subprocess.Popen(
        command(), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = Worker(process)
    try:
        worker.ask(do="nothing")
        yield worker
    finally:
        process.terminate()
        process.wait()


# ------------------------------------------------------------------ within the worker


class Case(NamedTuple):
    """What is measured there."""

    run: Callable[[Tensor], Tensor]
    x: Tensor
    cotangent: Tensor
    leaves: list[Tensor]
    reset: Callable[[], Any]


def case(shape: workload.Shape, with_linear: bool) -> Case:
    """The old ``LIB`` alone, or behind a linear layer."""
    from tracetorch import functional, snn  # the old version

    layer: Any = snn.LIB(
        shape.neurons,
        workload.BETA,
        workload.THRESHOLD,
        quant_fn=functional.round_ste(),  # type: ignore[attr-defined]
    )
    first = workload.linear(shape.neurons) if with_linear else torch.nn.Identity()
    x = workload.network_input(shape) if with_linear else workload.neuron_input(shape)
    x.requires_grad_(not with_linear)

    def run(x: Tensor) -> Tensor:
        return torch.stack([layer(timestep) for timestep in first(x).unbind(0)])

    leaves = [x, *first.parameters(), *layer.parameters()]
    return Case(run, x, workload.cotangent(shape), leaves, lambda: _forget(layer))


def _forget(layer: Any) -> None:
    layer.mem = None


def serve() -> None:
    """Answer requests, one a line, until the input ends."""
    # standard output is for the answers alone
    answers, sys.stdout = sys.stdout, sys.stderr
    standing: Case | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "case":
            standing = case(workload.Shape(*request["shape"]), request["linear"])
        answers.write(json.dumps(_answer(request, standing)) + "\n")
        answers.flush()


def _answer(request: dict[str, Any], standing: Case | None) -> Any:
    if standing is None:
        return None
    run, x, cotangent, leaves, reset = standing
    if request["do"] == "spikes":
        reset()
        with torch.no_grad():
            torch.save(run(x), request["file"])
    if request["do"] == "time":
        with harness.undisturbed():
            return harness.training(lambda: run(x), cotangent, leaves, reset)()
    if request["do"] == "memory":
        return resident.peak_of_training(*standing)
    return None


if __name__ == "__main__":
    serve()
