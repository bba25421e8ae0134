"""Diagrams: a layer's states on the way from input to output; a sequence whose time is folded."""

from __future__ import annotations

from html import escape
from typing import Any

STEP, WIDTH, HEIGHT, TOP = 150, 100, 44, 40
_BELOW = TOP + 95
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
)
_HALVES = {"pos_": "⁺", "neg_": "⁻", "": ""}


def diagram(kind: type[Any]) -> str:
    """An SVG in the colour of the text around it.

    A box is a state with its decay, its arc what is left of it after a timestep; for layers other
    than the leaky integrators one box holds all states.
    """
    boxes = _boxes(kind)
    back = getattr(kind, "recurrence", False)
    drawn = [_label(0, "x"), *(_box(60 + STEP * i, TOP, *box) for i, box in enumerate(boxes))]
    drawn += [_arrow(62 + STEP * (i - 1) + WIDTH, 58 + STEP * i) for i in range(len(boxes) + 1)]
    end = 66 + STEP * len(boxes)
    drawn.append(_label(end, "out"))
    if back:
        drawn += _feedback(kind, boxes, end)
    height = _BELOW + HEIGHT + 10 if back else TOP + HEIGHT + 10
    return _svg(f"How the states of {kind.__name__} hang together", end + 40, height, drawn)


def folded() -> str:
    """Four timesteps as a loop, and all at once: two SVGs beside one another, or one below."""
    across = [20 + 95 * t for t in range(4)]
    middle = [x + 40 for x in across]
    boxes = ((60, "Linear"), (150, "LIB"))
    loop = [_rect(x, y, 80, name) for y, name in boxes for x in across] + _ways(middle)
    loop += [_line(f"M{x + 82} 172 H{x + 93}") for x in across[:-1]]
    wide = across[-1] + 80 - across[0]
    once = [_rect(across[0], 60, wide, "Linear, once: [T·B, …]"), _rect(across[0], 150, wide, "")]
    once += [_text(across[0] + wide / 2, 168, "LIB, one kernel: [T, B, …]")]
    once += [_line(f"M{across[0] + 40} 182 H{across[-1] + 40}"), *_ways(middle)]
    drawn = {"for x_t in x: net(x_t)": loop, "net.unroll(x)": once}
    return f'<div class="pair">{"".join(map(_sequence, drawn, drawn.values()))}</div>'


def _sequence(title: str, parts: list[str]) -> str:
    said = f"Four timesteps through a linear layer and LIB: {title}"
    return _svg(said, 405, 250, [_text(202, 18, title), *parts])


def _svg(said: str, width: int, height: int, drawn: list[str]) -> str:
    return (
        f'<svg class="diagram" role="img" aria-label="{escape(said)}" '
        f'viewBox="0 0 {width} {height}" style="max-width: {width}px">'
        f"{_TIP}{''.join(drawn)}</svg>"
    )


def _ways(middle: list[int]) -> list[str]:
    """The way of each timestep: into the upper box, to the lower, out of it."""
    found = []
    for t, x in enumerate(middle):
        found.append(_text(x, 38, f"x[{t}]", small=True))
        found.append(_line(f"M{x} 43 V58"))
        found.append(_line(f"M{x} {60 + HEIGHT} V148"))
        found.append(_line(f"M{x} {150 + HEIGHT} V218"))
        found.append(_text(x, 236, f"y[{t}]", small=True))
    return found


def _rect(x: int, y: int, width: int, name: str) -> str:
    found = f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="8"/>'
    return found + _text(x + width / 2, y + HEIGHT / 2 + 5, name)


def _boxes(kind: type[Any]) -> list[tuple[str, str]]:
    """Name and decay of each box from input to output; without a decay, it keeps nothing."""
    if not hasattr(kind, "polarity"):
        return [(", ".join(_states(kind)), " ")]
    found = [("syn", "α")] if kind.synapse else []
    found.append(("mem", "β"))
    named = [(_both(kind, name), _both(kind, decay)) for name, decay in found]
    return [*named, ("fires", "")] if kind.firing else named


def _states(kind: type[Any]) -> tuple[str, ...]:
    return tuple(kind(2, 2).tt.states)


def _both(kind: type[Any], name: str) -> str:
    return " ".join(name + _HALVES[half] for half in kind.polarity)


def _feedback(kind: type[Any], boxes: list[tuple[str, str]], end: int) -> list[str]:
    """The way of the last output back to the membrane."""
    at = 60 + STEP * (len(boxes) - 2)
    middle, down = at + STEP / 2, _BELOW + HEIGHT / 2
    height = TOP + HEIGHT / 2
    right = end + 10
    return [
        _box(int(middle), _BELOW, _both(kind, "rec"), _both(kind, "γ")),
        _line(f"M{right} {height + 12} V{down} H{middle + WIDTH + 2}"),
        _text((middle + WIDTH + right) / 2 + 4, down - 8, "prev_output", small=True),
        _line(f"M{middle} {down} H{at + WIDTH / 2} V{TOP + HEIGHT + 2}"),
        _text(at + WIDTH / 2 - 26, down - 8, _both(kind, "w"), small=True),
    ]


def _box(x: int, y: int, name: str, decay: str) -> str:
    found = _rect(x, y, WIDTH, name)
    if decay:
        left, right = x + WIDTH * 0.3, x + WIDTH * 0.7
        found += _line(f"M{right} {y} C{right} {y - 22} {left} {y - 22} {left} {y - 2}")
        found += _text(x + WIDTH / 2, y - 22, decay.strip(), small=True)
    return found


def _arrow(start: float, end: float) -> str:
    return _line(f"M{start} {TOP + HEIGHT / 2} H{end}")


def _label(x: float, text: str) -> str:
    return f'<text x="{x}" y="{TOP + HEIGHT / 2 + 5}">{escape(text)}</text>'


def _line(path: str) -> str:
    return f'<path d="{path}" marker-end="url(#tip)"/>'


def _text(x: float, y: float, text: str, small: bool = False) -> str:
    size = ' class="small"' if small else ""
    return f'<text x="{x}" y="{y}" text-anchor="middle"{size}>{escape(text)}</text>'
