"""How a layer remembers: leaky traces, one or one for each sign of what flows in.

A polarity is the tuple of prefixes of its halves: ``("",)`` for a single trace, ``("pos_",
"neg_")`` for a dual one. Everything below is written once for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Polarity = tuple[str, ...]

SINGLE: Polarity = ("",)
DUAL: Polarity = ("pos_", "neg_")


def halves(u: Tensor, polarity: Polarity) -> list[Tensor]:
    """``[u]``, or its parts at and above zero, and below; zero itself belongs to the first."""
    if polarity == SINGLE:
        return [u]
    # where, not clamp or relu: the gradient at 0 must go to the positive half alone
    zero = torch.zeros_like(u)
    return [torch.where(u >= 0, u, zero), torch.where(u < 0, u, zero)]


def named(fields: Any, name: str, polarity: Polarity) -> list[Tensor]:
    """The halves of a state or parameter, by its name without prefix."""
    return [getattr(fields, half + name) for half in polarity]


def leak(
    traces: Sequence[Tensor], decays: Sequence[Tensor], inflow: Sequence[Tensor], average: bool
) -> list[Tensor]:
    """``d·trace + inflow`` for each half; an average weighs the inflow with ``1 − d``."""
    return [
        d * trace + ((1 - d) * i if average else i)
        for trace, d, i in zip(traces, decays, inflow, strict=True)
    ]
