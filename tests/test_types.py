"""What mypy and pyright see of the installed packages: calls to accept, and calls to refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
CASES = Path(__file__).parent / "typing"
OK, WRONG = "ok.py", "wrong.py"
Reports = dict[str, dict[int, str]]


def _collected(reports: list[tuple[str, int, str]]) -> Reports:
    found: Reports = {OK: {}, WRONG: {}}
    for file, line, message in reports:
        found.setdefault(Path(file).name, {})[line] = message
    return found


def _mypy(folder: Path, site: Path) -> Reports:
    command = ["mypy", "--config-file", str(ROOT / "pyproject.toml"), "--output", "json"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--cache-dir", str(site / "cache"), OK, WRONG],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [report for report in said if report["severity"] == "error"]
    return _collected([(r["file"], r["line"], r["message"]) for r in errors])


def _pyright(folder: Path, site: Path) -> Reports:
    settings = {"extraPaths": [str(site)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = ["pyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    said = json.loads(done.stdout)["generalDiagnostics"]
    return _collected([(r["file"], r["range"]["start"]["line"] + 1, r["message"]) for r in said])


CHECKERS: dict[str, Callable[[Path, Path], Reports]] = {"mypy": _mypy, "pyright": _pyright}


@pytest.fixture(scope="module", params=CHECKERS)
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """File → line → what a checker says, with the packages in one folder, as pip puts them."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("checked")
    for source in ROOT.glob("packages/tracetorch-*/src"):
        shutil.copytree(source, site, dirs_exist_ok=True)
    for case in (OK, WRONG):
        shutil.copy(CASES / case, folder)
    return CHECKERS[request.param](folder, site)


def test_the_packages_themselves_are_clean(reports: Reports) -> None:
    assert reports.keys() == {OK, WRONG}


def test_calls_that_are_right_are_accepted(reports: Reports) -> None:
    assert reports[OK] == {}


def test_calls_that_are_wrong_are_refused_one_by_one(reports: Reports) -> None:
    lines = (CASES / WRONG).read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    said = reports[WRONG]
    assert not said.keys() - marked, {line: said[line] for line in said.keys() - marked}
    assert not marked - said.keys(), [lines[number - 1] for number in marked - said.keys()]
