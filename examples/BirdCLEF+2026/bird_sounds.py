"""Audio files → mono waveforms, refused where they are broken. Knows no label and no network."""

from __future__ import annotations

import math
import os
from pathlib import Path

import soundfile
import torch
from torch import Tensor

SAMPLE_RATE = 32_000
WINDOW_SECONDS = 5  # what a label, and a row of the submission, is of


def read_sound(file: Path, longest: float | None = None) -> Tensor:
    """The first ``longest`` seconds of a file at 32 kHz, all if None: ``[samples]`` in -1…1.

    Raises:
        ValueError: it is no audio, truncated, empty, or of another sample rate.
    """
    check_sound(file)
    waveform, _ = _read(file, -1 if longest is None else round(longest * SAMPLE_RATE))
    return waveform


def read_any_sound(file: Path) -> Tensor:
    """A whole file of any sample rate, at 32 kHz: ``[samples]``.

    Raises:
        ValueError: it is no audio, truncated or empty.
    """
    _check_end(file)
    waveform, rate = _read(file, -1)
    return resampled(waveform, rate, SAMPLE_RATE)


def check_sound(file: Path) -> None:
    """A ``ValueError`` that names the file, if :func:`read_sound` cannot take it.

    Its header and its end are looked at, not what is between them.
    """
    _check_end(file)
    try:
        info = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} cannot be read as audio: {error.error_string}") from error
    if info.samplerate != SAMPLE_RATE:
        raise ValueError(f"{file} is sampled at {info.samplerate} Hz, not at {SAMPLE_RATE}")
    if info.frames < 1:
        raise ValueError(f"{file} holds no sound")


def windows_of(file: Path) -> int:
    """How many windows of 5 s a file has; the last may be shorter."""
    return math.ceil(soundfile.info(file).frames / (WINDOW_SECONDS * SAMPLE_RATE))


def _read(file: Path, samples: int) -> tuple[Tensor, int]:
    try:
        channels, rate = soundfile.read(file, samples, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} cannot be read as audio: {error.error_string}") from error
    if not len(channels):
        raise ValueError(f"{file} holds no sound")
    return torch.from_numpy(channels).mean(-1), rate


# ------------------------------------------------------------------ truncated files

# a page of Ogg: its mark, version, kind, 20 bytes, the number of segments, their lengths, they
MARK, KIND, COUNT, LAST = b"OggS", 5, 26, 4
LONGEST_PAGE = 27 + 255 + 255 * 255


def _check_end(file: Path) -> None:
    """A file of Ogg says which page is its last; libsndfile reads what there is without a word."""
    with open(file, "rb") as stream:
        if stream.read(4) != MARK:
            return
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - LONGEST_PAGE))
        end = stream.read()
    page = end[end.rfind(MARK) :]
    lengths = page[COUNT + 1 : COUNT + 1 + page[COUNT]] if len(page) > COUNT else b""
    whole = COUNT + 1 + len(lengths) + sum(lengths) <= len(page)
    if not (lengths and whole and page[KIND] & LAST):
        raise ValueError(f"{file} is truncated: it ends before the last page of its sound")


# ------------------------------------------------------------------ another rate


def resampled(waveform: Tensor, rate: int, wanted: int) -> Tensor:
    """``[samples]`` at another rate: its spectrum, cut off or continued with zeros."""
    if rate == wanted:
        return waveform
    samples = max(1, round(len(waveform) * wanted / rate))
    spectrum = torch.fft.rfft(waveform)[: samples // 2 + 1]
    return torch.fft.irfft(spectrum, samples) * (samples / len(waveform))
