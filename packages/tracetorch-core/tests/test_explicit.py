"""``tt.functional``: states given and returned, the model as it was."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tracetorch.explicit import CallableModule
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace


class Net(tt.Model):
    """Layers that torch sees, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.first = nn.Linear(3, 4), AdaptiveLIF(4)
        self.hidden = [Trace(4, beta=torch.tensor([0.2, 0.4, 0.6, 0.8]))]
        self.last = StateSpace(4, out_size=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.hidden[0](self.first(self.project(x))))
        return y


class Noisy(tt.Layer):
    """Adds random numbers of its own."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("mem")
        self.uniform = tt.Random()

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        mem = 0.5 * states.mem + x + self.uniform(x)
        return {"mem": mem}, mem


def sequence(steps: int = 5, batch: int = 2) -> Tensor:
    return 2.0 * torch.randn(steps, batch, 3)


def stepped(step: tt.Functional, states: dict[str, Any], x: Tensor) -> tuple[Tensor, Any]:
    found = []
    for timestep in x:
        y, states = step(states, timestep)
        found.append(y)
    return torch.stack(found), states


# ------------------------------------------------------------------ what it computes


def test_states_that_are_carried_are_the_states_that_stand() -> None:
    net, x = Net(), sequence()
    step = tt.functional(net)
    y, states = stepped(step, step.initial_states(x[0]), x)
    whole, final = step.unroll(step.initial_states(x[0]), x)
    assert net.get_states() == {}
    expected = torch.stack([net(timestep) for timestep in x])
    assert torch.equal(y, expected)
    assert list(states) == list(final) == list(net.get_states())
    torch.testing.assert_close((whole, final), (expected, net.get_states()))
    torch.testing.assert_close(states, net.get_states(), rtol=0, atol=0)


def test_a_layer_alone_has_the_names_of_its_own(make: Callable[..., tt.Layer]) -> None:
    layer, x = make(3, dim=1), torch.randn(4, 2, 3, 5)
    step = tt.functional(layer)
    y, states = step.unroll(dict.fromkeys(step.initial_states(x[0])), x)
    torch.testing.assert_close(y, layer.unroll(x))
    torch.testing.assert_close(states, layer.get_states())


def test_a_module_around_layers_is_a_function_too() -> None:
    module, x = nn.Sequential(nn.Linear(3, 4), Trace(4)), sequence()
    step = tt.functional(module)
    y, states = stepped(step, step.initial_states(x[0]), x)
    assert list(states) == ["1.mem"]
    assert torch.equal(y, torch.stack([module(timestep) for timestep in x]))
    with pytest.raises(TypeError, match=r"a Sequential has no unroll; make it a tt\.Model"):
        step.unroll(states, x)


def test_options_of_a_sequence_go_through() -> None:
    net, x, lengths = Net(), sequence(), torch.tensor([2, 5])
    step = tt.functional(net)
    y, states = step.unroll(step.initial_states(x[0]), x, lengths=lengths, chunk_size=2)
    torch.testing.assert_close(y, net.unroll(x, lengths=lengths))
    torch.testing.assert_close(states, net.get_states())


def test_initial_states_are_zeros_and_a_seed_as_a_model_would_draw_it() -> None:
    layer, x = Noisy(3), sequence()
    torch.manual_seed(3)
    expected = torch.stack([layer(timestep) for timestep in x])
    layer.zero_states()
    torch.manual_seed(3)
    step = tt.functional(nn.Sequential(nn.Dropout(), layer).eval())
    states = step.initial_states(x[0])
    assert torch.equal(states["1.mem"], torch.zeros(2, 3))
    assert int(states["1.random"][1]) == 0
    assert torch.equal(stepped(step, states, x)[0], expected)


# ------------------------------------------------------------------ what it leaves alone


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails: bool) -> None:
    class Normed(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.relu(self.norm(super().forward(x)))
            if fails and x.shape[-1] == 3 and bool((x > 100).any()):
                raise ZeroDivisionError
            return y

    net, x = Normed(), sequence()
    net.norm = nn.BatchNorm1d(2)
    net(x[0])
    before, statistics = net.get_states(), copy.deepcopy(net.norm.state_dict())
    step = tt.functional(net)
    states = step.initial_states(x[0])
    given = {name: state.clone() for name, state in states.items()}
    if fails:
        with pytest.raises(ZeroDivisionError):
            step(states, x[0] + 200)
    else:
        step(states, x[0])
        step.unroll(states, x)
    assert all(net.get_states()[name] is state for name, state in before.items())
    torch.testing.assert_close(net.norm.state_dict(), statistics, rtol=0, atol=0)
    torch.testing.assert_close(states, given, rtol=0, atol=0)


def test_copies_have_a_model_of_their_own() -> None:
    step, x = tt.functional(Net()), sequence()
    y, _ = step(step.initial_states(x[0]), x[0])
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        with torch.no_grad():
            other.model.hidden[0].beta = 0.5
            other.model.project.bias += 1
        z, _ = other(other.initial_states(x[0]), x[0])
        assert not torch.equal(z, y)
        expected = other.model(x[0])
        assert torch.equal(z, expected)
    assert torch.equal(step(step.initial_states(x[0]), x[0])[0], y)


def test_another_thread_is_told() -> None:
    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            assert done.wait(60)
            return super().forward(x)

    started, done = threading.Event(), threading.Event()
    net, x = Slow(), sequence()
    step = tt.functional(net)
    states = dict.fromkeys(tt.functional(Net()).initial_states(x[0]))
    thread = threading.Thread(target=step, args=(states, x[0]))
    thread.start()
    assert started.wait(60)
    with pytest.raises(RuntimeError, match="thread"):
        step(states, x[0])
    done.set()
    thread.join()
    assert net.get_states() == {}


# ------------------------------------------------------------------ transforms


def test_gradients_by_function_are_those_of_backward() -> None:
    net, x = Net(), sequence()
    step = tt.functional(net)
    parameters = {name: p.detach() for name, p in step.named_parameters()}
    states = step.initial_states(x[0])

    def loss(parameters: dict[str, Tensor], states: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for timestep in x:
            y, states = torch.func.functional_call(step, parameters, (states, timestep))
            total = total + y.square().sum()
        return total

    found = torch.func.grad(loss)(parameters, states)
    y, _ = stepped(step, states, x)
    y.square().sum().backward()
    expected = {name: p.grad for name, p in step.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert net.get_states() == {}


def test_samples_batched_by_vmap_are_a_batch() -> None:
    net, x = Net(), sequence(1, batch=6)[0]
    step = tt.functional(net)
    states = step.initial_states(x)
    _, states = step(states, x)
    batched = torch.func.vmap(step)(states, x)
    torch.testing.assert_close(batched, step(states, x))


def test_a_plain_checkpoint_recomputes_from_the_states_that_were_given() -> None:
    net, x = Net(), sequence()
    step = tt.functional(net)
    gradients = []
    for plain in (True, False):
        states: Any = step.initial_states(x[0])
        for timestep in x:
            if plain:
                y, states = step(states, timestep)
            else:
                y, states = checkpoint(step, states, timestep, use_reentrant=False)
        gradients.append(torch.autograd.grad(y.sum(), list(net.first.parameters())))
    torch.testing.assert_close(*gradients)
    assert max(float(g.abs().max()) for g in gradients[0]) > 0


# ------------------------------------------------------------------ errors


def test_states_that_do_not_fit_are_refused_by_name() -> None:
    net, x = Net(), sequence()
    step = tt.functional(net)
    states = step.initial_states(x[0])
    known = "tt.functional(model).initial_states(x) has them all"
    with pytest.raises(tt.StateError, match=re.escape(f"missing ['first.mem']; {known}")):
        step({name: state for name, state in states.items() if name != "first.mem"}, x[0])
    with pytest.raises(tt.StateError, match=re.escape("unknown ['first.syn'], missing []")):
        step({**states, "first.syn": x}, x[0])
    with pytest.raises(tt.StateError, match=r"layer 'hidden.0', Trace.*mem of shape \[2, 9\]"):
        step({**states, "hidden.0.mem": torch.zeros(2, 9)}, x[0])
    with pytest.raises(
        tt.StateError,
        match=r"layer 'first', Adaptive.*mem is \[2, 4\].*needs \[1, 4\] float32 on cpu; "
        r"tt.functional\(model\).initial_states\(x\) makes states that fit$",
    ):
        step(states, x[0, :1])
    with pytest.raises(TypeError, match="states must be a mapping"):
        step([*states.values()], x[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a tt\.Model.*got 3"):
        tt.functional(3)  # type: ignore[arg-type]
    assert net.get_states() == {}


# ------------------------------------------------------------------ the module


def test_the_module_of_conversions_is_one_still() -> None:
    assert isinstance(tt.functional, types.ModuleType)
    own = {
        name
        for name, value in vars(tt.functional).items()
        if inspect.isfunction(value)
        and value.__module__ == "tracetorch.functional"
        and not name.startswith("_")
    }
    listed = {name for name in vars(CallableModule) if not name.startswith("_")}
    assert listed == own
    for name in own:
        assert getattr(CallableModule, name) is getattr(tt.functional, name)


def test_a_layer_that_comes_later_is_part_of_the_function() -> None:
    net, x = Net(), sequence()[0]
    step = tt.functional(net)
    before = step.initial_states(x)
    net.added = Trace(3)
    with pytest.raises(tt.StateError, match=r"missing \['added\.mem'\]"):
        step(before, x)


def test_a_model_that_holds_a_function_of_another_is_folded() -> None:
    class Outer(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.linear = Trace(4), nn.Linear(4, 4)
            self.step = tt.functional(Trace(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(self.inner(x))
            return y

    Outer().unroll(torch.rand(5, 2, 4), fold=True)
