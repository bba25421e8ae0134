"""Triton kernels: compiled, and started on the current stream.

Triton reads a function's source again through ``linecache``, so nothing is written; what it
compiles, it keeps in its own cache (``$TRITON_CACHE_DIR``). With ``TRITON_INTERPRET=1`` in the
environment before Triton is imported, kernels run in Triton's interpreter, on the CPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from tracetorch.engine import triton, triton_scan
from tracetorch.engine.aside import RESETS
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.launch import BuildError, Launch
from tracetorch.engine.scan_kernel import ScanKernel

# (lanes of a program, its warps): a lane per thread while that fills the GPU; unmeasured
_NARROW, _WIDE = (64, 2), (256, 4)
# programs of the wide kind that a multiprocessor should have before they are made so
_WIDE_PER_MULTIPROCESSOR = 4
# of a scan's tiles: states at most, states for each warp, warps at most, and how many tiles a
# multiprocessor should have before they are made so large; unmeasured
_WIDEST_TILE, _TILE_PER_WARP, _MOST_WARPS, _TILES_PER_MULTIPROCESSOR = 1024, 128, 8, 2


def interpreted() -> bool:
    """Whether Triton interprets kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def interpreted_devices() -> tuple[str, ...]:
    """Where kernels run that Triton interprets."""
    return ("cpu",) if interpreted() else ()


def missing() -> str | None:
    """Why no Triton kernel can run here; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    return None


def launcher(kernel: Kernel) -> Launch:
    """What runs a kernel: given its tensors in order (None for null) and its sizes.

    Raises:
        BuildError: Triton cannot compile it here.
    """
    function = function_of(kernel)
    rows = len(triton.scratch(kernel))
    if not interpreted():
        # the usual case: many lanes in aligned rows, no sample that restarts
        labels = [*kernel.pointers, *triton.scratch(kernel)]
        types = [None if label == RESETS else kernel.type_of(label) for label in labels]
        block, warps = _sized(kernel, wide=False)
        sizes = [16] * kernel.sizes
        _compile(function, types, sizes, warps, BLOCK=block)

    at = {name: index for index, name in enumerate(kernel.pointers)}
    strides = {f"grad {name}": 4 + index for index, name in enumerate(kernel.traced.parameters)}
    summed = kernel.summed if kernel.backward else ()
    sums = [(at[name], at[f"lanes {name}"], strides[name]) for name in summed]

    def launch(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
        steps, lanes = sizes[:2]
        x = tensors[0]
        if x is None or lanes == 0:
            for whole, _, _ in sums:
                cast(Tensor, tensors[whole]).zero_()
            return
        past = x.new_empty((rows, min(steps, kernel.period), lanes), dtype=kernel.real)
        block, warps = _shape(kernel, lanes, x.device)
        _start(function, -(-lanes // block), (*tensors, *past), sizes, warps, BLOCK=block)
        for whole, part, stride in sums:
            _sum(tensors[whole], tensors[part], sizes, stride)

    return launch


def _sum(whole: Tensor | None, lanes: Tensor | None, sizes: Sequence[int], stride: int) -> None:
    """A parameter's gradient from that of each lane."""
    if whole is not None and lanes is not None:
        neurons, inner = sizes[2:4]
        rows = lanes.reshape(-1, neurons, inner)
        whole.copy_(rows.sum((0, 2)) if sizes[stride] else rows.sum())


def scan_launcher(kernel: ScanKernel) -> Launch:
    """The same for a scan; sizes: T, B, D, N, and channels of a block, a power of two.

    Raises:
        BuildError: Triton cannot compile it here.
    """
    function = function_of(kernel)
    scratch = triton_scan.scratch(kernel)
    if not interpreted():
        # the usual case: 16 states, many channels, no sample that restarts
        labels = [*kernel.pointers, *scratch]
        types = [None if label == RESETS else kernel.type_of(label) for label in labels]
        _compile(function, types, [16] * 4, 4, BLOCK_D=32, BLOCK_N=16)

    def launch(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
        *sizes, width = sizes
        _, samples, channels, states = sizes
        first = tensors[0]
        if first is None or samples * channels * states == 0:
            return
        block = _power_of_two(states)
        programs = samples * -(-channels // width)
        past = [first.new_empty(programs * kernel.period * width * block) for _ in scratch]
        warps = min(max(width * block // _TILE_PER_WARP, 1), _MOST_WARPS)
        blocks = {"BLOCK_D": width, "BLOCK_N": block}
        _start(function, programs, (*tensors, *past), sizes, warps, **blocks)

    return launch


def scan_width(device: torch.device, samples: int, channels: int, states: int) -> int:
    """Channels of a scan's block: many, unless there are then too few blocks to fill a GPU."""
    block = _power_of_two(states)
    width = min(max(_WIDEST_TILE // block, 1), _power_of_two(channels))
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        while (
            samples * -(-channels // width) < _TILES_PER_MULTIPROCESSOR * processors
            and width * block > _TILE_PER_WARP
            and width > 1
        ):
            width //= 2
    return width


def _power_of_two(size: int) -> int:
    """The next one from a size."""
    return 1 << max(size - 1, 0).bit_length()


# comparisons and rounding stay as eager has them: no fused multiply-add
_EAGER_ROUNDING = {"enable_fp_fusion": False}


def _start(
    function: Any,
    programs: int,
    tensors: Sequence[Tensor | None],
    sizes: Sequence[int],
    warps: int,
    **blocks: int,
) -> None:
    device = next(tensor.device for tensor in tensors if tensor is not None)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        function[(programs,)](*tensors, *sizes, **blocks, num_warps=warps, **_EAGER_ROUNDING)


def function_of(kernel: Kernel | ScanKernel) -> Any:
    """The kernel as a function that ``triton.jit`` made."""
    renderer: Any = triton_scan if isinstance(kernel, ScanKernel) else triton
    source = renderer.render(kernel)
    file = f"<tracetorch {hashlib.sha256(source.encode()).hexdigest()[:24]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "tracetorch.engine.generated"}
    exec(compile(source, file, "exec"), namespace)  # noqa: S102 - rendered from the table above
    return namespace[renderer.name_of(kernel)]


def _compile(
    function: Any,
    types: Sequence[torch.dtype | None],
    sizes: Sequence[int],
    warps: int,
    **blocks: int,
) -> None:
    """Compile for the usual case, so that what fails fails early."""
    try:
        function.warmup(*types, *sizes, grid=(1,), **blocks, num_warps=warps, **_EAGER_ROUNDING)
    except Exception as error:  # of Triton's front end, LLVM, the assembler or the C compiler
        raise BuildError(f"Triton refused a kernel: {type(error).__name__}: {error}") from error


def _shape(kernel: Kernel, lanes: int, device: torch.device) -> tuple[int, int]:
    """Lanes of a program and its warps, so that the device is filled before programs grow."""
    if device.type != "cuda":
        return _sized(kernel, wide=False)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return _sized(kernel, lanes >= _WIDE[0] * _WIDE_PER_MULTIPROCESSOR * processors)


def _sized(kernel: Kernel, wide: bool) -> tuple[int, int]:
    block, warps = _WIDE if wide else _NARROW
    # what a thread copies ahead of time is at least four bytes long
    return block, warps // 2 if kernel.stored.itemsize == 2 else warps
