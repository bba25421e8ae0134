"""Mutation testing of a sample: small changes of the source, one at a time, under fast tests.

``python tests/soak/mutants.py --seed 0 --count 100`` prints each mutant that no test noticed. No
file is written to: the tests run in forked processes in which one module is another, with a kernel
cache of their own; what they start anew does not see it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 - once, for all
import pytest
import torch

ROOT = Path(__file__).parents[2]


def _sources(package: str, *names: str) -> list[str]:
    root = "tracetorch" if package == "core" else f"tracetorch/{package}"
    return [f"packages/tracetorch-{package}/src/{root}/{name}.py" for name in names]


def _tests(package: str, *names: str) -> list[str]:
    return [f"packages/tracetorch-{package}/tests/test_{name}.py" for name in names]


# what is changed, and the tests that are to notice: the nearest first
TARGETS = {
    "dynamics": [
        (
            _sources("snn", "layer", "traces", "resets", "firing", "adaptation"),
            _tests("snn", "dynamics", "spiking", "arguments", "pieces", "docstrings"),
        ),
        (_sources("snn", "delay"), _tests("snn", "delay")),
        (_sources("rnn", "cells", "kernels"), _tests("rnn", "cells", "sequences", "restarts")),
    ],
    "states": [
        (
            _sources("core", "states", "layer_states"),
            _tests("core", "states", "model", "resets", "leftovers"),
        ),
        (_sources("core", "model_states"), _tests("core", "model", "states")),
        (
            _sources("core", "state_files", "seals", "saving"),
            _tests("core", "state_files", "state_file_format", "state_file_saving"),
        ),
    ],
    "engine": [
        (_sources("core", "engine/segments"), _tests("core", "segments")),
        (_sources("core", "engine/last_use"), _tests("core", "last_use")),
        (_sources("core", "engine/memory"), _tests("core", "memory")),
        (_sources("core", "engine/spikes"), _tests("core", "packing")),
        (
            _sources("core", *(f"engine/{name}" for name in ("trace", "recorder", "reads"))),
            _tests("core", "tracing", "neurons", "kernels"),
        ),
        (
            _sources(
                "core",
                *(f"engine/{name}" for name in ("graph", "kernel", "cpp", "program", "operators")),
            ),
            _tests("core", "neurons", "kernels", "tracing"),
        ),
    ],
}

SWAPPED: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """What could be changed: not annotations, messages and decorators."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if isinstance(tree, ast.Raise) or (name == "test" and _types_only(value)):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not isinstance(node, ast.JoinedStr):
                yield node
                yield from _places(node)


def _types_only(test: object) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _mutated(node: ast.AST) -> str | None:
    """Change it in place; what was done, or None where there is nothing to do."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPPED:
        before = type(node.op).__name__
        node.op = SWAPPED[type(node.op)]()
        return f"{before} → {type(node.op).__name__}"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        before = type(node.ops[0]).__name__
        node.ops = [SWAPPED[type(node.ops[0])](), *node.ops[1:]]
        return f"{before} → {type(node.ops[0]).__name__}"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        before = type(node.op).__name__
        node.op = ast.UAdd() if not isinstance(node.op, ast.Not) else ast.Not()
        if before == "Not":
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        return f"{before} left out"
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        before = node.value
        node.value = not before if isinstance(before, bool) else before + 1
        return f"{before} → {node.value}"
    if isinstance(node, (ast.If, ast.IfExp)) and not _types_only(node.test):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition negated"
    if isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
        return "returns None"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        node.value = ast.Constant(None)
        return "call left out"
    return None


def candidates(file: Path) -> list[int]:
    """The places of a file's tree that can be changed."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [at for at, node in enumerate(_places(tree)) if _mutated(copy.copy(node)) is not None]


def mutant(file: Path, place: int) -> tuple[int, str, ast.Module]:
    """Line, change and the tree that has it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    node = next(node for at, node in enumerate(_places(tree)) if at == place)
    line = getattr(node, "lineno", 0)
    done = _mutated(node)
    return line, str(done), ast.fix_missing_locations(tree)


class _Loader(SourceFileLoader):
    tree: ast.Module

    def get_code(self, fullname: str) -> Any:
        return compile(self.tree, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self.name, self.file, self.tree, self.asked = name, file, tree, False

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        self.asked = True
        loader = _Loader(fullname, str(self.file))
        loader.tree = self.tree
        return importlib.util.spec_from_file_location(fullname, self.file, loader=loader)


NOT_LOADED = 99


def _run(file: Path, tree: ast.Module | None, tests: list[str], seconds: int) -> int:
    """Pytest's exit code, in this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    finder = None
    if tree is not None:
        parts = file.relative_to(ROOT).with_suffix("").parts
        finder = _Finder(".".join(parts[parts.index("src") + 1 :]), file, tree)
        sys.meta_path.insert(0, finder)
    plain = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    code = int(pytest.main([*plain, *tests]))
    return NOT_LOADED if not code and finder and not finder.asked else code


def outcome(file: Path, tree: ast.Module | None, tests: list[str], seconds: int) -> str:
    """Passed, failed or took too long (processor time); without a tree the file is as it is."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            code = _run(file, tree, tests, seconds)
        finally:
            os._exit(code)
    until = time.monotonic() + 10 * seconds
    ended = status = 0
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "took too long"
    code = os.waitstatus_to_exitcode(status)
    if code == NOT_LOADED:
        sys.exit(f"{file}: not what the tests import")
    return "took too long" if code in (-signal.SIGXCPU, -signal.SIGKILL) else _name(code)


def _name(code: int) -> str:
    return "failed" if code else "passed"


def noticed(file: Path, tree: ast.Module | None, tests: list[str], seconds: int) -> str:
    """Which test file does not pass, and how; nothing where all pass."""
    for test in tests:
        found = outcome(file, tree, [test], seconds)
        if found != "passed":
            return f"{Path(test).name} {found}"
    return ""


def sample(name: str, seed: int, count: int) -> list[tuple[Path, int, list[str]]]:
    """Places of a group's files, with their tests; the same whatever else is asked for."""
    every = [
        (ROOT / file, place, tests)
        for files, tests in TARGETS[name]
        for file in files
        for place in candidates(ROOT / file)
    ]
    drawn = random.Random(f"{seed} {name}")
    sys.stdout.write(f"{name}: {count} of {len(every)} places\n")
    return drawn.sample(every, min(len(every), count))


def run(names: Iterable[str], given: argparse.Namespace) -> None:
    """A sample of each group."""
    whole: set[str] = set()
    survivors = late = total = 0
    for name in names:
        for file, place, tests in sample(name, given.seed, given.count // len(TARGETS)):
            begun = time.monotonic()
            fresh = [test for test in tests if test not in whole]
            if failed := noticed(file, None, fresh, 10 * given.seconds):
                sys.exit(f"without a mutant: {failed}")
            whole.update(fresh)
            line, done, tree = mutant(file, place)
            found = noticed(file, tree, tests, given.seconds)
            total, survivors, late = total + 1, survivors + (not found), late + ("long" in found)
            text = file.read_text(encoding="utf-8").splitlines()[line - 1].strip()
            where = f"{file.relative_to(ROOT)}:{line}: {done}: {text}\n"
            took = time.monotonic() - begun
            sys.stderr.write(f"{total} ({took:.0f} s) {found or 'survived'}: {where}")
            if not found:
                sys.stdout.write(where)
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} of {total} survived; {late} took too long\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="over all three groups")
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=120, help="of processor time, a test file")
    parser.add_argument("--cache", help="a folder for kernels; a temporary one where left out")
    given = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRACETORCH_CACHE_DIR"] = given.cache or f"{folder}/kernels"
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{folder}/hypothesis"
        run([given.only] if given.only else list(TARGETS), given)


if __name__ == "__main__":
    main()
