"""``SimpleRNN``, ``LSTM`` and ``GRU``: torch's own cells as layers. Computes nothing itself.

Parameters carry the names, shapes and initialisation of ``torch.nn.RNNCell``, ``LSTMCell`` and
``GRUCell``: a cell's ``state_dict`` loads as it is, and one seed gives both the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.amp.autocast_mode import autocast, is_autocast_available

from tracetorch import Layer
from tracetorch.parameters import checked_integer

States = tuple[Tensor, ...]


class Cell(Layer):
    """Base of the three: weights, states, and any number of dimensions around torch's cell.

    A subclass says how many gates its weights hold, which states it has, and :meth:`cell`.

    Args:
        in_features: size of the input along ``dim``, at least 1.
        out_features: size of the output and of each state along ``dim``, at least 1.
        dim: which dimension of one timestep's input holds the features.
    """

    gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]] = ("h",)

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
        """One timestep of a flat batch, to be written by each layer.

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
        flat = tuple(
            getattr(states, name).reshape(-1, self.out_features) for name in self.state_names
        )
        weights = (p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh)
        around = (*x.shape[:-1], self.out_features)
        with _unrounded(x.device.type):
            new = self.cell(x.reshape(-1, self.in_features), flat, weights)
        kept = {n: s.reshape(around) for n, s in zip(self.state_names, new, strict=True)}
        return kept, kept[self.state_names[0]]

    def extra_repr(self) -> str:
        """Sizes and dim."""
        return f"{self.in_features}, {self.out_features}, dim={self.dim}"


def _unrounded(device_type: str) -> autocast:
    usable = is_autocast_available(device_type)
    return autocast(device_type if usable else "cpu", enabled=False)


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

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """``torch.rnn_tanh_cell``."""
        return (torch.rnn_tanh_cell(x, *states, *weights),)


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

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """``torch.lstm_cell``."""
        return torch.lstm_cell(x, states, *weights)


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

    def cell(self, x: Tensor, states: States, weights: States) -> States:
        """``torch.gru_cell``."""
        return (torch.gru_cell(x, *states, *weights),)
