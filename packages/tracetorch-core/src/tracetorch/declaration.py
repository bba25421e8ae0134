"""What a layer has declared, and what is kept of it besides what ``nn.Module`` keeps.

Plain records: they know no layer, no model and nothing of how either computes.
"""

from __future__ import annotations

import itertools
from collections import namedtuple
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from tracetorch.effective import Constants
from tracetorch.modules import Bookkeeping
from tracetorch.parameters import ParameterSpec
from tracetorch.passage import Passage
from tracetorch.randomness import RANDOM
from tracetorch.states import StateSpec

_serial = itertools.count()


class Declaration:
    """The parameters and states of a layer by name, in the order in which they were declared.

    Attributes:
        state_fields: makes of states, in order, what ``step`` reads them from by attribute.
        parameter_fields: the same for effective parameters.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, ParameterSpec] = {}
        self.states: dict[str, StateSpec] = {}
        self.complete()

    def complete(self) -> None:
        """After something was added."""
        self.state_fields = _fields("States", self.states)
        self.parameter_fields = _fields("Parameters", self.parameters)

    def __getstate__(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "states": self.states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.complete()


def _fields(name: str, fields: Iterable[str]) -> Callable[..., Any]:
    kind: Callable[..., Any] = namedtuple(name, list(fields))  # type: ignore[misc]
    return kind


class Record(Bookkeeping):
    """What traceTorch keeps of one layer, as ``layer.tt``: for the library's own modules.

    Attributes:
        declaration: its parameters and states.
        states: the standing ones by name, in the user's layout; None: not created yet. Never
            written into: new ones are another dictionary.
        constants: effective values that were computed for raw ones that have not changed since.
        compiled: whether its parameters count as constants (``TTcompile``).
        passage: what its calls go through, if not the timestep.
        findings: the engine's own: what it has found out; None until it is asked.
        construction: its place among all layers, for names of those in a set.
    """

    def __init__(self) -> None:
        self.declaration = Declaration()
        self.states: dict[str, Tensor | None] = {}
        self.constants = Constants()
        self.compiled = False
        self.passage: Passage | None = None
        self.findings: Any = None
        self.construction = (next(_serial), 0)

    def renewed(self) -> Record:
        """Detached states, and nothing that belongs to this one alone but its declaration."""
        record = Record.__new__(Record)
        record.__setstate__(self.__getstate__())
        return record

    def __getstate__(self) -> dict[str, Any]:
        """Detached states, and nothing that belongs to this one alone."""
        states = {n: None if t is None else t.detach() for n, t in self.states.items()}
        return {
            "declaration": self.declaration,
            "states": states,
            "compiled": self.compiled,
            "construction": self.construction,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # the original's place comes first, so that layers in a set keep their names in a copy
        self.construction = (state["construction"][0], next(_serial))
        self.constants, self.passage, self.findings = Constants(), None, None


def check_name(owner: object, name: object, record: Record) -> None:
    """ValueError unless a state or parameter of a layer may have this name."""
    kind = type(owner)
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise ValueError(
            f"{kind.__name__}: a state or parameter needs an identifier that does not start with "
            f"an underscore, got {name!r}"
        )
    declared = record.declaration
    taken = {RANDOM, *vars(owner), *declared.parameters, *declared.states}
    if name in taken or hasattr(kind, name):
        raise ValueError(f"{kind.__name__}: the name {name!r} is taken; choose another")
