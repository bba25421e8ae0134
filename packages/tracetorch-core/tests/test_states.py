"""States: found wherever a layer hides, moved, copied, restarted, and refused where they misfit."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import re
import subprocess
import sys
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Block:
    layer: tt.Layer
    more: list[Any] = field(default_factory=list)


class Slots:
    __slots__ = ("__private", "layer", "unset")

    def __init__(self, layer: tt.Layer, private: tt.Layer) -> None:
        self.layer = layer
        self.__private = private


class SlotsBelow(Slots):
    __slots__ = "below"

    def __init__(self, layer: tt.Layer, private: tt.Layer, below: tt.Layer) -> None:
        super().__init__(layer, private)
        self.below = below


class Holder(tt.Model):
    """Holds something; each layer found takes a timestep."""

    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        for _, layer in self.named_layers():
            x = layer(x)
        return x


def traces(count: int) -> list[Trace]:
    return [Trace(1) for _ in range(count)]


# ---------------------------------------------------------------- where layers hide


def _hidings() -> dict[str, tuple[Callable[[list[Trace]], Any], list[str]]]:
    return {
        "list": (lambda t: [t[0], 3, t[1]], ["held.0", "held.2"]),
        "tuple": (lambda t: (t[0], "x", t[1]), ["held.0", "held.2"]),
        "dict": (lambda t: {"a": t[0], 7: t[1], (1, "z"): t[2]}, ["held.a", "held.7",
                                                                 "held.(1, 'z')"]),
        "ordered dict": (lambda t: OrderedDict(b=t[0], a=t[1]), ["held.b", "held.a"]),
        "dict by objects": (lambda t: {object(): t[0], int: t[1]}, ["held.0", "held.1"]),
        "set": (lambda t: {t[1], t[0], "text"}, ["held.0", "held.1"]),
        "frozenset": (lambda t: frozenset(t[:2]), ["held.0", "held.1"]),
        "deque": (lambda t: deque(t[:2], maxlen=2), ["held.0", "held.1"]),
        "namedtuple": (lambda t: Pair(t[0], t[1]), ["held.0", "held.1"]),
        "dataclass": (lambda t: Block(t[0], [t[1]]), ["held.layer", "held.more.0"]),
        "object": (lambda t: SimpleNamespace(a=t[0], b=SimpleNamespace(c=t[1])),
                   ["held.a", "held.b.c"]),
        "slots": (lambda t: SlotsBelow(t[0], t[1], t[2]),
                  ["held.below", "held._Slots__private", "held.layer"]),
        "modules in a list": (lambda t: [nn.Sequential(t[0], nn.ReLU()), nn.ModuleList([t[1]])],
                              ["held.0.0", "held.1.0"]),
        "a module": (lambda t: nn.ModuleDict({"x": nn.Sequential(t[0])}), ["held.x.0"]),
        "three deep": (lambda t: [{"k": (t[0], {t[1]})}, Block(t[2], [{"z": [t[3]]}])],
                       ["held.0.k.0", "held.0.k.1.0", "held.1.layer", "held.1.more.0.z.0"]),
        "a set of tuples": (lambda t: {(t[1], 1), (t[0], 2)}, ["held.0.0", "held.1.0"]),
        "a layer itself": (lambda t: t[0], ["held"]),
        "nothing": (lambda t: [1, "a", None, {"b": print}], []),
    }  # fmt: skip


@pytest.mark.parametrize("hiding", _hidings())
def test_a_layer_is_found_wherever_it_hides(hiding: str) -> None:
    hide, names = _hidings()[hiding]
    layers = traces(4)
    model = Holder(hide(layers))
    found = dict(model.named_layers())
    assert sorted(found) == sorted(names)
    assert {id(layer) for layer in found.values()} <= {id(layer) for layer in layers}
    model(torch.ones(1, 1))
    assert sorted(model.get_states()) == sorted(f"{name}.mem" for name in names)
    model.zero_states()
    assert all(layer.mem is None for layer in layers)


def test_a_set_is_walked_in_order_of_construction() -> None:
    layers = traces(40)
    found = [layer for _, layer in Holder(set(layers)).named_layers()]
    assert found == layers


def test_a_layer_under_two_names_is_found_once_under_the_first() -> None:
    layer = Trace(1)
    model = Holder([layer, {"again": layer}, (layer,)])
    model.registered = layer
    assert dict(model.named_layers()) == {"registered": layer}
    assert dict(Holder([layer, {"again": layer}]).named_layers()) == {"held.0": layer}


def test_names_that_would_collide_are_told_apart() -> None:
    layers = traces(3)
    model = Holder({"1": layers[0], 1: layers[1], "a.b": layers[2]})
    assert [name for name, _ in model.named_layers()] == ["held.1", "held.1#2", "held.a.b"]
    model(torch.ones(1, 1))
    model.set_states({name: torch.zeros_like(s) for name, s in model.get_states().items()})
    assert [layer.mem.item() for layer in layers] == [0.0, 0.0, 0.0]


def test_cycles_end() -> None:
    layer, ring, block = Trace(1), [], Block(Trace(1))
    ring += [ring, {"ring": ring}, layer]
    block.more = [block, ring]
    model = Holder([ring, block])
    model.loop = SimpleNamespace(held=model.held)
    model.loop.back = model.loop
    assert sorted(dict(model.named_layers())) == ["held.0.2", "held.1.layer"]


def test_a_layer_added_after_the_first_timestep_is_found() -> None:
    model = Holder([Trace(1)])
    model(torch.ones(1, 1))
    model.held.append(late := Trace(1))
    assert dict(model.named_layers())["held.1"] is late
    model(torch.ones(1, 1))
    assert late.mem is not None
    model.zero_states()
    assert late.mem is None


def test_two_models_never_touch_each_other() -> None:
    one, two = Holder(traces(2)), Holder(traces(2))
    one.trainer = SimpleNamespace(model=two, models=[two], best={"net": two})
    two.trainer = one.trainer
    x = torch.ones(2, 1)
    one(x), two(x)
    before = {name: state.clone() for name, state in two.get_states().items()}
    one.zero_states(torch.tensor([True, False]))
    one.detach_states()
    one.double()
    one.zero_states()
    one.TTcompile()
    assert two.get_states().keys() == before.keys()
    for name, state in two.get_states().items():
        assert state.requires_grad
        assert torch.equal(state, before[name])
    assert not two.held[0].tt.compiled


class Trainer:
    """Points back at everything a trainer points at."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.compiled = nn.Sequential(model)
        self.history: list[Any] = [model, {"best": (model,)}]
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


def test_trainers_and_loggers_are_not_entered() -> None:
    other, model = Holder(traces(2)), Holder(traces(1))
    model.trainer = Trainer(model)
    model.logger = SimpleNamespace(watched={"other": other}, trainer=Trainer(other))
    assert [name for name, _ in model.named_layers()] == ["held.0"]
    model.trainer.own = Trace(1)
    assert [name for name, _ in model.named_layers()] == ["held.0", "trainer.own"]


def test_a_model_that_is_owned_is_entered() -> None:
    inner = Holder(traces(2))
    outer = Holder([inner])
    outer.registered = Holder((Trace(1),))
    names = [name for name, _ in outer.named_layers()]
    assert sorted(names) == ["held.0.held.0", "held.0.held.1", "registered.held.0"]
    outer(torch.ones(1, 1))
    inner.zero_states()
    assert list(outer.get_states()) == ["registered.held.0.mem"]


def test_a_bare_layer_has_the_empty_name() -> None:
    layer = Trace(1)
    assert list(tt.named_layers(layer)) == [("", layer)]
    assert list(tt.named_layers(nn.Sequential(layer))) == [("0", layer)]


NAMES = """
import json, sys
from types import SimpleNamespace
import tracetorch as tt
from tracetorch.testing import Trace

class Net(tt.Model):
    def __init__(self):
        super().__init__()
        made = [Trace(n) for n in range(1, 9)]
        self.bag = set(made[:4]) | {"some", "text"}
        self.keyed = {frozenset("abc"): made[4], ("t", 1): made[5]}
        self.deep = [SimpleNamespace(inner=frozenset(((made[6], "x"), (made[7], "y"))))]

json.dump([(name, layer.num_neurons) for name, layer in Net().named_layers()], sys.stdout)
"""


def test_names_are_the_same_in_every_process() -> None:
    said = []
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", NAMES],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
    assert said[0] == said[1] == said[2]
    assert [number for _, number in said[0]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert said[0][0][0] == "bag.0"


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_names_survive_copies_also_in_sets(how: Callable[[Any], Any]) -> None:
    model = Holder([{Trace(n) for n in range(1, 20)}, Block(Trace(30))])
    again = how(how(model))
    names = [(name, layer.num_neurons) for name, layer in model.named_layers()]
    assert [(name, layer.num_neurons) for name, layer in again.named_layers()] == names
    both = Holder({*model.held[0], *again.held[0]})
    twice = [layer.num_neurons for _, layer in both.named_layers()]
    assert twice == sorted(twice)


class Views(tt.Layer):
    """Hands its input on, and holds it."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("held")

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return {"held": x.view_as(x)}, x.view_as(x)

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        return {"held": x[-1]}, x.view_as(x)


@pytest.mark.parametrize("unrolled", [False, True])
def test_what_is_written_into_the_input_or_the_output_changes_no_state(unrolled: bool) -> None:
    layer, x = Views(3), torch.ones(4, 2, 3)
    y = layer.unroll(x) if unrolled else layer(x[-1])
    x.zero_()
    assert torch.equal(y, torch.ones_like(y))
    y.zero_()
    assert torch.equal(layer.held, torch.ones(2, 3))


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("misfit", "shown"),
    [
        (torch.zeros(3, 4), "[3, 4] float32 on cpu"),
        (torch.zeros(1, 4), "[1, 4] float32 on cpu"),
        (torch.zeros(4), "[4] float32 on cpu"),
        (torch.zeros(1, 2, 4), "[1, 2, 4] float32 on cpu"),
        (torch.zeros(2, 4).double(), "[2, 4] float64 on cpu"),
        (torch.zeros(2, 4, device="meta"), "[2, 4] float32 on meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misfit_names_the_layer_both_shapes_and_the_remedy(misfit: Tensor, shown: str) -> None:
    model = Holder({"deep": [AdaptiveLIF(4)]})
    model(torch.ones(2, 4))
    before = model.get_states()
    with pytest.raises(tt.StateError) as raised:
        model(misfit)
    message = str(raised.value)
    assert "layer 'held.deep.0', AdaptiveLIF(4" in message
    assert "the standing state mem is [2, 4] float32 on cpu" in message
    assert f"an input of {shown} needs" in message
    assert "call zero_states()" in message
    of_shape = misfit.shape != (2, 4)
    assert ("give whole sequences to unroll, time first" in message) == of_shape
    assert ("detach and convert the state with get_states()" in message) != of_shape
    assert raised.value.name == "held.deep.0"
    assert isinstance(raised.value, ValueError)
    after = model.get_states()
    assert all(after[name] is state for name, state in before.items())
    model.zero_states()
    if misfit.device.type == "cpu":
        model(misfit)
        expected = torch.float64 if misfit.dtype == torch.float64 else torch.float32
        assert model.held["deep"][0].mem.dtype == expected


@pytest.mark.parametrize(
    ("x", "kind", "says"),
    [
        (
            torch.zeros(2, 4).long(),
            TypeError,
            "floating-point tensor, got torch.int64; .*x.float()",
        ),
        (torch.zeros(2, 4).bool(), TypeError, "floating-point tensor, got torch.bool"),
        (torch.zeros(2, 4) + 0j, TypeError, "floating-point tensor, got torch.complex64"),
        (
            [[0.0]],
            TypeError,
            r"floating-point tensor, got a list; convert it with torch\.as_tensor",
        ),
        (None, TypeError, r"got None; does the module before it return its output\?"),
        (None, TypeError, "floating-point tensor, got None"),
        (torch.zeros(2, 5), ValueError, r"shape \[2, 5\] has 5 neurons at dim=-1, the layer has 4"),
        (torch.zeros(()), ValueError, r"shape \[\] has no dimension dim=-1"),
    ],
)
def test_a_bad_input_is_refused(x: Any, kind: type, says: str) -> None:
    layer = Trace(4)
    with pytest.raises(kind, match=r"^Trace\(4, beta=0.8, dim=-1\): the input x .*" + says):
        layer(x)
    assert layer.mem is None


def test_a_dim_the_input_lacks_is_refused() -> None:
    with pytest.raises(tt.StateError, match=r"shape \[2, 4\] has no dimension dim=2"):
        Trace(4, dim=2)(torch.zeros(2, 4))


class BadStep(tt.Layer):
    def __init__(self, returned: Callable[[Tensor], Any]) -> None:
        super().__init__(2)
        self.add_state("a", "b")
        self.returned = returned

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return self.returned(x), x


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (lambda x: {"a": x}, r"must return the states \['a', 'b'\], got \['a'\]"),
        (lambda x: {"a": x, "b": x, "c": x}, r"got \['a', 'b', 'c'\]"),
        (lambda x: {"a": x, "b": x[:1]}, r"must return b in its own shape \[3, 2\].*got \[1, 2\]"),
        (lambda x: {"a": x.sum(), "b": x}, r"must return a in its own shape \[3, 2\].*got \[\]"),
    ],
)
def test_a_step_that_returns_other_states_is_refused(returned: Any, says: str) -> None:
    layer = BadStep(returned)
    with pytest.raises(tt.StateError, match=says):
        layer(torch.zeros(3, 2))
    assert layer.get_states() == {}


def test_a_layer_without_step_says_so() -> None:
    with pytest.raises(
        NotImplementedError, match=r"^Layer must define step\(self, states, x, p\)$"
    ):
        tt.Layer(2)(torch.zeros(2))


# ---------------------------------------------------------------- masks


@given(data=st.data())
def test_a_mask_restarts_its_samples_and_no_others(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 5))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    kind = data.draw(st.sampled_from([Trace, AdaptiveLIF, StateSpace]))
    model, whole, fresh = (Holder([kind(3)]).double() for _ in range(3))
    x = 1.5 * torch.randn(before + after, batch, 3, dtype=torch.float64)
    for timestep in x[:before]:
        model(timestep), whole(timestep)
    model.zero_states(mask)
    for timestep in x[before:]:
        y = model(timestep)
        expected = torch.where(mask[:, None], fresh(timestep), whole(timestep))
        assert torch.equal(y, expected)
    for name, state in model.get_states().items():
        place = mask.view(-1, *[1] * (state.ndim - 1))
        assert torch.equal(
            state, torch.where(place, fresh.get_states()[name], whole.get_states()[name])
        )


def test_a_mask_cuts_the_gradient_of_restarted_samples_only() -> None:
    layer = Trace(1)
    x = torch.ones(2, 1, requires_grad=True)
    layer(x)
    layer.zero_states(torch.tensor([True, False]))
    layer(torch.zeros(2, 1)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0], [0.8]]))


def test_a_restarted_sample_forgets_also_nan() -> None:
    layer = Trace(1)
    layer(torch.tensor([[float("nan")], [1.0]]))
    layer.zero_states(torch.tensor([True, False]))
    torch.testing.assert_close(layer(torch.ones(2, 1)), torch.tensor([[1.0], [1.8]]))


@pytest.mark.parametrize(
    ("mask", "kind", "says"),
    [
        (torch.tensor([1, 0]), TypeError, "boolean tensor over the batch, got torch.int64"),
        ([True, False], TypeError, r"boolean tensor over the batch, got \[True, False\]"),
        (True, TypeError, "boolean tensor over the batch, got True"),
        (torch.tensor([[True], [False]]), ValueError, r"one dimension, .*got shape \[2, 1\]"),
        (torch.tensor(True), ValueError, r"one dimension, .*got shape \[\]"),
        (torch.tensor([True]), ValueError, r"has 1 entries, the state mem .*\[2, 3\].*batch of 2"),
        (torch.ones(3).bool(), ValueError, r"has 3 entries, the state mem .*batch of 2"),
    ],
)
def test_a_bad_mask_changes_nothing(mask: Any, kind: type, says: str) -> None:
    model = Holder([Trace(3), AdaptiveLIF(3)])
    model(torch.ones(2, 3))
    before = model.get_states()
    with pytest.raises(kind, match=says):
        model.zero_states(mask)
    after = model.get_states()
    assert all(after[name] is state for name, state in before.items())


@pytest.mark.parametrize(
    ("layer", "x"),
    [(Trace(3), torch.ones(3)), (Trace(3, dim=0), torch.ones(3, 2)),
     (StateSpace(3), torch.ones(3))],
)  # fmt: skip
def test_an_unbatched_state_takes_no_mask(layer: tt.Layer, x: Tensor) -> None:
    first = Trace(x.shape[-1])
    model = Holder([first, layer])
    first(torch.ones(2, x.shape[-1])), layer(x)
    before = model.get_states()
    with pytest.raises(tt.StateError, match=r"layer 'held.1'.*is unbatched .*takes no mask") as no:
        model.zero_states(torch.tensor([True, False]))
    assert no.value.layer is layer
    assert all(model.get_states()[name] is state for name, state in before.items())


# ---------------------------------------------------------------- putting states in place


def test_set_states_is_all_or_nothing_and_says_what_is_wrong() -> None:
    model = Holder([Trace(2), AdaptiveLIF(2)])
    model(torch.ones(3, 2))
    before = model.get_states()
    good = {name: torch.full_like(state, 0.5) for name, state in before.items()}
    table: list[tuple[dict[str, Any], bool, str]] = [
        (
            {**good, "held.7.mem": good["held.0.mem"]},
            True,
            r"unknown \['held.7.mem'\], missing \[\]",
        ),
        ({"held.0.mem": good["held.0.mem"]}, True, r"missing \['held.1.mem', 'held.1.raised'\]"),
        ({**good, "held.1.mem": torch.zeros(3, 5)}, True, r"layer 'held.1'.*mem of shape \[3, 5\]"),
        (
            {**good, "held.1.mem": torch.zeros(3, 2).int()},
            True,
            "floating-point tensor, got torch.i",
        ),
        ({**good, "held.1.mem": 3.0}, True, r"mem must be a floating-point tensor, got 3\.0"),
        ({"held.1.mem": torch.zeros(4, 2)}, False, "states disagree on the shape around the neur"),
        ({**good, "held.1.raised": torch.zeros(())}, True, r"raised of shape \[\] does not fit"),
    ]
    for states, strict, says in table:
        with pytest.raises(tt.StateError, match=says):
            model.set_states(states, strict=strict)
        assert all(model.get_states()[name] is state for name, state in before.items())
    assert model.set_states(good) == ([], [])
    model.set_states(before)
    some = {"held.0.mem": good["held.0.mem"], "nobody": torch.ones(1)}
    misfits = model.set_states(some, strict=False)
    assert misfits.missing == ["held.1.mem", "held.1.raised"]
    assert misfits.unexpected == ["nobody"]
    assert model.held[0].mem.unique().tolist() == [0.5]
    assert model.held[1].mem is before["held.1.mem"]


def test_states_of_before_the_first_timestep_go_back() -> None:
    model, layer = Holder([Trace(2), nn.Linear(2, 2), AdaptiveLIF(2)]), AdaptiveLIF(2)
    for each in (model, layer, Holder([nn.Linear(2, 2)])):
        fresh = each.get_states()
        assert fresh == {}
        assert each.set_states(fresh) == ([], [])
        first = each(torch.ones(3, 2))
        assert each.set_states(fresh) == ([], [])
        assert each.get_states() == {}
        assert torch.equal(each(torch.ones(3, 2)), first)
        standing = each.get_states()
        assert each.set_states(standing) == ([], [])
        misfits = each.set_states({}, strict=False)
        assert misfits.missing == sorted(standing)
        assert all(each.get_states()[name] is state for name, state in standing.items())


def test_states_of_a_part_ask_for_the_rest_by_name() -> None:
    model = Holder([Trace(2), AdaptiveLIF(2)])
    model.held[0](torch.ones(3, 2))
    part = model.get_states()
    with pytest.raises(
        tt.StateError, match=r"missing \['held.1.mem', .*give None for a state that"
    ):
        model.set_states(part)
    with pytest.raises(tt.StateError, match=r"missing \['raised'\]; .* give None for a state"):
        model.held[1].set_states({"mem": torch.ones(3, 2)})
    model.set_states(part | {"held.1.mem": None, "held.1.raised": None})
    assert model.get_states().keys() == part.keys()


def test_a_layer_says_which_names_did_not_fit() -> None:
    layer = AdaptiveLIF(2)
    assert layer.set_states({"mem": torch.ones(1, 2), "raised": None}) == ([], [])
    misfits = layer.set_states({"mem": torch.zeros(1, 2), "memory": None}, strict=False)
    assert (misfits.missing, misfits.unexpected) == (["raised"], ["memory"])
    assert layer.mem.tolist() == [[0.0, 0.0]]


def test_none_stands_for_not_created() -> None:
    model = Holder([Trace(2), AdaptiveLIF(2)])
    model(torch.ones(3, 2))
    model.set_states({"held.0.mem": None, **{n: s for n, s in model.get_states().items()
                                             if n != "held.0.mem"}})  # fmt: skip
    assert model.held[0].mem is None
    assert sorted(model.get_states()) == ["held.1.mem", "held.1.raised"]


def test_a_state_can_be_assigned_and_carries_its_graph() -> None:
    layer = Trace(2)
    start = torch.full((1, 2), 2.0, requires_grad=True)
    layer.mem = start
    layer(torch.zeros(1, 2)).sum().backward()
    assert start.grad is not None
    torch.testing.assert_close(start.grad, torch.full((1, 2), 0.8))
    with pytest.raises(tt.StateError, match=r"a state mem of shape \[2, 3\] does not fit"):
        layer.mem = torch.zeros(2, 3)


def test_a_state_put_in_place_takes_the_promoted_dtype() -> None:
    layer = Trace(2)
    layer.set_states({"mem": torch.ones(1, 2, dtype=torch.bfloat16)})
    assert layer.mem.dtype == torch.float32
    layer.set_states({"mem": torch.ones(1, 2, dtype=torch.float64)})
    assert layer.mem.dtype == torch.float64


# ---------------------------------------------------------------- states follow the module


def hidden_everywhere() -> Holder:
    model = Holder([Trace(2), {"k": SimpleNamespace(layer=AdaptiveLIF(2))}, {StateSpace(2)}])
    model.registered = Trace(2)
    return model


@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda m: m.double(), torch.float64),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.to(torch.float64), torch.float64),
        (lambda m: m.to("meta"), torch.float32),
    ],
)
def test_states_follow_the_module_wherever_they_are(
    move: Callable[[nn.Module], Any], dtype: torch.dtype
) -> None:
    model = hidden_everywhere()
    model(torch.ones(3, 2))
    before = {name: state.clone() for name, state in model.get_states().items()}
    assert len(before) == 5
    move(model)
    for name, state in model.get_states().items():
        assert state.dtype == dtype
        if state.device.type != "meta":
            assert torch.equal(state, before[name].to(dtype))
    for _, layer in model.named_layers():
        for p in layer.parameters():
            assert p.dtype == dtype
            assert p.device == state.device
    y = model(torch.ones(3, 2, dtype=dtype, device=state.device))
    assert y.dtype == dtype
    assert not any("mem" in key for key in model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_low_precision_input_does_not_lose_the_membrane(dtype: torch.dtype) -> None:
    layer = Trace(1, beta=0.999)
    small = torch.full((1, 1), 2.0**-10, dtype=dtype)
    for _ in range(2000):
        y = layer(small)
        layer.detach_states()
    exact = (2.0**-10) * (1 - 0.999**2000) / (1 - 0.999)
    assert layer.mem.dtype == torch.float32
    assert layer.mem.item() == pytest.approx(exact, rel=1e-4)
    assert y.dtype == dtype


def test_autocast_keeps_states_and_one_answer() -> None:
    class Net(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a, self.s = nn.Linear(3, 3), AdaptiveLIF(3), StateSpace(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.s(self.a(self.fc(x)))

    model = Net()
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.stack([model(timestep) for timestep in x])
        stepped = model.get_states()
        model.zero_states()
        assert torch.equal(model.unroll(x), y)
    assert y.dtype == torch.bfloat16
    assert all(state.dtype == torch.float32 for state in stepped.values())
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- copies


def _by_torch_save(model: nn.Module) -> Any:
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    return torch.load(saved, weights_only=False)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _by_torch_save]
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_is_copied_with_detached_states(how: Callable[[Any], Any], compiled: bool) -> None:
    model = hidden_everywhere()
    if compiled:
        model.TTcompile()
    model(torch.ones(3, 2, requires_grad=True))
    assert all(state.requires_grad for state in model.get_states().values())
    twin = how(model)
    for name, state in twin.get_states().items():
        assert not state.requires_grad
        assert torch.equal(state, model.get_states()[name].detach())
        assert state.data_ptr() != model.get_states()[name].data_ptr()
    x = torch.randn(3, 2)
    assert torch.equal(twin(x), model(x))
    twin.zero_states()
    assert len(model.get_states()) == 5
    assert all(state.requires_grad for state in model.get_states().values())


# ---------------------------------------------------------------- graphs


def test_detaching_allows_a_backward_pass_per_chunk() -> None:
    model = Holder([AdaptiveLIF(3), Trace(3)])
    x = torch.randn(2, 2, 3)
    model(x[0]).sum().backward()
    model.detach_states()
    model(x[1]).sum().backward()
    model.zero_states()
    model(x[0]).sum().backward()
    y = model(x[1]).sum()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("whole", [False, True], ids=["timestep", "sequence"])
def test_a_second_backward_pass_through_the_batch_before_says_the_remedy(whole: bool) -> None:
    layer, x = AdaptiveLIF(3), torch.randn(4, 2, 3)
    run = (lambda: layer.unroll(x)) if whole else (lambda: layer(x[0]))
    run().sum().backward()
    y = run().sum()
    with pytest.raises(RuntimeError, match=r"second time, most .* zero_states\(\) before new"):
        y.backward()


def test_a_training_loop_holds_no_past() -> None:
    model = Holder([AdaptiveLIF(3), StateSpace(3, out_size=3)])
    optimizer = torch.optim.SGD(model.held[0].parameters(), lr=0.01)
    alive: list[int] = []
    past: list[weakref.ref[Tensor]] = []
    for _ in range(8):
        optimizer.zero_grad()
        y = model.unroll(torch.randn(5, 2, 3))
        y.square().sum().backward()
        past.extend(weakref.ref(state) for state in model.get_states().values())
        optimizer.step()
        model.detach_states()
        del y
        gc.collect()
        alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert len(past) == 24
    assert [state() for state in past] == [None] * 24
    assert alive[2:] == [alive[2]] * 6


@pytest.mark.parametrize("grad", [False, True])
def test_writing_into_an_output_does_not_change_the_state(grad: bool) -> None:
    layer = Trace(2, beta=0.5)
    with torch.set_grad_enabled(grad):
        y = layer(torch.tensor([[1.0, -2.0]]))
        torch.relu_(y)
        assert layer.mem.tolist() == [[1.0, -2.0]]
        assert layer(torch.zeros(1, 2)).tolist() == [[0.5, -1.0]]


# ---------------------------------------------------------------- a step that is none


def _layer(step: Any) -> Trace:
    layer = Trace(3)
    layer.step = step  # type: ignore[method-assign]
    return layer


SPLIT = "step must return ({'mem': tensor}, output), got"


@pytest.mark.parametrize("whole", [False, True], ids=["timestep", "sequence"])
@pytest.mark.parametrize(
    ("step", "kind", "says"),
    [
        (lambda s, x, p: s.mem, tt.StateError, f"{SPLIT} a Tensor"),
        (lambda s, x, p: (x, {"mem": x}), tt.StateError, f"{SPLIT} (a Tensor, a dict)"),
        (lambda s, x, p: ({"mem": x}, 0.5), tt.StateError, f"{SPLIT} (a dict, 0.5)"),
        (lambda s, x, p: ({"mem": 0.0}, x), tt.StateError, f"{SPLIT} (a dict, a Tensor)"),
        (lambda s, x, p: None, tt.StateError, f"{SPLIT} None"),
        (lambda s, x, p: ({"mem": x, "more": x}, x), tt.StateError,
         "step must return the states ['mem'], got ['mem', 'more']"),
        (lambda s, x, p: s.memm, AttributeError,
         "step reads 'memm', which is none of its states: mem"),
        (lambda s, x, p: p.bta * x, AttributeError,
         "step reads 'bta', which is none of its parameters: beta"),
        (lambda s, x, p: ({"mem": x.mul_(2)}, x), tt.StateError,
         "step writes into x in place; it must compute new tensors instead"),
        (lambda s, x, p: ({"mem": s.mem.add_(x)}, x), tt.StateError,
         "step writes into mem in place; it must compute new tensors instead"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_step_is_said_with_the_layer(
    step: Any, kind: type[Exception], says: str, whole: bool
) -> None:
    layer = _layer(step)
    expected = re.escape(f"Trace(3, beta=0.8, dim=-1): {says}")
    with pytest.raises(kind, match=f"^{expected}$"):
        layer.unroll(torch.ones(4, 2, 3)) if whole else layer(torch.ones(2, 3))
    assert layer.get_states() == {}


def test_errors_of_other_objects_in_a_step_pass() -> None:
    with pytest.raises(AttributeError, match=r"^'float' object has no attribute 'missing'$"):
        _layer(lambda s, x, p: (1.0).missing)(torch.ones(2, 3))


def test_a_constructor_without_super_says_so() -> None:
    class Forgotten(tt.Layer):
        def __init__(self) -> None:
            self.add_state("mem")

    with pytest.raises(AttributeError, match=r"^Forgotten: call super\(\).__init__\(num_neurons\)"):
        Forgotten()
