"""Measured data → JSON, Markdown and figure in one folder."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from benchmarks import (
    events,
    goals,
    layers,
    machine,
    memory,
    mnist,
    onm,
    parallel,
    recording,
    recurrent,
    scaling,
    ssm,
    startup,
    stepping,
    streaming,
)
from benchmarks.harness import Data

PARTS = {
    "onm": onm,
    "layers": layers,
    "recurrent": recurrent,
    "ssm": ssm,
    "stepping": stepping,
    "streaming": streaming,
    "recording": recording,
    "events": events,
    "scaling": scaling,
    "parallel": parallel,
    "memory": memory,
    "startup": startup,
    "mnist": mnist,
}
NAME = "benchmarks"
INTRODUCTION = """\
# Benchmarks

Written by `{command}` in {minutes:.1f} minutes; the numbers are in `{name}.json`. Contenders take
turns within one process, each round beginning with another; times are medians with quartiles in
brackets, without the garbage collector. Ratios are of medians."""


def write(data: Data, folder: Path) -> None:
    """All three files; the figure only where there is something in it, and matplotlib is there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, ensure_ascii=False)
    (folder / f"{NAME}.json").write_text(text + "\n", encoding="utf-8")
    picture = folder / f"{NAME}.png"
    if find_spec("matplotlib"):
        from benchmarks import figure

        figure.draw(data["parts"], picture)
    report = markdown(data, pictured=picture.exists())
    (folder / f"{NAME}.md").write_text(report, encoding="utf-8")


def read(folder: Path) -> Data:
    """What an earlier run measured."""
    data: Data = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    return data


def markdown(data: Data, *, pictured: bool) -> str:
    """The whole report."""
    parts = data["parts"]
    sections = [
        INTRODUCTION.format(name=NAME, **data["run"]),
        "## Must be reached",
        goals.render(parts),
        "## Machine",
        machine.render(data["machine"]),
        *(f"Left out: {text}" for text in data["run"]["left out"]),
        *([f"![The main results]({NAME}.png)"] if pictured else []),
    ]
    for key, part in PARTS.items():
        if key in parts:
            sections += [f"## {part.TITLE}", part.render(parts[key])]
    return "\n\n".join(sections) + "\n"
