"""The stepped loop, as users write it: one call of the neuron a timestep."""

from __future__ import annotations

from benchmarks import legacy
from benchmarks.effort import Context
from benchmarks.harness import Contender, Data, applied, compare, inference
from benchmarks.onm import Case, old_contender, old_version, share_differing
from benchmarks.peers import EVERYONE, Neuron, looped
from benchmarks.tables import comparison
from benchmarks.workload import Shape, cotangent, neuron_input

TITLE = "The stepped loop"
ABOUT = """\
`for x_t in x: neuron(x_t)` with the outputs stacked; no unrolling, no multi-step mode."""


def measure(context: Context) -> Data:
    """Training and inference; spikes are compared before."""
    shape = Shape(context.effort.timesteps)
    keys = ["ours", "plain", "plain_compiled", *context.peers]
    cases = [stepped(EVERYONE[key](shape), shape) for key in keys]
    expected = cases[0].spikes()
    shares: Data = {c.neuron.name: share_differing(c, expected) for c in cases}
    trained = [c.contender(cotangent(shape)) for c in cases]
    if context.worker is not None:
        shares[legacy.NAME] = old_version(context.worker, shape, expected, with_linear=False)
        trained.append(old_contender(context.worker))
    rounds = context.effort.rounds
    return {
        "shape": str(shape),
        "differing": shares,
        "training": compare(trained, rounds),
        "inference": compare([inferring(c) for c in cases], rounds),
    }


def stepped(neuron: Neuron, shape: Shape) -> Case:
    """The loop over calls of a neuron."""
    x = neuron_input(shape).requires_grad_()
    return Case(neuron, looped(neuron.step), x, [x, *neuron.parameters])


def inferring(case: Case) -> Contender:
    """Its forward pass without gradients."""
    neuron = case.neuron
    measure = inference(applied(case.run, case.x), neuron.reset)
    return Contender(neuron.name, measure, neuron.note, neuron.peer)


def render(data: Data) -> str:
    """The tables."""
    parts = [ABOUT]
    for kind in ("training", "inference"):
        text = comparison(data[kind], differing=data["differing"])
        parts += [f"### {kind.capitalize()}, {data['shape']}", text]
    return "\n\n".join(parts)
