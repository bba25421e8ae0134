"""One layer → nodes of NIR, or the reason why there are none. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nir  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor, nn
from tracetorch import Layer
from tracetorch.snn import resets
from tracetorch.snn.delay import Delay
from tracetorch.snn.firing import BINARY
from tracetorch.snn.layer import LeakyIntegrator
from tracetorch.snn.nir import modules
from tracetorch.snn.nir.errors import NIRError
from tracetorch.snn.nir.neurons import Neuron
from tracetorch.snn.nir.presets import Discretisation, Values, to_node
from tracetorch.snn.quantizers import Round
from tracetorch.snn.surrogates import Surrogate

Shape = tuple[int, ...]

_RESETS: dict[type, str] = {type(resets.to()): "value", type(resets.subtract()): "subtract"}


@dataclass
class Piece:
    """The nodes that one layer becomes.

    Attributes:
        nodes: by what their names add to the layer's; ``""`` is what it puts out.
        edges: between them.
        entry: the one that takes the layer's input.
    """

    nodes: dict[str, Any]
    edges: list[tuple[str, str]] = field(default_factory=list)
    entry: str = ""


def piece(
    module: nn.Module, shape: Shape, how: Discretisation, dt: float, back: bool = True
) -> Piece:
    """A layer's nodes.

    Args:
        module: the layer.
        shape: of its input, without the batch.
        how: the discretisation.
        dt: seconds of a timestep.
        back: those of its feedback too.

    Raises:
        NIRError: NIR has no equivalent; the message says why.
    """
    if isinstance(module, LeakyIntegrator):
        return _leaky(module, shape, how, dt)
    inner = module.layer if isinstance(module, modules.Flat) else module
    if isinstance(inner, Neuron):
        return _neuron(inner, shape, how, dt, back)
    if isinstance(inner, Delay):
        delay = _full(_value(inner, "delay").clip(0, inner.longest), inner, shape)
        return Piece({"": nir.Delay(delay * dt)})
    make = _MAKERS.get(type(module))
    if make is None:
        raise NIRError(f"there is no node for {_what(module)}")
    return Piece({"": make(module, shape)})


def _what(module: nn.Module) -> str:
    if isinstance(module, (nn.modules.batchnorm._BatchNorm,)):
        return f"{type(module).__name__}; fold it into the weights before it"
    return type(module).__name__


def firing_of(module: nn.Module) -> tuple[str, bool] | None:
    """A layer's reset and whether it is delayed; None where it does not fire."""
    inner = module.layer if isinstance(module, modules.Flat) else module
    if isinstance(inner, Neuron):
        return (inner.how.reset, inner.how.delayed) if inner.fires else None
    if isinstance(inner, LeakyIntegrator) and inner.firing is not None:
        kind = _RESETS.get(type(inner.reset))
        if kind is None:
            raise NIRError(f"its reset is {inner.reset!r}; each neuron of NIR that fires is reset")
        return kind, inner.reset.delayed
    return None


# ------------------------------------------------------------------------------- leaky integrators


def _leaky(layer: LeakyIntegrator, shape: Shape, how: Discretisation, dt: float) -> Piece:
    _expressible(layer, how)
    beta = _value(layer, "beta")
    one, none = np.ones_like(beta), np.zeros_like(beta)
    values = {"beta": beta, "gain": 1 - beta if layer.average else one, "bias": none}
    if layer.firing is not None:
        rest = getattr(layer.reset, "value", 0.0)
        threshold = _value(layer, "threshold")
        values |= {"threshold": threshold, "rest": np.full_like(threshold, rest)}

    def node(kind: str, values: Values) -> Any:
        put = to_node(kind, values, how, dt)
        return getattr(nir, kind)(**{k: _full(v, layer, shape) for k, v in put.items()})

    suffix = "LI" if layer.firing is None else "LIF"
    if not layer.synapse:
        found = Piece({"": node(suffix, values)})
    elif not layer.recurrence:
        alpha = _value(layer, "alpha")
        found = Piece({"": node(f"Cuba{suffix}", values | {"alpha": alpha, "inflow": 1 - alpha})})
    else:  # what comes back passes the synapse by
        alpha = _value(layer, "alpha")
        synapse = {"beta": alpha, "gain": 1 - alpha, "bias": np.zeros_like(alpha)}
        nodes = {"": node(suffix, values), ".synapse": node("LI", synapse)}
        found = Piece(nodes, [(".synapse", "")], ".synapse")
    if layer.recurrence:
        gamma = _value(layer, "gamma")
        back = {"beta": gamma, "gain": 1 - gamma, "bias": np.zeros_like(gamma)}
        found.nodes[".trace"] = node("LI", back)
        weight = _full(_value(layer, "rec_weight"), layer, shape)
        found.nodes[".rec_weight"] = nir.Scale(weight)
        found.edges += [("", ".trace"), (".trace", ".rec_weight"), (".rec_weight", "")]
    if layer.firing is not None and layer.feedback is not None:
        _back(found, layer.feedback, shape)
    return found


def _expressible(layer: LeakyIntegrator, how: Discretisation) -> None:
    """Raise where NIR has no such neuron."""
    if type(layer).step is not LeakyIntegrator.step:
        raise NIRError(f"{type(layer).__name__} has a step of its own, which NIR does not know")
    reasons = {
        "its positive and its negative inflow decay apart": layer.polarity != ("",),
        f"it updates its synapse first, the discretisation has order={how.order!r}": (
            layer.synapse and not layer.recurrence and how.order != "synapse"
        ),
    }
    if layer.firing is not None:
        sharp = isinstance(layer.spike_fn, Surrogate) and isinstance(layer.quant_fn, Round)
        reasons |= {
            "its spikes have two signs, or a scale": layer.firing is not BINARY,
            "its threshold adapts": layer.adaptive,
            "it is refractory": bool(layer.refractory),
            "its spikes are graded": layer.graded,
            "its spikes are not 1 above the threshold and 0 below (spike_fn, quant_fn)": not sharp,
            "it does not fire at the threshold, the discretisation does": how.at_threshold,
        }
    for reason, there in reasons.items():
        if there:
            raise NIRError(f"NIR cannot express it: {reason}")


def _neuron(layer: Neuron, shape: Shape, how: Discretisation, dt: float, back: bool) -> Piece:
    for name in ("order",) * layer.synapse + ("at_threshold",) * layer.fires:
        ours, theirs = getattr(layer.how, name), getattr(how, name)
        if ours != theirs:
            raise NIRError(f"it has {name}={ours!r}, the discretisation {name}={theirs!r}")
    names = ("alpha", "inflow", "beta", "gain", "bias", "threshold", "rest")
    there = layer.tt.declaration.parameters
    values = {name: _value(layer, name) for name in names if name in there}
    put = to_node(layer.kind, values, how, dt)
    node = getattr(nir, layer.kind)(**{k: _full(v, layer, shape) for k, v in put.items()})
    found = Piece({"": node})
    if back and layer.feedback is not None:
        _back(found, layer.feedback, shape)
    return found


def _back(found: Piece, feedback: nn.Module, shape: Shape) -> None:
    """The nodes of a feedback, from the output to the entry."""
    last, at = "", shape
    for name, module in chain(feedback):
        suffix = f".feedback{name}"
        make = _MAKERS.get(type(module))
        if make is None:
            raise NIRError(
                f"its feedback has a {type(module).__name__}, for which there is no node"
            )
        found.nodes[suffix] = make(module, at)
        found.edges.append((last, suffix))
        at = _after(module, at)
        last = suffix
    if not last:
        raise NIRError("its feedback is its output itself, without a weight; put one there")
    found.edges.append((last, found.entry))


def chain(module: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """The modules of nested ``nn.Sequential``, in order, each with its name."""
    if isinstance(module, nn.Sequential):
        parts = module.named_children()
        return [one for part, child in parts for one in chain(child, f"{name}.{part}")]
    return [] if isinstance(module, nn.Identity) else [(name, module)]


def _after(module: nn.Module, shape: Shape) -> Shape:
    like = next(module.parameters(), torch.empty(0))
    with torch.no_grad():
        found = module(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    return tuple(found.shape[1:])


# ------------------------------------------------------------------------------- stateless


def _linear(module: Any, shape: Shape) -> Any:
    if isinstance(module, nn.Linear) and len(shape) != 1:
        raise NIRError(f"its input has shape {list(shape)}; NIR's has one dimension: flatten it")
    weight = _array(module.weight)
    return nir.Linear(weight) if module.bias is None else nir.Affine(weight, _array(module.bias))


def _convolution(module: Any, shape: Shape) -> Any:
    if module.padding_mode != "zeros":
        raise NIRError(f"NIR pads with zeros, it has padding_mode={module.padding_mode!r}")
    weight = _array(module.weight)
    bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _array(module.bias)
    single = isinstance(module, nn.Conv1d)

    def sized(value: Any) -> Any:
        return value[0] if single and not isinstance(value, str) else value

    make: Any = nir.Conv1d if single else nir.Conv2d
    node = make(
        input_shape=shape[1] if single else tuple(shape[1:]),
        weight=weight,
        stride=sized(module.stride),
        padding=sized(module.padding),
        dilation=sized(module.dilation),
        groups=module.groups,
        bias=bias,
    )
    return _typed(node, shape, _after(module, shape))


def _pool(module: Any, shape: Shape) -> Any:
    kind = "SumPool2d"
    if isinstance(module, nn.AvgPool2d):
        padded = any(_pair(module.padding)) and not module.count_include_pad
        if module.ceil_mode or padded or module.divisor_override not in (None, 1):
            raise NIRError("NIR's AvgPool2d counts the padding and has no ceil_mode and no divisor")
        kind = "AvgPool2d" if module.divisor_override is None else kind
    sizes = (module.kernel_size, module.stride, module.padding)
    node = getattr(nir, kind)(*(np.array(_pair(size)) for size in sizes))
    return _typed(node, shape, _after(module, shape))


def _adaptive(module: Any, shape: Shape) -> Any:
    sizes, wanted = shape[1:], _pair(module.output_size)
    if any(size % out for size, out in zip(sizes, wanted, strict=True)):
        raise NIRError(f"its windows differ: {list(sizes)} is no multiple of {list(wanted)}")
    window = np.array([size // out for size, out in zip(sizes, wanted, strict=True)])
    node = nir.AvgPool2d(window, window.copy(), np.zeros(2, int))
    return _typed(node, shape, _after(module, shape))


def _flatten(module: Any, shape: Shape) -> Any:
    ends = module.start_dim, module.end_dim
    if ends[0] == 0 or ends[0] < -len(shape) or ends[1] == 0:
        raise NIRError("it flattens the batch too")
    start, end = (end - 1 if end > 0 else end for end in ends)
    node = nir.Flatten({"input": np.array(shape)}, start, end)
    return _typed(node, shape, _after(module, shape))


def _typed(node: Any, shape: Shape, after: Shape) -> Any:
    """With the shapes that it has, which ``nir`` does not know of pools and wide kernels."""
    node.input_type, node.output_type = {"input": np.array(shape)}, {"output": np.array(after)}
    return node


def _elementwise(name: str, kind: str) -> Callable[[Any, Shape], Any]:
    def made(module: Any, shape: Shape) -> Any:
        value = _array(getattr(module, name))
        return getattr(nir, kind)(np.broadcast_to(value, shape).copy())

    return made


_MAKERS: dict[type, Callable[[Any, Shape], Any]] = {
    nn.Linear: _linear,
    modules.Affine: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.AvgPool2d: _pool,
    modules.SumPool2d: _pool,
    nn.Flatten: _flatten,
    modules.Scale: _elementwise("scale", "Scale"),
    modules.Threshold: _elementwise("threshold", "Threshold"),
}


# ------------------------------------------------------------------------------- values


def _pair(value: Any) -> tuple[int, int]:
    found = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return int(found[0]), int(found[-1])


def _array(value: Tensor) -> Any:
    """As it is; types of float that NumPy does not have become float32."""
    found = value.detach().cpu()
    if found.dtype not in (torch.float32, torch.float64):
        found = found.float()
    return found.numpy().copy()


def _value(layer: Layer, name: str) -> Any:
    """An effective parameter, in float64."""
    found: Tensor = getattr(layer, name)
    return found.detach().cpu().to(torch.float64).numpy()


def _full(value: Any, layer: Layer, shape: Shape) -> Any:
    """A value for each element of an input."""
    if value.ndim:
        at = layer.dim if layer.dim < 0 else layer.dim - 1 - len(shape)
        if at < -len(shape):
            raise NIRError(f"its neurons lie along dim={layer.dim}, which is the batch")
        flat = shape[at] != layer.num_neurons
        value = value.reshape(shape) if flat else value.reshape(-1, *[1] * (-at - 1))
    return np.broadcast_to(value, shape).copy()
