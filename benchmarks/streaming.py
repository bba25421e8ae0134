"""Streaming: what one timestep of a small model costs, one sample at a time, without gradients."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import snn

from benchmarks.effort import Context
from benchmarks.harness import OURS, Contender, Data, applied, compare, inference
from benchmarks.peers import Looped, looped
from benchmarks.tables import comparison
from benchmarks.workload import BETA, SLOPE, THRESHOLD

TITLE = "Streaming, one timestep at a time"
STEPS, IN, HIDDEN, OUT = 1000, 16, 64, 8
ABOUT = f"""\
`for x_t in x: y = net(x_t)`, B=1, without gradients: {IN} inputs, {HIDDEN} spiking neurons, {OUT}
leaky outputs, a linear layer before each; beside it `nn.LSTMCell({IN}, {HIDDEN})` and a linear
layer. {STEPS} timesteps are timed together: milliseconds of all are microseconds of one.
Compilation is not counted."""


@dataclass(frozen=True)
class Streamed:
    """A model that is given one timestep after the other.

    Attributes:
        name: how the tables call it.
        step: ``[1, in]`` → ``[1, out]``, its states kept.
        reset: back to fresh states.
        note: what a reader must know to compare it.
        peer: whether it is another library.
    """

    name: str
    step: Callable[[Tensor], Tensor]
    reset: Callable[[], Any]
    note: str = ""
    peer: bool = False

    def outputs(self, x: Tensor) -> Tensor:
        """Of a stream ``[T, 1, in]``, from fresh states."""
        self.reset()
        with torch.no_grad():
            return looped(self.step)(x)

    def contender(self, x: Tensor) -> Contender:
        """The loop over this stream."""
        measured = inference(applied(looped(self.step), x), self.reset)
        return Contender(self.name, measured, self.note, self.peer)


class Net(tt.Model):
    """Linear, spikes, linear, leaky sums."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(IN, HIDDEN),
            snn.LIB(HIDDEN, BETA, THRESHOLD),
            nn.Linear(HIDDEN, OUT),
            snn.LI(OUT, BETA),
        )

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        y: Tensor = self.net(x)
        return y


def measure(context: Context) -> Data:
    """All beside one another; ours put out the same, which is seen to before."""
    x = torch.rand(STEPS, 1, IN, generator=torch.Generator().manual_seed(0))
    net = Net().eval()
    own = list(ours(net, x[0]))
    expected = own[0].outputs(x)
    for streamed in own[1:]:
        torch.testing.assert_close(streamed.outputs(x), expected, rtol=1e-4, atol=1e-4)
    others = [lstm(), *([snntorch(net)] if "snntorch" in context.peers else [])]
    return compare([streamed.contender(x) for streamed in (*own, *others)], context.effort.rounds)


def ours(net: Net, x: Tensor) -> Iterator[Streamed]:
    """The model as it is, and what else may be made of it."""
    yield Streamed(OURS, net, net.zero_states, "as it is")
    constant = copy.deepcopy(net)
    constant.TTcompile()
    yield Streamed(f"{OURS}, TTcompile", constant, constant.zero_states)
    graph = copy.deepcopy(net)
    compiled = torch.compile(graph, fullgraph=True)
    yield Streamed(f"{OURS}, torch.compile", compiled, graph.zero_states)
    yield _explicit("tt.functional", tt.functional(net), net, x)
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("AOTInductor", net), ("TTcompile, AOTInductor", constant)):
            run = _ahead_of_time(model, x, Path(folder) / f"{name}.pt2")
            yield _explicit(name, run, model, x)


def _explicit(name: str, run: Callable[..., Any], net: Net, x: Tensor) -> Streamed:
    """A function ``(states, x) → (y, states)``, the states carried from call to call."""
    first = tt.functional(net).initial_states(x)
    loop = Looped(lambda states, x: run(states, x)[::-1], lambda x: first)
    return Streamed(f"{OURS}, {name}", loop.step, loop.reset, "states given and returned")


def _ahead_of_time(net: Net, x: Tensor, path: Path) -> Callable[..., Any]:
    """A timestep as a package of machine code."""
    step = tt.functional(net)
    program = torch.export.export(step, (step.initial_states(x), x))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    loaded: Callable[..., Any] = torch._inductor.aoti_load_package(package)
    return loaded


def lstm() -> Streamed:
    """The cell of torch, as a user streams through it."""
    cell, last = nn.LSTMCell(IN, HIDDEN), nn.Linear(HIDDEN, OUT)

    def advance(state: Any, x: Tensor) -> tuple[Any, Tensor]:
        state = cell(x, state)
        return state, last(state[0])

    loop = Looped(advance, lambda x: None)
    return Streamed("nn.LSTMCell", loop.step, loop.reset, "another model: LSTMCell, Linear")


def snntorch(net: Net) -> Streamed:
    """The same net of snnTorch's ``Leaky``, with our weights."""
    import snntorch
    from snntorch import surrogate

    def leaky(**options: Any) -> nn.Module:
        spikes = surrogate.sigmoid(slope=SLOPE)
        made: nn.Module = snntorch.Leaky(
            beta=BETA, threshold=THRESHOLD, spike_grad=spikes, init_hidden=True, **options
        )
        return made

    hidden = leaky(reset_delay=False)
    out = leaky(reset_mechanism="none", output=True)
    first, last = net.net[0], net.net[2]

    def step(x: Tensor) -> Tensor:
        y: Tensor = out(last(hidden(first(x))))[1]
        return y

    def reset() -> None:
        for layer in (hidden, out):
            layer.mem = torch.zeros(0)

    return Streamed("snnTorch", step, reset, "Leaky, a second one for the sums", peer=True)


def render(data: Data) -> str:
    """The table."""
    return f"{ABOUT}\n\n{comparison(data)}"
