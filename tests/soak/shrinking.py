"""A failing program made shorter: calls and blocks left out one by one, as long as it fails."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

from programs import Program


def shorter(program: Program, fails: Callable[[Program], bool], seconds: float) -> Program:
    """The shortest found within so many seconds."""
    until = time.monotonic() + seconds
    again = True
    while again and time.monotonic() < until:
        again = False
        for candidate in _candidates(program):
            if time.monotonic() > until:
                break
            if fails(candidate):
                program, again = candidate, True
                break
    return program


def _candidates(program: Program) -> Iterator[Program]:
    for place in reversed(range(len(program.calls))):
        rest = (*program.calls[:place], *program.calls[place + 1 :])
        if rest:
            yield dataclasses.replace(program, calls=rest)
    for place in range(len(program.blocks)):
        left = (*program.blocks[:place], *program.blocks[place + 1 :])
        if left:
            yield dataclasses.replace(program, blocks=left)
    for place, call in enumerate(program.calls):
        for name in call.given.keys() - {"T", "B", "seed", "mask", "index", "training", "suffix"}:
            given = {k: v for k, v in call.given.items() if k != name}
            calls = list(program.calls)
            calls[place] = dataclasses.replace(call, given=given)
            yield dataclasses.replace(program, calls=tuple(calls))
