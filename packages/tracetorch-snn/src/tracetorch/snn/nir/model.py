"""A graph as a model that runs: named modules, and the order in which they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn
from tracetorch import Model
from tracetorch.snn.nir.presets import Discretisation


@dataclass(frozen=True)
class Step:
    """One line of a model's forward: ``name = self.name(a + b)``.

    Attributes:
        name: of the module, and of what it puts out.
        reads: the names that are added up to be its input.
    """

    name: str
    reads: tuple[str, ...]


class GraphModel(Model):
    """A model made from a NIR graph by :func:`from_nir`; ``print(model.source)`` is its forward.

    Attributes:
        inputs: names of the arguments of ``forward``.
        steps: the modules in the order of their calls, each with what it reads.
        outputs: what each output adds up; more than one output makes a tuple.
        keeps: loops: what is kept for the next timestep, by the name under which it is read.
        names: the graph's own names of its nodes, by those of the modules.
        nodes: the nodes that it was made from, by the graph's names.
        edges: the edges between these.
        shapes: of the nodes' inputs, without the batch.
        ways: the nodes that lead from a neuron back to it, in its ``feedback``.
        shorter: the delays that are a timestep shorter, which their loop takes.
        how: the discretisation.
        dt: seconds of a timestep.

    Example:
        >>> import nir, numpy as np, torch
        >>> from tracetorch.snn.nir import from_nir
        >>> one = np.ones(2)
        >>> lif = nir.LIF(tau=0.01 * one, r=one, v_leak=0 * one, v_threshold=one)
        >>> model = from_nir(nir.NIRGraph.from_list(nir.Linear(np.eye(2)), lif), "norse", dt=1e-3)
        >>> print(model.source)
        def forward(self, input):
            linear = self.linear(input)
            lif = self.lif(linear)
            return lif
        >>> model.unroll(torch.full((30, 1, 2), 1.2)).sum(0).tolist()
        [[1.0, 1.0]]
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[str, ...], ...]
    keeps: dict[str, str]
    names: dict[str, str]

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        inputs: Sequence[str],
        steps: Sequence[Step],
        outputs: Sequence[tuple[str, ...]],
        keeps: Mapping[str, str],
        names: Mapping[str, str],
        nodes: Mapping[str, Any],
        edges: Sequence[tuple[str, str]],
        shapes: Mapping[str, tuple[int, ...]],
        ways: Mapping[str, Sequence[str]],
        shorter: Sequence[str],
        how: Discretisation,
        dt: float,
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.inputs, self.steps, self.outputs = tuple(inputs), tuple(steps), tuple(outputs)
        self.keeps, self.names = dict(keeps), dict(names)
        self.nodes, self.edges = dict(nodes), list(edges)
        self.shapes, self.ways, self.shorter = dict(shapes), dict(ways), list(shorter)
        self.how, self.dt = how, dt

    def forward(self, *inputs: Tensor) -> Any:
        """One timestep; see ``source``.

        Args:
            inputs: one for each of the graph's inputs, ``[B, …]``.

        Returns:
            The output ``[B, …]``, or a tuple of them.

        Raises:
            TypeError: there are more or fewer inputs than the graph has.
        """
        if len(inputs) != len(self.inputs):
            raise TypeError(
                f"GraphModel: inputs {list(self.inputs)} are needed, got {len(inputs)} tensors"
            )
        values = dict(zip(self.inputs, inputs, strict=True))
        for name in self.keeps:
            last: Any = self.get_submodule(name)
            values[name] = last.value(inputs[0])
        for step in self.steps:
            values[step.name] = self.get_submodule(step.name)(self._sum(values, step.reads))
        for name, kept in self.keeps.items():
            self.get_submodule(name)(values[kept])
        found = tuple(self._sum(values, reads) for reads in self.outputs)
        return found[0] if len(found) == 1 else found

    @staticmethod
    def _sum(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        return reduce(add, [values[name] for name in names])

    @property
    def source(self) -> str:
        """``forward`` written out."""
        lines = [f"def forward(self, {', '.join(self.inputs)}):"]
        lines += [f"    {name} = self.{name}.value({self.inputs[0]})" for name in self.keeps]
        lines += [f"    {s.name} = self.{s.name}({' + '.join(s.reads)})" for s in self.steps]
        lines += [f"    self.{name}({kept})" for name, kept in self.keeps.items()]
        lines += [f"    return {', '.join(' + '.join(reads) for reads in self.outputs)}"]
        return "\n".join(lines)

    def extra_repr(self) -> str:
        """The discretisation and the timestep."""
        return f"{self.how}, dt={self.dt:g}"
