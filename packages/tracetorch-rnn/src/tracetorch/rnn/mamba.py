"""``Mamba``: the whole block around the selective scan, its convolution's window a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch import mode
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
        v = F.silu(self._convolved(window.movedim(-1, 0))[0])
        dt, B, C = self.project(v)
        h, y = SELECTIVE_SCAN.step(states.h, dt, v, B, C, p.A)
        return {"window": window[..., 1:], "h": h}, self._gated(y, v, z, p)

    def sequence(
        self, states: Any, x: Tensor, p: Any
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """Project and convolve all timesteps, scan them in one kernel, gate, project back."""
        u, z = self._split(x)
        past = torch.cat([states.window.movedim(-1, 0), u])
        v = F.silu(self._convolved(past))
        dt, B, C = self.project(v)
        found = SELECTIVE_SCAN.sequence(states.h, dt, v, B, C, p.A, owner=self)
        if found is None:
            return None
        h, y = found
        window = past[len(x) :].movedim(0, -1)
        return {"window": window, "h": h}, self._gated(y, v, z, p)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both: Tensor = self.in_proj(x.to(self.in_proj.weight.dtype))
        u, z = both.to(x.dtype).chunk(2, -1)
        return u, z

    def _convolved(self, past: Tensor) -> Tensor:
        v: Tensor = self.conv1d(past.to(self.conv1d.weight.dtype))
        return v.to(past.dtype)

    def _gated(self, y: Tensor, v: Tensor, z: Tensor, p: Any) -> Tensor:
        gated = (y + p.D * v) * F.silu(z)
        out: Tensor = self.out_proj(gated.to(self.out_proj.weight.dtype))
        return out

    def extra_repr(self) -> str:
        """Sizes, rank of the step sizes, dim."""
        sizes = f"{self.in_features}, {self.out_features}, d_state={self.d_state}"
        block = f"d_conv={self.d_conv}, expand={self.expand}, dt_rank={self.dt_rank}"
        return f"{sizes}, {block}, dim={self.dim}"


class CausalConv1d(nn.Conv1d):
    """A depthwise convolution over the first dimension, time.

    Args:
        channels: how many, each with weights of its own.
        length: of the window.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__(channels, channels, length, groups=channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch calls it
        """What comes out of every window.

        Args:
            input: ``[length - 1 + T, …, channels]``.

        Returns:
            ``[T, …, channels]``.
        """
        weight = self.weight[:, 0].t()
        single = input.shape[0] == len(weight) or torch.compiler.is_compiling()
        y: Tensor = (_windowed if single else _Windowed.apply)(input, weight)
        return y if self.bias is None else y + self.bias


def _windowed(past: Tensor, weight: Tensor) -> Tensor:
    """Sums over windows of past ``[K - 1 + T, …, E]`` with weights ``[K, E]``."""
    steps = past.shape[0] - len(weight) + 1
    y = past[:steps] * weight[0]
    for k in range(1, len(weight)):
        y = torch.addcmul(y, past[k : k + steps], weight[k])
    return y


class _Windowed(torch.autograd.Function):
    """Its gradient is such a sum too: torch's own writes one tensor for every place in a window."""

    @staticmethod
    def forward(ctx: Any, past: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(past, weight)
        return _windowed(past, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (gradient,) = gradients
        past, weight = ctx.saved_tensors
        length, steps = len(weight), len(gradient)
        ends = (length - 1, length - 1)
        wide = F.pad(gradient, (0, 0) * (gradient.ndim - 1) + ends)
        run = _windowed if mode.batched([gradient]) else _Windowed.apply
        into = run(wide, weight.flip(0))
        if not ctx.needs_input_grad[1]:
            return into, None
        products = (past[k : k + steps] * gradient for k in range(length))
        around = tuple(range(gradient.ndim - 1))
        return into, torch.stack([own.sum(around) for own in products])
