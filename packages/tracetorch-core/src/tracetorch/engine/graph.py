"""What a timestep computes: a small graph of elementwise operations, checked as it is made.

Nodes are made by a :class:`Graph`, which gives back the node it has where the same is asked for
twice and simplifies what would be computed for nothing. Knows the table of operations only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tracetorch.engine.ops import TABLE

INPUT, CONST, RANDOM = "input", "const", "random"

# finite for every argument but NaN
_BOUNDED = ("sigmoid", "tanh", "erf", "atan")


class Untranslated(Exception):
    """There is no node for what was asked; the message says what of it."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value per lane.

    Attributes:
        op: a row of the table, or ``input``, ``const`` or ``random``.
        args: what it is computed from.
        gives: ``f`` floating, ``b`` boolean.
        label: an input's name; a constant's value or a draw's number as text.
    """

    op: str
    args: tuple[Node, ...]
    gives: str
    label: str = ""

    @property
    def value(self) -> float:
        """A constant's number."""
        return float(self.label)


class Graph:
    """Makes nodes; each combination of operation and arguments once."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Node] = {}

    def input(self, name: str) -> Node:
        """A value given from outside."""
        return self._once(INPUT, (), "f", name)

    def const(self, value: float) -> Node:
        """The same number in every lane."""
        return self._once(CONST, (), "f", repr(float(value)))

    def random(self, draw: int) -> Node:
        """The uniform number in [0, 1) that a timestep draws after ``draw`` others."""
        return self._once(RANDOM, (), "f", str(draw))

    def op(self, name: str, *args: Node) -> Node:
        """The row ``name`` of the table applied to ``args``."""
        row = TABLE[name]
        kinds = "".join(arg.gives for arg in args)
        if kinds != row.takes:
            raise Untranslated(f"{name} takes {row.takes}, got {kinds} (f floating, b boolean)")
        return self._simplified(name, args) or self._once(name, args, row.gives)

    def _once(self, op: str, args: tuple[Node, ...], gives: str, label: str = "") -> Node:
        key = (op, *map(id, args), label)
        if key not in self._made:
            self._made[key] = Node(op, args, gives, label)
        return self._made[key]

    def _simplified(self, name: str, args: tuple[Node, ...]) -> Node | None:
        if name in ("mul", "div") and _is(args[1], 1.0):
            return args[0]
        if name == "mul" and _is(args[0], 1.0):
            return args[1]
        if name == "sub" and args[0] is args[1]:
            # p − p of a bounded p, the straight-through estimator's: only NaN survives it
            source = _bounded_by(args[0])
            return None if source is None else self.op("nan_or_zero", source)
        # between zero and zero there is only zero, and NaN
        if name == "minimum" and args[0].op == "maximum" and args[0].args[1] is args[1]:
            return self.op("nan_or_zero", args[0].args[0]) if _is(args[1], 0.0) else None
        if name == "pow" and args[1].op == CONST:
            return self._power(args[0], args[1].value)
        return None

    def _power(self, base: Node, exponent: float) -> Node | None:
        if exponent == 1.0:
            return base
        if exponent == 0.5:
            return self.op("sqrt", base)
        if exponent in (2.0, 3.0):
            square = self.op("mul", base, base)
            return square if exponent == 2.0 else self.op("mul", square, base)
        return None


def _is(node: Node, value: float) -> bool:
    return node.op == CONST and node.value == value


def _moderate(node: Node) -> bool:
    return node.op == CONST and 1e-6 < abs(node.value) < 1e6


def _bounded_by(node: Node) -> Node | None:
    """The node whose being NaN is the one way for ``node`` not to be finite, if there is one."""
    if node.op in _BOUNDED:
        (source,) = node.args
        if source.op == "mul" and any(map(_moderate, source.args)):
            source = source.args[0] if _moderate(source.args[1]) else source.args[1]
        return source
    if node.op in ("add", "sub", "mul", "div") and _moderate(node.args[1]):
        return _bounded_by(node.args[0])
    if node.op in ("add", "mul") and _moderate(node.args[0]):
        return _bounded_by(node.args[1])
    return None


def ordered(outputs: Iterable[Node]) -> list[Node]:
    """Everything the outputs are computed from, arguments first."""
    seen: dict[Node, None] = {}

    def visit(root: Node) -> None:
        stack: list[tuple[Node, Iterator[Node]]] = [(root, iter(root.args))]
        while stack:
            node, rest = stack[-1]
            following = next((arg for arg in rest if arg not in seen), None)
            if following is not None:
                stack.append((following, iter(following.args)))
            else:
                seen.setdefault(node)
                stack.pop()

    for output in outputs:
        if output not in seen:
            visit(output)
    return list(seen)


def read_by(outputs: Iterable[Node]) -> set[str]:
    """Names of the inputs that the outputs depend on."""
    return {node.label for node in ordered(outputs) if node.op == INPUT}


def draws_of(outputs: Iterable[Node]) -> list[Node]:
    """The random numbers among what the outputs are computed from."""
    return [node for node in ordered(outputs) if node.op == RANDOM]


def verify(outputs: Mapping[str, Node], inputs: Iterable[str]) -> None:
    """ValueError unless every node is a row of the table, well typed, over known inputs."""
    known = set(inputs)
    for node in ordered(outputs.values()):
        if node.op == INPUT:
            if node.label not in known:
                raise ValueError(
                    f"the graph reads {node.label!r}, which is none of {sorted(known)}"
                )
        elif node.op == CONST:
            if not math.isfinite(node.value) and node.label not in ("inf", "-inf", "nan"):
                raise ValueError(f"the constant {node.label} is no number")
        elif node.op != RANDOM and "".join(arg.gives for arg in node.args) != TABLE[node.op].takes:
            raise ValueError(f"{node.op} takes {TABLE[node.op].takes}, got {node.args}")
    for name, output in outputs.items():
        if output.gives != "f":
            raise ValueError(f"the output {name} is boolean, a state or output must be floating")
