"""The one registry of target languages: a row says how kernels are made of a graph, and where.

Another language is a file that renders and launches, with its texts of the operations (a column of
:mod:`tracetorch.engine.ops` if it ships with the library), and its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from tracetorch.choice import AUTO, chosen
from tracetorch.engine import cpp, cpp_scan, native, triton, triton_launch, triton_scan
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.launch import Launch
from tracetorch.engine.scan_kernel import ScanKernel
from tracetorch.reasons import Refused, Unfused


@dataclass(frozen=True)
class Target:
    """One target language.

    Attributes:
        name: by which it is chosen as a backend.
        devices: types of devices that it serves, the first of the registry each.
        render: a kernel's source.
        render_scan: a scan's.
        launcher: what runs a kernel; BuildError where it cannot be made here.
        scan_launcher: the same for a scan.
        scan_width: channels of a scan's block, for a device and B, D, N.
        missing: why it is not there; None where it is.
        also: further types of devices that it serves where it is asked for by name.
        together: kernels may be made in several threads at once.
        in_place: a gradient of ``x`` may be written where ``x`` is; each timestep is read before.
    """

    name: str
    devices: tuple[str, ...]
    render: Callable[[Kernel], str]
    render_scan: Callable[[ScanKernel], str]
    launcher: Callable[[Kernel], Launch]
    scan_launcher: Callable[[ScanKernel], Launch]
    scan_width: Callable[[torch.device, int, int, int], int]
    missing: Callable[[], str | None]
    also: Callable[[], tuple[str, ...]] = tuple
    together: bool = True
    in_place: bool = False
    _made: dict[Any, Launch] = field(default_factory=dict, compare=False, repr=False)

    def launch(self, kernel: Kernel | ScanKernel) -> Launch:
        """What runs a kernel, made once.

        Raises:
            BuildError: it cannot be made here.
        """
        found = self._made.get(kernel)
        if found is None:
            scan = isinstance(kernel, ScanKernel)
            make: Any = self.scan_launcher if scan else self.launcher
            found = self._made[kernel] = make(kernel)
        return found

    def prepare(self, kernels: Sequence[Kernel | ScanKernel]) -> None:
        """Make the launches of these, at once where that may be.

        Raises:
            BuildError: one of them cannot be made here.
        """
        wanted = [kernel for kernel in kernels if kernel not in self._made]
        if len(wanted) < 2 or not self.together:
            for kernel in wanted:
                self.launch(kernel)
            return
        with ThreadPoolExecutor(len(wanted)) as pool:
            list(pool.map(self.launch, wanted))


_ROWS = (
    Target(
        "cpp", ("cpu",), cpp.render, cpp_scan.render, native.launcher, native.scan_launcher,
        native.scan_width, native.missing, in_place=True,
    ),
    Target(
        "triton", ("cuda",), triton.render, triton_scan.render, triton_launch.launcher,
        triton_launch.scan_launcher, triton_launch.scan_width, triton_launch.missing,
        # compiles for the thread's current device; its interpreter runs on the CPU
        also=triton_launch.interpreted_devices, together=False,
    ),
)  # fmt: skip

TARGETS = {row.name: row for row in _ROWS}


def serving(device: str) -> Target:
    """The target for tensors on a type of device, of the chosen kind.

    Raises:
        Refused: there is none; the reason says why.
    """
    name = chosen()
    if name == AUTO:
        target = _first(device)
    else:
        target = TARGETS.get(name)
        if target is not None and device not in (*target.devices, *target.also()):
            target = None
    if target is None:
        raise Refused(Unfused.TARGET, "" if name == AUTO else f"{name} ", device)
    if why := target.missing():
        raise Refused(Unfused.ABSENT, why)
    return target


def _first(device: str) -> Target | None:
    return next((row for row in TARGETS.values() if device in row.devices), None)
