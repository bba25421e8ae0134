"""``Mamba``: the whole block around the selective scan, its convolution's window a state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch.engine import Recurrence
from tracetorch.parameters import checked_integer
from tracetorch.rnn.selective_ssm import SELECTIVE_SCAN, SelectiveSSM


class Mamba(SelectiveSSM):
    r"""The block of Mamba: a causal convolution, a selective scan and a gate between projections.

    With E = ``expand`` · ``in_features`` channels, each of N = ``d_state`` states and a window of
    the last K = ``d_conv`` values (⊙ is elementwise, SiLU(v) = v·σ(v)):

    .. math::
        (u, z) &= W_i\, x \\
        v_e &= \mathrm{SiLU}(\textstyle\sum_{k<K} w_{ek}\, u_e^{(t - K + 1 + k)} + b_e) \\
        (\delta, B, C) &= W_x\, v \\
        \Delta &= \mathrm{softplus}(W_\Delta\, \delta + b_\Delta) \\
        h_{en} &\leftarrow e^{\Delta_e A_{en}}\, h_{en} + \Delta_e\, v_e\, B_n \\
        y_e &= \textstyle\sum_n C_n\, h_{en} + D_e\, v_e \\
        \mathrm{out} &= W_o\, (y \odot \mathrm{SiLU}(z))

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype. For the projections and the convolution an input of another dtype is cast to
        the weights'.

    States:
        ``window``: the last K - 1 values of u, the oldest first: ``[…, E, …, d_conv - 1]``.
        ``h``: ``[…, E, …, d_state]``. Channels at ``dim``; zeros at first.

    Parameters, named and initialised as in Mamba:
        ``in_proj``: linear, ``[2E, in_features]``, no bias. ``conv1d``: ``[E, 1, K]`` and bias
        ``[E]``. ``x_proj``, ``dt_proj``, ``A`` (stored as ``A_log``) and ``D``: those of
        :class:`SelectiveSSM` over E channels. ``out_proj``: linear, ``[out_features, E]``, no
        bias.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output along ``dim``, at least 1; ``in_features`` in the paper.
        d_state: states per channel, at least 1.
        d_conv: length of the convolution's window, at least 2.
        expand: channels per feature of the input, at least 1.
        dt_rank: rank of the map to step sizes, at least 1; ceil(``in_features`` / 16) where None.
        dim: which dimension of one timestep's input holds the features.

    Raises:
        TypeError: an argument is no integer.
        ValueError: a size is below what it must be.

    Example:
        >>> import torch
        >>> layer = Mamba(32, 32, d_state=8)
        >>> y = layer.unroll(torch.ones(100, 2, 32))
        >>> y.shape, layer.h.shape, layer.window.shape
        (torch.Size([100, 2, 32]), torch.Size([2, 64, 8]), torch.Size([2, 64, 3]))
        >>> layer
        Mamba(32, 32, d_state=8, d_conv=4, expand=2, dt_rank=2, dim=-1)

    Source: Gu and Dao, Mamba, arXiv 2312.00752, section 3.4; B discretised as in Mamba's code.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dim: int = -1,
    ) -> None:
        owner = type(self).__name__
        features = checked_integer(owner, "in_features", in_features, low=1)
        states = checked_integer(owner, "d_state", d_state, low=1)
        window = checked_integer(owner, "d_conv", d_conv, low=2)
        factor = checked_integer(owner, "expand", expand, low=1)
        rank = math.ceil(features / 16) if dt_rank is None else dt_rank
        channels = factor * features
        super().__init__(channels, out_features, states, rank, dim)
        # the scan's channels are not the input's features: a projection lies between them
        self.in_features = self.num_neurons = features
        self.d_state, self.d_conv, self.expand, self.d_inner = states, window, factor, channels
        self.add_state("window", sizes=(self.d_inner, window - 1))
        self.in_proj = nn.Linear(features, 2 * channels, bias=False)
        self.conv1d = CausalConv1d(channels, window)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """Project, convolve the window, advance the scan by one timestep, gate, project back."""
        u, z = self._split(x)
        window = torch.cat([states.window, u[..., None]], -1)
        seen = window.movedim(-1, 0).to(self.conv1d.weight.dtype)
        v = F.silu(self.conv1d(seen)).to(u.dtype)
        dt, B, C = self.project(v)
        h, y = SELECTIVE_SCAN.step(states.h, dt, v, B, C, p.A)
        return {"window": window[..., 1:], "h": h}, self._gated(y, v, z, p)

    def sequence(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """Project, convolve and scan all timesteps in a kernel each, gate, project back."""
        u, z = (half.contiguous() for half in self._split(x))
        past = states.window.movedim(-1, 0)
        convolved = self.conv1d.sequence(past, u, resets)
        if convolved is None:
            return None
        window, v = convolved
        dt, B, C = self.project(v)
        found = SELECTIVE_SCAN.sequence(states.h, dt, v, B, C, p.A, owner=self, resets=resets)
        if found is None:
            return None
        h, y = found
        return {"window": window.movedim(0, -1), "h": h}, self._gated(y, v, z, p)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both: Tensor = self.in_proj(x.to(self.in_proj.weight.dtype))
        u, z = both.to(x.dtype).chunk(2, -1)
        return u, z

    def _gated(self, y: Tensor, v: Tensor, z: Tensor, p: Any) -> Tensor:
        gated = torch.addcmul(y, p.D, v) * F.silu(z)
        out: Tensor = self.out_proj(gated.to(self.out_proj.weight.dtype))
        return out

    def extra_repr(self) -> str:
        """Sizes, rank of the step sizes, dim."""
        sizes = f"{self.in_features}, {self.out_features}, d_state={self.d_state}"
        block = f"d_conv={self.d_conv}, expand={self.expand}, dt_rank={self.dt_rank}"
        return f"{sizes}, {block}, dim={self.dim}"


class CausalConv1d(nn.Conv1d):
    """A depthwise convolution over time: of its window ``[length, …, channels]``, oldest first.

    Args:
        channels: how many, each with weights of its own.
        length: of the window.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__(channels, channels, length, groups=channels)
        past, weights = ([f"{name}_{k}" for k in range(length)] for name in ("past", "weight"))
        self.activated = Recurrence(convolution_with_silu, channels, past[1:], [*weights, "bias"])

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch calls it
        """What comes out of one window ``[length, …, channels]``: ``[…, channels]``."""
        return _convolved(input.unbind(), *self._taps())

    def sequence(
        self, past: Tensor, u: Tensor, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """SiLU of what comes out of every window, in one kernel; None where it has to be stepped.

        Args:
            past: what came before, ``[length - 1, …, channels]``, the oldest first.
            u: ``[T, …, channels]``.
            resets: before which timesteps which samples restart, boolean ``[T, B]``.

        Returns:
            What comes before the next timestep, as ``past``, and ``[T, …, channels]``.
        """
        weights, bias = self._taps()
        own = self.weight.dtype
        found = self.activated.sequence(past.to(own).unbind(), u.to(own), [*weights, bias], resets)
        if found is None:
            return None
        if resets is None:
            window = torch.cat([past, u[-len(past) :]])[-len(past) :]
        else:
            window = torch.stack([*found[0]]).to(past.dtype)
        return window, found[1].to(u.dtype)

    def _taps(self) -> tuple[Sequence[Tensor], Tensor]:
        """The weights ``[channels]`` by age, the oldest first, and the bias."""
        bias = self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        return self.weight[:, 0].unbind(1), bias


def _convolved(window: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    y = bias
    for value, weight in zip(window, weights, strict=True):
        y = y + value * weight
    return y


def convolution_with_silu(states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
    """One timestep of the convolution, its window the states, with SiLU."""
    window = [*states, x]
    *weights, bias = p
    y = _convolved(window, weights, bias)
    return dict(zip(states._asdict(), window[1:], strict=True)), y * torch.sigmoid(y)
