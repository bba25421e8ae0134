"""The nets of the digit examples: as many parameters each, what they remember, what they share."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import tracetorch as tt

FOLDER = Path(__file__).parents[1] / "examples" / "mnist"
OTHERS = ["lstm", "gru", "ssm"]


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("sequence_nets")


@pytest.fixture
def noisy(nets: ModuleType) -> ModuleType:
    return importlib.import_module("noisy")


# ------------------------------------------------------------------ sequences


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kernel_size", [1, 4, 28, 56, 784])
def test_every_net_has_as_many_parameters_as_the_spiking_one(
    nets: ModuleType, name: str, kernel_size: int
) -> None:
    counts = [
        sum(p.numel() for p in nets.net(each, kernel_size).parameters()) for each in ("snn", name)
    ]
    assert abs(counts[1] / counts[0] - 1) < 0.02


@pytest.mark.parametrize("name", OTHERS)
def test_a_seed_draws_the_weights_of_a_net_whatever_its_size_is_found_by(
    nets: ModuleType, name: str
) -> None:
    make = nets.SIZED[name]
    torch.manual_seed(0)
    found = nets.net(name, 28)
    torch.manual_seed(0)
    alone = make(28, nets.size(make, 28))
    assert all(map(torch.equal, found.parameters(), alone.parameters()))


@pytest.mark.parametrize("name", ["snn", *OTHERS])
def test_whole_sequences_are_the_loop_and_what_came_first_is_remembered(
    nets: ModuleType, name: str
) -> None:
    net, x = nets.net(name, 28).double(), torch.rand(28, 3, 28, dtype=torch.float64)
    tt.check_unroll(net, x)
    x.requires_grad_()
    net.zero_states()
    gradient = torch.autograd.grad(net.unroll(x)[-1].square().sum(), x)[0]
    assert gradient[0].abs().amax(-1).all()
    assert (
        dict(net.named_layers())[net.watched]
        is [layer for _, layer in net.named_layers() if not isinstance(layer, tt.snn.LI)][-1]
    )


# ------------------------------------------------------------------ noisy views


def test_a_view_is_the_image_and_fresh_noise(noisy: ModuleType) -> None:
    images = torch.rand(3, 1, 28, 28)
    noise = (noisy.noisy(images, 200, 1.5) - images) / 1.5
    assert noise.shape == (200, 3, 1, 28, 28)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    for other in (noise.roll(1, 0), noise.roll(1, 1), noise.roll(1, -1)):
        assert abs((noise * other).mean()) < 0.01


def test_only_one_of_the_two_nets_remembers_and_neither_learns_from_the_other(
    noisy: ModuleType,
) -> None:
    net, views = noisy.Nets(), noisy.noisy(torch.rand(4, 1, 28, 28), 6, 1.0)
    whole = net.unroll(views)
    net.zero_states()
    last = net(views[-1])
    torch.testing.assert_close(last[:, 1], whole[-1, :, 1])
    assert (last[:, 0] - whole[-1, :, 0]).abs().max() > 0.1
    for index, (mine, other) in enumerate([("gathering", "alone"), ("alone", "gathering")]):
        net.zero_states()
        net.zero_grad()
        net.unroll(views)[:, :, index].square().sum().backward()
        assert all(p.grad.any() for p in getattr(net, mine).parameters())
        assert not any(p.grad.any() for p in getattr(net, other).parameters())


def test_the_loss_is_of_every_answer_of_both(noisy: ModuleType) -> None:
    scores, labels = torch.randn(5, 7, 2, 10), torch.randint(10, (7,))
    each = [F.cross_entropy(scores[t, :, net], labels) for t in range(5) for net in range(2)]
    torch.testing.assert_close(noisy.every_answer(scores, labels), torch.stack(each).mean())


def test_accuracies_are_of_the_answers_so_far(
    noisy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against scores that are known: [T, B, 2, 10], a digit at a time."""
    views, count = 6, 300
    scores, labels = torch.randn(views, count, 2, 10), torch.randint(10, (count,))
    scores[..., :] += F.one_hot(labels, 10)[:, None]
    parts = iter(scores.split(noisy.training.EVALUATION_BATCH, dim=1))
    monkeypatch.setattr(noisy.training, "answers", lambda _model, _sequence: next(parts))
    digits = noisy.Digits(torch.rand(count, 1, 28, 28), labels)
    found = noisy.accuracies(noisy.Nets(), digits, views, 1.0)
    for t in range(views):
        gathering = alone = votes = 0
        for b, label in enumerate(labels):
            gathering += scores[t, b, 0].argmax() == label
            alone += scores[t, b, 1].argmax() == label
            chances = scores[: t + 1, b, 1].exp() / scores[: t + 1, b, 1].exp().sum(-1, True)
            votes += chances.prod(0).argmax() == label
        wanted = {noisy.GATHERING: gathering, noisy.ALONE: alone, noisy.VOTES: votes}
        assert {name: round(curve[t].item() * count) for name, curve in found.items()} == wanted
