"""What a model is made of: counted, and as a table."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from tracetorch.layer_states import batched
from tracetorch.randomness import RANDOM
from tracetorch.walk import named_layers


class ParameterCount(NamedTuple):
    """How many scalar parameters a model has.

    Attributes:
        total: all of them, those of layers in containers and plain objects included.
        in_layers: those inside tt layers.
        learnable: those of the total that require a gradient.
    """

    total: int
    in_layers: int
    learnable: int


def count(model: nn.Module) -> ParameterCount:
    """How many parameters a model has."""
    inside = {id(p): p for _, layer in named_layers(model) for p in layer.parameters(recurse=True)}
    everything = {**{id(p): p for p in model.parameters()}, **inside}
    return ParameterCount(
        total=sum(p.numel() for p in everything.values()),
        in_layers=sum(p.numel() for p in inside.values()),
        learnable=sum(p.numel() for p in everything.values() if p.requires_grad),
    )


def table(model: nn.Module) -> str:
    """A line for each layer: its parameters, its states, and their size per sample."""
    rows = [("layer", "", "parameters", "states", "state per sample")]
    for name, layer in named_layers(model):
        own = sum(p.numel() for p in layer.parameters())
        sizes = [
            state.shape[1 if batched(layer, key, state) else 0 :].numel()
            for key, state in layer.get_states().items()
            if key != RANDOM
        ]
        per_sample = str(sum(sizes)) if len(sizes) == len(layer.tt.declaration.states) else "-"
        rows.append((name, repr(layer), f"{own:,}", ", ".join(layer.tt.states), per_sample))
    total, in_layers, learnable = count(model)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.append(f"{total:,} parameters, {in_layers:,} in tt layers, {learnable:,} learnable")
    return "\n".join(lines)
