"""Eight pitches in noise, told apart by neurons with a frequency of their own, and by leaky ones.

Two nets of equal size learn from the same tones; they differ in one layer: ``ResonateAndFire`` from
``resonate.py``, which is not part of the library, and ``snn.LIB``, which is. Then the new layer's
generated kernel is timed against its own loop.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import tracetorch as tt
from matplotlib.figure import Figure
from resonate import ResonateAndFire
from torch import Tensor, nn
from tqdm import tqdm
from tracetorch import plot, snn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import command_line
from common.command_line import HELD_OUT_SEED

PITCHES = torch.linspace(0.06, 0.20, 8)  # cycles per timestep
MISTUNING = 0.004  # at most, up or down: a fifth of the distance between two pitches
NOISE = 0.5  # its standard deviation; a tone's amplitude is 0.5 to 1.5
TIMESTEPS = 200
HELD_OUT = 500  # the same tones whatever the seed of a run
EVALUATE_EVERY, SAVE_EVERY = 20, 100  # steps of the optimizer
SHARPNESS = 4.0  # spike rates are at most 1: makes class scores of their weighted sums
MUST_AGREE = ("seed", "neurons", "batch_size", "learning_rate")


# ------------------------------------------------------------------ tones


def tones(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sines of any phase and amplitude in noise ``[T, count, 1]``, and their pitches ``[count]``.

    How loud a tone is says nothing about its pitch; one has to listen to its frequency.
    """
    pitch = torch.randint(len(PITCHES), (count,), generator=generator)
    tuning, phase, loudness = torch.rand(3, count, generator=generator)
    frequency = PITCHES[pitch] + MISTUNING * (2 * tuning - 1)
    when = torch.arange(TIMESTEPS)[:, None]
    wave = (0.5 + loudness) * (2 * math.pi * (frequency * when + phase)).sin()
    noise = NOISE * torch.randn(TIMESTEPS, count, generator=generator)
    return (wave + noise)[..., None], pitch


# ------------------------------------------------------------------ nets


class Net(tt.Model):
    """One layer of spiking neurons; the pitch is read from how often each has fired."""

    def __init__(self, neurons: int, spiking: tt.Layer) -> None:
        super().__init__()
        self.inward, self.spiking = nn.Linear(1, neurons), spiking
        self.outward = nn.Linear(neurons, len(PITCHES))

    def forward(self, x: Tensor) -> Tensor:
        """A sample of each tone ``[B, 1]`` → class scores ``[B, 8]``, to be averaged over time."""
        scores: Tensor = self.outward(self.spiking(self.inward(x)))
        return SHARPNESS * scores

    def classify(self, x: Tensor) -> Tensor:
        """Whole tones ``[T, B, 1]`` → class scores ``[B, 8]``, from fresh states."""
        self.zero_states()
        scores: Tensor = self.unroll(x).mean(0)
        return scores


def spread(neurons: int) -> Tensor:
    """A frequency for each neuron, evenly over a little more than the pitches."""
    return torch.linspace(0.04, 0.22, neurons)


def nets(neurons: int) -> dict[str, Net]:
    """Both nets, with the same number of parameters: two for each neuron of either kind.

    The leaky neurons remember for as long as a cycle at the resonating ones' frequencies takes.
    """
    return {
        "resonating": Net(neurons, ResonateAndFire(neurons, frequency=spread(neurons))),
        "leaky": Net(neurons, snn.LIB(neurons, beta=(-spread(neurons)).exp())),
    }


# ------------------------------------------------------------------ learning


class Run:
    """Nets, their optimizers, and how far they are; goes on from a checkpoint if it has to."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.batch_size = options.batch_size
        self.nets = nets(options.neurons)
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), options.learning_rate)
            for name, net in self.nets.items()
        }
        self.generator = torch.Generator().manual_seed(options.seed)
        self.checkpoint = command_line.Checkpoint(
            options,
            MUST_AGREE,
            self.nets["resonating"],
            leaky=self.nets["leaky"],
            generator=self.generator,
            **{f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()},
        )
        curves: dict[str, list[float]] = {name: [] for name in self.nets}
        position = {"step": 0, "curves": curves} | self.checkpoint.begin()
        self.step, self.curves = position["step"], position["curves"]

    def advance(self) -> dict[str, str]:
        """One step of each optimizer, on the same tones; their losses."""
        x, pitch = tones(self.batch_size, self.generator)
        losses = {name: self._learn(name, x, pitch) for name in self.nets}
        self.step += 1
        if self.step % EVALUATE_EVERY == 0:
            for name, net in self.nets.items():
                self.curves[name].append(accuracy(net))
        return {name: f"{loss:.3f}" for name, loss in losses.items()}

    def _learn(self, name: str, x: Tensor, pitch: Tensor) -> float:
        loss = F.cross_entropy(self.nets[name].classify(x), pitch)
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        return loss.item()

    def save(self) -> None:
        """To the checkpoint, if there is one."""
        self.checkpoint.save(step=self.step, curves=self.curves)


@torch.no_grad()
def accuracy(net: Net) -> float:
    """The share of the held-out tones that are told, in 0…1."""
    x, pitch = tones(HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED))
    return (net.classify(x).argmax(-1) == pitch).float().mean().item()


def learn(run: Run, steps: int) -> None:
    """Up to so many steps, counted from the run's beginning."""
    bar = tqdm(range(run.step, steps), initial=run.step, total=steps, desc="learning")
    for _ in bar:
        bar.set_postfix(run.advance())
        if run.step % SAVE_EVERY == 0 or run.step == steps:
            run.save()


# ------------------------------------------------------------------ speed


def speed(neurons: int, batch: int) -> str:
    """A sequence and its gradients: the generated kernel against the layer's own loop."""
    layer = ResonateAndFire(neurons, frequency=spread(neurons))
    x = torch.randn(TIMESTEPS, batch, neurons, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    kernel = best_of(5, lambda: layer.unroll(x), layer)
    state = tt.backends.status(layer)[""]
    loop = best_of(5, lambda: torch.stack([layer(now) for now in x]), layer)
    if state != "ready":
        return f"no kernel: {state}"
    return f"kernel {kernel:.1f} ms, loop {loop:.1f} ms: {loop / kernel:.1f} times as fast"


def best_of(tries: int, sequence: Callable[[], Tensor], layer: tt.Layer) -> float:
    """Milliseconds of the fastest, after one that is not counted."""
    taken = []
    for _ in range(tries + 1):
        layer.zero_states()
        start = time.perf_counter()
        sequence().sum().backward()
        taken.append(1e3 * (time.perf_counter() - start))
    return min(taken[1:])


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(run: Run, file: Path) -> None:
    """Spikes of one tone of each pitch, the swing of three neurons, one in its plane, learning."""
    net = run.nets["resonating"]
    x, pitch = tones(HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED))
    first = [int((pitch == index).nonzero()[0]) for index in range(len(PITCHES))]
    with tt.record(net, "spiking.real", "spiking.imag", "spiking.out") as recorded:
        net.classify(x[:, first])
    frequencies = cast(ResonateAndFire, net.spiking).frequency
    order = frequencies.argsort()
    shown = {name: values[..., order] for name, values in recorded.items()}
    figure = Figure(figsize=(11.0, 9.0), layout="constrained")
    axes = figure.subplot_mosaic([["raster"] * 2, ["swing", "plane"], ["learning"] * 2])
    in_turn = shown["spiking.out"].transpose(0, 1).flatten(0, 1)
    plot.raster(in_turn, ax=axes["raster"]).set(
        title=f"one held-out tone of each pitch, {TIMESTEPS} timesteps each, from low to high",
        ylabel="neuron, from slow to fast",
    )
    _draw_neurons(axes, shown, frequencies[order])
    curves = {f"{name} neurons": curve for name, curve in run.curves.items() if curve}
    if curves:
        count = f"evaluation, one every {EVALUATE_EVERY} steps"
        plot.training(curves, xlabel=count, ylabel="accuracy", ax=axes["learning"])
    figure.savefig(file, dpi=120)


def _draw_neurons(axes: dict[str, Any], shown: dict[str, Tensor], frequencies: Tensor) -> None:
    """A middle pitch, to a neuron tuned to it, a slower and a faster one."""
    middle, last = len(PITCHES) // 2, len(frequencies) - 1
    tuned = int((frequencies - PITCHES[middle]).abs().argmin())
    chosen = [max(0, tuned - last // 5), tuned, min(last, tuned + last // 5)]
    imag, spikes = (shown[f"spiking.{x}"][:, middle, chosen] for x in ("imag", "out"))
    plot.traces(imag, threshold=1.0, spikes=spikes, ax=axes["swing"]).set(
        title=f"a tone of {PITCHES[middle]:.2f} cycles per timestep", ylabel="imag"
    )
    names = [f"tuned to {frequencies[index]:.2f}" for index in chosen]
    axes["swing"].legend(axes["swing"].lines[: len(names)], names, fontsize="small")
    plane = [shown[f"spiking.{x}"][:60, middle] for x in ("real", "imag")]
    plot.phase(*plane, neuron=tuned, names=("real", "imag"), ax=axes["plane"])
    axes["plane"].set(title="the tuned neuron, 60 timesteps", aspect="equal")


# ------------------------------------------------------------------ command line


def parser() -> command_line.CommandLine:
    """The options."""
    found = command_line.CommandLine(__file__, __doc__)
    positive, above_zero = command_line.positive, command_line.above_zero
    found.option("--steps", positive, 2000, "steps of the optimizer, from the run's beginning")
    found.option("--neurons", positive, 64, "in the spiking layer of each net")
    found.option("--batch-size", positive, 64, "tones per step")
    found.option("--learning-rate", above_zero, 1e-2, "of Adam")
    found.usual(on_any_device=False)
    found.checkpointed(f"every {SAVE_EVERY} steps")
    return found


def main() -> None:
    """Learn, time, draw and say, by the command line's options."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    with command_line.errors_in_a_line():
        run = Run(options)
        learn(run, options.steps)
        save_figure(run, options.figure)
    print(f"figure: {options.figure}")
    print(f"speed, forward and backward: {speed(options.neurons, options.batch_size)}")
    for name, net in run.nets.items():
        print(f"{name} neurons: {100 * accuracy(net):.1f} % of {HELD_OUT} held-out tones")


if __name__ == "__main__":
    main()
