"""Data sets of the library tonic, where it is installed. Knows no net.

A set of tonic has a ``sensor_size`` (width, height, polarities), a length and, by index, an array
of events with named fields and a label. The fields of SHD, the 700 channels of a cochlea, are
``t, x, p``; those of N-MNIST and the DVS gestures ``x, y, t, p``, in one order or another.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.command_line import first_line
from event_recordings import Recording, Recordings, Sensor, Split, checked
from numpy.typing import NDArray
from tqdm import tqdm

# what constructors are asked for; SSC alone also has a part to validate with, and names it
BY_NAME = {"split": "train"}, {"split": "test"}
BY_TRUTH = {"train": True}, {"train": False}


def load(name: str, folder: Path) -> Split:
    """The set of that name, as tonic keeps it in the folder; tonic downloads it if it is not there.

    Raises:
        ValueError: tonic is not installed, has no such set, or cannot get it.
    """
    try:
        sets = importlib.import_module("tonic.datasets")
    except ImportError as error:
        raise ValueError(
            f"--tonic needs tonic, which cannot be imported ({error}): pip install tonic"
        ) from error
    kind = getattr(sets, name, None)
    if not isinstance(kind, type):
        raise ValueError(f"tonic has no data set {name!r}")
    try:
        of_its_kind = BY_NAME if "split" in inspect.signature(kind).parameters else BY_TRUTH
        parts = [kind(save_to=str(folder), **which) for which in of_its_kind]
    except Exception as error:  # whatever its download and its unpacking raise
        raise ValueError(f"tonic cannot make {name} of {folder}: {first_line(error)}") from error
    train, test = map(recordings, parts)
    classes = max(train.classes, test.classes)
    return Split(train._replace(classes=classes), test._replace(classes=classes))


def recordings(dataset: Any) -> Recordings:
    """All of a data set.

    Args:
        dataset: of tonic, or of its form, without a transform: ``dataset[i]`` is a structured array
            and an integer.

    Raises:
        ValueError: it has no sensor, no recording, or one that is malformed.
    """
    name, size = type(dataset).__name__, getattr(dataset, "sensor_size", None)
    if not isinstance(size, tuple) or len(size) != 3:
        raise ValueError(f"{name}.sensor_size must be (width, height, polarities), got {size!r}")
    if len(dataset) == 0:
        raise ValueError(f"{name} holds no recording")
    sensor, events, labels = Sensor(*map(int, size)), [], []
    for index in tqdm(range(len(dataset)), desc=f"reading {name}", leave=False):
        array, label = dataset[index]
        where = f"{name}[{index}]"
        events.append(checked(of_array(array, sensor, where), sensor, where))
        labels.append(_label(label, where))
    told = getattr(dataset, "classes", ())
    classes = max(max(labels) + 1, len(told))
    return Recordings(sensor, events, torch.tensor(labels), classes)


def of_array(events: NDArray[Any], sensor: Sensor, where: object) -> Recording:
    """A structured array ``[events]`` → a recording in the order of its times, not checked yet.

    Fields are found by name: ``x`` and ``t`` (microseconds) have to be there, ``y`` is 0 where it
    is not. A polarity ``p`` is a boolean, 0 and 1, or -1 and 1; it is of a sensor that has two.

    Raises:
        ValueError: it has no such fields.
    """
    names = getattr(getattr(events, "dtype", None), "names", None) or ()
    needed = {"x", "t", "p"} if sensor.polarities > 1 else {"x", "t"}
    if not needed <= set(names):
        held, asked = ", ".join(names) or "none", ", ".join(sorted(needed))
        raise ValueError(
            f"{where} must be an array with the fields {asked}; its fields are: {held}"
        )
    events = events[np.argsort(events["t"], kind="stable")]
    x, t = (events[name].astype(np.int64) for name in "xt")
    y = events["y"].astype(np.int64) if "y" in names else np.zeros_like(x)
    p = (events["p"] > 0).astype(np.int64) if sensor.polarities > 1 else np.zeros_like(x)
    return Recording(x, y, t, p)


def _label(label: Any, where: str) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the label must be a number, got {label!r}") from error
    if number < 0:
        raise ValueError(f"{where}: the label must be at least 0, got {number}")
    return number
