"""``TTcompile(events=True)``: the same products, from the rows of inputs that fire."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from tracetorch import event_driven
from tracetorch.engine import events
from tracetorch.engine.launch import BuildError
from tracetorch.testing import Trace

WIDE = 256


class Net(tt.Model):
    """A linear module that is large enough, a layer, and a linear module that is not."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.fc, self.leak, self.out = nn.Linear(WIDE, WIDE, bias), Trace(WIDE), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.leak(self.fc(x)))
        return y


class Alone(tt.Model):
    """Nothing but a linear module."""

    def __init__(self, fc: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = fc or nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y


def spikes(*shape: int, rate: float = 0.1) -> Tensor:
    return (torch.rand(shape) < rate).float()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each product that the kernel was asked for: whether it went by events."""
    found: list[bool] = []
    product = events.linear

    def listened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        y = product(x, weight, bias)
        found.append(y is not None)
        return y

    monkeypatch.setattr(events, "linear", listened)
    return found


# ---------------------------------------------------------------------- the product


@st.composite
def products(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """An input, a weight of any size, a bias or none, and how many threads."""
    shape = draw(st.lists(st.integers(0, 5), max_size=2)) + draw(
        st.lists(st.sampled_from([1, 3, 65, 70]), max_size=1)
    )
    inputs = draw(st.sampled_from([1, 5, 600, 1300]))
    outputs = draw(st.sampled_from([1, 17, 64, 256, 300, 775, 2077]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(*shape, inputs, dtype=dtype)
    if draw(st.booleans()):
        x = x.sign()
    x = x * (torch.rand(x.shape) < draw(st.sampled_from([0.0, 0.05, 0.3, 0.6, 1.0])))
    weight = torch.randn(inputs, outputs, dtype=dtype).t()
    bias = torch.randn(outputs, dtype=dtype) if draw(st.booleans()) else None
    return x, weight, bias, draw(st.integers(1, 3))


@settings(max_examples=100)
@given(products())
def test_the_product_is_the_dense_one_within_rounding_or_left_to_it(
    case: tuple[Tensor, Tensor, Tensor | None, int],
) -> None:
    x, weight, bias, threads = case
    if not x.numel():
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = events.linear(x, weight, bias)
    finally:
        torch.set_num_threads(before)
    few = int((x != 0).sum()) <= events.most(x[..., 0].numel(), x.shape[-1])
    assert (y is not None) == few
    if y is not None:
        exact = nn.functional.linear(x.double(), weight.double(), None)
        size = nn.functional.linear(x.abs().double(), weight.abs().double(), None)
        if bias is not None:
            exact, size = exact + bias, size + bias.abs()
        terms = x.shape[-1] + 1
        assert y.dtype == x.dtype
        assert ((y - exact).abs() <= terms * torch.finfo(x.dtype).eps * size).all()


@pytest.mark.parametrize("samples", [3, 65, 1600])
@pytest.mark.parametrize("rate", [0.02, 0.25])
def test_many_samples_are_shared_out_among_threads_alike(samples: int, rate: float) -> None:
    x, weight = spikes(samples, 300, rate=rate), torch.randn(300, 700).t()
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found.append(events.linear(x, weight, None))
    torch.set_num_threads(before)
    expected = torch.stack([y for row in x if (y := events.linear(row, weight, None)) is not None])
    assert all(y is not None and torch.equal(y, expected) for y in found)


def test_what_is_no_number_is_an_event_and_a_negative_zero_is_none() -> None:
    x, weight = torch.zeros(3, WIDE), torch.randn(WIDE, 40).t()
    x[0, 5], x[1, 7], x[2] = torch.nan, torch.inf, -0.0
    y = events.linear(x, weight, None)
    assert y is not None
    assert y[0].isnan().all()
    assert torch.equal(y[1], weight[:, 7] * torch.inf)
    assert torch.equal(y[2], torch.zeros(40))


def test_a_weight_that_is_no_number_counts_only_where_its_neuron_fires() -> None:
    x, weight = torch.zeros(2, WIDE), torch.randn(WIDE, 40).t()
    weight[:, 5] = torch.inf
    x[0, 5] = x[:, 6] = 1.0
    y = events.linear(x, weight, None)
    assert y is not None
    assert y[0].isinf().all()
    assert torch.equal(y[1], weight[:, 6])


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_a_model_goes_by_events_where_there_are_few(
    taken: list[bool], bias: bool, rate: float
) -> None:
    net, x = Net(bias=bias), spikes(6, 17, WIDE, rate=rate)
    twin = copy.deepcopy(net)
    twin.TTcompile()
    net.TTcompile(events=True)
    with torch.no_grad():
        expected, y = twin.unroll(x), net.unroll(x)
        assert net.tt.last is None, "it is stepped"
        del taken[:-1]
        net.zero_states()
        glance = net.tt.glance
        assert torch.equal(net.unroll(x), y)
        assert net.tt.glance is glance, "its modules look changed"
        net.zero_states()
        stepped = torch.stack([net(timestep) for timestep in x])
    assert taken == [rate < 1] * 8
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(stepped, expected)


def test_nothing_is_on_the_modules_between_calls() -> None:
    net, seen = Alone(), []
    before = {*vars(net.fc)}
    net.TTcompile(events=True)
    net.fc.register_forward_pre_hook(lambda fc, _: seen.append("forward" in vars(fc)))
    with torch.no_grad():
        net(spikes(2, WIDE))
        assert vars(net.fc).keys() == before
        with pytest.raises(RuntimeError):
            net(spikes(2, WIDE + 1))
    assert seen == [True, True]
    assert vars(net.fc).keys() == before
    assert type(net.fc) is nn.Linear


def test_a_model_in_a_model_leaves_what_the_outer_one_put() -> None:
    inner, seen = Alone(), []

    class Outer(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            seen.append("forward" in vars(inner.fc))
            return y

    outer = Outer()
    outer.TTcompile(events=True)
    inner.TTcompile(events=True)  # has nothing left to lay out
    with torch.no_grad():
        outer(spikes(2, WIDE))
    assert seen == [True]
    assert "forward" not in vars(inner.fc)
    outer.TTdecompile()
    assert inner.fc.weight.is_contiguous()


def test_a_forward_of_the_users_own_is_left_alone(taken: list[bool]) -> None:
    net = Alone()
    net.fc.forward = lambda x: x + 1  # type: ignore[method-assign]
    net.TTcompile(events=True)
    x = spikes(2, WIDE)
    with torch.no_grad():
        assert torch.equal(net(x), x + 1)
    assert not taken
    assert "forward" in vars(net.fc)


# ---------------------------------------------------------------------- there and back


def test_parameters_are_the_same_objects_and_as_they_were() -> None:
    net = Net()
    before = {n: (p, p.stride(), p.detach().clone()) for n, p in net.named_parameters()}
    attributes = vars(net).keys()
    keys, strides = [*net.state_dict()], net.fc.weight.stride()
    attributes = [*vars(net)]
    net.TTcompile(events=True)
    assert net.fc.weight.stride() == strides[::-1]
    assert net.out.weight.is_contiguous()
    assert [*net.state_dict()] == keys
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][2])
    net.TTcompile(events=True)
    net.TTdecompile()
    assert [*vars(net)] == attributes
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0]
        assert parameter.stride() == before[name][1]
        assert torch.equal(parameter, before[name][2])


def by_torch(net: Any) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), by_torch],
    ids=["deepcopy", "pickle", "torch"],
)
def test_a_copy_goes_by_events_and_back_for_itself(
    copied: Callable[[Any], Any], taken: list[bool]
) -> None:
    net, x = Alone(), spikes(2, WIDE)
    net.TTcompile(events=True)
    other = copied(net)
    with torch.no_grad():
        other.fc.weight.mul_(2)
        y = other(x)
        assert taken == [True]
        torch.testing.assert_close(y, 2 * net(x) - net.fc.bias)
    other.TTdecompile()
    assert other.fc.weight.is_contiguous()
    assert not net.fc.weight.is_contiguous()


def test_a_state_dict_goes_to_and_from_models_that_are_not_compiled() -> None:
    net, plain = Alone(), Alone()
    net.TTcompile(events=True)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain.fc.weight, net.fc.weight)
    assert plain.fc.weight.is_contiguous()
    net.load_state_dict(Alone().state_dict())
    net.load_state_dict(plain.state_dict())
    assert torch.equal(plain.fc.weight, net.fc.weight)
    assert not net.fc.weight.is_contiguous()


def of_data(fc: nn.Linear) -> None:
    fc.weight.data.mul_(3)


def in_place(fc: nn.Linear) -> None:
    with torch.no_grad():
        fc.weight[:, 3] = 7.0
        fc.bias.zero_()


def loaded(fc: nn.Linear) -> None:
    fc.load_state_dict(nn.Linear(WIDE, WIDE).state_dict())


def assigned(fc: nn.Linear) -> None:
    fc.load_state_dict(nn.Linear(WIDE, WIDE).state_dict(), assign=True)


def replaced(fc: nn.Linear) -> None:
    fc.weight = nn.Parameter(torch.randn(WIDE, WIDE))


def learned(fc: nn.Linear) -> None:
    fc(torch.randn(4, WIDE)).square().sum().backward()
    with torch.no_grad():
        for parameter in fc.parameters():
            parameter -= 0.1 * parameter.grad


def no_bias(fc: nn.Linear) -> None:
    fc.bias = None


@pytest.mark.parametrize(
    "change", [of_data, in_place, loaded, assigned, replaced, learned, no_bias]
)
def test_another_weight_is_seen_at_once(change: Callable[[nn.Linear], None]) -> None:
    net, x = Alone(), spikes(3, WIDE)
    fc: Any = net.fc
    net.TTcompile(events=True)
    with torch.no_grad():
        net(x)
    change(fc)
    with torch.no_grad():
        torch.testing.assert_close(net(x), nn.functional.linear(x, fc.weight, fc.bias))


def test_another_dtype_goes_by_events_too(taken: list[bool]) -> None:
    net, x = Alone(), spikes(3, WIDE)
    net.TTcompile(events=True)
    net.double()
    with torch.no_grad():
        y = net(x.double())
        assert taken == [True]
        exact = nn.functional.linear(x.double(), net.fc.weight, net.fc.bias)  # type: ignore[arg-type]
        torch.testing.assert_close(y, exact)
        net.bfloat16()
        y = net(x.bfloat16())
    assert taken == [True]
    assert y.dtype == torch.bfloat16
    net.TTdecompile()


# ---------------------------------------------------------------------- what is left to torch


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Tagged(Tensor):
    """Another class of tensors."""


def left_out() -> Iterator[tuple[str, Callable[[Any, Tensor], Any], Callable[[], Any]]]:
    """Names of calls that torch is to see, the calls, and what goes on around them."""
    quiet, call = torch.no_grad, lambda net, x: net(x)
    yield "gradients of weights", call, nullcontext
    yield "autocast", call, lambda: _both(quiet(), torch.autocast("cpu"))
    yield "a function mode", call, lambda: _both(quiet(), Functions())
    yield "a dispatch mode", call, lambda: _both(quiet(), Dispatches())
    yield "eager", call, lambda: _both(quiet(), tt.backends.use("eager"))
    yield "a subclass", lambda net, x: net(x.as_subclass(Tagged)), quiet
    yield "strides", lambda net, x: net(x.t().contiguous().t()), quiet
    yield "vmap", lambda net, x: torch.func.vmap(net)(x), quiet
    yield "jvp", lambda net, x: torch.func.jvp(net, (x,), (x,))[0], quiet
    yield "a trace", lambda net, x: torch.jit.trace(net, x, check_trace=False)(x), quiet
    yield "no samples", lambda net, x: net(x[:0]), quiet


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("call", "around"), [pytest.param(c, a, id=n) for n, c, a in left_out()])
def test_calls_that_torch_is_to_see_are_torchs_own(
    call: Callable[[Any, Tensor], Tensor], around: Callable[[], Any], taken: list[bool]
) -> None:
    net, x = Alone(), spikes(4, WIDE)
    net.TTcompile(events=True)
    fc = net.fc
    with around():
        y, expected = call(net, x), call(fc, x)
    assert not taken
    assert torch.equal(y, expected)
    assert y.requires_grad == expected.requires_grad


def test_gradients_are_those_of_the_model_as_it_was() -> None:
    net, x = Alone(), spikes(4, WIDE).requires_grad_()
    fc = copy.deepcopy(net.fc)
    expected = torch.autograd.grad(fc(x).square().sum(), [x, *fc.parameters()])
    net.TTcompile(events=True)
    found = torch.autograd.grad(net(x).square().sum(), [x, *net.fc.parameters()])
    torch.testing.assert_close(found, expected)
    net.requires_grad_(False)
    with torch.no_grad():
        assert not net(x).requires_grad
    assert net(x).requires_grad


def test_frozen_weights_need_no_mode(taken: list[bool]) -> None:
    net = Alone().requires_grad_(False)
    net.TTcompile(events=True)
    assert not net(spikes(2, WIDE)).requires_grad
    with torch.inference_mode():
        assert net(spikes(2, WIDE)).is_inference()
    assert taken == [True, True]


def parametrized(fc: nn.Linear) -> None:
    parametrize.register_parametrization(fc, "weight", Doubled())


def pruned(fc: nn.Linear) -> None:
    prune.random_unstructured(fc, "weight", amount=0.5)


def bias_pruned(fc: nn.Linear) -> None:
    prune.random_unstructured(fc, "bias", amount=0.5)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize(
    ("change", "first"),
    [(parametrized, True), (parametrized, False), (pruned, True), (bias_pruned, False)],
)
def test_computed_weights_are_torchs_own(
    change: Callable[[Any], None], first: bool, taken: list[bool]
) -> None:
    net, x = Alone(), spikes(2, WIDE)
    if first:
        change(net.fc)
    net.TTcompile(events=True)
    if not first:
        change(net.fc)
    with torch.no_grad():
        assert torch.equal(net(x), net.fc(x))
    assert not taken
    net.TTdecompile()


def test_torch_compile_sees_the_linear_module(taken: list[bool]) -> None:
    net, x = Alone(), spikes(2, WIDE)
    net.TTcompile(events=True)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), net.fc(x))
        assert not taken
        net.fc = torch.compile(net.fc, backend="eager", fullgraph=True)  # type: ignore[assignment]
        torch.testing.assert_close(net(x), compiled(x))
    assert not taken


# ---------------------------------------------------------------------- which modules


class Own(nn.Linear):
    """A linear module of a user's own."""


class Within(Trace):
    """A layer that holds a linear module."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.inside = nn.Linear(n, n)


def tied() -> nn.Module:
    table, fc = nn.Embedding(WIDE, WIDE), nn.Linear(WIDE, WIDE)
    fc.weight = table.weight
    return nn.Sequential(table, fc)


def a_view() -> nn.Module:
    fc = nn.Linear(WIDE, WIDE)
    fc.weight.data = torch.randn(2 * WIDE, WIDE)[:WIDE]
    return fc


def shared() -> nn.Module:
    fc = nn.Linear(WIDE, WIDE)
    fc.share_memory()
    return fc


@pytest.mark.parametrize(
    "make",
    [
        tied,
        a_view,
        shared,
        lambda: Own(WIDE, WIDE),
        lambda: Within(WIDE),
        lambda: nn.Linear(WIDE, WIDE - 1),
        lambda: nn.Linear(10 * WIDE, 31),
        lambda: nn.Linear(WIDE, WIDE, dtype=torch.bfloat16),
        lambda: nn.Linear(WIDE, WIDE, device="meta"),
    ],
    ids=["tied", "view", "shared", "own", "layer's", "small", "narrow", "bfloat16", "meta"],
)
def test_weights_that_others_read_or_that_are_not_worth_it_stay(
    make: Callable[[], nn.Module],
) -> None:
    net = Alone(make())
    before = [(p.stride(), p.data_ptr()) for p in net.parameters() if not p.is_meta]
    net.TTcompile(events=True)
    assert before == [(p.stride(), p.data_ptr()) for p in net.parameters() if not p.is_meta]
    assert all(p.is_contiguous() for p in net.parameters())


def test_without_a_compiler_it_is_an_error_and_nothing_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()

    def refuse(dtype: torch.dtype) -> Any:
        raise BuildError("no C++ compiler: none of g++ is on PATH")

    monkeypatch.setattr(events, "_kernel", refuse)
    attributes = [*vars(net)]
    with pytest.raises(tt.backends.BackendError, match=r"Net.TTcompile: events=True .* leave it"):
        net.TTcompile(events=True)
    assert [*vars(net)] == attributes
    assert net.fc.weight.is_contiguous()
    assert not net.leak.tt.compiled


def test_a_failure_on_the_way_leaves_the_weights_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Alone(nn.Sequential(*[nn.Linear(WIDE, WIDE) for _ in range(3)]))
    lay, laid = event_driven._lay, []

    def twice(weight: Tensor, *, by_inputs: bool) -> None:
        laid.append(by_inputs)
        if len(laid) == 3:
            raise MemoryError
        lay(weight, by_inputs=by_inputs)

    monkeypatch.setattr(event_driven, "_lay", twice)
    attributes = [*vars(net)]
    with pytest.raises(MemoryError):
        net.TTcompile(events=True)
    assert laid == [True, True, True, False, False]
    assert all(p.is_contiguous() for p in net.parameters())
    assert [*vars(net)] == attributes


# ---------------------------------------------------------------------- looking


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.out(self.fc(x + 1))


def test_the_summary_says_which_modules_went_by_events() -> None:
    x = spikes(3, 17, WIDE)
    for kind, expected in ((Net, "events"), (Twice, "events in 1 of 2 calls")):
        net = kind()
        net.TTcompile(events=True)
        assert {row.name: row.path for row in net.summary(x).rows}["fc"] == expected
        assert {row.name: row.path for row in net.summary(x + 1).rows}["fc"] == "dense"
        net.TTdecompile()
        assert {row.name: row.path for row in net.summary(x).rows}["fc"] == ""


@pytest.mark.parametrize("bias", [torch.ones(1), torch.tensor(0.5)])
def test_a_bias_that_is_broadcast_is_left_to_torch(bias: Tensor) -> None:
    model, x = Alone(nn.Linear(300, 300)).eval(), spikes(2, 300, rate=0.05)
    model.fc.bias = nn.Parameter(bias)
    with torch.no_grad():
        expected = model(x)
        model.TTcompile(events=True)
        torch.testing.assert_close(model(x), expected)
