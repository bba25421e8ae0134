"""Learning curves of several runs in one figure: their checkpoints → mean and spread over seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from cartpole import POINT_EVERY, figure_file, read_checkpoint
from matplotlib.figure import Figure
from poles import LONGEST
from tracetorch import plot


def curves(files: list[Path]) -> dict[str, list[list[float]]]:
    """By policy, a curve ``[points]`` for each seed; as long as the shortest of its policy.

    Raises:
        ValueError: a file is no checkpoint, or of a run too short for a point.
    """
    found: dict[str, list[list[float]]] = {}
    for file in files:
        saved = read_checkpoint(file)
        if not saved["curve"]:
            raise ValueError(f"{file} has no curve yet: it takes {POINT_EVERY} updates")
        settings = saved["settings"]
        name = settings["policy"] if settings["memory"] else f"{settings['policy']}, no memory"
        found.setdefault(name, []).append(saved["curve"])
    return {name: [one[: min(map(len, all_))] for one in all_] for name, all_ in found.items()}


def main() -> None:
    """Draw the checkpoints that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of finished or unfinished runs")
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--figure", type=figure_file, default=default, help="where (%(default)s)")
    options = parser.parse_args()
    try:
        found = curves(options.checkpoints)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    ax = figure.subplots()
    count = f"learning, a point every {POINT_EVERY} updates"
    plot.training(found, xlabel=count, ylabel="mean return of recent episodes", ax=ax)
    ax.axhline(LONGEST, color="0.6", linewidth=0.8, linestyle="--")
    figure.savefig(options.figure, dpi=120)
    print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
