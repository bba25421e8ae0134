"""``LRU``: the linear recurrent unit, a diagonal complex recurrence that stays stable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tracetorch.parameters import checked_integer
from tracetorch.rnn.arguments import checked_bounds, checked_number
from tracetorch.rnn.diagonal import positive
from tracetorch.rnn.mixing import Maps, MixingSSM


class LRU(MixingSSM):
    r"""Linear recurrent unit: a linear complex recurrence on a ring of decays within the unit disk.

    With N = ``d_state`` complex states:

    .. math::
        \lambda &= e^{-\nu + i \theta} \\
        h &\leftarrow \lambda \odot h + \gamma \odot (B\, x) \\
        y &= \mathrm{Re}(C\, h) + D\, x

    Nothing in it is nonlinear: put what is after it, as the paper does.

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype.

    States:
        ``h_re`` and ``h_im``, real and imaginary part of h: size ``d_state`` at ``dim``; zeros at
        first.

    Parameters:
        ``nu`` ``[N]`` in (0, ∞), stored as ``nu_log``: at first such that λ is uniform in the
        ring ``r_min`` ≤ |λ| ≤ ``r_max``. ``theta`` ``[N]`` in (0, ∞), stored as ``theta_log``:
        uniform in (0, ``max_phase``), radians per timestep. ``gamma`` ``[N]`` in (0, ∞), stored
        as ``gamma_log``: √(1 - |λ|²), which gives every state the variance of its input. ``B_re``
        and ``B_im`` ``[N, in]``: N(0, 1/(2·in)). ``C_re`` and ``C_im`` ``[out, N]``: N(0, 1/N).
        ``D`` ``[out, in]``: N(0, 1/in). The last five are unconstrained.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output along ``dim``, at least 1.
        d_state: complex states, at least 1.
        r_min: inner radius of the ring, from 0 to below ``r_max``.
        r_max: outer radius, at most 1.
        max_phase: largest angle of a timestep, in (0, 2π].
        dim: which dimension of one timestep's input holds the features.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a size is below 1, or a radius or the phase is out of its range.

    Example:
        >>> import torch
        >>> layer = LRU(32, 8, d_state=16, r_min=0.9, r_max=0.99)
        >>> y = layer.unroll(torch.ones(100, 2, 32))
        >>> y.shape, layer.h_re.shape
        (torch.Size([100, 2, 8]), torch.Size([2, 16]))
        >>> bool((torch.exp(-layer.nu) < 0.991).all())
        True
        >>> layer
        LRU(32, 8, d_state=16, dim=-1)

    Source: Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, arXiv
    2303.06349.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        d_state: int = 64,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        dim: int = -1,
    ) -> None:
        owner = type(self).__name__
        states = checked_integer(owner, "d_state", d_state, low=1)
        super().__init__(in_features, out_features, states, dim)
        self.d_state = states
        radii = checked_bounds(owner, ("r_min", "r_max"), (r_min, r_max), low=0.0, high=1.0)
        phase = checked_number(owner, "max_phase", max_phase)
        if not 0 < phase <= 2 * math.pi:
            raise ValueError(f"{owner}: max_phase must be in (0, 2π], got {max_phase!r}")
        self._add_ring(*radii, phase)
        self._add_maps()

    def _add_ring(self, r_min: float, r_max: float, max_phase: float) -> None:
        area, phase = _open_uniform(self.d_state), _open_uniform(self.d_state)
        squared = area * (r_max**2 - r_min**2) + r_min**2
        for name, value in {
            "nu": -torch.log(squared) / 2,
            "theta": phase * max_phase,
            "gamma": torch.sqrt(1 - squared),
        }.items():
            shape = (self.d_state,)
            self.add_parameter(
                name, value, constraint=positive, raw_name=f"{name}_log", shape=shape
            )

    def _add_maps(self) -> None:
        into, out = (self.d_state, self.in_features), (self.out_features, self.d_state)
        through = (self.out_features, self.in_features)
        for name, shape, variance in (
            ("B_re", into, 1 / (2 * self.in_features)),
            ("B_im", into, 1 / (2 * self.in_features)),
            ("C_re", out, 1 / self.d_state),
            ("C_im", out, 1 / self.d_state),
            ("D", through, 1 / self.in_features),
        ):
            drawn = math.sqrt(variance) * torch.randn(shape)
            self.add_parameter(name, drawn, raw_name=name, shape=shape)

    def maps(self, p: Any) -> Maps:
        """λ, γ, B, C and D."""
        size, gain = torch.exp(-p.nu), (p.gamma, torch.zeros_like(p.gamma))
        decay = size * torch.cos(p.theta), size * torch.sin(p.theta)
        return Maps(decay, gain, (p.B_re, p.B_im), (p.C_re, p.C_im), p.D, 1.0)

    def extra_repr(self) -> str:
        """Sizes and dim."""
        sizes = f"{self.in_features}, {self.out_features}"
        return f"{sizes}, d_state={self.d_state}, dim={self.dim}"


def _open_uniform(count: int) -> Tensor:
    """Uniform in (0, 1), without its ends: their logarithms would be infinite."""
    return torch.rand(count).clamp(1e-6, 1 - 1e-6)
