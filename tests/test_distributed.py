"""Two processes, replicated and sharded, train as one does; a run in them can be gone on with."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORKER = Path(__file__).parent / "workers" / "steps.py"
worker = runpy.run_path(str(WORKER))


def in_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each of them has saved."""
    outs = [folder / f"found-{rank}.pt" for rank in range(2)]
    rendezvous = (folder / "rendezvous").as_uri()
    started = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), "2", rendezvous, out],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank, out in enumerate(outs)
    ]
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [torch.load(out) for out in outs]


def in_one_process(name: str) -> Any:
    """What comes of stepping through all of each batch."""
    sequence = worker["Sequence"](worker["model_of"](name))
    return worker["trained"](sequence, worker["adam"](sequence), worker["batches"]())


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=f"{what}: {name}")


def test_two_processes_train_as_one(
    tmp_path: Path, equal: Callable[[object, object], bool]
) -> None:
    """Losses, gradients of every step and weights; states, generators and all after a stop."""
    found = in_two_processes(tmp_path)
    ones = {kind: in_one_process(kind) for kind in ("ddp", "fsdp2")}
    for rank, process in enumerate(found):
        for name, case in process["trained"].items():
            one, what = ones[name.split()[0]], f"{name}, process {rank}"
            torch.testing.assert_close(case["losses"], one.losses, rtol=1e-10, atol=0, msg=what)
            assert_close(case["weights"], one.weights, what)
            for got, expected in zip(case["gradients"], one.gradients, strict=True):
                assert_close(got, expected, what)
        for name, why in process["stepped because"].items():
            expected = "many processes" if "decided" in name else "None"
            assert expected in why or "stepped" in name, f"{name}: {why}"
        for name, (whole, stopped) in process["resumed"].items():
            assert equal(stopped, whole), f"{name}, process {rank}"
    # each has the states of its own samples
    states = [process["resumed"]["ddp unrolled"][0]["states"] for process in found]
    assert not torch.equal(*(of["net.1.pos_mem"] for of in states))
