"""Learning curves of several runs in one figure: their checkpoints → mean and spread over seeds."""

from __future__ import annotations

import sys
from pathlib import Path

from cartpole import POINT_EVERY
from matplotlib.figure import Figure
from poles import LONGEST
from tracetorch import plot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import command_line


def curves(files: list[Path]) -> dict[str, list[list[float]]]:
    """By policy, a curve ``[points]`` for each seed; as long as the shortest of its policy.

    Raises:
        ValueError: a file is no checkpoint of a policy, or of a run too short for a point.
        FileNotFoundError: there is no such file.
    """
    found: dict[str, list[list[float]]] = {}
    for file in files:
        saved = command_line.saved_values(file)
        settings = saved["settings"]
        if "policy" not in settings:
            raise ValueError(f"{file} is of another script than cartpole.py")
        if not saved["curve"]:
            raise ValueError(f"{file} has no curve yet: it takes {POINT_EVERY} updates")
        name = settings["policy"] if settings["memory"] else f"{settings['policy']}, no memory"
        found.setdefault(name, []).append(saved["curve"])
    return {name: [one[: min(map(len, all_))] for one in all_] for name, all_ in found.items()}


def main() -> None:
    """Draw the checkpoints that are named on the command line."""
    parser = command_line.CommandLine(__file__, __doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of finished or unfinished runs")
    parser.figure()
    options = parser.parse_args()
    with command_line.errors_in_a_line():
        found = curves(options.checkpoints)
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    ax = figure.subplots()
    count = f"learning, a point every {POINT_EVERY} updates"
    plot.training(found, xlabel=count, ylabel="mean return of recent episodes", ax=ax)
    ax.axhline(LONGEST, color="0.6", linewidth=0.8, linestyle="--")
    figure.savefig(options.figure, dpi=120)
    print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
