"""The common workload: input, weights, the LIF neuron as a plain loop, equality.

Plain torch only: the process that runs tracetorch 0.16.4 imports it too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BETA, THRESHOLD, SLOPE = 0.9, 1.0, 4.0
TOLERATED = 1e-3  # share of spikes that may differ: decisions within rounding of the threshold


class Shape(NamedTuple):
    """Timesteps, batch, neurons: the Open Neuromorphic benchmark's, with its N."""

    timesteps: int = 500
    batch: int = 16
    neurons: int = 512

    def __str__(self) -> str:
        return f"T={self.timesteps}, B={self.batch}, N={self.neurons}"


def network_input(shape: Shape) -> Tensor:
    """What the linear layer is given: ``[T, B, N]`` in 0…1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def neuron_input(shape: Shape) -> Tensor:
    """Currents ``[T, B, N]`` in 0…0.4: every neuron fires, no membrane reaches two thresholds."""
    return network_input(shape) * (0.4 * THRESHOLD)


def cotangent(shape: Shape) -> Tensor:
    """The gradient of the output ``[T, B, N]``."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def linear(neurons: int) -> torch.nn.Linear:
    """N → N, such that :func:`network_input` becomes currents of about 0.2 ± 0.1."""
    generator = torch.Generator().manual_seed(2)
    layer = torch.nn.Linear(neurons, neurons)
    with torch.no_grad():
        weight = torch.randn(neurons, neurons, generator=generator)
        layer.weight.copy_(weight * (0.1 * 3**0.5 / neurons**0.5))
        layer.bias.fill_(0.2)
    return layer


# ------------------------------------------------------------------ as a user would write it


class Spike(torch.autograd.Function):
    """1 above the threshold; backward the derivative of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        """Heaviside."""
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Surrogate."""
        (distance,) = ctx.saved_tensors
        s = torch.sigmoid(SLOPE * distance)
        return gradient * (SLOPE * s * (1 - s))


def plain_step(mem: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One timestep: the membrane after reset, and the spikes."""
    mem = BETA * mem + x
    spike: Tensor = Spike.apply(mem - THRESHOLD)
    return mem - spike * THRESHOLD, spike


def plain_loop(mem: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Timesteps ``[T, …]`` one after another: the last membrane, and spikes ``[T, …]``."""
    spikes = []
    for timestep in x.unbind(0):
        mem, spike = plain_step(mem, timestep)
        spikes.append(spike)
    return mem, torch.stack(spikes)


# ------------------------------------------------------------------ checks


def differing(got: Tensor, expected: Tensor, name: str) -> float:
    """The share of spikes that differ; ValueError where it is more than rounding explains."""
    if got.shape != expected.shape:
        raise ValueError(f"{name} returned {list(got.shape)}, not {list(expected.shape)}")
    share = (got != expected).float().mean().item()
    if share > TOLERATED:
        raise ValueError(f"{name} is not the same model: {share:.2%} of its spikes differ")
    return share
