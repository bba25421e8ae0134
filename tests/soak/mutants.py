"""Mutation testing of a sample: small changes of the source, one at a time, under fast tests.

``python tests/soak/mutants.py --seed 0 --count 100`` prints each mutant that no test noticed. The
tests run in forked processes in which one module is another; what they start anew does not see it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 - once, for all
import pytest
import torch

ROOT = Path(__file__).parents[2]
CORE, SNN, RNN = (f"packages/tracetorch-{name}" for name in ("core", "snn", "rnn"))

# what is changed, and the tests that are to notice
TARGETS = {
    "dynamics": (
        [f"{SNN}/src/tracetorch/snn/{name}.py" for name in ("layer", "traces", "resets", "delay")],
        [f"{SNN}/tests/test_{name}.py" for name in ("dynamics", "pieces", "delay", "arguments")],
    ),
    "cells": (
        [f"{RNN}/src/tracetorch/rnn/cells.py"],
        [f"{RNN}/tests/test_{name}.py" for name in ("cells", "sequences")],
    ),
    "states": (
        [f"{CORE}/src/tracetorch/{name}.py" for name in ("layer_states", "states")],
        [f"{CORE}/tests/test_states.py", f"{CORE}/tests/test_model.py"],
    ),
    "files": (
        [f"{CORE}/src/tracetorch/{name}.py" for name in ("state_files", "seals", "saving")],
        [f"{CORE}/tests/test_state_file_format.py", f"{CORE}/tests/test_state_files.py"],
    ),
    "engine": (
        [f"{CORE}/src/tracetorch/engine/{name}.py" for name in ("segments", "kernel", "trace")],
        [f"{CORE}/tests/test_{name}.py" for name in ("segments", "kernels", "tracing")],
    ),
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
    if isinstance(node, (ast.If, ast.IfExp)):
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
        self.name, self.file, self.tree = name, file, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, str(self.file))
        loader.tree = self.tree
        return importlib.util.spec_from_file_location(fullname, self.file, loader=loader)


def survives(file: Path, tree: ast.Module | None, tests: list[str], seconds: float) -> bool:
    """Whether the tests pass with it; None: with the file as it is."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            if tree is not None:
                parts = file.relative_to(ROOT).with_suffix("").parts
                name = ".".join(parts[parts.index("src") + 1 :])
                sys.meta_path.insert(0, _Finder(name, file, tree))
            code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])
        except BaseException:
            code = 1
        os._exit(int(code))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=600, help="for one mutant")
    given = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    drawn, total = random.Random(given.seed), 0
    chosen = [given.only] if given.only else list(TARGETS)
    for name in chosen:
        files, tests = TARGETS[name]
        every = [(ROOT / file, place) for file in files for place in candidates(ROOT / file)]
        sample = drawn.sample(every, min(len(every), given.count // len(chosen)))
        if not survives(ROOT / files[0], None, tests, 10 * given.seconds):
            sys.exit(f"{name}: the tests fail without a mutant")
        alive = 0
        for file, place in sample:
            line, done, tree = mutant(file, place)
            if survives(file, tree, tests, given.seconds):
                alive += 1
                text = file.read_text(encoding="utf-8").splitlines()[line - 1].strip()
                sys.stdout.write(f"{file.relative_to(ROOT)}:{line}: {done}: {text}\n")
                sys.stdout.flush()
        total += alive
        sys.stdout.write(f"{name}: {alive} of {len(sample)} of {len(every)} survived\n")
        sys.stdout.flush()
    sys.stdout.write(f"{total} survived\n")


if __name__ == "__main__":
    main()
