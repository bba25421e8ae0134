"""Recurrent layers of traceTorch: torch's three cells, and state spaces from S4D to Mamba."""

from __future__ import annotations

from tracetorch import Layer
from tracetorch.rnn.cells import GRU, LSTM, SimpleRNN
from tracetorch.rnn.lru import LRU
from tracetorch.rnn.mamba import Mamba
from tracetorch.rnn.s4d import S4D
from tracetorch.rnn.s5 import S5
from tracetorch.rnn.selective_ssm import SelectiveSSM

LAYERS: tuple[type[Layer], ...] = (SimpleRNN, LSTM, GRU, SelectiveSSM, S4D, S5, LRU, Mamba)
"""All recurrent layers and state spaces."""

__all__ = [
    "GRU",
    "LAYERS",
    "LRU",
    "LSTM",
    "S4D",
    "S5",
    "Layer",
    "Mamba",
    "SelectiveSSM",
    "SimpleRNN",
]
