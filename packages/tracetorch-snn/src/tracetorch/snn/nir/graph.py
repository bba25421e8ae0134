"""A NIR graph made ready: read, nested graphs put in place, checked, put in order, loops cut.

Knows nodes by name and kind, and nothing of what they compute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import nir  # type: ignore[import-untyped]
import numpy as np
from nir.serialization import hdf2dict  # type: ignore[import-untyped]
from tracetorch.snn.nir.errors import NIRError, node_error

Edge = tuple[str, str]
NEURONS = ("CubaLI", "CubaLIF", "I", "IF", "LI", "LIF")
KINDS = (
    *NEURONS,
    *("Affine", "AvgPool2d", "Conv1d", "Conv2d", "Delay", "Flatten", "Linear", "Scale"),
    *("SumPool2d", "Threshold"),
)
PORTS = ("Input", "Output")


@dataclass
class Flow:
    """Nodes and the edges between them, none nested.

    Attributes:
        nodes: by name, inputs and outputs among them.
        edges: from name to name.
        dt: seconds of a timestep, where the graph says it.
        metadata: of the graph.
        ports: what the inputs and outputs of nested graphs have said: the node that led there,
            the port's name, and its node.
    """

    nodes: dict[str, Any]
    edges: list[Edge]
    dt: float | None
    metadata: dict[str, Any]
    ports: list[tuple[str, str, Any]]

    def before(self, name: str) -> list[str]:
        """The nodes that lead to one."""
        return [a for a, b in self.edges if b == name]

    def after(self, name: str) -> list[str]:
        """The nodes that one leads to."""
        return [b for a, b in self.edges if a == name]

    def of(self, kind: str) -> list[str]:
        """The names of a kind's nodes."""
        return [name for name, node in self.nodes.items() if kind_of(node) == kind]


def kind_of(node: Any) -> str:
    """The name of a node's class."""
    return type(node).__name__


# ------------------------------------------------------------------------------- reading


def read(source: Any) -> Any:
    """A graph, from a file where it is none; not checked.

    Raises:
        TypeError: ``source`` is neither graph nor path.
        FileNotFoundError: there is no such file.
        NIRError: the file is no graph, or one of its nodes cannot be made.
    """
    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"from_nir: a NIRGraph or a path is needed, got {source!r}")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"from_nir: there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            content = hdf2dict(file["node"])
    except Exception as error:  # whatever h5py meets with in a damaged file
        raise NIRError(f"{path} is no NIR file: {error}") from None
    if not isinstance(content, dict) or content.get("type") != "NIRGraph":
        raise NIRError(f"{path} holds no NIRGraph")
    return _graph(content, f"{path}: ")


def _graph(content: dict[str, Any], place: str) -> Any:
    if not isinstance(content.get("nodes"), dict):
        raise NIRError(f"{place}the graph has no nodes")
    if not isinstance(content.get("edges"), np.ndarray):
        raise NIRError(f"{place}the graph has no edges")
    nodes: dict[str, Any] = {}
    for name, node in content["nodes"].items():
        kind = node.get("type") if isinstance(node, dict) else None
        if kind == "NIRGraph":
            nodes[name] = _graph(node, f"{place}in {name!r}: ")
        elif kind in KINDS or kind in PORTS:
            nodes[name] = _made(node, f"{place}{kind} {name!r}: ")
        else:
            raise NIRError(f"{place}node {name!r} is of unknown kind {kind!r}; {_known()}")
    edges = content["edges"]
    if edges.size and (edges.ndim != 2 or edges.shape[1] != 2):
        raise NIRError(f"{place}edges must be pairs of names, got shape {list(edges.shape)}")
    pairs = [(str(plain(a)), str(plain(b))) for a, b in edges] if edges.size else []
    return nir.NIRGraph(nodes, pairs, metadata=content.get("metadata", {}), type_check=False)


def _made(node: dict[str, Any], place: str) -> Any:
    # of old files, which leave out what can be inferred
    missing = {"input_shape": None, "bias": None} if node["type"].startswith("Conv") else {}
    try:
        return nir.dict2NIRNode(missing | node)
    except Exception as error:  # whatever nir's constructors meet with
        said = f"a field is missing: {error}" if isinstance(error, KeyError) else str(error)
        raise NIRError(f"{place}{said or 'cannot be made'}") from None


def _known() -> str:
    return f"known are {', '.join(sorted((*KINDS, *PORTS, 'NIRGraph')))}"


# ------------------------------------------------------------------------------- checking


def flow_of(graph: Any) -> Flow:
    """A graph with its nested ones in place, checked.

    Raises:
        NIRError: an edge leads from or to nowhere or is there twice; a node is of unknown kind,
            is led to by nothing, or leads to nothing; there is no input, or no output.
    """
    ports: list[tuple[str, str, Any]] = []
    nodes, edges = _inlined(graph, "", ports)
    flow = Flow(nodes, edges, _dt(graph), _metadata(graph, "the graph"), ports)
    for kind in PORTS:
        if not flow.of(kind):
            raise NIRError(f"the graph has no {kind} node")
    for name, node in nodes.items():
        before, after = flow.before(name), flow.after(name)
        kind = kind_of(node)
        if kind == "Input" and before:
            raise node_error(name, kind, f"is led to by {before}; an input begins a graph")
        if kind == "Output" and after:
            raise node_error(name, kind, f"leads to {after}; an output ends a graph")
        if kind != "Input" and not before:
            raise node_error(name, kind, "is led to by no edge; connect it to an Input")
        if kind != "Output" and not after:
            raise node_error(name, kind, "leads to nothing; connect it to an Output")
    unreached = set(nodes) - set(reached(flow))
    if unreached:
        raise NIRError(f"no path from an Input leads to {sorted(unreached, key=str)}")
    return flow


def reached(flow: Flow) -> list[str]:
    """The nodes that inputs lead to, nearest first."""
    found = list(flow.of("Input"))
    for name in found:  # it grows on the way
        found += [b for b in dict.fromkeys(flow.after(name)) if b not in found]
    return found


def _inlined(
    graph: Any, prefix: str, ports: list[tuple[str, str, Any]]
) -> tuple[dict[str, Any], list[Edge]]:
    nodes: dict[str, Any] = {}
    edges: list[Edge] = []
    entries: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        kind, full = kind_of(node), f"{prefix}{name}"
        if kind == "NIRGraph":
            inner, between = _inlined(node, f"{full}.", ports)
            entries[name] = (_port(node, full, "Input"), _port(node, full, "Output"))
            nodes |= inner
            edges += between
        elif kind in KINDS or kind in PORTS:
            nodes[full] = node
            entries[name] = (full, full)
        else:
            raise NIRError(f"node {full!r} is of unknown kind {kind!r}; {_known()}")
    seen: set[Edge] = set()
    for a, b in graph.edges:
        for end in (a, b):
            if end not in entries:
                raise NIRError(f"edge {a!r} → {b!r}: there is no node {end!r}")
        if (a, b) in seen:
            raise NIRError(f"edge {a!r} → {b!r} is there twice")
        seen.add((a, b))
        edges.append((entries[a][1], entries[b][0]))
    for name, node in graph.nodes.items():
        if kind_of(node) == "NIRGraph":
            for port in entries[name]:
                ports += [(a, port, nodes[port]) for a, b in edges if b == port]
                _spliced(nodes, edges, port)
    return nodes, edges


def _port(graph: Any, name: str, kind: str) -> str:
    ports = [port for port, node in graph.nodes.items() if kind_of(node) == kind]
    if len(ports) != 1:
        raise node_error(name, "NIRGraph", f"a nested graph needs one {kind}, has {len(ports)}")
    return f"{name}.{ports[0]}"


def _spliced(nodes: dict[str, Any], edges: list[Edge], port: str) -> None:
    """Takes a nested graph's input or output out: what led to it leads on."""
    before = [a for a, b in edges if b == port]
    after = [b for a, b in edges if a == port]
    edges[:] = [edge for edge in edges if port not in edge]
    for edge in ((a, b) for a in before for b in after):
        if edge in edges:
            raise NIRError(f"edge {edge[0]!r} → {edge[1]!r} is there twice, through {port!r}")
        edges.append(edge)
    del nodes[port]


def _dt(graph: Any, prefix: str = "") -> float | None:
    """Of the graph itself, or of the first of its nodes that says one."""
    whole = f"the graph {prefix[:-1]!r}" if prefix else "the graph"
    places = [(whole, "", graph)]
    for n, node in graph.nodes.items():
        places.append((f"{kind_of(node)} {prefix + str(n)!r}", f"{prefix}{n}.", node))
    for name, within, owner in places:
        given = _metadata(owner, name).get("dt")
        if given is not None:
            return _seconds(given, name)
        if owner is not graph and kind_of(owner) == "NIRGraph":
            nested = _dt(owner, within)
            if nested is not None:
                return nested
    return None


def _metadata(owner: Any, name: str) -> dict[str, Any]:
    given = getattr(owner, "metadata", None)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise NIRError(f"{name}: metadata must be a dict, got {given!r}")
    return given


def _seconds(given: Any, name: str) -> float:
    try:
        seconds = np.asarray(plain(given), dtype=float)
    except (TypeError, ValueError):
        seconds = np.empty(0)
    if seconds.size != 1 or not 0 < seconds.item() < np.inf:
        raise NIRError(f"{name}: the metadata's dt must be seconds above 0, got {given!r}")
    return float(seconds.item())


def plain(value: Any) -> Any:
    """What a file holds as an array of one value or as bytes; anything else as it is."""
    if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


# ------------------------------------------------------------------------------- loops and order


def cut(flow: Flow, delays: set[str]) -> list[Edge]:
    """The edges that carry a value of the timestep before, so that what is left has an order.

    In each loop it is the edge out of the last neuron before the loop closes, or the one into a
    delay.

    Args:
        flow: the graph.
        delays: the nodes that delay all of their input by at least a timestep.

    Raises:
        NIRError: a loop has neither neuron nor delay.
    """
    cuts: list[Edge] = []
    for loop in iter(lambda: _loop(flow, cuts), None):
        cuts.append(_cut_of(flow, loop, delays))
    return cuts


def _loop(flow: Flow, cuts: list[Edge]) -> list[str] | None:
    """The nodes of a loop, from where it is entered."""
    done: set[str] = set()

    def following(name: str) -> Iterator[str]:
        return iter([b for b in flow.after(name) if (name, b) not in cuts])

    for root in flow.of("Input"):
        path, branches = [root], [following(root)]
        while path:
            name = next(branches[-1], None)
            if name is None:
                done.add(path.pop())
                branches.pop()
            elif name in path:
                return path[path.index(name) :]
            elif name not in done:
                path.append(name)
                branches.append(following(name))
    return None


def _cut_of(flow: Flow, loop: list[str], delays: set[str]) -> Edge:
    edges = list(zip(loop, [*loop[1:], loop[0]], strict=True))
    for a, b in edges:
        if b in delays and len(flow.before(b)) == 1:
            return a, b
    neurons = [at for at, name in enumerate(loop) if kind_of(flow.nodes[name]) in NEURONS]
    if not neurons:
        raise NIRError(
            f"the loop {' → '.join([*loop, loop[0]])} has no neuron and no delay of a timestep, "
            f"so its values depend on themselves"
        )
    # past nodes that lead out of the loop: those would be late there as well
    for a, b in edges[neurons[-1] :]:
        if b == loop[0] or all(len(flow.after(name)) == 1 for name in _until(loop, b)):
            return a, b
    return edges[-1]


def _until(loop: list[str], name: str) -> list[str]:
    return loop[loop.index(name) :]


def ordered(flow: Flow, cuts: list[Edge]) -> list[str]:
    """The nodes, each after all that lead to it within the timestep; else as in the graph."""
    waiting = {
        name: {a for a, b in flow.edges if b == name and (a, b) not in cuts} for name in flow.nodes
    }
    found: list[str] = []
    while waiting:
        ready = next(name for name, needed in waiting.items() if not needed)
        found.append(ready)
        del waiting[ready]
        for needed in waiting.values():
            needed.discard(ready)
    return found
