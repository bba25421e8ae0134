"""Measured data → Markdown tables. Knows no part and no library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.harness import OURS, TOTAL, Data, median


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def milliseconds(spread: Data) -> str:
    """Median and, in brackets, the quartiles."""
    center, low, high = (f"{1e3 * spread[key]:.3g}" for key in ("median", "low", "high"))
    return f"{center} ({low}–{high})"


def comparison(
    data: Data, *, base: str = OURS, remarks: bool = True, differing: Data | None = None
) -> str:
    """Every contender with its phases in ms and its total as a multiple of ``base``."""
    phases = list(next(iter(data.values()))["phases"])
    header = ["", *(f"{phase}, ms" for phase in phases), f"time ÷ {base}"]
    header += ["spikes that differ"] * (differing is not None) + ["remark"] * remarks
    rows = []
    for name, entry in sorted(data.items(), key=lambda item: median(data, item[0])):
        row = [name, *(milliseconds(entry["phases"][phase]) for phase in phases)]
        row.append(f"{median(data, name) / median(data, base):.2f}")
        if differing is not None:
            row.append(_share(differing[name]))
        rows.append(row + [entry["note"]] * remarks)
    return table(header, rows)


def _share(share: float | None) -> str:
    if share is None:
        return "another model"
    return f"{share:.2g}" if share else "none"


def ratio(data: Data, other: str, phase: str = TOTAL, base: str = OURS) -> float:
    """How many times as long as ``base`` another contender takes."""
    return median(data, other, phase) / median(data, base, phase)


def megabytes(count: float) -> str:
    """Bytes as MB."""
    return f"{count / 1e6:.0f}"
