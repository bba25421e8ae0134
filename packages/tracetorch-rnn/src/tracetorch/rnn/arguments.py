"""Arguments of the state-space layers, checked by name. Knows no layer."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

from tracetorch.parameters import checked_integer


def checked_number(owner: str, name: str, value: object) -> float:
    """``value`` as a float.

    Raises:
        TypeError: it is no real number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    return float(value)


def checked_bounds(
    owner: str, names: tuple[str, str], bounds: tuple[float, float], low: float, high: float
) -> tuple[float, float]:
    """Two numbers of which the first is the lower one, both in [``low``, ``high``].

    Raises:
        TypeError: one is no real number.
        ValueError: one lies outside, or they are not in order.
    """
    first, last = (checked_number(owner, *pair) for pair in zip(names, bounds, strict=True))
    if not low <= first < last <= high:
        allowed = f"{low:g} ≤ {names[0]} < {names[1]}"
        allowed += "" if math.isinf(high) else f" ≤ {high:g}"
        raise ValueError(
            f"{owner}: {allowed} must hold, got {names[0]}={first:g}, {names[1]}={last:g}"
        )
    return first, last


def checked_steps(owner: str, dt_min: float, dt_max: float) -> tuple[float, float]:
    """The range of initial step sizes, positive and in order, which may be one value.

    Raises:
        TypeError: one is no real number.
        ValueError: one is not positive and finite, or they are not in order.
    """
    low = checked_number(owner, "dt_min", dt_min)
    high = checked_number(owner, "dt_max", dt_max)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"{owner}: 0 < dt_min ≤ dt_max < ∞ must hold, got dt_min={low:g}, dt_max={high:g}"
        )
    return low, high


def checked_even(owner: str, name: str, value: object) -> int:
    """``value`` as an even int of at least 2.

    Raises:
        TypeError: it is no integer.
        ValueError: it is odd or below 2.
    """
    found = checked_integer(owner, name, value, low=2)
    if found % 2:
        raise ValueError(f"{owner}: {name} must be even (pairs of conjugates), got {value!r}")
    return found


def checked_choice(owner: str, name: str, value: object, choices: Sequence[str]) -> str:
    """``value`` where it is one of the ``choices``.

    Raises:
        TypeError: it is no string.
        ValueError: it is none of them.
    """
    if not isinstance(value, str):
        raise TypeError(f"{owner}: {name} must be one of {[*choices]}, got {value!r}")
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {[*choices]}, got {value!r}")
    return value
