"""What the engine knows of one layer; a copy of the layer begins without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracetorch.engine.fingerprint import _Look
    from tracetorch.engine.operators import Served
    from tracetorch.engine.trace import Traced


class Known:
    """Found out when it is first asked for.

    Attributes:
        number: by which constants refer to the layer.
        programs: how its sequences run, None for a loop, by types and fingerprint.
        traces: its step, or why there is no graph of it, by types and fingerprint.
        operations: of how many a timestep is made.
        look: the last look at what its step may read.
    """

    def __init__(self, number: str = "") -> None:
        self.number = number
        self.programs: dict[object, Served | None] = {}
        self.traces: dict[object, Traced | str] = {}
        self.operations: int | None = None
        self.look: _Look | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Known:
        return Known()
