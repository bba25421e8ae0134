"""Processes killed while they write: what is found afterwards is the old or the new, whole."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tracetorch as tt
from files import Net
from torch import nn
from tracetorch.engine import build


def _killed(rng: random.Random, seconds: float, work: Callable[[], None]) -> None:
    """Run it in a child, which is killed after up to so long."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the child ended before"


def _filled(model: nn.Module, value: float) -> None:
    """All states and weights that one number, so that a mixture is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    for _, layer in tt.named_layers(model):
        layer.set_states({name: torch.full((400, 3), value) for name in layer.tt.states})


def _values(model: nn.Module, weights: bool) -> set[float]:
    tensors = [*model.get_states().values(), *(model.parameters() if weights else ())]
    return {float(v) for tensor in tensors for v in tensor.detach().unique()}


def _file(rng: random.Random, path: Path, write: Callable[[Net], None],
          read: Callable[[Net], None], weights: bool) -> None:  # fmt: skip
    model = Net()
    _filled(model, 0.0)
    write(model)

    def work() -> None:
        number = 0
        while True:
            number += 1
            _filled(model, float(number))
            write(model)

    _killed(rng, 0.05, work)
    fresh = Net()
    read(fresh)
    found = _values(fresh, weights)
    assert len(found) == 1, f"{path.name} holds parts of {sorted(found)}"
    write(fresh)  # and removes what a killed one left
    read(fresh)
    assert not any(left.stat().st_size for left in path.parent.glob(".*.tmp"))


def _cache(rng: random.Random, folder: Path, number: int) -> None:
    """The cache after a kill: every entry is whole or is not loaded, and the kernel is made."""
    source = f'extern "C" int answer() {{ return {number}; }}'
    os.environ["TRACETORCH_CACHE_DIR"] = str(folder)
    build._loaded.clear()
    _killed_or_done(rng, lambda: build.library(source))
    build._loaded.clear()
    assert build.library(source).answer() == number
    for entry in folder.glob("*.so"):
        assert entry.name.startswith(".") or build._sealed(entry), f"{entry} is broken"


def _killed_or_done(rng: random.Random, work: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run(seed: int, count: int) -> str:
    """So many kills of each kind; AssertionError is a finding."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = {
            "states.safetensors": (Net.save_states, Net.load_states, False),
            "states.pt": (Net.save_states, Net.load_states, False),
            "run.ckpt": (
                lambda model, path: tt.save_checkpoint(path, model),
                lambda model, path: tt.load_checkpoint(path, model),
                True,
            ),
        }
        for file, (write, read, weights) in kinds.items():
            path = folder / file
            for number in range(count):
                _file(
                    random.Random(f"{seed} {file} {number}"), path,
                    lambda model, write=write, path=path: write(model, path),
                    lambda model, read=read, path=path: read(model, path),
                    weights,
                )  # fmt: skip
        before = os.environ.get("TRACETORCH_CACHE_DIR")
        kernels = folder / "kernels"
        for number in range(count):
            _cache(random.Random(f"{seed} cache {number}"), kernels, 1000 * seed + number)
        os.environ.pop("TRACETORCH_CACHE_DIR")
        if before is not None:
            os.environ["TRACETORCH_CACHE_DIR"] = before
        left = len([*folder.glob(".*.tmp")]), len([*kernels.glob(".*")])
    return f"{count} kills each of {', '.join(kinds)} and of the cache; left beside: {left}"
