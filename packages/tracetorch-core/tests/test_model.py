"""``tt.Model``: compiling and back, counting, where an error is, layers that come and go."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace


class Net(tt.Model):
    """Layers registered, in a list, in a dict and in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.first = nn.Linear(3, 4), AdaptiveLIF(4)
        self.listed = [Trace(4, beta=torch.tensor([0.2, 0.4, 0.6, 0.8]))]
        self.keyed = {"mix": (StateSpace(4, out_size=2),)}
        self.held = SimpleNamespace(last=AdaptiveLIF(2, beta_rank=0, learn_jump=False))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.keyed["mix"][0](self.listed[0](self.first(self.fc(x))))
        y: Tensor = mixed + self.held.last(2.0 * mixed)
        return y


class Holder(tt.Model):
    """Calls its layers in turn."""

    def __init__(self, *held: Any) -> None:
        super().__init__()
        self.held = list(held)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.held:
            x = part(x)
        return x


def net() -> Net:
    torch.manual_seed(4)
    return Net()


def learned(model: tt.Model) -> dict[str, nn.Parameter]:
    layers = {
        f"{n}.{k}": p for n, layer in model.named_layers() for k, p in layer.named_parameters()
    }
    return {**dict(model.named_parameters()), **layers}


def stored(model: tt.Model) -> dict[str, Tensor]:
    """Every parameter and buffer of the layers, wherever they are: a copy."""
    return {
        f"{name}.{key}": value.clone()
        for name, layer in model.named_layers()
        for key, value in layer.state_dict().items()
    }


def run(model: tt.Model, x: Tensor) -> Tensor:
    model.zero_states()
    y: Tensor = model.unroll(x)
    return y.detach()


@pytest.fixture
def x() -> Tensor:
    return 2.0 * torch.randn(6, 3, 3)


# ---------------------------------------------------------------- compiling and back


def test_compiling_changes_no_output_and_no_parameter(x: Tensor) -> None:
    model = net()
    y, parameters, values = run(model, x), learned(model), stored(model)
    model.TTcompile()
    torch.testing.assert_close(run(model, x), y, rtol=1e-6, atol=1e-6)
    model.TTcompile()
    model.TTdecompile()
    model.TTdecompile()
    assert learned(model).keys() == parameters.keys()
    assert all(learned(model)[name] is p for name, p in parameters.items())
    assert all(torch.equal(now, values[name]) for name, now in stored(model).items())
    assert torch.equal(run(model, x), y)


def test_a_compiled_model_gives_its_layers_no_gradient(x: Tensor) -> None:
    model = net()
    model.TTcompile()
    start = x.clone().requires_grad_()
    model.unroll(start).sum().backward()
    assert {name for name, p in learned(model).items() if p.grad is not None} == {
        "fc.weight", "fc.bias"
    }  # fmt: skip
    assert start.grad is not None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_made_before_goes_on_as_if_never_compiled(
    x: Tensor, kind: type[torch.optim.Optimizer]
) -> None:
    models = net(), net()
    for model, compiles in zip(models, (True, False), strict=True):
        optimizer = kind(learned(model).values(), lr=0.05)
        for _ in range(3):
            for _ in range(2):
                optimizer.zero_grad()
                model.zero_states()
                model.unroll(x).square().sum().backward()
                optimizer.step()
            if compiles:
                model.TTcompile()
                run(model, x)
                model.TTdecompile()
    before = stored(net())
    for name, value in stored(models[0]).items():
        assert torch.equal(value, stored(models[1])[name])
        assert torch.equal(value, before[name]) == name.endswith("last.raw_jump")


@pytest.mark.parametrize("saves", [False, True], ids=["from plain", "from compiled"])
@pytest.mark.parametrize("loads", [False, True], ids=["to plain", "to compiled"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_passes_between_both_forms(
    x: Tensor, saves: bool, loads: bool, assign: bool
) -> None:
    source, target = net().first, AdaptiveLIF(4, beta=0.2, rho=0.3, jump=2.0)
    with torch.no_grad():
        source.raw_beta += torch.tensor([0.5, -0.5, 1.0, -1.0])
    giver, taker = Holder(source), Holder(target)
    if saves:
        giver.TTcompile()
    if loads:
        taker.TTcompile()
    content = {name: value.clone() for name, value in source.state_dict().items()}
    target.load_state_dict(content, assign=assign)
    assert content.keys() == {"raw_beta", "raw_rho", "raw_jump"}
    sequence = torch.randn(6, 3, 4)
    assert torch.equal(run(taker, sequence), run(giver, sequence))
    for model in (giver, taker):
        model.TTdecompile()
    assert torch.equal(run(taker, sequence), run(giver, sequence))
    assert all(torch.equal(target.state_dict()[name], value) for name, value in content.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_compiled_model_changes_dtype_like_a_plain_one(x: Tensor, dtype: torch.dtype) -> None:
    compiled, plain = net(), net()
    compiled.TTcompile()
    for model in (compiled, plain):
        model(x[0])
        model.to(dtype)
    for name, value in stored(plain).items():
        assert value.dtype == dtype
        assert torch.equal(stored(compiled)[name], value)
    assert torch.equal(compiled(x[1].to(dtype)), plain(x[1].to(dtype)))
    compiled.TTdecompile()
    assert torch.equal(compiled(x[2].to(dtype)), plain(x[2].to(dtype)))


def test_assignment_reaches_a_compiled_layer(x: Tensor) -> None:
    compiled, plain = net(), net()
    before = run(compiled, x)
    compiled.TTcompile()
    for model in (compiled, plain):
        model.listed[0].beta = 0.5
        model.first.jump = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert compiled.listed[0].beta.tolist() == [0.5] * 4
    assert torch.equal(run(compiled, x), run(plain, x))
    assert not torch.equal(run(compiled, x), before)
    compiled.TTdecompile()
    assert torch.equal(run(compiled, x), run(plain, x))


def test_a_parameter_replaced_while_compiled_is_used() -> None:
    layer = Trace(2, beta=0.5)
    layer.TTcompile()
    layer.raw_beta = nn.Parameter(torch.zeros(2) - 1.0)
    assert layer.beta.tolist() == torch.sigmoid(torch.tensor([-1.0, -1.0])).tolist()


def test_an_optimizer_step_while_compiled_shows_at_once() -> None:
    layer = Trace(1, beta=0.5)
    model, optimizer = Holder(layer), torch.optim.SGD(layer.parameters(), lr=1.0)
    model.TTcompile()
    layer.raw_beta.grad = torch.ones(1)
    optimizer.step()
    assert layer.beta.item() == torch.sigmoid(torch.tensor(-1.0)).item()


def test_a_copy_of_a_compiled_model_is_its_own(x: Tensor) -> None:
    model = net()
    y = run(model, x)
    model.TTcompile()
    compiled = run(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not {map(id, learned(twin).values())} & {map(id, learned(model).values())}
        assert torch.equal(run(twin, x), compiled)
        twin.listed[0].beta = 0.1
        twin.TTdecompile()
        twin.first.beta = 0.3
        assert not torch.equal(run(twin, x), y)
        assert torch.equal(run(model, x), compiled)
    model.TTdecompile()
    assert torch.equal(run(model, x), y)


# ---------------------------------------------------------------- counting


def test_parameters_are_counted_by_hand() -> None:
    fc, first, listed, mix, last = 3 * 4 + 4, 4 + 1 + 4, 4, 4 * 3 + 4 * 3 + 4 * 2, 1 + 1
    in_layers = first + listed + mix + last
    model = net()
    assert model.num_parameters() == (fc + in_layers, in_layers, fc + in_layers)
    model.fc.bias.requires_grad_(False)
    model.listed[0].raw_beta.requires_grad_(False)
    assert model.num_parameters() == (fc + in_layers, in_layers, fc + in_layers - 4 - 4)
    model.TTcompile()
    assert model.num_parameters().in_layers == in_layers


def test_a_shared_parameter_counts_once() -> None:
    one, other = Trace(3), Trace(3)
    other.raw_beta = one.raw_beta
    model = Holder(one, [other, one])
    model.registered = one
    assert model.num_parameters() == (3, 3, 3)


class Two(tt.Layer):
    def __init__(self) -> None:
        super().__init__(1)
        self.add_state("a", "b")


def test_the_summary_is_a_table() -> None:
    model = Holder(Trace(3, beta=0.5), {"mix": Trace(12, dim=1)}, Two())
    model.fc = nn.Linear(20, 100)
    model.held[0](torch.ones(5, 3))
    assert str(model.summary()).splitlines() == [
        "layer                                   parameters  states  state per sample",
        "held.0      Trace(3, beta=0.5, dim=-1)  3           mem     3",
        "held.1.mix  Trace(12, beta=0.8, dim=1)  12          mem     -",
        "held.2      Two(1, dim=-1)              0           a, b    -",
        "2,115 parameters, 15 in tt layers, 2,115 learnable",
    ]


@pytest.mark.parametrize(
    ("layer", "shape", "size"),
    [
        (Trace(3), (5, 3), "3"),
        (Trace(3), (3,), "3"),
        (Trace(3), (0, 3), "3"),
        (Trace(3, dim=-3), (5, 3, 2, 4), "24"),
        (Trace(3, dim=0), (3, 7), "21"),
        (StateSpace(3, order=4), (5, 3), "12"),
        (AdaptiveLIF(3), (5, 2, 3), "12"),
    ],
)
def test_the_summary_says_the_states_of_one_sample(
    layer: tt.Layer, shape: tuple[int, ...], size: str
) -> None:
    layer.zero_states()
    model = Holder(layer)
    assert str(model.summary()).splitlines()[1].split()[-1] == "-"
    model(torch.ones(shape))
    assert str(model.summary()).splitlines()[1].split()[-1] == size


# ---------------------------------------------------------------- where an error is


def _nested() -> tuple[Holder, AdaptiveLIF]:
    layer = AdaptiveLIF(3)
    return Holder(Trace(3), Holder(nn.Sequential(Trace(3), layer))), layer


def _calls() -> dict[str, Callable[[Holder], object]]:
    ones = torch.ones(4, 3)
    return {
        "calling": lambda m: m(ones),
        "unrolling": lambda m: m.unroll(ones[None]),
        "masking": lambda m: m.zero_states(torch.tensor([True, False, True])),
        "setting": lambda m: m.set_states({"held.1.held.0.1.mem": torch.ones(9)}, strict=False),
    }


@pytest.mark.parametrize("call", _calls())
def test_an_error_says_where_its_layer_is(call: str) -> None:
    model, layer = _nested()
    layer.raised = torch.zeros(2, 3)
    with pytest.raises(tt.StateError) as raised:
        _calls()[call](model)
    assert (raised.value.layer, raised.value.name) == (layer, "held.1.held.0.1")
    assert str(raised.value).startswith("layer 'held.1.held.0.1', AdaptiveLIF(3, beta=0.9, ")
    assert layer.raised.tolist() == [[0.0] * 3] * 2


def test_an_error_of_an_inner_model_alone_has_its_own_names() -> None:
    model, layer = _nested()
    layer.raised = torch.zeros(2, 3)
    with pytest.raises(tt.StateError, match=r"^layer 'held\.0\.1', "):
        model.held[1](torch.ones(4, 3))
    with pytest.raises(tt.StateError, match=r"^AdaptiveLIF\(3"):
        layer(torch.ones(4, 3))


def test_an_error_of_the_model_itself_is_one_line() -> None:
    model, _ = _nested()
    model.fc = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(tt.StateError, match=r"^Holder: states do not match the model: ") as raised:
        model.set_states({"nobody": torch.ones(1)})
    assert "\n" not in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


TYPED = {
    "linear": lambda: (nn.Linear(3, 3), Trace(3)),
    "behind a layer": lambda: (Trace(3), nn.Linear(3, 3)),
    "norm": lambda: (nn.LayerNorm(3), Trace(3)),
    "convolution": lambda: (nn.Conv1d(4, 4, 1), Trace(3)),
}
RUNS: dict[str, Callable[[tt.Model, Tensor], object]] = {
    "calling": lambda model, x: model(x[0]),
    "unrolling": lambda model, x: model.unroll(x),
    "by name": lambda model, x: model.unroll(lengths=torch.tensor([2] * 4), x=x),
    "stepping": lambda model, x: model.unroll(x, fold=False),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", TYPED)
def test_an_error_of_types_says_once_which_met(kind: str, run: str) -> None:
    model, x = Holder(*map(nn.Sequential, TYPED[kind]())), torch.rand(2, 4, 3, dtype=torch.float64)
    model.parts = nn.ModuleList(model.held)
    with pytest.raises(RuntimeError, match="type") as raised:
        RUNS[run](model, x)
    said = (
        "the input is torch.float64 and the parameters are torch.float32: give it "
        "x.to(torch.float32), or take model.to(torch.float64)"
    )
    assert str(raised.value).splitlines()[1:] == [said]
    model.zero_states()
    RUNS[run](model, x.to(torch.float32))
    model.zero_states()
    RUNS[run](model.to(torch.float64), x)


class Raising(Holder):
    """Fails with words of its own."""

    def __init__(self, *held: Any) -> None:
        super().__init__(*held)
        self.parts = nn.ModuleList(held)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"the type of {len(x)} wheels")


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Raising(Trace(3)), torch.rand(4, 3)),
        (Raising(Trace(3)), torch.zeros(4, 3, dtype=torch.int64)),
        (Raising(Trace(3), nn.Linear(3, 3).double()), torch.rand(4, 3).half()),
        (Raising(), torch.rand(4, 3).half()),
    ],
    ids=["the same", "integers", "several", "no parameters"],
)
def test_an_error_of_something_else_stays_as_it_is(model: Raising, x: Tensor) -> None:
    with pytest.raises(RuntimeError) as raised:
        model(x)
    assert str(raised.value) == "the type of 4 wheels"


@pytest.mark.parametrize("states", [None, [("mem", torch.ones(1, 3))], torch.ones(1, 3), "mem"])
def test_states_are_a_mapping(states: Any) -> None:
    layer = Trace(3)
    says = "^states must be a mapping of names to tensors or None, got "
    for target in (layer, Holder(layer)):
        with pytest.raises(TypeError, match=says):
            target.set_states(states)
    assert layer.mem is None


def test_a_state_put_in_place_carries_its_graph_through_a_model() -> None:
    model = Holder(Trace(2, beta=0.5), {"k": Trace(2, beta=0.25)})
    model.held[1] = model.held[1]["k"]
    start = {f"held.{i}.mem": torch.ones(1, 2, requires_grad=True) for i in range(2)}
    model.set_states(start)
    model(torch.zeros(1, 2)).sum().backward()
    assert start["held.0.mem"].grad.tolist() == [[0.5, 0.5]]
    assert start["held.1.mem"].grad.tolist() == [[0.25, 0.25]]


# ---------------------------------------------------------------- layers that come and go


def names(model: tt.Model) -> list[str]:
    return [name for name, _ in model.named_layers()]


def test_names_follow_what_the_model_holds_now() -> None:
    model = Holder(Trace(1), Trace(1))
    model(torch.ones(1, 1))
    gone = model.held.pop(0)
    assert names(model) == ["held.0"]
    model.zero_states()
    assert gone.mem is not None
    model.more = {"new": gone}
    assert names(model) == ["held.0", "more.new"]
    del model.held
    model.registered = nn.Sequential(Trace(1))
    assert names(model) == ["registered.0", "more.new"]


def test_a_layer_added_while_compiled_learns() -> None:
    model = Holder(Trace(1))
    model.TTcompile()
    model.held.append(late := Trace(1))
    for _ in range(2):
        y = model(torch.ones(1, 1))
    y.sum().backward()
    assert model.held[0].raw_beta.grad is None
    assert late.raw_beta.grad is not None
    model.TTdecompile()
    assert all(not layer.tt.compiled for _, layer in model.named_layers())


def test_attributes_of_any_name_are_searched() -> None:
    class Odd(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self._states, self._specs = [Trace(1)], {"a": Trace(1)}
            self.dim, self._baked = Trace(1), (Trace(1),)

    assert sorted(names(Odd())) == ["_baked.0", "_specs.a", "_states.0", "dim"]


class Runner(nn.Module):
    """A trainer that is itself a module, with models in a list."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models = models
        self.own = [Trace(1)]


def test_a_trainer_that_is_a_module_does_not_drag_models_in() -> None:
    other, model = Holder(Trace(1)), Holder(Trace(1))
    model.logger = SimpleNamespace(runner=Runner(other, model), watched=[{"other": other}])
    assert names(model) == ["held.0", "logger.runner.own.0"]
    other(torch.ones(1, 1))
    model.zero_states()
    assert other.held[0].mem is not None


class Nest(tt.Layer):
    """A layer with a layer inside, and one in a list."""

    def __init__(self) -> None:
        super().__init__(1)
        self.add_parameter("q", 0.5)
        self.inner, self.listed = Trace(1), [Trace(1)]


def _registered(part: nn.Module) -> Holder:
    model = Holder()
    model.part = part
    return model


HIDINGS = {
    "registered": lambda: _registered(Nest()),
    "in a list of a registered model": lambda: _registered(nn.Sequential(Holder(Nest()))),
    "in a list": lambda: Holder(Nest()),
    "in a module in a list": lambda: Holder(nn.Sequential(Nest())),
}


@pytest.mark.parametrize("hiding", HIDINGS)
def test_moving_a_model_touches_every_tensor_once(hiding: str) -> None:
    model = HIDINGS[hiding]()
    layers = dict(model.named_layers())
    assert len(layers) == 3
    for layer in layers.values():
        if "mem" in layer.tt.states:
            layer.mem = torch.ones(1, 1)
    before = {**stored(model), **{n: s.clone() for n, s in model.get_states().items()}}
    model._apply(lambda tensor: 2.0 * tensor)
    after = {**stored(model), **model.get_states()}
    assert all(torch.equal(after[name], 2.0 * value) for name, value in before.items())
