"""``SelectiveSSM``: the selective scan of Mamba (S6), one timestep at a time.

A timestep is a projection, which has no memory and takes any number of timesteps at once, and an
elementwise scan step, which has nothing but memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch import Layer, constraints
from tracetorch.engine import Scan
from tracetorch.parameters import checked_integer

STEP_LOW, STEP_HIGH, STEP_FLOOR = 1e-3, 1e-1, 1e-4


class SelectiveSSM(Layer):
    r"""A state-space layer whose step size, input and output maps depend on the input (Mamba's S6).

    With D = ``in_features`` channels, each of N = ``state_size`` states:

    .. math::
        (\delta, B, C) &= W_x\, x \\
        \Delta &= \mathrm{softplus}(W_\Delta\, \delta + b_\Delta) \\
        h_{dn} &\leftarrow e^{\Delta_d A_{dn}}\, h_{dn} + \Delta_d\, x_d\, B_n \\
        y_d &= \textstyle\sum_n C_n\, h_{dn} + D_d\, x_d \\
        \mathrm{out} &= W_o\, y

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype. For the projections an input of another dtype is cast to the weights'.

    States:
        ``h``: ``[…, in_features, …, state_size]``, channels at ``dim``, ``state_size`` last.

    Parameters, named and initialised as in Mamba:
        ``x_proj``: linear, ``[dt_rank + 2N, D]``, no bias. ``dt_proj``: linear, ``[D, dt_rank]``,
        weight U(-k, k) with k = 1/√dt_rank, bias such that softplus(bias) is log-uniform in
        [0.001, 0.1] timesteps. ``A`` ``[D, N]`` in (-∞, 0), stored as ``A_log`` = log(-A), at
        first -1…-N in each channel. ``D`` ``[D]`` in ℝ, ones. ``out_proj``: linear,
        ``[out_features, D]``, no bias.

    Args:
        in_features: channels of the input along ``dim``, at least 1.
        out_features: size of the output along ``dim``, at least 1.
        state_size: states per channel, at least 1.
        dt_rank: rank of the map from input to step sizes, at least 1;
            ceil(``in_features`` / 16) where None.
        dim: which dimension of one timestep's input holds the channels.

    Raises:
        TypeError: an argument is no integer.
        ValueError: a size is below 1.

    Example:
        >>> import torch
        >>> layer = SelectiveSSM(32, 8, state_size=4)
        >>> y = layer(torch.ones(2, 32))
        >>> y.shape, layer.h.shape
        (torch.Size([2, 8]), torch.Size([2, 32, 4]))
        >>> torch.equal(layer.A, -layer.A_log.exp())
        True
        >>> layer
        SelectiveSSM(32, 8, 4, dt_rank=2, dim=-1)

    Source: Gu and Dao, Mamba, arXiv 2312.00752, algorithm 2; B discretised as in Mamba's code.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        state_size: int = 16,
        dt_rank: int | None = None,
        dim: int = -1,
    ) -> None:
        owner = type(self).__name__
        super().__init__(checked_integer(owner, "in_features", in_features, low=1), dim)
        self.in_features = self.num_neurons
        self.out_features = checked_integer(owner, "out_features", out_features, low=1)
        self.state_size = checked_integer(owner, "state_size", state_size, low=1)
        rank = math.ceil(self.in_features / 16) if dt_rank is None else dt_rank
        self.dt_rank = checked_integer(owner, "dt_rank", rank, low=1)
        self.add_state("h", sizes=(self.in_features, self.state_size))
        self._add_projections()
        self._add_spectrum()

    def _add_projections(self) -> None:
        self.x_proj = nn.Linear(self.in_features, self.dt_rank + 2 * self.state_size, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.in_features)
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(STEP_LOW), math.log(STEP_HIGH)
        steps = torch.exp(torch.rand(self.in_features) * (high - low) + low).clamp(min=STEP_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(constraints.softplus.inverse(steps))
        self.out_proj = nn.Linear(self.in_features, self.out_features, bias=False)

    def _add_spectrum(self) -> None:
        channels, states = self.in_features, self.state_size
        rates = -torch.arange(1, states + 1, dtype=torch.get_default_dtype())
        self.add_parameter(
            "A",
            rates.expand(channels, states),
            constraint=constraints.negative_exp,
            raw_name="A_log",
            shape=(channels, states),
        )
        self.add_parameter("D", torch.ones(channels), raw_name="D", shape=(channels,))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the input alone decides; any number of timesteps and samples at once.

        Args:
            x: ``[…, D]``, in the states' dtype.

        Returns:
            Δ ``[…, D]``, B ``[…, N]`` and C ``[…, N]``, in the dtype of ``x``.
        """
        sizes = [self.dt_rank, self.state_size, self.state_size]
        delta, B, C = _through(self.x_proj, x).split_with_sizes(sizes, dim=-1)
        dt = F.softplus(_through(self.dt_proj, delta).to(x.dtype))
        return dt, B.to(x.dtype), C.to(x.dtype)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """Project, advance the scan by one timestep, project back."""
        dt, B, C = self.project(x)
        h, y = SELECTIVE_SCAN.step(states.h, dt, x, B, C, p.A)
        return {"h": h}, self._read_out(y, x, p)

    def _read_out(self, y: Tensor, x: Tensor, p: Any) -> Tensor:
        return _through(self.out_proj, y + p.D * x)

    def sequence(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """Project all timesteps, scan them in one kernel, project back."""
        dt, B, C = self.project(x)
        found = SELECTIVE_SCAN.sequence(states.h, dt, x, B, C, p.A, owner=self, resets=resets)
        if found is None:
            return None
        h, y = found
        return {"h": h}, self._read_out(y, x, p)

    def kernel_source(
        self,
        ndim: int = 2,
        dtype: torch.dtype = torch.float32,
        backward: bool = False,
        backend: str = "cpp",
    ) -> str:
        """The generated source of the scan's kernel; the same for every ``ndim``."""
        del ndim
        real = torch.promote_types(dtype, self.A.dtype)
        return SELECTIVE_SCAN.source(self, real, backward, backend)

    def extra_repr(self) -> str:
        """Sizes, rank of the step sizes, dim."""
        sizes = f"{self.in_features}, {self.out_features}, {self.state_size}"
        return f"{sizes}, dt_rank={self.dt_rank}, dim={self.dim}"


def selective_lane(
    h: Tensor, dt: Tensor, x: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """One timestep of the selective scan in one sample, channel and state; elementwise.

    Args:
        h: the state.
        dt: step size Δ, positive, of the channel.
        x: input of the channel.
        B: input map of the state.
        C: output map of the state.
        A: rate, negative, of the channel's state.

    Returns:
        The new state, and its share of the channel's output.
    """
    h = torch.exp(dt * A) * h + dt * x * B
    return h, C * h


SELECTIVE_SCAN = Scan(
    "selective_scan", selective_lane, {"dt": "d", "x": "d", "B": "n", "C": "n", "A": "dn"}
)


def _through(linear: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = linear(x.to(linear.weight.dtype))
    return y
