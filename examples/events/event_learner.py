"""A net that learns from recordings in bins, and what it then takes. Knows no file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import binning
import torch
import torch.nn.functional as F
import tracetorch as tt
from polarity_nets import EventNet
from torch import Tensor
from tracetorch import snn
from tracetorch.measures import Operations, firing_rate, operations

EVALUATION_BATCH = 100
EVALUATION_SEED = 2**31  # of the order of timesteps, where that is one of chance
BAND = 0.05, 0.2  # spikes per neuron and timestep to begin with
STEP_DECAY = 0.95  # of the learning rate, every epoch


class Frames(NamedTuple):
    """What a net sees.

    Attributes:
        kind: see :func:`binning.frames`.
        train: ``[recordings, T, C, H, W]``, int8.
        train_labels: ``[recordings]``.
        test: likewise.
        test_labels: likewise.
    """

    kind: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Learner:
    """A net and its optimizer.

    Args:
        net: what learns.
        frames: from which.
        options: ``device``, ``learning_rate``, ``shift`` and ``shuffle_time``.

    Attributes:
        curve: accuracy on the held-out recordings after every epoch, in 0…1.
        seconds: of processor time, in ``learn``.
    """

    def __init__(self, net: EventNet, frames: Frames, options: argparse.Namespace) -> None:
        self.net, self.frames, self.options = net.to(options.device), frames, options
        self.optimizer = torch.optim.Adam(net.parameters(), options.learning_rate)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, STEP_DECAY)
        self.curve: list[float] = []
        self.seconds = 0.0

    def calibrate(self, count: int) -> None:
        """Weights to begin with: on the first ``count`` recordings every layer fires."""
        snn.init.calibrate(self.net, self._seen(self.frames.train[:count], 0), BAND)

    def learn(self, chosen: Tensor, drawn: int) -> float:
        """A step of the optimizer on the chosen recordings ``[B]``; the loss.

        They are moved as the number ``drawn`` says, so that several nets get the same.
        """
        began = time.process_time()
        x = self._seen(self.frames.train[chosen], drawn, self.options.shift)
        labels = self.frames.train_labels[chosen].to(x.device)
        loss = F.cross_entropy(self.net.classify(x), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds += time.process_time() - began
        return loss.item()

    def end_epoch(self) -> None:
        """A point of the curve, and smaller steps from now on."""
        self.curve.append(self.accuracy())
        self.schedule.step()

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of the held-out recordings that are told, in 0…1."""
        right = [self.net.classify(x).argmax(-1).cpu() == labels for x, labels in self.held_out()]
        return torch.cat(right).float().mean().item()

    @torch.no_grad()
    def cost(self) -> tuple[list[float], Operations]:
        """Spikes per neuron and timestep of each layer, and operations, over those held out."""
        fired, counted = [], Operations({}, 0, 0)
        for x, labels in self.held_out():
            with tt.record(self.net, "spiking.*.out") as recorded:
                self.net.classify(x)
            rates = torch.stack([*firing_rate(recorded, over="all").values()])
            fired.append(rates * len(labels))
            self.net.zero_states()
            counted += operations(self.net, x)
        return (torch.stack(fired).sum(0) / counted.samples).tolist(), counted

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``[T, B, C, H, W]`` with their labels ``[B]``."""
        parts = (part.split(EVALUATION_BATCH) for part in self.frames[3:])
        for index, (x, labels) in enumerate(zip(*parts, strict=True)):
            yield self._seen(x, EVALUATION_SEED + index), labels

    def _seen(self, frames: Tensor, drawn: int, shift: int = 0) -> Tensor:
        """Recordings ``[B, T, C, H, W]`` as the net gets them: ``[T, B, C, H, W]``, float32."""
        generator = torch.Generator().manual_seed(drawn)
        if shift:
            frames = binning.shifted(frames, shift, generator)
        if self.options.shuffle_time:
            frames = binning.out_of_order(frames, generator)
        return frames.transpose(0, 1).to(self.options.device, torch.float32)
