"""A neuron with a frequency of its own, as a layer in twenty lines. Knows no task.

Izhikevich, "Resonate-and-fire neurons", Neural Networks 14 (2001): a membrane that does not just
leak but swings. Its state is complex, z = real + i·imag; between spikes dz/dt = (b + iω)·z + input.
Over one timestep that is a shrinking and a turn, here by the angle 2π · frequency:

    z[t] = decay · (1 + i·swing) / (1 - i·swing) · z[t-1] + x[t],    swing = tan(π · frequency),

with a spike where imag(z) > 1, and then z = i. The fraction is exp(2πi · frequency), written
without a sine, which a kernel would compute anew at every timestep (the README has its cost).

Inputs at the neuron's own frequency arrive in step with the swing and add up; others cancel.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import constraints
from tracetorch.snn import quantizers, surrogates

Levels = float | Tensor


class ResonateAndFire(tt.Layer):
    """A damped oscillator that spikes at the top of its swing.

    Args:
        num_neurons: size of the input, the output and both states along ``dim``.
        decay: what is left of the swing after a timestep, in 0…1; one or ``[num_neurons]``.
        frequency: of the swing, in 0…0.5 cycles per timestep, both excluded; likewise.
        dim: which dimension of one timestep's input holds the neurons.
    """

    def __init__(
        self, num_neurons: int, decay: Levels = 0.95, frequency: Levels = 0.1, dim: int = -1
    ) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("real", "imag")
        self.add_parameter("decay", decay, constraint=constraints.sigmoid)
        swing = (math.pi * torch.as_tensor(frequency)).tan()
        self.add_parameter("swing", swing, constraint=constraints.softplus)
        self.spike_fn = surrogates.fast_sigmoid(4.0)

    @property
    def frequency(self) -> Tensor:
        """Cycles per timestep, ``[num_neurons]``: what the parameter ``swing`` amounts to."""
        return cast(Tensor, self.swing).atan() / math.pi

    def step(
        self, states: SimpleNamespace, x: Tensor, p: SimpleNamespace
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One timestep: turn and shrink, add the input, spike, restart at i."""
        shrunk = p.decay / (1 + p.swing * p.swing)
        across, up = shrunk * (1 - p.swing * p.swing), shrunk * 2 * p.swing
        real = across * states.real - up * states.imag + x
        imag = up * states.real + across * states.imag
        over = imag - 1
        spike = quantizers.straight_through((over > 0).to(x.dtype), self.spike_fn(over))
        return {"real": real - spike * real, "imag": imag - spike * over}, spike
