"""``S5``: one diagonalised state space of many inputs and outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from tracetorch import constraints
from tracetorch.parameters import checked_integer
from tracetorch.rnn.arguments import checked_choice, checked_even, checked_steps
from tracetorch.rnn.diagonal import METHODS, Pair, discretised, log_uniform, positive
from tracetorch.rnn.mixing import Maps, MixingSSM
from tracetorch.rnn.spectra import as_pair, hippo_normal


class S5(MixingSSM):
    r"""Simplified structured state space: all features drive the same complex modes, and read them.

    With P/2 = ``d_state`` / 2 complex states that stand for as many pairs of conjugates:

    .. math::
        \bar\Lambda &= e^{\Delta \odot \Lambda}, \qquad
        \bar B = \Lambda^{-1} (\bar\Lambda - 1) \odot \tilde B \\
        h &\leftarrow \bar\Lambda \odot h + \bar B\, x \\
        y &= 2\, \mathrm{Re}(\tilde C\, h) + D\, x

    (zero-order hold; ``"bilinear"``: Λ̄ = (1 + ΔΛ/2)/(1 - ΔΛ/2), B̄ = Δ/(1 - ΔΛ/2) ⊙ B̃). Nothing
    in it is nonlinear: put what is after it, as the paper does.

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype.

    States:
        ``h_re`` and ``h_im``, real and imaginary part of h: size ``d_state / 2`` at ``dim``; zeros
        at first.

    Parameters:
        ``Lambda_re`` ``[P/2]`` in (-∞, 0), stored as ``log_Lambda_re`` = log(-Lambda_re), and
        ``Lambda_im`` ``[P/2]`` in ℝ: at first the eigenvalues of ``blocks`` HiPPO-N matrices side
        by side. ``dt``, Δ: ``[P/2]`` in (0, ∞), stored as ``log_dt``, at first log-uniform in
        [``dt_min``, ``dt_max``]. ``B`` ``[P/2, in, 2]`` and ``C`` ``[out, P/2, 2]``, real and
        imaginary part, in ℝ: V⁻¹·B and C·V for the eigenvectors V of those matrices, where B is
        of N(0, 1/in) and C of N(0, 1/P). ``D`` ``[out, in]`` in ℝ: N(0, 1/in).

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output along ``dim``, at least 1.
        d_state: P, even, at least 2.
        blocks: J, HiPPO-N matrices in the initial state matrix, at least 1; ``d_state`` must be a
            multiple of 2·``blocks``.
        dt_min: least step size at first, in (0, ``dt_max``].
        dt_max: largest step size at first.
        discretization: ``"zoh"`` or ``"bilinear"``.
        dim: which dimension of one timestep's input holds the features.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a size is below 1, ``d_state`` odd or no multiple of 2·``blocks``, the step
            sizes not positive and in order, or there is no such discretisation.

    Example:
        >>> import torch
        >>> layer = S5(32, 8, d_state=16, blocks=2)
        >>> y = layer.unroll(torch.ones(100, 2, 32))
        >>> y.shape, layer.h_re.shape
        (torch.Size([100, 2, 8]), torch.Size([2, 8]))
        >>> layer.Lambda_re
        tensor([-0.5000, -0.5000, -0.5000, -0.5000, -0.5000, -0.5000, -0.5000, -0.5000],
               grad_fn=<NegBackward0>)
        >>> layer
        S5(32, 8, d_state=16, blocks=2, discretization='zoh', dim=-1)

    Source: Smith et al., Simplified State Space Layers for Sequence Modeling, arXiv 2208.04933.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        d_state: int = 64,
        blocks: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        discretization: str = "zoh",
        dim: int = -1,
    ) -> None:
        owner = type(self).__name__
        size = checked_even(owner, "d_state", d_state)
        super().__init__(in_features, out_features, size // 2, dim)
        self.d_state = size
        self.blocks = checked_integer(owner, "blocks", blocks, low=1)
        if size % (2 * self.blocks):
            raise ValueError(
                f"{owner}: d_state must be a multiple of 2·blocks = {2 * self.blocks}, got {size}"
            )
        self.discretization = checked_choice(owner, "discretization", discretization, METHODS)
        steps = checked_steps(owner, dt_min, dt_max)
        values, vectors = hippo_normal(size // self.blocks)
        self._add_modes(as_pair(values), steps)
        self._add_maps(as_pair(vectors))

    def _add_modes(self, values: Pair, steps: tuple[float, float]) -> None:
        shape = (self.d_state // 2,)
        real, imag = (part.repeat(self.blocks) for part in values)
        self.add_parameter(
            "Lambda_re",
            real,
            constraint=constraints.negative_exp,
            raw_name="log_Lambda_re",
            shape=shape,
        )
        self.add_parameter("Lambda_im", imag, raw_name="Lambda_im", shape=shape)
        drawn = log_uniform(*steps, *shape)
        self.add_parameter("dt", drawn, constraint=positive, raw_name="log_dt", shape=shape)

    def _add_maps(self, vectors: Pair) -> None:
        """Maps of the HiPPO-N states, in the basis of their eigenvectors; block by block."""
        size, half = self.d_state // self.blocks, self.d_state // 2
        basis = torch.stack(vectors, -1)  # [size, size / 2, 2]
        into = torch.randn(self.blocks, size, self.in_features) / math.sqrt(self.in_features)
        # the inverse of orthonormal vectors is their conjugate transpose
        turned = basis * basis.new_tensor([1.0, -1.0])
        B = torch.einsum("pnc,bpi->bnic", turned, into).reshape(half, self.in_features, 2)
        out = torch.randn(self.out_features, self.blocks, size) / math.sqrt(self.d_state)
        C = torch.einsum("pnc,obp->obnc", basis, out).reshape(self.out_features, half, 2)
        through = torch.randn(self.out_features, self.in_features) / math.sqrt(self.in_features)
        for name, value in {"B": B, "C": C, "D": through}.items():
            self.add_parameter(name, value, raw_name=name, shape=tuple(value.shape))

    def maps(self, p: Any) -> Maps:
        """Λ̄, Λ⁻¹(Λ̄ - 1) or what stands for it, B̃, C̃ and D."""
        decay, gain = discretised(self.discretization, p.dt, p.Lambda_re, p.Lambda_im)
        into, out = (p.B[..., 0], p.B[..., 1]), (p.C[..., 0], p.C[..., 1])
        return Maps(decay, gain, into, out, p.D, 2.0)

    def extra_repr(self) -> str:
        """Sizes, blocks, discretisation, dim."""
        sizes = f"{self.in_features}, {self.out_features}, d_state={self.d_state}"
        return (
            f"{sizes}, blocks={self.blocks}, discretization={self.discretization!r}, dim={self.dim}"
        )
