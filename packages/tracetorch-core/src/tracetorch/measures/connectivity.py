"""What can be said of a model's weights as they stand: how many are zero, and their size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from tracetorch.layer import Layer
from tracetorch.measures.connections import kind_of
from tracetorch.walk import named_layers


def connection_sparsity(model: nn.Module) -> float:
    """The share of a model's weights that are zero.

    Weights are those of ``nn.Linear``, convolutions and transposed convolutions, of torch's
    recurrent modules and cells, and the matrices that layers of traceTorch hold under their own
    name (as ``weight_hh``). Biases, thresholds and decays are none.

    Args:
        model: any module; layers are found wherever they hide.

    Returns:
        A number in [0, 1]; NaN where there are no weights.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> connection_sparsity(nn.Sequential(layer))
        0.25

    Source: Yik et al., NeuroBench, arXiv 2304.04640; theirs takes the biases of recurrent modules
    for weights.
    """
    found = _weights(_checked(model, "connection_sparsity"))
    weights = {id(weight): weight for weight in found}.values()
    number = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / number if number else math.nan


def _modules(model: nn.Module) -> list[nn.Module]:
    """All modules, those within layers that torch does not see included; each once."""
    roots = (model, *(layer for _, layer in named_layers(model)))
    return [*{id(module): module for root in roots for module in root.modules()}.values()]


def _weights(model: nn.Module) -> Iterator[Tensor]:
    module: Any
    for module in _modules(model):
        kind = kind_of(module)
        if isinstance(module, Layer):
            for spec in module.tt.declaration.parameters.values():
                if len(spec.shape) >= 2 and not spec.derived:
                    yield getattr(module, spec.raw_name)
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            yield from (p for name, p in module.named_parameters() if name.startswith("weight"))
        elif kind is not None and kind.apply is not None:
            yield module.weight


def footprint(model: nn.Module) -> int:
    """How many bytes a model's parameters and buffers take.

    Hidden states are neither: ``model.summary()`` has them.

    Args:
        model: any module; layers are found wherever they hide.

    Returns:
        Bytes; a tensor that is held twice counts once.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> from torch import nn
        >>> footprint(nn.Linear(3, 4))
        64

    Source: Yik et al., NeuroBench, arXiv 2304.04640.
    """
    modules = _modules(_checked(model, "footprint"))
    held = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _checked(model: object, owner: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: model must be a module, got a {type(model).__name__}")
    return model
