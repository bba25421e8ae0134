"""Rate-coded digits: every timestep shows the whole image, as spikes as likely as it is dark.

Each timestep adds evidence of the same kind, so the answer only gets better with time.
"""

from __future__ import annotations

import torch
import tracetorch as tt
import training
from torch import Tensor, nn
from tracetorch import snn


class Net(tt.Model):
    """Two spiking convolutions; a leaky integrator per class gathers their votes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2),
            snn.LIB(16, 0.9, 1.0, dim=-3, threshold_rank=0),
            nn.Conv2d(16, 32, 3),
            snn.LIB(32, 0.9, 1.0, dim=-3, threshold_rank=0),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 5 * 5, 10),
            snn.LI(10, 0.9),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Spikes ``[B, 1, 28, 28]`` of one timestep → class scores ``[B, 10]``."""
        scores: Tensor = self.net(x)
        return scores


def rate_coded(images: Tensor, timesteps: int) -> Tensor:
    """``[B, 1, 28, 28]`` in 0…1 → spikes ``[T, B, 1, 28, 28]``: a pixel is its probability."""
    return torch.bernoulli(images.expand(timesteps, *images.shape))


def main() -> None:
    """Train on the command line's options."""
    parser = training.parser(__file__, __doc__, epochs=8, learning_rate=4e-3)
    parser.option("--timesteps", training.positive, 8, "how long a digit is shown")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    training.run(
        Net(),
        watched="net.3",
        encode=lambda images: rate_coded(images, options.timesteps),
        options=options,
        must_agree=("timesteps",),
    )


if __name__ == "__main__":
    main()
