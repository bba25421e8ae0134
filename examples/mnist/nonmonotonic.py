"""Sequential digits: every timestep shows only the next few pixels, in reading order.

With ``--kernel-size 28`` that is a row at a time, with 1 the pixel-by-pixel benchmark of 784
timesteps. What an early timestep means is known only later, so the network must remember.
"""

from __future__ import annotations

import argparse

import torch
import tracetorch as tt
import training
from digits import SIDE
from torch import Tensor, nn
from tracetorch import snn

HIDDEN = 128
KERNEL_SIZES = [size for size in range(1, SIDE * SIDE + 1) if SIDE * SIDE % size == 0]


class Net(tt.Model):
    """Two layers of spiking neurons that remember for different times, read by a leaky sum."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(kernel_size, HIDDEN),
            spiking_memory(),
            nn.Linear(HIDDEN, HIDDEN),
            spiking_memory(),
            nn.Linear(HIDDEN, 10),
            snn.LI(10, 0.95),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pixels ``[B, kernel_size]`` of one timestep → class scores ``[B, 10]``."""
        scores: Tensor = self.net(x)
        return scores


def spiking_memory() -> snn.SRLIB:
    """Synapse, membrane and recurrence; decays are spread from fast to slow."""
    alpha, beta = torch.linspace(0.1, 0.9, HIDDEN), torch.linspace(0.5, 0.98, HIDDEN)
    return snn.SRLIB(HIDDEN, alpha=alpha, beta=beta, threshold_rank=0)


def in_reading_order(images: Tensor, kernel_size: int) -> Tensor:
    """``[B, 1, 28, 28]`` → ``[784 / kernel_size, B, kernel_size]``: a window per timestep."""
    return images.reshape(len(images), -1, kernel_size).movedim(1, 0)


def kernel_size(text: str) -> int:
    """A divisor of the 784 pixels."""
    size = int(text)
    if size not in KERNEL_SIZES:
        allowed = ", ".join(map(str, KERNEL_SIZES))
        raise argparse.ArgumentTypeError(f"must divide 784 pixels: {allowed}; got {size}")
    return size


def main() -> None:
    """Train on the command line's options."""
    parser = training.command_line(__file__, __doc__, epochs=20, learning_rate=1e-2)
    parser.add_argument(
        "--kernel-size",
        type=kernel_size,
        default=SIDE,
        help="pixels per timestep, a divisor of 784 (%(default)s)",
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    training.run(
        Net(options.kernel_size),
        watched="net.3",
        encode=lambda images: in_reading_order(images, options.kernel_size),
        options=options,
    )


if __name__ == "__main__":
    main()
