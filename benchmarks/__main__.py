"""``python -m benchmarks``: measure everything, write the report. ``--short``: check the floors."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks import floors, legacy, machine, report
from benchmarks.effort import FULL, TINY, Context
from benchmarks.harness import Data
from benchmarks.peers import installed

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Read the command line and do it; the exit status."""
    options = command_line().parse_args()
    # the peers' own: torch.jit.script, pkg_resources, …
    warnings.simplefilter("ignore")
    if options.short:
        text, holds = floors.check()
        sys.stdout.write(text + "\n")
        return 0 if holds else 1
    if options.render:
        report.write(report.read(options.output), options.output)
        return 0
    measure(options)
    return 0


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--short", action="store_true", help="ratios against floors only; exit 1 under one")
    add("--only", nargs="+", choices=report.PARTS, default=[*report.PARTS], help="these parts")
    add("--tiny", action="store_true", help="small sizes, one or two rounds: only to see it run")
    add("--no-legacy", action="store_true", help=f"without {legacy.NAME} in its own environment")
    add("--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the report goes")
    add("--render", action="store_true", help="write report and figure again from the JSON file")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Every part in turn; what was measured is written even where a later part fails."""
    started = time.perf_counter()
    effort = TINY if options.tiny else FULL
    parts: Data = {}
    data: Data = {"machine": machine.describe(), "parts": parts}
    with ExitStack() as stack:
        worker, left_out = _worker(stack, wanted=not options.no_legacy)
        context = Context(effort, tuple(installed()), worker)
        try:
            for key in options.only:
                _say(f"{report.PARTS[key].TITLE} …")
                parts[key] = report.PARTS[key].measure(context)
        finally:
            minutes = (time.perf_counter() - started) / 60
            data["machine"]["load average at the end"] = machine.load()
            data["run"] = {
                "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
                "minutes": minutes,
                "left out": left_out,
            }
            report.write(data, options.output)
    _say(f"{minutes:.1f} minutes; {options.output / report.NAME}.md")


def _worker(stack: ExitStack, *, wanted: bool) -> tuple[legacy.Worker | None, list[str]]:
    """The process with the old version, or why there is none."""
    if not wanted:
        return None, [f"{legacy.NAME}: --no-legacy."]
    try:
        return stack.enter_context(legacy.started()), []
    except legacy.Unavailable as why:
        return None, [f"{legacy.NAME}: {why}."]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
