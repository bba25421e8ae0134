"""Weights to begin with: what calibrate finds, does and says; closed forms against simulation."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tracetorch import snn
from tracetorch.functional import decay_to_timesteps
from tracetorch.snn.bisection import Search
from tracetorch.snn.init import Calibrated, Calibration

BAND = (0.05, 0.2)


class Net(tt.Model):
    """The modules in their order."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


def mlp(*sizes: int) -> Net:
    torch.manual_seed(0)
    blocks = [(nn.Linear(a, b), snn.LIB(b, 0.9)) for a, b in zip(sizes, sizes[1:], strict=False)]  # noqa: RUF007
    return Net(*(part for block in blocks for part in block), nn.Linear(sizes[-1], 10), snn.LI(10))


def conv_net(depth: int, channels: int = 4) -> Net:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(1 if i == 0 else channels, channels, 3, padding=1, bias=False)
        parts += [conv, snn.LIB(channels, 0.9, dim=-3)]
    return Net(*parts, nn.Flatten(), nn.Linear(channels * 64, 10), snn.LI(10))


def spikes(*shape: int, rate: float = 0.1, steps: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return snn.encoders.rate(torch.full(shape, rate), steps, generator=generator)


def rates(model: Net, x: Tensor, lengths: Tensor | None = None) -> list[float]:
    """Of the spiking layers, by a loop of one's own."""
    model = copy.deepcopy(model)
    counts: dict[str, list[Tensor]] = {}
    for name, layer in model.named_layers():
        if isinstance(layer, snn.Layer) and layer.firing is not None:
            counts[name] = []
            layer.register_forward_hook(lambda _, __, y, seen=counts[name]: seen.append(y != 0))
    model.zero_states()
    with torch.no_grad():
        for timestep in x:
            model(timestep)
    ends = torch.full((x.shape[1],), len(x)) if lengths is None else lengths
    there = torch.arange(len(x))[:, None] < ends
    return [torch.stack(seen)[there].double().mean().item() for seen in counts.values()]


# ---------------------------------------------------------------------- the claim


@pytest.mark.parametrize("make", [lambda: mlp(100, *[100] * 10), lambda: conv_net(9)])
def test_a_deep_net_that_is_silent_fires_in_every_layer(make: Callable[[], Net]) -> None:
    model = make()
    x = spikes(16, 100) if isinstance(model.net[0], nn.Linear) else spikes(8, 1, 8, 8, rate=0.2)
    before = rates(model, x)
    assert before[-4:] == [0.0] * 4
    report = snn.init.calibrate(model, x, BAND)
    after = rates(model, x)
    assert all(BAND[0] <= rate <= BAND[1] for rate in after)
    assert len(after) == len(before)
    rows = [row for row in report.rows if row.after is not None]
    assert [row.before for row in rows] == pytest.approx(before)
    assert [row.after for row in rows] == pytest.approx(after)
    assert report.ok
    assert report.rows[-1].why == "emits no spikes"


def test_closed_form_fires_in_every_layer() -> None:
    model = mlp(100, *[100] * 10)
    x = spikes(16, 100)
    generator = torch.Generator().manual_seed(0)
    for linear, lif in zip(model.net[0:20:2], model.net[1:20:2], strict=True):
        assert isinstance(linear, nn.Linear)
        assert isinstance(lif, snn.LIB)
        snn.init.fluctuation_driven(linear.weight, lif, 0.1, xi=0.8, generator=generator)
    assert all(0.05 < rate < 0.25 for rate in rates(model, x))


# ---------------------------------------------------------------------- what is scaled


def test_the_factor_is_what_the_named_weights_are_multiplied_with() -> None:
    model = mlp(30, 20, 20)
    before = copy.deepcopy(dict(model.named_parameters()))
    report = snn.init.calibrate(model, spikes(8, 30), (0.1, 0.12))
    scaled = {name: row.factor for row in report.rows for name in row.weights}
    assert list(scaled) == ["net.0.weight", "net.2.weight"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * scaled.get(name, 1.0)), name


def test_lengths_are_what_counts() -> None:
    x, lengths = spikes(6, 30), torch.tensor([20, 3, 0, 11, 7, 1])
    padded = x.clone()
    padded[torch.arange(20)[:, None] >= lengths] = 5.0
    model = mlp(30, 20, 20)
    report = snn.init.calibrate(model, padded, BAND, lengths=lengths)
    assert report.ok
    assert [row.after for row in report.rows[:2]] == pytest.approx(rates(model, x, lengths))


def test_a_layer_in_the_band_is_left_alone() -> None:
    model, x = mlp(30, 20, 20), spikes(8, 30)
    snn.init.calibrate(model, x, BAND)
    before = copy.deepcopy(model.state_dict())
    again = snn.init.calibrate(model, x, BAND)
    assert [row.factor for row in again.rows] == [1.0, 1.0, 1.0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_layer_that_fires_too_much_is_calmed() -> None:
    model, x = mlp(30, 20), spikes(8, 30)
    with torch.no_grad():
        model.net[0].weight.copy_(model.net[0].weight.abs() * 10)
    row = snn.init.calibrate(model, x, BAND).rows[0]
    assert row.before is not None
    assert row.before > 0.2
    assert row.factor < 1
    assert BAND[0] <= rates(model, x)[0] <= BAND[1]


class Graph(tt.Model):
    """Its ``forward`` is a function of itself and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = forward
        for name, module in modules.items():
            setattr(self, name, module() if callable(module) else module)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def linear(inputs: int = 12, outputs: int = 12, bias: bool = False) -> Callable[[], nn.Linear]:
    return lambda: nn.Linear(inputs, outputs, bias=bias)


def lif() -> snn.LIB:
    return snn.LIB(12)


FOUND: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "both of two ways": (
        lambda: Graph(lambda m, x: m.b(m.l2(m.a(m.l1(x))) + m.skip(x)), l1=linear(), a=lif,
                      l2=linear(), skip=linear(), b=lif),
        {"a": ("l1.weight",), "b": ("l2.weight", "skip.weight")},
    ),
    "the nearest of several": (
        lambda: Graph(lambda m, x: m.a(m.l2(torch.relu(m.l1(x)))), l1=linear(), l2=linear(), a=lif),
        {"a": ("l2.weight",)},
    ),
    "through a layer that does not fire": (
        lambda: Graph(lambda m, x: m.a(m.li(m.l1(x))), l1=linear(), li=lambda: snn.LI(12), a=lif),
        {"a": ("l1.weight",)},
    ),
    "a norm's gain, not its bias": (
        lambda: Graph(lambda m, x: m.a(m.norm(m.l1(x))), l1=linear(),
                      norm=lambda: nn.LayerNorm(12), a=lif),
        {"a": ("norm.weight",)},
    ),
    "a norm without a gain is looked through": (
        lambda: Graph(lambda m, x: m.a(m.norm(m.l1(x))), l1=linear(),
                      norm=lambda: nn.BatchNorm1d(12, affine=False).eval(), a=lif),
        {"a": ("l1.weight",)},
    ),
    "not what is added": (
        lambda: Graph(lambda m, x: m.a(m.l1(x) + m.place), l1=linear(),
                      place=nn.Parameter(torch.full((1, 12), 0.01)), a=lif),
        {"a": ("l1.weight",)},
    ),
    "a function of a weight": (
        lambda: Graph(lambda m, x: m.a(x @ torch.tanh(m.w).T), a=lif,
                      w=nn.Parameter(torch.rand(12, 12) / 10)),
        {"a": ("w",)},
    ),
    "a weight by another name, in place": (
        lambda: Graph(lambda m, x: m.a(m.l1(x).mul_(0.5)).add_(1), l1=linear(), a=lif),
        {"a": ("l1.weight",)},
    ),
    "layers in a list, called in another order": (
        lambda: Graph(lambda m, x: m.layers[0](m.l2(m.layers[1](m.l1(x)))), l2=linear(),
                      l1=linear(), layers=[snn.LIB(12), snn.LIB(12)]),
        {"layers.1": ("l1.weight",), "layers.0": ("l2.weight",)},
    ),
    "an nn.Sequential": (
        lambda: nn.Sequential(nn.Linear(12, 12, bias=False), snn.LIB(12)),
        {"1": ("0.weight",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_incoming_weights_are_found_from_what_is_computed(case: str) -> None:
    make, wanted = FOUND[case]
    # a band that no layer is in before
    report = snn.init.calibrate(make(), spikes(8, 12, rate=0.4), (0.3, 0.4))
    found = {row.layer: row.weights for row in report.rows if row.before is not None}
    assert found == wanted
    assert list(found) == list(wanted)  # in order of execution


def test_an_embedding_is_a_weight() -> None:
    model = Graph(lambda m, x: m.a(m.e(x)), e=lambda: nn.Embedding(5, 12), a=lif)
    report = snn.init.calibrate(model, torch.randint(0, 5, (10, 4)), (0.3, 0.4))
    assert report.rows[0].weights == ("e.weight",)
    assert report.ok


class Threshold(tt.Layer):
    """A spiking layer of a user's own."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("mem")

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = 0.9 * states.mem + x
        fired = (mem > 1).to(mem.dtype)
        return {"mem": mem - fired}, fired


def test_a_layer_of_ones_own_is_known_by_its_outputs() -> None:
    model = Net(
        nn.Linear(12, 12, bias=False), Threshold(12), nn.Linear(12, 12), tt.testing.Trace(12)
    )
    report = snn.init.calibrate(model, spikes(8, 12), BAND)
    assert [(row.ok, row.why) for row in report.rows] == [(True, ""), (True, "emits no spikes")]
    assert report.rows[0].weights == ("net.0.weight",)


# ---------------------------------------------------------------------- what cannot be done


def rows_of(model: nn.Module, x: Tensor | None = None, **options: Any) -> dict[str, Calibrated]:
    report = snn.init.calibrate(model, spikes(8, 12) if x is None else x, **options)
    return {row.layer: row for row in report.rows}


def test_no_weight() -> None:
    rows = rows_of(Graph(lambda m, x: m.b(m.a(x)), a=lif, b=lif), rate=(0.5, 0.6))
    for name in "ab":
        assert (rows[name].ok, rows[name].why) == (False, "no weight lies before it")


def test_a_shared_weight_is_not_fought_over() -> None:
    model = Graph(lambda m, x: m.b(m.l1(m.a(m.l1(x)))), l1=linear(), a=lif, b=lif)
    rows = rows_of(model, rate=(0.3, 0.31))
    assert rows["a"].weights == ("l1.weight",)
    assert rows["a"].ok
    assert (rows["b"].factor, rows["b"].ok) == (1.0, False)
    assert rows["b"].why == "its weights were scaled for 'a' already"


def test_frozen_weights_stay() -> None:
    model = mlp(12, 12)
    model.net[0].weight.requires_grad_(False)
    before = model.net[0].weight.clone()
    rows = rows_of(model, rate=(0.5, 0.6))
    assert (rows["net.1"].ok, rows["net.1"].why) == (False, "its weights do not learn")
    assert torch.equal(model.net[0].weight, before)
    assert not model.net[0].weight.requires_grad


def test_no_factor_within_the_limits_leaves_the_nearest() -> None:
    rows = rows_of(mlp(12, 12), rate=(0.9, 1.0), limits=(0.5, 3.0))
    row = rows["net.1"]
    assert row.why == "no factor in 0.5…3 brings it into the band"
    assert (row.ok, row.factor) == (False, 3.0)
    assert row.before is not None
    assert row.after is not None
    assert row.before < row.after < 0.9


def test_a_silent_input() -> None:
    rows = rows_of(Net(nn.Linear(12, 12, bias=False), snn.LIB(12)), torch.zeros(5, 2, 12))
    assert rows["net.1"].why == "its rate does not depend on its weights"
    assert (rows["net.1"].ok, rows["net.1"].factor) == (False, 1.0)


def test_a_jump_over_the_band() -> None:
    model = Net(nn.Linear(1, 1, bias=False), snn.LIB(1, 0.5))
    nn.init.ones_(model.net[0].weight)
    rows = rows_of(model, torch.ones(1, 1, 1), rate=(0.4, 0.6))  # one spike or none
    assert (rows["net.1"].ok, rows["net.1"].why) == (False, "its rate jumps over the band")


def test_too_few_passes() -> None:
    rows = rows_of(mlp(12, 12), rate=(0.4, 0.401), passes=2)
    assert rows["net.1"].why == "2 passes were not enough"


def test_what_emits_no_spikes_and_what_is_not_called() -> None:
    model = Graph(
        lambda m, x: m.li(m.graded(m.l1(x))),
        l1=linear(),
        graded=lambda: snn.LIB(12, quant_fn=snn.quantizers.probabilistic()),
        li=lambda: snn.LI(12),
        idle=lif,
    )
    rows = rows_of(model)
    assert [(name, row.ok, row.why) for name, row in rows.items()] == [
        ("graded", True, "emits no spikes"),
        ("li", True, "emits no spikes"),
        ("idle", True, "is not called"),
    ]


class Late(nn.Module):
    """Adds to the first layer's input what the second has put out: a loop in the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l1, self.l2 = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.a, self.b = snn.LIB(12), snn.LIB(12)
        self.back = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.l2(self.a(self.l1(x) + self.back)))
        self.back = y
        return y


def test_a_rate_that_later_layers_move_is_said() -> None:
    rows = rows_of(Late(), spikes(8, 12), rate=(0.2, 0.21))
    assert (rows["a"].ok, rows["a"].why) == (False, "left the band when later layers were scaled")


def test_the_report_is_a_table() -> None:
    rows = (
        Calibrated("lif", 0.0, 0.12, 4.0, True, "", ("fc.weight",)),
        Calibrated("deep", 0.0, 0.0, 1.0, False, "no weight lies before it", ()),
        Calibrated("out", None, None, 1.0, True, "emits no spikes", ()),
    )
    report = Calibration(rows, (0.05, 0.2), 9)
    assert not report.ok
    assert str(report).splitlines() == [
        "layer  before  after   factor  ok",
        "lif    0.0000  0.1200  4       yes",
        "deep   0.0000  0.0000  1       NO   no weight lies before it",
        "out    -       -       1       yes  emits no spikes",
        "band 0.05…0.2, 9 passes",
    ]


# ---------------------------------------------------------------------- what is left as it was


class Noisy(tt.Model):
    """Statistics that move, chance, states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l1, self.norm = nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.a = snn.LIB(12, quant_fn=snn.quantizers.bernoulli())
        self.drop = nn.Dropout(0.3).eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.a(self.norm(self.l1(x))))
        return y


def test_states_buffers_modes_generators_and_hooks_stay() -> None:
    model, x = Noisy(), spikes(8, 12)
    model.norm.train()
    model(x[0])
    states = {name: state.clone() for name, state in model.get_states().items()}
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    drawn = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
    snn.init.calibrate(model, x, (0.3, 0.31))
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == drawn[1]).all()
    assert (model.norm.training, model.drop.training, model.training) == (True, False, True)
    for name, state in model.get_states().items():
        assert torch.equal(state, states[name])
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == ["norm.weight"]
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad
        assert parameter.grad is None
    assert not model.a._forward_hooks


def test_a_model_that_draws_is_calibrated_the_same_way_every_time() -> None:
    found = [rows_of(Noisy(), rate=(0.3, 0.31)) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["a"].ok


class Failing(nn.Module):
    """Raises when it has been called so many times."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Failing.calls -= 1
        if Failing.calls == 0:
            raise RuntimeError("failed")
        return x


@pytest.mark.parametrize("after", [1, 20, 21, 41])
def test_an_error_changes_nothing(after: int) -> None:
    model, x = Net(*mlp(12, 12, 12).net, Failing()), spikes(4, 12)
    before = copy.deepcopy(model.state_dict())
    Failing.calls = after
    with pytest.raises(RuntimeError, match="failed"):
        snn.init.calibrate(model, x, (0.3, 0.31))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for _, layer in model.named_layers())
    assert model.get_states() == {}


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: rows_of(mlp(12, 12), rate=0.1), TypeError, "rate must be two rates in 0…1"),
    (lambda: rows_of(mlp(12, 12), rate=(0.3, 0.1)), ValueError, "the lower one first, got (0.3"),
    (lambda: rows_of(mlp(12, 12), rate=(0.1, 1.5)), ValueError, "two rates in 0…1"),
    (lambda: rows_of(mlp(12, 12), limits=(2.0, 4.0)), ValueError, "limits must be two positive"),
    (lambda: rows_of(mlp(12, 12), limits=(0.0, 4.0)), ValueError, "limits must be two positive"),
    (lambda: rows_of(mlp(12, 12), passes=0), ValueError, "passes must be an integer of at least 1"),
    (lambda: rows_of(mlp(12, 12), torch.zeros(0, 2, 12)), ValueError, "at least one timestep"),
    (lambda: rows_of(mlp(12, 12), torch.zeros(3)), ValueError, "x must be [T, B, …]"),
    (lambda: rows_of(nn.Linear(12, 12)), ValueError, "model must have a tt layer, got Linear"),
    (lambda: rows_of(print), TypeError, "model must be a module with tt layers"),  # type: ignore[arg-type]
    (
        lambda: rows_of(mlp(12, 12), lengths=torch.tensor([1])),
        ValueError,
        "one entry for each of the 8 samples",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG)
def test_bad_arguments_are_refused(
    call: Callable[[], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        call()


# ---------------------------------------------------------------------- the search alone

CURVES: dict[str, Callable[[float], float]] = {
    "rises": lambda f: f / (f + 30),
    "falls": lambda f: 1 / (1 + 20 * f),
    "falls from above": lambda f: 1 / (0.5 + f),
    "rises, falls, rises": lambda f: abs(math.sin(math.log(f) + 0.01)),
    "is flat at first": lambda f: max(0.0, 1 - 50 / f),
}


@pytest.mark.parametrize("curve", CURVES)
@given(center=st.floats(0.02, 0.9), width=st.floats(0.01, 0.3))
@settings(max_examples=30, deadline=None)
def test_the_search_finds_the_band_wherever_a_continuous_rate_crosses_it(
    curve: str, center: float, width: float
) -> None:
    rate = CURVES[curve]
    band = (max(0.0, center - width), min(1.0, center + width))
    search = Search(band, (1e-3, 1e3), 60)
    if search.miss(rate(1.0)) == 0:
        return
    seen: list[float] = []

    def measure(factor: float) -> float:
        seen.append(factor)
        return rate(factor)

    found = search.run(measure, rate(1.0))
    ends = [rate(10**e) for e in np.linspace(-3, 3, 200)]
    reachable = min(ends) < band[0] and max(ends) > band[1]
    if reachable:
        assert found.why == ""
        assert band[0] <= rate(found.factor) <= band[1]
    assert found.rate == rate(found.factor)
    assert len(seen) == len(set(seen)) <= 60


# ---------------------------------------------------------------------- fluctuations

CLOSED = ["LIB", "SLIB", "DLIB", "DSLIB", "LIT", "SLITS"]


class LIEMAB(snn.Layer, average=True, synapse=True, firing=snn.BINARY):
    """An average that fires."""


@pytest.mark.parametrize("kind", [*(getattr(snn, name) for name in CLOSED), LIEMAB])
def test_the_closed_form_is_the_membranes_of_a_simulation(kind: type[snn.Layer]) -> None:
    """Mean and variance over time, of the average neuron, thresholds out of reach."""
    n, inputs, rate, xi, mean, theta = 400, 300, 0.1, 2.0, 0.3, 1.2
    torch.manual_seed(0)
    names = kind.parameter_names()
    decays: dict[str, Any] = {name: 0.7 for name in names if name.endswith("alpha")}
    decays |= {name: 0.85 for name in names if name.endswith("beta")}
    thresholds = [name for name in names if name.endswith("threshold")]
    layer = kind(n, **decays, **dict.fromkeys(thresholds, theta))
    weight = torch.empty(n, inputs)
    found = snn.init.fluctuation_driven(weight, layer, rate, xi=xi, mean=mean)
    assert found is weight
    for name in thresholds:
        setattr(layer, name, 1e6)
    x = snn.encoders.rate(torch.full((4, inputs), rate), 1200)
    membranes = []
    with torch.no_grad():
        for current in x @ weight.T:
            layer(current)
            halves = [getattr(layer, half + "mem") for half in layer.polarity]
            membranes.append(sum(halves))
    u = torch.stack(membranes)[200:].double()
    # over 400 neurons of which each has 300 weights: the formula holds on average
    assert u.mean().item() == pytest.approx(mean, abs=0.1)
    assert u.var(0).mean().sqrt().item() == pytest.approx((theta - mean) / xi, rel=0.03)


def test_the_closed_form_of_each_neurons_own_decays_and_thresholds() -> None:
    beta = torch.tensor([0.5, 0.9, 0.99])
    threshold = torch.tensor([0.5, 1.0, 2.0])
    layer = snn.LIB(3, beta=beta, threshold=threshold, dim=-3)
    conv = nn.Conv2d(2000, 3, 5)
    snn.init.fluctuation_driven(conv.weight, layer, 0.05, xi=3.0)
    wanted = threshold / 3 / (50_000 * 0.05 * 0.95 / (1 - beta**2)).sqrt()
    torch.testing.assert_close(conv.weight.detach().std((1, 2, 3)), wanted, rtol=0.02, atol=0)


def test_closed_form_is_seeded_by_its_generator_alone() -> None:
    layer, before = snn.LIB(5), torch.get_rng_state()
    drawn = [
        snn.init.fluctuation_driven(
            torch.empty(5, 9), layer, 0.1, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


W = torch.zeros(4, 6)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: snn.init.fluctuation_driven(W[0], snn.LIB(4), 0.1), ValueError, "weight must be [out"),
    (lambda: snn.init.fluctuation_driven(W, snn.LI(4), 0.1), TypeError, "that fires, got LI(4"),  # type: ignore[arg-type]
    (lambda: snn.init.fluctuation_driven(W, snn.LIB(4), 1.0), ValueError, "rate must be a rate in"),
    (lambda: snn.init.fluctuation_driven(W, snn.LIB(4), 0.1, xi=0.0), ValueError, "xi must be"),
    (
        lambda: snn.init.fluctuation_driven(W, snn.LIB(4), 0.1, mean=1.5),
        ValueError,
        "mean must lie below the threshold, got 1.5 and 1",
    ),
    (
        lambda: snn.init.fluctuation_driven(W, snn.LIB(4), 0.01, mean=0.9, xi=30.0),
        ValueError,
        "mean must be nearer to 0, or xi lower: 6 weights",
    ),
    (
        lambda: snn.init.fluctuation_driven(W, snn.DLIB(4, 0.5, 0.9), 0.1),
        ValueError,
        "layer must have equal halves of beta",
    ),
    (
        lambda: snn.init.fluctuation_driven(W, snn.LIB(3), 0.1),
        ValueError,
        "weight must have a row for each of the layer's 3 neurons",
    ),
    (
        lambda: snn.init.heterogeneous(snn.LIB(4, beta_rank=0), beta=20.0),
        ValueError,
        "beta is of rank 0, one value for all neurons; make the layer with beta_rank=1",
    ),
    (
        lambda: snn.init.heterogeneous(snn.LIB(4), alpha=20.0),
        ValueError,
        "has no decay 'alpha'; it has beta",
    ),
    (lambda: snn.init.heterogeneous(snn.LIB(4), threshold=2.0), ValueError, "no decay 'threshold'"),
    (lambda: snn.init.heterogeneous(snn.LIB(4)), TypeError, "timesteps must name a decay"),
    (lambda: snn.init.heterogeneous(nn.ReLU(), beta=2.0), TypeError, "layer must be a tt.Layer"),  # type: ignore[arg-type]
    (
        lambda: snn.init.heterogeneous(snn.Delay(2), delay=2.0),
        ValueError,
        "declares no decay: a parameter added by add_parameter(name, value, "
        "constraint=tt.constraints.sigmoid)",
    ),
    (
        lambda: snn.init.heterogeneous(snn.LIB(4), beta=1.2),
        ValueError,
        "beta must be a mean within the bounds 1.5…1000, in timesteps, got 1.2",
    ),
    (
        lambda: snn.init.heterogeneous(snn.LIB(4), beta=20.0, bounds=(0.5, 30.0)),
        ValueError,
        "bounds must be two numbers of timesteps above 1, got (0.5, 30.0)",
    ),
    (lambda: snn.init.heterogeneous(snn.LIB(4), beta=20.0, shape=0), ValueError, "shape must be"),
    (
        lambda: snn.init.heterogeneous(snn.LIB(500), beta=20.0, bounds=(19.99999, 20.00001)),
        ValueError,
        "bounds must leave more of the distribution of mean 20.0",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), REFUSED)
def test_closed_forms_refuse_bad_arguments(
    call: Callable[[], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        call()
    assert not W.any()


# ---------------------------------------------------------------------- time constants


@pytest.mark.parametrize("shape", [1, 3, 6])
def test_time_constants_are_gamma_distributed(shape: int) -> None:
    layer = snn.DSLIB(20_000).double()
    generator = torch.Generator().manual_seed(0)
    snn.init.heterogeneous(
        layer,
        shape=shape,
        bounds=(1.0001, 1e6),
        generator=generator,
        neg_beta=40.0,
        pos_alpha=200.0,
    )
    for name, mean in (("neg_beta", 40.0), ("pos_alpha", 200.0)):
        tau = decay_to_timesteps(getattr(layer, name).detach())
        assert tau.mean().item() == pytest.approx(mean, rel=0.04)
        assert tau.std().item() == pytest.approx(mean / math.sqrt(shape), rel=0.05)
        # the third moment tells a gamma from others of the same width
        skew = (((tau - tau.mean()) / tau.std()) ** 3).mean().item()
        assert skew == pytest.approx(2 / math.sqrt(shape), rel=0.15)
    for name in ("pos_beta", "neg_alpha"):
        assert len(getattr(layer, name).detach().unique()) == 1


@given(st.integers(1, 5), st.floats(2, 100), st.floats(0.05, 0.95), st.floats(0.5, 5))
@settings(max_examples=30, deadline=None)
def test_time_constants_keep_to_their_bounds(
    shape: int, mean: float, below: float, above: float
) -> None:
    low, high = 1 + (mean - 1) * below, mean * (1 + above)
    layer = snn.LIB(50).double()
    snn.init.heterogeneous(layer, shape=shape, bounds=(low, high), beta=mean)
    tau = decay_to_timesteps(layer.beta.detach())
    assert low * (1 - 1e-6) <= tau.min()
    assert tau.max() <= high * (1 + 1e-6)
    assert len(tau.unique()) == 50


def test_time_constants_are_all_or_nothing() -> None:
    layer = snn.SLIB(4, beta_rank=0)
    before = layer.alpha.detach().clone()
    with pytest.raises(ValueError, match="beta is of rank 0"):
        snn.init.heterogeneous(layer, alpha=5.0, beta=20.0)
    assert torch.equal(layer.alpha.detach(), before)
    layer = snn.SLIB(4)
    with pytest.raises(ValueError, match="must be in"):
        # 1 in float32
        snn.init.heterogeneous(layer, bounds=(2.0, 1e12), alpha=5.0, beta=1e10)
    assert torch.equal(layer.alpha.detach(), before)


class Leaks(tt.Layer):
    """One's own, with a decay per neuron, one per neuron and tap, and what is none."""

    def __init__(self, num_neurons: int, taps: int) -> None:
        super().__init__(num_neurons)
        self.add_state("a")
        self.add_parameter("rate", 0.5, constraint=tt.constraints.sigmoid)
        self.add_parameter(
            "each", 0.5, constraint=tt.constraints.sigmoid, shape=(num_neurons, taps)
        )
        self.add_parameter("gain", 0.5)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        a = p.rate * states.a + x
        return {"a": a}, p.gain * a + p.each.sum(-1)


def test_time_constants_of_ones_own_layer_are_those_of_ours() -> None:
    own, ours = Leaks(50, 1), snn.SLIB(50)
    for layer, names in ((own, ("rate", "each")), (ours, ("beta", "alpha"))):
        generator = torch.Generator().manual_seed(3)
        means = dict(zip(names, (20.0, 5.0), strict=True))
        snn.init.heterogeneous(layer, generator=generator, **means)
    assert torch.equal(own.rate, ours.beta)
    assert torch.equal(own.each[:, 0], ours.alpha)
    with pytest.raises(ValueError, match=r"has no decay 'gain'; it has rate, each$"):
        snn.init.heterogeneous(own, gain=5.0)


def test_an_adaptation_has_time_constants_as_well() -> None:
    layer = snn.LIB(50, adaptation=snn.Adaptation())
    snn.init.heterogeneous(layer, rho=30.0)
    assert len(layer.rho.detach().unique()) == 50
    assert len(layer.beta.detach().unique()) == 1


# ---------------------------------------------------------------------- what a stranger found


class TwiceCalled(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.lif = nn.Linear(5, 40), snn.LIB(40)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lif(self.lif(self.inward(x)))
        return y


def test_a_layer_that_is_called_twice_is_searched_over_both_calls() -> None:
    torch.manual_seed(0)
    report = snn.init.calibrate(TwiceCalled(), 0.5 * torch.rand(20, 8, 5))
    assert report.ok, str(report)


def test_it_works_within_inference_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 40), snn.LIB(40))
    x = 0.3 * torch.rand(20, 8, 5)
    with torch.inference_mode():
        report = snn.init.calibrate(net, x.clone())
    assert report.ok, str(report)


def test_what_pads_a_sequence_reaches_no_statistics() -> None:
    lengths, found = torch.tensor([20, 5, 12, 20]), []
    for padding in (0.0, math.nan):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 40), nn.BatchNorm1d(40), snn.LIB(40))
        x = torch.rand(20, 4, 5)
        x[torch.arange(20)[:, None] >= lengths] = padding
        found.append(snn.init.calibrate(net, x, lengths=lengths).rows[0])
    assert found[0] == found[1]
    assert found[0].ok
