"""Ragged sequences from ``.ts`` files, as the archives of time series have them. Knows no net.

Such a file has lines of ``@key values``, then ``@data`` and a line for each sequence: its
dimensions, parted by colons, are numbers parted by commas; its class comes last.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from utterances import Corpus, Utterances

NEEDED = ("timeStamps", "missing", "dimensions", "classLabel")


def japanese_vowels() -> Path:
    """The folder of JapaneseVowels in the installed aeon, which is found and not imported.

    Raises:
        ValueError: it is not there.
    """
    found = find_spec("aeon")
    for place in (found.submodule_search_locations or []) if found else []:
        if (folder := Path(place) / "datasets" / "data" / "JapaneseVowels").is_dir():
            return folder
    raise ValueError(
        "JapaneseVowels is in the wheel of aeon: pip install --no-deps aeon, or give --data"
    )


def load(folder: Path) -> Corpus:
    """A set in the archives' own split, ``NAME/NAME_TRAIN.ts`` and ``NAME/NAME_TEST.ts``.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is something else, or its sequences do not fit those of the other.
    """
    name = folder.resolve().name
    learn, test = (read(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST"))
    if (learn.width, learn.names) != (test.width, test.names):
        raise ValueError(f"{folder}: the two files are of different dimensions or classes")
    parts = [_utterances(part) for part in (learn, test)]
    return Corpus(name, learn.names, *parts)


class Sequences(NamedTuple):
    """What a file holds.

    Attributes:
        frames: of each sequence, ``[T, width]``.
        classes: of each, one of ``names``.
        names: all classes, in the file's order.
        width: dimensions of a timestep.
    """

    frames: list[Tensor]
    classes: list[str]
    names: list[str]
    width: int


def _utterances(part: Sequences) -> Utterances:
    """The speakers of such a file are not known, or are what is to be told."""
    indices = torch.tensor([part.names.index(name) for name in part.classes])
    return Utterances(part.frames, indices, [""] * len(part.frames))


def read(file: Path) -> Sequences:
    """All sequences of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file; the message says which line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no .ts file: it is not text") from error
    header, begin = _header(file, lines)
    width, names = int(header["dimensions"]), header["classLabel"].split()[1:]
    frames, classes = [], []
    for number, line in enumerate(lines[begin:], begin + 1):
        if line.strip():
            try:
                one, name = _sequence(line, width, names)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
            frames.append(one)
            classes.append(name)
    if not frames:
        raise ValueError(f"{file} has no sequence after @data")
    return Sequences(frames, classes, names, width)


def _header(file: Path, lines: list[str]) -> tuple[dict[str, str], int]:
    """Values by key, and the index of the line after ``@data``."""
    header: dict[str, str] = {}
    for index, line in enumerate(lines):
        key, _, value = line.strip().partition(" ")
        if key.lower() == "@data":
            _check(file, header)
            return header, index + 1
        if key.startswith("@"):
            header[key[1:]] = value.strip()
    raise ValueError(f"{file} is no .ts file: it has no line @data")


def _check(file: Path, header: dict[str, str]) -> None:
    for key in NEEDED:
        if key not in header:
            raise ValueError(f"{file} has no line @{key}")
    for key in ("timeStamps", "missing"):
        if header[key].lower() != "false":
            raise ValueError(f"{file}: @{key} must be false, got {header[key]}")
    if not header["dimensions"].isdecimal() or int(header["dimensions"]) < 1:
        raise ValueError(f"{file}: @dimensions must be a number from 1, got {header['dimensions']}")
    if header["classLabel"].split()[:1] != ["true"]:
        raise ValueError(f"{file}: @classLabel must be true and name the classes")


def _sequence(line: str, width: int, names: list[str]) -> tuple[Tensor, str]:
    """``[T, width]`` and its class."""
    *dimensions, name = line.strip().split(":")
    if len(dimensions) != width:
        raise ValueError(f"{width} dimensions and a class, parted by colons, got {len(dimensions)}")
    if name.strip() not in names:
        raise ValueError(f"{name.strip()!r} is none of the classes {' '.join(names)}")
    values = [[float(number) for number in one.split(",")] for one in dimensions]
    if len({*map(len, values)}) > 1:
        raise ValueError(f"dimensions of different lengths {sorted({*map(len, values)})}")
    frames = torch.tensor(values).T.contiguous()
    if not frames.isfinite().all():
        raise ValueError("a value is not finite")
    return frames, name.strip()
