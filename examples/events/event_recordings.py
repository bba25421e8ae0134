"""What an event camera recorded, checked. Knows no file and no net.

A pixel of such a camera has no frames: it reports a moment at which it got brighter (ON) or darker
(OFF), and nothing while nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Sensor(NamedTuple):
    """What recorded.

    Attributes:
        width: pixels in a row; of a cochlea, its channels.
        height: rows; 1 where there is but one.
        polarities: 2 where ON and OFF are told apart, else 1.
    """

    width: int
    height: int
    polarities: int = 2


class Recording(NamedTuple):
    """Events in the order of their times, all ``[events]`` and int64.

    Attributes:
        x: column, in 0…width - 1.
        y: row from the top, in 0…height - 1.
        t: microseconds since the recording began.
        p: 1 for ON, 0 for OFF; 0 only where a sensor has one polarity.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    t: NDArray[np.int64]
    p: NDArray[np.int64]


class Recordings(NamedTuple):
    """Recordings of one sensor with their classes.

    Attributes:
        sensor: what recorded.
        events: of each recording.
        labels: ``[recordings]``, int64 in 0…classes - 1.
        classes: how many there are.
    """

    sensor: Sensor
    events: Sequence[Recording]
    labels: Tensor
    classes: int


class Split(NamedTuple):
    """Recordings to learn from, and those held out."""

    train: Recordings
    test: Recordings


def checked(recording: Recording, sensor: Sensor, where: object) -> Recording:
    """The recording itself.

    Raises:
        ValueError: ``where`` holds no event, one outside of the sensor or of another polarity, or
            times that are negative or run backwards; it says which event.
    """
    x, y, t, p = recording
    if not len(t):
        raise ValueError(f"{where} holds no event")
    outside = (x < 0) | (x >= sensor.width) | (y < 0) | (y >= sensor.height)
    if outside.any():
        at = int(outside.argmax())
        size = f"{sensor.width} x {sensor.height}"
        raise ValueError(f"{where}: event {at} is at ({x[at]}, {y[at]}), outside of {size} pixels")
    unknown = (p < 0) | (p >= sensor.polarities)
    if unknown.any():
        at = int(unknown.argmax())
        raise ValueError(
            f"{where}: event {at} has polarity {p[at]} of a sensor with {sensor.polarities}"
        )
    if t[0] < 0:
        raise ValueError(f"{where}: event 0 is at {t[0]} µs, before the recording began")
    backwards = np.diff(t) < 0
    if backwards.any():
        at = int(backwards.argmax()) + 1
        raise ValueError(
            f"{where}: time runs backwards at event {at}, from {t[at - 1]} to {t[at]} µs"
        )
    return recording
