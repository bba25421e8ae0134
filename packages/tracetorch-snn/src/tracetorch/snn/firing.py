"""How a membrane fires: which thresholds it has, what it emits, what a reset takes away.

A way of firing is data plus one small function; ``mem`` is the membrane, neurons last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from torch import Tensor

Spike = Callable[[Tensor], Tensor]


class Fired(NamedTuple):
    """What a membrane did in a timestep, each ``[…, N]``.

    Attributes:
        out: what is emitted.
        spikes: those of each threshold, none negative.
        taken: what they take off the membrane where a reset subtracts.

    Example:
        >>> import torch
        >>> ones = torch.ones(2)
        >>> Fired(ones, (ones, 0 * ones), 0.5 * ones).number
        tensor([1., 1.])
    """

    out: Tensor
    spikes: tuple[Tensor, ...]
    taken: Tensor

    @property
    def number(self) -> Tensor:
        """Spikes of either sign."""
        return reduce(add, self.spikes)


@dataclass(frozen=True)
class Firing:
    """One way to fire.

    Attributes:
        suffix: what it adds to a layer's name.
        parameters: names of its thresholds, then its scales.
        fire: ``(spike, mem, p) → Fired``, with ``spike`` from distances to a threshold to spikes.
        equations: the same as text.

    Example:
        >>> BINARY.suffix, BINARY.parameters
        ('B', ('threshold',))
        >>> BINARY.equations
        ('s = q(f(mem − θ))', 'mem ← mem − s·θ', 'out = s')
    """

    suffix: str
    parameters: tuple[str, ...]
    fire: Callable[[Spike, Tensor, Any], Fired]
    equations: tuple[str, ...]


def _binary(spike: Spike, mem: Tensor, p: Any) -> Fired:
    s = spike(mem - p.threshold)
    return Fired(s, (s,), s * p.threshold)


def _both(spike: Spike, mem: Tensor, p: Any) -> tuple[Tensor, Tensor, Tensor]:
    pos, neg = spike(mem - p.pos_threshold), spike(-mem - p.neg_threshold)
    return pos, neg, pos * p.pos_threshold - neg * p.neg_threshold


def _ternary(spike: Spike, mem: Tensor, p: Any) -> Fired:
    pos, neg, taken = _both(spike, mem, p)
    return Fired(pos - neg, (pos, neg), taken)


def _scaled(spike: Spike, mem: Tensor, p: Any) -> Fired:
    pos, neg, taken = _both(spike, mem, p)
    return Fired(p.pos_scale * pos - p.neg_scale * neg, (pos, neg), taken)


_TERNARY = (
    "s⁺ = q(f(mem − θ⁺)), s⁻ = q(f(−mem − θ⁻))",
    "mem ← mem − s⁺·θ⁺ + s⁻·θ⁻",
)

BINARY = Firing("B", ("threshold",), _binary, ("s = q(f(mem − θ))", "mem ← mem − s·θ", "out = s"))
"""Spikes 0 and 1, above one threshold, which a spike takes off the membrane.

Source: Rueckauer et al., Conversion of continuous-valued deep networks to efficient event-driven
networks for image classification, Frontiers in Neuroscience 11, 2017 (reset by subtraction).
"""

TERNARY = Firing("T", ("pos_threshold", "neg_threshold"), _ternary, (*_TERNARY, "out = s⁺ − s⁻"))
"""Spikes -1, 0 and 1, beyond a threshold on either side.

Source: Guo et al., Ternary Spike: learning ternary spikes for spiking neural networks, AAAI 2024,
arXiv 2312.06372.
"""

SCALED = Firing(
    "TS",
    ("pos_threshold", "neg_threshold", "pos_scale", "neg_scale"),
    _scaled,
    (*_TERNARY, "out = a⁺·s⁺ − a⁻·s⁻"),
)
"""Ternary spikes, each sign times a scale that is learned.

Source: Guo et al., Ternary Spike, AAAI 2024, arXiv 2312.06372 (trainable factor; theirs is one for
both signs).
"""
