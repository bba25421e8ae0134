"""Fused kernels = the eager step: every operation of the table, and random steps made of them."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from tracetorch.effective import promoted
from tracetorch.engine import ops
from tracetorch.engine.graph import Graph, Node
from tracetorch.engine.scan import Scan

# one torch spelling, at least, for each row: what a step would call, on arguments that fit it
UNARY: Mapping[str, Callable[[Tensor], Tensor]] = types.MappingProxyType(
    {
        "neg": torch.neg,
        "abs": torch.abs,
        "reciprocal": lambda u: torch.reciprocal(u + 3.0),
        "sign": torch.sign,
        "relu": torch.relu,
        "exp": torch.exp,
        "exp2": torch.exp2,
        "expm1": torch.expm1,
        "log": lambda u: torch.log(u.abs() + 0.1),
        "log1p": lambda u: torch.log1p(u.abs()),
        "log2": lambda u: torch.log2(u.abs() + 0.1),
        "sqrt": lambda u: torch.sqrt(u.abs() + 0.1),
        "rsqrt": lambda u: torch.rsqrt(u.abs() + 0.1),
        "sin": torch.sin,
        "cos": torch.cos,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "atan": torch.atan,
        "erf": torch.erf,
        "floor": torch.floor,
        "ceil": torch.ceil,
        "trunc": torch.trunc,
        "round": torch.round,
        "softplus": lambda u: F.softplus(u, 2.0, 3.0),
        "softplus_backward": F.softplus,
        "threshold_backward": torch.relu,
        "hardtanh_backward": lambda u: F.hardtanh(u, -0.5, 0.7),
        "sigmoid_backward": lambda u: torch.sigmoid(3 * u),
        "tanh_backward": lambda u: torch.tanh(u / 2),
        "nan_or_zero": lambda u: u + (torch.sigmoid(u) - torch.sigmoid(u).detach()),
        "isnan": lambda u: torch.where(torch.isnan(u), torch.zeros_like(u), u),
        "not": lambda u: torch.logical_not(u > 0).to(u.dtype),
        "to_bool": lambda u: torch.logical_not(torch.round(u)).to(u.dtype),
        "to_float": lambda u: (u > 0.25).to(u.dtype),
        "minimum": lambda u: u.clamp(max=0.4),
        "maximum": lambda u: u.clamp_min(-0.3),
        "rsub": lambda u: 1 - u,
    }
)
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = types.MappingProxyType(
    {
        "add": lambda u, v: torch.add(u, v, alpha=0.5),
        "sub": torch.sub,
        "mul": torch.mul,
        "div": lambda u, v: u / (v.abs() + 0.5),
        "pow": lambda u, v: torch.pow(u.abs() + 0.2, v),
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "gt": lambda u, v: torch.where(u > v, u, v),
        "ge": lambda u, v: (u >= v).to(u.dtype),
        "lt": lambda u, v: (u < v).to(u.dtype),
        "le": lambda u, v: (u <= v).to(u.dtype),
        "eq": lambda u, v: (torch.round(u) == torch.round(v)).to(u.dtype),
        "ne": lambda u, v: (torch.round(u) != torch.round(v)).to(u.dtype),
        "and": lambda u, v: torch.where((u > 0) & (v > 0), u, v * 2),
        "or": lambda u, v: torch.where((u > 0) | (v > 0), u, v * 2),
        "xor": lambda u, v: torch.where((u > 0) ^ (v > 0), u, v * 2),
        "where": lambda u, v: torch.where(u > 0, v, u),
    }
)


class Composed(tt.Layer):
    """Two states whose update is a list of operations on what is there."""

    def __init__(self, num_neurons: int, made_of: list[tuple[Any, ...]], dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.made_of = tuple(made_of)
        self.add_state("a", "b")
        self.add_parameter("p", torch.linspace(-0.9, 0.9, num_neurons))
        self.add_parameter("q", 0.7, rank=0, constraint=tt.constraints.sigmoid)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        values = [x, states.a, states.b, p.p, p.q]
        for name, *places in self.made_of:
            arguments = [values[place % len(values)] for place in places]
            function: Any = UNARY[name] if len(places) == 1 else BINARY[name]
            values.append(function(*arguments))
        # bounded, so that a hundred timesteps stay in range; q and x always count
        y = torch.tanh(values[-1] + 0.1 * x)
        return {"a": y * p.q, "b": torch.tanh(values[-2] * 0.5 - states.b)}, y + states.a * p.p


def results(layer: tt.Layer, x: Tensor, backend: str, seed: int = 0) -> dict[str, Tensor]:
    """Outputs, final states, and gradients of a weighted sum of both; with incoming states."""
    torch.manual_seed(seed)
    layer.zero_states()
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    around = {
        name: torch.randn(x.shape[1:]).to(promoted(layer, x.dtype)) for name in layer.tt.states
    }
    incoming = {name: state.requires_grad_() for name, state in around.items()}
    layer.set_states(incoming)
    with tt.backends.use(backend):
        y = layer.unroll(x)
        found = {"y": y, **{f"final {name}": s for name, s in layer.get_states().items()}}
        sum((value * torch.randn_like(value)).sum() for value in found.values()).backward()
    found["grad x"] = x.grad
    found |= {f"grad {name}": state.grad for name, state in incoming.items()}
    found |= {f"grad {name}": p.grad for name, p in layer.named_parameters()}
    return {name: value.detach() for name, value in found.items() if value is not None}


def assert_alike(layer: tt.Layer, x: Tensor, rtol: float) -> None:
    fused, eager = results(layer, x, "cpp"), results(layer, x, "eager")
    assert fused.keys() == eager.keys()
    for name, expected in eager.items():
        scale = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(
            fused[name], expected, rtol=rtol, atol=rtol * max(scale, 1.0), equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


def test_every_row_of_the_table_is_tried() -> None:
    assert {*UNARY, *BINARY} == set(ops.TABLE)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_row_is_what_torch_computes(name: str, dtype: torch.dtype) -> None:
    made_of = [(name, 0)] if name in UNARY else [(name, 0, 1)]
    layer = Composed(5, made_of).to(dtype)
    x = 3 * torch.randn(40, 7, 5, dtype=dtype)
    assert_alike(layer, x, 1e-10 if dtype == torch.float64 else 2e-5)


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    unary = st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 12))
    binary = st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 12), st.integers(0, 12))
    return draw(st.lists(unary | binary, min_size=1, max_size=8))


@settings(max_examples=25, deadline=None)
@given(made_of=steps(), shape=st.sampled_from([(1, 5), (3, 5), (2, 5, 3), (70, 5)]))
def test_random_steps_are_what_torch_computes(
    made_of: list[tuple[Any, ...]], shape: tuple[int, ...]
) -> None:
    dim = -2 if len(shape) == 3 else -1
    layer = Composed(5, made_of, dim).double()
    torch.manual_seed(1)
    assert_alike(layer, torch.randn(19, *shape, dtype=torch.float64), 1e-8)


EDGES = [0.0, -0.0, 1e-40, -1e-40, 1e-30, 0.3, -0.3, 1.0, -1.0, 20.0, -20.0, 88.7, 89.0, -87.4,
         -103.0, -105.0, 1e30, -1e30, math.inf, -math.inf, math.nan]  # fmt: skip


class Mapped(tt.Layer):
    """One function of the input."""

    def __init__(self, num_neurons: int, name: str) -> None:
        super().__init__(num_neurons)
        self.name = name
        self.add_state("last")

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        return {"last": x}, getattr(torch, self.name)(x)


@pytest.mark.parametrize(
    "name", ["exp", "expm1", "log", "log1p", "tanh", "sigmoid", "abs", "sign", "relu", "round"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_functions_hold_their_accuracy_everywhere(name: str, dtype: torch.dtype) -> None:
    spread = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    small = torch.logspace(-12, 0, 400, dtype=torch.float64)
    values = torch.cat([torch.tensor(EDGES, dtype=torch.float64), spread, small, -small]).to(dtype)
    layer = Mapped(len(values), name)
    with tt.backends.use("cpp"):
        got = layer.unroll(values[None, None])[0, 0]
    # the reference in double, from the very same inputs
    expected = getattr(torch, name)(values.double())
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(
        got.double(), expected.to(dtype).double(), rtol=tolerance,
        atol=torch.finfo(dtype).tiny, equal_nan=True,
    )  # fmt: skip


FINITE: dict[str, Callable[[Graph, Node], Node]] = {
    "a multiple of it": lambda graph, p: graph.op("mul", graph.const(0.5), p),
    "a part of it": lambda graph, p: graph.op("div", p, graph.const(3.0)),
    "a difference": lambda graph, p: graph.op("sub", p, graph.const(1.0)),
    "itself": lambda graph, p: p,
}


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("left", [True, False])
def test_a_bounded_value_less_itself_is_computed_from_its_argument_alone(
    name: str, left: bool
) -> None:
    graph = Graph()
    x, four = graph.input("x"), graph.const(4.0)
    times = (four, x) if left else (x, four)
    p = FINITE[name](graph, graph.op("sigmoid", graph.op("mul", *times)))
    assert graph.op("sub", p, p) is graph.op("nan_or_zero", x)


def test_a_value_that_may_be_infinite_less_itself_stays() -> None:
    graph = Graph()
    x = graph.input("x")
    q = graph.op("div", graph.op("sigmoid", x), x)
    for value in (x, q):
        assert graph.op("sub", value, value).args == (value, value)


def test_an_operation_without_a_row_is_refused_with_its_name_and_line() -> None:
    class Sorting(tt.Layer):
        def __init__(self) -> None:
            super().__init__(3)
            self.add_state("s")

        def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
            return {"s": x}, torch.cumsum(x, -1)

    x = torch.randn(4, 2, 3)
    assert torch.equal(Sorting().unroll(x), torch.cumsum(x, -1))
    with tt.backends.use("cpp"), pytest.raises(tt.BackendError) as caught:
        Sorting().unroll(x)
    for said in ("Sorting(3, dim=-1)", "cumsum", "test_kernels.py:", "no row in the table"):
        assert said in str(caught.value)


class Named(tt.Layer):
    """Names that kernels use for something else, and a number drawn with one of them about."""

    STATES = ("x", "grad_y", "grad_x", "t", "lane", "row", "xt", "int", "at", "block", "past_y")
    PARAMETERS = ("y", "now_t", "real", "stored", "v0", "c0", "lanes", "mixed_lanes", "h", "grad_t")

    def __init__(self) -> None:
        super().__init__(3)
        self.add_state(*self.STATES)
        for name in self.PARAMETERS:
            self.add_parameter(name, 0.5, constraint=tt.constraints.sigmoid)
        self.weight = torch.nn.Parameter(torch.tensor([0.5, 0.6, 0.7]))

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        drive = sum(((k + 1) * value for k, value in enumerate(p)), x * self.weight)
        new = {
            name: torch.tanh(0.1 * (k + 1) * value + p.y * states.x + 0.1 * drive)
            for k, (name, value) in enumerate(states._asdict().items())
        }
        return new, sum(new.values(), x)


def test_states_and_parameters_may_have_any_name() -> None:
    layer = Named().double()
    x = torch.randn(40, 2, 3, dtype=torch.float64)
    assert_alike(layer, x, 1e-10)


def test_a_scans_inputs_have_names_of_their_own() -> None:
    for name in ("h", "y"):
        with pytest.raises(ValueError, match=f"^scan odd: an input cannot be {name}"):
            Scan("odd", lambda h, u: (h + u, h), {name: "d"})
