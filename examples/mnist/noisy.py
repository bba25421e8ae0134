"""Noisy digits: every timestep is another view, so noisy that one alone is often misread.

A spiking net gathers what it sees and answers after every view. The same net without a memory sees
the same views and answers each by itself: the best that a single view is good for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
import tracetorch as tt
import training
from digits import CLASSES, Digits
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tracetorch import plot, snn

GATHERING, ALONE, VOTES = "gathering", "each view alone", "votes of those so far"
LONGER = 2  # the test shows so many times as many views as are learnt from
DRAWN = (1, 4, 16)  # views in the figure, on average


class Nets(tt.Model):
    """Two nets that see the same views and share nothing: one remembers, one cannot."""

    def __init__(self) -> None:
        super().__init__()
        spiking = [snn.LIB(size, 0.9, 1.0, dim=-3, threshold_rank=0) for size in (16, 32)]
        self.gathering = nn.Sequential(*convolutions(*spiking), snn.LI(CLASSES, 0.95))
        self.alone = convolutions(nn.ReLU(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """A view ``[B, 1, 28, 28]`` → class scores of either net ``[B, 2, 10]``."""
        return torch.stack([self.gathering(x), self.alone(x)], dim=1)


def convolutions(first: nn.Module, second: nn.Module) -> nn.Sequential:
    """``[B, 1, 28, 28]`` → class scores ``[B, 10]``; what follows the convolutions is given."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        first,
        nn.Conv2d(16, 32, 3),
        second,
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 5 * 5, CLASSES),
    )


def noisy(
    images: Tensor, views: int, noise: float, generator: torch.Generator | None = None
) -> Tensor:
    """``[B, 1, 28, 28]`` → ``[views, B, 1, 28, 28]``: each with Gaussian noise of its own.

    Args:
        images: in 0…1.
        views: how many of each, at least 1.
        noise: its standard deviation.
        generator: of the noise; None: torch's own.
    """
    drawn = torch.randn(views, *images.shape, generator=generator)
    return images + noise * drawn.to(images.device)


def every_answer(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of both nets' scores ``[T, B, 2, 10]`` after every view, on average."""
    wanted = labels[None, :, None].expand(scores.shape[:-1])
    return F.cross_entropy(scores.flatten(0, -2), wanted.flatten())


@torch.no_grad()
def accuracies(model: Nets, test: Digits, views: int, noise: float) -> dict[str, Tensor]:
    """The share that is recognised after each of so many views ``[views]``, in 0…1.

    The noise is the same whatever the seed of a run. Votes add up the log-probabilities that the
    net without a memory gives to the classes.
    """
    model.eval()
    generator = torch.Generator().manual_seed(training.command_line.HELD_OUT_SEED)
    right: dict[str, list[Tensor]] = {GATHERING: [], ALONE: [], VOTES: []}
    parts = (part.split(training.EVALUATION_BATCH) for part in test)
    for images, labels in zip(*parts, strict=True):
        scores = training.answers(model, noisy(images, views, noise, generator))
        gathering, alone = scores.log_softmax(-1).unbind(2)
        for name, answer in {GATHERING: gathering, ALONE: alone, VOTES: alone.cumsum(0)}.items():
            right[name].append(answer.argmax(-1) == labels)
    return {name: torch.cat(found, 1).float().mean(1).cpu() for name, found in right.items()}


# ------------------------------------------------------------------ what is shown


def table(curves: dict[str, Tensor]) -> str:
    """Percentages after 1, 2, 4, … views."""
    views = len(next(iter(curves.values())))
    counts = [2**power for power in range(views.bit_length())]
    rows = [f"{'views':24}" + "".join(f"{count:>7}" for count in counts)]
    for name, curve in curves.items():
        rows.append(f"{name:24}" + "".join(f"{100 * curve[n - 1].item():7.1f}" for n in counts))
    return "\n".join(rows)


def save_figure(digit: Tensor, noise: float, curves: dict[str, Tensor], file: Path) -> None:
    """A digit ``[1, 1, 28, 28]``, what is seen of it, and accuracy over views."""
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    shown = [f"{count} views" for count in DRAWN]
    axes = figure.subplot_mosaic([["digit", *shown], ["curves"] * (1 + len(DRAWN))])
    views = noisy(digit, max(DRAWN), noise, torch.Generator().manual_seed(0))
    _draw(axes["digit"], digit, "a digit")
    for name, count in zip(shown, DRAWN, strict=True):
        title = "one view of it" if count == 1 else f"mean of {count} views"
        _draw(axes[name], views[:count].mean(0), title)
    percent = {name: 100 * curve for name, curve in curves.items()}
    plot.training(percent, xlabel="views", ylabel="held-out digits, %", ax=axes["curves"])
    figure.savefig(file, dpi=100)


def _draw(ax: Axes, image: Tensor, title: str) -> None:
    ax.imshow(image[0, 0].cpu().numpy(), cmap="gray_r")
    ax.set_axis_off()
    ax.set_title(title)


# ------------------------------------------------------------------ command line


@training.command_line.errors_in_a_line()
def run(options: argparse.Namespace) -> None:
    """Learn, draw and say, by the command line's options."""
    train, test = training.loaded(options)
    torch.manual_seed(options.seed)
    model = Nets().to(options.device)
    training.fit(
        model,
        lambda images: noisy(images, options.views, options.noise),
        every_answer,
        train,
        options,
        must_agree=("views", "noise"),
    )
    curves = accuracies(model, test, LONGER * options.views, options.noise)
    save_figure(test.images[:1], options.noise, curves, options.figure)
    print(f"figure: {options.figure}")
    print(f"accuracy on {len(test.labels)} held-out digits in %, with noise of {options.noise}")
    print(table(curves))


def main() -> None:
    """Read the command line."""
    parser = training.parser(__file__, __doc__, epochs=3, learning_rate=4e-3)
    parser.option("--views", training.positive, 16, "of each digit to learn from")
    above_zero = training.command_line.above_zero
    parser.option("--noise", above_zero, 1.5, "standard deviation; ink is 1, paper 0")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
