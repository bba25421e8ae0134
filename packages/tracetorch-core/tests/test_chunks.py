"""Chunks of a sequence: put together without a second copy, and computed again when asked."""

from __future__ import annotations

import logging
import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import jvp
from tracetorch.testing import AdaptiveLIF, Trace


class Noisy(tt.Model):
    """Everything that a second forward pass could change: statistics, masks, random spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.lif, self.out = AdaptiveLIF(4), Trace(4)
        self.outputs: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.out(self.drop(self.lif(self.norm(x))))
        return y, torch.sigmoid(y)


def results(model: tt.Model, x: Tensor, **options: Any) -> list[Tensor]:
    """Outputs, all gradients, final states and buffers."""
    torch.manual_seed(5)
    model.zero_states()
    x = x.clone().requires_grad_()
    ys = model.unroll(x, **options)
    states = list(model.get_states().values())
    loss = sum(((k + 1) * value.sin()).sum() for k, value in enumerate([*ys, *states]))
    gradients = torch.autograd.grad(loss, [x, *model.parameters()])
    return [*ys, *gradients, *states, *model.buffers()]


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_recomputing_changes_nothing(size: int) -> None:
    x, found = torch.randn(10, 3, 4, dtype=torch.float64), []
    for recompute in (False, True):
        torch.manual_seed(4)
        model = Noisy().double()
        found.append(results(model, x, chunk_size=size, recompute=recompute))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Fading(tt.Model):
    """Counts its timesteps in several places, and weighs them by that."""

    def __init__(self) -> None:
        super().__init__()
        self.leak, self.count, self.past = Trace(4), 0, {"weights": [1.0]}
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.past["weights"].append(self.past["weights"][-1] / 2)
        self.scale = 0.9 * self.scale
        y: Tensor = self.leak(x * self.past["weights"][-1] + self.count) * self.scale
        return y


class Averaging(tt.Model):
    """What a recomputation has to find as it was: a buffer in place, draws of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.leak, self.generator = Trace(4), torch.Generator().manual_seed(2)
        self.register_buffer("mean", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(x.detach().mean(0))
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
        y: Tensor = self.leak(x * self.mean.clone() * noise) * random.random() * np.random.rand()
        return y


@pytest.mark.parametrize("steps", [10, 1])
@pytest.mark.parametrize("make", [Fading, Averaging])
def test_what_cannot_be_computed_again_is_not_recomputed(make: type[tt.Model], steps: int) -> None:
    model, x = make().double(), torch.randn(steps, 3, 4, dtype=torch.float64, requires_grad=True)
    name = make.__name__
    says = rf"^recompute=True needs .* again, and {name} is stepped: forward changes {name}\."
    with pytest.raises(tt.FoldError, match=says):
        model.unroll(x, recompute=True, chunk_size=3)
    assert model.get_states() == {}
    with torch.no_grad():  # where nothing is computed again
        model.unroll(x, recompute=True, chunk_size=3)


def kept(model: tt.Model, x: Tensor, **options: Any) -> int:
    """Elements that autograd keeps of an unrolled sequence, those of ``x`` apart."""
    held: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            held.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.unroll(x, **options)
    return sum(held)


def test_of_a_recomputed_chunk_nothing_is_kept_but_its_outputs() -> None:
    model, x = Noisy(), torch.randn(40, 3, 4)
    assert kept(model, x, chunk_size=8) >= 3 * x.numel()
    assert kept(model, x, chunk_size=8, recompute=True) == 0
    with torch.no_grad():
        assert kept(model, x, chunk_size=8, recompute=True) == 0


class Watched(tt.Model):
    """Tells at each call how many outputs of earlier ones are still there, in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.leak, self.log = Trace(4), logging.getLogger("tracetorch.tests.watched")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(x) * 2
        self.log.info("called", extra={"output": weakref.ref(y)})
        return y


class Alive(logging.Handler):
    """Counts, at each call, the outputs of earlier ones that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.refs: list[Any] = []
        self.alive: list[int] = []

    def emit(self, record: Any) -> None:
        self.alive.append(sum(ref() is not None for ref in self.refs))
        self.refs.append(record.output)


@pytest.mark.parametrize("grad", [True, False])
def test_outputs_of_earlier_chunks_are_gone_when_the_next_begins(grad: bool) -> None:
    model, x, handler = Watched(), torch.randn(12, 3, 4, requires_grad=grad), Alive()
    expected = model.unroll(x)
    model.zero_states()
    model.log.setLevel(logging.INFO)
    model.log.addHandler(handler)
    try:
        y = model.unroll(x, chunk_size=4)
    finally:
        model.log.removeHandler(handler)
    assert handler.alive == [0] * 3
    assert torch.equal(y, expected)


def test_the_whole_may_be_changed_in_place() -> None:
    model, found = Watched(), []
    for size in (4, None):
        x = torch.linspace(-1, 1, 144).view(12, 3, 4).requires_grad_()
        model.zero_states()
        y = model.unroll(x, chunk_size=size)
        y.mul_(3)
        y[5].add_(y[6])
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_first_and_second_derivatives_agree_with_differences(recompute: bool) -> None:
    model = Watched().double()
    x = torch.randn(5, 1, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        model.zero_states()
        y: Tensor = model.unroll(x, chunk_size=2, recompute=recompute)
        return y.sin() * y

    assert torch.autograd.gradcheck(run, x)
    # a random sum of the second derivatives, by one difference and not one for each of 40 numbers
    assert torch.autograd.gradgradcheck(run, x, fast_mode=True)


def test_forward_mode_goes_through_chunks() -> None:
    model, x = Watched().double(), torch.randn(5, 2, 4, dtype=torch.float64)

    def run(size: int | None) -> Callable[[Tensor], Tensor]:
        def unrolled(x: Tensor) -> Tensor:
            model.zero_states()
            y: Tensor = model.unroll(x, chunk_size=size, recompute=True)
            return y

        return unrolled

    for got, expected in zip(
        jvp(run(2), (x,), (x.cos(),)), jvp(run(None), (x,), (x.cos(),)), strict=True
    ):
        torch.testing.assert_close(got, expected)


class Changing(tt.Model):
    """What it puts out depends on the number of timesteps it has seen."""

    def __init__(self, *kinds: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.leak, self.kinds, self.seen = Trace(3), kinds, [0]

    def forward(self, x: Tensor) -> Any:
        kind = self.kinds[min(self.seen[0], len(self.kinds) - 1)]
        self.seen.append(0)
        self.seen[0] += 1
        return kind(self.leak(x))


@pytest.mark.parametrize(
    ("second", "got"),
    [
        (lambda y: y[:, :2], "['torch.float32 [2, 2] on cpu']"),
        (lambda y: y.double(), "['torch.float64 [2, 3] on cpu']"),
        (lambda y: (y, y), "['torch.float32 [2, 3] on cpu', 'torch.float32 [2, 3] on cpu']"),
    ],
    ids=["shape", "type", "nesting"],
)
def test_outputs_of_another_kind_are_refused(second: Callable[[Tensor], Any], got: str) -> None:
    model = Changing(lambda y: y, lambda y: y, second)
    says = (
        f"unroll: forward must give outputs of one kind at every timestep, got {got} after 2 of "
        f"4 timesteps, and ['torch.float32 [2, 3] on cpu'] until then"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        model.unroll(torch.ones(4, 2, 3), chunk_size=1, fold=False)
    assert model.get_states() == {}
