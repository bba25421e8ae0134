"""LSTM, GRU and SimpleRNN against torch.nn, SelectiveSSM against mambapy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import rnn

from benchmarks.effort import Context
from benchmarks.harness import OURS, Contender, Data, Rounds, applied, compare, training
from benchmarks.peers import Run, eager
from benchmarks.tables import comparison
from benchmarks.workload import Shape, cotangent

TITLE = "Recurrent layers"
TORCH, MAMBA = "torch.nn", "mambapy, parallel scan"
CELLS: dict[str, tuple[Callable[[int, int], tt.Layer], Callable[[int, int], torch.nn.Module]]] = {
    "LSTM": (rnn.LSTM, torch.nn.LSTM),
    "GRU": (rnn.GRU, torch.nn.GRU),
    "SimpleRNN": (rnn.SimpleRNN, torch.nn.RNN),
}
STATE_SIZE = 16
SSM_SHAPE = Shape(512, 8, 128)


def measure(context: Context) -> Data:
    """The cells and the scan; the latter only beside what is installed."""
    effort = context.effort
    cells = Shape(min(200, effort.timesteps), 16, 256)
    scan = SSM_SHAPE._replace(timesteps=effort.scan)
    return {
        "cells shape": str(cells),
        "cells": {name: cell(name, cells, effort.rounds) for name in CELLS},
        "scan shape": str(scan),
        "scan": selective_scan(scan, effort.rounds),
    }


class Twin(NamedTuple):
    """The same layer by two libraries."""

    name: str
    run: Run
    parameters: Sequence[Tensor]
    reset: Callable[[], Any] = lambda: None
    note: str = ""
    peer: bool = False


def compare_twins(twins: list[Twin], shape: Shape, features: int, rounds: Rounds) -> Data:
    """Outputs compared, then training steps timed.

    Args:
        twins: the layers, the first the one that the others are held to.
        shape: of the input.
        features: size of the output.
        rounds: how many.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dy = cotangent(shape._replace(neurons=features))
    outputs = []
    for twin in twins:
        twin.reset()
        with torch.no_grad():
            outputs.append(twin.run(x))
    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], rtol=1e-4, atol=1e-4)
    contenders = [
        Contender(
            twin.name,
            training(applied(twin.run, x), dy, [x, *twin.parameters], twin.reset),
            twin.note,
            twin.peer,
        )
        for twin in twins
    ]
    return compare(contenders, rounds)


def cell(name: str, shape: Shape, rounds: Rounds) -> Data:
    """A cell unrolled, and torch's module for sequences with the same weights."""
    ours, theirs = CELLS[name]
    layer, module = ours(shape.neurons, shape.neurons), theirs(shape.neurons, shape.neurons)
    module.load_state_dict({f"{key}_l0": value for key, value in layer.state_dict().items()})
    twins = [
        Twin(OURS, layer.unroll, list(layer.parameters()), layer.zero_states),
        Twin(TORCH, lambda x: module(x)[0], list(module.parameters()), peer=True),
    ]
    return compare_twins(twins, shape, shape.neurons, rounds)


def selective_scan(shape: Shape, rounds: Rounds) -> Data:
    """SelectiveSSM fused and eager, and mambapy's block without its convolution and gate."""
    layer = ssm(shape)
    parameters = list(layer.parameters())
    twins = [
        Twin(OURS, layer.unroll, parameters, layer.zero_states, f"D={shape.neurons}, N=16"),
        Twin(f"{OURS}, eager", eager(layer.unroll), parameters, layer.zero_states),
    ]
    if find_spec("mambapy"):
        run, own = mambapy(layer, shape)
        note = "MambaBlock.ssm and out_proj, the same weights"
        twins.append(Twin(MAMBA, run, own, note=note, peer=True))
    return compare_twins(twins, shape, layer.out_features, rounds)


def ssm(shape: Shape) -> rnn.SelectiveSSM:
    """The layer, to half as many features, as in a block of Mamba."""
    torch.manual_seed(0)
    return rnn.SelectiveSSM(shape.neurons, shape.neurons // 2, STATE_SIZE)


def mambapy(layer: rnn.SelectiveSSM, shape: Shape) -> tuple[Run, list[Tensor]]:
    """The scan of mambapy's block with a layer's weights, and its parameters."""
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(
        MambaConfig(
            d_model=shape.neurons // 2,
            n_layers=1,
            dt_rank=layer.dt_rank,
            d_state=STATE_SIZE,
            expand_factor=2,
            pscan=True,
        )
    )
    own = layer.state_dict()
    block.load_state_dict(own, strict=False)

    def run(x: Tensor) -> Tensor:
        y: Tensor = block.out_proj(block.ssm(x.transpose(0, 1), None))
        return y.transpose(0, 1)

    return run, [p for name, p in block.named_parameters() if name in own]


def render(data: Data) -> str:
    """The tables."""
    parts = ["The same weights on both sides; outputs are compared before anything is timed."]
    for name, compared in data["cells"].items():
        title = f"### `{name}` unrolled against `{TORCH}`, {data['cells shape']}"
        parts += [title, comparison(compared, remarks=False)]
    parts += [f"### `SelectiveSSM`, {data['scan shape']}", comparison(data["scan"])]
    return "\n\n".join(parts)
