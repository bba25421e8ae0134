"""How the modules of core depend on one another, read off their source: one way, no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tracetorch

ROOT = Path(tracetorch.__file__).parent
FILES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] not in ("snn", "rnn", "plot")
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module of core that a file imports: at the top, within functions, for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in whole]
        else:
            continue
        yield from (name for name in names if name in MODULES)


GRAPH = {
    name: {other for other in imports(path) if other != name} for name, path in MODULES.items()
}


def test_no_module_of_core_leads_back_to_itself() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(GRAPH[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())
    assert len(GRAPH) > 40


def test_the_engine_knows_neither_layers_nor_models_nor_sequences() -> None:
    reached: set[str] = set()
    queue = [name for name in GRAPH if name.startswith("tracetorch.engine")]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue += GRAPH[name]
    above = {"layer", "layer_states", "calls", "timestep", "model", "walk", "sequences", "backends"}
    assert not {name for name in reached if name.split(".")[1:2] and name.split(".")[1] in above}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_reaches_for_what_another_keeps_for_itself(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tracetorch"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{name} imports {private} of {node.module}"


@pytest.mark.parametrize("name", MODULES)
def test_files_can_be_read_at_a_sitting(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= (350 if name in ("tracetorch.layer", "tracetorch.model") else 400)
