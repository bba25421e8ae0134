"""States of a model's layers in files: which file holds what, and whether it fits. Changes none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tracetorch import formats, state_files
from tracetorch.effective import dtype_of
from tracetorch.errors import StateError
from tracetorch.layer import Layer
from tracetorch.layer_states import States, states_of
from tracetorch.state_files import StateFile, StateRecord, dtype_name


def save(layers: Iterable[tuple[str, Layer]], path: str | os.PathLike[str]) -> None:
    """Write the states of these layers to a file, by qualified name."""
    records, tensors = {}, {}
    for name, layer in layers:
        for state, tensor in states_of(layer).items():
            records[f"{name}.{state}"] = _record(layer, tensor)
            if tensor is not None:
                tensors[f"{name}.{state}"] = tensor
    state_files.write(path, StateFile(formats.version(), records, tensors))


def load(
    layers: Mapping[str, Layer],
    path: str | os.PathLike[str],
    strict: bool,
    device: torch.device | str | None,
) -> States:
    """The states in a file by qualified name, of the type and on the device of their layers.

    Raises:
        StateError: one was saved of another class of layer.
    """
    content = state_files.read(path)
    owners = {f"{name}.{s}": layer for name, layer in layers.items() for s in layer.tt.states}
    states: States = {}
    for name, record in content.records.items():
        layer = owners.get(name)
        if strict and layer is not None and record.layer != _class_name(layer):
            raise StateError(
                layer,
                f"{name} was saved of a {record.layer}, not of a {_class_name(layer)}; "
                f"pass strict=False to take it all the same",
            )
        tensor = content.tensors.get(name)
        if tensor is not None and layer is not None:
            tensor = _placed(tensor, record, layer, device)
        states[name] = tensor
    return states


def _record(layer: Layer, tensor: Tensor | None) -> StateRecord:
    return StateRecord(
        layer=_class_name(layer),
        shape=None if tensor is None else list(tensor.shape),
        dtype=None if tensor is None else dtype_name(tensor.dtype),
        parameters=_parameter_dtype(layer),
    )


def _placed(
    tensor: Tensor, record: StateRecord, layer: Layer, device: torch.device | str | None
) -> Tensor:
    own = dtype_of(layer)
    home = next(iter([*layer.parameters(), *layer.buffers()]), tensor).device
    same = own is None or dtype_name(own) == record.parameters
    same |= not tensor.is_floating_point()
    return tensor.to(device=home if device is None else device, dtype=tensor.dtype if same else own)


def _parameter_dtype(layer: Layer) -> str | None:
    dtype = dtype_of(layer)
    return None if dtype is None else dtype_name(dtype)


def _class_name(layer: Layer) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"
