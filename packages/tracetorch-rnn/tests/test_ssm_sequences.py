"""``unroll`` of SelectiveSSM through its fused scan: the answer of single steps.

With ``TRACETORCH_TEST_BACKEND=triton`` and ``TRITON_INTERPRET=1`` through Triton's kernels: a test
runs part of this file that way.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from tracetorch import backends, choice, rnn
from tracetorch.engine.scan_kernel import ScanKernel
from tracetorch.rnn.selective_ssm import SELECTIVE_SCAN

BACKEND = os.environ.get("TRACETORCH_TEST_BACKEND", "cpp")
SSM = rnn.SelectiveSSM
Run = Callable[[SSM, Tensor], Tensor]
PERIOD, WIDTH, TILE = ScanKernel.period, ScanKernel.width, ScanKernel.tile
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def unrolled(layer: SSM, x: Tensor) -> Tensor:
    return layer.unroll(x)


def fused(layer: SSM, x: Tensor) -> Tensor:
    """``unroll`` where falling back to steps is an error."""
    with backends.use(BACKEND):
        return layer.unroll(x)


def by_steps(layer: SSM, x: Tensor) -> Tensor:
    return torch.stack([layer(timestep) for timestep in x])


def perturbed(*sizes: int, dtype: torch.dtype = torch.float64, dim: int = -1) -> SSM:
    """A layer whose A and D are no longer as initialised, and whose steps are large."""
    layer = SSM(*sizes, dim=dim).to(dtype)
    with torch.no_grad():
        layer.A_log += 0.3 * torch.randn_like(layer.A_log)
        layer.D += torch.randn_like(layer.D)
        layer.dt_proj.bias += 3
    return layer


def state_like(layer: SSM, timestep: Tensor) -> Tensor:
    """A random state that fits ``timestep``; leaves ``layer`` without any."""
    with torch.no_grad():
        layer(timestep)
    state = torch.randn_like(layer.h)
    layer.zero_states()
    return state


def everything(layer: SSM, x: Tensor, h: Tensor | None, run: Run) -> dict[str, Tensor]:
    """Outputs, final state, and all gradients of a random weighting of both."""
    layer.zero_states()
    x = x.detach().requires_grad_()
    incoming = {} if h is None else {"h": h.detach().requires_grad_()}
    layer.set_states(incoming, strict=False)
    y = run(layer, x)
    found = {"y": y, "final": layer.h}
    torch.manual_seed(0)
    weights = [torch.randn(v.shape, dtype=torch.float64).to(v.device) for v in found.values()]
    parts = [(v.double() * w).sum() for v, w in zip(found.values(), weights, strict=True)]
    sources = {"x": x, **incoming, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(sum(parts), list(sources.values()))
    layer.zero_states()
    return {**found, **{f"d{n}": g for n, g in zip(sources, gradients, strict=True)}}


def assert_one_answer(layer: SSM, x: Tensor, h: Tensor | None = None) -> dict[str, Tensor]:
    """What the kernel gives, compared with stepping, relative to the largest value."""
    got, expected = (everything(layer, x, h, run) for run in (fused, by_steps))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = TOLERANCE.get(value.dtype, 2 * torch.finfo(value.dtype).eps)
        scale = value.abs().max().clamp(min=1).item() if value.numel() else 1
        assert got[name].dtype == value.dtype
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance * scale, msg=name
        )
    return got


class Operators(TorchDispatchMode):
    """Counts calls of the engine's operators and the largest tensor any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith("tracetorch.scan")
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (list, tuple)) else [out]
        sizes = [t.numel() for t in made if isinstance(t, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out


@pytest.fixture
def operators() -> Iterator[Operators]:
    with Operators() as counted:
        yield counted


# ---------------------------------------------------------------------- one answer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [1, 2, PERIOD - 1, PERIOD, PERIOD + 1, 100])
def test_any_number_of_timesteps(steps: int, dtype: torch.dtype) -> None:
    layer = perturbed(5, 4, 3, dtype=dtype)
    x = torch.randn(steps, 3, 5, dtype=dtype)
    got = assert_one_answer(layer, x, state_like(layer, x[0]))
    assert set(got) == {"y", "final", "dx", "dh"} | {f"d{n}" for n, _ in layer.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("channels", "states"),
    [
        (1, 1),
        (WIDTH - 1, TILE + 1),
        (WIDTH, TILE),
        (WIDTH + 1, TILE - 1),
        (2 * WIDTH + 7, 2 * TILE + 3),
    ],
)
def test_any_number_of_channels_and_states(channels: int, states: int, dtype: torch.dtype) -> None:
    layer = perturbed(channels, 4, states, dtype=dtype)
    x = torch.randn(PERIOD + 2, 2, channels, dtype=dtype)
    assert_one_answer(layer, x, state_like(layer, x[0]))


@settings(max_examples=40, deadline=None)
@given(
    steps=st.sampled_from([1, 2, PERIOD + 1]),
    around=st.lists(st.integers(0, 3), max_size=3),
    place=st.integers(0, 3),
    from_the_end=st.booleans(),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    warm=st.booleans(),
)
def test_channels_anywhere_in_timesteps_of_any_rank_and_batch(
    steps: int,
    around: list[int],
    place: int,
    from_the_end: bool,
    sizes: tuple[int, int, int],
    warm: bool,
) -> None:
    place = min(place, len(around))
    shape = [*around[:place], sizes[0], *around[place:]]
    layer = perturbed(*sizes, dim=place - len(shape) if from_the_end else place)
    x = torch.randn(steps, *shape, dtype=torch.float64)
    assert_one_answer(layer, x, state_like(layer, x[0]) if warm else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_on_float32_weights(dtype: torch.dtype) -> None:
    layer, x = perturbed(6, 4, 5, dtype=torch.float32), torch.randn(40, 2, 6).to(dtype)
    got = assert_one_answer(layer, x, state_like(layer, x[0]))
    assert (got["y"].dtype, got["final"].dtype) == (dtype, torch.float32)


def test_float64_inputs_on_float32_weights() -> None:
    layer = perturbed(6, 4, 5, dtype=torch.float32)
    x = torch.randn(40, 2, 6, dtype=torch.float64)
    got, expected = (everything(layer, x, None, run) for run in (fused, by_steps))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)
    assert got["final"].dtype == torch.float64


@pytest.mark.parametrize("steps", [1, PERIOD, 40])
def test_inputs_weights_and_states_may_lie_anywhere_in_memory(steps: int) -> None:
    layer = perturbed(6, 4, 5)
    x = torch.randn(6, steps, 2, 2, dtype=torch.float64).permute(1, 2, 3, 0)[:, ::2]
    weights = {k: v.t().contiguous().t() for k, v in layer.state_dict().items() if v.ndim == 2}
    layer.load_state_dict(weights, strict=False, assign=True)
    h = torch.randn(5, 1, 6, 2, dtype=torch.float64).permute(1, 3, 2, 0)
    assert not any(t.is_contiguous() for t in (x, h, layer.A_log))
    assert_one_answer(layer, x, h)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in Triton's interpreter
def test_not_a_number_and_infinity_pass_as_in_steps() -> None:
    layer, x = perturbed(5, 5, 3), torch.randn(PERIOD + 4, 4, 5, dtype=torch.float64)
    x[2, 0, 1], x[PERIOD, 1, 2], x[3, 2, 0] = float("nan"), float("inf"), -1e200
    got, expected = (everything(layer, x, None, run) for run in (fused, by_steps))
    assert expected["y"].isnan().any()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, equal_nan=True)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_chunks_are_the_whole(cuts: list[int]) -> None:
    layer, x = perturbed(5, 4, 3), torch.randn(sum(cuts), 2, 5, dtype=torch.float64)

    def in_chunks(layer: SSM, x: Tensor) -> Tensor:
        return torch.cat([fused(layer, part) for part in x.split(cuts)])

    expected = everything(layer, x, None, fused)
    for name, value in everything(layer, x, None, in_chunks).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pscan", [False, True], ids=["sequential", "parallel"])
def test_mambapys_scan_with_gradients(pscan: bool) -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    config = mamba.MambaConfig(d_model=9, n_layers=1, d_state=5, expand_factor=2, pscan=pscan)
    block = mamba.MambaBlock(config)
    layer = SSM(config.d_inner, config.d_model, config.d_state, config.dt_rank)
    theirs = block.state_dict()
    layer.load_state_dict({key: theirs[key] for key in layer.state_dict()})
    x = torch.randn(2, 2 * PERIOD, config.d_inner)
    results = []
    for own in (True, False):
        u = x.clone().requires_grad_()
        if own:
            y = fused(layer, u.transpose(0, 1)).transpose(0, 1)
        else:
            y = block.out_proj(block.ssm(u, None))
        named = dict((layer if own else block).named_parameters())
        weights = [named[name] for name, _ in layer.named_parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), [u, *weights])])
    assert len(results[0]) == 2 + 6
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- Triton

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.mark.long
@needs_triton
def test_interpreted_triton_kernels_conform() -> None:
    chosen = "channels_and_states or may_lie or not_a_number or differences or sixteen"
    # what the interpreter of Triton 3.2 does is deprecated in NumPy, until it is refused
    quiet = ["-W", "ignore:Conversion of an array:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *quiet, Path(__file__).name, "-k", chosen],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "TRACETORCH_TEST_BACKEND": "triton"},
    )  # fmt: skip
    if "only 0-dimensional arrays" in done.stdout:
        pytest.skip("this Triton's interpreter does not run on this NumPy")
    if "InterpreterBuilder' object has no attribute" in done.stdout:
        pytest.skip("this Triton's interpreter lacks what sums over blocks need")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^1\d passed", done.stdout, re.MULTILINE), done.stdout


@needs_triton
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sizes", [(5, 4, 3), (128, 64, 16), (300, 7, 33)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gpu_gives_what_the_cpu_gives(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, found = perturbed(*sizes, dtype=dtype), {}
    x = torch.randn(3 * PERIOD + 1, 4, sizes[0], dtype=dtype)
    h = state_like(layer, x[0])
    for device, backend in (("cpu", "cpp"), ("cuda", "triton")):
        with backends.use(backend):
            run = everything(layer.to(device), x.to(device), h.to(device), unrolled)
        found[device] = {name: value.cpu() for name, value in run.items()}
    for name, value in found["cpu"].items():
        tolerance = 10 * TOLERANCE[dtype] * max(value.abs().max().item(), 1)
        torch.testing.assert_close(found["cuda"][name], value, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- derivatives


def loss(layer: SSM, run: Run, *leaves: Tensor) -> Tensor:
    """The summed squares of outputs and final state, of input, state and parameters."""
    x, h, *values = leaves
    parameters = dict(zip(dict(layer.named_parameters()), values, strict=True))
    layer.set_states({"h": h})
    y = functional_call(_Run(layer, run), {f"layer.{k}": v for k, v in parameters.items()}, x)
    total = y.square().sum() + layer.h.square().sum()
    layer.zero_states()
    return total


class _Run(nn.Module):
    def __init__(self, layer: SSM, run: Run) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layer, x)


def all_leaves(layer: SSM, x: Tensor) -> list[Tensor]:
    sources = [x, state_like(layer, x[0]), *layer.parameters()]
    return [source.detach().clone().requires_grad_() for source in sources]


def test_first_and_second_derivatives_agree_with_differences(operators: Operators) -> None:
    layer = perturbed(2, 2, 2)
    leaves = all_leaves(layer, torch.randn(3, 1, 2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *a: loss(layer, fused, *a), leaves)
    assert torch.autograd.gradgradcheck(lambda *a: loss(layer, fused, *a), leaves)
    assert operators.count > 0


@pytest.mark.parametrize("how", ["torch.func", "dual numbers"])
def test_forward_mode_steps_and_agrees_with_backward(how: str, operators: Operators) -> None:
    layer = perturbed(3, 4, 2)
    leaves = all_leaves(layer, torch.randn(5, 2, 3, dtype=torch.float64))
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(loss(layer, by_steps, *leaves), leaves)
    expected = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    primals = tuple(leaf.detach() for leaf in leaves)
    if how == "torch.func":
        _, derivative = jvp(lambda *a: loss(layer, unrolled, *a), primals, tuple(tangents))
    else:
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, primals, tangents)
            derivative = forward_ad.unpack_dual(loss(layer, unrolled, *duals)).tangent
    torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-10)
    assert operators.count == 0


def test_gradients_per_sample_by_vmap_are_those_of_single_sequences() -> None:
    layer = perturbed(3, 4, 2)
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    rest = [leaf.detach() for leaf in all_leaves(layer, x[0])[1:]]
    got = vmap(grad(lambda x: loss(layer, unrolled, x, *rest)))(x)
    for sample, gradient in zip(x, got, strict=True):
        own = sample.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(layer, fused, own, *rest), own)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- memory


def saved_by(run: Callable[[], object]) -> int:
    """Elements that autograd keeps of what ``run`` computes, each storage once."""
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in held.values())


def test_no_tensor_holds_all_states_of_all_timesteps(operators: Operators) -> None:
    steps, batch, channels, states = 64, 3, 8, 16
    layer, x = SSM(channels, 2, states), torch.randn(steps, batch, channels)
    kept = saved_by(lambda: layer.unroll(x.requires_grad_()).sum().backward())
    assert operators.count == 2
    weights = sum(p.numel() for p in layer.parameters())
    assert operators.largest <= steps * batch * (channels + 2 * states)
    sequences = steps * batch * (5 * channels + 2 * states + layer.dt_rank + 2)
    ends = (steps // PERIOD + 2) * batch * channels * states
    assert kept <= sequences + ends + 3 * weights


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(
    quiet: Callable[[], AbstractContextManager[None]], operators: Operators
) -> None:
    layer, x = perturbed(5, 4, 3), torch.randn(40, 2, 5, dtype=torch.float64)
    expected = fused(layer, x)
    assert operators.count == 1
    final = layer.h
    layer.zero_states()
    with quiet():
        y = fused(layer, x)
    assert operators.count == 2
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.h, final)
    assert not y.requires_grad
    assert not layer.h.requires_grad
    (dt, B, C), h = layer.project(x), torch.zeros(2, 5, 3, dtype=torch.float64)
    inputs = [t.detach() for t in (dt, x, B, C, layer.A)]
    y_and_state = torch.ops.tracetorch.scan(h, inputs, None, SELECTIVE_SCAN.name, BACKEND, False)
    assert [t.shape for t in y_and_state] == [(40, 2, 5), (2, 5, 3)]


def test_changing_the_output_in_place_leaves_the_state_alone() -> None:
    layer = perturbed(5, 4, 3)
    with torch.no_grad():
        y = fused(layer, torch.randn(9, 2, 5, dtype=torch.float64))
        before = layer.h.clone()
        y.zero_()
    assert torch.equal(layer.h, before)


# ---------------------------------------------------------------------- who is served


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_takes_a_whole_sequence(backend: str) -> None:
    layer, x = perturbed(5, 4, 3), torch.randn(PERIOD + 1, 2, 5, dtype=torch.float64)
    results, graphs = [], []
    torch._dynamo.reset()

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    for run in (layer.unroll, torch.compile(layer.unroll, fullgraph=True, backend=counting)):
        layer.zero_states()
        y = run(x)
        total = y.square().sum() + layer.h.sum()
        results.append([y, layer.h, *torch.autograd.grad(total, list(layer.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert "tracetorch.scan" in graphs[0].code


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_operator_passes_torchs_own_checks(training: bool, dtype: torch.dtype) -> None:
    layer = perturbed(5, 4, 3, dtype=dtype)
    x = torch.randn(PERIOD + 1, 2, 5, dtype=dtype)
    fused(layer, x)
    inputs = [t.detach().requires_grad_(training) for t in (x.abs(), x, *layer.project(x)[1:])]
    inputs.append(layer.A.detach().requires_grad_(training))
    h = torch.randn(2, 5, 3, dtype=dtype, requires_grad=training)
    operator = torch.ops.tracetorch.scan.default
    torch.library.opcheck(operator, (h, inputs, None, SELECTIVE_SCAN.name, BACKEND, training))


def test_choosing_eager_steps(operators: Operators) -> None:
    layer, x = perturbed(5, 4, 3), torch.randn(9, 2, 5, dtype=torch.float64)
    with backends.use("eager"):
        y = layer.unroll(x)
    assert operators.count == 0
    layer.zero_states()
    assert torch.equal(y, by_steps(layer, x))


class Halved(SSM):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x / 2, p)


class Doubled(SSM):
    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dt, B, C = super().project(x)
        return 2 * dt, B, C


def hooked(layer: SSM, on: str) -> SSM:
    layer.get_submodule(on).register_forward_hook(lambda module, args, y: 2 * y)
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Halved(5, 4, 3), "Halved has its own step"),
        (lambda: hooked(SSM(5, 4, 3), ""), "hooks, which run at every timestep"),
        (lambda: hooked(SSM(5, 4, 3), "dt_proj"), "dt_proj has hooks"),
        (lambda: SSM(5, 4, 3).bfloat16(), "no kernels for states in torch.bfloat16"),
    ],
    ids=["step", "hook", "inner hook", "bfloat16"],
)
def test_what_cannot_be_served_steps_or_says_why(
    make: Callable[[], SSM], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make()
    x = torch.randn(9, 2, 5, dtype=layer.A_log.dtype)
    expected = by_steps(layer, x)
    layer.zero_states()
    choice._said.clear()
    with caplog.at_level(logging.INFO, "tracetorch"):
        assert torch.equal(layer.unroll(x), expected)
    (record,) = [r for r in caplog.records if "runs step by step" in r.message]
    assert why in record.message
    before = layer.h
    with backends.use("cpp"), pytest.raises(tt.BackendError, match=re.escape(why)) as caught:
        layer.unroll(x)
    assert repr(layer) in str(caught.value)
    assert layer.h is before


def test_a_projection_of_ones_own_is_taken(operators: Operators) -> None:
    layer, x = Doubled(5, 4, 3), torch.randn(9, 2, 5)
    y = fused(layer, x)
    assert operators.count == 1
    layer.zero_states()
    torch.testing.assert_close(y, by_steps(layer, x))


def test_compiled_parameters_give_the_same_sequence() -> None:
    layer, x = perturbed(5, 4, 3), torch.randn(9, 2, 5, dtype=torch.float64)
    expected = fused(layer, x)
    layer.zero_states()
    layer.TTcompile()
    y = fused(layer, x)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert layer.A_log.grad is None
    assert layer.D.grad is None


def test_checkpointing_a_sequence_restores_or_refuses() -> None:
    layer, x = perturbed(5, 4, 3), torch.randn(9, 2, 5, dtype=torch.float64)
    h = state_like(layer, x[0])
    expected = everything(layer, x, h, fused)

    def checkpointed(layer: SSM, x: Tensor) -> Tensor:
        restored = tt.restored_states(layer)
        return checkpoint(layer.unroll, x, use_reentrant=False, context_fn=restored)

    for name, value in everything(layer, x, h, checkpointed).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    y = checkpoint(layer.unroll, x.requires_grad_(), use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"recomputed in a backward pass .*restored_states"):
        y.sum().backward()


@pytest.mark.parametrize("rounded", [False, True])
def test_under_autocast_only_the_projections_are_rounded(rounded: bool) -> None:
    layer, x = perturbed(6, 4, 5, dtype=torch.float32), torch.randn(30, 2, 6)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if rounded else nullcontext()
    with autocast:
        dt, B, C = layer.project(x)
        y = fused(layer, x)
    assert (y.dtype, layer.h.dtype) == (torch.float32, torch.float32)
    h, read = torch.zeros(2, 6, 5), []
    for now in zip(dt, x, B, C, strict=True):
        h, part = SELECTIVE_SCAN.step(h, *now, layer.A)
        read.append(part)
    torch.testing.assert_close(layer.h, h, rtol=1e-5, atol=1e-5)
    expected = (torch.stack(read) + layer.D * x) @ layer.out_proj.weight.T
    torch.testing.assert_close(y, expected, rtol=2e-2 if rounded else 1e-5, atol=3e-2)


def test_the_source_shows_both_directions_and_the_equation() -> None:
    layer = SSM(3, 4, 2)
    forward, backward = (layer.kernel_source(backward=back) for back in (False, True))
    assert "typedef float real;" in forward
    assert "typedef double real;" in layer.kernel_source(dtype=torch.float64)
    assert forward.count("= math::exp(") == backward.count("= math::exp(")
    assert "now[k][i] = " in forward
    assert "part_As[k][i] += " in backward
    with pytest.raises(tt.BackendError, match=r"SelectiveSSM\(3, 4, 2.* no kernel: .*bfloat16"):
        layer.bfloat16().kernel_source(dtype=torch.bfloat16)
    layer = SSM(3, 4, 2)
    on_gpu = layer.kernel_source(backward=True, backend="triton")
    assert "part_A_ += " in on_gpu
    with pytest.raises(ValueError, match=r"one of \['cpp', 'triton'\], got 'eager'"):
        layer.kernel_source(backend="eager")
