"""Sequences cut into segments that run at once: the same as the loop, where states are affine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import testing
from tracetorch.calls import subject_of
from tracetorch.engine import segments
from tracetorch.engine.trace import Traced, scene_of, trace


class Filter(tt.Layer):
    """Two states that drive each other, an offset, any function of x, any output."""

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("fast", "slow")
        self.add_parameter("a", 0.8, constraint=tt.constraints.sigmoid)
        self.add_parameter("b", 0.3, rank=0)
        self.add_parameter("scale", 2.0)

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        fast = p.a * states.fast - p.b * states.slow + torch.tanh(x * p.scale)
        slow = 0.9 * states.slow + fast / p.scale + 0.1
        return {"fast": fast, "slow": slow}, torch.sigmoid(fast) * slow


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of not rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def traced_of(layer: tt.Layer) -> Traced:
    subject = subject_of(layer)
    return trace(subject, scene_of(subject), torch.float32, 2)


def layer_of(update: Any) -> tt.Layer:
    class Own(tt.Layer):
        def __init__(self) -> None:
            super().__init__(3)
            self.add_state("mem")
            self.add_parameter("beta", 0.9)

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            mem = update(states.mem, x, p.beta)
            return {"mem": mem}, mem

    return Own()


AFFINE = {
    "a leak": lambda mem, x, beta: beta * mem + x,
    "an average": lambda mem, x, beta: mem + (1 - beta) * (torch.relu(x) - mem),
    "a sign and a quotient": lambda mem, x, beta: -(mem / (1 + beta * beta)) + x * x,
}
OTHERS = {
    "a decay by x": lambda mem, x, beta: torch.sigmoid(x) * mem + x,
    "a square": lambda mem, x, beta: beta * mem * mem + x,
    "a quotient by it": lambda mem, x, beta: beta / (2 + mem) + x,
    "a reset": lambda mem, x, beta: beta * mem + x - (mem > 1).to(x.dtype),
    "rounding that looks straight to gradients": lambda mem, x, beta: Straight.apply(mem) + x,
    "a choice": lambda mem, x, beta: torch.where(x > 0, beta * mem, mem),
}


@pytest.mark.parametrize("kind", AFFINE)
def test_affine_steps_are_known(kind: str) -> None:
    assert segments.affine(traced_of(layer_of(AFFINE[kind])))


@pytest.mark.parametrize("kind", OTHERS)
def test_other_steps_are_known(kind: str) -> None:
    assert not segments.affine(traced_of(layer_of(OTHERS[kind])))


def everything(layer: tt.Layer, x: Tensor, start: dict[str, Tensor]) -> list[Tensor]:
    start = {name: state.clone().requires_grad_() for name, state in start.items()}
    x = x.clone().requires_grad_()
    layer.set_states(start)
    y = layer.unroll(x)
    ends = [y, *layer.get_states().values()]
    torch.manual_seed(1)
    loss = torch.stack([(end * torch.randn(end.shape).to(end)).sum() for end in ends]).sum()
    return [*ends, *torch.autograd.grad(loss, [x, *start.values(), *layer.parameters()])]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments every sequence is cut into; and how often that was asked."""
    pieces = [1, 0]

    def count(steps: int, lanes: int, device: torch.device) -> int:
        pieces[1] += 1
        return pieces[0]

    monkeypatch.setattr(segments, "count", count)
    return pieces


@pytest.mark.parametrize("pieces", [2, 3, 8, 50])
@pytest.mark.parametrize(("shape", "dim"), [((2, 3), -1), ((3, 2, 2), 0), ((3,), 0)])
@pytest.mark.parametrize("make", [Filter, testing.Trace])
def test_segments_are_the_loop(
    cut: list[int], make: Any, shape: tuple[int, ...], dim: int, pieces: int
) -> None:
    layer, x = make(3, dim=dim).double(), torch.randn(101, *shape, dtype=torch.float64)
    start = {name: torch.randn(shape, dtype=torch.float64) for name in layer.tt.states}
    expected = everything(layer, x, start)
    cut[0] = pieces
    with tt.backends.use("cpp"):
        got = everything(layer, x, start)
    assert cut[1] == 2
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [4, 5, 7, 8])
def test_any_length_can_be_cut(cut: list[int], steps: int) -> None:
    layer, x = Filter(3).double(), torch.randn(steps, 2, 3, dtype=torch.float64)
    start = {name: torch.randn(2, 3, dtype=torch.float64) for name in layer.tt.states}
    expected = everything(layer, x, start)
    cut[0] = 4
    torch.testing.assert_close(everything(layer, x, start), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [8, 9])
def test_what_remains_is_run_behind_the_segments(steps: int) -> None:
    def run(x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        mems = [*itertools.accumulate(x, lambda mem, now: 0.5 * mem + now, initial=states[0])]
        return [torch.stack(mems[1:]), mems[-1]]

    x, start = torch.randn(steps, 2).double(), torch.randn(2).double()
    found = segments.unroll(run, x, [start], 4)
    assert found is not None
    torch.testing.assert_close(found, run(x, [start]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "state"])
def test_nan_and_infinity_pass_as_in_the_loop(cut: list[int], value: float, where: str) -> None:
    layer, x = testing.Trace(3, beta=0.1), torch.randn(400, 2, 3)
    start = {"mem": torch.randn(2, 3)}
    (x[200] if where == "x" else start["mem"])[1, 2] = value
    outcomes = []
    for pieces in (1, 4):
        cut[0] = pieces
        layer.set_states(start)
        outcomes.append(layer.unroll(x).detach())
    torch.testing.assert_close(*outcomes, equal_nan=True)


def test_second_derivatives_go_through_segments_too(cut: list[int]) -> None:
    layer, x = Filter(2).double(), torch.randn(9, 1, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for pieces in (1, 3):
        cut[0] = pieces
        layer.zero_states()
        (first,) = torch.autograd.grad(layer.unroll(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_only_few_lanes_for_long_on_a_gpu_are_cut() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert segments.count(1_000_000, 1, cpu) == 1
    assert segments.count(100, 1, gpu) == 1
    assert segments.count(100_000, 1_000_000, gpu) == 1
    assert segments.count(100_000, 0, gpu) == 1
    assert segments.count(100_000, 64, gpu) == 512
