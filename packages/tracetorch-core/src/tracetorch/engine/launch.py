"""Triton kernels: source → function → launches on the current stream.

Triton reads a function's source again through ``linecache``, so nothing is written; what it
compiles, it keeps in its own cache (``$TRITON_CACHE_DIR``). With ``TRITON_INTERPRET=1`` in the
environment before Triton is imported, kernels run in Triton's interpreter, on the CPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tracetorch.engine import triton
from tracetorch.engine.build import BuildError
from tracetorch.engine.kernel import Kernel

Launch = Callable[[Sequence["Tensor | None"], Sequence[int]], None]

# (lanes of a program, its warps): a lane per thread while that fills the GPU; unmeasured
_NARROW, _WIDE = (64, 2), (256, 4)
# programs of the wide kind that a multiprocessor should have before they are made so
_WIDE_PER_MULTIPROCESSOR = 4


def interpreted() -> bool:
    """Whether Triton interprets kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
        _compile(kernel, function)

    def launch(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
        steps, lanes = sizes[:2]
        x = tensors[0]
        if x is None or lanes == 0:
            return
        past = x.new_empty((rows, min(steps, kernel.period), lanes), dtype=kernel.real)
        block, warps = _shape(kernel, lanes, x.device)
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            function[(-(-lanes // block),)](
                *tensors, *past, *sizes, BLOCK=block, num_warps=warps, **_EAGER_ROUNDING
            )

    return launch


# comparisons and rounding stay as eager has them: no fused multiply-add
_EAGER_ROUNDING = {"enable_fp_fusion": False}


def function_of(kernel: Kernel) -> Any:
    """The kernel as a function that ``triton.jit`` made."""
    source = triton.render(kernel)
    file = f"<tracetorch {hashlib.sha256(source.encode()).hexdigest()[:24]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "tracetorch.engine.generated"}
    exec(compile(source, file, "exec"), namespace)  # noqa: S102 - rendered from the table above
    return namespace[triton.name_of(kernel)]


def _compile(kernel: Kernel, function: Any) -> None:
    """Compile for the usual case, many lanes in aligned rows, so that what fails fails early."""
    types = [kernel.type_of(label) for label in (*kernel.pointers, *triton.scratch(kernel))]
    sizes = [16] * (4 + len(kernel.traced.parameters))
    block, warps = _sized(kernel, wide=False)
    try:
        function.warmup(*types, *sizes, grid=(1,), BLOCK=block, num_warps=warps, **_EAGER_ROUNDING)
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
