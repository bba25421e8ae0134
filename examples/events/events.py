"""Recordings of an event camera, told apart by spiking nets: ternary spikes against binary ones.

By default shapes move in one of eight directions, which no single frame tells. ``--data`` takes the
digits of N-MNIST, ``--tonic`` a data set of the library tonic. Nets of equal parameters learn from
the same recordings in the same order: in one the polarity of an event is its sign, from the frames
through all layers, in the other it is told by two channels.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import tracetorch as tt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm
from tracetorch import plot
from tracetorch.measures import energy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import binning
import moving
import nmnist
import tonic_sets
from common import command_line
from common.command_line import HELD_OUT_SEED
from event_learner import Frames, Learner
from event_recordings import Split
from polarity_nets import FIRING, matched

HELD_OUT = 400  # moving shapes
SHOWN, SHOWN_OF_A_ROW = 6, 100  # parts of a recording in the figure
MUST_AGREE = (
    "source",
    "layers",
    "frames",
    "bin",
    "recordings",
    "shift",
    "shuffle_time",
    "batch_size",
    "learning_rate",
    "seed",
)


# ------------------------------------------------------------------ learning


class Run:
    """A learner for each kind of layers, and how far they are; goes on from a checkpoint."""

    def __init__(self, options: argparse.Namespace, split: Split) -> None:
        torch.manual_seed(options.seed)
        self.batch_size = options.batch_size
        self.frames = in_bins(split, options)
        self.learners = {
            name: Learner(
                matched(name, split.train.sensor, frames.train.shape[2], split.train.classes),
                frames,
                options,
            )
            for name, frames in self.frames.items()
        }
        self.order = torch.Generator().manual_seed(options.seed)
        self.checkpoint = command_line.Checkpoint(
            options,
            MUST_AGREE,
            nn.ModuleDict({name: learner.net for name, learner in self.learners.items()}),
            order=self.order,
            checksum_of_recordings=checksum(self.frames),
            **{f"optimizer of {name}": one.optimizer for name, one in self.learners.items()},
            **{f"schedule of {name}": one.schedule for name, one in self.learners.items()},
        )
        position: dict[str, Any] = self.checkpoint.begin()
        self.epoch: int = position.get("epoch", 0)
        for name, learner in self.learners.items():
            if position:
                learner.curve = position["curves"][name]
            else:
                learner.calibrate(self.batch_size)

    @property
    def curves(self) -> dict[str, list[float]]:
        """Accuracy on the held-out recordings after every epoch, in 0…1."""
        return {name: learner.curve for name, learner in self.learners.items()}

    def advance(self) -> None:
        """All recordings once, by every net, in the same order; then those held out."""
        count = len(next(iter(self.frames.values())).train)
        order = torch.randperm(count, generator=self.order)
        bar = tqdm(order.split(self.batch_size), desc=f"epoch {self.epoch + 1}")
        for chosen in bar:
            drawn = int(torch.randint(HELD_OUT_SEED, (), generator=self.order))
            losses = {name: one.learn(chosen, drawn) for name, one in self.learners.items()}
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
        for learner in self.learners.values():
            learner.end_epoch()
        self.epoch += 1
        self.checkpoint.save(epoch=self.epoch, curves=self.curves)


def in_bins(split: Split, options: argparse.Namespace) -> dict[str, Frames]:
    """By the net's layers, both parts in as many bins as the longest recording of either takes.

    Raises:
        ValueError: a bin is shorter than a microsecond, or there would be too many.
    """
    duration = round(1000 * options.bin)
    if duration < 1:
        raise ValueError(f"--bin must be at least 0.001 ms, got {options.bin}")
    timesteps = max(binning.timesteps_of(part, duration) for part in split)
    kinds = {name: options.frames or fitting_frames(name) for name in options.layers}
    found = {}
    for kind in dict.fromkeys(kinds.values()):
        train, test = (binning.stacked(part, kind, timesteps, duration) for part in split)
        found[kind] = Frames(kind, train, split.train.labels, test, split.test.labels)
    return {name: found[kind] for name, kind in kinds.items()}


def fitting_frames(layer: str) -> str:
    """The kind of frames whose values are those of the layer's spikes."""
    return "binary" if layer.endswith("B") else "ternary"


def checksum(frames: dict[str, Frames]) -> int:
    """Of all that is learned from: a run goes on with the recordings that it began with."""
    found = 0
    for one in frames.values():
        for part in one[1:]:
            found = zlib.crc32(part.numpy().tobytes(), found)
    return found


# ------------------------------------------------------------------ what came of it


def report(run: Run) -> str:
    """What each net takes and what it reached, four lines for each."""
    lines = []
    for name, learner in run.learners.items():
        kind, test = learner.frames.kind, learner.frames.test
        rates, counted = learner.cost()
        dense, macs, acs = (value / counted.samples / 1e6 for value in counted.total)
        lines += [
            f"{name} on {kind} frames: {learner.net.num_parameters().total:,} parameters, "
            f"learned in {learner.seconds:.0f} s of processor time",
            f"  spikes per neuron and timestep: {', '.join(f'{rate:.3f}' for rate in rates)}",
            f"  millions of operations a recording: {dense:.2f} dense, {macs:.2f} MACs, "
            f"{acs:.2f} ACs ({1e6 * energy(counted) / counted.samples:.2f} µJ)",
            f"  test accuracy: {100 * learner.accuracy():.1f} % of {len(test)}",
        ]
    return "\n".join(lines)


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(run: Run, split: Split, file: Path) -> None:
    """A held-out recording, what the first and the last spiking layer answer, the curves."""
    name, learner = next(iter(run.learners.items()))
    x, labels = next(learner.held_out())
    first, last = "spiking.0.out", f"spiking.{len(learner.net.spiking) - 1}.out"
    with tt.record(learner.net, first, last) as recorded:
        learner.net.classify(x[:, :1])
    figure = Figure(figsize=(9.0, 11.0), layout="constrained")
    events, early, late, learning = figure.subplots(4, 1, height_ratios=(3, 4, 6, 6))
    _draw_events(split, events)
    events.set_title(f"a held-out recording of class {labels[0]}: ON minus OFF events")
    if split.test.sensor.height > 1:
        middle = len(x) // 2
        plot.feature_maps(recorded, name=first, timestep=middle, columns=8, ax=early)
        early.set(title=f"{name}: spikes of the first layer at timestep {middle}", yticks=[])
        plot.heatmap(recorded[last].mean((-2, -1)), ax=late)
        late.set(title=f"{name}: means of the last layer's channels", ylabel="channel")
    else:
        plot.heatmap(recorded, name=first, ax=early).set_title(f"{name}: spikes of the first layer")
        plot.heatmap(recorded, name=last, ax=late).set_title(f"{name}: spikes of the last layer")
    plot.training(run.curves, ylabel="accuracy on those held out", ax=learning)
    figure.savefig(file, dpi=100)


def _draw_events(split: Split, ax: Axes) -> None:
    """The first one held out, in parts of equal duration; of a sensor of one row, over time."""
    sensor, events = split.test.sensor, split.test.events[0]
    parts = SHOWN if sensor.height > 1 else SHOWN_OF_A_ROW
    duration = int(events.t[-1]) // parts + 1
    counts = torch.from_numpy(binning.frames(events, sensor, "counts", parts, duration)).float()
    signed = counts[:, -1] - (counts[:, 0] if sensor.polarities > 1 else 0)
    label = f"{parts} parts of its {events.t[-1] / 1000:.0f} ms"
    if sensor.height == 1:
        plot.heatmap(signed[:, 0], label="events", ax=ax).set_xlabel(label)
    else:
        plot.feature_maps(signed, columns=parts, label="events", ax=ax)
        ax.set(xlabel=label, ylabel="", xticks=[], yticks=[])


# ------------------------------------------------------------------ command line


def parser() -> command_line.CommandLine:
    """The options."""
    found = command_line.CommandLine(__file__, __doc__)
    positive, above_zero = command_line.positive, command_line.above_zero
    found.option("--data", command_line.folder, None, "of N-MNIST, or where tonic keeps its sets")
    found.option("--tonic", str, None, "a data set of tonic: SHD, NMNIST, DVSGesture, ...")
    found.add_argument(
        "--layers",
        nargs="+",
        choices=sorted(FIRING),
        default=["LIT", "LIB"],
        metavar="NAME",
        help="spiking layers, a net for each name: LIT, DLIT, SLITS, ..., LIB, ... (LIT LIB)",
    )
    found.option(
        "--frames", str, None, "what all nets see; as fits their spikes without", binning.KINDS
    )
    found.option("--bin", above_zero, 10.0, "duration of a timestep, in ms")
    found.option("--recordings", positive, 1600, "of moving shapes to learn from")
    found.option("--shift", pixels, 1, "pixels by which recordings are moved, at most")
    found.add_argument(
        "--shuffle-time", action="store_true", help="timesteps in an order of chance"
    )
    found.option("--epochs", positive, 10, "passes over the recordings, from the run's beginning")
    found.option("--batch-size", positive, 50, "recordings per step of the optimizer")
    found.option("--learning-rate", above_zero, 8e-3, "of Adam, at first")
    found.usual()
    found.checkpointed("after every epoch")
    return found


def pixels(text: str) -> int:
    """An integer from 0 to 8."""
    number = int(text)
    if not 0 <= number <= 8:
        raise argparse.ArgumentTypeError(f"must be in 0...8, got {number}")
    return number


def load(options: argparse.Namespace) -> Split:
    """The recordings that are asked for; ``options.source`` says which.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is malformed, or an option is missing.
    """
    if options.tonic:
        if options.data is None:
            raise ValueError("--tonic needs --data, the folder where tonic keeps its sets")
        options.source = f"tonic's {options.tonic}"
        return tonic_sets.load(options.tonic, options.data)
    if options.data:
        options.source = "N-MNIST"
        return nmnist.load(options.data)
    options.source = "moving shapes"
    train = moving.recordings(options.recordings, options.seed)
    return Split(train, moving.recordings(HELD_OUT, HELD_OUT_SEED))


def main() -> None:
    """Learn, draw and measure, by the command line's options."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    with command_line.errors_in_a_line():
        split = load(options)
        run = Run(options, split)
        while run.epoch < options.epochs:
            run.advance()
        save_figure(run, split, options.figure)
    print(f"figure: {options.figure}")
    print(report(run))


if __name__ == "__main__":
    main()
