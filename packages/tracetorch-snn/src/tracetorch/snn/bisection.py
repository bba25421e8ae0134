"""Looks for a factor whose rate lies in a band, by measuring: knows numbers alone.

The rate is taken to rise with the factor only as the direction that is tried first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

# two factors this near have between them a jump of the rate, not a place in the band
_JUMP = 1.001


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        factor: the one to take.
        rate: what it gives.
        why: what could not be done; empty where the rate lies in the band.
    """

    factor: float
    rate: float
    why: str


@dataclass(frozen=True)
class Search:
    """How a factor is looked for.

    Attributes:
        band: lower and upper end of the rate.
        limits: smallest and largest factor, around 1.
        passes: how often it may be measured.
    """

    band: tuple[float, float]
    limits: tuple[float, float]
    passes: int

    def miss(self, rate: float) -> int:
        """-1 under the band, 1 above it, 0 within."""
        return (rate > self.band[1]) - (rate < self.band[0])

    def run(self, measure: Callable[[float], float], before: float) -> Found:
        """A factor whose rate lies in the band, or the one that came nearest, and why not."""
        tried = {1.0: before}
        for factor in self._candidates(tried):
            if len(tried) > self.passes:
                return self._nearest(tried, f"{self.passes} passes were not enough")
            tried[factor] = measure(factor)
            if self.miss(tried[factor]) == 0:
                return Found(factor, tried[factor], "")
        if len({*map(self.miss, tried.values())}) == 2:
            return self._nearest(tried, "its rate jumps over the band")
        if len({*tried.values()}) == 1:
            return self._nearest(tried, "its rate does not depend on its weights")
        low, high = self.limits
        return self._nearest(tried, f"no factor in {low:g}…{high:g} brings it into the band")

    def _candidates(self, tried: dict[float, float]) -> Iterator[float]:
        """The next factor to try: away from 1, then between two that miss on different sides."""
        up, down = (self._away(step) for step in (2.0, 0.5))
        for side in (up, down) if self.miss(tried[1.0]) < 0 else (down, up):
            last = 1.0
            for factor in side:
                yield factor
                if self.miss(tried[factor]) != self.miss(tried[last]):
                    yield from self._between(last, factor, tried)
                    return
                last = factor

    def _away(self, step: float) -> Iterator[float]:
        low, high = self.limits
        factor, end = 1.0, high if step > 1 else low
        while factor != end:
            factor = min(max(factor * step, low), high)
            yield factor

    def _between(self, a: float, b: float, tried: dict[float, float]) -> Iterator[float]:
        """Bisected on a logarithmic scale, keeping one end on each side of the band."""
        while max(a / b, b / a) > _JUMP:
            middle = math.sqrt(a * b)
            yield middle
            a, b = (middle, b) if self.miss(tried[middle]) == self.miss(tried[a]) else (a, middle)

    def _nearest(self, tried: dict[float, float], why: str) -> Found:
        """Of all that were tried; of equals the one that changes least."""
        low, high = self.band
        factor = min(tried, key=lambda f: (max(low - tried[f], tried[f] - high), abs(math.log(f))))
        return Found(factor, tried[factor], why)
