"""A listener learns to tell utterances apart. Knows nets and corpora by their methods alone."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common.command_line import Checkpoint
from listeners import Listener, learnable, listener
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from tracetorch.measures import Count
from utterances import Corpus, batches, lengths_of

LARGEST_GRADIENT = 1.0
NOISE = 0.3  # added while learning, in deviations of each feature
TESTED_AT_ONCE = 100
SAVE_EVERY = 10  # epochs
MUST_AGREE = ("model", "corpus", "neurons", "epochs", "batch_size", "learning_rate", "seed")


class Run:
    """A listener, its optimizer, the order of its corpus, and how far it is.

    Args:
        options: ``device``, ``checkpoint``, ``resume`` and those of ``MUST_AGREE``.
        corpus: of this name.

    Raises:
        ValueError: the checkpoint does not fit, or would be overwritten.
    """

    def __init__(self, options: argparse.Namespace, corpus: Corpus) -> None:
        torch.manual_seed(options.seed)
        self.options, self.corpus = options, corpus
        features = corpus.learn.frames[0].shape[1]
        self.net = listener(options.model, features, len(corpus.classes), options.neurons)
        self.net.front.fit(torch.cat(corpus.learn.frames))
        self.order = torch.Generator().manual_seed(options.seed)
        self.net.begin(*self._first())
        self.net.to(options.device)
        self.optimizer = torch.optim.AdamW(self.net.parameters())
        steps = options.epochs * -(-len(corpus.learn.frames) // options.batch_size)
        self.schedule = OneCycleLR(self.optimizer, options.learning_rate, total_steps=steps)
        self.file = Checkpoint(
            options,
            MUST_AGREE,
            self.net,
            optimizer=self.optimizer,
            schedule=self.schedule,
            order=self.order,
        )
        position = self.file.begin()
        self.epoch: int = position.get("epoch", 0)
        self.curve: list[float] = position.get("curve", [])

    def _first(self) -> tuple[Tensor, Tensor]:
        """Some utterances to begin with, without any effect on the order of those that follow."""
        drawn = torch.Generator().manual_seed(self.options.seed)
        batch = next(iter(batches(self.corpus.learn, TESTED_AT_ONCE, drawn)))
        return batch.x, batch.lengths

    def learn(self) -> None:
        """Up to the last epoch; the held-out accuracy after each is a point of the curve."""
        name, epochs = self.options.model, self.options.epochs
        bar = tqdm(range(self.epoch, epochs), name, initial=self.epoch, total=epochs)
        for _ in bar:
            loss = self._pass()
            self.curve.append(self.tested().accuracy)
            self.epoch += 1
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{100 * self.curve[-1]:.1f} %")
            if self.epoch % SAVE_EVERY == 0 or self.epoch == epochs:
                self.file.save(epoch=self.epoch, curve=self.curve)

    def _pass(self) -> float:
        """Once through all there is to learn from; the mean loss."""
        self.net.train()
        losses = []
        for batch in batches(self.corpus.learn, self.options.batch_size, self.order):
            x, lengths, classes = batch.to(self.options.device)
            noise = NOISE * self.net.front.deviation * torch.randn_like(x)
            scores, restless = self.net.learnt(x + noise, lengths)
            loss = F.cross_entropy(scores, classes) + restless
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), LARGEST_GRADIENT)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def tested(self) -> Tested:
        """How the held-out utterances are told apart."""
        self.net.eval()
        count = len(self.corpus.classes)
        confusion = torch.zeros(count, count, dtype=torch.int64)
        for batch in batches(self.corpus.test, TESTED_AT_ONCE):
            x, lengths, classes = batch.to(self.options.device)
            answers = self.net.classify(x, lengths).argmax(-1)
            pairs = (classes * count + answers).bincount(minlength=count**2)
            confusion += pairs.reshape(count, count).cpu()
        return Tested(confusion)

    def activity(self) -> Activity:
        """What the held-out utterances cost, and how much the watched layers fire."""
        self.net.eval()
        count, fired, places = Count(), 0, 0
        for batch in batches(self.corpus.test, TESTED_AT_ONCE):
            x, lengths, _ = batch.to(self.options.device)
            count += self.net.cost(x, lengths)
            for out in self.net.within(x, lengths).values():
                fired += int(out.count_nonzero())
                places += int(lengths.sum()) * out.shape[-1]
        frames = int(lengths_of(self.corpus.test.frames).sum())
        return Activity(count, frames, fired / places)


class Tested(NamedTuple):
    """The held-out utterances.

    Attributes:
        confusion: how many of each class (row) were taken for which (column).
    """

    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """The share that is right, in 0…1."""
        return (self.confusion.diag().sum() / self.confusion.sum()).item()


class Activity(NamedTuple):
    """Of the held-out utterances, together.

    Attributes:
        count: synaptic operations.
        frames: how many there are.
        rate: the share of outputs of the watched layers that are not zero.
    """

    count: Count
    frames: int
    rate: float

    def __str__(self) -> str:
        dense, macs, acs = (number / self.frames for number in self.count)
        return f"a frame takes {macs:,.0f} MACs and {acs:,.0f} ACs of {dense:,.0f} operations"


def described(net: Listener) -> str:
    """Its kind and size."""
    return f"{type(net).__name__}: {learnable(net):,} parameters"
