"""Peak memory of a process, from Linux's ``/proc``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.harness import training

PROCESS = Path("/proc/self")


def peak_added(step: Callable[[], object]) -> int:
    """Bytes by which a call's peak of resident memory exceeds what was resident before it.

    Where the kernel refuses to reset the peak, what came before counts too.
    """
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in (PROCESS / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROCESS / 'status'} has no {field}")


def peak_of_training(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    cotangent: Tensor,
    leaves: Sequence[Tensor],
    reset: Callable[[], Any],
) -> int:
    """Bytes that a training step adds; code and threads are there from one on two timesteps."""
    training(lambda: run(x[:2]), cotangent[:2], leaves, reset)()
    for leaf in leaves:
        leaf.grad = None
    return peak_added(training(lambda: run(x), cotangent, leaves, reset))
