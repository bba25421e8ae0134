"""How a net learned, and what it hears in one sound. Knows no file of audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import tracetorch as tt
from bird_corpus import Classes
from bird_nets import HOP, PATCH, SHOWN, BirdNet, patches
from bird_sounds import SAMPLE_RATE, WINDOW_SECONDS
from bird_streams import listening
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from tracetorch import plot

FRAME_RATE = SAMPLE_RATE / HOP
MANY = 20  # labels, of which those with the highest scores are drawn


def heard_over_time(net: BirdNet, kind: str, frames: Tensor) -> tuple[Tensor, Tensor]:
    """What the shown layer puts out ``[T, N]``, and probabilities ``[T, labels]``, of one sound."""
    name, home = f"{SHOWN[kind][0]}.out", next(net.parameters()).device
    with listening(net), tt.record(net, name) as recorded:
        logits = net.unroll(patches(frames[None].to(home)))[:, 0]
    return recorded[name][:, 0].cpu(), logits.sigmoid().cpu()


def save_figure(
    file: Path,
    net: BirdNet,
    kind: str,
    labels: Sequence[str],
    frames: Tensor,
    seconds: float,
    title: str,
    curves: Mapping[str, Sequence[float]],
    truth: Mapping[int, Classes] | None = None,
) -> None:
    """The learning curve, if there is one; frames of a sound and what the net makes of it.

    Args:
        file: where.
        net: that listens.
        kind: of it, a key of ``NETS``.
        labels: of its classes.
        frames: of the sound, ``[frames, bands]``.
        seconds: of it, the silence that fills up the last window left out.
        title: what the sound is.
        curves: by name, a value for each epoch.
        truth: by window, the classes that are heard, if it is known.
    """
    out, chances = heard_over_time(net, kind, frames)
    end = round(seconds * FRAME_RATE)
    figure = Figure(figsize=(9.0, 10.0 if curves else 8.0), layout="constrained")
    panels = iter(figure.subplots(4 if curves else 3, 1))
    if curves:
        plot.training(curves, ax=next(panels)).set_title("learning")
    above, middle, below = panels
    loudness = (frames[:end] - frames[:end].quantile(0.01)).clamp(min=0)
    in_seconds(plot.heatmap(loudness, ax=above), FRAME_RATE, seconds)
    above.set(title=f"{title}: logarithm of power", ylabel="mel band")
    out, spikes = out[: end // PATCH], SHOWN[kind][1]
    usual = out.abs().quantile(0.99)  # a few values are far larger
    shown = (
        plot.raster(out, ax=middle) if spikes else plot.heatmap(out.clamp(-usual, usual), ax=middle)
    )
    in_seconds(shown, FRAME_RATE / PATCH, seconds)
    middle.set_title("spikes of the hidden layer" if spikes else "output of the second state space")
    _labelled(below, chances[: end // PATCH], labels, truth)
    in_seconds(below, FRAME_RATE / PATCH, seconds)
    figure.savefig(file, dpi=90)


def _labelled(
    ax: Axes, chances: Tensor, labels: Sequence[str], truth: Mapping[int, Classes] | None
) -> None:
    """Probabilities by label; a frame around each window in which it is really heard."""
    shown = chances.amax(0).topk(min(MANY, len(labels))).indices.sort().values.tolist()
    plot.heatmap(chances[:, shown], ax=ax)
    ax.set_yticks(range(len(shown)), [labels[place] for place in shown])
    ax.set(title="probabilities" + ("; framed: heard" if truth else ""), ylabel="")
    width = WINDOW_SECONDS * FRAME_RATE / PATCH
    for window, classes in (truth or {}).items():
        for row in (shown.index(place) for place in classes if place in shown):
            corner = (window * width - 0.5, row - 0.5)
            ax.add_patch(Rectangle(corner, width, 1, fill=False, edgecolor="tab:red"))


def in_seconds(ax: Axes, rate: float, seconds: float) -> None:
    """Ticks of a time axis, in seconds instead of timesteps of so many a second."""
    step = next(step for step in (1, 2, 5, 10, 60, 600) if seconds / step <= 12 or step == 600)
    ticks = torch.arange(0, seconds + 1e-6, step)
    ax.set_xticks((ticks * rate - 0.5).tolist(), [f"{tick:g}" for tick in ticks.tolist()])
    ax.set_xlabel("seconds")
