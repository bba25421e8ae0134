"""Events → timesteps: what happened in bins of one duration, as frames. Knows no net."""

from __future__ import annotations

import math

import numpy as np
import torch
from event_recordings import Recording, Recordings, Sensor
from numpy.typing import NDArray
from torch import Tensor

KINDS = "ternary", "binary", "counts"
LARGEST = np.iinfo(np.int8).max
MOST = 8 * 10**9  # bytes of all frames


def channels(sensor: Sensor, kind: str) -> int:
    """How many a frame of that kind has."""
    return 1 if kind == "ternary" else sensor.polarities


def frames(
    recording: Recording, sensor: Sensor, kind: str, timesteps: int, duration: int
) -> NDArray[np.int8]:
    """One recording as ``[T, C, H, W]``; a bin holds its beginning, not its end.

    Args:
        recording: whatever comes after ``timesteps * duration`` is left out.
        sensor: what recorded it.
        kind: ``"ternary"``: one channel, 1 where a pixel had more ON than OFF events in the bin, -1
            where it had fewer, else 0 (of a sensor with one polarity, 1 where it had any).
            ``"binary"``: a channel for each polarity, OFF first, 1 where a pixel had any event of
            it. ``"counts"``: likewise how many, at most 127.
        timesteps: how many bins.
        duration: of a bin, in microseconds.
    """
    bin_, shape = recording.t // duration, (timesteps, *sensor[2:], sensor.height, sensor.width)
    here = bin_ < timesteps
    places = (bin_, recording.p, recording.y, recording.x)
    flat = np.ravel_multi_index([place[here] for place in places], shape)
    counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
    if kind == "ternary":
        more = counts[:, -1:] - (counts[:, :1] if sensor.polarities > 1 else 0)
        found = np.sign(more)
    else:
        found = np.minimum(counts, 1 if kind == "binary" else LARGEST)
    as_bytes: NDArray[np.int8] = found.astype(np.int8)
    return as_bytes


def timesteps_of(recordings: Recordings, duration: int) -> int:
    """How many bins of so many microseconds the longest of them takes."""
    return max(int(events.t[-1]) for events in recordings.events) // duration + 1


def stacked(recordings: Recordings, kind: str, timesteps: int, duration: int) -> Tensor:
    """All of them as ``[recordings, T, C, H, W]``, int8; see :func:`frames`.

    Raises:
        ValueError: that would take more than 8 GB.
    """
    sensor, events = recordings.sensor, recordings.events
    size = (len(events), timesteps, channels(sensor, kind), sensor.height, sensor.width)
    if math.prod(size) > MOST:
        raise ValueError(
            f"{len(events)} recordings in {timesteps} timesteps of {duration} µs would take "
            f"{math.prod(size) / 1e9:.0f} GB; take longer timesteps"
        )
    found = torch.empty(size, dtype=torch.int8)
    for index, recording in enumerate(events):
        found[index] = torch.from_numpy(frames(recording, sensor, kind, timesteps, duration))
    return found


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each recording ``[B, T, C, H, W]`` moved by up to ``most`` pixels, what comes in is silent.

    Along a row only, where there is but one.
    """
    height, width = x.shape[-2:]
    down_most = most if height > 1 else 0
    padded = torch.nn.functional.pad(x, [most, most, down_most, down_most])
    down = torch.randint(2 * down_most + 1, (len(x),), generator=generator).tolist()
    right = torch.randint(2 * most + 1, (len(x),), generator=generator).tolist()
    moved = [
        one[..., d : d + height, r : r + width]
        for one, d, r in zip(padded, down, right, strict=True)
    ]
    return torch.stack(moved)


def out_of_order(x: Tensor, generator: torch.Generator) -> Tensor:
    """The timesteps of each recording ``[B, T, …]`` in an order of chance."""
    order = torch.rand(x.shape[:2], generator=generator).argsort(1)
    return x[torch.arange(len(x))[:, None], order]
