"""One node of a graph → a module of torch, and the shape of what it puts out. Knows no edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tracetorch import Layer
from tracetorch.errors import first_line
from tracetorch.snn.delay import Delay
from tracetorch.snn.nir import modules
from tracetorch.snn.nir.errors import NIRError, node_error
from tracetorch.snn.nir.graph import NEURONS, kind_of
from tracetorch.snn.nir.neurons import Neuron, tensor
from tracetorch.snn.nir.presets import Discretisation, to_timesteps

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Manner:
    """How nodes are built.

    Attributes:
        how: the discretisation.
        dt: seconds of a timestep.
        dtype: of weights and values.
        surrogate: makes the surrogate of each neuron.
    """

    how: Discretisation
    dt: float
    dtype: torch.dtype
    surrogate: Callable[[], nn.Module]


def build(
    name: str,
    node: Any,
    shape: Shape,
    manner: Manner,
    feedback: nn.Module | None = None,
    shorter: int = 0,
) -> nn.Module:
    """The module of a node.

    Args:
        name: the node's, for messages.
        node: of any kind but Input, Output, NIRGraph.
        shape: of its input, without the batch.
        manner: how.
        feedback: what leads a neuron's output back to it.
        shorter: timesteps that a delay is to be shorter by.

    Raises:
        NIRError: the node's own values do not fit one another, its input, or the manner.
    """
    kind = kind_of(node)
    try:
        if kind in NEURONS:
            return _neuron(kind, node, shape, manner, feedback)
        if kind == "Delay":
            return _delay(node, shape, manner, shorter)
        return _BUILDERS[kind](node, shape, manner)
    except NIRError as error:
        raise node_error(name, kind, str(error)) from None
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise node_error(name, kind, f"cannot be built: {error}") from None


def output_shape(name: str, node: Any, module: nn.Module, shape: Shape) -> Shape:
    """What a node makes of an input's shape.

    Raises:
        NIRError: the input does not fit.
    """
    kind = kind_of(node)
    if kind in (*NEURONS, "Delay", "Scale", "Threshold"):
        return shape
    like = next(module.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            found = module(torch.zeros(1, *shape, dtype=like.dtype))
    except (RuntimeError, IndexError) as error:
        raise node_error(
            name,
            kind,
            f"an input of shape {list(shape)} does not fit: {first_line(error)}",
        ) from None
    return tuple(found.shape[1:])


def input_shape(node: Any) -> Shape | None:
    """The input's shape that a node itself says, or None."""
    kind = kind_of(node)
    if kind in ("Linear", "Affine"):
        weight = np.shape(node.weight)
        return (*weight[:-2], weight[-1])
    if kind in ("Conv1d", "Conv2d"):
        if node.input_shape is None:
            return None
        channels = np.shape(node.weight)[1] * int(np.asarray(node.groups))
        return (channels, *_integers(node.input_shape))
    if kind in ("SumPool2d", "AvgPool2d"):
        return None
    return declared(node.input_type)


def declared(types: Any) -> Shape | None:
    """The shape in a node's ``input_type`` or ``output_type``; None where there is none."""
    value = next(iter(types.values()), None) if types else None
    found = () if value is None else tuple(_integers(value))
    return found if found and min(found) > 0 else None


# ------------------------------------------------------------------------------- neurons


def _neuron(
    kind: str, node: Any, shape: Shape, manner: Manner, feedback: nn.Module | None
) -> nn.Module:
    values = to_timesteps(kind, node_values(kind, node), manner.how, manner.dt)
    put, size, dim, flat = _laid_out(values, shape)
    layer = Neuron(
        size,
        kind,
        {name: tensor(value, manner.dtype) for name, value in put.items()},
        manner.how,
        dim,
        manner.surrogate(),
        _between_flat(feedback, shape) if flat else feedback,
    )
    return modules.Flat(layer, len(shape)) if flat else layer


def node_values(kind: str, node: Any) -> dict[str, Any]:
    """The arrays of a neuron's node by name, in float64."""
    return {name: _numbers(getattr(node, name)) for name in FIELDS[kind]}


FIELDS = {
    "I": ("r",),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
}


def _laid_out(values: dict[str, Any], shape: Shape) -> tuple[dict[str, Any], int, int, bool]:
    """Values as a layer takes them, its neurons, their dim, and whether the input is to be flat.

    One value for all stays one; one per channel is one per neuron, with the channels as neurons.
    """
    flat = False
    for name, value in values.items():
        if value.ndim and value.shape != shape:
            raise NIRError(
                f"its {'values' if len(values) == 1 else name} have shape {list(value.shape)}, "
                f"its input has {list(shape)}; they must be equal, or the values one number"
            )
        flat = flat or bool(value.ndim > 1 and (value != _first(value)).any())
    size = int(np.prod(shape)) if flat else shape[0]
    put = {name: _per_neuron(value, flat) for name, value in values.items()}
    return put, size, -1 if flat else -len(shape), flat


def _first(value: Any) -> Any:
    """The first value of each channel, to broadcast."""
    return value.reshape(len(value), -1)[:, 0].reshape(-1, *[1] * (value.ndim - 1))


def _per_neuron(value: Any, flat: bool) -> Any:
    if value.ndim < 2:
        return value
    return value.reshape(-1) if flat else _first(value).reshape(-1)


def _between_flat(module: nn.Module | None, shape: Shape) -> nn.Module | None:
    if module is None:
        return None
    return nn.Sequential(nn.Unflatten(-1, shape), module, nn.Flatten(-len(shape)))


def _delay(node: Any, shape: Shape, manner: Manner, shorter: int) -> nn.Module:
    put, size, dim, flat = _laid_out({"delay": timesteps(node, manner.dt) - shorter}, shape)
    layer: Layer = Delay(size, tensor(put["delay"], manner.dtype), dim=dim)
    return modules.Flat(layer, len(shape)) if flat else layer


def timesteps(node: Any, dt: float) -> Any:
    """A delay in timesteps; whole where it is but for rounding.

    Raises:
        NIRError: a delay is below 0, or not finite.
    """
    steps = _numbers(node.delay) / dt
    if not (np.isfinite(steps) & (steps >= 0)).all():
        raise NIRError("delay must be finite and not below 0")
    whole = np.round(steps)
    return np.where(np.abs(steps - whole) <= 1e-5 * np.maximum(whole, 1), whole, steps)


# ------------------------------------------------------------------------------- stateless


def _linear(node: Any, shape: Shape, manner: Manner) -> nn.Module:
    del shape
    weight = tensor(node.weight, manner.dtype)
    bias = getattr(node, "bias", None)
    if bias is not None:
        bias = _fitting("bias", tensor(bias, manner.dtype), weight.shape[:-1])
    if weight.ndim == 2:
        outs, ins = weight.shape
        layer = nn.Linear(ins, outs, bias=bias is not None, dtype=manner.dtype)
        return _filled(layer, weight, bias)
    return modules.Affine(weight, bias)


def _convolution(cls: Any, ndim: int) -> Callable[[Any, Shape, Manner], nn.Module]:
    def built(node: Any, shape: Shape, manner: Manner) -> nn.Module:
        weight = tensor(node.weight, manner.dtype)
        if weight.ndim != ndim + 2:
            raise NIRError(f"weight must have {ndim + 2} dimensions, got {list(weight.shape)}")
        if len(shape) != ndim + 1:
            raise NIRError(f"its input must have {ndim + 1} dimensions, got {list(shape)}")
        bias = None if node.bias is None else tensor(node.bias, manner.dtype)
        if bias is not None:
            bias = _fitting("bias", bias, weight.shape[:1])
        groups = int(np.asarray(node.groups))
        padding = node.padding
        layer = cls(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_sized(node.stride, ndim),
            padding=padding if isinstance(padding, str) else _sized(padding, ndim),
            dilation=_sized(node.dilation, ndim),
            groups=groups,
            bias=bias is not None,
            dtype=manner.dtype,
        )
        return _filled(layer, weight, bias)

    return built


def _fitting(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    if value.shape not in (shape, torch.Size(())):
        raise NIRError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    return value.expand(shape).clone()


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    found: nn.Module = layer
    return found


def _pool(cls: Any) -> Callable[[Any, Shape, Manner], nn.Module]:
    def built(node: Any, shape: Shape, manner: Manner) -> nn.Module:
        del shape, manner
        sizes = (node.kernel_size, node.stride, node.padding)
        found: nn.Module = cls(*(_sized(size, 2) for size in sizes))
        return found

    return built


def _flatten(node: Any, shape: Shape, manner: Manner) -> nn.Module:
    del shape, manner
    ends = [int(np.asarray(end)) for end in (node.start_dim, node.end_dim)]
    # a node's dimensions are those without the batch
    return nn.Flatten(*(end + 1 if end >= 0 else end for end in ends))


def _elementwise(field: str, make: Callable[[Tensor, Manner], nn.Module]) -> Any:
    def built(node: Any, shape: Shape, manner: Manner) -> nn.Module:
        value = tensor(getattr(node, field), manner.dtype)
        if value.ndim and tuple(value.shape) != shape:
            raise NIRError(
                f"its {field} has shape {list(value.shape)}, its input {list(shape)}; they must be "
                f"equal, or the {field} one number"
            )
        return make(value, manner)

    return built


_BUILDERS: dict[str, Callable[[Any, Shape, Manner], nn.Module]] = {
    "Affine": _linear,
    "Linear": _linear,
    "Conv1d": _convolution(nn.Conv1d, 1),
    "Conv2d": _convolution(nn.Conv2d, 2),
    "AvgPool2d": _pool(nn.AvgPool2d),
    "SumPool2d": _pool(modules.SumPool2d),
    "Flatten": _flatten,
    "Scale": _elementwise("scale", lambda scale, _: modules.Scale(scale)),
    "Threshold": _elementwise(
        "threshold",
        lambda threshold, manner: modules.Threshold(
            threshold, manner.surrogate(), manner.how.at_threshold
        ),
    ),
}


def _numbers(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _integers(value: Any) -> list[int]:
    return [int(one) for one in np.atleast_1d(np.asarray(value))]


def _sized(value: Any, ndim: int) -> tuple[int, ...]:
    """One integer per dimension, from those or one for all."""
    sizes = _integers(value)
    if len(sizes) not in (1, ndim):
        raise NIRError(f"sizes must be {ndim} integers, or one, got {sizes}")
    return tuple(sizes * ndim if len(sizes) == 1 else sizes)
