"""Training models of snn and rnn layers: checkpointed, truncated, without a past."""

from __future__ import annotations

import copy
import gc
import runpy
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tracetorch import rnn, snn

shared = runpy.run_path(str(Path(__file__).parent / "workers" / "mixed.py"))
Mixed: Callable[[], tt.Model] = shared["Mixed"]
loss_of: Callable[[Tensor], Tensor] = shared["loss_of"]


def inputs(steps: int = 8, batch: int = 6) -> Tensor:
    return 1.5 * torch.randn(steps, batch, 3, dtype=torch.float64)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None and gradient.any() for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=name)


# ------------------------------------------------------------------ activation checkpointing


def _in_two_segments(model: tt.Model, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([run(x[:3]), run(x[3:])])


def _step_by_step(model: tt.Model, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([run(timestep[None]) for timestep in x])


@pytest.mark.parametrize("divided", [_in_two_segments, _step_by_step])
def test_checkpointing_has_the_plain_gradients(
    divided: Callable[[tt.Model, Tensor, Callable[[Tensor], Tensor]], Tensor],
) -> None:
    model = Mixed().double()
    twin, x = copy.deepcopy(model), inputs()
    own, others = x.clone().requires_grad_(), x.clone().requires_grad_()

    def recomputed(part: Tensor) -> Tensor:
        y: Tensor = checkpoint(
            twin.unroll, part, use_reentrant=False, context_fn=tt.restored_states(twin)
        )
        return y

    expected, y = model.unroll(own), divided(twin, others, recomputed)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for output, net in ((expected, model), (y, twin)):
        loss_of(output).backward()
        net.detach_states()
    assert_same(gradients(twin), gradients(model), 1e-10)
    assert own.grad is not None
    assert others.grad is not None
    torch.testing.assert_close(others.grad, own.grad, rtol=1e-10, atol=1e-10)
    assert_same(twin.get_states(), model.get_states(), 1e-10)


def test_checkpointing_without_the_states_is_refused() -> None:
    model, x = Mixed().double(), inputs()
    y = checkpoint(model.unroll, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"context_fn=tt\.restored_states\(model\)"):
        loss_of(y).backward()


# ------------------------------------------------------------------ truncated back-propagation


def test_a_backward_pass_per_chunk_is_one_over_detached_chunks() -> None:
    """Two ways to truncate: by hand with ``detach_states``, and ``unroll(detach_every=)``."""
    model, x = Mixed().double(), inputs(8)
    twin = copy.deepcopy(model)
    for chunk in x.split(4):
        model.unroll(chunk).sum().backward()
        model.detach_states()
    twin.unroll(x, detach_every=4).sum().backward()
    assert_same(gradients(model), gradients(twin), 1e-10)
    whole = copy.deepcopy(twin)
    whole.zero_states()
    whole.zero_grad()
    whole.unroll(x).sum().backward()
    assert not torch.allclose(gradients(whole)["net.0.weight"], gradients(model)["net.0.weight"])


def test_a_second_backward_pass_needs_detached_states() -> None:
    model, x = Mixed().double(), inputs(8)
    model.unroll(x[:4]).sum().backward()
    y = model.unroll(x[4:]).sum()
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()


# ------------------------------------------------------------------ memory


def _graph_size(y: Tensor) -> int:
    """How many nodes the graph behind ``y`` has."""
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return len(seen)


@pytest.mark.parametrize("forgets", ["zero_states", "detach_states"])
def test_the_memory_of_a_training_loop_does_not_grow(forgets: str) -> None:
    """Live tensors, graph and states' memory stay, and no state of an earlier batch is alive."""
    model = Mixed().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    measured, past = [], []
    for batch in range(7):
        optimizer.zero_grad()
        loss = loss_of(model.unroll(inputs(5)))
        nodes = _graph_size(loss)
        loss.backward()
        optimizer.step()
        del loss
        past.extend(weakref.ref(state) for state in model.get_states().values())
        held = sum(s.untyped_storage().nbytes() for s in model.get_states().values())
        getattr(model, forgets)()
        # by then the optimizer has made its own
        if batch in (2, 6):
            gc.collect()
            tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
            measured.append((tensors, nodes, held))
    assert past
    assert [ref() for ref in past] == [None] * len(past)
    (tensors_then, *then), (tensors_now, *now) = measured
    assert now == then
    # what earlier tests have left may still be going
    assert tensors_now <= tensors_then


# ------------------------------------------------------------------ two models


def test_two_models_never_touch_each_other(tmp_path: Path) -> None:
    """Whatever one of a pair is asked to do, the other's states and weights stand still."""
    one, other, x = Mixed().double(), Mixed().double(), inputs()
    for model in (one, other):
        model.unroll(x[:4])
    before = other.get_states()
    weights = {name: p.detach().clone() for name, p in other.state_dict().items()}
    one.save_states(tmp_path / "states.pt")
    for call in (
        lambda: one.unroll(x[4:], lengths=torch.tensor([0, 1, 2, 3, 4, 4])).sum().backward(),
        one.detach_states,
        lambda: one.zero_states(torch.tensor([True] * 3 + [False] * 3)),
        lambda: one.load_states(tmp_path / "states.pt"),
        lambda: one.set_states(one.get_states()),
        one.TTcompile,
        lambda: one.half(),
        one.zero_states,
    ):
        call()
        assert all(other.get_states()[name] is state for name, state in before.items())
    assert all(torch.equal(p, weights[name]) for name, p in other.state_dict().items())
    assert all(p.grad is None for p in other.parameters())
    assert not any(layer.tt.compiled for _, layer in other.named_layers())


def test_taking_turns_is_taking_them_one_after_the_other() -> None:
    models, x = [Mixed().double(), Mixed().double()], inputs()
    alone = [copy.deepcopy(model).unroll(x) for model in models]
    turns = [[model(timestep) for model in models] for timestep in x]
    for outputs, expected in zip(zip(*turns, strict=True), alone, strict=True):
        torch.testing.assert_close(torch.stack(outputs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [snn.DSRLITS, snn.LIEMA, lambda n: rnn.LSTM(n, n)])
def test_a_layer_in_two_models_keeps_one_state(make: Callable[[int], tt.Layer]) -> None:
    class Holder(tt.Model):
        def __init__(self, layer: tt.Layer) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    shared = make(3).double()
    one, other = Holder(shared), Holder(shared)
    x, alone = inputs(2), copy.deepcopy(shared)
    turns = torch.stack([one(x[0]), other(x[1])])
    torch.testing.assert_close(turns, alone.unroll(x), rtol=1e-10, atol=1e-10)
    one.zero_states()
    assert other.get_states() == {}
