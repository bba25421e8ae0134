"""What is changed in a docstring on its way to a page: equations, and sections of prose."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pages import equations, public

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# sections that hold sentences; napoleon would take those of "Parameters:" for arguments
_PROSE = re.compile(r"^(Shapes|States|Parameters[^:]*|Source):\s*$")
# an absolute value, which reStructuredText would take for a substitution
_BAR = re.compile(r"(`[^`]*`)|(?<=\S)\|(?=\w)|(?<!\S)\|(?=\w)")
# the first line of arguments that are described together
_TOGETHER = re.compile(r"    ``(learn_\w+|\w+_rank)``[ :]?")


def prepare(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place; of a layer, what stands above it is left out."""
    if what == "property" and lines:
        # napoleon takes what comes before a colon for a type
        lines[0] = lines[0].replace(": ", ", ", 1)
    lines[:] = _parted(lines)[1] if _is_layer(item) else prepared(lines)


def skip(app: Sphinx, what: str, name: str, item: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of named tuples, which their class describes, have nothing to say of their own."""
    return True if (item.__doc__ or "").startswith("Alias for field number") else None


def head(doc: str) -> str:
    """What a layer's docstring says before its arguments: reStructuredText of its own."""
    return "\n".join(_parted(doc.splitlines())[0])


def _is_layer(item: Any) -> bool:
    return any(item is kind for family in ("snn", "rnn") for kind in public.layers(family))


def _parted(lines: list[str]) -> tuple[list[str], list[str]]:
    found = prepared(lines)
    at = found.index("Args:")
    return found[:at], found[at:]


def prepared(lines: list[str]) -> list[str]:
    """The lines of a docstring, ready for napoleon."""
    return _folded([escaped(_PROSE.sub(r"**\1**", line)) for line in _typeset(lines)])


def _typeset(lines: list[str]) -> list[str]:
    found = equations.block("\n".join(lines))
    if not found:
        return lines
    start = lines.index(equations.HEADING)
    math = [f"   {line}" for line in equations.latex(found).splitlines()]
    intro = [equations.HEADING.replace("::", ":"), "", ".. math::", "", *math]
    return [*lines[:start], *intro, *lines[start + 2 + len(found) :]]


def escaped(line: str) -> str:
    """A line in which bars stand for themselves."""
    return line if "\\" in line else _BAR.sub(lambda m: m[1] or r"\|", line)


def _folded(lines: list[str]) -> list[str]:
    """Arguments that are described together, ``a`` ``b``: text, as ``…_rank``: a, b: text."""
    found: list[str] = []
    rest = list(lines)
    while rest:
        entry = [rest.pop(0)]
        if _TOGETHER.match(entry[0]):
            while rest and rest[0].startswith("        "):
                entry.append(rest.pop(0))
            names, _, text = " ".join(map(str.strip, entry)).partition(": ")
            both = r"learn\_…" if names.startswith("``learn_") else "…_rank"
            entry = [f"    {both}: {', '.join(names.split())}: {text}"]
        found += entry
    return found
