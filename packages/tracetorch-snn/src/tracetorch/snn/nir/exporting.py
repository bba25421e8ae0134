"""A model → a NIR graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import nir  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor, nn
from tracetorch.snn.nir.building import Manner, build
from tracetorch.snn.nir.errors import NIRError
from tracetorch.snn.nir.graph import PORTS, flow_of, kind_of
from tracetorch.snn.nir.model import GraphModel
from tracetorch.snn.nir.nodes import Piece, chain, firing_of, piece
from tracetorch.snn.nir.presets import DT, Discretisation, discretisation
from tracetorch.snn.nir.tracing import Call, trace
from tracetorch.snn.surrogates import sigmoid

Shape = tuple[int, ...]


def to_nir(
    model: nn.Module,
    sample: Tensor | Sequence[int] | None = None,
    preset: str | Discretisation | None = None,
    *,
    dt: float | None = None,
    unit_r: bool = False,
) -> Any:
    """A model as a NIR graph, which ``nir.write`` makes a file of.

    What ``forward`` calls is found by ``torch.fx``: torch's ``Linear``, ``Conv1d``, ``Conv2d``,
    ``AvgPool2d`` and ``Flatten``, the layers of ``tracetorch.snn`` of single polarity that emit
    their membrane or binary spikes, ``snn.Delay``, additions. Each layer becomes a node of its
    name. A decay becomes the time constant that the preset makes the same decay of, a weight of
    the input r or w_in. A layer's ``feedback`` becomes a loop; so does the trace of an R-layer, as
    LI and Scale. A model of :func:`from_nir` gives the nodes it was made from, but for what has
    changed.

    Args:
        model: a layer, ``nn.Sequential``, or any module.
        sample: one timestep ``[B, …]``, or its shape without the batch; not needed for a model of
            :func:`from_nir`.
        preset: the simulator that the graph is for: a name in ``PRESETS``, or a
            :class:`Discretisation`. Where None, Euler's with the reset of the layers, or what a
            model of :func:`from_nir` was made with.
        dt: seconds of a timestep; 1e-4 where None, or what the model was made with.
        unit_r: give each neuron that fires r = 1, and divide its voltages by the r that it had:
            the same spikes, in simulators that do not read r (Norse, Nengo).

    Returns:
        A ``nir.NIRGraph``, with ``dt`` and the discretisation in its metadata.

    Raises:
        NIRError: ``forward`` cannot be traced, or a layer is one that NIR cannot express, or not
            with this preset; the message names it and says why.
        TypeError: there is no sample.
        ValueError: no such preset, or ``dt`` is not above 0.

    Example:
        >>> from torch import nn
        >>> from tracetorch import snn
        >>> from tracetorch.snn.nir import to_nir
        >>> net = nn.Sequential(nn.Linear(3, 2), snn.LIB(2, 0.9, 1.0))
        >>> graph = to_nir(net, (3,), dt=1e-3)
        >>> graph.edges
        [('input', '0'), ('0', '1'), ('1', 'output')]
        >>> graph.nodes["1"].tau.round(6), graph.nodes["1"].v_threshold
        (array([0.01, 0.01]), array([1., 1.]))

    Source: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122, 2024.
    """
    if isinstance(model, GraphModel):
        how = model.how if preset is None else discretisation(preset)
        return _again(model, how, _seconds(model.dt if dt is None else dt), unit_r)
    seconds = _seconds(DT if dt is None else dt)
    calls = trace(model, _sample(model, sample))
    how = _how(preset, calls.calls)
    nodes: dict[str, Any] = {call.name: _port("Input", call.shape) for call in calls.inputs}
    edges: list[tuple[str, str]] = []
    for call, found in _pieces(calls.calls, how, seconds):
        nodes |= {call.name + suffix: node for suffix, node in found.nodes.items()}
        edges += [(one, call.name + found.entry) for one in call.reads]
        edges += [(call.name + a, call.name + b) for a, b in found.edges]
    for call in calls.outputs:
        nodes[call.name] = _port("Output", call.shape)
        edges += [(one, call.name) for one in call.reads]
    return _graph(nodes, edges, how, seconds, unit_r)


def _sample(model: nn.Module, sample: Tensor | Sequence[int] | None) -> Tensor:
    if sample is None:
        raise TypeError("to_nir: a timestep [B, …], or its shape without the batch, is needed")
    tensors = [*model.parameters(), *model.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    if isinstance(sample, Tensor):
        return sample.detach().to(like.device)
    return torch.zeros(1, *sample, dtype=like.dtype, device=like.device)


def _seconds(dt: float) -> float:
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"to_nir: dt must be above 0 seconds, got {dt!r}")
    return float(dt)


def _how(preset: str | Discretisation | None, calls: Sequence[Call]) -> Discretisation:
    """The discretisation, whose reset is that of every layer that fires."""
    fires = [(call, found) for call in calls if (found := _located(call, firing_of)) is not None]
    if preset is not None:
        how, whose = discretisation(preset), f"preset {preset!r}"
    elif fires:
        first, (reset, delayed) = fires[0]
        how, whose = Discretisation(reset=reset, delayed=delayed), f"layer {first.name!r}"
    else:
        return Discretisation()
    for call, (reset, delayed) in fires:
        if (reset, delayed) != (how.reset, how.delayed):
            raise NIRError(
                f"{_named(call)}: its reset is {_reset(reset, delayed)}, that of {whose} is "
                f"{_reset(how.reset, how.delayed)}; a graph has one kind for all: "
                f"give the layer that (reset=snn.resets…), or another preset"
            )
    return how


def _reset(reset: str, delayed: bool) -> str:
    kind = "by subtraction" if reset == "subtract" else "to a value"
    return f"{kind}, delayed" if delayed else kind


def _located(call: Call, ask: Callable[[Any], Any]) -> Any:
    try:
        return ask(call.module)
    except NIRError as error:
        raise NIRError(f"{_named(call)}: {error}") from None


def _named(call: Call) -> str:
    return f"layer {call.name!r}, {type(call.module).__name__}"


def _pieces(calls: Sequence[Call], how: Discretisation, dt: float) -> Iterator[tuple[Call, Piece]]:
    for call in calls:
        yield call, _located(call, partial(piece, shape=call.shape, how=how, dt=dt))


def _port(kind: str, shape: Shape) -> Any:
    side = kind.lower()
    return getattr(nir, kind)({side: np.array(shape)})


def _graph(
    nodes: dict[str, Any],
    edges: list[tuple[str, str]],
    how: Discretisation,
    dt: float,
    unit_r: bool,
) -> Any:
    for name, node in nodes.items() if unit_r else ():
        if kind_of(node) in ("IF", "LIF", "CubaLIF"):
            _divided(name, node)
    # nir's own check knows neither wide kernels nor groups
    metadata = {"dt": dt, **asdict(how)}
    graph = nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)
    flow_of(graph)
    return graph


def _divided(name: str, node: Any) -> None:
    """With voltages in units of r."""
    if not (np.asarray(node.r) > 0).all():
        raise NIRError(f"{kind_of(node)} {name!r}: unit_r needs an r above 0, got {node.r}")
    for voltage in ("v_leak", "v_threshold", "v_reset"):
        if hasattr(node, voltage):
            setattr(node, voltage, getattr(node, voltage) / node.r)
    node.r = np.ones_like(node.r)


# ------------------------------------------------------------------------------- back again


def _again(model: GraphModel, how: Discretisation, dt: float, unit_r: bool) -> Any:
    """The graph of a model that was made from one."""
    attributes = {name: attribute for attribute, name in model.names.items()}
    modules = {
        name: model.get_submodule(attribute)
        for name, attribute in attributes.items()
        if hasattr(model, attribute)
    }
    for neuron, way in model.ways.items():
        parts = [one for _, one in chain(_inner(modules[neuron]).feedback)]
        kept = [one for one in parts if not isinstance(one, nn.Unflatten)]
        modules |= dict(zip(way, kept, strict=False))
    nodes = {}
    for name, node in model.nodes.items():
        same = (how, dt) == (model.how, model.dt)
        if kind_of(node) in PORTS or (same and _unchanged(model, name, modules[name])):
            nodes[name] = copy.deepcopy(node)
        else:
            nodes[name] = _converted(model, name, modules[name], how, dt)
    return _graph(nodes, list(model.edges), how, dt, unit_r)


def _inner(module: Any) -> Any:
    return getattr(module, "layer", module)


def _unchanged(model: GraphModel, name: str, module: nn.Module) -> bool:
    """Whether a module is still what its node becomes."""
    found = {key: value for key, value in module.state_dict().items() if _own(key)}
    dtype = next((value.dtype for value in found.values()), torch.float32)
    manner = Manner(model.how, model.dt, dtype, sigmoid)
    shorter = int(name in model.shorter)
    made = build(name, model.nodes[name], model.shapes[name], manner, shorter=shorter)
    expected = {key: value for key, value in made.state_dict().items() if _own(key)}
    return (
        type(made) is type(module)
        and found.keys() == expected.keys()
        and all(torch.equal(value.cpu(), expected[key]) for key, value in found.items())
    )


def _own(key: str) -> bool:
    return not {"spike_fn", "feedback"} & set(key.split("."))


def _converted(
    model: GraphModel, name: str, module: nn.Module, how: Discretisation, dt: float
) -> Any:
    call = Call(name, module, (), model.shapes[name])
    if firing_of(module) is not None:
        _how(how, [call])
    node = _located(call, lambda one: piece(one, model.shapes[name], how, dt, back=False)).nodes[""]
    if name in model.shorter:
        node = nir.Delay(node.delay + dt)
    return node
