"""``S4D``: a diagonal state space for each channel, whole sequences as products of chunks.

Within a chunk the layer is a convolution, and between chunks a recurrence that is as many times
shorter. Both are exact, from any state, and memory grows with the sequence alone. (A convolution of
the whole sequence by FFT took 3.5 times as long at T = 512, and starts from zero only.) Where
samples restart, chunks begin there, and most of them have no state before or after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch import Layer, constraints
from tracetorch.parameters import checked_integer
from tracetorch.rnn.arguments import checked_choice, checked_even, checked_steps
from tracetorch.rnn.diagonal import (
    METHODS,
    Pair,
    at_once,
    discretised,
    log_uniform,
    paired,
    positive,
    powers,
    recurrence,
    times,
    unrounded,
)
from tracetorch.rnn.restarts import chunks, piece_lengths
from tracetorch.rnn.spectra import INITIALISATIONS, as_pair

# timesteps of a chunk: of 32, 64 and 128 the fastest at 32 complex states
_CHUNK = 64
# what they may be where samples restart, and what moving a number costs, in multiplications
_LENGTHS, _MOVED = (_CHUNK, 48, 32, 24, 16, 8, 4), 64


class S4D(Layer):
    r"""Diagonal structured state space: in each channel, complex modes that decay and turn.

    With D = ``in_features`` channels, each of N/2 = ``d_state`` / 2 complex states that stand
    for as many pairs of conjugates:

    .. math::
        \bar A &= e^{\Delta A}, \qquad \bar B = (\bar A - 1) / A \\
        h_{dn} &\leftarrow \bar A_{dn}\, h_{dn} + \bar B_{dn}\, x_d \\
        y_d &= 2\, \mathrm{Re} \textstyle\sum_n C_{dn}\, h_{dn} + D_d\, x_d \\
        \mathrm{out} &= W_o\, y

    (zero-order hold; ``"bilinear"``: Ā = (1 + ΔA/2)/(1 - ΔA/2), B̄ = Δ/(1 - ΔA/2)). Nothing in it
    is nonlinear: put what is after it.

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype. For ``out_proj`` y is cast to its weight's dtype.

    States:
        ``h_re`` and ``h_im``, real and imaginary part of h: ``[…, in_features, …, d_state / 2]``,
        channels at ``dim``; zeros at first.

    Parameters:
        ``dt``, Δ: ``[D]`` in (0, ∞), stored as ``log_dt``, at first log-uniform in [``dt_min``,
        ``dt_max``]. ``A_real`` ``[D, N/2]`` in (-∞, 0), stored as ``log_A_real`` = log(-A_real),
        and ``A_imag`` ``[D, N/2]`` in ℝ: as ``init`` says, the same in each channel. ``C``
        ``[D, N/2, 2]``, real and imaginary part, in ℝ: N(0, 1/2). ``D`` ``[D]`` in ℝ: N(0, 1).
        ``out_proj``: linear, ``[out_features, D]``, no bias.

    Args:
        in_features: channels of the input along ``dim``, at least 1.
        out_features: size of the output along ``dim``, at least 1.
        d_state: N, even, at least 2.
        init: spectrum at first, n = 0, 1, …: ``"lin"``, A = -1/2 + iπn; ``"inv"``,
            -1/2 + i (N/π)(N/(2n + 1) - 1); ``"real"``, -(n + 1); ``"legs"``, eigenvalues of
            HiPPO-LegS' normal part.
        dt_min: least step size at first, in (0, ``dt_max``].
        dt_max: largest step size at first.
        discretization: ``"zoh"`` or ``"bilinear"``.
        dim: which dimension of one timestep's input holds the channels.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a size is below 1, ``d_state`` odd, the step sizes not positive and in order,
            or there is no such initialisation or discretisation.

    Example:
        >>> import torch
        >>> layer = S4D(32, 8, d_state=16)
        >>> y = layer.unroll(torch.ones(100, 2, 32))
        >>> y.shape, layer.h_re.shape
        (torch.Size([100, 2, 8]), torch.Size([2, 32, 8]))
        >>> layer.A_imag[0, :3]
        tensor([0.0000, 3.1416, 6.2832], grad_fn=<SliceBackward0>)
        >>> layer
        S4D(32, 8, d_state=16, discretization='zoh', dim=-1)

    Source: Gu et al., On the Parameterization and Initialization of Diagonal State Space Models,
    arXiv 2206.11893.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        d_state: int = 64,
        init: str = "lin",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        discretization: str = "zoh",
        dim: int = -1,
    ) -> None:
        owner = type(self).__name__
        super().__init__(checked_integer(owner, "in_features", in_features, low=1), dim)
        self.in_features = self.num_neurons
        self.out_features = checked_integer(owner, "out_features", out_features, low=1)
        self.d_state = checked_even(owner, "d_state", d_state)
        self.discretization = checked_choice(owner, "discretization", discretization, METHODS)
        spectrum = checked_choice(owner, "init", init, [*INITIALISATIONS])
        steps = checked_steps(owner, dt_min, dt_max)
        self.add_state("h_re", "h_im", sizes=(self.in_features, self.d_state // 2))
        self._add_modes(spectrum, steps)
        self.add_parameter("D", torch.randn(self.in_features), raw_name="D")
        self.out_proj = nn.Linear(self.in_features, self.out_features, bias=False)

    def _add_modes(self, init: str, steps: tuple[float, float]) -> None:
        shape = (self.in_features, self.d_state // 2)
        real, imag = (part.expand(shape) for part in as_pair(INITIALISATIONS[init](shape[1])))
        self.add_parameter(
            "dt", log_uniform(*steps, shape[0]), constraint=positive, raw_name="log_dt"
        )
        self.add_parameter(
            "A_real",
            real,
            constraint=constraints.negative_exp,
            raw_name="log_A_real",
            shape=shape,
        )
        self.add_parameter("A_imag", imag, raw_name="A_imag", shape=shape)
        drawn = 0.5**0.5 * torch.randn(*shape, 2)
        self.add_parameter("C", drawn, raw_name="C", shape=(*shape, 2))

    def discretised(self, p: Any) -> tuple[Pair, Pair]:
        """Ā and B̄, each as real and imaginary part ``[D, N/2]``.

        Args:
            p: the effective parameters by attribute; the layer itself has them too.
        """
        return discretised(self.discretization, p.dt[:, None], p.A_real, p.A_imag)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """Advance all modes by one timestep, read them, project."""
        decay, into = self.discretised(p)
        re, im = times(decay, (states.h_re, states.h_im))
        h_re, h_im = re + into[0] * x[..., None], im + into[1] * x[..., None]
        y = 2 * (p.C[..., 0] * h_re - p.C[..., 1] * h_im).sum(-1)
        return {"h_re": h_re, "h_im": h_im}, self._read_out(y, x, p)

    def sequence(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """Chunk by chunk, all at once."""
        if not at_once(self, x, states.h_re, states.h_im):
            return None
        if resets is not None and torch.compiler.is_compiling():
            return None  # how many chunks there are, a graph cannot depend on
        around, sizes = x.shape[1:-1], (self.in_features, self.d_state // 2, 2)
        start = paired((states.h_re, states.h_im)).reshape(around.numel(), *sizes)
        with unrounded(x.device.type):
            flat = x.reshape(len(x), around.numel(), x.shape[-1])
            given = flat, start, *self.discretised(p), p.C
            if resets is None or not bool(resets.any()):
                h, y = _chunked(*given)
            else:
                h, y = _restarting(*given, resets.repeat_interleave(around[1:].numel(), 1))
        h = h.reshape(*around, *sizes)
        return {"h_re": h[..., 0], "h_im": h[..., 1]}, self._read_out(y.reshape(x.shape), x, p)

    def _read_out(self, y: Tensor, x: Tensor, p: Any) -> Tensor:
        y = y + p.D * x
        out: Tensor = self.out_proj(y.to(self.out_proj.weight.dtype))
        return out

    def extra_repr(self) -> str:
        """Sizes, discretisation, dim."""
        sizes = f"{self.in_features}, {self.out_features}, d_state={self.d_state}"
        return f"{sizes}, discretization={self.discretization!r}, dim={self.dim}"


def _chunked(x: Tensor, start: Tensor, decay: Pair, into: Pair, C: Tensor) -> tuple[Tensor, Tensor]:
    """The last states and 2·Re(C·h) of all timesteps.

    Args:
        x: ``[T, B, D]``.
        start: ``[B, D, n, 2]``.
        decay: each part ``[D, n]``.
        into: each part ``[D, n]``.
        C: ``[D, n, 2]``.

    Returns:
        States ``[B, D, n, 2]`` and outputs ``[T, B, D]``.
    """
    steps, samples, channels = x.shape
    count = -(-steps // _CHUNK)
    length = -(-steps // count)
    rest = steps - (count - 1) * length
    cut = F.pad(x, (0, 0, 0, 0, 0, length - rest)).view(count, length, samples, channels)
    cut = cut.permute(3, 0, 2, 1).reshape(channels, count * samples, length)
    past = powers(paired(decay), length + 1).transpose(0, 1)  # [D, length + 1, n, 2]
    begun, final = _begun(cut, start.transpose(0, 1), past, torch.complex(*into), rest)

    read = _reading(past[:, :length], decay, into, C)
    y = read(cut, begun)
    y = y.view(channels, count, samples, length).permute(1, 3, 2, 0)
    return final.transpose(0, 1), y.reshape(count * length, samples, channels)[:steps]


class _Reading(NamedTuple):
    """What comes out of a chunk: what its inputs do at once, and what the state before it does.

    Attributes:
        matrix: from inputs to outputs, ``[D, length, length]``.
        rows: from a state, read, to outputs: ``[D, 2n, length]``.
        gain: by which a state is read, complex ``[D, n]``.
    """

    matrix: Tensor
    rows: Tensor
    gain: Tensor

    def __call__(self, cut: Tensor, begun: Tensor) -> Tensor:
        """2·Re(C·h) ``[D, S, length]`` of inputs ``[D, S, length]`` from states ``[D, S, n]``."""
        read = _interleaved(begun * self.gain[:, None])
        return torch.baddbmm(torch.bmm(read, self.rows), cut, self.matrix)


def _reading(past: Tensor, decay: Pair, into: Pair, C: Tensor) -> _Reading:
    """Of powers of the decay ``[D, length, n, 2]``; the rest as ``_chunked`` takes it."""
    # what of a state at the start of a chunk comes out after l timesteps: the real part of read·āˡ
    gain = 2 * torch.view_as_complex(C.contiguous())
    rows = past.flatten(-2).transpose(1, 2)
    kernel = torch.bmm(_interleaved(gain * torch.complex(*into))[:, None], rows)[:, 0]
    return _Reading(_toeplitz(kernel), rows, gain * torch.complex(*decay))


def _restarting(
    x: Tensor, start: Tensor, decay: Pair, into: Pair, C: Tensor, resets: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``_chunked``, where ``resets``, boolean ``[T, B]``, says before what samples restart."""
    length = _fitting(piece_lengths(resets), start.shape[-2])
    cut = chunks(resets, length)
    past = powers(paired(decay), length + 1).transpose(0, 1)  # [D, length + 1, n, 2]
    whole, factor = past[:, length], torch.complex(*into)
    placed = x.new_zeros(sum(cut.sizes), x.shape[-1]).index_copy(0, cut.rows, x.flatten(0, 1))
    short, alone, first, between, last = (
        part.view(-1, steps, x.shape[-1]).permute(2, 0, 1)  # [D, chunks, timesteps]
        for part, steps in zip(placed.split_with_sizes(cut.sizes), cut.steps, strict=True)
    )

    known = start
    if len(cut.order):
        entered = _entered(torch.cat([first, between], 1), past[:, :length], factor).transpose(0, 1)
        begun = torch.view_as_complex(start[cut.carried[1]]) * torch.view_as_complex(whole)
        entered = entered.index_select(0, cut.order)
        entered = entered.index_add(0, cut.carried[0], torch.view_as_real(begun))
        zero = torch.zeros_like(start[:1])
        handed = recurrence(zero, entered[:, None], whole, cut.first[:, None])[:, 0]
        known = torch.cat([handed, start])

    read = _reading(past[:, :length], decay, into, C)
    half = read.matrix[:, : length // 2, : length // 2]
    found = (
        torch.bmm(short.contiguous(), half.contiguous()),
        torch.bmm(torch.cat([alone, first], 1), read.matrix),
        read(torch.cat([between, last], 1), _selected(known, cut.sources)),
    )
    y = torch.cat([part.permute(1, 2, 0).flatten(0, 1) for part in found])
    final = _final(x, known, cut.last, past, factor)
    return final, y.index_select(0, cut.rows).view(x.shape)


def _final(
    x: Tensor, known: Tensor, last: tuple[Tensor, Tensor, Tensor], past: Tensor, into: Tensor
) -> Tensor:
    """The last states ``[B, D, n, 2]``, from what is known before chunks and inputs since then."""
    left, source, reads = last
    recent = min(len(x), past.shape[1] - 1)
    held = torch.arange(recent, 0, -1, device=x.device)[:, None] <= left
    newest = (x[len(x) - recent :] * held[..., None]).permute(2, 1, 0)
    carried = _selected(known, source) * _selected(past.transpose(0, 1), left)
    carried = torch.view_as_real(carried) * reads[:, None, None]
    return (_entered(newest, past[:, :recent], into) + carried).transpose(0, 1)


def _selected(states: Tensor, index: Tensor) -> Tensor:
    """Of states ``[S, D, n, 2]``: complex, channels first."""
    return torch.view_as_complex(states.index_select(0, index).transpose(0, 1).contiguous())


def _fitting(lengths: Tensor, states: int) -> int:
    """The length of chunks with least to do for pieces of these lengths."""
    costs = []
    for length in _LENGTHS:
        handed = -(-lengths // length) - 1
        short = lengths <= length // 2
        steps = torch.where(short, length // 2, (handed + 1) * length)
        convolved = steps * (torch.where(short, length // 2, length) + _MOVED)
        costs.append((convolved + handed * states * (4 * length + 2 * _MOVED)).sum())
    return _LENGTHS[int(torch.stack(costs).argmin())]


def _begun(
    cut: Tensor, start: Tensor, past: Tensor, into: Tensor, rest: int
) -> tuple[Tensor, Tensor]:
    """The states before each chunk, complex ``[D, count · B, n]``, and the last, ``[D, B, n, 2]``.

    Args:
        cut: inputs ``[D, count · B, length]``.
        start: ``[D, B, n, 2]``.
        past: powers of the decay, ``[D, length + 1, n, 2]``.
        into: complex ``[D, n]``.
        rest: timesteps of the last chunk.
    """
    channels, samples = start.shape[:2]
    length, last = past.shape[1] - 1, cut.shape[1] - samples
    begun = start[:, None]
    if last:
        entered = _entered(cut[:, :last], past[:, :length], into)
        entered = entered.view(channels, -1, *start.shape[1:]).transpose(0, 1)
        ends = recurrence(start, entered, past[:, length, None])
        begun = torch.cat([begun, ends.transpose(0, 1)], 1)
    states = torch.view_as_complex(begun.contiguous())
    left = _entered(cut[:, last:, :rest], past[:, :rest], into)
    final = left + torch.view_as_real(
        states[:, -1] * torch.view_as_complex(past[:, rest, None].contiguous())
    )
    return states.flatten(1, 2), final


def _entered(cut: Tensor, past: Tensor, into: Tensor) -> Tensor:
    """What inputs ``[D, S, length]`` have made of zero states: ``[D, S, n, 2]``."""
    found = torch.bmm(cut, past.flip(1).flatten(-2)).view(*cut.shape[:2], *past.shape[2:])
    return torch.view_as_real(torch.view_as_complex(found) * into[:, None])


def _interleaved(factors: Tensor) -> Tensor:
    """Complex ``[…, n]`` → real ``[…, 2n]``, for the real part of products with pairs."""
    return torch.view_as_real(factors.conj().resolve_conj()).flatten(-2)


def _toeplitz(kernel: Tensor) -> Tensor:
    """A kernel ``[D, length]`` as matrices ``[D, from, to]``: kernel[to - from], else zero."""
    length = kernel.shape[-1]
    return F.pad(kernel, (length - 1, 0)).unfold(-1, length, 1).flip(1)
