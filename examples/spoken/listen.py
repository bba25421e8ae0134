"""A net listens to utterances of different lengths and says which class each is of.

By default nine speakers are told apart by two vowels (JapaneseVowels, from the wheel of aeon);
``--data`` takes a folder of spoken digits, or of another set in .ts files. The net is spiking, a
state space model, or torch's GRU, of equally many parameters and trained in the same way.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import spoken_digits
import timeseries
import torch
from common.command_line import (
    CommandLine,
    above_zero,
    errors_in_a_line,
    folder,
    positive,
)
from listeners import LISTENERS
from listening import SAVE_EVERY, Run, described
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tracetorch import plot
from utterances import Corpus, batch_of, rehearsal

# ------------------------------------------------------------------ data


def corpus_of(options: argparse.Namespace) -> Corpus:
    """That of the options ``data``, ``held_out`` and ``rehearse``; its name becomes an option.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is something else than it should be.
    """
    place: Path = options.data or timeseries.japanese_vowels()
    if any(place.glob("*.wav")):
        corpus = spoken_digits.load(place, options.held_out)
    elif options.held_out:
        raise ValueError(
            "--held-out is for spoken digits: the speakers of a .ts file are not known"
        )
    elif any(place.glob("*.ts")):
        corpus = timeseries.load(place)
    else:
        raise ValueError(f"{place} holds neither .wav nor .ts files")
    if options.rehearse:
        corpus = rehearsal(corpus)
    options.corpus = str(corpus)
    return corpus


# ------------------------------------------------------------------ the figure


@torch.no_grad()
def save_figure(run: Run, file: Path) -> None:
    """The learning curve, what was taken for what, and one utterance with what it called forth."""
    x, lengths, _ = batch_of(run.corpus.test, [0]).to(run.options.device)
    run.net.eval()
    within = run.net.within(x, lengths)
    figure = Figure(figsize=(10.0, 3.5 + 2.5 * (1 + len(within))), layout="constrained")
    rows = [["learning", "confusion"], ["heard"] * 2, *([name] * 2 for name in within)]
    axes = figure.subplot_mosaic(rows, height_ratios=[1.4, *[1.0] * (1 + len(within))])
    plot.training({"accuracy": run.curve}, ylabel="on what is held out", ax=axes["learning"])
    confusion(run, axes["confusion"])
    said = run.corpus.classes[int(run.corpus.test.classes[0])]
    heard = plot.heatmap(run.net.front(x)[:, 0].cpu(), label="deviations", ax=axes["heard"])
    heard.set(title=f"an utterance of class {said}, as the net gets it", ylabel="feature")
    for title, out in within.items():
        draw = plot.raster if run.options.model == "spiking" else plot.heatmap
        draw(out[:, 0].cpu(), ax=axes[title]).set(title=title)
    figure.savefig(file, dpi=110)


def confusion(run: Run, ax: Axes) -> None:
    """What each class of the held-out utterances was taken for."""
    counts, names = run.tested().confusion, run.corpus.classes
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    ax.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    for true, taken in counts.nonzero().tolist():
        colour = "white" if shares[true, taken] > 0.5 else "black"
        number = str(counts[true, taken].item())
        ax.text(taken, true, number, ha="center", va="center", color=colour, fontsize="x-small")
    ax.set(xlabel="taken for", ylabel="class", xticks=range(len(names)), yticks=range(len(names)))
    ax.set_xticklabels(names)
    ax.set_yticklabels(names)


# ------------------------------------------------------------------ command line


def command_line(script: str, description: str | None) -> CommandLine:
    """The options of a run, but for the net's kind."""
    parser = CommandLine(script, description)
    parser.option(
        "--data", folder, None, "with spoken digits (.wav) or NAME_TRAIN.ts, NAME_TEST.ts"
    )
    parser.add_argument(
        "--held-out", nargs="+", default=[], metavar="SPEAKER", help="test on these, learn the rest"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="test on a fifth of what there is to learn from"
    )
    parser.option("--neurons", positive, 64, "of the GRU; the others get as many parameters")
    parser.option("--epochs", positive, 40, "in which the step size rises and falls to zero")
    parser.option("--batch-size", positive, 32, "utterances per step of the optimizer")
    parser.option("--learning-rate", above_zero, 2e-2, "its largest step size, of AdamW")
    parser.usual()
    return parser


def main() -> None:
    """Learn, test, count and draw, by the command line's options."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model", choices=[*LISTENERS], default="spiking", help="(%(default)s)")
    parser.checkpointed(f"every {SAVE_EVERY} epochs and at the end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with errors_in_a_line():
        corpus = corpus_of(options)
        run = Run(options, corpus)
        print(corpus)
        print(described(run.net))
        run.learn()
        save_figure(run, options.figure)
        print(f"figure: {options.figure}")
        activity = run.activity()
        print(activity)
        if options.model == "spiking":
            print(f"a neuron fires in {100 * activity.rate:.1f} % of frames")
        print(f"accuracy: {100 * run.tested().accuracy:.1f} % of {len(corpus.test.frames)}")


if __name__ == "__main__":
    main()
