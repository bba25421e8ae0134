"""Boundaries of imports, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CORE = Path(__file__).parents[1] / "packages" / "tracetorch-core" / "src"

# only core: the siblings' folders leave sys.path before tracetorch extends over it
ALONE = f"import sys; sys.path = [p for p in sys.path if 'tracetorch-' not in p] + [{str(CORE)!r}];"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_core_loads_nothing_heavy_and_no_sibling() -> None:
    said = python(
        "import sys, torch; before = set(sys.modules); import tracetorch;"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    roots = {name.split(".")[0] for name in said}
    assert not roots & {"matplotlib", "triton", "pandas"}
    assert not [name for name in said if name.startswith("torch._inductor")]
    assert not {"tracetorch.snn", "tracetorch.rnn", "tracetorch.plot"} & set(said)


def test_alone_it_says_of_each_missing_package_what_to_install_and_lists_none() -> None:
    names = ["snn", "rnn", "plot"]
    ways = [f"import tracetorch as tt; tt.{name}" for name in names]
    ways += [f"from tracetorch import {name}" for name in names]
    tries = "".join(
        f"try:\n    {way}\nexcept ImportError as error:\n    print(error)\n" for way in ways
    )
    *said, listed = python(f"{ALONE}\n{tries}print(*dir(tt))").splitlines()
    for text, name in zip(said, names * 2, strict=True):
        assert f"pip install tracetorch-{name}" in text
    assert not {*names} & {*listed.split()}


def test_siblings_are_listed_and_reached_lazily_and_by_import() -> None:
    listed, reached = python(
        "import tracetorch as tt; print(*dir(tt)); from tracetorch import rnn;"
        "import tracetorch.plot; print(tt.snn.LIB.__name__, rnn is tt.rnn, tt.plot.__name__)"
    ).splitlines()
    assert {"snn", "rnn", "plot"} <= {*listed.split()}
    assert reached.split() == ["LIB", "True", "tracetorch.plot"]
