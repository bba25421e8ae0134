"""Sequential digits: every timestep shows only the next few pixels, in reading order.

With ``--kernel-size 28`` that is a row at a time, with 1 the pixel-by-pixel benchmark of 784
timesteps. What an early timestep means is known only later, so the network must remember. Four
kinds of memory, with as many parameters each, can be put side by side.
"""

from __future__ import annotations

import argparse

import torch
import training
from digits import SIDE
from sequence_nets import MODELS, net
from torch import Tensor

KERNEL_SIZES = [size for size in range(1, SIDE * SIDE + 1) if SIDE * SIDE % size == 0]


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
    parser = training.parser(__file__, __doc__, epochs=20, learning_rate=1e-2)
    parser.option("--model", str, "snn", "what remembers", choices=MODELS)
    parser.option("--kernel-size", kernel_size, SIDE, "pixels per timestep, a divisor of 784")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = net(options.model, options.kernel_size)
    training.run(
        model,
        watched=model.watched,
        encode=lambda images: in_reading_order(images, options.kernel_size),
        options=options,
        must_agree=("model", "kernel_size"),
    )


if __name__ == "__main__":
    main()
