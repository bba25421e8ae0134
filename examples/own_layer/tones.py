"""Eight pitches in noise, told apart by neurons with a frequency of their own, and by leaky ones.

Two nets of equal size learn from the same tones; they differ in one layer: ``ResonateAndFire`` from
``resonate.py``, which is not part of the library, and ``snn.LIB``, which is. Then the new layer's
generated kernel is timed against its own loop.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import tracetorch as tt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from resonate import ResonateAndFire
from torch import Tensor, nn
from tqdm import tqdm
from tracetorch import plot, snn

PITCHES = torch.linspace(0.06, 0.20, 8)  # cycles per timestep
MISTUNING = 0.004  # at most, up or down: a fifth of the distance between two pitches
NOISE = 0.5  # its standard deviation; a tone's amplitude is 0.5 to 1.5
TIMESTEPS = 200
HELD_OUT, HELD_OUT_SEED = 500, 2**31  # the same tones whatever the seed of a run
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
    """Nets, their optimizers, and how far they are: all that a checkpoint holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.settings = {name: getattr(options, name) for name in MUST_AGREE}
        self.nets = nets(options.neurons)
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), options.learning_rate)
            for name, net in self.nets.items()
        }
        self.generator = torch.Generator().manual_seed(options.seed)
        self.curves: dict[str, list[float]] = {name: [] for name in self.nets}
        self.step = 0

    def advance(self) -> dict[str, str]:
        """One step of each optimizer, on the same tones; their losses."""
        x, pitch = tones(self.settings["batch_size"], self.generator)
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

    def save(self, file: Path) -> None:
        """Everything that the next step depends on; the file is the old one or the new one."""
        parts = {}
        for name, net in self.nets.items():
            net.detach_states()
            parts[name] = {
                "weights": net.state_dict(),
                "optimizer": self.optimizers[name].state_dict(),
                "states": net.get_states(),
            }
        data = self.generator.get_state()
        position = {"step": self.step, "curves": self.curves, "generator": data}
        beside = file.with_name(f"{file.name}.part")
        torch.save({"settings": self.settings, "nets": parts, **position}, beside)
        os.replace(beside, file)

    def load(self, file: Path) -> None:
        """Go on where the file was saved.

        Raises:
            ValueError: it cannot be read, or is of another run; it says which.
        """
        saved = read_checkpoint(file)
        for name, mine in self.settings.items():
            if saved["settings"].get(name) != mine:
                theirs = saved["settings"].get(name)
                raise ValueError(f"{file} is of another run: its {name} is {theirs}, not {mine}")
        for name, net in self.nets.items():
            net.load_state_dict(saved["nets"][name]["weights"])
            self.optimizers[name].load_state_dict(saved["nets"][name]["optimizer"])
            net.set_states(saved["nets"][name]["states"])
        self.generator.set_state(saved["generator"])
        self.step, self.curves = saved["step"], saved["curves"]


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What :meth:`Run.save` wrote.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    try:
        saved = torch.load(file, weights_only=True)
    except Exception as error:  # torch's own are of many kinds, and their words of many lines
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} cannot be read as a checkpoint: {why}") from error
    keys = {"settings", "nets", "step", "curves", "generator"}
    if not isinstance(saved, dict) or saved.keys() != keys or saved["nets"].keys() != {*nets(1)}:
        raise ValueError(f"{file} is no checkpoint of this script")
    return saved


@torch.no_grad()
def accuracy(net: Net) -> float:
    """The share of the held-out tones that are told, in 0…1."""
    x, pitch = tones(HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED))
    return (net.classify(x).argmax(-1) == pitch).float().mean().item()


def learn(run: Run, steps: int, checkpoint: Path | None) -> None:
    """Up to so many steps, counted from the run's beginning."""
    bar = tqdm(range(run.step, steps), initial=run.step, total=steps, desc="learning")
    for _ in bar:
        bar.set_postfix(run.advance())
        if checkpoint and (run.step % SAVE_EVERY == 0 or run.step == steps):
            run.save(checkpoint)


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


def positive(text: str) -> int:
    """An integer from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def step_size(text: str) -> float:
    """A finite number above 0."""
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {rate}")
    return rate


def seed(text: str) -> int:
    """A number that is not the held-out tones' own."""
    number = int(text)
    if not 0 <= number < HELD_OUT_SEED:
        raise argparse.ArgumentTypeError(f"must be in 0...{HELD_OUT_SEED - 1}, got {number}")
    return number


def in_a_folder(text: str) -> Path:
    """A file that can be in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    return path


def figure_file(text: str) -> Path:
    """A file that matplotlib can write."""
    suffixes = sorted(FigureCanvasAgg.filetypes)
    if Path(text).suffix[1:] not in suffixes:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(suffixes)}")
    return in_a_folder(text)


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)

    def add(flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
        parser.add_argument(flag, type=kind, default=default, help=text)

    add("--steps", positive, 2000, "steps of the optimizer, from the run's beginning (%(default)s)")
    add("--neurons", positive, 64, "in the spiking layer of each net (%(default)s)")
    add("--batch-size", positive, 64, "tones per step (%(default)s)")
    add("--learning-rate", step_size, 1e-2, "of Adam (%(default)s)")
    add("--threads", positive, 1, "CPU threads; more only where cores are idle (%(default)s)")
    add("--seed", seed, 0, "of weights and tones, not of the held-out tones (%(default)s)")
    add("--figure", figure_file, Path(__file__).with_suffix(".png"), "where (%(default)s)")
    add("--checkpoint", in_a_folder, None, f"saved every {SAVE_EVERY} steps; none without")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    return parser


def begin(options: argparse.Namespace) -> Run:
    """A new run, or the one in the checkpoint.

    Raises:
        ValueError: the checkpoint does not fit, or would be overwritten.
    """
    run = Run(options)
    if options.resume:
        if options.checkpoint is None:
            raise ValueError("--resume needs the --checkpoint to go on from")
        run.load(options.checkpoint)
    elif options.checkpoint and options.checkpoint.exists():
        raise ValueError(f"{options.checkpoint} exists: go on from it with --resume, or move it")
    return run


def main() -> None:
    """Learn, time, draw and say, by the command line's options."""
    options = command_line().parse_args()
    torch.set_num_threads(options.threads)
    try:
        run = begin(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    learn(run, options.steps, options.checkpoint)
    save_figure(run, options.figure)
    print(f"figure: {options.figure}")
    print(f"speed, forward and backward: {speed(options.neurons, options.batch_size)}")
    for name, net in run.nets.items():
        print(f"{name} neurons: {100 * accuracy(net):.1f} % of {HELD_OUT} held-out tones")


if __name__ == "__main__":
    main()
