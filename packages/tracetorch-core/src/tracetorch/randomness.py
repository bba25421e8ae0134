"""Random numbers of a layer's own: the same whether it steps or unrolls, on every backend.

A number is a hash of a seed, the timestep, the lane and how many were drawn before it in the
timestep: nothing has to be computed in order, and the backward pass finds them again. A layer that
holds a :class:`Random` draws its seed from torch's generator with its first timestep; seed and
count of timesteps are one of its states. Knows no layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

# the state's name
RANDOM = "random"

_WORD = 0xFFFFFFFF
# between two draws of a timestep: the golden ratio of 2³²
_NEXT = 0x9E3779B9
# numbers are multiples of 2 to minus this, so that every type can hold them, and none is 1
_BITS = {torch.bfloat16: 8, torch.float16: 11}


class Stream(Protocol):
    """Where the numbers of one timestep come from."""

    def draw(self, like: Tensor) -> Tensor:
        """The next ones, of the shape and dtype of ``like``."""
        raise NotImplementedError


class Random(nn.Module):
    """Uniform random numbers in [0, 1), for what a layer computes in its ``step``.

    Within the layer that holds it (as an attribute, or deeper in its modules), it draws from the
    layer's stream: stepping and unrolling, eager and fused, CPU and CUDA get the same numbers,
    and ``torch.manual_seed`` before the first timestep reproduces a run. The layer has one more
    state then, ``random``: integers ``[2]``, its seed and how many timesteps it has drawn for.
    Anywhere else it is ``torch.rand_like``.

    Source: the hash is C. Wellons' ``lowbias32`` (*Prospecting for Hash Functions*, 2018).

    Example:
        >>> import torch, tracetorch as tt
        >>> class Noisy(tt.Layer):
        ...     def __init__(self, num_neurons):
        ...         super().__init__(num_neurons)
        ...         self.add_state("mem")
        ...         self.uniform = tt.Random()
        ...     def step(self, states, x, p):
        ...         mem = 0.9 * states.mem + x + self.uniform(x) - 0.5
        ...         return {"mem": mem}, mem
        >>> layer, x = Noisy(3), torch.zeros(4, 2, 3)
        >>> y = layer.unroll(x)
        >>> _ = layer.set_states({"mem": None, "random": torch.tensor([int(layer.random[0]), 0])})
        >>> torch.allclose(torch.stack([layer(x_t) for x_t in x]), y)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._stream: Stream | None = None

    def forward(self, like: Tensor) -> Tensor:
        """Numbers of the shape and dtype of ``like``."""
        return torch.rand_like(like) if self._stream is None else self._stream.draw(like)


class lent:
    """Within it, these draw from ``stream``."""

    def __init__(self, sources: Iterable[Random], stream: Stream) -> None:
        self._sources, self._stream = tuple(sources), stream

    def __enter__(self) -> None:
        for source in self._sources:
            source._stream = self._stream

    def __exit__(self, *_: object) -> None:
        for source in self._sources:
            source._stream = None


def new(device: torch.device) -> Tensor:
    """A seed from torch's generator of the CPU, and a count of 0: ``[2]``, int64."""
    seed = torch.randint(1 << 62, (1,))
    return torch.cat([seed, torch.zeros_like(seed)]).to(device)


def after(state: Tensor, steps: int) -> Tensor:
    """The state so many timesteps later."""
    return state + torch.tensor([0, steps], device=state.device)


class Drawing:
    """The stream of one timestep in torch's own operations.

    Args:
        state: seed and count, ``[2]``.
        shape: of the timestep's input, neurons last: lanes are counted in this order, wherever
            the user's layout has the neurons.
    """

    def __init__(self, state: Tensor, shape: torch.Size) -> None:
        seed, count = state[0], state[1]
        lanes = torch.arange(math.prod(shape), device=state.device).view(shape)
        self._lanes = _mixed((lanes + seed) & _WORD)
        self._key = _mixed((count & _WORD) ^ (seed >> 32))
        self._draws = 0

    def draw(self, like: Tensor) -> Tensor:
        """The next numbers; ValueError where ``like`` is not as large as the timestep."""
        if like.shape != self._lanes.shape:
            raise ValueError(
                f"tt.Random draws one number per lane of the layer's input, here "
                f"{list(self._lanes.shape)}, got a tensor of shape {list(like.shape)}"
            )
        key = _mixed((self._key + self._draws * _NEXT) & _WORD)
        self._draws += 1
        bits = _BITS.get(like.dtype, 24)
        return (_mixed(self._lanes ^ key) >> (32 - bits)).to(like.dtype) * 2.0**-bits


def _mixed(x: Tensor) -> Tensor:
    """``lowbias32`` of words in int64, its factors as small negative numbers: nothing overflows."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * (0x846CA68B - (1 << 32))) & _WORD
    return x ^ (x >> 16)
