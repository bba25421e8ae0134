"""All three nets over several seeds: a table of means and spreads, and their curves.

With ``--runs FOLDER`` each run has a checkpoint there, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.command_line import errors_in_a_line, folder, positive
from listen import command_line, corpus_of
from listeners import LISTENERS, learnable
from listening import Run
from matplotlib.figure import Figure
from tracetorch import plot
from utterances import Corpus

HEAD = "| net | parameters | accuracy | MACs | ACs | dense | fires | processor time |"


def compare(options: argparse.Namespace, corpus: Corpus) -> dict[str, list[list[float]]]:
    """Print a row for each net; the curves by net, ``[seeds][epochs]``."""
    print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
    curves: dict[str, list[list[float]]] = {}
    for kind in LISTENERS:
        runs, seconds = [], []
        for seed in range(options.seed, options.seed + options.seeds):
            one, start = single(options, kind, seed), time.process_time()
            runs.append(Run(one, corpus))
            runs[-1].learn()
            if not one.resume:
                seconds.append(time.process_time() - start)
        print(row(kind, runs, seconds), flush=True)
        curves[kind] = [run.curve for run in runs]
    return curves


def single(options: argparse.Namespace, kind: str, seed: int) -> argparse.Namespace:
    """The options of one run."""
    one = copy.copy(options)
    one.model, one.seed = kind, seed
    one.checkpoint = options.runs / f"{kind}-{seed}.pt" if options.runs else None
    one.resume = one.checkpoint is not None and one.checkpoint.exists()
    return one


def row(kind: str, runs: list[Run], seconds: list[float]) -> str:
    """Means over the runs; of the accuracy the spread as well; seconds of those made just now."""
    reached = [100 * run.tested().accuracy for run in runs]
    spread = f" ± {statistics.stdev(reached):.1f}" if len(runs) > 1 else ""
    activities = [run.activity() for run in runs]
    dense, macs, acs = (
        f"{statistics.mean(one.count[i] / one.frames for one in activities):,.0f}" for i in range(3)
    )
    rate = statistics.mean(one.rate for one in activities)
    cells = [
        kind,
        f"{learnable(runs[0].net):,}",
        f"{statistics.mean(reached):.1f}{spread} %",
        macs,
        acs,
        dense,
        f"{100 * rate:.1f} %" if kind == "spiking" else "",
        f"{statistics.mean(seconds):.0f} s" if seconds else "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Compare, by the command line's options."""
    parser = command_line(__file__, __doc__)
    parser.option("--seeds", positive, 3, "runs of each net, from --seed on")
    parser.option("--runs", folder, None, "where the runs' checkpoints are; none without")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with errors_in_a_line():
        corpus = corpus_of(options)
        print(corpus)
        curves = compare(options, corpus)
        figure = Figure(figsize=(8.0, 4.5), layout="constrained")
        ax = figure.subplots()
        what = f"epoch ({corpus.name})"
        plot.training(curves, xlabel=what, ylabel="accuracy on what is held out", ax=ax)
        figure.savefig(options.figure, dpi=110)
        print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
