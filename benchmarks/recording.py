"""What a recording of two states costs: an unrolled forward pass with it and without."""

from __future__ import annotations

from collections.abc import Callable

import tracetorch as tt
from torch import Tensor, nn
from tracetorch import snn

from benchmarks.effort import Context
from benchmarks.harness import OURS, Contender, Data, Rounds, Seconds, compare, inference
from benchmarks.tables import comparison
from benchmarks.workload import Shape, linear, network_input, neuron_input

TITLE = "Recording"
ABOUT = """\
`with tt.record(model, "lif.syn", "lif.mem"): model.unroll(x)`, a layer with two states (SLIB) after
a linear layer N → N and alone, without gradients. What is recorded is twice what it puts out."""

RECORDED = "recorded: two states of one layer"


class Network(tt.Model):
    """The linear layer of the common workload and a layer with two states, or the layer alone."""

    def __init__(self, neurons: int, *, alone: bool = False) -> None:
        super().__init__()
        self.linear: nn.Module = nn.Identity() if alone else linear(neurons)
        self.lif = snn.SLIB(neurons, alpha=0.5, beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        y: Tensor = self.lif(self.linear(x))
        return y


def measure(context: Context) -> Data:
    """The network and the layer alone."""
    shape, rounds = Shape(context.effort.timesteps), context.effort.brief
    return {
        "shape": str(shape),
        "network": compared(shape, rounds, alone=False),
        "layer": compared(shape, rounds, alone=True),
    }


def compared(shape: Shape, rounds: Rounds, *, alone: bool) -> Data:
    """With the recording and without."""
    model = Network(shape.neurons, alone=alone)
    x = neuron_input(shape) if alone else network_input(shape)

    def run() -> Tensor:
        y: Tensor = model.unroll(x)
        return y

    def recorded() -> tuple[Tensor, tt.Recording]:
        with tt.record(model, "lif.syn", "lif.mem") as rec:
            return run(), rec

    return compare(
        [
            Contender(OURS, _passes(run, model)),
            Contender(RECORDED, _passes(recorded, model)),
        ],
        rounds,
    )


def _passes(run: Callable[[], object], model: tt.Model) -> Callable[[], Seconds]:
    return inference(run, model.zero_states)


def render(data: Data) -> str:
    """The tables."""
    parts = [ABOUT]
    for key, what in (("network", "Linear and layer"), ("layer", "The layer alone")):
        parts += [f"### {what}, {data['shape']}", comparison(data[key], remarks=False)]
    return "\n\n".join(parts)
