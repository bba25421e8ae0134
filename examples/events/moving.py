"""Bars, edges and discs that cross the view of an event camera; the class is where they go.

Knows no net. A bright shape turns pixels ON at its front and OFF at its back, a dark one the other
way round. So a dark shape that goes left is a bright one that goes right, played backwards: frames
without their order tell the axis of the movement, at best, and not its direction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from event_recordings import Recording, Recordings, Sensor
from numpy.typing import NDArray

SENSOR = Sensor(24, 24)
DIRECTIONS = 8  # 0 is to the right, and so on clockwise
DURATION = 120.0  # ms
SPEED = 0.12, 0.30  # pixels per ms
AGAIN = 1.0  # further events at each change of a pixel, on average
JITTER = 1.0  # ms, standard deviation of an event's time
NOISE = 8.0  # events of each pixel per second that mean nothing


class Shape(NamedTuple):
    """Something that moves.

    Attributes:
        kind: ``"bar"``, ``"edge"`` or ``"disc"``.
        bright: brighter than what is behind it.
        direction: in eighths of a turn, clockwise from the right.
        speed: pixels per ms.
        when: ms at which it is nearest to the middle of the view.
        aside: pixels to the right of its way, at which it passes the middle.
        along: half of a bar's length along its way, in pixels.
        across: half of its length across it; of a disc, its radius.
    """

    kind: str
    bright: bool
    direction: int
    speed: float
    when: float
    aside: float
    along: float
    across: float


def any_shape(direction: int, random: np.random.Generator) -> Shape:
    """Of any kind, size and brightness."""
    kind = ("bar", "edge", "disc")[random.integers(3)]
    return Shape(
        kind,
        bright=bool(random.integers(2)),
        direction=direction,
        speed=random.uniform(*SPEED),
        when=DURATION * random.uniform(0.35, 0.65),
        aside=random.uniform(-4.0, 4.0),
        along=random.uniform(1.5, 3.5),
        across=random.uniform(3.0, 6.0) if kind == "disc" else random.uniform(5.0, 10.0),
    )


def passes(shape: Shape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When its front, and when its back passes each pixel, in ms ``[H, W]``; infinite: never.

    An edge has no back, and its front is in the middle when it is nearest.
    """
    angle = 2 * math.pi * shape.direction / DIRECTIONS
    down, right = np.indices((SENSOR.height, SENSOR.width), dtype=float)
    down, right = down - (SENSOR.height - 1) / 2, right - (SENSOR.width - 1) / 2
    ahead = right * math.cos(angle) + down * math.sin(angle)
    aside = down * math.cos(angle) - right * math.sin(angle) - shape.aside
    if shape.kind == "edge":
        return shape.when + ahead / shape.speed, np.full_like(ahead, np.inf)
    half = np.full_like(ahead, shape.along)
    if shape.kind == "disc":
        half = np.sqrt(np.maximum(shape.across**2 - aside**2, 0.0))
    half[np.abs(aside) > shape.across] = np.inf
    return shape.when + (ahead - half) / shape.speed, shape.when + (ahead + half) / shape.speed


def record(shape: Shape, random: np.random.Generator) -> Recording:
    """The events of a shape and of noise, over ``DURATION``."""
    front, back = passes(shape)
    parts = [_noise(random), _changes(front, shape.bright, random)]
    parts.append(_changes(back, not shape.bright, random))
    x, y, t, p = (np.concatenate(values) for values in zip(*parts, strict=True))
    seen = (t >= 0) & (t < DURATION * 1000)
    order = np.flatnonzero(seen)[np.argsort(t[seen], kind="stable")]
    return Recording(x[order], y[order], t[order], p[order])


def recordings(count: int, seed: int) -> Recordings:
    """So many, the directions in turn."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % DIRECTIONS
    events = [record(any_shape(int(label), random), random) for label in labels]
    return Recordings(SENSOR, events, torch.from_numpy(labels), DIRECTIONS)


def _changes(when: NDArray[np.float64], on: bool, random: np.random.Generator) -> Recording:
    """Events of the pixels at which something passes, ms ``[H, W]``, in any order."""
    y, x = np.nonzero(np.isfinite(when))
    repeated = np.repeat(np.arange(len(x)), 1 + random.poisson(AGAIN, len(x)))
    y, x = y[repeated], x[repeated]
    t = _microseconds(when[y, x] + random.normal(0.0, JITTER, len(x)))
    return Recording(x, y, t, np.full(len(x), int(on)))


def _noise(random: np.random.Generator) -> Recording:
    count = random.poisson(NOISE * SENSOR.width * SENSOR.height * DURATION / 1000)
    x, y, p = (random.integers(n, size=count) for n in (SENSOR.width, SENSOR.height, 2))
    return Recording(x, y, _microseconds(random.uniform(0.0, DURATION, count)), p)


def _microseconds(ms: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(ms * 1000).astype(np.int64)
