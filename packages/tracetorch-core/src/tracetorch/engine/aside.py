"""What kernels read beside the tensors that gradients go to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# its name among a kernel's pointers; random numbers have that of the state
RESETS = "resets"


class Aside(NamedTuple):
    """What kernels read that has no gradient.

    Attributes:
        random: seed and count of random numbers ``[2]``, where any are drawn.
        resets: before which timesteps which samples restart, uint8 ``[T, B]``, where any do.
    """

    random: Tensor | None = None
    resets: Tensor | None = None


NOTHING = Aside()
