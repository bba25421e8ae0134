"""Several runs in one table and one figure: their result files → bits per byte over time."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from byte_lm import LINES
from common.command_line import errors_in_a_line, figure_file

Results = dict[str, Any]
SECONDS, BITS = 2, 3  # of a point


def read(files: list[Path]) -> dict[str, list[Results]]:
    """By model, the results of its runs, the best model first.

    Raises:
        ValueError: a file is no result, or they are not of one text.
        OSError: a file cannot be read.
    """
    found: dict[str, list[Results]] = {}
    texts = set()
    for file in files:
        try:
            results = json.loads(file.read_text())
            found.setdefault(results["model"], []).append(results)
            texts.add(results["text"])
            last(results)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{file} holds no results of a finished run") from error
    if len(texts) > 1:
        raise ValueError(f"the runs are of other texts: {', '.join(sorted(texts))}")
    return dict(sorted(found.items(), key=lambda item: _mean(item[1], BITS)))


def last(results: Results) -> list[float]:
    """The last point: steps, bytes read, seconds, bits per byte."""
    point: list[float] = results["curve"][-1]
    return point


def _mean(runs: list[Results], which: int) -> float:
    return statistics.fmean(last(results)[which] for results in runs)


def table(found: dict[str, list[Results]]) -> str:
    """In Markdown: a row for each model, then the compressors."""
    rows = [
        "| | bits per byte | parameters | text read | processor time |",
        "|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        bits = ", ".join(f"{last(r)[BITS]:.3f}" for r in sorted(runs, key=lambda r: r["seed"]))
        read, seconds = _mean(runs, 1) / 1e6, _mean(runs, SECONDS)
        rows.append(
            f"| {name} | {bits} | {runs[0]['parameters']:,} | {read:.1f} MB | {seconds:.0f} s |"
        )
    one = next(iter(found.values()))[0]
    for how, numbers in (("alone", one["alone"]), ("primed", one["primed"])):
        rows += [f"| {name}, {how} | {bits:.3f} | | | |" for name, bits in numbers.items()]
    return "\n".join(rows)


def draw(found: dict[str, list[Results]], ax: Axes) -> None:
    """Bits per byte over processor time, a line for each run, and the compressors across."""
    for index, (name, runs) in enumerate(found.items()):
        for number, results in enumerate(runs):
            seconds, bits = zip(*((p[SECONDS], p[BITS]) for p in results["curve"]), strict=True)
            label = None if number else name
            ax.plot(seconds, bits, marker=".", linewidth=1.2, color=f"C{index}", label=label)
    one = next(iter(found.values()))[0]
    for style, (name, bits) in zip(LINES, one["alone"].items(), strict=True):
        ax.axhline(bits, color="0.4", linewidth=1.0, linestyle=style, label=name)
    ax.axhline(one["primed"]["lzma"], color="0.7", linewidth=1.0, label="lzma, primed")
    ax.set(xlabel="processor time [s]", ylabel="held-out text [bits per byte]")
    ax.legend(ncols=2)


def main() -> None:
    """Print and draw the results that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="files of byte_lm.py --results")
    default = Path(__file__).with_suffix(".png")
    parser.add_argument("--figure", type=figure_file, default=default, help="where (%(default)s)")
    options = parser.parse_args()
    with errors_in_a_line():
        found = read(options.results)
        print(table(found))
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        draw(found, figure.subplots())
        figure.savefig(options.figure, dpi=110)
        print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
