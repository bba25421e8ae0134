"""The LIF neuron of each library, configured to be one and the same model; and plain loops.

Soft reset by the threshold, decay 0.9, threshold 1, sigmoid surrogate where the library has one. A
peer is imported when its neuron is made: those that are not installed are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import snn

from benchmarks.harness import OURS
from benchmarks.workload import BETA, SLOPE, THRESHOLD, Shape, plain_loop, plain_step

CHUNK = 10  # timesteps in one compiled graph
PART = 50  # timesteps at a time where memory is to be bounded

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Neuron:
    """A LIF layer of some library.

    Attributes:
        name: of the library.
        sequence: ``[T, B, N]`` → spikes ``[T, B, N]``, as the library runs sequences.
        step: one timestep ``[B, N]`` → spikes ``[B, N]``, its state kept.
        reset: back to fresh states.
        parameters: what is learned.
        note: how it is configured, and how it differs.
        same: whether its spikes must be those of ``LIB``.
        peer: whether it is another library.
        behind: how the library runs a linear layer and then this one over a sequence, where that is
            not to apply one to the whole sequence, then the other.
    """

    name: str
    sequence: Run
    step: Run
    reset: Callable[[], Any]
    parameters: Sequence[Tensor] = ()
    note: str = ""
    same: bool = True
    peer: bool = True
    behind: Callable[[torch.nn.Linear], Run] | None = None

    def after(self, linear: torch.nn.Linear) -> Run:
        """The sequence through a linear layer and this one."""
        if self.behind is not None:
            return self.behind(linear)
        return lambda x: self.sequence(linear(x))


def looped(step: Run) -> Run:
    """A sequence as the loop over timesteps."""
    return lambda x: torch.stack([step(timestep) for timestep in x.unbind(0)])


# ------------------------------------------------------------------ traceTorch


class Network(tt.Model):
    """Linear, then spikes: one timestep."""

    def __init__(self, linear: torch.nn.Linear, layer: tt.Layer) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(linear, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes ``[B, N]`` of one timestep ``[B, N]``."""
        y: Tensor = self.net(x)
        return y


def ours(shape: Shape) -> Neuron:
    """``LIB``, its decays and thresholds learned, one per neuron."""
    layer = snn.LIB(shape.neurons, BETA, THRESHOLD)
    return Neuron(
        OURS,
        layer.unroll,
        layer,
        layer.zero_states,
        list(layer.parameters()),
        "LIB; N decays and N thresholds learned as well",
        peer=False,
        behind=lambda linear: Network(linear, layer).unroll,
    )


def eager(run: Run) -> Run:
    """The same without the engine."""

    def unfused(x: Tensor) -> Tensor:
        with tt.backends.use("eager"):
            return run(x)

    return unfused


def ours_eager(shape: Shape) -> Neuron:
    """``LIB`` without the engine."""
    fused = ours(shape)
    return Neuron(
        f"{OURS}, eager",
        eager(fused.sequence),
        fused.step,
        fused.reset,
        fused.parameters,
        "the same layer, its step in a loop",
        peer=False,
        behind=lambda linear: eager(fused.after(linear)),
    )


def ours_chunked(shape: Shape, *, recompute: bool = False) -> Neuron:
    """``LIB``, a part of the timesteps at a time."""
    whole = ours(shape)
    options = f"chunk_size={PART}" + ", recompute=True" * recompute
    return dataclasses.replace(
        whole,
        name=f"{OURS}, {options}",
        note=f"unroll(x, {options})",
        behind=lambda linear: functools.partial(
            whole.after(linear), chunk_size=PART, recompute=recompute
        ),
    )


# ------------------------------------------------------------------ plain torch


@dataclass
class Looped:
    """A state kept between calls of a function ``(state, x) → (state, y)``."""

    function: Callable[[Any, Tensor], tuple[Any, Tensor]]
    first: Callable[[Tensor], Any] = torch.zeros_like
    state: Any = field(default=None, init=False)

    def reset(self) -> None:
        """Forget the state."""
        self.state = None

    def step(self, x: Tensor) -> Tensor:
        """One timestep."""
        state = self.first(x) if self.state is None else self.state
        self.state, y = self.function(state, x)
        return y


def plain(shape: Shape) -> Neuron:
    """The loop a user would write, scalars for constants."""
    del shape
    loop = Looped(plain_step)
    return Neuron(
        "plain loop",
        lambda x: plain_loop(torch.zeros_like(x[0]), x)[1],
        loop.step,
        loop.reset,
        note="torch alone; constant decay and threshold",
        peer=False,
    )


def plain_compiled(shape: Shape) -> Neuron:
    """The same loop through ``torch.compile``: sequences in chunks, single steps one by one."""
    torch.compiler.reset()
    chunk = torch.compile(plain_loop, fullgraph=True, dynamic=False)
    loop = Looped(torch.compile(plain_step, fullgraph=True, dynamic=False))

    def sequence(x: Tensor) -> Tensor:
        mem, parts = torch.zeros_like(x[0]), []
        for part in torch.split(x, CHUNK):
            mem, spikes = chunk(mem, part)
            parts.append(spikes)
        return torch.cat(parts)

    return Neuron(
        "plain loop, torch.compile",
        sequence,
        loop.step,
        loop.reset,
        note=f"{CHUNK} timesteps a graph (one where stepped); compilation not counted",
        peer=False,
    )


# ------------------------------------------------------------------ other libraries


def snntorch(shape: Shape) -> Neuron:
    """``Leaky`` of snnTorch, reset within the timestep."""
    return _leaky("snnTorch", reset_delay=False, note="Leaky(reset_delay=False); a loop")


def snntorch_delayed(shape: Shape) -> Neuron:
    """``Leaky`` of snnTorch as it comes: reset in the next timestep, after the decay."""
    note = "Leaky as it comes: it resets a timestep later, so its spikes are others"
    return _leaky("snnTorch, delayed reset", reset_delay=True, note=note)


def _leaky(name: str, *, reset_delay: bool, note: str) -> Neuron:
    import snntorch
    from snntorch import surrogate

    layer = snntorch.Leaky(
        beta=BETA,
        threshold=THRESHOLD,
        spike_grad=surrogate.sigmoid(slope=SLOPE),
        init_hidden=True,
        reset_mechanism="subtract",
        reset_delay=reset_delay,
    )

    def reset() -> None:
        layer.mem = torch.zeros(0)

    return Neuron(name, looped(layer), layer, reset, note=note, same=not reset_delay)


def spikingjelly(shape: Shape) -> Neuron:
    """SpikingJelly's ``LIFNode``, multi-step."""
    del shape
    from spikingjelly.activation_based import neuron, surrogate

    def node(mode: str) -> Any:
        return neuron.LIFNode(
            tau=1 / (1 - BETA),
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=None,
            surrogate_function=surrogate.Sigmoid(alpha=SLOPE),
            step_mode=mode,
        )

    whole, single = node("m"), node("s")

    def reset() -> None:
        whole.reset()
        single.reset()

    return Neuron("SpikingJelly", whole, single, reset, note="LIFNode, multi-step; v - v/τ rounds")


def norse(shape: Shape) -> Neuron:
    """Norse's ``LIFBoxCell``: its membrane is a tenth of ours, and so is its threshold."""
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
    from norse.torch.functional.reset import reset_subtract
    from norse.torch.module.lif_box import LIFBoxCell

    rate = 1 - BETA
    cell = LIFBoxCell(
        LIFBoxParameters(
            tau_mem_inv=torch.tensor(rate / 1e-3),
            v_th=torch.tensor(rate * THRESHOLD),
            reset_method=reset_subtract,
        )
    )

    def advance(state: Any, x: Tensor) -> tuple[Any, Tensor]:
        y, state = cell(x, state)
        return state, y

    loop = Looped(advance, lambda x: LIFBoxFeedForwardState(v=torch.zeros_like(x)))

    def sequence(x: Tensor) -> Tensor:
        loop.reset()
        return looped(loop.step)(x)

    note = "LIFBoxCell, soft reset, SuperSpike; a loop"
    return Neuron("Norse", sequence, loop.step, loop.reset, note=note)


def sinabs(shape: Shape) -> Neuron:
    """Sinabs' ``LIF`` with single spikes; it takes ``[B, T, N]``."""
    from sinabs.activation import MembraneSubtract, SingleSpike
    from sinabs.layers import LIF

    layer = LIF(
        tau_mem=-1 / math.log(BETA),
        spike_threshold=torch.tensor(THRESHOLD),
        spike_fn=SingleSpike,
        reset_fn=MembraneSubtract(),
        norm_input=False,
        shape=(shape.batch, shape.neurons),
    )

    def reset() -> None:
        layer.init_state_with_shape((shape.batch, shape.neurons))

    return Neuron(
        "Sinabs",
        lambda x: layer(x.transpose(0, 1)).transpose(0, 1),
        lambda x: layer(x.unsqueeze(1)).squeeze(1),
        reset,
        [p for p in layer.parameters() if p.requires_grad],
        "LIF, SingleSpike, norm_input=False; one decay learned",
    )


Make = Callable[[Shape], Neuron]

OWN: dict[str, Make] = {"ours": ours, "ours_eager": ours_eager}
CHUNKED: dict[str, Make] = {
    "ours_chunked": ours_chunked,
    "ours_recomputed": functools.partial(ours_chunked, recompute=True),
}
PLAIN: dict[str, Make] = {"plain": plain, "plain_compiled": plain_compiled}
PEERS: dict[str, Make] = {
    "snntorch": snntorch,
    "snntorch_delayed": snntorch_delayed,
    "spikingjelly": spikingjelly,
    "norse": norse,
    "sinabs": sinabs,
}
EVERYONE: dict[str, Make] = {**OWN, **CHUNKED, **PLAIN, **PEERS}
DISTRIBUTIONS = ("snntorch", "spikingjelly", "norse", "sinabs", "mambapy")


def installed() -> list[str]:
    """The keys of ``PEERS`` that can be imported here."""
    names = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return [key for key in PEERS if key.split("_")[0] in names]
