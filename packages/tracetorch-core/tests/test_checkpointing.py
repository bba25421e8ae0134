"""Activation checkpointing: the plain run's gradients, or a refusal that says the remedy."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace

Call = Callable[..., Any]


class Block(nn.Module):
    """An ordinary module with a layer and a list of layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(3, 3), AdaptiveLIF(3)
        self.more = [Trace(3)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.more[0](self.lif(self.fc(x)))
        return y


class Net(tt.Model):
    """A block, then a layer, both called through ``call``."""

    def __init__(self, call: Call | None = None) -> None:
        super().__init__()
        self.block, self.last = Block(), StateSpace(3, out_size=2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.block, self.last):
            x = part(x) if self.call is None else self.call(part, x)
        return x


def restoring(module: nn.Module, *x: Tensor) -> Any:
    return checkpoint(module, *x, use_reentrant=False, context_fn=tt.restored_states(module))


def net(call: Call | None = None) -> Net:
    torch.manual_seed(7)
    return Net(call).double()


def inputs(steps: int = 4) -> Tensor:
    torch.manual_seed(8)
    return torch.randn(steps, 2, 3, dtype=torch.float64, requires_grad=True)


def weighted(y: Tensor) -> Tensor:
    weights = torch.arange(1.0, 1.0 + y.numel(), dtype=y.dtype)
    return (y * weights.reshape(y.shape)).sum()


def gradients(model: tt.Model, x: Tensor) -> list[Tensor | None]:
    found = [x.grad, *(p.grad for p in model.parameters())]
    return [None if grad is None else grad.clone() for grad in found]


def plain(rounds: int = 1) -> tuple[Tensor, list[Tensor | None], dict[str, Tensor]]:
    model, x = net(), inputs()
    y = torch.stack([model(timestep) for timestep in x])
    for _ in range(rounds):
        weighted(y).backward(retain_graph=True)
    return y, gradients(model, x), model.get_states()


def same(got: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert all(grad is not None for grad in expected)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def _by_part() -> tuple[Net, Call]:
    model = net(restoring)
    return model, model


def _by_timestep() -> tuple[Net, Call]:
    model = net()
    return model, lambda x: restoring(model, x)


def _both() -> tuple[Net, Call]:
    model = net(restoring)
    return model, lambda x: restoring(model, x)


@pytest.mark.parametrize("rounds", [1, 2], ids=["once", "retained graph"])
@pytest.mark.parametrize("make", [_by_part, _by_timestep, _both])
def test_timesteps_have_the_plain_gradients(
    make: Callable[[], tuple[Net, Call]], rounds: int
) -> None:
    expected_y, expected, states = plain(rounds)
    (model, call), x = make(), inputs()
    y = torch.stack([call(timestep) for timestep in x])
    assert torch.equal(y, expected_y)
    standing = model.get_states()
    for _ in range(rounds):
        weighted(y).backward(retain_graph=True)
    same(gradients(model, x), expected)
    after = model.get_states()
    assert all(after[name] is state for name, state in standing.items())
    assert after.keys() == states.keys()
    assert all(torch.equal(after[name], state) for name, state in states.items())


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_of_a_sequence_have_the_plain_gradients(chunk: int) -> None:
    expected_y, expected, states = plain()
    model, x = net(), inputs()

    class Chunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.model.unroll(x)
            return y

    y = torch.cat([restoring(Chunk(), part) for part in x.split(chunk)])
    # a linear layer over more rows may round its sums in another order
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    weighted(y).backward()
    same(gradients(model, x), expected)
    torch.testing.assert_close(model.get_states(), states, rtol=1e-12, atol=1e-12)


def test_an_incoming_state_gets_its_gradient() -> None:
    grads = []
    for call in (lambda layer, x: layer(x), restoring):
        layer, start = Trace(2, beta=0.5), torch.ones(1, 2, requires_grad=True)
        layer.mem = start
        for _ in range(3):
            y = call(layer, torch.zeros(1, 2))
        y.sum().backward()
        grads.append(start.grad)
    assert grads[0].tolist() == grads[1].tolist() == [[0.125, 0.125]]


def test_states_may_be_zeroed_before_the_backward_pass() -> None:
    _, expected, _ = plain()
    model, x = net(restoring), inputs()
    y = torch.stack([model(timestep) for timestep in x])
    model.zero_states()
    weighted(y).backward()
    same(gradients(model, x), expected)
    assert model.get_states() == {}


def test_a_training_loop_goes_the_same_way() -> None:
    models = net(), net(restoring)
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            weighted(model.unroll(inputs(3))).backward()
            optimizer.step()
            model.detach_states()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


class Late(nn.Module):
    """Makes its layer in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tt.Layer] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.made:
            self.made.append(Trace(1, beta=0.5))
        y: Tensor = self.made[0](x).square()
        return y


def test_a_layer_made_on_the_way_had_no_states_before() -> None:
    module, x = Late(), torch.full((1, 1), 3.0, requires_grad=True)
    restoring(module, x).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 6.0
    assert module.made[0].mem.item() == 3.0


# ---------------------------------------------------------------- refusals


REMEDY = (
    "is recomputed in a backward pass from states that have moved on; "
    "checkpoint with use_reentrant=False, context_fn=tt.restored_states(model)"
)


def _plain_checkpoint(module: nn.Module, x: Tensor) -> Any:
    return checkpoint(module, x, use_reentrant=False)


def _reentrant(module: nn.Module, x: Tensor) -> Any:
    return checkpoint(module, x, use_reentrant=True)


def _unrolled(module: nn.Module, x: Tensor) -> Any:
    return checkpoint(lambda x: module.unroll(x[None])[0], x, use_reentrant=False)


def _restores_another(module: nn.Module, x: Tensor) -> Any:
    return checkpoint(module, x, use_reentrant=False, context_fn=tt.restored_states(Trace(3)))


@pytest.mark.parametrize("call", [_plain_checkpoint, _reentrant, _unrolled, _restores_another])
def test_a_recomputation_from_other_states_is_refused(call: Call) -> None:
    layer, x = Trace(3), torch.ones(2, 3, requires_grad=True)
    y = call(layer, x)
    mem = layer.mem
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{layer!r} {REMEDY}')}$"):
        y.sum().backward()
    assert layer.mem is mem


def test_a_layer_beside_the_restored_one_is_refused() -> None:
    inside, beside = Trace(3), AdaptiveLIF(3)
    x = torch.ones(2, 3, requires_grad=True)
    y = checkpoint(
        lambda x: beside(inside(x)), x,
        use_reentrant=False, context_fn=tt.restored_states(inside),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=f"^{re.escape(repr(beside))} is recomputed"):
        y.sum().backward()
    inside.zero_states(), beside.zero_states()
    restoring(nn.Sequential(inside, beside), x).sum().backward()
    assert x.grad is not None


def test_after_a_failed_recomputation_nothing_is_left_behind() -> None:
    class Fragile(Trace):
        fails = False

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            if self.fails:
                raise ArithmeticError("told to")
            return super().step(states, x, p)

    layer, x = Fragile(3), torch.ones(2, 3, requires_grad=True)
    y = restoring(layer, x)
    mem, layer.fails = layer.mem, True
    with pytest.raises(ArithmeticError):
        y.sum().backward(retain_graph=True)
    assert layer.mem is mem
    layer.fails = False
    with pytest.raises(RuntimeError, match="is recomputed"):
        _plain_checkpoint(layer, x).sum().backward()
    y.sum().backward()
    assert x.grad is not None


def test_between_backward_passes_a_layer_steps_freely() -> None:
    layer, x = Trace(3, beta=0.5), torch.ones(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    assert torch.equal(layer(x), torch.full((2, 3), 1.5))
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, torch.full((2, 3), 6.0))


# ---------------------------------------------------------------- threads


def test_threads_restore_their_own_models_only() -> None:
    _, expected, _ = plain()
    calls = _plain_checkpoint, restoring, restoring, None
    models = [(net(call), inputs()) for call in calls]
    meet = threading.Barrier(len(models), timeout=60)
    results: dict[int, Any] = {}

    def train(which: int) -> None:
        model, x = models[which]
        meet.wait()
        for _ in range(5):
            model.zero_states(), model.zero_grad()
            x.grad = None
            y = torch.stack([model(timestep) for timestep in x])
            try:
                weighted(y).backward()
            except RuntimeError as error:
                results[which] = str(error)
                return
        results[which] = gradients(model, x)

    threads = [threading.Thread(target=train, args=(which,)) for which in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert REMEDY in results.pop(0)
    assert len(results) == 3
    for found in results.values():
        same(found, expected)


def test_one_thread_restoring_does_not_allow_another() -> None:
    entered, leave = threading.Event(), threading.Event()
    layer = Trace(3)
    _, restore = tt.restored_states(layer)()

    def hold() -> None:
        with restore:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(60)
    y = _plain_checkpoint(layer, torch.ones(2, 3, requires_grad=True))
    try:
        with pytest.raises(RuntimeError, match="is recomputed"):
            y.sum().backward()
    finally:
        leave.set()
        thread.join()
