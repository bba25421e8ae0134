"""Delays of axons and synapses: a ring of the last inputs as a state. Knows no neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tracetorch import Layer
from tracetorch.parameters import checked_integer
from tracetorch.states import finite


class Delay(Layer):
    """Puts out each neuron's input of ``delay`` timesteps ago; zeros before there was any.

    A delay between two timesteps is interpolated: y[t] = (1 − f)·x[t−k] + f·x[t−k−1], with k the
    whole and f the rest of it, and has the gradient of that. A whole delay gives the inputs as
    they were, spikes spikes.

    States: ``recent`` ``[…, longest, N]`` in the layer's layout with the newest first, zero at the
    start.

    Args:
        num_neurons: size of the input along ``dim``, at least 1.
        delay: timesteps, in 0…``longest``; a number or a tensor ``[]`` or ``[num_neurons]``.
            Learned ones are held within that range.
        longest: the longest delay there can be; the largest of ``delay``, rounded up, where None.
        dim: which dimension of a timestep's input holds the neurons.
        delay_rank: 0 = one for the layer, 1 = one per neuron.
        learn_delay: True = ``nn.Parameter``, False = buffer.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a delay lies outside its range, or has the wrong shape.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> delay = snn.Delay(2, torch.tensor([1.0, 2.5]))
        >>> delay.unroll(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 0.5]]

    Source: Hammouamri, Khalfaoui-Hassani and Masquelier, Learning delays in spiking neural networks
    using dilated convolutions with learnable spacings, ICLR 2024, arXiv 2306.17670 (learned ones).
    """

    def __init__(
        self,
        num_neurons: int,
        delay: float | Tensor = 1.0,
        longest: int | None = None,
        dim: int = -1,
        delay_rank: int = 1,
        learn_delay: bool = False,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.longest = _longest(delay, longest)
        self.add_state("recent", sizes=(num_neurons, self.longest))
        self.add_parameter("delay", delay, rank=delay_rank, learn=learn_delay)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """One timestep: the newest input comes first, the oldest is dropped."""
        history = torch.cat([x.unsqueeze(-1), states.recent], -1)
        whole, rest = self._split(p.delay)
        index = whole.expand(x.shape).unsqueeze(-1)
        newer, older = (history.gather(-1, place)[..., 0] for place in (index, index + 1))
        return {"recent": history[..., : self.longest]}, (1 - rest) * newer + rest * older

    def sequence(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """All timesteps at once: what was before them, then they."""
        history = torch.cat([states.recent.movedim(-1, 0).flip(0), x], 0)
        recent = history[len(history) - self.longest :].flip(0).movedim(0, -1)
        whole, rest = self._split(p.delay)
        near, far = 1 - rest, rest
        if resets is not None:
            # a factor of zero forgets what is finite, several times as fast as a choice does
            if not (torch.compiler.is_compiling() or finite(history)):
                return None
            since = _since(resets, self.longest).view(*resets.shape, *[1] * (x.ndim - 3))
            spans = torch.arange(self.longest + 1, device=x.device)
            recent = recent * (spans[:-1] <= since[-1, ..., None, None])
            near, far = _known(near, whole, spans, since), _known(far, whole + 1, spans, since)
        # of one timestep more: what is the newer of two values for one is the older for the next
        times = torch.arange(self.longest - 1, len(history), device=x.device)
        index = times.view(-1, *[1] * (x.ndim - 1)) - whole
        found = history.gather(0, index.expand(-1, *x.shape[1:]))
        return {"recent": recent}, near * found[1:] + far * found[:-1]

    def _split(self, delay: Tensor) -> tuple[Tensor, Tensor]:
        """Whole timesteps, below ``longest``, and the rest, in 0…1."""
        held = delay.clamp(0, self.longest)
        whole = held.detach().floor().clamp(max=self.longest - 1)
        return whole.long(), held - whole

    def extra_repr(self) -> str:
        """Neurons, delay, the longest one, dim."""
        return f"{super().extra_repr()}, longest={self.longest}"


def _since(resets: Tensor, longest: int) -> Tensor:
    """Timesteps since the last restart ``[T, B]``, at most ``longest``: as good as none."""
    times = torch.arange(len(resets), device=resets.device)[:, None]
    last = torch.where(resets, times, -longest).cummax(0).values
    return (times - last).clamp(max=longest)


def _known(factor: Tensor, age: Tensor, spans: Tensor, since: Tensor) -> Tensor:
    """A factor of inputs of that age, zero where they are from before the last restart."""
    rows = (factor * (age <= spans[:, None])).index_select(0, since.flatten())
    return rows.view(*since.shape, rows.shape[-1])


def _longest(delay: float | Tensor, longest: int | None) -> int:
    values = torch.as_tensor(delay, dtype=torch.float64)
    if not bool((values >= 0).all()) or not bool(values.isfinite().all()):
        raise ValueError(f"Delay: delay must be finite and not below 0, got {delay!r}")
    needed = max(1, int(values.max().ceil()))
    if longest is None:
        return needed
    return checked_integer("Delay", "longest", longest, needed, what="a number of timesteps")
