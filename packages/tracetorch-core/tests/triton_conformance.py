"""Triton kernels = C++ kernels = the eager step, through ``Layer.unroll``.

``test_triton.py`` runs this file in a process of its own: in Triton's interpreter, which must be
asked for before Triton is imported, or with ``TRACETORCH_TEST_DEVICE=cuda`` on a GPU. By hand:
``TRITON_INTERPRET=1 uv run pytest packages/tracetorch-core/tests/triton_conformance.py``.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from torch import Tensor
from tracetorch import testing
from tracetorch.effective import promoted
from tracetorch.engine import triton_launch as launch

_spec = importlib.util.spec_from_file_location(
    "kernels_by_row", Path(__file__).with_name("test_kernels.py")
)
assert _spec is not None
assert _spec.loader is not None
kernels: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kernels)

DEVICE = os.environ.get("TRACETORCH_TEST_DEVICE", "cpu")
assert DEVICE == "cuda" or launch.interpreted(), "set TRITON_INTERPRET=1"
PERIOD = 32

# the interpreter computes in NumPy, which warns of what torch computes without a word
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")


def _too_old() -> bool:
    """Whether this Triton's interpreter takes numbers from arrays as NumPy 2.4 no longer allows."""
    with warnings.catch_warnings(), tt.backends.use("triton"):
        warnings.simplefilter("ignore")
        try:
            testing.Trace(1).to(DEVICE).unroll(torch.ones(2, 1, device=DEVICE))
        except Exception as error:
            return "0-dimensional arrays" in repr(error)
    return False


if _too_old():
    pytest.skip("this Triton's interpreter does not run on this NumPy", allow_module_level=True)

Results = dict[str, Tensor]


def results(
    layer: tt.Layer,
    x: Tensor,
    backend: str,
    asked: Iterable[str] | None = None,
    reached: Sequence[str] | None = None,
    record: Sequence[str] = (),
    resets: Tensor | None = None,
) -> Results:
    """Outputs, final and recorded states, gradients of a weighted sum of all; from incoming states.

    ``asked``: which of ``x``, states and raw parameters want a gradient, by default all;
    ``reached``: which of ``y`` and ``final …`` the sum is of, by default all.
    """
    device = "cpu" if backend == "cpp" else DEVICE
    torch.manual_seed(0)
    layer.to(device).zero_states()
    x = x.detach().clone()
    shape, dtype = x.shape[1:], promoted(layer, x.dtype)
    sources = {"x": x, **{name: torch.randn(shape, dtype=dtype) for name in layer.tt.states}}
    sources = {name: source.to(device) for name, source in sources.items()}
    sources |= dict(layer.named_parameters())
    wanted = set(sources if asked is None else asked)
    for name, source in sources.items():
        source.requires_grad_(name in wanted)
    layer.set_states({name: sources[name] for name in layer.tt.states})
    with tt.backends.use(backend):
        with tt.record(layer, *record, detach=False) if record else nullcontext({}) as recorded:
            y = layer.unroll(sources["x"], resets)
        found = {"y": y, **{f"final {name}": s for name, s in layer.get_states().items()}}
        found |= {f"every {name}": values for name, values in recorded.items()}
        weights = {name: torch.randn(v.shape).to(v) for name, v in found.items()}
        loss = [(found[name] * weights[name]).sum() for name in reached or found]
        gradients = torch.autograd.grad(
            sum(loss[1:], loss[0]),
            [sources[name] for name in sources if name in wanted],
            allow_unused=True,
        )
    names = [name for name in sources if name in wanted]
    found |= {
        f"grad {name}": torch.zeros_like(sources[name]) if gradient is None else gradient
        for name, gradient in zip(names, gradients, strict=True)
    }
    return {name: value.detach().cpu() for name, value in found.items()}


def assert_close(got: Results, expected: Results, rtol: float, exact: Sequence[str] = ()) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().nan_to_num(posinf=0).max().item() if value.numel() else 0.0
        tolerance = 0.0 if name in exact else rtol
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance * max(scale, 1.0), equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


def assert_all_alike(
    layer: tt.Layer, x: Tensor, rtol: float, exact: Sequence[str] = (), **options: Any
) -> None:
    got = results(layer, x, "triton", **options)
    for other in ("eager", "cpp"):
        assert_close(got, results(layer, x, other, **options), rtol, exact)


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3)])
@pytest.mark.parametrize("steps", [PERIOD, 70])
@pytest.mark.parametrize("make", [testing.Trace, testing.AdaptiveLIF])
def test_samples_that_restart(make: type[tt.Layer], steps: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    resets = torch.rand(steps, shape[0]) < 0.1
    resets[[0, PERIOD - 1]] = True
    x = torch.randn(steps, *shape, dtype=torch.float64)
    assert_all_alike(make(4, dim=1).double(), x, 1e-12, resets=resets)


@pytest.mark.parametrize("steps", [1, 2, PERIOD - 1, PERIOD, PERIOD + 1, 70])
@pytest.mark.parametrize("make", [testing.Trace, testing.AdaptiveLIF])
def test_every_length_of_sequence(make: type[tt.Layer], steps: int) -> None:
    x = torch.randn(steps, 3, 7, dtype=torch.float64)
    assert_all_alike(make(7).double(), x, 1e-10)


@pytest.mark.parametrize("record", [["mem"], ["raised"], ["mem", "raised"]])
@pytest.mark.parametrize("steps", [1, PERIOD, 70])
def test_recorded_states_and_their_gradients(record: list[str], steps: int) -> None:
    x = torch.randn(steps, 3, 7, dtype=torch.float64)
    layer = testing.AdaptiveLIF(7).double()
    assert_all_alike(layer, x, 1e-10, record=record)
    assert_all_alike(layer, x, 1e-10, record=record, reached=[f"every {name}" for name in record])
    assert_all_alike(layer, x, 1e-10, record=record, reached=["y"])


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_spikes_are_the_same_in_every_precision(stored: torch.dtype) -> None:
    x = (2 * torch.randn(70, 3, 43)).to(stored)
    layer = testing.AdaptiveLIF(43)
    expected = results(layer, x, "eager")
    assert 0.1 < expected["y"].float().mean() < 0.9
    # the interpreter cuts a bfloat16 off where others round it
    tolerance = max(1e-5, torch.finfo(stored).eps if stored.itemsize == 2 else 0.0)
    assert_all_alike(layer, x, tolerance, exact=["y"])


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5,), -1), ((1, 5), -1), ((13, 5), -1), ((5, 13), 0), ((2, 5, 9), 1), ((2, 3, 5, 2), -2),
     ((43, 3, 5), -1), ((0, 5), -1)],
)  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1])
def test_every_layout(shape: tuple[int, ...], dim: int, rank: int) -> None:
    beta = 0.9 if rank == 0 else torch.linspace(0.3, 0.95, 5)
    layer = testing.AdaptiveLIF(5, beta=beta, beta_rank=rank, dim=dim).double()
    assert_all_alike(layer, torch.randn(4, *shape, dtype=torch.float64), 1e-10)


def test_a_sequence_that_is_not_contiguous() -> None:
    x = torch.randn(7, 5, 3, dtype=torch.float64).transpose(0, 1)[::2]
    assert_all_alike(testing.AdaptiveLIF(3).double(), x, 1e-10)


LEARNED = ["raw_beta", "raw_rho", "raw_jump"]


@pytest.mark.parametrize(
    "asked",
    [["x"], ["mem"], ["raised"], *([name] for name in LEARNED), ["x", "raw_rho"], LEARNED],
    ids=" ".join,
)
def test_any_gradients_can_be_asked_for(asked: list[str]) -> None:
    x = torch.randn(PERIOD + 3, 2, 5, dtype=torch.float64)
    layer = testing.AdaptiveLIF(5).double()
    assert_all_alike(layer, x, 1e-10, asked=asked)
    layer.requires_grad_()
    whole = results(layer, x, "triton")
    assert_close(
        results(layer, x, "triton", asked), {n: whole[n] for n in whole if not n.startswith("grad")}
        | {f"grad {name}": whole[f"grad {name}"] for name in asked}, 1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("reached", [["y"], ["final mem"], ["final raised"]], ids=" ".join)
def test_any_output_can_be_left_out_of_the_loss(reached: list[str]) -> None:
    x = torch.randn(PERIOD + 3, 2, 5, dtype=torch.float64)
    assert_all_alike(testing.AdaptiveLIF(5).double(), x, 1e-10, reached=reached)


def test_nan_and_infinity_pass_as_in_eager() -> None:
    x = torch.randn(6, 2, 7)
    x[1, 0, 0], x[1, 0, 1], x[2, 1, 2], x[0, 0, 3] = math.nan, math.inf, -math.inf, -0.0
    for layer in (testing.Trace(7), testing.AdaptiveLIF(7)):
        assert_all_alike(layer, x, 1e-5)


class Awkward(tt.Layer):
    """States that change places, under names that generated source has another use for."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("at", "new_at", "x_")
        self.add_parameter("lane", 0.5)
        self.add_parameter("tl", torch.linspace(0.1, 0.9, num_neurons))

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        new = {"at": states.new_at, "new_at": states.x_ * p.tl, "x_": states.at + x * p.lane}
        return new, states.at * states.new_at + x


class Fading(tt.Layer):
    """A state that is forgotten at once, one that never changes, and no parameter."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("last", "still")

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        return {"last": x, "still": states.still}, states.last * states.still + 1.0


@pytest.mark.parametrize("make", [Awkward, Fading])
def test_states_are_replaced_all_at_once(make: type[tt.Layer]) -> None:
    x = torch.randn(PERIOD + 5, 2, 5, dtype=torch.float64)
    assert_all_alike(make(5).double(), x, 1e-10)


@pytest.mark.parametrize("name", [*kernels.UNARY, *(set(kernels.BINARY) - set(kernels.UNARY))])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_a_row_is_what_torch_computes(name: str, dtype: torch.dtype, rtol: float) -> None:
    made_of = [(name, 0)] if name in kernels.UNARY else [(name, 0, 1)]
    layer = kernels.Composed(5, made_of).to(dtype)
    x = 3 * torch.randn(3, 4, 5, dtype=dtype)
    assert_close(results(layer, x, "triton"), results(layer, x, "eager"), rtol)


@settings(max_examples=10, deadline=None)
@given(made_of=kernels.steps())
def test_random_steps_are_what_torch_computes(made_of: list[tuple[Any, ...]]) -> None:
    torch.manual_seed(1)
    layer = kernels.Composed(5, made_of).double()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    assert_close(results(layer, x, "triton"), results(layer, x, "eager"), 1e-8)


FUNCTIONS = ["exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "tanh", "sigmoid",
             "atan", "erf", "floor", "ceil", "trunc", "round", "abs", "sign", "relu",
             "reciprocal"]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_functions_hold_their_accuracy_everywhere(
    name: str, dtype: torch.dtype, rtol: float
) -> None:
    spread = torch.linspace(-30, 30, 401, dtype=torch.float64)
    small = torch.logspace(-12, 0, 50, dtype=torch.float64)
    halves = torch.tensor([*(k / 2 for k in range(-5, 6)), 0.49999997, -0.49999997])
    edges = torch.tensor(kernels.EDGES, dtype=torch.float64)
    values = torch.cat([edges, spread, small, -small, halves]).to(dtype)
    layer = kernels.Mapped(len(values), name).to(DEVICE)
    with tt.backends.use("triton"):
        got = layer.unroll(values[None, None].to(DEVICE))[0, 0].cpu()
    expected = getattr(torch, name)(values.double())
    torch.testing.assert_close(
        got.double(), expected.to(dtype).double(), rtol=rtol, atol=torch.finfo(dtype).tiny,
        equal_nan=True,
    )  # fmt: skip


POWERS = [
    -math.inf,
    -8.0,
    -2.5,
    -2.0,
    -1.0,
    -0.5,
    0.0,
    0.5,
    1.0,
    3.0,
    4.0,
    10.0,
    math.inf,
    math.nan,
]


class Power(tt.Layer):
    """Input to the power of the state."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("exponent")

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        return {"exponent": states.exponent}, torch.pow(x, states.exponent)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_powers_of_every_kind_of_base_and_exponent(dtype: torch.dtype, rtol: float) -> None:
    base, exponent = torch.cartesian_prod(*2 * (torch.tensor(POWERS, dtype=dtype),)).unbind(1)
    layer = Power(len(base)).to(DEVICE)
    layer.set_states({"exponent": exponent[None].to(DEVICE)})
    with tt.backends.use("triton"):
        got = layer.unroll(base[None, None].to(DEVICE))[0, 0].cpu()
    expected = torch.pow(base.double(), exponent.double()).to(dtype)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=0, equal_nan=True)


class Noisy(tt.Layer):
    """Draws twice a timestep; what it draws decides what is emitted and where gradients go."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("mem")
        self.add_parameter("beta", 0.8, constraint=tt.constraints.sigmoid)
        self.uniform = tt.Random()

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + x * self.uniform(x)
        return {"mem": mem}, torch.where(self.uniform(x) < 0.5, mem, 2 * mem)


@pytest.mark.parametrize("count", [0, 1 << 33])
def test_random_numbers_are_the_same_on_every_backend(count: int) -> None:
    layer, x = Noisy(5).to(DEVICE), torch.randn(PERIOD + 9, 3, 5)
    found = []
    for backend in ("eager", "cpp", "triton"):
        device = "cpu" if backend == "cpp" else DEVICE
        layer.to(device).set_states(
            {
                "mem": torch.zeros(3, 5, device=device),
                "random": torch.tensor([(1 << 61) + 12345, count], device=device),
            }
        )
        x_here = x.to(device).requires_grad_()
        with tt.backends.use(backend):
            y = layer.unroll(x_here)
        grads = torch.autograd.grad(y.square().sum(), [x_here, layer.raw_beta])
        assert layer.random is not None
        assert int(layer.random[1]) == count + len(x)
        found.append([t.detach().cpu() for t in (y, *grads)])
    for got in found[1:]:
        for value, expected in zip(got, found[0], strict=True):
            torch.testing.assert_close(value, expected)


def test_states_and_parameters_may_have_any_name() -> None:
    layer, x = kernels.Named().double(), torch.randn(PERIOD + 3, 2, 3, dtype=torch.float64)
    found = []
    for backend in ("eager", "triton"):
        layer.to(DEVICE).zero_states()
        x_here = x.to(DEVICE).requires_grad_()
        with tt.backends.use(backend):
            y = layer.unroll(x_here)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x_here, *layer.parameters()])])
    for value, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
