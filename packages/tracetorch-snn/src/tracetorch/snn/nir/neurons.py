"""A neuron of NIR as a layer: one timestep, whose values a discretisation has made. Knows no graph.

The layers of ``tracetorch.snn`` keep their decays within (0, 1) and reset to one value. A graph has
integrators that do not leak, and a value for each neuron: hence a layer that takes any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tracetorch import Layer, StateError
from tracetorch.snn.nir.presets import Discretisation
from tracetorch.snn.quantizers import carrying, nothing
from tracetorch.snn.surrogates import Surrogate, sigmoid


class Neuron(Layer):
    r"""LI, LIF, CubaLI, CubaLIF, I or IF of a graph, in timesteps.

    .. math::
        i &\leftarrow \alpha i + \text{inflow} \cdot x \\
        v &\leftarrow \beta v + \text{gain} \cdot i + \text{bias} \\
        s &= v > \text{threshold}, \quad v \leftarrow v - s \cdot \text{threshold}
        \text{ or } (1 - s) v + s \cdot \text{rest}

    What a kind of neuron does not have is left out: the synapse (then i = x), β and the bias, the
    firing (then the membrane is put out).

    States: ``syn`` where there is a synapse, ``mem``; ``due`` where the reset is delayed,
    ``prev_output`` where there is a feedback.

    Args:
        num_neurons: size of the input along ``dim``.
        kind: which node of NIR it is, ``"LIF"``.
        values: ``alpha``, ``inflow``, ``beta``, ``gain``, ``bias``, ``threshold``, ``rest``, those
            that the kind has, each a tensor ``[]`` or ``[num_neurons]``. They are constants:
            buffers without a constraint, exactly as they are.
        how: the discretisation, for reset, order and threshold.
        dim: which dimension of a timestep's input holds the neurons.
        spike_fn: surrogate; :func:`tracetorch.snn.surrogates.sigmoid` where None.
        feedback: a module from the output of the timestep before to the input.

    Example:
        >>> import torch
        >>> from tracetorch.snn.nir import Discretisation, Neuron
        >>> values = {"gain": 1.0, "threshold": 1.0, "rest": 0.0}
        >>> values = {name: torch.tensor(value) for name, value in values.items()}
        >>> neuron = Neuron(1, "IF", values, Discretisation(reset="subtract"))
        >>> [neuron(torch.tensor([0.75])).item() for _ in range(4)], neuron.mem.item()
        ([0.0, 1.0, 1.0, 0.0], 1.0)

    Source: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122, 2024.
    """

    def __init__(
        self,
        num_neurons: int,
        kind: str,
        values: Mapping[str, Tensor],
        how: Discretisation,
        dim: int = -1,
        spike_fn: nn.Module | None = None,
        feedback: nn.Module | None = None,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.kind, self.how = kind, how
        self.synapse, self.leaky = "alpha" in values, "beta" in values
        self.fires = "threshold" in values
        self.subtracts, self.delayed = how.reset == "subtract", how.delayed and self.fires
        self.new_current, self.at_threshold = how.order == "synapse", how.at_threshold
        states = {"syn": self.synapse, "mem": True, "due": self.delayed}
        states["prev_output"] = feedback is not None
        self.add_state(*(name for name, there in states.items() if there))
        for name, value in values.items():
            self.add_parameter(name, value, learn=False)
        self.spike_fn = sigmoid() if spike_fn is None else spike_fn
        self.feedback = feedback

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """One timestep; see the class for its equations."""
        new: dict[str, Tensor] = {}
        if self.feedback is not None:
            x = x + self._fed_back(states.prev_output, x)
        current = x
        if self.synapse:
            new["syn"] = p.alpha * states.syn + p.inflow * x
            current = new["syn"] if self.new_current else states.syn
        inflow = p.gain * current
        mem = p.beta * states.mem + (inflow + p.bias) if self.leaky else states.mem + inflow
        out = mem
        if self.fires:
            if self.delayed:
                mem = self._reset(mem, states.due, p)
            out = self._spike(mem - p.threshold)
            if self.delayed:
                new["due"] = out
            else:
                mem = self._reset(mem, out, p)
        new["mem"] = mem
        if self.feedback is not None:
            new["prev_output"] = out
        return new, out

    def _reset(self, mem: Tensor, spikes: Tensor, p: Any) -> Tensor:
        if self.subtracts:
            subtracted: Tensor = mem - spikes * p.threshold
            return subtracted
        put: Tensor = (1 - spikes) * mem + spikes * p.rest
        return put

    def _spike(self, u: Tensor) -> Tensor:
        distance = u.detach()
        fired = distance >= 0 if self.at_threshold else distance > 0
        return carrying(fired.to(u.dtype) + nothing(distance), self.spike_fn(u))

    def _fed_back(self, output: Tensor, x: Tensor) -> Tensor:
        back: Any = self.feedback(output.movedim(-1, self.dim))  # type: ignore[misc]
        found: Tensor = back.movedim(self.dim, -1)
        if found.shape != x.shape:
            raise StateError(
                self,
                f"feedback must return a tensor of the input's shape "
                f"{list(x.movedim(-1, self.dim).shape)}, got {list(found.shape)}",
            )
        return found.to(x.dtype)

    def extra_repr(self) -> str:
        """Neurons, kind of node, values, dim, and the reset."""
        size, *rest = super().extra_repr().split(", ")
        text = ", ".join([size, self.kind, *rest])
        if self.fires:
            text += f", reset={self.how.reset}" + (", delayed" if self.delayed else "")
        return text


def curve(spike_fn: object) -> nn.Module:
    """A surrogate, checked: sharp spikes need no other function."""
    if not isinstance(spike_fn, Surrogate):
        raise TypeError(f"spike_fn must be made by snn.surrogates, got {spike_fn!r}")
    return spike_fn


def tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """An array as a tensor of its own memory."""
    return torch.as_tensor(value).detach().clone().to(dtype)
