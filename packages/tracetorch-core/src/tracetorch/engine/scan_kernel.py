"""What one direction of a scan computes, and how its tensors lie: for any target language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tracetorch.engine.aside import RESETS
from tracetorch.engine.trace import Traced

CHANNEL, STATE, FIXED = "d", "n", "dn"


@dataclass(frozen=True, eq=False)
class ScanKernel:
    """One direction of a scan over D channels of N states each.

    Attributes:
        traced: what happens in one lane (sample, channel, state): ``new h`` and ``y``, the
            lane's share of the channel's output, over ``h`` and the inputs.
        axes: what each input varies over besides time and samples: ``d`` a sequence ``[T, B, D]``,
            ``n`` a sequence ``[T, B, N]``; or ``dn``, constant ``[D, N]``.
        real: the type of all values.
        backward: which direction.
    """

    traced: Traced
    axes: Mapping[str, str]
    real: torch.dtype
    backward: bool

    # measured at N = 16: channels and states of a block, timesteps between two kept states
    width = 64
    tile = 16
    period = 16

    @property
    def gradients(self) -> tuple[str, ...]:
        """All that there are, in the order of ``h`` and the inputs."""
        names = (f"grad {name}" for name in ("h", *self.axes))
        return tuple(name for name in names if name in self.traced.backward)

    @property
    def pointers(self) -> tuple[str, ...]:
        """What each pointer leads to, in order.

        States ``[B, D, N]``, kept states ``[ceil(T / period), B, N, D]``, inputs as ``axes`` has
        them. Gradients are as what they belong to, but over ``n`` there is one for each block of
        channels, ``[ceil(D / width), T, B, N]``, and of a constant one for each sample,
        ``[B, D, N]``. Which samples restart before which timesteps, ``[T, B]`` in bytes, or null.
        """
        if not self.backward:
            return ("h", *self.axes, "y", "new h", "kept h", RESETS)
        return ("kept h", *self.axes, "grad y", "grad new h", *self.gradients, RESETS)

    def type_of(self, label: str) -> torch.dtype:
        """The type in memory of what a pointer leads to."""
        return torch.uint8 if label == RESETS else self.real

    def over(self, axis: str) -> tuple[str, ...]:
        """The inputs that vary over ``axis``."""
        return tuple(name for name, own in self.axes.items() if own == axis)

    def differentiated(self, axis: str) -> tuple[str, ...]:
        """Those of them that have a gradient."""
        return tuple(name for name in self.over(axis) if f"grad {name}" in self.gradients)
