"""Every row of docs/neurons-of-peers.md beside the library that it names.

The page is what is run: its definitions, the peers' imports of each section, and of each table's
row both constructors, the factor of the input and how the membranes correspond.
"""

from __future__ import annotations

import doctest
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import snn

PAGE = Path(__file__).parents[2] / "docs" / "neurons-of-peers.md"
PACKAGES = {
    "snnTorch": "snntorch",
    "SpikingJelly": "spikingjelly",
    "Norse": "norse",
    "Sinabs": "sinabs",
    "Rockpool": "rockpool",
}
STEPS, BATCH = 200, 3
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}

Values = dict[str, Any]
Outcome = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Row:
    """One row of a table of neurons.

    Attributes:
        peer: heading of its section.
        theirs: the peer's constructor.
        ours: our constructor.
        factor: of the input.
        small: whether it holds only where no membrane passes twice the threshold.
        membrane: ours, from the peer's states.
        same_gradient: whether the input's gradients are equal too.
    """

    peer: str
    theirs: str
    ours: str
    factor: str
    small: bool
    membrane: str
    same_gradient: bool


def sections() -> dict[str, str]:
    """The page's sections about a peer, by their headings."""
    parts = re.split(r"(?m)^## (.+)\n", PAGE.read_text(encoding="utf-8"))
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {peer: found[peer] for peer in PACKAGES}


def cells(text: str, heading: str) -> Iterator[list[str]]:
    """The rows of the table in a section whose heading begins so, without their backquotes."""
    table = re.search(rf"(?m)^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    assert table is not None
    for line in table[1].splitlines():
        yield [cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")]


def rows() -> Iterator[Row]:
    """Every row of every table of neurons."""
    for peer, text in sections().items():
        theirs = ""
        for first, ours, times, membrane, gradient in cells(text, "theirs"):
            theirs = theirs if first == "the same" else first
            factor = times.removesuffix(", small")
            assert gradient in {"same", "another"}
            yield Row(peer, theirs, ours, factor, factor != times, membrane, gradient == "same")


ROWS = list(rows())
SURROGATES = [
    (peer, *row)
    for peer, text in sections().items()
    if "| their surrogate |" in text
    for row in cells(text, "their surrogate")
]


@pytest.fixture
def names() -> Callable[[str], Values]:
    """What the page defines, up to and with a peer's own section."""

    def defined(peer: str) -> Values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own, on import
            pytest.importorskip(PACKAGES[peer], reason=f"needs {peer}", exc_type=ImportError)
            examples = doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8"))
            ours = (e.source for e in examples if "check_layer" not in e.source)
            theirs = re.findall(r"(?s)```python\n(?!>>>)(.+?)```", sections()[peer])
            values: Values = {"__name__": "page"}
            exec("".join([*ours, *theirs]), values)
        surrogate = re.search(r"Surrogate: `(.+?)`", sections()[peer])
        assert surrogate is not None
        values["the surrogate"] = eval(surrogate[1], values)
        return values

    return defined


# ------------------------------------------------------------------ how each peer runs a sequence


def run_snntorch(module: nn.Module, x: Tensor) -> Outcome:
    return stepped(x, lambda x_t: (module(x_t)[0], {"mem": module.mem}))


def run_spikingjelly(module: nn.Module, x: Tensor) -> Outcome:
    return stepped(x, lambda x_t: (module(x_t), {"v": module.v}))


def run_norse(module: nn.Module, x: Tensor) -> Outcome:
    state: Any = None

    def step(x_t: Tensor) -> Outcome:
        nonlocal state
        out, state = module(x_t, state)
        return out, {"v": state.lif.v if hasattr(state, "lif") else state.v}

    return stepped(x, step)


def run_sinabs(module: Any, x: Tensor) -> Outcome:
    """One timestep after the other, or at once where something is not kept between calls."""
    synaptic_alif = hasattr(module, "b") and hasattr(module, "i_syn")
    if synaptic_alif or hasattr(module, "rec_connect"):
        return module(x.transpose(0, 1)).transpose(0, 1), {"v_mem": module.v_mem}
    return stepped(x, lambda x_t: (module(x_t[:, None])[:, 0], {"v_mem": module.v_mem}))


def run_rockpool(module: nn.Module, x: Tensor) -> Outcome:
    spikes, _, recorded = module(x.transpose(0, 1), record=True)
    return spikes.transpose(0, 1), {"vmem": recorded["vmem"].transpose(0, 1)}


RUN: dict[str, Callable[[Any, Tensor], Outcome]] = {
    "snnTorch": run_snntorch,
    "SpikingJelly": run_spikingjelly,
    "Norse": run_norse,
    "Sinabs": run_sinabs,
    "Rockpool": run_rockpool,
}


def stepped(x: Tensor, step: Callable[[Tensor], Outcome]) -> Outcome:
    """Outputs and states of every timestep."""
    outs, states = zip(*(step(x_t) for x_t in x), strict=True)
    return torch.stack(outs), {key: torch.stack([s[key] for s in states]) for key in states[0]}


# ------------------------------------------------------------------ ours


class Net(tt.Model):
    """What a row builds, as a model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        y: Tensor = self.net(x)
        return y


def built(row: Row, values: Values) -> Net:
    """The row's neuron, with the section's surrogate where it names none."""
    net = Net(eval(row.ours, values))
    layer = neuron(net)
    if "spike_fn" not in row.ours and fires(net):
        del layer.spike_fn  # a module, in whose place torch takes no function
        layer.spike_fn = values["the surrogate"]
    return net


def neuron(net: Net) -> Any:
    """The layer that holds the membrane."""
    layers = (layer for layer in net.modules() if isinstance(layer, tt.Layer))
    return next(layer for layer in layers if "mem" in layer.tt.states)


def fires(net: Net) -> bool:
    """Whether it emits spikes."""
    return hasattr(neuron(net), "spike_fn")


def recorded(net: Net, x: Tensor) -> Outcome:
    """Timestep by timestep, without kernels: the definition."""
    with tt.backends.use("eager"), torch.no_grad():
        outcome = stepped(x, lambda x_t: (net(x_t), {"mem": neuron(net).mem}))
    net.zero_states()
    return outcome


def noise(net: Net, row: Row, values: Values) -> tuple[Tensor, Tensor]:
    """Input on which a tenth of the timesteps spike, and the factor for ours."""
    shape = (BATCH, 5, 6, 6) if "conv2d" in row.theirs else (BATCH, 5)
    x = torch.randn(STEPS, *shape)
    factor = torch.as_tensor(eval(row.factor, values)).detach()
    for exponent in range(-8, 30):
        louder = 1.25**exponent * (x + 0.2)
        if row.small:
            louder = louder.clamp(max=(2 - values["beta"]) * values["theta"] / factor)
        spikes, _ = recorded(net, factor * louder)
        if not fires(net) or (spikes > 0).double().mean() > 0.1:
            return louder, factor
    raise AssertionError("nothing fires")


def gradient(spikes: Tensor, x: Tensor) -> Tensor:
    """Of a sum of the spikes, each with a weight of its own, with respect to the input."""
    weights = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((spikes * weights).sum(), x)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.theirs)
def test_rows_of_the_page(row: Row, names: Callable[[str], Values]) -> None:
    values = names(row.peer)
    theirs = values["theirs"] = eval(row.theirs, values).double()
    net = built(row, values)
    x, factor = noise(net, row, values)
    x.requires_grad_()

    emitted, states = RUN[row.peer](theirs, x)
    stepped, ours = recorded(net, factor * x)
    if fires(net):
        assert 0.02 < (stepped > 0).double().mean() < 0.95
        assert torch.equal(stepped, emitted)
    torch.testing.assert_close(stepped, emitted, **TOLERANCE)

    expected = eval(row.membrane, {**values, **states, "s": emitted})
    mem = ours["mem"] if expected.ndim == x.ndim else ours["mem"][-1]
    torch.testing.assert_close(mem, expected, **TOLERANCE)

    unrolled = net.unroll(factor * x)
    torch.testing.assert_close(unrolled, emitted, **TOLERANCE)
    if "feedback" not in row.ours:
        assert set(tt.backends.status(net).values()) == {"ready"}
    wanted, found = gradient(emitted, x), gradient(unrolled, x)
    assert wanted.abs().max() > 0
    assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-9) == row.same_gradient


@pytest.mark.parametrize(("peer", "theirs", "ours"), SURROGATES)
def test_surrogates_of_the_page(
    peer: str, theirs: str, ours: str, names: Callable[[str], Values]
) -> None:
    values = names(peer)
    function = eval(theirs, values)
    u = torch.linspace(-1.5, 1.5, 302).requires_grad_()
    if peer == "Sinabs":  # the derivative itself, of the membrane
        wanted = function(u + values["theta"], values["theta"])
    else:
        (wanted,) = torch.autograd.grad(function(u).sum(), u)
    (found,) = torch.autograd.grad(eval(ours, values)(u).sum(), u)
    torch.testing.assert_close(found, wanted, **TOLERANCE)


# ------------------------------------------------------------------ where they differ


def test_the_late_reset_of_snntorch_differs_where_a_membrane_passes_twice_the_threshold(
    names: Callable[[str], Values],
) -> None:
    values = names("snnTorch")
    theirs = eval("snntorch.Leaky(beta, theta, reset_delay=False)", values)
    x = 2 * torch.randn(STEPS, BATCH, 5)
    spikes, _ = run_snntorch(theirs, x)
    assert not torch.equal(snn.LIB(5, values["beta"], values["theta"]).unroll(x), spikes)


def test_the_weight_of_plif_is_the_raw_decay(names: Callable[[str], Values]) -> None:
    values = names("SpikingJelly")
    theirs = eval("neuron.ParametricLIFNode(tau, v_threshold=theta, v_reset=None)", values).double()
    ours = eval("LIEMAB(n, 1 - 1 / tau, theta, beta_rank=0)", values)
    x = 2 * torch.randn(STEPS, BATCH, 5)
    torch.testing.assert_close(ours.raw_beta, -theirs.w, **TOLERANCE)
    run_spikingjelly(theirs, x)[0].sum().backward()
    ours.unroll(x).sum().backward()
    torch.testing.assert_close(ours.raw_beta.grad, -theirs.w.grad, rtol=1e-7, atol=1e-9)


def on_a_grid() -> Tensor:
    """Steps of an eighth, so that membranes meet thresholds exactly."""
    return torch.randint(-3, 5, (STEPS, BATCH, 5)) / 8


def test_spikingjelly_fires_at_the_threshold(names: Callable[[str], Values]) -> None:
    values = names("SpikingJelly")
    x = on_a_grid()
    spikes, _ = run_spikingjelly(eval("neuron.IFNode(theta, v_reset=None)", values), x)
    above, at = (
        eval(f"without_leak(snn.LIB(n, 0.5, theta, learn_beta=False{more}))", values).unroll(x)
        for more in ("", ", quant_fn=at_or_above")
    )
    assert not torch.equal(above, spikes)
    assert torch.equal(at, spikes)


@pytest.mark.parametrize(
    ("peer", "theirs", "run"),
    [
        ("snnTorch", "snntorch.Leaky(1.0, theta, reset_mechanism='zero')", run_snntorch),
        ("Norse", "norse.IAFCell(norse.IAFParameters(v_th=theta))", run_norse),
    ],
)
def test_snntorch_and_norse_fire_above_it(
    peer: str, theirs: str, run: Any, names: Callable[[str], Values]
) -> None:
    values = names(peer)
    x = on_a_grid()
    code = "without_leak(snn.LIB(n, 0.5, theta, learn_beta=False, reset=resets.to(0.0)))"
    assert torch.equal(eval(code, values).unroll(x), run(eval(theirs, values), x)[0])


def test_what_norse_keeps_of_the_current(names: Callable[[str], Values]) -> None:
    values = names("Norse")
    cell, alpha = eval("norse.LIFCell(lif, dt=dt)", values), values["alpha"]
    ours = eval("SLIEMAB(n, alpha, beta, theta, reset=resets.to(0.0))", values)
    state, x = None, torch.randn(STEPS, BATCH, 5)
    for x_t in x:
        _, state = cell(x_t, state)
    ours.unroll(x / (1 - alpha))
    torch.testing.assert_close(alpha * ours.syn, state.i, **TOLERANCE)


def test_alif_of_sinabs_takes_the_raised_threshold_off(names: Callable[[str], Values]) -> None:
    values = names("Sinabs")
    row = next(r for r in ROWS if r.theirs.startswith("ALIF") and "Subtract" in r.theirs)
    net = built(row, values)
    x, _ = noise(net, row, values)
    spikes, _ = run_sinabs(eval("ALIF(tau, 16.0, **single)", values).double(), x)
    assert not torch.equal(net.unroll(x), spikes)


def test_membrane_reset_of_sinabs_adds_its_value_where_nothing_fired(
    names: Callable[[str], Values],
) -> None:
    theirs = eval("LIF(tau, reset_fn=MembraneReset(-0.5), **single)", names("Sinabs"))
    spikes, states = run_sinabs(theirs, torch.zeros(1, BATCH, 5))
    assert not spikes.any()
    assert (states["v_mem"] == -0.5).all()


def test_feedback_of_sinabs_begins_with_the_second_timestep(
    names: Callable[[str], Values],
) -> None:
    values = names("Sinabs")
    theirs = values["theirs"] = eval("LIFRecurrent(tau, nn.Linear(n, n), **single)", values)
    run_sinabs(theirs, torch.zeros(1, BATCH, 5))
    assert not theirs.v_mem.any()
    ours = eval("LIEMAB(n, math.exp(-1 / tau), theta, feedback=theirs.rec_connect)", values)
    ours(torch.zeros(BATCH, 5))
    assert ours.mem.any()


def test_a_net_of_snntorch_with_its_weights(names: Callable[[str], Values]) -> None:
    values = names("snnTorch")
    exec(
        """
theirs = nn.Sequential(
    nn.Linear(8, n), snntorch.Synaptic(alpha, beta, theta, init_hidden=True),
    nn.Linear(n, n), snntorch.Leaky(beta, theta, init_hidden=True),
)
late = resets.subtract(delayed=True, detach=True)
ours = nn.Sequential(
    nn.Linear(8, n), snn.SLIB(n, alpha, beta, theta, reset=late, spike_fn=surrogates.atan(2.0)),
    nn.Linear(n, n), snn.LIB(n, beta, theta, reset=late, spike_fn=surrogates.atan(2.0)),
)
for i in (0, 2):
    ours[i].load_state_dict(theirs[i].state_dict())
scaled(ours[0], 1 / (1 - alpha))
""",
        values,
    )
    theirs, net = values["theirs"], Net(values["ours"])
    x = torch.randn(STEPS, BATCH, 8)
    spikes = torch.stack([theirs(x_t) for x_t in x])
    assert 0.02 < spikes.mean() < 0.9
    unrolled = net.unroll(x)
    assert torch.equal(unrolled, spikes)
    spikes.mean().backward()
    unrolled.mean().backward()
    for i, factor in ((0, 1 - values["alpha"]), (2, 1.0)):
        torch.testing.assert_close(
            net.net[i].weight.grad, factor * theirs[i].weight.grad, rtol=1e-7, atol=1e-9
        )
