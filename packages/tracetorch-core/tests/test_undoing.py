"""Nothing is taken back that autograd has counted on: one backward pass over steps and sequences.

Trying a model out and computing its chunks again leave running statistics as the timesteps made
them, and no tensor "modified by an inplace operation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tracetorch.testing import AdaptiveLIF, Trace

MOMENTUM = 0.1


class Normed(tt.Model):
    """A normalization before a layer, and one between two."""

    def __init__(self, track: bool = True) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm1d(3, track_running_stats=track), AdaptiveLIF(3)
        self.linear = nn.Linear(3, 3)
        self.between, self.last = nn.BatchNorm1d(3, track_running_stats=track), Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self.linear(self.first(self.norm(x)))))
        return y


def net(training: bool, track: bool = True) -> Normed:
    torch.manual_seed(3)
    model = Normed(track).double().train(training)
    if track:
        model.norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        model.between.running_var.fill_(0.5)
    return model


def sequence(steps: int = 6) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(steps, 4, 3, dtype=torch.float64)


def gradients(model: Normed, x: Tensor, run: Callable[[Any, Tensor], Tensor]) -> list[Tensor]:
    """The first timestep by itself, the others by ``run``; one backward pass over both."""
    x = x.clone().requires_grad_()
    y = torch.cat([model(x[0])[None], run(model, x[1:])])
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    states = sum(state.sin().sum() for state in model.get_states().values())
    ((y * weights).sum() + states).backward()
    return [y.detach(), x.grad, *[p.grad for p in model.parameters()]]


def looped(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model(timestep) for timestep in x])


def once(model: Any, x: Tensor) -> Tensor:
    """What folding is: ``forward`` over all timesteps, each layer over its own sequence."""
    steps, batch = x.shape[:2]
    shape = (steps, batch, 3)
    spikes = model.first.unroll(model.norm(x.flatten(0, 1)).view(shape)).flatten(0, 1)
    y: Tensor = model.last.unroll(model.between(model.linear(spikes)).view(shape))
    return y


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"chunk_size": 2},
    "recomputed": {"recompute": True},
    "recomputed chunks": {"recompute": True, "chunk_size": 2},
    "stepped": {"fold": False},
    "folded": {"fold": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("known", [False, True], ids=["at first", "decided before"])
def test_in_evaluation_a_step_and_a_sequence_have_the_loops_gradients(
    way: str, known: bool
) -> None:
    model, reference, x = net(training=False), net(training=False), sequence()
    if known:
        model.unroll(x)
        model.zero_states()
    got = gradients(model, x, lambda m, x: m.unroll(x, **WAYS[way]))
    torch.testing.assert_close(got, gradients(reference, x, looped), rtol=1e-10, atol=1e-10)
    for name, buffer in reference.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)


@pytest.mark.parametrize("way", ["plain", "recomputed", "folded"])
@pytest.mark.parametrize("known", [False, True], ids=["at first", "decided before"])
def test_in_training_they_have_those_of_one_batch_of_all_timesteps(way: str, known: bool) -> None:
    model, reference, x = net(training=True), net(training=True), sequence()
    if known:
        model.unroll(x)
        model.zero_states()
        model.load_state_dict(reference.state_dict())
    got = gradients(model, x, lambda m, x: m.unroll(x, **WAYS[way]))
    torch.testing.assert_close(got, gradients(reference, x, once), rtol=1e-10, atol=1e-10)
    for name, buffer in reference.named_buffers():  # counted once each, whatever runs again
        torch.testing.assert_close(model.get_buffer(name), buffer)
    assert model.norm.num_batches_tracked == 2


def test_stepped_in_training_it_is_the_loop() -> None:
    model, reference, x = net(training=True), net(training=True), sequence()
    got = gradients(model, x, lambda m, x: m.unroll(x, fold=False))
    torch.testing.assert_close(got, gradients(reference, x, looped), rtol=1e-10, atol=1e-10)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer)
    assert model.norm.num_batches_tracked == len(x)


def test_running_statistics_are_those_of_the_chunks_in_their_order() -> None:
    model, x = net(training=True), sequence(7)
    expected = model.norm.running_mean.clone()
    for chunk in x[1:].split(2):
        mean = chunk.flatten(0, 1).mean(0)
        expected = (1 - MOMENTUM) * expected + MOMENTUM * mean
    gradients_of = model.unroll(x[1:], recompute=True, chunk_size=2)
    torch.testing.assert_close(model.norm.running_mean, expected)
    gradients_of.sum().backward()  # computes each chunk again
    torch.testing.assert_close(model.norm.running_mean, expected)
    assert model.norm.num_batches_tracked == 3


@pytest.mark.parametrize("way", ["recomputed", "recomputed chunks"])
def test_recomputing_twice_gives_the_same_gradients_twice(way: str) -> None:
    model, x = net(training=True), sequence()
    x.requires_grad_()
    y = model.unroll(x, **WAYS[way])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = [torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*found)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("training", [True, False])
def test_statistics_of_each_batch_even_in_evaluation_make_it_step(training: bool) -> None:
    model, reference, x = net(training, track=False), net(training, track=False), sequence()
    got = gradients(model, x, lambda m, x: m.unroll(x))
    torch.testing.assert_close(got, gradients(reference, x, looped), rtol=1e-10, atol=1e-10)
    with pytest.raises(tt.FoldError, match="the input of a AdaptiveLIF is another"):
        model.unroll(x, recompute=True)


def test_a_whole_training_goes_the_way_of_the_plain_one() -> None:
    found = []
    for options in ({}, {"recompute": True}):
        model, x = net(training=True), sequence()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            model.zero_states()
            first = model(x[0])
            y = model.unroll(x[1:], **options)
            optimizer.zero_grad()
            (F.mse_loss(y, x[1:]) + first.square().mean()).backward()
            optimizer.step()
        found.append(model.state_dict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_a_checkpoint_of_ones_own_around_a_sequence_has_the_plain_gradients() -> None:
    found = []
    for known in (False, True):
        model, x = net(training=True), sequence()
        if known:
            model.unroll(x)
            model.zero_states()
            model.load_state_dict(net(training=True).state_dict())

        def run(model: Any, x: Tensor) -> Tensor:
            context = tt.restored_states(model)
            y: Tensor = checkpoint(model.unroll, x, use_reentrant=False, context_fn=context)
            return y

        found.append([*gradients(model, x, run), *model.buffers()])
    reference = net(training=True)
    expected = [*gradients(reference, sequence(), once), *reference.buffers()]
    for got in found:
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_decision_between_two_timesteps_takes_nothing_from_the_graph() -> None:
    # every kind of sequence is decided in its own right, in the middle of one graph
    model, x = net(training=True), sequence()
    x.requires_grad_()
    y = [model(x[0])]
    y += model.unroll(x[1:3])
    with torch.no_grad():
        states = model.get_states()
        model.eval()
        model.unroll(x)
        model.train()
        model.set_states(states)
    y += model.unroll(x[3:])
    torch.stack(y).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert bool((x.grad != 0).flatten(1).any(1).all())
