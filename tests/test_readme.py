"""README, CONTRIBUTING and docs say what is there: names, commands, files, modules."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import tracetorch as tt
from tracetorch import rnn, snn

ROOT = Path(__file__).parents[1]
CORE = ROOT / "packages" / "tracetorch-core" / "src" / "tracetorch"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def table(text: str, header: str) -> list[list[str]]:
    """The cells of the rows of the table whose header line starts so."""
    lines = text[text.index(header) :].splitlines()
    rows = [line.strip("|").split("|") for line in lines[2 : lines.index("", 1)]]
    return [[cell.strip() for cell in row] for row in rows]


# ------------------------------------------------------------------ the 32

COLUMNS = "| | emits the membrane | emits a moving average | binary spikes | ternary spikes |"
FIRING = [None, None, snn.BINARY, snn.TERNARY, snn.SCALED]


def test_the_table_of_the_thirty_two_reads_itself() -> None:
    found = []
    for first, *cells in table(read("docs/at-a-glance.md"), COLUMNS):
        ideas = set(re.findall(r"\b[DSR]\b", first.replace("*", " ")))
        for column, cell in enumerate(cells):
            if not cell:
                assert "R" in ideas
                assert column < 2
                continue
            cls = getattr(snn, cell.strip("`"))
            found.append(cls)
            assert (len(cls.polarity) == 2) == ("D" in ideas), cell
            assert cls.synapse == ("S" in ideas), cell
            assert cls.recurrence == ("R" in ideas), cell
            assert cls.average == (column == 1), cell
            assert cls.firing is FIRING[column], cell
    assert sorted(found, key=lambda cls: cls.__name__) == sorted(
        snn.LAYERS, key=lambda cls: cls.__name__
    )


# ------------------------------------------------------------------ names


def test_what_to_install_is_what_there_is() -> None:
    said = {
        name
        for _, run in table(read("docs/install.md"), "| for | run |")
        for name in run.split()[2:]
    }
    folders = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert {re.split(r"[>[]", name.strip('`"'))[0] for name in said} == folders


def test_the_recurrent_layers_are_named() -> None:
    (row,) = [row for row in table(read("docs/install.md"), "| for | run |") if "rnn" in row[1]]
    assert row[0].split(", ") == [cls.__name__ for cls in rnn.LAYERS]


def test_the_calls_of_a_model_are_there() -> None:
    calls = [
        (name, arguments)
        for first, _ in table(read("docs/at-a-glance.md"), "| call | does |")
        for name, arguments in re.findall(r"(\w+)\(([^)]*)\)", first)
    ]
    assert len(calls) > 10
    for name, arguments in calls:
        code = inspect.unwrap(getattr(tt.Model, name)).__code__
        for argument in re.findall(r"\w+", arguments):
            assert argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def test_the_modules_of_core_are_those_of_the_design() -> None:
    rows = table(read("docs/design.md"), "| core module | is | knows nothing of |")
    said = [name.strip("`") for row in rows for name in row[0].split(", ")]
    modules = {path.stem for path in CORE.glob("*.py")} - {"__init__"}
    assert len(said) == len(set(said))
    assert set(said) == modules | {path.parent.name for path in CORE.glob("*/__init__.py")}


def test_a_module_imports_only_what_stands_above_it_in_the_design() -> None:
    rows = table(read("docs/design.md"), "| core module | is | knows nothing of |")
    place = {name.strip("`"): at for at, row in enumerate(rows) for name in row[0].split(", ")}
    for path in CORE.rglob("*.py"):
        own = path.relative_to(CORE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            root, *inner = node.module.split(".")
            names = inner[:1] or [alias.name for alias in node.names]
            for name in names if root == "tracetorch" else ():
                assert name == own or place[name] < place[own], f"{path.name} imports {name}"


# ------------------------------------------------------------------ commands and links


def commands(text: str) -> set[str]:
    """The lines of its shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return {line for line in lines if line}


def test_continuous_integration_runs_the_readmes_commands() -> None:
    script = re.findall(r"(?m)^(?!#|set |cd )(.+)$", read(".ci/run"))
    assert {" ".join(line.replace("--quiet", "").split()) for line in script} >= {
        "uv sync",
        "uv run nox",
    }
    for page in ("README.md", "CONTRIBUTING.md"):
        assert {"pip install uv", "uv sync", "uv run nox"} <= commands(read(page))


def test_every_session_that_is_named_exists() -> None:
    sessions = set(re.findall(r"(?m)^@nox\.session.*\n(?:@nox.*\n)*def (\w+)", read("noxfile.py")))
    assert {"tests", "tests_all", "cuda", "matrix", "lint", "types", "docs", "build"} <= sessions
    text = read("README.md") + read("CONTRIBUTING.md") + read(".pre-commit-config.yaml")
    named = set(re.findall(r"nox -s \"?(\w+)", text))
    assert named
    assert named <= sessions
    defaults = re.search(r"(?s)nox\.options\.sessions = \[(.*?)\]", read("noxfile.py"))
    assert defaults
    assert set(re.findall(r"\w+", defaults[1])) <= sessions


def test_every_package_is_known_everywhere_it_must_be() -> None:
    """The places that CONTRIBUTING lists for a new package."""
    names = {path.parent.name for path in ROOT.glob("packages/tracetorch-*/pyproject.toml")}
    short = {name.removeprefix("tracetorch-") for name in names}
    assert {name for name in short if f'"{name}": [' in read("noxfile.py")} == short
    sources = re.findall(r"(?m)^(\S+) = \{ workspace = true \}", read("pyproject.toml"))
    assert {*sources} == names | {"tracetorch"}
    assert {*tt._SIBLINGS} == short - {"core"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"(?s)```.*?```", "", text)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
    for link in links:
        made = "/generated/" in link  # by the session `site`, which checks it
        assert made or link.startswith("https://") or (page.parent / link).exists(), link
    quoted = re.findall(r"(?:packages|examples|docs|tests|benchmarks)/[\w./+-]*\w", text)
    for path in quoted:
        made = path.startswith("docs/_build")  # by the session `site`
        assert made or (ROOT / path).exists() or "<name>" in text, path


@pytest.mark.parametrize("name", ["core", "snn", "rnn", "plot"])
def test_a_packages_own_readme_runs_on_what_it_depends_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"(?s)```python\n(.*?)```", read(f"packages/tracetorch-{name}/README.md"))
    siblings = set(re.findall(r"\b(?:snn|rnn|plot)\b", code))
    assert siblings == {name} - {"core"}
    exec(code, {})
