"""A gradient takes the place of its input in memory only where nobody can tell."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import mode, testing
from tracetorch.engine import last_use, operators

LARGE = (45, 16, 100)  # more than 128 KB; rows and blocks that do not come out even
Keep = Callable[[Tensor], Any]


class Net(tt.Model):
    """A linear layer, its output given to ``keep``, and a layer."""

    def __init__(self, keep: Keep = lambda h: None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = nn.Linear(100, 100)
        self.lif = testing.AdaptiveLIF(100)
        # kernels keep states in 32 bits at least
        self.linear.to(dtype)
        self.lif.to(torch.promote_types(dtype, torch.float32))
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        kept = self.keep(h)
        y: Tensor = self.lif(h)
        return y + kept if isinstance(kept, Tensor) else y


def sample(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(8)
    return torch.randn(LARGE, dtype=dtype).mul_(2).requires_grad_()


def gradients(net: Net, x: Tensor, y: Tensor, **how: Any) -> list[Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [*torch.autograd.grad((y * weights).sum(), [x, *net.parameters()], **how)]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What was decided, time after time."""
    found: list[bool] = []
    decide = last_use.last_use

    def noted(saved: Any) -> bool:
        found.append(decide(saved))
        return found[-1]

    monkeypatch.setattr(operators, "last_use", noted)
    return found


def expected(
    monkeypatch: pytest.MonkeyPatch, keep: Keep, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(operators, "last_use", lambda saved: False)
        net, x = Net(keep, dtype), sample(dtype)
        return gradients(net, x, net.unroll(x, fold=True))


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_takes_the_place_of_an_input_that_is_used_up(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    places: list[int] = []

    def keep(h: Tensor) -> None:
        places.append(h.data_ptr())
        h.register_hook(lambda gradient: places.append(gradient.data_ptr()))  # type: ignore[no-untyped-call]

    net, x = Net(keep, dtype), sample(dtype)
    got = gradients(net, x, net.unroll(x, fold=True))
    assert places[0] == places[1]
    same(got, expected(monkeypatch, lambda h: None, dtype))


def test_sequences_larger_than_the_caches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weights = testing.AdaptiveLIF(512), torch.randn(400, 16, 512)
    x = torch.randn(400, 16, 512, requires_grad=True)
    found = []
    for decide in (last_use.last_use, lambda saved: False):
        monkeypatch.setattr(operators, "last_use", decide)
        layer.zero_states()
        found.append(torch.autograd.grad((layer.unroll(x * 3) * weights).sum(), x)[0])
    assert torch.equal(*found)


def test_each_of_several_layers_has_its_own_place(used: list[bool]) -> None:
    first, second = Net(), Net()
    x = sample()
    y = second.unroll(first.unroll(x, fold=True) + 0, fold=True)
    gradients(first, x, y)
    assert used == [True, True]


HELD: list[Any] = []
HOLDERS: dict[str, Keep] = {
    "the tensor": HELD.append,
    "a tensor without its graph": lambda h: HELD.append(h.detach()),
    "data": lambda h: HELD.append(h.data),
    "a view": lambda h: HELD.append(h[1:]),
    "a view of a view": lambda h: HELD.append(h.detach()[1:].view(-1)[3:]),
    "an array": lambda h: HELD.append(h.detach().numpy()),
    "a part of an array": lambda h: HELD.append(h.detach().numpy()[3:, 5:]),
    "a capsule": lambda h: HELD.append(h.detach().__dlpack__()),
    "its memory": lambda h: HELD.append(h.untyped_storage()),
    "a closure": lambda h: HELD.append(lambda: h),
    "a hook": lambda h: Tensor.register_hook(h, lambda g: g * h.detach().abs().clamp(1, 1)),  # type: ignore[no-untyped-call]
    "another operation": lambda h: h * h,
    "another operation, of a view": lambda h: h.view(-1).sin().view_as(h),
    "another operation, of its output": lambda h: h.detach().mul(0).add_(h).exp_(),
    "a weak reference": lambda h: HELD.append(weakref.ref(h)),
}


def values(held: Any) -> Tensor | None:
    if isinstance(held, torch.UntypedStorage):
        return torch.tensor(held[:400])
    if callable(held):
        held = held()
    if type(held).__name__ == "PyCapsule" or held is None:
        return None
    return torch.as_tensor(held).detach()


@pytest.mark.parametrize("who", HOLDERS)
def test_what_somebody_holds_stays_as_it_is(
    who: str, used: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    HELD.clear()
    wanted = expected(monkeypatch, HOLDERS[who])
    HELD.clear()
    net, x = Net(HOLDERS[who]), sample()
    y = net.unroll(x, fold=True)
    before = [None if (now := values(held)) is None else now.clone() for held in HELD]
    same(gradients(net, x, y), wanted)
    assert used[-1] == (who == "another operation, of its output")
    for held, then in zip(HELD, before, strict=True):
        now = values(held)
        assert now is None or (then is not None and torch.equal(now, then))
    HELD.clear()


def test_what_was_there_before_is_not_written_to(used: list[bool]) -> None:
    layer, x = testing.AdaptiveLIF(100), sample()
    exact = x.exp()  # whose own backward pass needs its output
    y = layer.unroll(exact)
    del exact
    (got,) = torch.autograd.grad(y.sum(), x)
    layer.zero_states()
    held = x.exp()
    (wanted,) = torch.autograd.grad(layer.unroll(held).sum(), x)
    assert torch.equal(got, wanted)
    layer.zero_states()
    array = x.detach().numpy()
    leaf = torch.from_numpy(array).requires_grad_()
    copied = array.copy()
    torch.autograd.grad(layer.unroll(leaf).sum(), leaf)
    assert (array == copied).all()
    assert used == [False, False, False]


def test_a_graph_that_is_kept_can_be_used_again(
    used: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = Net(), sample()
    y = net.unroll(x, fold=True)
    found = [gradients(net, x, y, retain_graph=keep) for keep in (True, True, False)]
    assert used == [False, False, True]
    for got in found:
        same(got, expected(monkeypatch, lambda h: None))


def test_second_derivatives_are_as_they_were(used: list[bool]) -> None:
    net, x = Net(), sample()
    first = gradients(net, x, net.unroll(x, fold=True), create_graph=True)
    assert used == []
    assert torch.isfinite(torch.autograd.grad(first[0].square().sum(), x)[0]).all()


@pytest.mark.parametrize("hold", [True, False])
def test_hooks_of_saved_tensors_keep_what_they_keep(hold: bool, used: list[bool]) -> None:
    net, x = Net(), sample()
    wanted = gradients(net, x, net.unroll(x, fold=True))
    net.zero_states()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor if hold else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        y = net.unroll(x, fold=True)
    before = [tensor.clone() for tensor in kept]
    same(gradients(net, x, y), wanted)
    assert used == [True, False]
    for tensor, then in zip(kept, before, strict=True):
        assert torch.equal(tensor, then)


def test_a_torch_that_does_not_count_never_has_a_last_use(
    used: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mode, "_counted", False)
    net, x = Net(), sample()
    gradients(net, x, net.unroll(x, fold=True))
    assert used == [False]
