"""Utterances: ragged sequences of frames, and batches of them. Knows no file and no net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

POOL = 16  # batches whose utterances are sorted by length together


class Utterances(NamedTuple):
    """Some of a corpus.

    Attributes:
        frames: of each utterance, ``[T, F]``, each as long as it is.
        classes: what each is, indices ``[N]``.
        speakers: of each.
    """

    frames: list[Tensor]
    classes: Tensor
    speakers: list[str]

    def chosen(self, index: Sequence[int]) -> Utterances:
        """Those of these indices."""
        frames, speakers = ([part[i] for i in index] for part in (self.frames, self.speakers))
        return Utterances(frames, self.classes[list(index)], speakers)


class Corpus(NamedTuple):
    """What to learn from and what to be tested on.

    Attributes:
        name: of the data and of their split.
        classes: their names.
        learn: the utterances to learn from.
        test: those to be told apart.
    """

    name: str
    classes: list[str]
    learn: Utterances
    test: Utterances

    def __str__(self) -> str:
        learn, test = len(self.learn.frames), len(self.test.frames)
        return f"{self.name}: {learn} utterances to learn from, {test} to test on"


def rehearsal(corpus: Corpus) -> Corpus:
    """Every fifth utterance to learn from is held back instead of the test, which is not seen.

    Those are chosen within each class and speaker, in their order.
    """
    places: dict[tuple[int, str], list[int]] = {}
    for place, key in enumerate(
        zip(corpus.learn.classes.tolist(), corpus.learn.speakers, strict=True)
    ):
        places.setdefault(key, []).append(place)
    held = sorted(place for group in places.values() for place in group[4::5])
    rest = sorted({*range(len(corpus.learn.frames))} - {*held})
    learn, test = corpus.learn.chosen(rest), corpus.learn.chosen(held)
    return corpus._replace(name=f"{corpus.name}, rehearsed", learn=learn, test=test)


def lengths_of(frames: Sequence[Tensor]) -> Tensor:
    """In timesteps, ``[N]``."""
    return torch.tensor([len(one) for one in frames])


class Batch(NamedTuple):
    """Utterances side by side.

    Attributes:
        x: ``[T, B, F]``, zero after each one's end.
        lengths: of each, ``[B]``.
        classes: of each, ``[B]``.
    """

    x: Tensor
    lengths: Tensor
    classes: Tensor

    def to(self, device: torch.device) -> Batch:
        """On another device; the lengths stay on the CPU."""
        return Batch(self.x.to(device), self.lengths, self.classes.to(device))


def batch_of(utterances: Utterances, index: Sequence[int]) -> Batch:
    """Those of these indices, in this order."""
    frames, classes, _ = utterances.chosen(index)
    return Batch(pad_sequence(frames), lengths_of(frames), classes)


def batches(
    utterances: Utterances, size: int, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """All utterances once, in a random order where there is a generator.

    Those of a batch are of similar lengths, so that little of it is padding.
    """
    for index in _orders(lengths_of(utterances.frames), size, generator):
        yield batch_of(utterances, index.tolist())


def _orders(lengths: Tensor, size: int, generator: torch.Generator | None) -> list[Tensor]:
    if generator is None:
        return list(lengths.argsort(stable=True).split(size))
    drawn = torch.randperm(len(lengths), generator=generator)
    pools = [some[lengths[some].argsort(stable=True)] for some in drawn.split(POOL * size)]
    together = [batch for pool in pools for batch in pool.split(size)]
    return [together[i] for i in torch.randperm(len(together), generator=generator).tolist()]
