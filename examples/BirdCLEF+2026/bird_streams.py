"""What a net gets: frames of files, streams of windows to learn from, minutes to listen to.

Knows of a net that it has states and gives logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from bird_corpus import Classes
from bird_nets import HOP, BirdNet, front_end, patches, pooled
from bird_sounds import SAMPLE_RATE, WINDOW_SECONDS, read_sound
from torch import Tensor
from torch.nn import functional as F

FRAMES = WINDOW_SECONDS * SAMPLE_RATE // HOP  # of a window
LONGEST = 60.0  # seconds of a recording that are read
GAIN = 1.4  # of log power, either way: about 6 dB
RESTARTS = 1 / 12  # of a stream, before a window: a minute on average
HIGHEST_WEIGHT = 10.0


class Example(NamedTuple):
    """Something to learn from: any five seconds of a recording, or a window of a soundscape."""

    file: Path
    window: int | None
    classes: Classes


def examples_of(
    recordings: Mapping[Path, Classes], soundscapes: Mapping[Path, Mapping[int, Classes]]
) -> list[Example]:
    """All recordings and all labelled windows."""
    alone = [Example(file, None, classes) for file, classes in recordings.items()]
    return alone + [
        Example(file, window, classes)
        for file, windows in soundscapes.items()
        for window, classes in windows.items()
    ]


def class_weights(examples: Sequence[Example], labels: int) -> Tensor:
    """What a positive of each label weighs in the loss ``[labels]``: more where there are few.

    The root of how many negatives there are for a positive, in 1…10; 1 for a label without any.
    """
    counts = torch.zeros(labels)
    for example in examples:
        counts[list(example.classes)] += 1
    weights = ((len(examples) - counts) / counts.clamp(min=1)).sqrt().clamp(1.0, HIGHEST_WEIGHT)
    return torch.where(counts > 0, weights, 1.0)


def multi_hot(classes: Sequence[Classes], labels: int) -> Tensor:
    """Ones where a label is heard ``[N, labels]``."""
    found = torch.zeros(len(classes), labels)
    for row, heard in zip(found, classes, strict=True):
        row[list(heard)] = 1
    return found


# ------------------------------------------------------------------ frames


class Frames:
    """Frames of files ``[frames, bands]``, kept as long as there is room.

    Args:
        room: bytes; a file that finds none is read again whenever it is asked for.
    """

    def __init__(self, room: float) -> None:
        self.front, self.room, self.kept = front_end(), room, dict[Path, Tensor]()

    def recording(self, file: Path) -> Tensor:
        """Of its first minute; a shorter one than a window is repeated."""
        return self._kept(file, LONGEST)

    def soundscape(self, file: Path) -> Tensor:
        """Of whole windows; the last is filled up with silence."""
        return self._kept(file, None)

    def _kept(self, file: Path, longest: float | None) -> Tensor:
        if (kept := self.kept.get(file)) is not None:
            return kept
        sound = read_sound(file, longest)
        frames = self.of(sound) if longest is None else self.of(repeated(sound))
        if frames.nbytes <= self.room:
            self.room -= frames.nbytes
            self.kept[file] = frames
        return frames

    def of(self, sound: Tensor) -> Tensor:
        """Of ``[samples]``, filled up with silence to whole windows."""
        whole = F.pad(sound, (0, -len(sound) % (FRAMES * HOP)))
        return self.front.stream(whole)[0]

    def window(self, example: Example, generator: torch.Generator) -> Tensor:
        """Those of five seconds ``[FRAMES, bands]``: the labelled ones, or any of a recording."""
        if example.window is not None:
            start = example.window * FRAMES
            return self.soundscape(example.file)[start : start + FRAMES]
        frames = self.recording(example.file)
        start = int(torch.randint(len(frames) - FRAMES + 1, (), generator=generator))
        return frames[start : start + FRAMES]


def repeated(sound: Tensor) -> Tensor:
    """``[samples]``, over again until there is a window of it, and cut to whole frames."""
    sound = sound.repeat(math.ceil(FRAMES * HOP / len(sound)))
    return sound[: len(sound) // HOP * HOP]


# ------------------------------------------------------------------ to learn from


class Streams:
    """Endless streams of windows, each of another example than the one before.

    Args:
        examples: to draw from, at least one.
        labels: how many there are.
        frames: of their files.
        batch: streams at a time.
        mixup: share of the windows that another is mixed into.
        generator: of all chance.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        labels: int,
        frames: Frames,
        batch: int,
        mixup: float,
        generator: torch.Generator,
    ) -> None:
        self.examples, self.labels, self.frames = examples, labels, frames
        self.batch, self.mixup, self.generator = batch, mixup, generator
        self.updates = math.ceil(len(examples) / batch)  # of an epoch

    def epoch(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Every example once, and some twice for the last batch to be whole.

        Yields:
            Frames ``[B, FRAMES, bands]``, what is heard ``[B, labels]``, and which streams begin
            anew ``[B]``.
        """
        order = torch.randperm(len(self.examples), generator=self.generator)
        order = order.repeat(math.ceil(self.updates * self.batch / len(order)))
        for chosen in order[: self.updates * self.batch].split(self.batch):
            frames, heard = self._windows(chosen)
            mixes = self._uniform(0.0, 1.0) < self.mixup
            if mixes.any():
                own, share = (frames[mixes], heard[mixes]), self._uniform(0.2, 0.8)[mixes]
                others = torch.randint(len(self.examples), share.shape, generator=self.generator)
                frames[mixes], heard[mixes] = mixed(own, self._windows(others), share)
            frames += self._uniform(-GAIN, GAIN)[:, None, None]
            yield frames, heard, self._uniform(0.0, 1.0) < RESTARTS

    def _windows(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        examples = [self.examples[place] for place in chosen.tolist()]
        frames = [self.frames.window(example, self.generator) for example in examples]
        return torch.stack(frames), multi_hot([one.classes for one in examples], self.labels)

    def _uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.batch, generator=self.generator)


def mixed(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], share: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixup of sounds: their powers are added, and what is heard in either is heard.

    Args:
        one: log frames ``[B, F, bands]`` and labels ``[B, labels]``.
        other: the same.
        share: of one in the sum, in (0, 1), ``[B]``.
    """
    own, others = share.log()[:, None, None], (1 - share).log()[:, None, None]
    frames = torch.logaddexp(one[0] + own, other[0] + others)
    return frames, torch.maximum(one[1], other[1])


# ------------------------------------------------------------------ to listen to


@contextmanager
def listening(net: BirdNet) -> Iterator[None]:
    """Evaluation from fresh states; afterwards the mode and the states are what they were."""
    standing, training = net.get_states(), net.training
    net.zero_states()
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.set_states(standing)
        net.train(training)


def heard_in(net: BirdNet, sounds: Sequence[Tensor]) -> list[Tensor]:
    """Logits of the windows of several sounds at once, five seconds at a time, states carried on.

    Args:
        net: of which only the weights matter.
        sounds: frames ``[windows * FRAMES, bands]`` of each, of any number of windows.

    Returns:
        ``[windows, labels]`` of each.
    """
    order = sorted(range(len(sounds)), key=lambda place: -len(sounds[place]))
    pieces = [sounds[place].split(FRAMES) for place in order]
    found: list[list[Tensor]] = [[] for _ in sounds]
    home = next(net.parameters()).device
    with listening(net):
        for window in range(len(pieces[0])):
            going = sum(len(own) > window for own in pieces)
            if window:
                net.select_states(torch.arange(going, device=home))
            batch = torch.stack([own[window] for own in pieces[:going]]).to(home)
            logits = pooled(net.unroll(patches(batch))).cpu()
            for place, of_one in zip(order, logits, strict=False):
                found[place].append(of_one)
    return [torch.stack(windows) for windows in found]
