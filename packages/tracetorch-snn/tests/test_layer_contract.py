"""What holds for every layer whatever it computes: dtype, layout, copies, compilation."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import snn

EVERY = pytest.mark.parametrize("cls", snn.LAYERS)
RANKS = pytest.mark.parametrize("rank", [0, 1])
Build = Callable[..., snn.Layer]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def stepped(layer: nn.Module, xs: Tensor) -> Tensor:
    return torch.stack([layer(x) for x in xs])


def serving(turn: int, of: int) -> AbstractContextManager[None]:
    """Kernels in one turn of so many, the eager loop in the others: compiling takes the time."""
    return tt.backends.use("eager" if turn % of else "auto")


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return got.keys() == expected.keys() and all(
        got[name].dtype == expected[name].dtype and torch.equal(got[name], expected[name])
        for name in expected
    )


# ------------------------------------------------------------------ dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@RANKS
@EVERY
def test_low_precision_input_keeps_the_membrane(
    cls: type[snn.Layer], rank: int, dtype: torch.dtype, build: Build
) -> None:
    """States as if the rounded input had come in float32; only what is returned is rounded."""
    layer = build(cls, 4, rank=rank, dtype=torch.float32)
    twin = copy.deepcopy(layer)
    turn = snn.LAYERS.index(cls) + rank + (dtype is torch.float16)
    for x in noise(30, 3, 4, dtype=dtype):
        with serving(turn, 2):
            y, full = layer(x), twin(x.float())
        assert y.dtype == dtype
        assert full.dtype == torch.float32
        assert torch.equal(y, full.to(dtype))
        assert {state.dtype for state in layer.get_states().values()} == {torch.float32}
        assert same(layer.get_states(), twin.get_states())


@RANKS
@EVERY
def test_one_wide_parameter_widens_every_state(
    cls: type[snn.Layer], rank: int, build: Build, anatomy: Callable[..., Any]
) -> None:
    """The promotion is over every parameter, whatever its rank and whether it is learned."""
    cases = [(learn, name) for learn in (True, False) for name in anatomy(cls).parameters]
    for turn, (learn, name) in enumerate(cases, snn.LAYERS.index(cls) + rank):
        layer = build(cls, 4, rank=rank, learn=learn, dtype=torch.bfloat16)
        stored = getattr(layer, f"raw_{name}")
        stored.data = stored.data.double()
        twin = copy.deepcopy(layer).double()
        for key in anatomy(cls).parameters:
            # the effective value is computed in its own dtype, then widened
            setattr(twin, key, getattr(layer, key).detach().double())
        for x in noise(5, 2, 4, dtype=torch.bfloat16):
            with serving(turn, len(cases)):
                y, full = layer(x), twin(x.double())
            torch.testing.assert_close(y, full.to(torch.bfloat16), rtol=1e-2, atol=1e-2)
        states = layer.get_states()
        assert {state.dtype for state in states.values()} == {torch.float64}
        for key, state in twin.get_states().items():
            torch.testing.assert_close(states[key], state, rtol=1e-10, atol=1e-10)


@EVERY
def test_autocast_changes_nothing_but_the_input(cls: type[snn.Layer], build: Build) -> None:
    layer = build(cls, 4, dtype=torch.float32)
    twin = copy.deepcopy(layer)
    torch.manual_seed(0)
    linear = nn.Linear(5, 4)
    xs = noise(20, 3, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = linear(xs)
        ys = stepped(layer, hidden)
    assert hidden.dtype == ys.dtype == torch.bfloat16
    assert torch.equal(ys, stepped(twin, hidden))
    assert same(layer.get_states(), twin.get_states())
    assert {state.dtype for state in layer.get_states().values()} == {torch.float32}
    ys.float().sum().backward()
    assert xs.grad is not None
    assert xs.grad.isfinite().all()


# ------------------------------------------------------------------ copies and text


def saved_and_loaded(layer: snn.Layer) -> snn.Layer:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded: snn.Layer = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@EVERY
def test_copies_hold_detached_states(
    cls: type[snn.Layer], copied: Callable[[snn.Layer], snn.Layer], build: Build
) -> None:
    layer = build(cls, 4)
    xs = noise(12, 3, 4).requires_grad_()
    stepped(layer, xs[:6])
    twin = copied(layer)
    states, copies = layer.get_states(), twin.get_states()
    assert same(copies, states)
    assert any(state.requires_grad for state in states.values())
    assert not any(state.requires_grad for state in copies.values())
    assert not {id(state) for state in states.values()} & {id(state) for state in copies.values()}
    assert torch.equal(stepped(twin, xs[6:]), stepped(layer, xs[6:]))
    assert same(twin.get_states(), layer.get_states())
    assert same(twin.state_dict(), layer.state_dict())


@EVERY
def test_states_are_in_no_state_dict_and_follow_the_module(
    cls: type[snn.Layer], build: Build, anatomy: Callable[..., Any]
) -> None:
    layer = build(cls, 4)
    before = layer.state_dict().keys()
    layer(noise(3, 4))
    assert layer.state_dict().keys() == before == {f"raw_{q}" for q in anatomy(cls).parameters}
    expected = {name: state.half() for name, state in layer.get_states().items()}
    assert same(layer.half().get_states(), expected)


@EVERY
def test_repr_is_one_short_line(cls: type[snn.Layer]) -> None:
    text = repr(cls(123, dim=-3))
    assert text.startswith(f"{cls.__name__}(123")
    assert "dim=-3" in text
    assert "\n" not in text
    assert len(text) < 250
    assert repr(cls(123)) != text


# ------------------------------------------------------------------ layout and states


@pytest.mark.parametrize("dim", [-2, -3, -4, 0, 1, 2])
@EVERY
def test_neurons_may_be_anywhere(cls: type[snn.Layer], dim: int, build: Build) -> None:
    """Same numbers as with the neurons last; states in the user's layout."""
    layer, last = build(cls, 4, dim=dim), build(cls, 4)
    for x in noise(15, 2, 3, 5, 4):
        y = layer(x.movedim(-1, dim))
        assert torch.equal(y.movedim(dim, -1), last(x))
    for name, state in last.get_states().items():
        kept = layer.get_states()[name]
        assert kept.shape == x.movedim(-1, dim).shape
        assert torch.equal(kept.movedim(dim, -1), state)


@EVERY
def test_masked_samples_restart_and_the_others_go_on(cls: type[snn.Layer], build: Build) -> None:
    layer, fresh, going = (build(cls, 4) for _ in range(3))
    xs, mask = noise(20, 3, 4), torch.tensor([False, True, False])
    stepped(layer, xs[:10])
    stepped(going, xs[:10])
    layer.zero_states(mask)
    ys, restarted, continued = (stepped(each, xs[10:]) for each in (layer, fresh, going))
    assert torch.equal(ys[:, mask], restarted[:, mask])
    assert torch.equal(ys[:, ~mask], continued[:, ~mask])
    layer.zero_states()
    assert layer.get_states() == {}
    assert torch.equal(stepped(layer, xs[10:]), restarted)


@EVERY
def test_states_set_are_states_got(cls: type[snn.Layer], build: Build) -> None:
    layer, other = build(cls, 4, dim=-2), build(cls, 4, dim=-2)
    xs = noise(16, 3, 4, 2)
    stepped(layer, xs[:8])
    states = layer.get_states()
    assert all(getattr(layer, name) is state for name, state in states.items())
    other.set_states(states)
    assert torch.equal(stepped(other, xs[8:]), stepped(layer, xs[8:]))


@EVERY
def test_detached_states_keep_their_values_and_pass_no_gradient(
    cls: type[snn.Layer], build: Build
) -> None:
    layer = build(cls, 4)
    xs = noise(10, 3, 4).requires_grad_()
    stepped(layer, xs[:5])
    before = {name: state.detach().clone() for name, state in layer.get_states().items()}
    layer.detach_states()
    assert same(layer.get_states(), before)
    stepped(layer, xs[5:]).sum().backward()
    assert xs.grad is not None
    assert (xs.grad[:5] == 0).all()
    assert (xs.grad[5:] != 0).any()


# ------------------------------------------------------------------ meta


@EVERY
def test_made_on_meta_and_filled_later(cls: type[snn.Layer], build: Build) -> None:
    filled, xs = build(cls, 4, dtype=torch.float32), noise(8, 3, 4, dtype=torch.float32)
    with torch.device("meta"):
        layer = cls(4)
        outside = [layer(x) for x in xs.to("meta")]
    assert all(y.is_meta and y.shape == (3, 4) for y in outside)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert repr(layer).count("=…, ") == len(layer.state_dict())
    layer.zero_states()
    layer.to_empty(device="cpu").load_state_dict(filled.state_dict())
    assert torch.equal(stepped(layer, xs), stepped(filled, xs))
    assert repr(layer) == repr(filled)


def test_a_learned_slope_made_on_meta_and_filled_later() -> None:
    filled = snn.LIT(4, spike_fn=snn.surrogates.superspike(7.0, learn_slope=True))
    with torch.device("meta"):
        layer = snn.LIT(4, spike_fn=snn.surrogates.superspike(learn_slope=True))
    assert "spike_fn=superspike(slope=…, learn_slope=True)" in repr(layer)
    layer.to_empty(device="cpu").load_state_dict(filled.state_dict())
    assert repr(layer) == repr(filled)


# ------------------------------------------------------------------ one answer


@EVERY
def test_unrolling_is_stepping(cls: type[snn.Layer], build: Build) -> None:
    """Outputs, final states and every gradient, from standing states, exactly."""
    results = []
    for run in (stepped, lambda layer, xs: layer.unroll(xs)):
        layer = build(cls, 4, dim=-2)
        start = {name: noise(3, 4, 2, seed=9) * 0.1 for name in _states_of(layer)}
        for state in start.values():
            state.requires_grad_()
        layer.set_states(start)
        xs = noise(15, 3, 4, 2).requires_grad_()
        ys = run(layer, xs)
        final = layer.get_states()
        loss = (ys * noise(*ys.shape, seed=1)).sum()
        loss = loss + sum((state * noise(3, 4, 2, seed=2)).sum() for state in final.values())
        loss.backward()
        gradients = {"x": xs.grad} | {f"state {name}": s.grad for name, s in start.items()}
        gradients |= {name: raw.grad for name, raw in layer.named_parameters()}
        results.append((ys.detach(), {k: s.detach() for k, s in final.items()}, gradients))
    (ys, final, gradients), (unrolled, last, others) = results
    assert torch.equal(unrolled, ys)
    assert same(last, final)
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-12, atol=1e-12, msg=name)


def _states_of(layer: snn.Layer) -> list[str]:
    probe = copy.deepcopy(layer)
    probe(torch.zeros(1, 4, 1, dtype=torch.float64))
    return list(probe.get_states())


class Wrapper(tt.Model):
    """A network around one layer."""

    def __init__(self, layer: snn.Layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, layer.num_neurons), layer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


@RANKS
@EVERY
def test_compiling_for_inference_and_back(cls: type[snn.Layer], rank: int, build: Build) -> None:
    model = Wrapper(build(cls, 4, rank=rank, dtype=torch.float32))
    xs = noise(25, 3, 5, dtype=torch.float32)
    expected = stepped(model, xs).detach()
    objects = dict(model.named_parameters())
    values = {name: value.detach().clone() for name, value in objects.items()}
    model.zero_states()
    model.TTcompile()
    torch.testing.assert_close(stepped(model, xs).detach(), expected, rtol=1e-6, atol=1e-6)
    model.TTdecompile()
    back = dict(model.named_parameters())
    assert back.keys() == objects.keys()
    assert all(back[name] is parameter for name, parameter in objects.items())
    assert all(torch.equal(back[name], value) for name, value in values.items())
    assert all(parameter.requires_grad for parameter in back.values())
    # an optimizer made before still trains it
    model.zero_states()
    stepped(model, xs).sum().backward()
    torch.optim.SGD(objects.values(), lr=0.1).step()
    moved = {name for name, value in values.items() if not torch.equal(back[name], value)}
    assert any(name.startswith("net.1.raw_") for name in moved)


@EVERY
def test_compiled_parameters_are_constants(
    cls: type[snn.Layer], build: Build, anatomy: Callable[..., Any]
) -> None:
    model = Wrapper(build(cls, 4, dtype=torch.float32))
    layer = model.net[1]
    names = list(anatomy(cls).parameters)
    before = {name: getattr(layer, name).detach().clone() for name in names}
    model.TTcompile()
    for name in names:
        assert not getattr(layer, name).requires_grad
        assert torch.equal(getattr(layer, name), before[name])
    model.TTdecompile()
    assert all(getattr(layer, name).requires_grad for name in names)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@EVERY
def test_torch_compile_traces_a_step_in_one_graph(cls: type[snn.Layer], build: Build) -> None:
    results = []
    for compiles in (False, True):
        layer = build(cls, 4, dim=-2)
        xs = noise(6, 3, 4, 2).requires_grad_()
        run = torch.compile(layer, fullgraph=True, backend="eager") if compiles else layer
        ys = stepped(run, xs)
        ys.sum().backward()
        gradients = {name: raw.grad for name, raw in layer.named_parameters()}
        results.append((ys.detach(), layer.get_states(), {"x": xs.grad} | gradients))
    (ys, states, gradients), (compiled, others, compiled_gradients) = results
    assert torch.equal(compiled, ys)
    assert same(others, states)
    assert all(
        (gradient is None) == (compiled_gradients[name] is None)
        and (gradient is None or torch.allclose(compiled_gradients[name], gradient, rtol=1e-12))
        for name, gradient in gradients.items()
    )
