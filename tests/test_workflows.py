"""The workflows ask for sessions that there are: nox would end with "Sessions not found"."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# one value for each variable of a matrix; what others there are is seen where they are listed
VALUES = {"python": "3.10", "torch": "newest", "package": "core", "session": "soak"}


def asked_for() -> dict[str, list[str]]:
    """What follows ``nox … -s`` in each workflow, variables replaced."""
    found = {}
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        for name, value in VALUES.items():
            text = text.replace(f"${{{{ matrix.{name} }}}}", value)
        named = re.findall(r'(?m)run: nox .*?-s (?:"(.+?)"|(\S+))(?: -- .*)?$', text)
        found[path.name] = [quoted or plain for quoted, plain in named]
    return found


def test_every_session_of_a_workflow_is_one_of_noxfile() -> None:
    asked = asked_for()
    assert {name: len(sessions) for name, sessions in asked.items()} == {
        "ci.yml": 2,
        "docs.yml": 1,
        "release.yml": 1,
        "weekly.yml": 1,
    }
    weekly = (ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8")
    listed = re.findall(r"session: (\w+)", weekly)
    sessions = [*listed, *(name for names in asked.values() for name in names)]
    nox = [sys.executable, "-m", "nox", "-f", str(ROOT / "noxfile.py"), "-l", "-s", *sessions]
    done = subprocess.run(nox, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # Sessions not found: …


def test_each_value_of_a_matrix_is_one_that_noxfile_has() -> None:
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for name in ("python", "torch", "package"):
        (listed,) = re.findall(rf"(?m)^ +{name}: \[(.+)\]$", ci)
        more = re.findall(rf"include|- \{{.*\b{name}: ([^,}} ]+)", ci)
        for value in {each.strip('" ') for each in [*listed.split(","), *more] if each}:
            assert f'"{value}"' in noxfile, f"{name}: {value}"
