"""Synaptic operations: against loops over connections, NeuroBench's numbers; what is left."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from tracetorch import measures, testing
from tracetorch.measures import Count, Operations, operations

# ------------------------------------------------------------------ one connection at a time

Place = tuple[int, ...]


def wrapped(module: Any, place: Place, sizes: Place) -> Place | None:
    """Where a place of the padded input is in the input; None where it is a padded zero."""
    inside = all(0 <= p < size for p, size in zip(place, sizes, strict=True))
    if inside:
        return place
    if module.padding_mode == "zeros":
        return None
    fold = {
        "circular": lambda p, size: p % size,
        "replicate": lambda p, size: min(max(p, 0), size - 1),
        "reflect": lambda p, size: -p if p < 0 else (2 * size - 2 - p if p >= size else p),
    }[module.padding_mode]
    return tuple(fold(p, size) for p, size in zip(place, sizes, strict=True))


def convolved(module: Any, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every weight of a convolution with every activation of ``x`` that it meets."""
    padding = module.padding
    if isinstance(padding, str):
        whole = [
            d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ] if padding == "same" else [0] * len(module.dilation)  # fmt: skip
        padding = [size // 2 for size in whole]
    inputs, outputs = (n // module.groups for n in (module.in_channels, module.out_channels))
    for sample, out in itertools.product(range(len(x)), range(module.out_channels)):
        group = out // outputs
        for channel, at in itertools.product(range(inputs), every(y.shape[2:])):
            for tap in every(module.kernel_size):
                place = tuple(
                    a * s - p + t * d
                    for a, s, p, t, d in zip(
                        at, module.stride, padding, tap, module.dilation, strict=True
                    )
                )
                found = wrapped(module, place, x.shape[2:])
                if found is not None:
                    activation = x[(sample, group * inputs + channel, *found)]
                    yield module.weight[(out, channel, *tap)], activation


def transposed(module: Any, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of a transposed convolution, from its inputs."""
    outputs = range(module.out_channels // module.groups)
    for sample, channel in itertools.product(range(len(x)), range(module.in_channels)):
        for out, at in itertools.product(outputs, every(x.shape[2:])):
            for tap in every(module.kernel_size):
                place = (
                    a * s - p + t * d
                    for a, s, p, t, d in zip(
                        at, module.stride, module.padding, tap, module.dilation, strict=True
                    )
                )
                if all(0 <= p < size for p, size in zip(place, y.shape[2:], strict=True)):
                    yield module.weight[(channel, out, *tap)], x[(sample, channel, *at)]


def every(sizes: Any) -> Iterator[Place]:
    return itertools.product(*(range(size) for size in sizes))


def tallied(pairs: Iterator[tuple[Tensor, Tensor]]) -> Count:
    """Dense, and effective by what the activation is."""
    dense = macs = acs = 0
    for weight, activation in pairs:
        dense += 1
        if weight != 0 and activation != 0:
            acs += activation.abs().item() == 1
            macs += activation.abs().item() != 1
    return Count(dense, macs, acs)


def mixed(*shape: int, seed: int = 0) -> Tensor:
    """Zeros, ones of either sign, and other numbers."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.tensor([0.0, 0.0, 1.0, -1.0, 0.5, 2.0])
    return kinds[torch.randint(0, len(kinds), shape, generator=generator)]


def meeting(weight: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every weight ``[out, in]`` with every activation of ``[…, in]`` that it meets."""
    for row in x.reshape(-1, x.shape[-1]):
        for out in weight:
            yield from zip(out, row, strict=True)


def sparse(module: nn.Module) -> None:
    """Some weights to zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(torch.rand(parameter.shape) < 0.6)


CONVOLUTIONS: list[tuple[type[nn.Module], dict[str, Any], Place]] = [
    (nn.Conv1d, {"kernel_size": 3}, (6,)),
    (nn.Conv1d, {"kernel_size": 4, "padding": "same", "dilation": 2}, (7,)),
    (nn.Conv1d, {"kernel_size": 3, "padding": "valid", "stride": 2}, (8,)),
    (nn.Conv2d, {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 2)}, (4, 3)),
    (nn.Conv2d, {"kernel_size": 3, "groups": 2, "padding": 1, "dilation": 2}, (5, 4)),
    (nn.Conv2d, {"kernel_size": 2, "padding": "same"}, (3, 4)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (3, 4)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}, (3, 4)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}, (3, 2)),
    (nn.Conv3d, {"kernel_size": 2, "padding": (1, 0, 1), "stride": (1, 1, 2)}, (2, 3, 3)),
    (nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2, "padding": 1}, (4,)),
    (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "output_padding": 1}, (2, 3)),
    (nn.ConvTranspose2d, {"kernel_size": 2, "groups": 2, "dilation": 2}, (3, 2)),
    (nn.ConvTranspose3d, {"kernel_size": 2, "padding": 1, "stride": 2}, (2, 2, 3)),
]


@pytest.mark.parametrize(("kind", "options", "sizes"), CONVOLUTIONS)
def test_a_convolution_counts_every_connection(
    kind: Any, options: dict[str, Any], sizes: Place
) -> None:
    module = kind(2, 4, **options)
    sparse(module)
    x = mixed(3, 2, 2, *sizes)
    flat = x.flatten(0, 1)
    walk = transposed if kind.__name__.startswith("ConvT") else convolved
    expected = tallied(walk(module, flat, module(flat)))
    assert operations(nn.Sequential(module), x).rows == {"0": expected}
    assert 0 < expected.macs < expected.dense
    assert 0 < expected.acs < expected.dense


def test_a_transposed_convolution_goes_by_the_size_that_was_asked_for() -> None:
    class Bigger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(1, 1, 3, stride=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[8])

    model = Bigger()
    x = mixed(1, 1, 1, 2)
    with torch.no_grad():
        y = model(x[0])
    assert y.shape == (1, 1, 8)
    assert operations(model, x).rows["up"] == tallied(transposed(model.up, x[0], y))


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 2, 4, 5), (3, 2, 2, 2, 5)])
def test_a_linear_module_counts_every_connection(shape: Place) -> None:
    module = nn.Linear(5, 4)
    sparse(module)
    x = mixed(*shape)
    expected = tallied(meeting(module.weight, x))
    assert operations(nn.Sequential(module), x).total == expected


POOLS: list[tuple[nn.Module, Place]] = [
    (nn.AvgPool1d(3, stride=2, padding=1), (7,)),
    (nn.AvgPool2d((2, 3), ceil_mode=True), (5, 7)),
    (nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), (4, 3)),
    (nn.AvgPool3d(2), (2, 4, 3)),
    (nn.AdaptiveAvgPool1d(3), (7,)),
    (nn.AdaptiveAvgPool2d((2, 3)), (5, 4)),
    (nn.AdaptiveAvgPool2d(1), (4, 5)),
    (nn.AdaptiveAvgPool3d((None, 1, 2)), (2, 3, 3)),
]


@pytest.mark.parametrize(("pool", "sizes"), POOLS)
def test_average_pooling_adds_up_what_is_in_its_windows(pool: nn.Module, sizes: Place) -> None:
    x = mixed(2, 2, 3, *sizes)
    # a place is in as many windows as outputs change with it
    one = torch.zeros(1, 1, *sizes, dtype=torch.float64)
    dense = acs = 0
    for place in every(sizes):
        lit = one.clone()
        lit[(0, 0, *place)] = 1.0
        windows = int((pool(lit) != 0).sum())
        dense += windows * 2 * 2 * 3
        acs += windows * int((x[(..., *place)] != 0).sum())
    assert operations(nn.Sequential(pool), x).rows == {"0": Count(dense, 0, acs)}
    assert operations(nn.Sequential(pool), x, pooling=False).rows == {}


def test_taking_a_maximum_and_normalising_are_no_operations() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    found = operations(model, mixed(2, 2, 3, 4, 4))
    assert (found.rows, found.uncounted, found.total) == ({}, (), Count())


# ------------------------------------------------------------------ NeuroBench's numbers


def filled(tensor: Tensor, period: int) -> Tensor:
    """The same multiples of a half everywhere."""
    with torch.no_grad():
        places = torch.arange(tensor.numel())
        tensor.copy_(((places * 7 % period) - period // 2).reshape(tensor.shape) / 2)
    return tensor


def recorded_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )
    for parameter, period in zip(net.parameters(), (5, 3, 9, 3), strict=True):
        filled(parameter, period)
    return net


# of neurobench 2.3.0 with torch 2.15, per sample, of the 8 samples below; theirs calls all of an
# input multiply-accumulates where one value is not -1, 0 or 1
NEUROBENCH = {
    "spikes": {"Dense": 402.0, "Effective_MACs": 40.5, "Effective_ACs": 130.0, "sparsity": 125},
    "numbers": {"Dense": 402.0, "Effective_MACs": 257.5, "Effective_ACs": 0.0, "sparsity": 117},
}


@pytest.mark.parametrize("kind", NEUROBENCH)
def test_the_definitions_are_neurobenchs(kind: str) -> None:
    recorded, net = NEUROBENCH[kind], recorded_net()
    x = filled(torch.empty(8, 2, 5, 5), 11)
    if kind == "spikes":
        x = (x > 1).float() - (x < -1).float()
    found = operations(net, x[:, None])
    assert found.total.dense / 8 == recorded["Dense"]
    effective = recorded["Effective_MACs"] + recorded["Effective_ACs"]
    assert (found.total.macs + found.total.acs) / 8 == effective
    if kind == "spikes":  # the convolution sees nothing else
        assert found.rows["0"][1:] == (0, 8 * recorded["Effective_ACs"])
    hidden = torch.relu(net[0](x))[:, None]
    assert measures.activation_sparsity(hidden).item() == pytest.approx(recorded["sparsity"] / 216)
    assert round(measures.connection_sparsity(net), 3) == 0.142
    assert measures.footprint(net) == 676


# ------------------------------------------------------------------ models over time


class Net(tt.Model):
    """Two linear modules around neurons, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.lif = testing.AdaptiveLIF(6)
        self.again = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif(2 * self.first(x))
        return self.again(self.drop(torch.relu(self.norm(self.again(spikes)))))


def by_steps(net: Net, x: Tensor) -> dict[str, Count]:
    """Every product of every timestep."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"first": [], "again": []}

    def linear(name: str, module: nn.Linear, x: Tensor) -> Tensor:
        seen[name] += meeting(module.weight, x)
        return module(x)

    with torch.no_grad():
        for step in x:
            spikes = net.lif(2 * linear("first", net.first, step))
            linear("again", net.again, torch.relu(net.norm(linear("again", net.again, spikes))))
    return {name: tallied(iter(pairs)) for name, pairs in seen.items()}


def test_a_model_is_counted_over_time_as_it_is_stepped_and_stays_folded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, x = Net().eval(), mixed(7, 3, 3)
    with caplog.at_level(logging.INFO, "tracetorch"):
        found = operations(net, x)
    assert "is stepped" not in caplog.text
    assert found.rows == by_steps(net, x)
    assert found.rows["again"].dense == 2 * 7 * 3 * 36
    assert found.rows["again"].acs > 0
    assert (found.samples, found.timesteps, found.uncounted) == (3, 21, ())
    assert found.total == found.rows["first"] + found.rows["again"]


@pytest.mark.parametrize("ends", [[4, 1, 4], [0, 7, 3], [0, 0, 0], [7, 7, 7]])
def test_what_comes_after_a_sample_has_ended_is_not_counted(ends: list[int]) -> None:
    net, x = Net(), mixed(7, 3, 3)
    padded = x.clone()
    padded[torch.arange(7)[:, None] >= torch.tensor(ends)] = math.nan
    found = operations(net, padded, lengths=torch.tensor(ends))
    alone = [operations(net, x[:end, [b]]) for b, end in enumerate(ends) if end]
    total = sum((each.total for each in alone), Count())
    assert found.total == total
    assert list(found.rows) == ["first", "again"]
    assert (found.samples, found.timesteps) == (3, sum(ends))


def test_counting_goes_on_from_the_standing_states() -> None:
    net, x = Net().eval(), mixed(8, 2, 3)
    whole = operations(net, x)
    first = operations(net, x[:5])
    with torch.no_grad():
        net.unroll(x[:5])
    both = first + operations(net, x[5:])
    assert (both.rows, both.timesteps) == (whole.rows, whole.timesteps)


def test_a_model_that_cannot_be_folded_is_counted_as_well() -> None:
    class Peeking(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    torch.manual_seed(1)
    plain = Net().eval()
    peeking = Peeking().eval()
    peeking.load_state_dict(plain.state_dict())
    x = mixed(6, 2, 3)
    assert operations(peeking, x).rows == operations(plain, x).rows


@pytest.mark.parametrize("makes", [testing.AdaptiveLIF, lambda n: Recurrent(n, n)])
def test_a_fold_that_fails_on_its_way_is_not_counted(makes: Callable[[int], tt.Layer]) -> None:
    class Growing(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(3, 3), makes(3)

        def forward(self, x: Tensor) -> Tensor:
            h = 3 * self.fc(x)
            if len(x) > 8:  # more than there are when it is decided
                self.lif(h)
            return self.lif(h)

    net, x = Growing(), mixed(7, 2, 3)
    stepped = [operations(net, x[:, [b]]) for b in range(2)]
    found = operations(net, x)
    assert found.rows == (stepped[0] + stepped[1]).rows
    assert found.rows["fc"].dense == 7 * 2 * 9


def test_a_recording_that_is_under_way_hears_nothing_of_it() -> None:
    net, x = RecurrentNet(), mixed(6, 2, 3)
    net.more = testing.AdaptiveLIF(2)
    with tt.record(net) as rec:
        net.unroll(x)
        sizes = {name: len(value) for name, value in rec.items()}
        operations(net, x)
        net.summary(x)
        assert {name: len(value) for name, value in rec.items()} == sizes
        net.unroll(x)
    assert all(len(rec[name]) == 2 * size for name, size in sizes.items())


def test_within_a_forward_pass_nothing_can_be_counted() -> None:
    net, x = Net(), mixed(6, 2, 3)
    inner = net.forward
    net.forward = lambda x: (operations(net, x[None]), inner(x))[1]  # type: ignore[method-assign]
    with pytest.raises(tt.FoldError, match="reads or changes the states of a AdaptiveLIF"):
        net.unroll(x, fold=True)


def test_a_module_that_is_no_model_is_called_timestep_by_timestep() -> None:
    linear = nn.Linear(3, 4)
    model = nn.Sequential(linear, testing.AdaptiveLIF(4), nn.Linear(4, 2))
    x = mixed(5, 2, 3) * 3
    spikes = model[1].unroll(linear(x)).detach()  # type: ignore[operator]
    model[1].zero_states()  # type: ignore[operator]
    found = operations(model, x)
    assert found.rows["2"] == Count(5 * 2 * 8, 0, 2 * int(spikes.sum()))
    assert spikes.sum() > 0


# ------------------------------------------------------------------ layers with matrices


class Recurrent(tt.Layer):
    """Spikes that come back through a matrix, and an elementwise gain per neuron and state."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__(size)
        self.add_state("mem", "spike", sizes=(out,))
        self.add_parameter("w_in", torch.randn(out, size), raw_name="w_in", shape=(out, size))
        self.add_parameter("w_rec", torch.randn(out, out), raw_name="w_rec", shape=(out, out))

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        mem = 0.5 * states.mem + F.linear(x, p.w_in) + states.spike @ p.w_rec.T
        spike = (mem > 0.5).to(mem.dtype)
        return {"mem": mem - spike, "spike": spike}, spike


class RecurrentNet(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Recurrent(3, 4)]  # torch does not see it
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers[0](x))


@pytest.mark.parametrize("inference", [False, True])
def test_recurrent_weights_are_counted_with_the_state_that_they_are_applied_to(
    inference: bool,
) -> None:
    net, x = RecurrentNet(), mixed(6, 2, 3)
    layer = net.layers[0]
    sparse(layer)
    with torch.no_grad():
        spikes = layer.unroll(x)
    layer.zero_states()
    back = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
    pairs = itertools.chain(meeting(layer.w_in, x), meeting(layer.w_rec, back))
    with torch.inference_mode(inference):
        found = operations(net, x)
    assert found.rows["layers.0"] == tallied(pairs)
    assert found.rows["out"] == Count(6 * 2 * 8, 0, 2 * int(spikes.sum()))
    assert list(found.rows) == ["out", "layers.0"]
    assert spikes.sum() > 0
    alone = operations(layer, x)
    assert alone.rows == {"": found.rows["layers.0"]}
    with torch.no_grad():
        single = operations(nn.Sequential(layer), x)
    assert single.rows == {"0": found.rows["layers.0"]}


def test_what_a_layer_does_elementwise_is_no_connection() -> None:
    layer = testing.StateSpace(3, out_size=2)  # its c is elementwise, its w a matrix
    found = operations(layer, mixed(4, 2, 3))
    assert found.rows[""].dense == 4 * 2 * 3 * 2


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w.T,
        lambda x, w: (w @ x.T).T,
        lambda x, w: torch.einsum("bi,oi->bo", x, w),
        lambda x, w: torch.stack([w @ row for row in x]),
        lambda x, w: torch.addmm(torch.ones(len(w)), x, w.T),
        lambda x, w: torch.bmm(x[:, None], w.T.expand(len(x), -1, -1))[:, 0],
        lambda x, w: torch.bmm(w.expand(len(x), -1, -1), x[..., None])[..., 0],
        lambda x, w: F.linear(x[:, None], w)[:, 0],
    ],
)
def test_however_a_product_is_written_it_is_the_same(
    product: Callable[[Tensor, Tensor], Tensor],
) -> None:
    class Layer(tt.Layer):
        def __init__(self) -> None:
            super().__init__(3)
            self.add_parameter("w", mixed(4, 3, seed=1), raw_name="w", shape=(4, 3), learn=False)

        def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
            return {}, product(x, p.w)

    x = mixed(5, 2, 3)
    assert operations(Layer(), x).rows == {"": tallied(meeting(mixed(4, 3, seed=1), x))}


def test_the_cells_of_tracetorch_rnn_count_both_of_their_matrices() -> None:
    rnn = pytest.importorskip("tracetorch.rnn")
    x = mixed(5, 2, 3)
    for kind, gates in ((rnn.SimpleRNN, 1), (rnn.GRU, 3), (rnn.LSTM, 4)):
        layer = kind(3, 4)
        count = operations(layer, x).rows[""]
        assert count.dense == 5 * 2 * gates * 4 * (3 + 4)
        ones, others = int((x.abs() == 1).sum()), int(((x != 0) & (x.abs() != 1)).sum())
        assert count.acs == gates * 4 * ones
        # the state is zero at first, and no number but itself afterwards
        assert count.macs == gates * 4 * (others + 4 * 2 * 4)
    ssm = rnn.SelectiveSSM(8, 4, state_size=2)
    held = sum(m.weight.numel() for m in (ssm.x_proj, ssm.dt_proj, ssm.out_proj))
    assert operations(ssm, mixed(5, 2, 8)).rows[""].dense == 5 * 2 * held


# ------------------------------------------------------------------ left as it was


def everything(net: nn.Module) -> list[Any]:
    """What a measurement must not change."""
    flags = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) for module in net.modules()]
    tensors = [(id(t), t._version) for t in (*net.parameters(), *net.buffers())]
    layers = [(id(layer.tt.states), layer.tt.passage) for _, layer in tt.named_layers(net)]
    drawn = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    return [flags, hooks, tensors, layers, drawn]


class Breaking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        random.random()
        np.random.rand(1)
        if x.abs().max() > 100:
            raise ArithmeticError("too much")
        return x


@pytest.mark.parametrize("makes", [Net, RecurrentNet])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_it_was_also_after_an_error(makes: type[tt.Model], fails: bool) -> None:
    net = makes()
    net.breaking = Breaking()
    net.forward = lambda x: type(net).forward(net, net.breaking(x))  # type: ignore[method-assign]
    net.breaking.eval()
    x = mixed(5, 2, 3)
    net.unroll(x, fold=False)
    before, states = everything(net), net.get_states()
    if fails:
        x[4] = 1e6
        with pytest.raises(ArithmeticError, match="too much"):
            operations(net, x, lengths=torch.tensor([2, 5]))
    else:
        operations(net, x, lengths=torch.tensor([2, 5]))
    assert everything(net) == before
    for name, state in net.get_states().items():
        assert torch.equal(state, states[name])


# ------------------------------------------------------------------ names, sums, energy


def test_a_module_is_one_row_under_its_first_name_and_the_uncounted_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.Linear(3, 3)
            self.unused = nn.Linear(3, 9)
            self.bilinear = nn.Bilinear(3, 3, 2)
            self.own = nn.ParameterList([torch.ones(3, 3)])
            self.table = nn.Embedding(4, 3)
            self.lstm = nn.LSTM(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.bilinear(self.other(self.one(x)), x)

    found = operations(Odd(), mixed(2, 1, 3))
    assert found.rows["one"].dense == 2 * 2 * 9
    assert list(found.rows) == ["one", "unused"]
    assert found.rows["unused"] == Count(0, 0, 0)
    assert found.uncounted == ("bilinear", "own", "lstm")


def test_weights_that_are_pruned_or_computed_count_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    prune.custom_from_mask(model[0], "weight", mixed(5, 4).abs() == 1)
    parametrize.register_parametrization(model[1], "weight", nn.Hardtanh(0.0, 1.0))
    x = mixed(3, 2, 4)
    found = operations(model, x)
    assert found.rows["0"] == tallied(meeting(model[0].weight, x))  # type: ignore[arg-type]
    expected = meeting(model[1].weight, model[0](x))  # type: ignore[arg-type]
    assert found.rows["1"] == tallied(expected)
    assert found.uncounted == ()
    zeros = sum(int((linear.weight == 0).sum()) for linear in model)  # type: ignore[operator]
    assert measures.connection_sparsity(model) == zeros / 35
    assert 0 < found.rows["1"].macs < found.rows["1"].dense


def test_an_input_by_keyword_is_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x)

    with pytest.raises(TypeError, match=r"^operations: Linear\(.* called with keyword arguments"):
        operations(Named(), mixed(2, 1, 3))


def test_operations_of_batches_add_up() -> None:
    one = Operations({"a": Count(4, 1, 2), "b": Count(1, 0, 1)}, 2, 6, ("x",))
    other = Operations({"b": Count(2, 1, 0), "c": Count(3, 0, 0)}, 1, 3, ("x", "y"))
    both = one + other
    assert both.rows == {"a": Count(4, 1, 2), "b": Count(3, 1, 1), "c": Count(3, 0, 0)}
    assert (both.samples, both.timesteps, both.uncounted) == (3, 9, ("x", "y"))
    assert both.total == one.total + other.total == Count(10, 2, 3)
    with pytest.raises(TypeError):
        _ = one + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        _ = Count(1, 1, 1) + 1  # type: ignore[operator]


def test_energy_is_operations_times_constants() -> None:
    count = Count(1000, 10, 100)
    assert measures.energy(count) == pytest.approx(10 * 4.6e-12 + 100 * 0.9e-12, rel=1e-15)
    found = Operations({"a": count, "b": count}, 1, 1)
    assert measures.energy(found) == pytest.approx(2 * measures.energy(count), rel=1e-15)
    free = measures.EnergyConstants(mac=2.0, ac=0.0)
    assert measures.energy(count, free) == 20.0
    assert measures.energy(count, measures.HOROWITZ_45NM) == measures.energy(count)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: measures.energy((1, 2, 3)), TypeError, "energy: operations must .*, got a tuple"),
        (lambda: measures.EnergyConstants(-1, 0), ValueError, "EnergyConstants: mac .*, got -1"),
        (lambda: measures.EnergyConstants(1, math.nan), ValueError, "EnergyConstants: ac .* nan"),
        (lambda: measures.EnergyConstants("1", 0), TypeError, "EnergyConstants: mac .* got '1'"),
        (lambda: operations(Net, mixed(2, 1, 3)), TypeError, "operations: model .* got a type"),
        (lambda: operations(Net(), [1.0]), TypeError, "operations: x must be a .* got a list"),
        (lambda: operations(Net(), mixed(2, 3)), ValueError, r"operations: x .* shape \[2, 3\]"),
        (lambda: operations(Net(), mixed(0, 2, 3)), ValueError, r"operations: x .* \[0, 2, 3\]"),
        (
            lambda: operations(Net(), mixed(2, 1, 3), torch.tensor([3])),
            ValueError,
            r"operations: lengths must lie in 0…2, got \[3\]",
        ),
        (lambda: measures.footprint([1]), TypeError, "footprint: model must .*, got a list"),
        (lambda: measures.connection_sparsity(1), TypeError, "connection_sparsity: model .* int"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(
    call: Callable[[], object], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=f"^{says}"):
        call()


# ------------------------------------------------------------------ weights as they stand


def test_sparsity_is_of_weights_alone_wherever_they_hide() -> None:
    net = RecurrentNet()
    net.conv = nn.Conv1d(1, 2, 3)
    net.cell = nn.GRUCell(2, 2)
    net.lif = testing.AdaptiveLIF(5)
    net.norm = nn.BatchNorm1d(4)
    net.tied = net.out
    with torch.no_grad():
        for parameter in (*net.parameters(), *net.layers[0].parameters()):
            parameter.fill_(1.0)
        for bias in (net.out.bias, net.conv.bias, net.cell.bias_ih, net.norm.bias):
            bias.zero_()
        net.out.weight[0] = 0.0
        net.layers[0].w_rec[1, 1] = 0.0
        net.cell.weight_hh[0, 0] = 0.0
    weights = 2 * 4 + 6 + 2 * (6 * 2) + 4 * 3 + 4 * 4
    assert measures.connection_sparsity(net) == (4 + 1 + 1) / weights
    assert math.isnan(measures.connection_sparsity(nn.ReLU()))


def test_the_footprint_is_of_parameters_and_buffers_each_once() -> None:
    net = RecurrentNet()
    net.tied = net.out
    net.double = nn.Linear(1, 1, bias=False).double()
    net.norm = nn.BatchNorm1d(2, affine=False)
    net.layers.append(net.layers[0])
    expected = 4 * (4 * 2 + 2) + 4 * (4 * 3 + 4 * 4) + 8 + (2 * 4 + 2 * 4 + 8)
    assert measures.footprint(net) == expected
    net.unroll(mixed(2, 1, 3))
    assert measures.footprint(net) == expected
