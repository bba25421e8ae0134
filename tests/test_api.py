"""No public name or argument goes, changes or comes unnoticed: ``tests/data/api.txt``."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from tracetorch import plot, snn

sys.path.insert(0, str(Path(__file__).parent))

import api


@pytest.fixture(scope="module")
def now() -> list[str]:
    return api.lines()


def test_what_is_public_is_what_was_recorded(now: list[str]) -> None:
    recorded = api.SNAPSHOT.read_text(encoding="utf-8").splitlines()
    found = api.differences(recorded, now)
    said = [f"{what}: {name}" for what, names in found.items() for name in names]
    assert said == [], (
        "\n".join(said) + "\nif meant, run: uv run python tests/api.py (docs/versions.md says "
        "what may go in which version)"
    )
    assert now == recorded


def changed(line: str, new: str | None) -> dict[str, list[str]]:
    """What is said of a snapshot in which one line is another, or none."""
    before = ["m.f: function(x)", "m.C: class(n) of Layer", "m.C.go: method(x, *, dim=-1)"]
    after = [new if one == line else one for one in before]
    return api.differences(before, [one for one in after if one is not None])


def test_each_difference_is_said_by_name() -> None:
    assert changed("", None) == {}
    assert changed("m.f: function(x)", None) == {"removed": ["m.f"]}
    assert changed("m.f: function(x)", "m.g: function(x)") == {"removed": ["m.f"], "added": ["m.g"]}
    assert changed("m.C.go: method(x, *, dim=-1)", "m.C.go: method(x, *, dim=0)") == {
        "changed": ["m.C.go: method(x, *, dim=-1) → method(x, *, dim=0)"]
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tracetorch.snn.DSRLITS", snn.DSRLITS),  # whose constructor only the stub spells out
        ("tracetorch.plot.raster", plot.raster),
        ("tracetorch.snn.nir.Discretisation", snn.nir.Discretisation),  # a dataclass
        ("tracetorch.snn.Fired", snn.Fired),  # a named tuple
    ],
)
def test_arguments_are_those_that_python_sees(now: list[str], name: str, value: Any) -> None:
    (line,) = (line for line in now if line.startswith(f"{name}: "))
    listed = line.partition("(")[2].rpartition(")")[0].split(", ")
    seen = inspect.signature(value).parameters.values()
    names = [one.partition("=")[0] for one in listed if one not in "*/"]
    assert names == [parameter.name for parameter in seen]
    given = [one.partition("=")[0] for one in listed if "=" in one]
    defaults = [each.name for each in seen if each.default is not inspect.Parameter.empty]
    assert given == defaults
