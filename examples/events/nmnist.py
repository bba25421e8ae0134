"""N-MNIST: handwritten digits seen by an event camera that nods at them. Knows no net.

Orchard et al., "Converting static image datasets to spiking neuromorphic datasets using saccades",
Frontiers in Neuroscience 9 (2015). A folder holds ``{number}.bs2``, five bytes an event: x, y, then
the polarity (one bit) and microseconds (23 bits, the highest first); and two lists of labels, each
line a number, a tab and a digit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from event_recordings import Recording, Recordings, Sensor, Split, checked

SENSOR = Sensor(34, 34)
CLASSES = 10
LISTS = "train1K.txt", "test100.txt"
EVENT = 5  # bytes


def load(folder: Path) -> Split:
    """What the folder's two lists name.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is missing or malformed, or a recording is in neither list.
    """
    named = [read_labels(folder / name) for name in LISTS]
    without = {int(file.stem) for file in folder.glob("*.bs2") if file.stem.isdecimal()}
    without -= {number for labels in named for number in labels}
    if without:
        raise ValueError(
            f"{folder}: {len(without)} recordings have no label in {' or '.join(LISTS)}, "
            f"{min(without)}.bs2 for one"
        )
    return Split(*(_recordings(folder, labels) for labels in named))


def read_labels(file: Path) -> dict[int, int]:
    """The digit of each recording, by its number.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is something else, a number comes twice, or there is none.
    """
    labels: dict[int, int] = {}
    for index, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 2 or not all(map(str.isdecimal, words)) or int(words[1]) >= CLASSES:
            raise ValueError(
                f"{file}, line {index + 1}: must be a number, a tab and a digit, got {line!r}"
            )
        number, digit = map(int, words)
        if number in labels:
            raise ValueError(f"{file}, line {index + 1}: recording {number} has a label already")
        labels[number] = digit
    if not labels:
        raise ValueError(f"{file} holds no label")
    return labels


def read_recording(file: Path) -> Recording:
    """The events of a ``.bs2`` file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is truncated or holds something that no 34 x 34 camera records.
    """
    data = file.read_bytes()
    if len(data) % EVENT:
        raise ValueError(
            f"{file} is truncated: {len(data)} bytes are no whole number of events of {EVENT}"
        )
    x, y, high, middle, low = np.frombuffer(data, np.uint8).reshape(-1, EVENT).T.astype(np.int64)
    time = (high & 0x7F) << 16 | middle << 8 | low
    return checked(Recording(x, y, time, high >> 7), SENSOR, file)


def _recordings(folder: Path, labels: dict[int, int]) -> Recordings:
    events = [read_recording(folder / f"{number}.bs2") for number in labels]
    return Recordings(SENSOR, events, torch.tensor(list(labels.values())), CLASSES)
