"""Base of the diagonal layers whose states all read the whole input: LRU and S5.

Knows what a timestep and a sequence are made of; what the maps are made of is each layer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import linear
from tracetorch import Layer
from tracetorch.parameters import checked_integer
from tracetorch.rnn.diagonal import Pair, at_once, paired, recurrence, times, unrounded


class Maps(NamedTuple):
    """h ← decay ⊙ h + gain ⊙ (into · x), y = weight · Re(out · h) + through · x; n complex states.

    Attributes:
        decay: ``[n]``.
        gain: ``[n]``.
        into: ``[n, in]``.
        out: ``[out, n]``.
        through: ``[out, in]``, real.
        weight: how often the real part counts: 2 where each state stands for a pair of conjugates.
    """

    decay: Pair
    gain: Pair
    into: Pair
    out: Pair
    through: Tensor
    weight: float


class MixingSSM(Layer):
    """A diagonal state space of many inputs and outputs; a subclass says what its maps are.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output along ``dim``, at least 1.
        states: how many complex states there are, at least 1.
        dim: which dimension of one timestep's input holds the features.
    """

    def __init__(self, in_features: int, out_features: int, states: int, dim: int) -> None:
        owner = type(self).__name__
        super().__init__(checked_integer(owner, "in_features", in_features, low=1), dim)
        self.in_features = self.num_neurons
        self.out_features = checked_integer(owner, "out_features", out_features, low=1)
        self.add_state("h_re", "h_im", sizes=(states,))

    def maps(self, p: Any) -> Maps:
        """What a timestep multiplies with, to be written by each layer.

        Args:
            p: the effective parameters by attribute.
        """
        raise NotImplementedError(f"{type(self).__name__} must define maps(self, p)")

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """One timestep; autocast is off inside, so that no state is rounded to 16 bits."""
        maps = self.maps(p)
        with unrounded(x.device.type):
            re, im = times(maps.decay, (states.h_re, states.h_im))
            entering = linear(x, maps.into[0]), linear(x, maps.into[1])
            u_re, u_im = times(maps.gain, entering)
            h_re, h_im = re + u_re, im + u_im
            real = linear(h_re, maps.out[0]) - linear(h_im, maps.out[1])
            y = maps.weight * real + linear(x, maps.through)
        return {"h_re": h_re, "h_im": h_im}, y

    def sequence(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """All projections in one product each, and between them the recurrence alone."""
        if not at_once(self, x, states.h_re, states.h_im):
            return None
        maps = self.maps(p)
        with unrounded(x.device.type):
            start = paired((states.h_re, states.h_im))
            h = recurrence(start, _driven(maps, x), paired(maps.decay), resets)
            y = _read(maps, h, x)
        # without the memory of all timesteps
        return {"h_re": h[-1, ..., 0].clone(), "h_im": h[-1, ..., 1].clone()}, y


def _driven(maps: Maps, x: Tensor) -> Tensor:
    """What enters the states, as pairs ``[…, n, 2]``; both parts in one product."""
    gain = maps.gain[0][:, None], maps.gain[1][:, None]
    matrix = paired(times(gain, maps.into)).transpose(-1, -2).flatten(0, 1)
    return linear(x, matrix).view(*x.shape[:-1], len(matrix) // 2, 2)


def _read(maps: Maps, h: Tensor, x: Tensor) -> Tensor:
    real, imag = maps.out
    matrix = maps.weight * paired((real, -imag)).flatten(-2)
    return linear(h.flatten(-2), matrix) + linear(x, maps.through)
