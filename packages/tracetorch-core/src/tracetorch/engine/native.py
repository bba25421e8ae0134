"""C++ kernels: rendered, compiled through the cache on disk, and started."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.engine import build, cpp, cpp_scan
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.launch import Launch
from tracetorch.engine.scan_kernel import ScanKernel


def missing() -> str | None:
    """Why no C++ kernel can be made here; None where they can."""
    if build.compiler():
        return None
    return f"no C++ compiler: none of {', '.join(build.COMPILERS)} is on PATH"


def launcher(kernel: Kernel) -> Launch:
    """What runs a kernel.

    Raises:
        BuildError: it cannot be compiled or loaded here.
    """
    return _launch(cpp.render(kernel), len(kernel.pointers), kernel.sizes)


def scan_launcher(kernel: ScanKernel) -> Launch:
    """The same for a scan."""
    return _launch(cpp_scan.render(kernel), len(kernel.pointers), 5)


def scan_width(device: torch.device, samples: int, channels: int, states: int) -> int:
    """Channels of a scan's block: as it was rendered for."""
    del device, samples, channels, states
    return ScanKernel.width


def _launch(source: str, pointers: int, sizes: int) -> Launch:
    """A source that takes so many pointers and sizes."""
    run = build.entry_point(source)
    pack, pack_sizes = struct.Struct(f"{pointers}P").pack, struct.Struct(f"{sizes}q").pack

    def launch(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        run(pack(*pointers), pack_sizes(*sizes), torch.get_num_threads())

    return launch
