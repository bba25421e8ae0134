"""What a model is made of, and what it does with a sequence: counted, and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch import event_driven
from tracetorch.backends import READY, status
from tracetorch.errors import check_dense
from tracetorch.layer import Layer
from tracetorch.layer_states import batched
from tracetorch.modules import Observer
from tracetorch.passage import active
from tracetorch.randomness import RANDOM
from tracetorch.recorder import INPUT, OUTPUT, Listener, listening
from tracetorch.walk import named_layers

if TYPE_CHECKING:
    from tracetorch.measures import Count, Operations


class ParameterCount(NamedTuple):
    """How many scalar parameters a model has.

    Attributes:
        total: all of them, those of layers in containers and plain objects included.
        in_layers: those inside tt layers.
        learnable: those of the total that require a gradient.

    Example:
        >>> count(nn.Linear(2, 3))
        ParameterCount(total=9, in_layers=0, learnable=9)
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


# ---------------------------------------------------------------------- the table


class Row(NamedTuple):
    """One layer or module. What only a sequence shows is None, or empty, without one.

    Attributes:
        name: its qualified name.
        kind: its class.
        text: its ``repr``, if it is a tt layer.
        parameters: how many it has.
        states: names of its states.
        state_size: how many numbers they are per sample; None where they have not been created.
        state_bytes: how many bytes.
        input: shape of a timestep ``[B, …]``.
        output: of its output.
        rate: of a tt layer, the share of outputs that are not zero: of a spiking one, its rate.
        silent: of a tt layer, how many of its neurons never put out anything else than zero.
        neurons: of how many.
        operations: synaptic operations over the whole batch.
        path: ``"fused"`` or ``"stepped"``, of a tt layer; of an ``nn.Linear`` that
            ``TTcompile(events=True)`` has made event-driven, ``"events"``, ``"dense"``, or in how
            many calls it was by events.
        why: why it is stepped.

    Example:
        >>> row = Row("lif", "LIB", "LIB(4)", 8, rate=0.25)
        >>> row.rate, row.silent
        (0.25, None)
    """

    name: str
    kind: str
    text: str
    parameters: int
    states: tuple[str, ...] = ()
    state_size: int | None = None
    state_bytes: int | None = None
    input: tuple[int, ...] | None = None
    output: tuple[int, ...] | None = None
    rate: float | None = None
    silent: int | None = None
    neurons: int | None = None
    operations: Count | None = None
    path: str = ""
    why: str = ""


@dataclass(frozen=True)
class Summary:
    """A model as a table; ``str`` and ``print`` show it.

    Attributes:
        rows: one for each layer; with a sequence, also for each of torch's modules.
        parameters: of the model.
        operations: over the whole batch, where a sequence was given.
        unfolded: why all timesteps do not run at once; empty where they do, None without a
            sequence.

    Example:
        >>> import torch, tracetorch as tt
        >>> class Net(tt.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inward, self.leak = nn.Linear(2, 3), tt.testing.Trace(3)
        ...     def forward(self, x):
        ...         return self.leak(self.inward(x))
        >>> summary = Net().summary(torch.rand(5, 4, 2))
        >>> [(row.name, row.kind, row.output, row.parameters) for row in summary.rows]
        [('inward', 'Linear', (4, 3), 9), ('leak', 'Trace', (4, 3), 3)]
        >>> summary.parameters
        ParameterCount(total=12, in_layers=3, learnable=12)
    """

    rows: tuple[Row, ...]
    parameters: ParameterCount
    operations: Operations | None = None
    unfolded: str | None = None

    def __str__(self) -> str:
        cells = _plain_cells(self.rows) if self.operations is None else self._cells(self.operations)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        total, in_layers, learnable = self.parameters
        lines.append(f"{total:,} parameters, {in_layers:,} in tt layers, {learnable:,} learnable")
        return "\n".join([*lines, *(() if self.operations is None else self._notes())])

    def _cells(self, operations: Operations) -> list[tuple[str, ...]]:
        head = ("layer", "", "output", "parameters", "state bytes", "rate", "silent")
        cells: list[tuple[str, ...]] = [(*head, "dense", "MACs", "ACs", "runs")]
        for row in self.rows:
            counts = ("", "", "")
            if row.operations is not None:
                each = [n / max(operations.samples, 1) for n in row.operations]
                counts = (_number(each[0]), _number(each[1]), _number(each[2]))
            cells.append((
                row.name or "(the model)", row.kind, _shape(row.output), f"{row.parameters:,}",
                "" if not row.states else _or_dash(row.state_bytes),
                "" if row.rate is None else _share(row.rate),
                f"{row.silent:,} of {row.neurons:,}" if row.silent else "",
                *counts, row.path,
            ))  # fmt: skip
        return cells

    def _notes(self) -> Iterator[str]:
        operations = self.operations
        if operations is None:
            return
        dense, macs, acs = (_number(n / max(operations.samples, 1)) for n in operations.total)
        yield f"operations of a sequence: {dense} dense, {macs} MACs, {acs} ACs"
        if operations.uncounted:
            names = [name or "(the model)" for name in operations.uncounted]
            yield f"not counted: {', '.join(names)}"
        dead = [row.name for row in self.rows if row.neurons and row.silent == row.neurons]
        if dead:
            yield f"silent: {', '.join(dead)}"
        yield f"stepped: {self.unfolded}" if self.unfolded else "folded"
        for row in self.rows:
            if row.why:
                stepped = "" if row.output is None else " is stepped"
                yield f"{row.name}{stepped}: {row.why}"


def _plain_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [("layer", "", "parameters", "states", "state per sample")]
    return cells + [
        (row.name, row.text, f"{row.parameters:,}", ", ".join(row.states), _or_dash(row.state_size))
        for row in rows
    ]


def _or_dash(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else str(list(shape))


def _share(rate: float) -> str:
    return "<0.001" if 0 < rate < 0.001 else f"{rate:.3f}"


def _number(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:.1f}{unit}"
    return f"{value:,.0f}"


# ---------------------------------------------------------------------- without a sequence


def plain(model: nn.Module) -> Summary:
    """A row for each layer: its parameters, its states, and their size per sample."""
    return Summary(tuple(_layer(name, layer) for name, layer in named_layers(model)), count(model))


def _layer(name: str, layer: Layer) -> Row:
    shapes = {
        key: (state.shape[1 if batched(layer, key, state) else 0 :].numel(), state.itemsize)
        for key, state in layer.tt.states.items()
        if state is not None and key != RANDOM
    }
    known = len(shapes) == len(layer.tt.declaration.states)
    return Row(
        name, type(layer).__name__, repr(layer), sum(p.numel() for p in layer.parameters()),
        tuple(layer.tt.states),
        sum(size for size, _ in shapes.values()) if known else None,
        sum(size * itemsize for size, itemsize in shapes.values()) if known else None,
    )  # fmt: skip


# ---------------------------------------------------------------------- with one


def looked_at(model: Any, x: Tensor, lengths: Tensor | None) -> Summary:
    """The same, and torch's modules, with what they do with a sequence ``[T, B, …]``."""
    from tracetorch.measures.operating import left_as_it_was, operations

    check_dense("summary: x must be a tensor [T, B, …]", x)
    if not isinstance(x, Tensor):
        raise TypeError(f"summary: x must be a tensor [T, B, …], got a {type(x).__name__}")
    layers = dict(named_layers(model))
    heard = {name: _Sums() for name in layers}
    seen: dict[str, _Seen] = {}
    driven = {id(module) for module in event_driven.modules_of(model)}
    with left_as_it_was(model, [*layers.values()], x.device):
        for layer in layers.values():
            layer.zero_states()
        counted = operations(model, x, lengths)
        with ExitStack() as stack:
            stack.enter_context(listening([(layers[name], heard[name]) for name in layers]))
            for name, module in _leaves(model, layers):
                seen[name] = _Seen(module, len(x), x.shape[1], id(module) in driven)
                handle = module.register_forward_hook(Observer(seen[name].look))
                stack.callback(handle.remove)
            model.unroll(x, lengths=lengths)
        unfolded = model.tt.last
        stepped = status(model)
        rows = {name: heard[name].row(_layer(name, layer)) for name, layer in layers.items()}
    for name, row in rows.items():
        why = "" if stepped[name] == READY else stepped[name]
        if row.output is None:
            rows[name] = row._replace(why="it is not called")
        else:
            rows[name] = row._replace(path="stepped" if why else "fused", why=why)
    rows |= {name: one.row(name) for name, one in seen.items()}
    order = [*dict.fromkeys([*(name for name, _ in model.named_modules()), *layers])]
    found = [
        rows[name]._replace(operations=counted.rows.get(name)) for name in order if name in rows
    ]
    return Summary(tuple(found), count(model), counted, "" if unfolded is None else str(unfolded))


def _leaves(model: nn.Module, layers: Mapping[str, Layer]) -> Iterator[tuple[str, nn.Module]]:
    """Modules outside of layers that compute by themselves: of torch, or with parameters."""
    within = {id(part) for layer in layers.values() for part in layer.modules()}
    for name, module in model.named_modules():
        if id(module) in within or "parametrizations" in name.split("."):
            continue
        own = "parametrizations" in module._modules or [*module.parameters(recurse=False)]
        if own or (module is not model and not [*module.children()]):
            yield name, module


class _Sums(Listener):
    """How often a layer's neurons put out something."""

    names = (INPUT, OUTPUT)

    def __init__(self) -> None:
        self._input: torch.Size | None = None
        self._total = 0
        self._fired: Tensor | None = None

    def admit(self, layer: Layer, x: Tensor) -> None:
        """Whatever comes."""

    def put(self, layer: Layer, values: Mapping[str, Tensor], fresh: frozenset[str]) -> None:
        """Count."""
        y, samples = values[OUTPUT], active()
        self._input = values[INPUT].shape[1:]
        if samples is not None:
            y = y[:, samples.to(y.device)]
        fired = (y != 0).sum((0, 1)) if y.ndim > 2 else (y != 0).sum(0)
        self._fired = fired if self._fired is None else self._fired + fired
        self._total += y.numel()
        self._output = values[OUTPUT].shape[1:]

    def place(self) -> tuple[int, Tensor | None]:
        """What has been counted."""
        return self._total, self._fired

    def back(self, place: tuple[int, Tensor | None]) -> None:
        """Only that."""
        self._total, self._fired = place

    def row(self, row: Row) -> Row:
        """With what was found."""
        fired = self._fired
        if fired is None or self._input is None:
            return row
        return row._replace(
            input=tuple(self._input),
            output=tuple(self._output),
            rate=float(fired.sum()) / self._total if self._total else None,
            silent=int((fired == 0).sum()) if self._total else None,
            neurons=fired.numel(),
        )


class _Seen:
    """What a module of torch was given, and what it put out."""

    def __init__(self, module: nn.Module, steps: int, batch: int, driven: bool) -> None:
        self._module, self._steps, self._batch = module, steps, batch
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._by_events: list[bool] | None = [] if driven else None

    def look(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A timestep, or all at once."""
        if self._by_events is not None and isinstance(module, nn.Linear):
            self._by_events.append(event_driven.goes_by_events(module, inputs[0]))
        for name, value in (("input", inputs[0] if inputs else None), ("output", output)):
            if isinstance(value, Tensor) and value.ndim:
                self._shapes[name] = (min(len(value), self._batch), *value.shape[1:])

    def row(self, name: str) -> Row:
        """With what was found."""
        held = [self._module, self._module._modules.get("parametrizations")]
        own = sum(
            parameter.numel()
            for module in held if module is not None
            for parameter in module.parameters(recurse=module is not self._module)
        )  # fmt: skip
        row = Row(name, type(self._module).__name__, "", own, path=self._path())
        return row._replace(input=self._shapes.get("input"), output=self._shapes.get("output"))

    def _path(self) -> str:
        calls = self._by_events
        if not calls:
            return ""
        if len({*calls}) == 1:
            return "events" if calls[0] else "dense"
        return f"events in {sum(calls)} of {len(calls)} calls"
