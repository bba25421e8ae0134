"""Names of states and parameters in generated source: readable, and no two alike."""

from __future__ import annotations

import re


class Names:
    """Identifiers for the labels of one source."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, label: str) -> str:
        """The part of identifiers that belongs to a label, ASCII letters, digits, underscores."""
        if label not in self._known:
            plain = name = re.sub(r"[^0-9A-Za-z_]", "_", label)
            count = 1
            while name in self._known.values():
                count += 1
                name = f"{plain}{count}"
            self._known[label] = name
        return self._known[label]

    def variable(self, label: str) -> str:
        """An identifier; no word of a language ends in an underscore."""
        return f"{self.of(label)}_"
