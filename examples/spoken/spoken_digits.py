"""Spoken digits from WAV files ``{digit}_{speaker}_{index}.wav``, as log-mel frames.

Read by the standard library's ``wave``. Knows no net.
"""

from __future__ import annotations

import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common.audio import LogMel
from torch import Tensor
from utterances import Corpus, Utterances

RATE, WINDOW, HOP, BANDS = 8000, 256, 80, 32  # Hz; samples: 32 and 10 ms; bands from 50 to 4000 Hz
FORM = RATE, 1, 16  # Hz, channels, bits
CUSTOMARY = 5  # of each speaker and digit, so many recordings are the test: index 0 to 4
NAME = re.compile(r"([0-9])_([A-Za-z]+)_([0-9]+)\.wav")


class Recording(NamedTuple):
    """A file and what its name says."""

    file: Path
    digit: int
    speaker: str
    index: int


def load(folder: Path, held_out: Sequence[str] = ()) -> Corpus:
    """All recordings of a folder, as frames.

    Args:
        folder: of the WAV files, and of no others.
        held_out: the speakers to test on, each digit they said; the others are learnt from. None:
            the customary split, where index 0 to 4 of each speaker and digit are the test.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is named otherwise or is no sound of this kind, or there is no such speaker.
    """
    recordings = listed(folder)
    speakers = sorted({one.speaker for one in recordings})
    for speaker in held_out:
        if speaker not in speakers:
            raise ValueError(f"{folder} has no speaker {speaker!r}, but {', '.join(speakers)}")
    if {*held_out} == {*speakers}:
        raise ValueError("all speakers are held out: there is nothing to learn from")

    def is_test(one: Recording) -> bool:
        return one.speaker in held_out if held_out else one.index < CUSTOMARY

    front = LogMel(RATE, BANDS, WINDOW, HOP)
    learn = _utterances([one for one in recordings if not is_test(one)], front)
    test = _utterances([one for one in recordings if is_test(one)], front)
    split = f"held out: {', '.join(sorted(held_out))}" if held_out else "customary split"
    name = f"{folder.resolve().name}, {split}"
    return Corpus(name, [str(digit) for digit in range(10)], learn, test)


def listed(folder: Path) -> list[Recording]:
    """By digit, speaker and index.

    Raises:
        ValueError: there are none, or one is named otherwise.
    """
    found = []
    for file in folder.glob("*.wav"):
        if (said := NAME.fullmatch(file.name)) is None:
            raise ValueError(f"{file} is not named {{digit}}_{{speaker}}_{{index}}.wav")
        found.append(Recording(file, int(said[1]), said[2], int(said[3])))
    if not found:
        raise ValueError(f"{folder} holds no WAV files")
    return sorted(found, key=lambda one: one[1:])


def _utterances(recordings: list[Recording], front: LogMel) -> Utterances:
    if not recordings:
        raise ValueError(
            "one side of the split is empty: the test is index 0 to 4, the rest learnt"
        )
    frames = [_frames(one.file, front) for one in recordings]
    digits = torch.tensor([one.digit for one in recordings])
    return Utterances(frames, digits, [one.speaker for one in recordings])


def _frames(file: Path, front: LogMel) -> Tensor:
    """``[T, bands]``, relative to the loudest of them: how loud a recording is says nothing."""
    waveform = samples(file)
    if len(waveform) < WINDOW:
        raise ValueError(f"{file} is too short: {len(waveform)} samples, a frame takes {WINDOW}")
    frames: Tensor = front(waveform)
    return frames - frames.max()


def samples(file: Path) -> Tensor:
    """A sound ``[samples]`` in -1…1.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no WAV file, or not of 8 kHz, one channel and 16 bits.
    """
    try:
        with wave.open(str(file)) as sound:
            form = sound.getframerate(), sound.getnchannels(), 8 * sound.getsampwidth()
            count = sound.getnframes()
            content = sound.readframes(count)
    except (wave.Error, EOFError) as error:
        why = str(error) or "it ends"
        raise ValueError(f"{file} is no WAV file that can be read: {why}") from error
    if form != FORM:
        raise ValueError(f"{file} must be of {_said(*FORM)}, got {_said(*form)}")
    if len(content) != 2 * count:
        raise ValueError(f"{file} is cut off: {len(content) // 2} of {count} samples")
    return torch.from_numpy(np.frombuffer(content, "<i2").astype(np.float32)) / 2**15


def _said(rate: int, channels: int, bits: int) -> str:
    return f"{rate} Hz, {channels} channel{'s' * (channels > 1)} and {bits} bits"
