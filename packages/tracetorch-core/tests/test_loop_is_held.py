"""``unroll`` is the loop, whatever ``forward`` keeps or looks at: else it steps, and says why.

What is kept is compared too: trying a model out leaves nothing behind in it.
"""

from __future__ import annotations

import array
import collections
import contextlib
import contextvars
import enum
import functools
import io
import itertools
import logging
import queue
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch.testing import Trace

Weigh = Callable[[Any, Tensor], Any]
Case = tuple[tt.Model, Callable[[], Any]]

CALLS = logging.getLogger("tracetorch.tests.held")


def looped(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model(timestep) for timestep in x])


def unrolled(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.unroll(x)
    return y


def sequence(steps: int = 5, batch: int = 2, seed: int = 4) -> Tensor:
    return torch.randn(steps, batch, 3, generator=torch.Generator().manual_seed(seed))


def measured(model: Any, x: Tensor, run: Callable[[Any, Tensor], Tensor]) -> dict[str, Tensor]:
    """Outputs, final states and gradients of a sequence that goes on from the standing states."""
    model.detach_states()
    x = x.clone().requires_grad_()
    y = run(model, x)
    model.zero_grad()
    y.square().sum().backward()
    found = {"y": y.detach(), "grad x": x.grad, **model.get_states()}
    return {**found, **{f"grad {name}": p.grad for name, p in model.named_parameters()}}


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6, msg=name)


def why(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of models that are stepped."""
    texts = (r.message for r in caplog.records if r.name == "tracetorch")
    return [text.partition(" is stepped: ")[2] for text in texts if " is stepped: " in text]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, "tracetorch"):
        yield lambda: why(caplog)


# ---------------------------------------------------------------------- looks at the batch

TABLE = torch.linspace(-1, 1, 300).reshape(100, 3)


class Shared(torch.autograd.Function):
    """Passes on a gradient that is divided by the number of samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / len(grad)


def _hooked(x: Tensor) -> Tensor:
    y = 2 * x
    if y.requires_grad:
        y.register_hook(lambda grad: grad / len(grad))
    return y


BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "len": lambda x: x * len(x),
    "shape": lambda x: x / x.shape[0],
    "numel": lambda x: x * x.numel(),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "sort": lambda x: x.sort(0)[0],
    "cumsum": lambda x: x.cumsum(0),
    "softmax": lambda x: x.softmax(0),
    "mean": lambda x: x - x.mean(0),
    "first": lambda x: x + x[:1],
    "table": lambda x: x + TABLE[: len(x)],
    "maximum": lambda x: x / (1 + x.abs().max()),
    "backwards": lambda x: torch.stack(x.unbind(0)[::-1]),
    "normalized": lambda x: F.layer_norm(x, x.shape),
    "positions": lambda x: x + torch.arange(len(x))[:, None],
    "neighbours": lambda x: torch.cat([x[1:], x[:1]]),
    "gradient": lambda x: Shared.apply(x),
    "hook": _hooked,
}


class Looking(tt.Model):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.leak = name, Trace(3)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(BATCH[self.name](x * self.gain))
        return y


INPUTS: dict[str, Callable[[], Tensor]] = {
    "numbers": sequence,
    "zeros": lambda: torch.zeros(5, 2, 3),
    "ones": lambda: torch.ones(5, 2, 3),
    "one sample": lambda: sequence(batch=1),
}


@pytest.mark.parametrize("x", INPUTS)
@pytest.mark.parametrize("name", BATCH)
def test_what_goes_by_the_batch_is_stepped(
    name: str, x: str, said: Callable[[], list[str]]
) -> None:
    model, reference, steps = Looking(name), Looking(name), INPUTS[x]()
    for _ in range(2):
        same(measured(model, steps, unrolled), measured(reference, steps, looped))
    assert len(said()) == 1
    assert "over all timesteps at once" in said()[0]
    with torch.no_grad():
        torch.testing.assert_close(model.unroll(steps), looped(reference, steps))


class Behind(Looking):
    """What goes by the batch is the layer's output, which rises or falls in time."""

    def forward(self, x: Tensor) -> Tensor:
        return BATCH[self.name](self.leak(x * self.gain))


@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
@pytest.mark.parametrize("name", BATCH)
def test_samples_that_are_put_in_order_in_time_are_stepped(name: str, sign: int) -> None:
    model, reference = Behind(name), Behind(name)
    for x in (sign * (1 + 0.01 * sequence()), sequence()):
        same(measured(model, x, unrolled), measured(reference, x, looped))


class Silent(Behind):
    """Its neurons fire only later than a decision is made."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.leak = tt.testing.AdaptiveLIF(3)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", [*BATCH, "products"])
def test_what_is_silent_at_first_hides_nothing(
    name: str, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BATCH, "products", lambda x: x @ (x.T @ x))
    if not gradients and name in ("gradient", "hook"):
        monkeypatch.setitem(BATCH, name, lambda x: x)
    model, reference = Silent(name), Silent(name)
    with torch.set_grad_enabled(gradients):
        for x in (1e-3 * sequence(), 3 * sequence(steps=9, batch=3)):
            for each in (model, reference):
                each.zero_states()
            torch.testing.assert_close(model.unroll(x), looped(reference, x))


@pytest.mark.parametrize("name", BATCH)
def test_a_first_sequence_that_is_short_shows_it_too(name: str) -> None:
    model, reference = Looking(name), Looking(name)
    for steps, batch in ((2, 1), (7, 3)):
        for each in (model, reference):
            each.zero_states()
        x = sequence(steps, batch)
        same(measured(model, x, unrolled), measured(reference, x, looped))


def test_what_treats_samples_apart_is_folded(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: x.softmax(-1),
        "unbind": lambda x: torch.stack(x.unbind(0)),
        "view": lambda x: x.view(len(x), -1).cumsum(1).view(x.shape),
        "table": lambda x: x + TABLE[:1].expand(len(x), 3),
        "mask": lambda x: x.where(x > 0, -x),
        "index": lambda x: TABLE[x.argmax(-1)] * x,
    }
    for name, change in apart.items():
        monkeypatch.setitem(BATCH, name, change)
        model, reference = Looking(name), Looking(name)
        same(measured(model, sequence(), unrolled), measured(reference, sequence(), looped))
        assert tt.check_unroll(model, sequence()) is None
    assert said() == []


@pytest.mark.parametrize("x", [torch.zeros(5, 2, 3), torch.ones(5, 2, 3), sequence().sign()])
def test_samples_that_are_alike_hinder_nothing(x: Tensor, said: Callable[[], list[str]]) -> None:
    model, reference = Plain(), Plain()
    same(measured(model, x, unrolled), measured(reference, x, looped))
    assert tt.check_unroll(model, x) is None
    assert said() == []


# ---------------------------------------------------------------------- kept between timesteps


def keeping(weigh: Weigh, read: Callable[[Any], Any], **attributes: Any) -> Case:
    """A model whose input is weighed by what it has kept, and how that is read."""

    class Keeping(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.leak = nn.Linear(3, 3), Trace(3)
            self.linear.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
            for name, value in attributes.items():
                setattr(self, name, value)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.leak(self.linear(x) * (1 + weigh(self, x) % 7))
            return y

    model = Keeping()
    return model, lambda: read(model)


MEMORIES: dict[str, Callable[[], Case]] = {}


def memory(make: Callable[[], Case]) -> Callable[[], Case]:
    MEMORIES[make.__name__.strip("_")] = make
    return make


class Tagged(list):  # type: ignore[type-arg]
    pass


@memory
def _list_with_attributes() -> Case:
    held = Tagged()
    held.count = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        model.held.count += 1
        return int(model.held.count)

    return keeping(weigh, lambda model: model.held.count, held=held)


class Pair(tuple):  # type: ignore[type-arg]
    pass


@memory
def _tuple_with_attributes() -> Case:
    held = Pair((1, 2))
    held.count = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        model.held.count += 1
        return int(model.held.count)

    return keeping(weigh, lambda model: model.held.count, held=held)


@memory
def _function_attribute() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        weigh.count += 1  # type: ignore[attr-defined]
        return int(weigh.count)  # type: ignore[attr-defined]

    weigh.count = 0  # type: ignore[attr-defined]
    return keeping(weigh, lambda model: weigh.count)  # type: ignore[attr-defined]


@memory
def _default_argument() -> Case:
    def weigh(model: Any, x: Tensor, past: list[int] = []) -> int:  # noqa: B006
        past.append(1)
        return len(past)

    return keeping(weigh, lambda model: len(weigh.__defaults__[0]))  # type: ignore[index]


@memory
def _keyword_default() -> Case:
    def weigh(model: Any, x: Tensor, *, past: dict[str, int] = {"n": 0}) -> int:  # noqa: B006
        past["n"] += 1
        return past["n"]

    return keeping(weigh, lambda model: weigh.__kwdefaults__["past"]["n"])  # type: ignore[index]


CONTEXT: contextvars.ContextVar[int] = contextvars.ContextVar("context", default=0)


@memory
def _context_variable() -> Case:
    CONTEXT.set(0)

    def weigh(model: Any, x: Tensor) -> int:
        CONTEXT.set(CONTEXT.get() + 1)
        return CONTEXT.get()

    return keeping(weigh, lambda model: CONTEXT.get())


LISTED: contextvars.ContextVar[list[int]] = contextvars.ContextVar("listed")


@memory
def _list_in_a_context_variable() -> Case:
    LISTED.set([])

    def weigh(model: Any, x: Tensor) -> int:
        LISTED.get().append(1)
        return len(LISTED.get())

    return keeping(weigh, lambda model: len(LISTED.get()))


@memory
def _thread_local() -> Case:
    local = threading.local()
    local.count = 0

    def weigh(model: Any, x: Tensor) -> int:
        local.count += 1
        return int(local.count)

    return keeping(weigh, lambda model: local.count)


@memory
def _queue() -> Case:
    line: queue.Queue[int] = queue.Queue()
    line.put(0)

    def weigh(model: Any, x: Tensor) -> int:
        line.put(line.get() + 1)
        return line.queue[0]

    return keeping(weigh, lambda model: [*line.queue])


@memory
def _simple_queue() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        model.line.put(1)
        return int(model.line.qsize())

    return keeping(weigh, lambda model: model.line.qsize(), line=queue.SimpleQueue())


@memory
def _text_buffer() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        model.text.write("x")
        return len(model.text.getvalue())

    return keeping(weigh, lambda model: model.text.getvalue(), text=io.StringIO())


@memory
def _position_in_bytes() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        return int(model.data.read(1)[0])

    return keeping(weigh, lambda model: model.data.tell(), data=io.BytesIO(bytes(range(100))))


@memory
def _cached_function() -> Case:
    @functools.lru_cache
    def age(key: int) -> int:
        return key

    def weigh(model: Any, x: Tensor) -> int:
        return age(age.cache_info().currsize) + age.cache_info().hits

    return keeping(weigh, lambda model: age.cache_info()[:2])


@memory
def _cached_method() -> Case:
    class Clock:
        ticks = 0

        @functools.lru_cache  # noqa: B019
        def at(self, key: int) -> int:
            self.ticks += 1
            return self.ticks

    def weigh(model: Any, x: Tensor) -> int:
        model.clock.key += 1
        return int(model.clock.at(model.clock.key // 2))

    clock = Clock()
    clock.key = 0  # type: ignore[attr-defined]
    return keeping(weigh, lambda model: (clock.ticks, Clock.at.cache_info()[:2]), clock=clock)


@memory
def _attribute_of_a_tensor() -> Case:
    held = torch.ones(3)
    held.count = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        model.held.count += 1
        return int(model.held.count)

    return keeping(weigh, lambda model: model.held.count, held=held)


@memory
def _attribute_of_a_parameter() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        weight = model.linear.weight
        weight.count = getattr(weight, "count", 0) + 1
        return int(weight.count)

    return keeping(weigh, lambda model: model.linear.weight.count)


@memory
def _attribute_of_a_layers_parameter() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        raw = model.leak.raw_beta
        raw.count = getattr(raw, "count", 0) + 1
        return int(raw.count)

    return keeping(weigh, lambda model: model.leak.raw_beta.count)


TICKS = 0


@memory
def _global() -> Case:
    global TICKS
    TICKS = 0

    def weigh(model: Any, x: Tensor) -> int:
        global TICKS
        TICKS += 1
        return TICKS

    return keeping(weigh, lambda model: TICKS)


BOARD = types.SimpleNamespace(ticks=0, deep={"in": [0]})


@memory
def _deep_in_a_global() -> Case:
    BOARD.deep["in"][0] = 0

    def weigh(model: Any, x: Tensor) -> int:
        BOARD.deep["in"][0] += 1
        return int(BOARD.deep["in"][0])

    return keeping(weigh, lambda model: BOARD.deep["in"][0])


@memory
def _closure() -> Case:
    count = 0

    def weigh(model: Any, x: Tensor) -> int:
        nonlocal count
        count += 1
        return count

    return keeping(weigh, lambda model: count)


@memory
def _function_in_a_closure() -> Case:
    past = collections.deque([0, 0], maxlen=2)

    def tick() -> int:
        past.append(past[-1] + 1)
        return past[0]

    def weigh(model: Any, x: Tensor) -> int:
        return tick()

    return keeping(weigh, lambda model: [*past])


@memory
def _class_attribute() -> Case:
    class Counter:
        count = 0

    def weigh(model: Any, x: Tensor) -> int:
        Counter.count += 1
        return Counter.count

    return keeping(weigh, lambda model: Counter.count)


@memory
def _class_attribute_by_its_name() -> Case:
    class Counter:
        count = 0

    name = "count"

    def weigh(model: Any, x: Tensor) -> int:
        setattr(Counter, name, getattr(Counter, name) + 1)
        return Counter.count

    return keeping(weigh, lambda model: Counter.count)


@memory
def _class_method() -> Case:
    class Counter:
        _count = 0

        @classmethod
        def tick(cls) -> int:
            cls._count += 1
            return cls._count

    return keeping(lambda model, x: Counter.tick(), lambda model: Counter._count)


@memory
def _metaclass() -> Case:
    class Meta(type):
        count = 0

    class Counter(metaclass=Meta):
        pass

    def weigh(model: Any, x: Tensor) -> int:
        Meta.count += 1
        return Counter.count

    return keeping(weigh, lambda model: Meta.count)


@memory
def _property() -> Case:
    class Clock:
        _ticks = 0

        @property
        def now(self) -> int:
            self._ticks += 1
            return self._ticks

    return keeping(
        lambda model, x: model.clock.now, lambda model: model.clock._ticks, clock=Clock()
    )


@memory
def _method_that_python_calls() -> Case:
    global TICKS
    TICKS = 0

    class Clock:
        def __len__(self) -> int:
            global TICKS
            TICKS += 1
            return TICKS

    return keeping(lambda model, x: len(model.clock), lambda model: TICKS, clock=Clock())


@memory
def _iterator_of_ones_own() -> Case:
    past: list[int] = []

    class Clock:
        def __next__(self) -> int:
            past.append(1)
            return len(past)

    return keeping(lambda model, x: next(model.clock), lambda model: len(past), clock=Clock())


@memory
def _generator() -> Case:
    drawn: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count(1):
            drawn.append(number)
            yield number

    held = numbers()
    return keeping(lambda model, x: next(held), lambda model: len(drawn))


@memory
def _count() -> Case:
    return keeping(
        lambda model, x: next(model.ticks),
        lambda model: repr(model.ticks),
        ticks=itertools.count(1),
    )


@memory
def _iterator_of_a_list() -> Case:
    return keeping(
        lambda model, x: next(model.ticks),
        lambda model: model.ticks.__length_hint__(),
        ticks=iter([*range(100)]),
    )


@memory
def _array_of_a_global() -> Case:
    TALLY[:] = 0

    def weigh(model: Any, x: Tensor) -> int:
        TALLY[1] += 1
        return int(TALLY[1])

    return keeping(weigh, lambda model: TALLY.tolist())


TALLY = np.zeros(2)


@memory
def _view_of_an_array() -> Case:
    whole = np.zeros(4)

    def weigh(model: Any, x: Tensor) -> float:
        model.part[0] += 1
        return float(whole[1])

    return keeping(weigh, lambda model: whole.tolist(), part=whole[1:])


@memory
def _tensor_on_an_array() -> Case:
    whole = np.zeros(1, dtype=np.float32)

    def weigh(model: Any, x: Tensor) -> Tensor:
        model.whole += 1
        held: Tensor = model.held
        return held

    return keeping(weigh, lambda model: whole.tolist(), whole=whole, held=torch.from_numpy(whole))


@memory
def _array_of_numbers() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        model.tally.append(1)
        return len(model.tally)

    return keeping(weigh, lambda model: len(model.tally), tally=array.array("l"))


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@memory
def _dict_of_objects() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        model.held["a"].count += 1
        return int(model.held["a"].count)

    read = lambda model: model.held["a"].count  # noqa: E731
    return keeping(weigh, read, held={"a": Slotted(), "b": Slotted()})


class Referred:
    count = 0


@memory
def _object_behind_a_weak_reference() -> Case:
    owner = [Referred()]

    def weigh(model: Any, x: Tensor) -> int:
        found: Any = model.held()
        found.count += 1
        return int(found.count)

    return keeping(weigh, lambda model: owner[0].count, held=weakref.ref(owner[0]))


@memory
def _weak_dictionary() -> Case:
    owner = [Referred()]
    held = weakref.WeakKeyDictionary({owner[0]: 0})

    def weigh(model: Any, x: Tensor) -> int:
        held[owner[0]] += 1
        return held[owner[0]]

    return keeping(weigh, lambda model: held[owner[0]])


@memory
def _partial() -> Case:
    def tick(past: list[int]) -> int:
        past.append(1)
        return len(past)

    past: list[int] = []
    held = functools.partial(tick, past)
    return keeping(lambda model, x: model.held(), lambda model: len(past), held=held)


@memory
def _bound_method() -> Case:
    class Clock:
        ticks = 0

        def tick(self) -> int:
            self.ticks += 1
            return self.ticks

    clock = Clock()
    return keeping(lambda model, x: model.tick(), lambda model: clock.ticks, tick=clock.tick)


class Single:
    """There is one, whoever makes it."""

    one: Any = None
    ticks = 0

    def __new__(cls) -> Any:
        if cls.one is None:
            cls.one = super().__new__(cls)
        return cls.one


@memory
def _singleton() -> Case:
    Single.one = None
    single = Single()

    def weigh(model: Any, x: Tensor) -> int:
        model.held.ticks += 1
        return int(model.held.ticks)

    return keeping(weigh, lambda model: single.ticks, held=single)


class Unique:
    """Copies of it are itself."""

    ticks = 0

    def __deepcopy__(self, memo: Any) -> Unique:
        return self


@memory
def _object_that_is_its_own_copy() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        model.held.ticks += 1
        return int(model.held.ticks)

    return keeping(weigh, lambda model: model.held.ticks, held=Unique())


class Named:
    """Stands for itself when it is pickled."""

    ticks = 0

    def __reduce__(self) -> str:
        return "NAMED"


NAMED = Named()


@memory
def _object_that_is_known_by_name() -> Case:
    NAMED.ticks = 0

    def weigh(model: Any, x: Tensor) -> int:
        model.held.ticks += 1
        return int(model.held.ticks)

    return keeping(weigh, lambda model: NAMED.ticks, held=NAMED)


class Phase(enum.Enum):
    REST = 1
    RUN = 2


@memory
def _attribute_of_an_enum() -> Case:
    Phase.RUN.ticks = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        Phase.RUN.ticks += 1  # type: ignore[attr-defined]
        return int(Phase.RUN.ticks)  # type: ignore[attr-defined]

    return keeping(weigh, lambda model: Phase.RUN.ticks)  # type: ignore[attr-defined]


@memory
def _attribute_of_a_logger() -> Case:
    CALLS.ticks = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        CALLS.ticks += 1  # type: ignore[attr-defined]
        return int(CALLS.ticks)  # type: ignore[attr-defined]

    return keeping(weigh, lambda model: CALLS.ticks)  # type: ignore[attr-defined]


@memory
def _module_in_an_attribute() -> Case:
    store = types.ModuleType("store")
    store.ticks = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        model.store.ticks += 1
        return int(model.store.ticks)

    return keeping(weigh, lambda model: model.store.ticks, store=store)


@memory
def _module_imported_on_the_way() -> Case:
    store = sys.modules["held_store"] = types.ModuleType("held_store")
    store.ticks = 0  # type: ignore[attr-defined]

    def weigh(model: Any, x: Tensor) -> int:
        import held_store  # type: ignore[import-not-found]

        held_store.ticks += 1
        return int(held_store.ticks)

    return keeping(weigh, lambda model: store.ticks)  # type: ignore[attr-defined]


@memory
def _global_by_its_name() -> Case:
    global TICKS
    TICKS = 0

    def weigh(model: Any, x: Tensor) -> int:
        globals()["TICKS"] += 1
        return TICKS

    return keeping(weigh, lambda model: TICKS)


@memory
def _private_attribute_by_its_dictionary() -> Case:
    def weigh(model: Any, x: Tensor) -> int:
        vars(model)["_ticks"] = vars(model).get("_ticks", 0) + 1
        return int(vars(model)["_ticks"])

    return keeping(weigh, lambda model: model._ticks)


@memory
def _gradient_of_a_parameter() -> Case:
    def weigh(model: Any, x: Tensor) -> Tensor:
        weight = model.held
        weight.grad = torch.ones(1) if weight.grad is None else weight.grad + 1
        held: Tensor = weight.grad
        return held

    held = torch.zeros(1, requires_grad=True)
    return keeping(weigh, lambda model: model.held.grad.tolist(), held=held)


@memory
def _random_numbers_of_numpy() -> Case:
    return keeping(lambda model, x: np.random.rand(), lambda model: np.random.get_state()[2])


@memory
def _random_numbers_of_python() -> Case:
    return keeping(lambda model, x: random.random(), lambda model: random.getstate()[1][-1])


@memory
def _generator_of_random_numbers() -> Case:
    drawing = random.Random(3)
    return keeping(lambda model, x: drawing.random(), lambda model: drawing.getstate()[1][-1])


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_kept_between_timesteps_is_as_in_the_loop(
    name: str, said: Callable[[], list[str]]
) -> None:
    found = []
    for run in (looped, unrolled):
        model, read = MEMORIES[name]()
        random.seed(5)
        np.random.seed(5)
        found.append([(measured(model, sequence(seed=k), run), read()) for k in (4, 5)])
    for (got, kept), (expected, left) in zip(found[1], found[0], strict=True):
        same(got, expected)
        assert kept == left
    assert len(said()) == 1


class Sealed(type):
    """Of classes that nobody may change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__} is sealed")


class Constants(metaclass=Sealed):
    table = (1.0, 2.0)


FIXED = types.MappingProxyType({"gain": 2.0})


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "enum": lambda x: x * Phase.RUN.value,
    "enum in a comparison": lambda x: x if Phase(2) is Phase.RUN else -x,
    "sealed class": lambda x: x * Constants.table[1],
    "fixed mapping": lambda x: x * FIXED["gain"],
    "object": lambda x: x * (1 + BOARD.ticks),
    "array": lambda x: x + len(TALLY),
}


@pytest.mark.parametrize("name", READ)
def test_what_forward_reads_may_be_of_any_kind(name: str, said: Callable[[], list[str]]) -> None:
    change = READ[name]

    class Reads(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.leak = Trace(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.leak(change(x) * (1 + BOARD.ticks))
            return y

    board, model, x = BOARD, Reads(), sequence()
    same(measured(model, x, unrolled), measured(Reads(), x, looped))
    assert said() == []
    assert BOARD is board


def test_models_tried_out_in_threads_at_once_leave_what_they_read_in_its_place() -> None:
    class Reads(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.leak = Trace(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.leak(x * (1 + BOARD.ticks))
            return y

    board, failed = BOARD, []
    for _ in range(10):
        barrier = threading.Barrier(4)

        def run(barrier: threading.Barrier = barrier) -> None:
            model = Reads()
            barrier.wait()
            try:
                same(measured(model, sequence(), unrolled), measured(Reads(), sequence(), looped))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert BOARD is board


# ---------------------------------------------------------------------- values looked at


def _printed(x: Tensor) -> int:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print(x)  # noqa: T201
    return len(out.getvalue()) % 5


def _tried(x: Tensor) -> float:
    try:
        return float(x.abs().max())
    except Exception:
        return 1.0


def _tried_and_hidden(x: Tensor) -> float:
    for look in (lambda: x.nonzero().numel(), lambda: len(x[x > 0])):
        with contextlib.suppress(BaseException):
            return float(look())
    return 1.0


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "nonzero": lambda x: len(x.relu().nonzero()),
    "where": lambda x: len(torch.where(x > 0)[0]),
    "unique": lambda x: x.round().unique().numel(),
    "boolean index": lambda x: x[x > 0].mean(),
    "select": lambda x: x.masked_select(x > 0).sum(),
    "str": lambda x: len(str(x)) % 5,
    "format": lambda x: len(f"{x.sum()}") % 5,
    "print": _printed,
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "item": lambda x: x.max().item(),
    "list": lambda x: x.tolist()[0][0],
    "array": lambda x: float(np.asarray(x.detach()).max()),
    "if": lambda x: 2 if x.sum() > 0 else 1,
    "any": lambda x: 2 if (x > 1).any() else 1,
    "all": lambda x: 2 if bool((x > -1).all()) else 1,
    "equal": lambda x: 2 if torch.equal(x, x.abs()) else 1,
    "in": lambda x: 2 if 0.0 in x.round() else 1,
    "bincount": lambda x: torch.bincount(x.argmax(-1)).numel(),
    "one_hot": lambda x: F.one_hot(x.argmax(-1)).shape[-1],
    "repeated": lambda x: x.detach().repeat_interleave((x[0] > 0).long() + 1, -1).shape[-1],
    "sparse": lambda x: x.relu().to_sparse().indices().shape[-1],
    "tried": _tried,
    "hidden": _tried_and_hidden,
}


class Peering(tt.Model):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.leak = name, Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(x * LOOKS[self.name](x))
        return y


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LOOKS)
def test_a_look_at_values_is_a_look_at_a_timestep(name: str, said: Callable[[], list[str]]) -> None:
    model, reference = Peering(name), Peering(name)
    for seed in (4, 5):
        x = sequence(seed=seed)
        same(measured(model, x, unrolled), measured(reference, x, looped))
    assert len(said()) == 1
    # some of them only make tensors that are as large as values say
    assert said()[0].startswith(("forward looks at values (Tensor.", "the input of a Trace is"))


@pytest.mark.parametrize("name", ["bincount", "one_hot", "repeated", "sparse", "unique", "if"])
def test_a_look_is_noticed_where_the_first_timesteps_do_not_show_it(name: str) -> None:
    model, reference = Peering(name), Peering(name)
    x = torch.linspace(1.1, 1.2, 240).reshape(40, 2, 3)
    x[7] = torch.tensor([3.0, -2.0, -1.0])  # which no trial takes
    same(measured(model, x, unrolled), measured(reference, x, looped))


# ---------------------------------------------------------------------- asked for, and insisted on


class Plain(tt.Model):
    """Its forward passes are in the log."""

    def __init__(self, change: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.change, self.leak = change, Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        CALLS.debug("%s", [*x.shape])
        y: Tensor = self.leak(self.change(x))
        return y


@pytest.fixture
def calls(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.DEBUG, CALLS.name):
        yield lambda: [r.message for r in caplog.records if r.name == CALLS.name]


def test_asked_not_to_fold_it_steps_and_tries_nothing_out(calls: Callable[[], list[str]]) -> None:
    model, x = Plain(), sequence()
    same(measured(model, x, lambda m, x: m.unroll(x, fold=False)), measured(Plain(), x, looped))
    assert calls()[:5] == ["[2, 3]"] * 5
    assert len(calls()) == 10


def test_insisting_asks_nothing_and_folds(calls: Callable[[], list[str]]) -> None:
    model, x = Plain(lambda x: x - x.mean(0)), sequence()
    y = model.unroll(x, fold=True)
    assert calls() == ["[10, 3]"]
    # the mean is of all timesteps: that is what was insisted on
    torch.testing.assert_close(y, Trace(3).unroll(x - x.mean((0, 1))))


def test_left_to_itself_it_decides_and_keeps_to_it(calls: Callable[[], list[str]]) -> None:
    model, x = Plain(), sequence()
    model.unroll(x, fold=None)
    tried = len(calls())
    model.unroll(x, fold=None)
    assert calls()[tried - 1 :] == ["[10, 3]"] * 2


class Twice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(self.leak(x))
        return y


class Reading(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(x) + self.leak.mem
        return y


class Inner(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.leak.unroll(torch.stack([x, x]))[-1]


class Summing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leak(x).sum(0)
        return y


class Numbered(Plain):
    def forward(self, x: Tensor) -> Any:
        return self.leak(x), 1


def _hooking() -> Plain:
    model = Plain()
    model.gate = nn.Identity()
    model.gate.register_forward_hook(lambda *call: None)
    return model


IMPOSSIBLE: dict[str, tuple[Callable[[], tt.Model], Tensor, str]] = {
    "twice": (Twice, sequence(), "a Trace is called more than once"),
    "states": (Reading, sequence(), "reads or changes the states of a Trace"),
    "inner": (Inner, sequence(), "forward unrolls a Trace within a timestep"),
    "no batch": (Summing, sequence(), r"\[3\] does not have the 5·2 timesteps and samples"),
    "no tensor": (Numbered, sequence(), "forward returns something else than tensors"),
    "hooks": (_hooking, sequence(), "Identity has hooks"),
    "unbatched": (Plain, sequence()[:, 0], "has no batch dimension to fold time into"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("known", [False, True], ids=["at first", "decided before"])
def test_insisting_on_what_cannot_be_is_an_error_that_says_why(name: str, known: bool) -> None:
    make, x, says = IMPOSSIBLE[name]
    model = make()
    with contextlib.suppress(TypeError):  # of the loop itself, which takes tensors alone
        looped(model, x)
    before = model.get_states()
    if known:
        with contextlib.suppress(TypeError):
            model.unroll(x)
        model.set_states(before)
    with pytest.raises(tt.FoldError, match=rf"^{type(model).__name__} cannot be folded: .*{says}"):
        model.unroll(x, fold=True)
    assert all(model.get_states()[name] is state for name, state in before.items())


# ---------------------------------------------------------------------- what begins later


class Adapting(tt.Model):
    """Begins to change something once it is told to."""

    def __init__(self, change: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.change, self.begun = change, False
        self.linear, self.leak = nn.Linear(3, 3), Trace(3)
        self.scale, self.spare = 1.0, 1.0
        self.past: list[Tensor] = []
        self.named, self.line, self.seen = {"a": 1.0}, collections.deque([0.0], 1), {1}
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.begun:
            self.change(self, x)
        y: Tensor = self.leak(self.linear(x))
        return y


def _deletes(model: Any, x: Tensor) -> None:
    vars(model).pop("spare", None)


def _writes(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        model.linear.weight.mul_(0.9)


def _replaces(model: Any, x: Tensor) -> None:
    model.mean = model.mean + 1


LATER: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "attribute": (lambda m, x: setattr(m, "scale", m.scale / 2), r"Adapting\.scale"),
    "new": (lambda m, x: setattr(m, "fresh", x), r"Adapting\.fresh"),
    "deleted": (_deletes, "Adapting"),
    "of a module": (lambda m, x: setattr(m.linear, "spare", x), r"Linear\.spare"),
    "of a layer": (lambda m, x: setattr(m.leak, "spare", x), r"Trace\.spare"),
    "list": (lambda m, x: m.past.append(x), r"Adapting\.past"),
    "dict": (lambda m, x: m.named.update(a=m.named["a"] + 1), r"Adapting\.named"),
    "deque": (lambda m, x: m.line.append(m.line[0] + 1), r"Adapting\.line"),
    "set": (lambda m, x: m.seen.add(len(m.seen) + 1), r"Adapting\.seen"),
    "buffer": (lambda m, x: m.mean.add_(1), r"Adapting\.mean"),
    "other buffer": (_replaces, r"Adapting\.mean"),
    "parameter": (_writes, r"Linear\.weight"),
    "layer's parameter": (lambda m, x: setattr(m.leak, "beta", 0.7), r"Trace\.raw_beta"),
}
PATHS: dict[str, dict[str, Any]] = {
    "plainly": {},
    "in chunks": {"chunk_size": 2},
    "with lengths": {"lengths": torch.tensor([5, 3])},
    "cut": {"detach_every": 2},
    "insisting": {"fold": True},
    "recomputed": {"recompute": True, "chunk_size": 2},
    "without gradients": {},
}


def _begun_later(name: str, path: str) -> None:
    change, says = LATER[name]
    model, x = Adapting(change), sequence()
    with torch.set_grad_enabled(path != "without gradients"):
        model.unroll(x, **PATHS[path])
        before = model.get_states()
        model.begun = True
        with pytest.raises(tt.FoldError, match=rf"^forward of Adapting changed .*{says}.* first"):
            model.unroll(x, **PATHS[path])
    assert all(model.get_states()[name] is state for name, state in before.items())


@pytest.mark.parametrize("name", LATER)
def test_a_change_that_begins_later_is_named(name: str) -> None:
    _begun_later(name, "plainly")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["attribute", "buffer", "list"])
def test_a_change_that_begins_later_is_named_on_every_path(name: str, path: str) -> None:
    _begun_later(name, path)


def test_after_a_change_was_noticed_it_is_stepped() -> None:
    models = []
    for run in (looped, unrolled):
        model = Adapting(lambda m, x: setattr(m, "scale", m.scale / 2))
        model.linear.load_state_dict({"weight": torch.eye(3), "bias": torch.ones(3)})
        run(model, sequence())
        model.begun = True
        if run is unrolled:
            with pytest.raises(tt.FoldError, match="From now on the model is stepped"):
                model.unroll(sequence())
        models.append((measured(model, sequence(seed=6), run), model))
    same(models[1][0], models[0][0])
    assert models[1][1].scale == models[0][1].scale / 2  # of the sequence that failed


def test_an_attribute_set_from_outside_is_none_of_its_changes() -> None:
    model, reference = Adapting(lambda m, x: None), Adapting(lambda m, x: None)
    reference.load_state_dict(model.state_dict())
    for begun in (False, True, False):
        for each in (model, reference):
            each.begun, each.past = begun, [torch.ones(3)]
        same(measured(model, sequence(), unrolled), measured(reference, sequence(), looped))


# ---------------------------------------------------------------------- recomputing what is stepped


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x - x.mean(0), "the input of a Trace is another over all timesteps at once"),
        (lambda x: x.mul_(2), "forward writes into its input"),
    ],
    ids=["batch", "input"],
)
@pytest.mark.parametrize("known", [False, True], ids=["at first", "decided before"])
def test_recomputing_what_is_stepped_for_a_reason_says_which(
    change: Callable[[Tensor], Tensor], says: str, known: bool
) -> None:
    model, x = Plain(change), sequence()
    if known:
        model.unroll(x.clone())
    before = model.get_states()
    says = rf"^recompute=True needs .* again, and Plain is stepped: .*{says}"
    with pytest.raises(tt.FoldError, match=says):
        model.unroll(x, recompute=True, chunk_size=2)
    assert model.get_states().keys() == before.keys()
    assert all(model.get_states()[name] is state for name, state in before.items())


@pytest.mark.parametrize("make", [Twice, lambda: Peering("float")], ids=["twice", "look"])
def test_steps_that_keep_nothing_are_recomputed(make: Callable[[], tt.Model]) -> None:
    x = sequence()

    def recomputed(model: Any, x: Tensor) -> Tensor:
        y: Tensor = model.unroll(x, recompute=True, chunk_size=2)
        return y

    same(measured(make(), x, recomputed), measured(make(), x, looped))


def test_recomputing_what_was_asked_to_step_is_the_loop_or_says_why_not() -> None:
    def weigh(model: Any, x: Tensor) -> int:
        model.ticks += 1
        return int(model.ticks)

    (asked, left), (model, ticks) = (keeping(weigh, lambda m: m.ticks, ticks=0) for _ in range(2))
    expected = measured(asked, sequence(), lambda m, x: m.unroll(x, fold=False))
    why = "Keeping.ticks"
    try:
        got = measured(
            model, sequence(), lambda m, x: m.unroll(x, fold=False, recompute=True, chunk_size=2)
        )
    except tt.FoldError as error:
        why = str(error)
    else:
        same(got, expected)
        assert ticks() == left()
    assert "Keeping.ticks" in why


# ---------------------------------------------------------------------- what cannot be copied


@pytest.mark.parametrize("name", ["lock", "generator", "file"])
def test_what_cannot_be_copied_is_stepped_and_named(
    name: str, tmp_path: Path, said: Callable[[], list[str]], calls: Callable[[], list[str]]
) -> None:
    with contextlib.ExitStack() as stack:
        if name == "file":
            held: Any = stack.enter_context((tmp_path / "log").open("w", encoding="utf-8"))
        else:
            held = threading.Lock() if name == "lock" else (number for number in range(3))
        model, x = Plain(), sequence()
        model.held = held
        same(measured(model, x, unrolled), measured(Plain(), x, looped))
        assert len(said()) == 1
        assert said()[0].startswith("Plain.held (")
        assert said()[0].endswith("cannot be copied, and so not be tried out")
        assert set(calls()) == {"[2, 3]"}
        # nothing was done to it, and insisting goes round the question
        model.zero_states()
        torch.testing.assert_close(model.unroll(x, fold=True), looped(Plain(), x))
        assert "[10, 3]" in calls()
        with pytest.raises(tt.FoldError, match=r"Plain\.held .* cannot be copied"):
            model.unroll(x, recompute=True)
        assert model.held is held


def test_a_lock_that_forward_takes_is_free_afterwards(said: Callable[[], list[str]]) -> None:
    lock = threading.Lock()

    def change(x: Tensor) -> Tensor:
        with lock:
            return 2 * x

    same(measured(Plain(change), sequence(), unrolled), measured(Plain(change), sequence(), looped))
    assert not lock.locked()
    assert "cannot be copied" in said()[0]
