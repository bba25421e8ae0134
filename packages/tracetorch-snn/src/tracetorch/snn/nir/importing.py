"""A NIR graph → a model that runs."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from tracetorch.snn.nir import graph as graphs
from tracetorch.snn.nir.building import (
    Manner,
    Shape,
    build,
    declared,
    input_shape,
    output_shape,
    timesteps,
)
from tracetorch.snn.nir.errors import NIRError, node_error
from tracetorch.snn.nir.graph import NEURONS, Edge, Flow, cut, flow_of, kind_of, ordered
from tracetorch.snn.nir.model import GraphModel, Step
from tracetorch.snn.nir.modules import Last
from tracetorch.snn.nir.presets import DT, PRESETS, Discretisation, discretisation
from tracetorch.snn.surrogates import Surrogate, sigmoid

STATELESS = ("Affine", "Linear", "Conv1d", "Conv2d", "AvgPool2d", "SumPool2d", "Flatten", "Scale")


def from_nir(
    source: Any,
    preset: str | Discretisation | None = None,
    *,
    dt: float | None = None,
    reset: Literal["value", "subtract"] | None = None,
    dtype: torch.dtype | None = None,
    spike_fn: Callable[[], nn.Module] = sigmoid,
) -> GraphModel:
    """A model that runs a NIR graph, one timestep a call.

    Each node becomes a module of its name (dots and other signs an underscore), called after all
    that lead to it; several that lead to one are added up. A graph within the graph is put in its
    place. Weights are ``nn.Parameter``; what belongs to neurons are constants.

    A loop takes one timestep. That of a neuron through weights alone becomes its ``feedback``, one
    matrix product a timestep; any other is cut behind its last neuron, or before a delay, which
    gives the timestep away.

    Args:
        source: a ``nir.NIRGraph``, or the path of a ``.nir`` file.
        preset: the simulator that the graph is to run as, a name in ``PRESETS``, or a
            :class:`Discretisation`; None takes what :func:`to_nir` has written into the graph.
        dt: seconds of a timestep; where None, what the graph's metadata say (``dt``), else 1e-4.
        reset: ``"value"`` or ``"subtract"``, another one than the preset's.
        dtype: of weights and values; torch's default where None.
        spike_fn: makes the surrogate of each neuron, ``snn.surrogates.sigmoid``; for gradients
            only.

    Returns:
        The model. Its input and output are ``[B, …]`` with the graph's shapes behind the batch.

    Raises:
        NIRError: the graph is malformed, has a kind of node that is unknown, or a time constant
            that the preset cannot have; the message names the node.
        FileNotFoundError: there is no such file.
        ValueError: no such preset, or ``dt`` is not above 0.

    Example:
        >>> import nir, numpy as np, torch
        >>> from tracetorch.snn.nir import from_nir
        >>> one = np.ones(1)
        >>> lif = nir.LIF(tau=2.5e-3 * one, r=one, v_leak=0 * one, v_threshold=0.1 * one)
        >>> model = from_nir(nir.NIRGraph.from_list(lif), "rockpool", dt=1e-4)
        >>> model.unroll(torch.ones(4, 1, 1)).flatten().tolist(), model.lif.mem.item() < 0.1
        ([0.0, 0.0, 1.0, 0.0], True)

    Source: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122, 2024.
    """
    flow = flow_of(graphs.read(source))
    how = _how(preset, flow)
    if reset is not None:
        how = replace(how, reset=reset)
    seconds = _seconds(dt, flow)
    kind = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(spike_fn(), Surrogate):
        raise TypeError(f"from_nir: spike_fn must be a maker of snn.surrogates, got {spike_fn!r}")
    return _Builder(flow, Manner(how, seconds, kind, spike_fn)).model()


def _how(preset: str | Discretisation | None, flow: Flow) -> Discretisation:
    if preset is not None:
        return discretisation(preset)
    written = {
        field: graphs.plain(flow.metadata[field])
        for field in Discretisation.__dataclass_fields__
        if field in flow.metadata
    }
    if "decay" not in written:
        raise ValueError(
            f"from_nir: preset must say as which simulator the graph is to run, one of "
            f"{sorted(PRESETS)}, or be a Discretisation; the graph does not say it itself"
        )
    try:
        return Discretisation(**written)
    except ValueError as error:
        raise NIRError(f"the graph's metadata: {error}; give a preset instead") from None


def _seconds(dt: float | None, flow: Flow) -> float:
    given = dt if dt is not None else flow.dt
    seconds = DT if given is None else float(given)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"from_nir: dt must be above 0 seconds, got {seconds!r}")
    return seconds


class _Builder:
    """The shapes, the loops and the modules of one graph."""

    def __init__(self, flow: Flow, manner: Manner) -> None:
        self.flow, self.manner = flow, manner
        self.reach = graphs.reached(flow)
        delays = self._delays()
        self.cuts = cut(flow, delays)
        self.backs = {a: way for a, b in self.cuts if (way := self._way_back(a, b))}
        self.shorter = {b for _, b in self.cuts if b in delays and len(flow.before(b)) == 1}
        self.inputs: dict[str, Shape] = {}
        self.outputs: dict[str, Shape] = {}
        self.modules: dict[str, nn.Module] = {}
        self.names = _identifiers(flow.nodes)

    def _delays(self) -> set[str]:
        """Those that are at least a timestep long throughout."""
        found = set()
        for name in self.flow.of("Delay"):
            try:
                steps = timesteps(self.flow.nodes[name], self.manner.dt)
            except NIRError as error:
                raise node_error(name, "Delay", str(error)) from None
            if (steps >= 1).all():
                found.add(name)
        return found

    def _way_back(self, neuron: str, first: str) -> list[str] | None:
        """The stateless nodes that lead from a neuron back to it, and nowhere else."""
        if kind_of(self.flow.nodes[neuron]) not in NEURONS:
            return None
        way: list[str] = []
        name = first
        while name != neuron:
            alone = len(self.flow.before(name)) == len(self.flow.after(name)) == 1
            if not alone or kind_of(self.flow.nodes[name]) not in STATELESS:
                return None
            way.append(name)
            name = self.flow.after(name)[0]
        return way or None

    # -------------------------------------------------------------------- shapes and modules

    def model(self) -> GraphModel:
        for name in self.reach:
            self._build(name)
        self._check_edges()
        self._close_loops()
        return self._assembled()

    def _build(self, name: str) -> None:
        node, kind = self.flow.nodes[name], kind_of(self.flow.nodes[name])
        if kind == "Input":
            self.outputs[name] = self._input(name)
            return
        before = next(a for a in self.flow.before(name) if a in self.outputs)
        shape = self.outputs[before]
        expected = declared(node.input_type) if kind == "Output" else input_shape(node)
        if expected is not None and expected != shape:
            raise node_error(
                name,
                kind,
                f"its input has shape {list(expected)}, but {kind_of(self.flow.nodes[before])} "
                f"{before!r} puts out {list(shape)}",
            )
        self.inputs[name] = self.outputs[name] = shape
        if kind != "Output":
            module = build(name, node, shape, self.manner, shorter=int(name in self.shorter))
            self.modules[name] = module
            self.outputs[name] = output_shape(name, node, module, shape)

    def _input(self, name: str) -> Shape:
        said = declared(self.flow.nodes[name].input_type)
        for after in self.flow.after(name) if said is None else ():
            node = self.flow.nodes[after]
            said = said or (None if kind_of(node) == "Output" else input_shape(node))
        return said or (1,)

    def _check_edges(self) -> None:
        for a, b in self.flow.edges:
            if self.outputs[a] != self.inputs[b]:
                raise NIRError(
                    f"edge {a!r} → {b!r}: {kind_of(self.flow.nodes[a])} {a!r} puts out shape "
                    f"{list(self.outputs[a])}, {kind_of(self.flow.nodes[b])} {b!r} takes "
                    f"{list(self.inputs[b])}"
                )
        for a, port, node in self.flow.ports:
            said = declared(node.input_type)
            if said is not None and a in self.outputs and said != self.outputs[a]:
                raise node_error(
                    port,
                    kind_of(node),
                    f"has shape {list(said)}, but {a!r} puts out {list(self.outputs[a])}",
                )

    def _close_loops(self) -> None:
        for name, way in self.backs.items():
            parts = [self.modules.pop(one) for one in way]
            back = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
            node, shape = self.flow.nodes[name], self.inputs[name]
            self.modules[name] = build(name, node, shape, self.manner, back)

    # -------------------------------------------------------------------- the model

    def _assembled(self) -> GraphModel:
        within = {one for way in self.backs.values() for one in way}
        ways = {(name, way[0]) for name, way in self.backs.items()}
        cuts = [edge for edge in self.cuts if edge not in ways]
        keeps = self._keeps(cuts)
        modules = {self.names[name]: module for name, module in self.modules.items()}
        for last, kept in keeps.items():
            modules[last] = Last(self.outputs[kept])

        def reads(name: str) -> tuple[str, ...]:
            edges = [(a, name) for a in self.flow.before(name) if a not in within]
            read = {kept: last for last, kept in keeps.items()}
            return tuple(read[a] if (a, b) in cuts else self.names[a] for a, b in edges)

        order = [name for name in ordered(self.flow, self.cuts) if name in self.modules]
        return GraphModel(
            modules,
            inputs=[self.names[name] for name in self.flow.of("Input")],
            steps=[Step(self.names[name], reads(name)) for name in order],
            outputs=[reads(name) for name in self.flow.of("Output")],
            keeps={last: self.names[kept] for last, kept in keeps.items()},
            names={self.names[name]: name for name in self.flow.nodes},
            nodes=self.flow.nodes,
            edges=self.flow.edges,
            shapes=self.inputs | {name: self.outputs[name] for name in self.flow.of("Input")},
            ways=self.backs,
            shorter=sorted(self.shorter),
            how=self.manner.how,
            dt=self.manner.dt,
        )

    def _keeps(self, cuts: Sequence[Edge]) -> dict[str, str]:
        """What is kept, by the name of what keeps it."""
        taken = set(self.names.values())
        found: dict[str, str] = {}
        for kept in dict.fromkeys(a for a, _ in cuts):
            name = f"{self.names[kept]}_before"
            while name in taken:
                name += "_"
            taken.add(name)
            found[name] = kept
        return found


def _identifiers(names: Any) -> dict[str, str]:
    """A name of an attribute for each node; different ones for different nodes."""
    found: dict[str, str] = {}
    taken = set(dir(GraphModel)) | set(GraphModel.__annotations__)
    taken |= {"nodes", "edges", "how", "dt", "tt", "self"}
    for name in names:
        base = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        base = f"node_{base}" if base[0].isdigit() else base
        put = base
        while put in taken or keyword.iskeyword(put):
            put += "_"
        taken.add(put)
        found[name] = put
    return found
