"""What is dropped is gone: layers, their kernels and the graphs that their states held."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.engine.definition import Definition
from tracetorch.engine.program import Program

X = torch.rand(3, 2, 4)


class Two(tt.Layer):
    """Two states, so that two tensors hold the graph that made them."""

    def __init__(self) -> None:
        super().__init__(4)
        self.add_state("slow", "fast")
        self.add_parameter("beta", 0.8, constraint=tt.constraints.sigmoid)

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        fast = torch.tanh(0.5 * states.fast + x)
        slow = p.beta * states.slow + (1 - p.beta) * fast
        return {"slow": slow, "fast": fast}, slow * torch.sigmoid(4 * fast)


class Net(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), Two(), Two())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def alive(kind: type) -> int:
    for _ in range(3):  # what a graph in C++ lets go of may be in a circle itself
        gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


@pytest.mark.parametrize(
    "use",
    [
        lambda made: made.unroll(X),
        lambda made: made.unroll(X).sum().backward(),
        lambda made: made(X[0]),
    ],
    ids=["unrolled", "differentiated", "stepped"],
)
def test_what_is_dropped_with_a_standing_graph_is_gone(use: Callable[[Net], object]) -> None:
    use(Net())
    before = alive(Definition)
    made = Net()
    parameter = weakref.ref(next(made.parameters()))
    use(made)
    del made
    assert alive(Definition) == before
    assert parameter() is None


def test_layers_that_compute_the_same_share_their_kernels() -> None:
    def run() -> None:
        Two().unroll(X)

    run()
    before = alive(Program)
    for _ in range(4):
        run()
    assert alive(Program) == before
