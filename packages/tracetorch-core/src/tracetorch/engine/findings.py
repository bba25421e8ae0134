"""What the engine has found out about one step, kept beside it and never copied with it."""

from __future__ import annotations

from typing import Any


class Findings:
    """Found out when it is first asked for.

    Attributes:
        number: by which constants refer to the subject.
        traced: by what it computes in and on, what came of tracing it, the newest first: each is
            true of the step as long as what it read then is still there.
        lane: what serves timesteps like the last one, if anything does.
    """

    def __init__(self, number: str) -> None:
        self.number = number
        self.traced: dict[object, list[Any]] = {}
        self.lane: Any = None
