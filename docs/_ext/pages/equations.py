"""Equations as the spiking layers write them, with letters and signs, in LaTeX. Knows no Sphinx."""

from __future__ import annotations

import re

HEADING = "Equations of one timestep, per neuron::"

_SIGNS = {
    "←": r" &\leftarrow ",
    "=": " &= ",
    "·": r" \cdot ",
    "−": "-",
    "⁺": "^{+}",
    "⁻": "^{-}",
    "±": r"^{\pm}",
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "θ": r"\theta",
    ",": r",\quad ",
    **{sign: sign for sign in "+()1 "},
}
_PIECE = re.compile(r"[A-Za-z_]{2,}|.")


def latex(lines: list[str]) -> str:
    r"""A line of LaTeX for each equation, aligned where its first sign of equality stands.

    Raises:
        ValueError: an equation has a sign that there is no LaTeX for.

    Example:
        >>> latex(["syn± ← α±·syn± + x±"])
        '\\text{syn}^{\\pm} &\\leftarrow \\alpha^{\\pm} \\cdot \\text{syn}^{\\pm}+x^{\\pm}'
    """
    return " \\\\\n".join(_equation(line) for line in lines)


def _equation(line: str) -> str:
    found = "".join(_piece(piece, line) for piece in _PIECE.findall(line.replace(" ", "")))
    first, mark, rest = found.partition("&")
    return first + mark + rest.replace("&", "")


def _piece(piece: str, line: str) -> str:
    if len(piece) > 1:
        return rf"\text{{{piece}}}"
    if piece.isascii() and piece.isalpha():
        return piece
    if piece not in _SIGNS:
        raise ValueError(f"there is no LaTeX for {piece!r} in the equation {line!r}")
    return _SIGNS[piece]


def block(doc: str) -> list[str]:
    """The equations in a docstring, a line each; none where it has no such block."""
    lines = doc.splitlines()
    if HEADING not in lines:
        return []
    after = lines[lines.index(HEADING) + 2 :]
    end = next((i for i, line in enumerate(after) if not line.strip()), len(after))
    return [line.strip() for line in after[:end]]
