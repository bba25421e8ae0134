"""Time folded into the batch: one forward pass where that is the loop's answer, else the loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import random
import threading
import types
import weakref
from collections import UserList, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tracetorch.modules import Observer
from tracetorch.sequences.copying import Copier
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace

LOG = logging.getLogger("tracetorch.tests.folding")


class Net(tt.Model):
    """A layer between maps without memory; its forward passes are in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lif = nn.Linear(3, 4), AdaptiveLIF(4)
        self.second, self.last = nn.Linear(4, 3), Trace(3)

    def forward(self, x: Tensor) -> Any:
        LOG.debug("%s", tuple(x.shape))
        return self.last(torch.tanh(self.second(self.lif(self.first(x)))))


class Twice(Net):
    def forward(self, x: Tensor) -> Any:
        return self.last(self.last(x))


class Counting(Net):
    time = 0

    def forward(self, x: Tensor) -> Any:
        self.time += 1
        return super().forward(x * self.time)


class Remembering(Net):
    def __init__(self) -> None:
        super().__init__()
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x + sum(self.past[-2:]))
        self.past.append(y.detach())
        return y


class Buffered(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Any:
        self.mean = 0.5 * self.mean + x.mean(0, keepdim=True).detach()
        return super().forward(x - self.mean)


class Branching(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.sum() > 0 else -x)


class Numbering(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x * float(x.abs().max()))


class FixedBatch(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.view(2, 3) + torch.arange(2.0)[:, None])


class Pooling(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).sum(0)


class Making(Net):
    made: tt.Layer | None = None

    def forward(self, x: Tensor) -> Any:
        if "late" not in self._modules:
            self.late = Trace(3)
        return self.late(x)


class Feeding(Net):
    """Reads the state that the last timestep left."""

    def forward(self, x: Tensor) -> Any:
        back = self.last.mem if self.last.mem is not None else torch.zeros_like(x)
        return super().forward(x + back)


class Peeking(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + self.last.mem


class Zeroing(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        self.lif.zero_states()
        return y


class Listing(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y, self.get_states()["last.mem"]


class Setting(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        self.last.mem = y.detach() * 2
        return y


class Delaying(Net):
    """A delay line: full from the start, of one length for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.line = deque([torch.zeros(2, 3), torch.zeros(2, 3)], maxlen=2)

    def forward(self, x: Tensor) -> Any:
        late = self.line[0]
        self.line.append(x)
        return super().forward(x + late)


class Ticking(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ticks = {"now": 0}

    def forward(self, x: Tensor) -> Any:
        self.ticks["now"] += 1
        return super().forward(x * self.ticks["now"])


class Swallowing(Net):
    def forward(self, x: Tensor) -> Any:
        try:
            return self.last(self.last(x))
        except Exception:
            return x


class Hoarding(Net):
    """Remembers in a list of its own, two levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self._memory: dict[str, list[Tensor]] = {"past": []}

    def forward(self, x: Tensor) -> Any:
        self._memory["past"].append(x.detach())
        return super().forward(x * len(self._memory["past"]))


class Slotted:
    __slots__ = ("ticks",)

    def __init__(self) -> None:
        self.ticks = 0


class Clocked(Net):
    """Counts in a plain object held in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.clocks = (types.SimpleNamespace(now=Slotted()), 1)

    def forward(self, x: Tensor) -> Any:
        self.clocks[0].now.ticks += 1
        return super().forward(x * self.clocks[0].now.ticks)


class Averaging(Net):
    """A moving average in a buffer, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3,), float("nan")))

    def forward(self, x: Tensor) -> Any:
        now = x.detach().mean(0)
        self.mean.copy_(torch.where(self.mean.isnan(), now, 0.5 * self.mean + 0.5 * now))
        return super().forward(x - self.mean)


class Writing(Net):
    """The same in a plain tensor, behind the back of torch's count of writes."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(3)

    def forward(self, x: Tensor) -> Any:
        self.mean.data.mul_(0.5).add_(x.detach().mean(0))
        return super().forward(x - self.mean)


class Tally(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = np.zeros(1)

    def forward(self, x: Tensor) -> Any:
        self.count += 1
        return x * float(self.count[0])


class Unregistered(Net):
    """A module in a plain list, which torch does not know, counts in an array."""

    def __init__(self) -> None:
        super().__init__()
        self.tallies = [Tally()]

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.tallies[0](x))


class Drawing(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x * random.random())


class DrawingArrays(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(5)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x * self.generator.random())


class Annealing(Net):
    """Changes an attribute of a layer, between its timesteps."""

    def forward(self, x: Tensor) -> Any:
        self.last.gain = 0.5 * getattr(self.last, "gain", 1.0)
        return super().forward(x * self.last.gain)


class Homeostatic(Net):
    """Writes into a parameter of a layer."""

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.lif.raw_beta.add_(0.3)
        return super().forward(x)


class Hebbian(Net):
    """Learns weights by a rule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        self.weight.data.mul_(0.5).add_(x.detach().mean(0))
        return super().forward(x * self.weight)


class Shared(Net):
    """Counts for all of its kind."""

    count = 0

    def forward(self, x: Tensor) -> Any:
        type(self).count += 1
        return super().forward(x * (self.count % 7))


class Wrapped(Net):
    """Counts behind a bound method and a partial."""

    def __init__(self) -> None:
        super().__init__()
        self.tick = functools.partial(UserList([0]).append, 1)
        self.count = self.tick.func.__self__.__len__  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Any:
        self.tick()
        return super().forward(x * self.count())


class Normalizing(nn.BatchNorm1d):
    """Keeps one thing more than torch's own."""

    def __init__(self) -> None:
        super().__init__(3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.seen.add_(1)
        return x * self.seen


class Extended(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Normalizing()

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.norm(x))


class Seeded(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x * torch.rand(x.shape, generator=self.generator))


class InPlace(Net):
    def forward(self, x: Tensor) -> Any:
        x.mul_(0.5)
        return super().forward(x)


class SwallowingLooks(Net):
    def forward(self, x: Tensor) -> Any:
        try:
            return super().forward(x / float(x.abs().max()))
        except Exception:
            return super().forward(x)


class Unfolding(Net):
    """Calls a copy of a layer."""

    def forward(self, x: Tensor) -> Any:
        return copy.deepcopy(self.last)(super().forward(x))


def _hiding() -> type[Net]:
    hidden = Trace(3)

    class Hiding(Net):
        """Calls a layer that it does not hold."""

        def forward(self, x: Tensor) -> Any:
            return super().forward(hidden(x))

    return Hiding


STATES = "reads or changes the states of a"
UNFOLDABLE = {
    Feeding: f"{STATES} Trace",
    Peeking: f"{STATES} Trace",
    Zeroing: f"{STATES} AdaptiveLIF",
    Listing: f"{STATES} AdaptiveLIF",
    Setting: f"{STATES} Trace",
    Twice: "is called more than once",
    Counting: "changes Counting.time: state outside tt layers",
    Remembering: "changes Remembering.past: state outside tt layers",
    Buffered: "changes Buffered.mean: state outside tt layers",
    Branching: "looks at values (Tensor.__bool__)",
    Numbering: "looks at values (Tensor.__float__)",
    FixedBatch: "over all timesteps at once, forward raises RuntimeError",
    Delaying: "changes Delaying.line",
    Ticking: "changes Ticking.ticks: state outside tt layers",
    Swallowing: "is called more than once",
    Hoarding: "changes Hoarding._memory: state",
    Clocked: "changes Slotted.ticks: state",
    Averaging: "changes Averaging.mean: state",
    Writing: "changes Writing.mean: state",
    Unregistered: "changes Tally.count: state",
    Drawing: "changes the random numbers of Python: state",
    DrawingArrays: "changes DrawingArrays.generator: state",
    Annealing: "changes Trace.gain",
    Homeostatic: "changes AdaptiveLIF.raw_beta",
    Hebbian: "changes Hebbian.weight: state",
    Shared: "changes Shared.count: state",
    Wrapped: "changes UserList.data: state",
    Extended: "changes Normalizing.seen: state",
    Seeded: "changes Seeded.generator: state",
    InPlace: "writes into its input",
    SwallowingLooks: "looks at values (Tensor.__float__)",
    Unfolding: "calls a Trace that the model does not hold",
    Pooling: "does not have the 3·2 timesteps and samples at dimension 0",
    Making: "looks at values",
}


def make(kind: Callable[..., Net], *arguments: Any) -> Net:
    torch.manual_seed(3)
    return kind(*arguments)


def folds(model: Any) -> bool:
    """Whether all that was decided is to fold."""
    return all(verdict.why is None for verdict in model.tt.verdicts.values())


def sequence() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(6, 2, 3)


@pytest.fixture
def calls(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Shapes of the inputs of forward passes since it was asked last."""
    seen = 0

    def new() -> list[str]:
        nonlocal seen
        found = [r.message for r in caplog.records if r.name == LOG.name]
        before, seen = seen, len(found)
        return found[before:]

    with caplog.at_level(logging.DEBUG, LOG.name):
        yield new


def test_forward_runs_once_over_all_timesteps(calls: Callable[[], list[str]]) -> None:
    model, reference, x = make(Net), make(Net), sequence()
    y = model.unroll(x)
    # the first time, a few timesteps are tried out before, in both modes
    once = ["(6, 3)", "(6, 3)"]  # in time and back
    assert calls() == [*["(2, 3)"] * 3, *once] * 2 + ["(12, 3)"]
    torch.testing.assert_close(y, torch.stack([reference(step) for step in x]))
    for name, state in reference.get_states().items():
        torch.testing.assert_close(model.get_states()[name], state)
    calls()
    model.unroll(x)
    assert calls() == ["(12, 3)"]


@pytest.mark.parametrize("kind", UNFOLDABLE, ids=lambda kind: kind.__name__)
def test_what_cannot_be_folded_is_noticed_and_stepped(
    kind: type[Net], caplog: pytest.LogCaptureFixture
) -> None:
    model, reference, x = make(kind), make(kind), sequence()
    with caplog.at_level(logging.INFO, "tracetorch"):
        for seed in range(2):
            Shared.count = 6 * seed
            random.seed(seed)
            mine = x.clone()
            expected = tree_map(lambda *ys: torch.stack(ys), *[reference(step) for step in mine])
            Shared.count = 6 * seed
            random.seed(seed)
            torch.testing.assert_close(model.unroll(x), expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(x, mine, rtol=0, atol=0)
    for name, state in reference.get_states().items():
        torch.testing.assert_close(model.get_states()[name], state, rtol=1e-6, atol=1e-6)
    said = [
        r.message for r in caplog.records if r.message.startswith(f"{kind.__name__} is stepped")
    ]
    assert len(said) == 1
    assert UNFOLDABLE[kind] in said[0]
    for name in ("time", "mean"):
        value = torch.as_tensor(getattr(model, name, 0))
        assert torch.equal(value, torch.as_tensor(getattr(reference, name, 0)))
    assert len(getattr(model, "past", [])) == len(getattr(reference, "past", []))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("period", range(2, 11))
def test_what_goes_round_is_noticed_whatever_its_period(
    period: int, training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # after some number of calls it is where it was
    class Round(Net):
        time = 0

        def forward(self, x: Tensor) -> Any:
            self.time = (self.time + 1) % period
            return super().forward(x)

    model = make(Round).train(training)
    model.time = 0
    x = sequence()
    with caplog.at_level(logging.INFO, "tracetorch"):
        model.unroll(x)
    assert model.time == len(x) % period
    assert "changes Round.time" in caplog.text


def test_a_layer_that_the_model_does_not_hold_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # its states are nobody's to set back: whatever ran over it before counts
    model, reference, x = make(_hiding()), make(_hiding()), sequence()
    with caplog.at_level(logging.INFO, "tracetorch"):
        for _ in range(2):
            expected = torch.stack([reference(step) for step in x])
            torch.testing.assert_close(model.unroll(x), expected)
    assert "Hiding is stepped: forward calls a Trace that the model does not hold" in caplog.text


def test_what_forward_begins_to_write_into_later_is_an_error() -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Any:
            if begun:
                self.mean.add_(x.mean(0))
            return super().forward(x - self.mean)

    begun: list[bool] = []
    model, x = make(Late), sequence()
    model.unroll(x)
    before = model.get_states()
    begun.append(True)
    with pytest.raises(tt.FoldError, match=r"changed Late\.mean for the first time"):
        model.unroll(x)
    assert all(model.get_states()[name] is state for name, state in before.items())


def test_what_is_made_once_and_for_all_is_folded_from_then_on(
    calls: Callable[[], list[str]],
) -> None:
    class Lazy(Net):
        where: Tensor | None = None

        def forward(self, x: Tensor) -> Any:
            if self.where is None:
                self.where = torch.linspace(0, 1, x.shape[-1])
            return super().forward(x + self.where + self.scale)

        @functools.cached_property
        def scale(self) -> float:
            return 0.5

    model, reference, x = make(Lazy), make(Lazy), sequence()
    for _ in range(3):
        expected = torch.stack([reference(step) for step in x])
        calls()
        torch.testing.assert_close(model.unroll(x), expected)
    assert calls() == ["(12, 3)"]


ODD: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.empty(3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "complex, no number": lambda: torch.full((2,), complex("nan+1j")),
    "inference": lambda: _inference(),
    "lock": threading.Lock,
    "logger": lambda: logging.getLogger("tracetorch.tests"),
    "dead": lambda: weakref.proxy(_Dead()),
    "weak": lambda: _Weak(_Dead()),
    "stubborn": lambda: _Stubborn(),
    "frozen": lambda: _Frozen([1]),
    "a user's own private": lambda: _Private(),
    "script": lambda: torch.jit.script(nn.Linear(3, 3)),
    "cycle": lambda: _cycle(),
}


def _inference() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


class _Dead: ...


class _Weak(weakref.ref):  # type: ignore[type-arg]
    """With slots that nobody may write to."""


class _Stubborn:
    __slots__ = ("unset",)

    def __getattr__(self, name: str) -> Any:
        raise ArithmeticError(name)

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("eq")

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True, slots=True)
class _Frozen:
    held: list[int]


class _Private(nn.Module):
    _private = ("hidden",)


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append({"self": cycle})
    return cycle


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_what_a_model_holds_besides_hinders_nothing(name: str) -> None:
    model, layer, x = make(Net), Trace(3), sequence()
    odd = ODD[name]()
    for owner in (model, layer):
        object.__setattr__(owner, "odd", odd)
    model.last = layer
    y = model.unroll(x)
    assert folds(model) is (name not in ("lock", "stubborn"))  # which nobody can copy
    model.zero_states()
    torch.testing.assert_close(torch.stack([model(step) for step in x]), y)
    assert model.odd is layer.odd is odd


def test_outputs_share_no_memory_with_the_input_or_each_other() -> None:
    class Passing(Net):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"x": x, "y": y, "part": y[:, :1]}

    model, x = make(Passing), sequence()
    mine, found = x.clone(), model.unroll(x)
    assert folds(model)
    kept = {name: y.clone() for name, y in found.items()}
    for name in found:
        found[name].fill_(7)
        kept[name].fill_(7)
        assert torch.equal(x, mine)
        assert all(torch.equal(found[other], kept[other]) for other in found)


def test_states_detached_in_forward_cut_the_graph_between_timesteps() -> None:
    class Detaching(Net):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            self.detach_states()
            return y

    model, found = make(Detaching), []
    for run in (model.unroll, lambda x: torch.stack([model(step) for step in x])):
        model.zero_states()
        x = sequence().requires_grad_()
        run(x).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1])


def test_hooks_see_every_timestep_and_nothing_is_stepped_after_them(
    caplog: pytest.LogCaptureFixture, calls: Callable[[], list[str]]
) -> None:
    model, x, seen = make(Net), sequence(), []
    hook = model.second.register_forward_hook(lambda *call: seen.append(call[2].shape))
    with caplog.at_level(logging.INFO, "tracetorch"):
        model.unroll(x)
        model.unroll(x)
    assert seen == [(2, 3)] * 12
    said = [r.message for r in caplog.records if "is stepped" in r.message]
    assert said == ["Net is stepped: Linear has hooks, which run at every timestep"]
    assert tt.check_unroll(model, x) == "Linear has hooks, which run at every timestep"
    hook.remove()
    model.unroll(x)
    assert calls()[-1] == "(12, 3)"
    assert tt.check_unroll(model, x) is None


def test_trying_out_leaves_no_trace() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Any:
            return super().forward(self.drop(self.norm(x)))

    model, x = make(Normed), 3 * sequence()
    torch.manual_seed(9)
    first = model.unroll(x)
    assert model.norm.num_batches_tracked == 1
    running = model.norm.running_mean.clone()
    torch.testing.assert_close(running, 0.1 * x.flatten(0, 1).mean(0))
    model.zero_states()
    torch.manual_seed(9)
    assert torch.equal(model.unroll(x), first)


@pytest.mark.parametrize("besides", [None, threading.Lock()], ids=["copied", "not copied"])
def test_after_trying_out_weights_can_be_given_other_memory(besides: object) -> None:
    """As ``fully_shard`` of torch does around every call."""
    net = Net()
    net.lock = besides  # type: ignore[assignment]
    net.unroll(torch.randn(4, 2, 3))
    weights = net.first.weight.detach()
    memory, size = weights.untyped_storage(), weights.untyped_storage().nbytes()
    memory.resize_(0)
    memory.resize_(size)
    assert torch.equal(weights.fill_(2.0), torch.full((4, 3), 2.0))


def test_an_error_inside_is_the_steps_own() -> None:
    model, x = make(Net), sequence()
    model(x[0])
    before = model.get_states()
    with pytest.raises(tt.StateError, match=r"layer 'lif'.* \[2, 4\].* \[3, 4\]"):
        model.unroll(torch.randn(6, 3, 3))
    assert all(model.get_states()[name] is state for name, state in before.items())
    model.zero_states()
    assert model.unroll(torch.randn(6, 3, 3)).shape == (6, 3, 3)
    assert folds(model)


def test_outputs_of_any_structure_are_unfolded() -> None:
    class Structured(Net):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"y": y, "both": (x, y.flatten(1))}

    model, reference, x = make(Structured), make(Structured), sequence()
    got, expected = model.unroll(x), [reference(step) for step in x]
    torch.testing.assert_close(got["y"], torch.stack([e["y"] for e in expected]))
    torch.testing.assert_close(got["both"][1], torch.stack([e["both"][1] for e in expected]))
    assert torch.equal(got["both"][0], x)


def test_a_positive_dim_counts_in_one_timestep() -> None:
    class Images(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.leak = nn.Conv2d(1, 4, 3), Trace(4, dim=1)
            self.space = StateSpace(4, out_size=2, dim=1)

        def forward(self, x: Tensor) -> Any:
            return self.space(self.leak(self.conv(x)))

    torch.manual_seed(0)
    model, x = Images(), torch.randn(5, 2, 1, 6, 6)
    y = model.unroll(x)
    assert folds(model)
    model.zero_states()
    torch.testing.assert_close(y, torch.stack([model(step) for step in x]))


def test_check_unroll_names_the_first_layer_that_differs() -> None:
    class Mixing(Net):
        def forward(self, x: Tensor) -> Any:
            return self.last(self.second(self.lif(self.first(x) - self.first(x).mean(0))))

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Any:
            return super().forward(self.norm(x))

    model, x = make(Normed), 3 * sequence()
    model.unroll(x)
    before = model.get_states()
    with pytest.raises(AssertionError, match=r"^the (output of layer 'lif'|final state lif\.mem)"):
        tt.check_unroll(model, x)
    assert all(model.get_states()[name] is state for name, state in before.items())
    assert model.norm.num_batches_tracked == 1
    assert tt.check_unroll(model.eval(), x) is None
    assert tt.check_unroll(make(Net), x) is None
    why = tt.check_unroll(make(Mixing), x)
    assert (
        why == "the input of a AdaptiveLIF is another over all timesteps at once than step by step"
    )
    why = tt.check_unroll(make(Twice), x)
    assert why is not None
    assert "is called more than once" in why


def test_check_unroll_holds_every_output_and_says_which_differs() -> None:
    class Several(Net):
        wrong = 0.0

        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"y": y, "both": (x, y.flatten(1) + self.wrong * x.mean(0))}

    model, x = make(Several), sequence()
    assert tt.check_unroll(model, x) is None
    model.wrong = 1.0
    with pytest.raises(AssertionError, match=r"^the output\['both'\]\[1\] differs"):
        tt.check_unroll(model, x)


def test_check_unroll_takes_rounding_for_what_it_is() -> None:
    class Large(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * 1e4

    model, x = make(Large), torch.randn(300, 2, 3)
    assert tt.check_unroll(model, x) is None
    assert tt.check_unroll(make(Net).bfloat16(), x.bfloat16()) is None

    class Off(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + 1e-4 * x.mean()

    assert "the output is another" in str(tt.check_unroll(make(Off), x))


@pytest.mark.parametrize(
    ("model", "x", "kind", "says"),
    [
        (Trace(3), torch.ones(2, 2, 3), TypeError, "got a Trace; tt.testing.check_layer"),
        (nn.Linear(3, 3), torch.ones(2, 2, 3), TypeError, "got a Linear; wrap it in a tt.Model"),
        (Net(), torch.ones(1, 2, 3), ValueError, r"T of at least 2, got \[1, 2, 3\]"),
        (Net(), [1], ValueError, "T of at least 2, got a list"),
    ],
)
def test_check_unroll_refuses_what_it_cannot_check(
    model: Any, x: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=f"^check_unroll: .*{says}"):
        tt.check_unroll(model, x)


class Doubled(Trace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Called(Trace):
    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = super().__call__(x)
        return y * 2


def _hooked(pre: bool) -> Trace:
    layer = Trace(3)
    if pre:
        layer.register_forward_pre_hook(lambda _, x: (x[0] * 2,))
    else:
        layer.register_forward_hook(lambda _, x, y: y * 2)
    return layer


@pytest.mark.parametrize(
    "make",
    [lambda: Doubled(3), lambda: Called(3), lambda: _hooked(True), lambda: _hooked(False)],
    ids=["forward", "call", "hook before", "hook after"],
)
def test_what_a_call_of_a_layer_does_besides_it_does_once(make: Callable[[], Trace]) -> None:
    model, x = make_net(make()), sequence()
    y = model.unroll(x)
    model.zero_states()
    torch.testing.assert_close(y, torch.stack([model(step) for step in x]))
    assert tt.check_unroll(model, x) is not None


def make_net(layer: Trace) -> Net:
    model = make(Net)
    model.last = layer
    return model


@pytest.mark.parametrize("inner", [Trace(3), make(Net)], ids=["layer", "model"])
def test_several_steps_of_a_part_in_each_timestep(inner: Any) -> None:
    class Micro(Net):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return super().forward(self.inner.unroll(torch.stack([x, 2 * x]))[-1])

    model, x = make(Micro), sequence()
    y = model.unroll(x)
    model.zero_states()
    torch.testing.assert_close(y, torch.stack([model(step) for step in x]))
    assert "within a timestep" in str(tt.check_unroll(model, x))


# ---------------------------------------------------------------------- hooks that only look on


def test_observers_leave_a_model_folded_and_see_nothing_of_its_trial() -> None:
    model, shapes = Net(), list[tuple[int, ...]]()
    hook = Observer(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    handle = model.first.register_forward_hook(hook)
    x = torch.randn(5, 2, 3)
    y = model.unroll(x, fold=True)
    model(x[0])
    assert shapes == [(10, 4), (2, 4)]
    handle.remove()
    model.zero_states()
    assert torch.equal(y, model.unroll(x))
    model.first.register_forward_hook(hook)
    model.first.register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(tt.FoldError, match="Linear has hooks"):
        model.unroll(x, fold=True)


def test_what_a_layer_makes_for_its_copy_is_not_taken_for_another() -> None:
    for _ in range(60):  # of so many, some were made at an address that was free again
        copier = Copier()
        for layer in (Trace(3), AdaptiveLIF(3), StateSpace(3)):
            found = copier.copied(layer, "layer")
            assert [*found.tt.declaration.parameters] == [*layer.tt.declaration.parameters]


class Recurrent(tt.Layer):
    """Torch's own recurrent module, which keeps weak references to its weights, made anew."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__(3)
        names = ("h", "c") if kind is nn.LSTM else ("h",)
        self.add_state(*names)
        self.net = kind(3, 3)  # type: ignore[call-arg]

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        new, y = self.sequence(states, x[None], p)
        return new, y[0]

    def sequence(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        held = tuple(getattr(states, name)[None] for name in self.tt.states)
        y, new = self.net(x, held if len(held) > 1 else held[0])
        parts = new if isinstance(new, tuple) else (new,)
        return {name: part[0] for name, part in zip(self.tt.states, parts, strict=True)}, y


class AroundTorchs(tt.Model):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.memory = nn.Linear(3, 3), Recurrent(kind)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.memory(self.first(x))
        return y


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_layer_around_a_recurrent_module_of_torch_is_folded(kind: type[nn.RNNBase]) -> None:
    model, x = AroundTorchs(kind), torch.randn(6, 2, 3)
    tt.check_unroll(model, x)
    model.zero_states()
    model.unroll(x)
    assert model.tt.last is None
