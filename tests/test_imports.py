"""Boundaries of imports, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["snn", "rnn", "plot"])
@pytest.mark.parametrize("way", ["import tracetorch as tt; tt.{}", "from tracetorch import {}"])
def test_a_missing_package_says_what_to_install(name: str, way: str) -> None:
    code = f"{ALONE}\ntry:\n    {way.format(name)}\nexcept ImportError as error:\n    print(error)"
    assert f"pip install tracetorch-{name}" in python(code)


def test_dir_shows_what_is_installed() -> None:
    assert "snn" not in python(f"{ALONE} import tracetorch; print(*dir(tracetorch))").split()
    assert "snn" in python("import tracetorch; print(*dir(tracetorch))").split()


def test_siblings_are_reached_lazily_and_by_import() -> None:
    assert python(
        "import tracetorch as tt; from tracetorch import rnn;"
        "import tracetorch.plot; print(tt.snn.LIB.__name__, rnn is tt.rnn, tt.plot.__name__)"
    ).split() == ["LIB", "True", "tracetorch.plot"]
