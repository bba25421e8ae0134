"""Spikes kept as bits: the same outputs and gradients bit for bit, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tracetorch import mode, testing
from tracetorch.engine import last_use, memory, operators, spikes
from tracetorch.sequences import packing

SHAPE = (45, 16, 100)
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
packs = pytest.mark.skipif(
    not mode.saved_as_they_are(), reason="this torch does not say whether hooks are at work"
)


def drawn(values: tuple[float, ...], count: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (count,))]


def words(tensor: Tensor) -> Tensor:
    return tensor.view(WORDS[tensor.element_size()])


# ------------------------------------------------------------------ bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", [(0.0,), (0.0, 1.0), (0.0, 1.0, -1.0), (-1.0,)])
def test_spikes_come_back_bit_for_bit(values: tuple[float, ...], dtype: torch.dtype) -> None:
    for count in (1 << 17, 300_007):
        tensor = drawn(values, count, dtype).view(1, -1)
        found = spikes.packed(tensor)
        assert found is not None
        bits = found.planes.numel() * 32 / count
        assert bits == pytest.approx(2 if -1.0 in values else 1, abs=1e-3)
        back = found.unpacked()
        assert back.shape == tensor.shape
        assert torch.equal(words(back), words(tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_other_value_anywhere_is_enough(dtype: torch.dtype) -> None:
    count = 100_003
    tensor = drawn((0.0, 1.0, -1.0), 3 * count, dtype)
    eps = torch.finfo(dtype).eps
    for value in (-0.0, 0.5, 1 + eps, -1 - eps, 2.0, torch.inf, torch.nan, torch.finfo(dtype).tiny):
        place = int(torch.randint(tensor.numel(), ()))
        other = tensor.clone()
        other[place] = value
        assert spikes.packed(other) is None
    for place in (0, 31, 32, tensor.numel() - 1):
        other = tensor.clone()
        other[place] = 0.25
        assert spikes.packed(other) is None


def test_what_is_small_or_in_pieces_or_of_another_kind_stays() -> None:
    large = torch.ones(400, 400)
    assert spikes.packed(large) is not None
    pieces = large[:, :350], torch.ones(1, 1).expand(400, 400)
    for tensor in (torch.ones(100), *pieces, large.int(), large.to("meta")):
        assert spikes.packed(tensor) is None


# ------------------------------------------------------------------ sequences


class Spiking(testing.AdaptiveLIF):
    """Spikes, or three values of which two have a sign."""

    def __init__(self, num_neurons: int, signed: bool = False) -> None:
        super().__init__(num_neurons)
        self.signed = signed

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = super().step(states, x, p)  # type: ignore[no-untyped-call]
        return new, y * torch.sign(x) if self.signed else y


class Net(tt.Model):
    """Linear and spiking layers in turn."""

    def __init__(self, call: Callable[..., Any] | None = None, signed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        parts = [m for _ in range(3) for m in (nn.Linear(100, 100), Spiking(100, signed))]
        self.net = nn.Sequential(*parts)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        for part in self.net:
            x = part(x) if self.call is None else self.call(part, x)
        return x


def sample() -> Tensor:
    torch.manual_seed(8)
    return (4 * torch.randn(SHAPE)).requires_grad_()


def trained(net: Net, x: Tensor, **how: Any) -> list[Tensor]:
    """Outputs, final states, gradients; second derivatives where ``again``."""
    again = how.pop("again", False)
    net.zero_states()
    y = net.unroll(x, **how)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    ends = [x, *net.parameters()]
    found = torch.autograd.grad((y * weights).sum(), ends, create_graph=again)
    states = [*net.get_states().values()]
    if again:
        found += torch.autograd.grad(found[0].square().sum(), ends, allow_unused=True)
    return [y, *states, *(g for g in found if g is not None)]


def same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each tensor that was looked at, whether it was packed."""
    found: list[bool] = []

    def noted(tensor: Tensor) -> spikes.Spikes | None:
        result = spikes.packed(tensor)
        found.append(result is not None)
        return result

    monkeypatch.setattr(packing, "packed", noted)
    return found


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"fold": False},
        {"chunk_size": 23},
        {"lengths": torch.arange(30, 46)},
        {"again": True},
        {"recompute": True, "chunk_size": 30},
    ],
    ids=lambda how: next(iter(how), "whole"),
)
@pytest.mark.parametrize("signed", [False, True])
def test_nothing_else_changes(how: dict[str, Any], signed: bool) -> None:
    net, x = Net(signed=signed), sample()
    same(trained(net, x, pack_spikes=True, **how), trained(net, x, **how))


@packs
def test_what_linear_layers_keep_of_spikes_is_packed(counted: list[bool]) -> None:
    net, x = Net(), sample()
    trained(net, x, pack_spikes=True)
    assert sum(counted) == 2  # the input is the caller's, the output is nobody's
    for how in ({}, {"pack_spikes": True, "recompute": True}):
        counted.clear()
        trained(net, x, **how)
        assert counted == []
    with torch.no_grad():
        net.unroll(x, pack_spikes=True)
    assert counted == []


@packs
@pytest.mark.parametrize("pack", [False, True])
def test_memory_of_spikes_is_given_back(pack: bool) -> None:
    memory.empty_cache()
    net, x = Net(), sample()
    y = net.unroll(x, pack_spikes=pack)
    del y
    net.zero_states()
    blocks = memory._pool().waiting // x.nbytes
    assert blocks == (1 if pack else 3)  # each layer's spikes were where those before had been


@packs
def test_gradients_take_the_place_of_inputs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []

    def noted(saved: Any) -> bool:
        used.append(last_use.last_use(saved))
        return used[-1]

    monkeypatch.setattr(operators, "last_use", noted)
    net, x = Net(), sample()
    y = net.unroll(x, pack_spikes=True)
    for keep in (True, False):
        torch.autograd.grad(y.sum(), x, retain_graph=keep)
    assert used == [False] * 3 + [True] * 3


@packs
def test_hooks_of_others_see_what_they_saw(counted: list[bool]) -> None:
    net, x = Net(), sample()
    seen: list[tuple[torch.Size, int]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append((tensor.shape, tensor.element_size()))
        return tensor

    found = []
    for how in (False, True):
        net.zero_states()
        seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net.unroll(x, pack_spikes=how).sum()
        found.append(list(seen))
    assert found[0] == found[1]
    assert counted == []
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        same(trained(net, x, pack_spikes=True), trained(net, x))
    assert counted == []


def within(part: nn.Module, x: Tensor) -> Any:
    with torch.autograd.graph.save_on_cpu():
        return part(x)


def restoring(part: nn.Module, x: Tensor) -> Any:
    return checkpoint(part, x, use_reentrant=False, context_fn=tt.restored_states(part))


@pytest.mark.parametrize("call", [within, restoring], ids=["save_on_cpu", "checkpoint"])
def test_hooks_within_a_forward_have_their_part(call: Callable[..., Any]) -> None:
    x = sample()
    same(trained(Net(call), x, pack_spikes=True), trained(Net(call), x))


def test_transforms_of_functions_go_on() -> None:
    net, x = Net(), sample().detach()

    def loss(x: Tensor, pack: bool) -> Tensor:
        net.zero_states()
        y: Tensor = net.unroll(x, pack_spikes=pack, fold=False)
        return y.sum()

    grad = torch.func.grad(loss)
    assert torch.equal(grad(x[:4], True), grad(x[:4], False))


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_it_is_true_or_false(value: Any) -> None:
    net = Net()
    with pytest.raises(
        TypeError, match=f"unroll: pack_spikes must be True or False, got {value!r}"
    ):
        net.unroll(sample(), pack_spikes=value)
    assert net.get_states() == {}


@pytest.mark.parametrize("what", ["input", "weight", "between"])
def test_what_is_written_into_is_still_noticed(what: str) -> None:
    class Net(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(8, 8), nn.Linear(8, 4)
            self.trace = testing.Trace(8)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.sigmoid(self.trace(self.into(x)))
            y: Tensor = self.out(z)
            if what == "between":
                z.mul_(0.5)
            return y

    model, x = Net(), torch.rand(20, 4, 8)
    y = model.unroll(x, pack_spikes=True)
    if what == "input":
        x.zero_()
    elif what == "weight":
        with torch.no_grad():
            model.out.weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
