"""Recurrent layers of traceTorch: torch's three cells and Mamba's selective scan."""

from __future__ import annotations

from tracetorch import Layer
from tracetorch.rnn.cells import GRU, LSTM, SimpleRNN
from tracetorch.rnn.selective_ssm import SelectiveSSM

LAYERS: tuple[type[Layer], ...] = (SimpleRNN, LSTM, GRU, SelectiveSSM)

__all__ = ["GRU", "LAYERS", "LSTM", "Layer", "SelectiveSSM", "SimpleRNN"]
