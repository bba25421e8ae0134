"""A copy of a model, run over a sequence again and again, its layers' spikes counted.

The passes differ by nothing but what is done to the copy's weights between them: states, buffers
and random numbers are the same at the start of each. Knows no band and no factor.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.errors import check_dense
from tracetorch.generators import left_alone
from tracetorch.snn.incoming import incoming
from tracetorch.snn.masks import checked_lengths, counting


@dataclass
class Rate:
    """A layer's spikes, counted as they come: outputs other than 0.

    Attributes:
        spikes: how many so far.
        outputs: of how many outputs.
        three_valued: whether each of them was −1, 0 or 1.
    """

    spikes: float = 0.0
    outputs: int = 0
    three_valued: bool = True

    def see(self, output: Tensor, counts: Tensor | None) -> None:
        """One timestep ``[B, …]``; ``counts``: the samples ``[B]`` for which it counts."""
        if counts is not None:
            output = output[counts]
        fired = output != 0
        self.spikes += fired.sum().item()
        self.outputs += output.numel()
        self.three_valued &= bool((output.abs() == fired).all())

    @property
    def value(self) -> float:
        """Spikes per output; 0 of no outputs."""
        return self.spikes / self.outputs if self.outputs else 0.0


class _Reached(Exception):
    """The layer that is looked at has been called for the last time in this timestep."""


@dataclass
class _Look:
    """What a forward hook does with each layer's output."""

    rates: dict[str, Rate]
    until: str | None
    last: int
    counts: Tensor | None = None
    calls: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """The hook of one layer."""

        def look(_: nn.Module, given: Any, output: Tensor) -> None:
            del given
            self.rates.setdefault(name, Rate()).see(output, self.counts)
            self.calls[name] = self.calls.get(name, 0) + 1
            if name == self.until and self.calls[name] == self.last:
                raise _Reached

        return look


class Rehearsal:
    """A copy of a model with the sequence it is run on.

    Args:
        original: a module with tt layers; it is copied and left as it is.
        x: ``[T, B, …]``.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.

    Attributes:
        model: the copy.
        layers: its layers by name.
        passes: how many sequences it has been run on.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument does not fit, or the model has no tt layer.
    """

    def __init__(self, original: nn.Module, x: Tensor, lengths: Tensor | None) -> None:
        _check(original, x)
        lengths = checked_lengths(lengths, x)
        counts = counting(lengths, x)
        if counts is not None and x.is_floating_point():  # what pads may be no number
            x = torch.where(counts | x.isfinite(), x, torch.zeros_like(x))
        if x.is_inference():
            x = x.clone()
        self._x, self._counts = x, None if counts is None else counts.reshape(x.shape[:2])
        self._calls: dict[str, int] = {}
        self.model = copy.deepcopy(original)
        self.layers = dict(tt.named_layers(self.model))
        if not self.layers:
            raise ValueError(f"model must have a tt layer, got {type(original).__name__}")
        self._buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        self.passes = 0

    def run(self, until: str | None = None) -> dict[str, Rate]:
        """Rates by layer over the sequence, in order of execution.

        Args:
            until: the layer after which the rest of a timestep is left out; None for all.
        """
        rates: dict[str, Rate] = {}
        look = _Look(rates, until, self._calls.get(until or "", 1))
        with self._pass(), contextlib.ExitStack() as hooks, torch.no_grad():
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_hook(look.of(name)).remove)
            for t, timestep in enumerate(self._x):
                look.counts = None if self._counts is None else self._counts[t]
                look.calls.clear()
                with contextlib.suppress(_Reached):
                    self.model(timestep)
        if until is None:
            self._calls = dict(look.calls)
        return rates

    def weights(self, spiking: Sequence[str]) -> dict[str, list[nn.Parameter]]:
        """The copy's weights that feed each spiking layer, those that do not learn included."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with self._pass():
            found = incoming(self.model, self._x[0], {name: self.layers[name] for name in spiking})
        within = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        return {name: [p for p in ps if id(p) not in within] for name, ps in found.items()}

    def _pass(self) -> contextlib.AbstractContextManager[None]:
        """Fresh states and buffers; within it, random numbers that are the same again later."""
        self.passes += 1
        for layer in self.layers.values():
            layer.zero_states()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
        return left_alone([self._x.device])


def _check(model: object, x: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module with tt layers in it, got {model!r}")
    check_dense("x must be a tensor [T, B, …]", x)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [T, B, …], got {x!r}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x must be [T, B, …] with at least one timestep and one sample, got the shape "
            f"{list(x.shape)}"
        )
