"""Triton kernels: conformance in processes of their own, compilation for a GPU, the choice."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import backends, testing
from tracetorch.calls import subject_of
from tracetorch.choice import choosing
from tracetorch.engine import ops, targets, triton, triton_scan
from tracetorch.engine import triton_launch as launch
from tracetorch.engine.aside import RESETS
from tracetorch.engine.graph import ordered
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.program import Program
from tracetorch.engine.scan import Scan
from tracetorch.engine.scan_kernel import ScanKernel
from tracetorch.engine.targets import TARGETS
from tracetorch.engine.trace import scene_of, trace
from tracetorch.reasons import Refused

here = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=here,
        env={**os.environ, **environment},
    )  # fmt: skip


def conforms(*tests: str, at_least: int, **environment: str) -> None:
    # what the interpreter of Triton 3.2 does is deprecated in NumPy, until it is refused
    quiet = ("-W", "ignore:Conversion of an array:DeprecationWarning")
    options = ("-m", "pytest", "-q", *quiet, *tests)
    done = run(*options, TRACETORCH_TEST_BACKEND="triton", PYTEST_ADDOPTS="", **environment)
    if re.search("does not run on this NumPy|only 0-dimensional arrays", done.stdout):
        pytest.skip("this Triton's interpreter does not run on this NumPy")
    if "InterpreterBuilder' object has no attribute" in done.stdout:
        pytest.skip("this Triton's interpreter lacks what sums over blocks need")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= at_least
    assert "skipped" not in done.stdout


SCANS = ("test_scan.py", "-k", "are_steps or derivatives or alone or kept")


@pytest.mark.long
@needs_triton
def test_interpreted_kernels_conform() -> None:
    conforms(
        "triton_conformance.py", at_least=100, TRITON_INTERPRET="1", TRACETORCH_TEST_DEVICE="cpu"
    )


@pytest.mark.long
@needs_triton
def test_interpreted_scans_conform() -> None:
    conforms(*SCANS, at_least=10, TRITON_INTERPRET="1", TRACETORCH_TEST_DEVICE="cpu")


@needs_triton
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_on_a_gpu_conform() -> None:
    conforms(
        "triton_conformance.py", at_least=100, TRITON_INTERPRET="0", TRACETORCH_TEST_DEVICE="cuda"
    )
    conforms("test_scan.py", at_least=20, TRITON_INTERPRET="0", TRACETORCH_TEST_DEVICE="cuda")


@needs_triton
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_wide_programs_on_a_gpu_compute_the_same() -> None:
    x = torch.randn(40, 64, 8192, device="cuda")
    layer = testing.AdaptiveLIF(8192).cuda()
    assert launch._shape(kernel_of(layer, backward=False), x[0].numel(), x.device) == (256, 4)
    found = {}
    for backend in ("triton", "eager"):
        layer.zero_states()
        inputs = x.clone().requires_grad_()
        with tt.backends.use(backend):
            y = layer.unroll(inputs)
        found[backend] = (y, *torch.autograd.grad(y.sum(), [inputs, *layer.parameters()]))
    assert torch.equal(found["triton"][0], found["eager"][0])
    torch.testing.assert_close(found["triton"][1:], found["eager"][1:], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ source and compilation


class H100:
    multi_processor_count = 132


def kernel_of(
    layer: tt.Layer,
    backward: bool,
    real: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
) -> Kernel:
    traced = trace(subject := subject_of(layer.to(real)), scene_of(subject), real, 2)
    program = Program(traced, real, stored or real, layer.num_neurons, -1, "triton")
    return program.kernel(program.gradients, backward)


@pytest.mark.parametrize("backward", [False, True])
def test_generated_source_keeps_the_names(backward: bool) -> None:
    source = triton.render(kernel_of(testing.AdaptiveLIF(5), backward))
    read = re.findall(r"^ +(\w+)_ = tl\.load\((\w+)_ptr", source, re.MULTILINE)
    past = [f"past_{name}" for name in ("mem", "raised")] if backward else []
    assert {value for value, _ in read} == {"mem", "raised", "beta", "rho", "jump", "x"}
    assert {pointer for _, pointer in read} >= {"beta", "rho", "jump", "x", *past}


@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_shows_its_source_for_either_backend(backward: bool) -> None:
    layer = testing.AdaptiveLIF(5)
    source = layer.kernel_source(backward=backward, backend="triton")
    assert source == triton.render(kernel_of(layer, backward))
    assert 'extern "C" void run' in layer.kernel_source(backward=backward)
    with pytest.raises(ValueError, match=r"one of \['cpp', 'triton'\], got 'eager'"):
        layer.kernel_source(backend="eager")


class Everything(tt.Layer):
    """Every row of the table, on the input, in one step, and a random number."""

    def __init__(self) -> None:
        super().__init__(3)
        self.add_state("s")
        self.uniform = tt.Random()

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        parts = [function(x + k) for k, function in enumerate(by_row.UNARY.values())]
        parts += [function(x, states.s + k) for k, function in enumerate(by_row.BINARY.values())]
        total = sum(parts, self.uniform(x))
        return {"s": total * 0.5}, total


def _by_row() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels_by_row", here / "test_kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_row: Any = _by_row()


def test_everything_is_every_row() -> None:
    traced = trace(
        subject := subject_of(Everything().double()), scene_of(subject), torch.float64, 2
    )
    nodes = ordered([*traced.forward.values(), *traced.backward.values()])
    assert {node.op for node in nodes} - {"input", "const", "random"} == set(ops.TABLE)


SHORT = {
    "float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16", "int64": "i64",
    "uint8": "u8",
}  # fmt: skip


def compiled(kernel: Kernel | ScanKernel, *absent: str) -> Any:
    """A kernel compiled for an H100, which need not be there; ``absent`` pointers are null."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, names = launch.function_of(kernel), launch.function_of(kernel).arg_names
    if isinstance(kernel, ScanKernel):
        labels = [*kernel.pointers, *triton_scan.scratch(kernel)]
        blocks = {"BLOCK_D": 32, "BLOCK_N": 16}
    else:
        labels = [*kernel.pointers, *triton.scratch(kernel)]
        blocks = {"BLOCK": 64}
    kinds = [kernel.type_of(label) for label in labels]
    types = {
        name: "*" + SHORT[str(kind).removeprefix("torch.")]
        for name, label, kind in zip(names, labels, kinds, strict=False) if label not in absent
    }  # fmt: skip
    types |= dict.fromkeys(names[len(labels) : -len(blocks)], "i32")
    constants = {name: None for name in names if name not in types} | blocks
    version = tuple(map(int, compiler.__version__.split(".")[:2]))
    if version >= (3, 3):
        types = {name: types.get(name, "constexpr") for name in names}
    return compiler.compile(
        ASTSource(function, types, constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 2, **launch._EAGER_ROUNDING},
    )


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if launch.interpreted():
        pytest.skip("TRITON_INTERPRET=1: this process interprets")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@needs_triton
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_every_row_compiles_for_a_gpu(real: torch.dtype, backward: bool) -> None:
    assert compiled(kernel_of(Everything(), backward, real)).asm["cubin"]


@needs_triton
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("absent", [(), ("grad y", RESETS), ("grad new mem", "grad new raised")])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_null_cotangents_and_short_types_compile_for_a_gpu(
    stored: torch.dtype, absent: tuple[str, ...]
) -> None:
    kernel = kernel_of(testing.AdaptiveLIF(5), backward=True, stored=stored)
    assert compiled(kernel, *absent).asm["cubin"]


@needs_triton
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_machine_code_rounds_every_product_as_eager_does(real: torch.dtype) -> None:
    kernel = kernel_of(testing.AdaptiveLIF(5), backward=False, real=real)
    found = compiled(kernel)
    assert re.search(rf"\bmul(\.rn)?\.f{torch.finfo(real).bits}\b", found.asm["ptx"])
    assert "fma" not in found.asm["ptx"]
    assert not found.metadata.enable_fp_fusion  # said to the assembler, too


def all_rows(h: Tensor, u: Tensor, key: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Every row of the table, on values that vary over channels, states or both."""
    unary = list(by_row.UNARY.values())
    parts = [function((u, key, rate, h)[k % 4] + k) for k, function in enumerate(unary)]
    pairs = [(u, key), (key, u), (h, u), (key, rate)]
    parts += [function(*pairs[k % 4]) for k, function in enumerate(by_row.BINARY.values())]
    total = sum(parts[1:], parts[0])
    return total * 0.5, total


def leaky(h: Tensor, u: Tensor, key: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """A few rows, on values of every kind."""
    total = torch.exp(-rate) * h + u * key
    return total, total * key


LEAKY = Scan("leaky", leaky, {"u": "d", "key": "n", "rate": "dn"})
ALL_ROWS = Scan("all rows", all_rows, {"u": "d", "key": "n", "rate": "dn"})


@needs_triton
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_scans_compile_for_a_gpu(real: torch.dtype, backward: bool) -> None:
    found = compiled(ALL_ROWS.kernel(real, backward))
    assert found.asm["cubin"]
    assert not found.metadata.enable_fp_fusion


@needs_triton
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("absent", [("kept h",), ("grad y",), ("grad new h",)])
def test_scans_with_null_pointers_compile_for_a_gpu(absent: tuple[str, ...]) -> None:
    kernel = LEAKY.kernel(torch.float32, backward=absent != ("kept h",))
    assert compiled(kernel, *absent).asm["cubin"]


@pytest.mark.parametrize(
    ("samples", "channels", "states", "gpu", "expected"),
    [
        (8, 5, 16, False, 8),
        (8, 2048, 16, False, 64),
        (8, 2048, 17, False, 32),
        (1, 2048, 5000, False, 1),
        (64, 2048, 16, True, 64),
        (8, 2048, 16, True, 32),
        (8, 128, 16, True, 8),
        (1, 128, 4, True, 32),
        (1, 128, 1024, True, 1),
    ],
)
def test_blocks_of_channels_are_many_while_they_fill_the_gpu(
    samples: int, channels: int, states: int, gpu: bool, expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100())
    device = torch.device("cuda" if gpu else "cpu")
    assert launch.scan_width(device, samples, channels, states) == expected


# ------------------------------------------------------------------ which backend serves


def test_running_in_cpp_loads_no_triton() -> None:
    done = run(
        "-c",
        "import sys, torch; from tracetorch import testing;"
        "testing.Trace(3).unroll(torch.ones(4, 2, 3)); print('triton' in sys.modules)",
        TRITON_INTERPRET="0",
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("installed", "gpu", "interpreting", "said"),
    [
        (False, True, True, "triton is not installed"),
        (True, False, False, "no CUDA device that torch can use"),
        (True, True, False, "ready"),
        (True, False, True, "ready"),
    ],
)
def test_status_says_why_there_is_no_triton(
    installed: bool, gpu: bool, interpreting: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("torch") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreting)))
    assert backends.status()["triton"] == said
    if said == "ready":
        with backends.use("triton"):
            assert backends.chosen() == "triton"
    else:
        with pytest.raises(backends.BackendError, match=said), backends.use("triton"):
            pass


@pytest.mark.parametrize(
    ("device", "chosen", "interpreting", "serving"),
    [
        ("cpu", "auto", False, "cpp"),
        ("cpu", "auto", True, "cpp"),
        ("cpu", "cpp", False, "cpp"),
        ("cpu", "triton", True, "triton"),
        ("cuda", "auto", False, "triton"),
        ("cuda", "triton", False, "triton"),
        ("cpu", "triton", False, "there are no triton kernels for tensors on cpu"),
        ("cuda", "cpp", False, "there are no cpp kernels for tensors on cuda"),
        ("xpu", "auto", False, "there are no kernels for tensors on xpu"),
    ],
)
def test_tensors_are_served_where_they_are(
    device: str, chosen: str, interpreting: bool, serving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    also = ("cpu",) if interpreting else ()
    row = dataclasses.replace(TARGETS["triton"], missing=lambda: None, also=lambda: also)
    monkeypatch.setitem(TARGETS, "triton", row)
    with choosing(chosen):
        if " " not in serving:
            assert targets.serving(device).name == serving
        else:
            with pytest.raises(Refused, match=f"^{serving}$"):
                targets.serving(device)


def test_a_gpu_without_triton_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(TARGETS["triton"], missing=lambda: "triton is not installed")
    monkeypatch.setitem(TARGETS, "triton", row)
    with pytest.raises(Refused, match=r"^no kernel can be made here: triton is not installed$"):
        targets.serving("cuda")


@pytest.mark.parametrize(
    ("lanes", "stored", "expected"),
    [
        (1, torch.float32, (64, 2)),
        (256 * 4 * 132 - 1, torch.float32, (64, 2)),
        (256 * 4 * 132, torch.float32, (256, 4)),
        (256 * 4 * 132, torch.bfloat16, (256, 2)),
    ],
)
def test_programs_grow_once_the_gpu_is_filled(
    lanes: int, stored: torch.dtype, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100())
    kernel = kernel_of(testing.Trace(3), backward=False, stored=stored)
    assert launch._shape(kernel, lanes, torch.device("cuda")) == expected
