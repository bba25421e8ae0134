"""``SimpleRNN``, ``LSTM`` and ``GRU``: torch's own cells as layers.

Parameters carry the names, shapes and initialisation of ``torch.nn.RNNCell``, ``LSTMCell`` and
``GRUCell``: a cell's ``state_dict`` loads as it is, and one seed gives both the same weights.

Each layer writes its equations once, in ``cell``, and names torch's kernels that compute them: one
for a timestep, one for a whole sequence (oneDNN, cuDNN). The kernels run wherever they can. What
cuDNN does to ``torch.nn.LSTM`` it does to a sequence here: float32 is rounded to TF32 unless
``torch.backends.cudnn.allow_tf32`` is False, and there are no second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear
from tracetorch import Layer, mode
from tracetorch.parameters import checked_integer
from tracetorch.rnn.diagonal import unrounded
from tracetorch.rnn.kernels import Kernel, Pushes, States, one_or_all, restarting, run


class Cell(Layer):
    """Base of the three: weights, states, and any number of dimensions around a flat batch.

    A subclass says how many gates its weights hold, which states it has, and :meth:`cell`; and
    may name torch's kernels for the same equations. One that overrides what a timestep computes
    has no kernels unless it names its own. One with several states says in ``pushes`` how its gates
    restart a sample (``restarting`` of ``kernels``); without, its restarts are packed sequences.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output and of each state along ``dim``, at least 1.
        dim: which dimension of one timestep's input holds the features.
    """

    gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]] = ("h",)
    torch_cell: ClassVar[Kernel | None] = None
    torch_sequence: ClassVar[Kernel | None] = None
    pushes: ClassVar[Pushes] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if not own.keys().isdisjoint({"cell", "step", "forward"}):
            cls.torch_cell = own.get("torch_cell")
            cls.torch_sequence = own.get("torch_sequence")
            cls.pushes = own.get("pushes", ())

    def __init__(self, in_features: int, out_features: int, dim: int = -1) -> None:
        owner = type(self).__name__
        super().__init__(checked_integer(owner, "in_features", in_features, low=1), dim)
        self.in_features = self.num_neurons
        self.out_features = checked_integer(owner, "out_features", out_features, low=1)
        self.add_state(*self.state_names, sizes=(self.out_features,))
        rows, bound = self.gates * self.out_features, 1 / math.sqrt(self.out_features)
        self._add_weight("weight_ih", bound, rows, self.in_features)
        self._add_weight("weight_hh", bound, rows, self.out_features)
        self._add_weight("bias_ih", bound, rows)
        self._add_weight("bias_hh", bound, rows)

    def _add_weight(self, name: str, bound: float, *shape: int) -> None:
        drawn = torch.empty(shape).uniform_(-bound, bound)
        self.add_parameter(name, drawn, raw_name=name, shape=shape)

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """The equations: one timestep of a flat batch, to be written by each layer.

        Args:
            x: ``[B, in_features]``.
            states: each ``[B, out_features]``, in the order of ``state_names``.
            weights: ``weight_ih, weight_hh, bias_ih, bias_hh``.

        Returns:
            The new states, the one that is the output first.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define cell(self, x, states, weights)"
        )

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """One timestep; autocast is off inside, so that no state is rounded to 16 bits."""
        around, size = x.shape[:-1], self.out_features
        rows = math.prod(around)  # numel() is one number in a graph for any batch
        flat = tuple(_shaped(getattr(states, name), (rows, size)) for name in self.state_names)
        with unrounded(x.device.type):
            new = self._timestep(_shaped(x, (rows, self.in_features)), flat, _weights(p))
        kept = {n: _shaped(s, (*around, size)) for n, s in zip(self.state_names, new, strict=True)}
        return kept, kept[self.state_names[0]]

    def _timestep(self, x: Tensor, states: States, weights: States) -> States:
        if self.torch_cell is None or mode.transformed():
            return self.cell(x, states, weights)
        new = self.torch_cell(x, one_or_all(states), *weights)
        return new if isinstance(new, tuple) else (new,)

    def sequence(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """All timesteps through torch's kernel; None where there is none for it."""
        kernel = self.torch_sequence
        # torch.compile takes the kernels apart into timesteps, and cannot train the LSTM's
        if kernel is None or torch.compiler.is_compiling() or mode.recording():
            return None
        old = [getattr(states, name) for name in self.state_names]
        flat = x.reshape(len(x), x.shape[1:-1].numel(), self.in_features)
        with unrounded(x.device.type):
            if resets is None:
                y, *final = run(kernel, flat, old, _weights(p))
            else:
                restarts = resets.repeat_interleave(x.shape[2:-1].numel(), 1)
                y, *final = restarting(kernel, flat, old, _weights(p), restarts, self.pushes)
        new = {
            name: state.reshape(before.shape)
            for name, state, before in zip(self.state_names, final, old, strict=True)
        }
        return new, y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes and dim."""
        return f"{self.in_features}, {self.out_features}, dim={self.dim}"


def _weights(p: Any) -> States:
    return p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``reshape``, but the tensor itself where it has the shape: no view, as with ``moved``."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


class SimpleRNN(Cell):
    r"""The simple (Elman) recurrent layer: ``torch.nn.RNNCell`` with tanh, its state kept inside.

    .. math::
        h \leftarrow \tanh(W_{ih}\, x + b_{ih} + W_{hh}\, h + b_{hh}), \qquad y = h

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype.

    States:
        ``h``: size ``out_features`` at ``dim``, in [-1, 1]; zeros at first.

    Parameters, unconstrained, drawn from U(-k, k) with k = 1/√out_features:
        ``weight_ih`` ``[out, in]``, ``weight_hh`` ``[out, out]``, ``bias_ih`` and ``bias_hh``
        ``[out]``.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output and the state along ``dim``, at least 1.
        dim: which dimension of one timestep's input holds the features.

    Raises:
        TypeError: an argument is no integer.
        ValueError: ``in_features`` or ``out_features`` is below 1.

    Example:
        >>> import torch
        >>> layer = SimpleRNN(3, 4)
        >>> _ = layer.load_state_dict(torch.nn.RNNCell(3, 4).state_dict())
        >>> y = layer(torch.ones(2, 3))
        >>> torch.equal(y, layer.h)
        True
        >>> layer
        SimpleRNN(3, 4, dim=-1)

    Source: Elman, Finding Structure in Time, Cognitive Science 14 (1990).
    """

    gates = 1
    torch_cell, torch_sequence = torch.rnn_tanh_cell, torch.rnn_tanh

    def __init__(self, in_features: int, out_features: int, dim: int = -1) -> None:
        super().__init__(in_features, out_features, dim)

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """The equation above."""
        from_x, from_h = _linear(x, states[0], weights)
        return (torch.tanh(from_x + from_h),)


class LSTM(Cell):
    r"""Long short-term memory: ``torch.nn.LSTMCell``, its states kept inside.

    .. math::
        (i, f, g, o) &= W_{ih}\, x + b_{ih} + W_{hh}\, h + b_{hh} \\
        c &\leftarrow \sigma(f)\, c + \sigma(i) \tanh(g) \\
        h &\leftarrow \sigma(o) \tanh(c), \qquad y = h

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype.

    States:
        ``h`` in (-1, 1) and ``c``: size ``out_features`` at ``dim``; zeros at first.

    Parameters, unconstrained, drawn from U(-k, k) with k = 1/√out_features:
        ``weight_ih`` ``[4·out, in]``, ``weight_hh`` ``[4·out, out]``, ``bias_ih`` and ``bias_hh``
        ``[4·out]``, in the order i, f, g, o.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output and the states along ``dim``, at least 1.
        dim: which dimension of one timestep's input holds the features.

    Raises:
        TypeError: an argument is no integer.
        ValueError: ``in_features`` or ``out_features`` is below 1.

    Example:
        >>> import torch
        >>> layer = LSTM(3, 4)
        >>> _ = layer.load_state_dict(torch.nn.LSTMCell(3, 4).state_dict())
        >>> y = layer(torch.ones(2, 3))
        >>> sorted(layer.get_states()), torch.equal(y, layer.h)
        (['c', 'h'], True)
        >>> layer
        LSTM(3, 4, dim=-1)

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 9 (1997);
    with the forget gate of Gers et al. (2000).
    """

    gates = 4
    state_names = ("h", "c")
    torch_cell, torch_sequence = torch.lstm_cell, torch.lstm
    pushes = ((-1, -1), (-1, 1), (0, 0), (-1, 0))  # see kernels.restarting

    def __init__(self, in_features: int, out_features: int, dim: int = -1) -> None:
        super().__init__(in_features, out_features, dim)

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """The equations above."""
        h, c = states
        from_x, from_h = _linear(x, h, weights)
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRU(Cell):
    r"""Gated recurrent unit: ``torch.nn.GRUCell``, its state kept inside.

    .. math::
        r &= \sigma(W_{ir}\, x + b_{ir} + W_{hr}\, h + b_{hr}) \\
        z &= \sigma(W_{iz}\, x + b_{iz} + W_{hz}\, h + b_{hz}) \\
        n &= \tanh(W_{in}\, x + b_{in} + r \odot (W_{hn}\, h + b_{hn})) \\
        h &\leftarrow (1 - z)\, n + z\, h, \qquad y = h

    Shapes:
        Input ``[…, in_features, …]`` → output ``[…, out_features, …]``, both at ``dim``; of the
        input's dtype.

    States:
        ``h``: size ``out_features`` at ``dim``, in [-1, 1]; zeros at first.

    Parameters, unconstrained, drawn from U(-k, k) with k = 1/√out_features:
        ``weight_ih`` ``[3·out, in]``, ``weight_hh`` ``[3·out, out]``, ``bias_ih`` and ``bias_hh``
        ``[3·out]``, in the order r, z, n.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output and the state along ``dim``, at least 1.
        dim: which dimension of one timestep's input holds the features.

    Raises:
        TypeError: an argument is no integer.
        ValueError: ``in_features`` or ``out_features`` is below 1.

    Example:
        >>> import torch
        >>> layer = GRU(3, 4)
        >>> _ = layer.load_state_dict(torch.nn.GRUCell(3, 4).state_dict())
        >>> y = layer(torch.ones(2, 3))
        >>> torch.equal(y, layer.h)
        True
        >>> layer
        GRU(3, 4, dim=-1)

    Source: Cho et al., arXiv 1406.1078; in cuDNN's form, with the reset gate after the product.
    """

    gates = 3
    torch_cell, torch_sequence = torch.gru_cell, torch.gru

    def __init__(self, in_features: int, out_features: int, dim: int = -1) -> None:
        super().__init__(in_features, out_features, dim)

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """The equations above."""
        (h,) = states
        from_x, from_h = _linear(x, h, weights)
        (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return ((1 - z) * n + z * h,)


def _linear(x: Tensor, h: Tensor, weights: States) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    return linear(x, weight_ih, bias_ih), linear(h, weight_hh, bias_hh)
