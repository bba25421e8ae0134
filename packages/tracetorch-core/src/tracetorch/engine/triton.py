"""A traced timestep → Triton: a loop over time for a block of lanes, states in registers.

One function per direction; it takes the tensors that :class:`Kernel` lists, scratch, then sizes.
The generated text keeps the names of states and parameters. Triton itself is imported by generated
source alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from tracetorch.engine.aside import RESETS
from tracetorch.engine.graph import CONST, INPUT, RANDOM, Node, ordered
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.naming import Names
from tracetorch.engine.ops import TABLE

REAL = {torch.float32: "float32", torch.float64: "float64"}

# timesteps of input on their way from memory while one is computed; unmeasured
STAGES = 4


def name_of(kernel: Kernel) -> str:
    """The generated function's name."""
    return "tracetorch_backward" if kernel.backward else "tracetorch_forward"


def render(kernel: Kernel) -> str:
    """The whole source of a kernel.

    Arguments, in order: what ``kernel.pointers`` lists, of which cotangents may be None; backward,
    for each remembered state scratch ``[period, L]``; then T, L, neurons, lanes between two
    neurons, 0 or 1 for each parameter that is one value or one per neuron, lanes of a sample.
    ``BLOCK``: lanes of a program, a power of two.
    """
    direction = _Backward(kernel) if kernel.backward else _Forward(kernel)
    body = direction.text()
    pointers = [direction.pointer(label) for label in (*kernel.pointers, *scratch(kernel))]
    strides = [direction.stride(name) for name in kernel.traced.parameters]
    # lanes alone says how rows are aligned; other sizes would only be compiled for anew
    fixed = ["steps", "neurons", "inner", *strides, "per"]
    sizes = ["steps", "lanes", *fixed[1:]]
    return module(name_of(kernel), kernel.real, pointers, sizes, fixed, ["BLOCK"], body)


def module(
    name: str,
    real: torch.dtype,
    pointers: Sequence[str],
    sizes: Sequence[str],
    fixed: Sequence[str],
    blocks: Sequence[str],
    body: str,
) -> str:
    """The text of a module that holds one function.

    Args:
        name: of the function.
        real: the type of its arithmetic.
        pointers: its first arguments.
        sizes: the next.
        fixed: the sizes that are not compiled for anew where they are 1 or divisible by 16.
        blocks: the last, known when it is compiled.
        body: its lines.
    """
    return (
        "import triton\n"
        "import triton.language as tl\n"
        "from tracetorch.engine import triton_math as math\n\n"
        f"real = tl.constexpr(tl.{REAL[real]})\n\n\n"
        f"@triton.jit(do_not_specialize={list(fixed)})\n"
        f"def {name}(\n"
        f"    {', '.join(pointers)},\n"
        f"    {', '.join(sizes)},\n"
        f"    {', '.join(f'{block}: tl.constexpr' for block in blocks)},\n"
        f"):\n{body}"
    )


def scratch(kernel: Kernel) -> tuple[str, ...]:
    """What the backward pass recomputes into."""
    return tuple(f"past {name}" for name in kernel.remembered) if kernel.backward else ()


class Writer:
    """Lines of Triton, names of its own for what is named, and a timestep in them."""

    # of a constant, so that it goes with every other value
    shape = "[BLOCK]"

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.name = Names().variable
        self._constants: dict[Node, str] = {}

    def say(self, depth: int, *lines: str) -> None:
        """Add lines."""
        self.lines += ["    " * depth + line for line in lines]

    def pointer(self, label: str) -> str:
        """The argument that leads to it."""
        return f"{self.name(label)}ptr"

    def load(self, label: str, at: str, mask: str = "here") -> str:
        """Its values at a place, where there are lanes."""
        return f"tl.load({self.pointer(label)} + {at}, mask={mask}, other=0.0)"

    def store(self, label: str, at: str, value: str, mask: str = "here") -> str:
        """A value to a place, where there are lanes."""
        return f"tl.store({self.pointer(label)} + {at}, {value}, mask={mask})"

    def given(self, label: str, at: str, mask: str = "here") -> str:
        """The same as :meth:`load`, of a pointer that may be null."""
        return f"math.given({self.pointer(label)}, {at}, {mask}).to(real)"

    def constants(self, *outputs: Mapping[str, Node]) -> None:
        """What these outputs are computed from and never changes."""
        for node in ordered(node for graph in outputs for node in graph.values()):
            if node.op == CONST and node not in self._constants:
                self._constants[node] = name = f"c{len(self._constants)}"
                self.say(1, f"{name} = tl.full({self.shape}, {_literal(node.value)}, real)")

    def timestep(
        self, depth: int, outputs: Mapping[str, Node], read: Mapping[str, str], time: str = ""
    ) -> dict[str, str]:
        """Every value once.

        Args:
            depth: of indentation.
            outputs: what is computed.
            read: how inputs are read that no variable holds yet.
            time: which timestep it is, for random numbers.
        """
        values: dict[Node, str] = dict(self._constants)
        # inputs first: what comes from memory is asked for before anything waits for it
        for node in sorted(ordered(outputs.values()), key=lambda node: node.op != INPUT):
            if node.op == INPUT:
                values[node] = self.name(node.label)
                if node.label in read:
                    self.say(depth, f"{values[node]} = {read[node.label]}")
            elif node.op == RANDOM:
                values[node] = f"drawn_{node.label}"
                text = f"math.uniform(lane_mixed, random_seed, random_count + {time}, {node.label})"
                self.say(depth, f"{values[node]} = {text}.to(real)")
            elif node.op != CONST:
                text = TABLE[node.op].triton.format(*(values[arg] for arg in node.args))
                values[node] = f"v{len(values)}"
                self.say(depth, f"{values[node]} = {text}")
        return {name: values[node] for name, node in outputs.items()}

    def finished(self) -> str:
        """All lines."""
        return "\n".join(self.lines) + "\n"


class _Direction(Writer):
    """What both directions share: a program's lanes, its parameters, what lies where."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel, self.traced = kernel, kernel.traced

    def names(self, prefix: str, states: Iterable[str]) -> list[str]:
        return [self.name(f"{prefix}{state}") for state in states]

    def stride(self, parameter: str) -> str:
        return f"{self.name(parameter)}stride"

    def begin(self, *outputs: Mapping[str, Node]) -> None:
        """Lanes, parameters, and the constants of these outputs."""
        self.say(
            1,
            "lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
            "here = lane < lanes",
            "neuron = lane // inner % neurons",
        )
        for name in self.traced.parameters:
            place = f"{self.pointer(name)} + neuron * {self.stride(name)}"
            self.say(1, f"{self.name(name)} = tl.load({place})")
        if self.traced.random:
            self.say(
                1,
                f"random_seed = tl.load({self.pointer(RANDOM)})",
                f"random_count = tl.load({self.pointer(RANDOM)} + 1)",
                "row = lane // (neurons * inner) * inner + lane % inner",
                "lane_mixed = math.mixed((row * neurons + neuron + random_seed).to(tl.uint32))",
            )
        self.constants(*outputs)

        self.say(1, "samples = lanes // per", "sample = lane // per")

    def restart(self, depth: int, time: str, values: Sequence[str]) -> None:
        """Zeros in these, in lanes of the samples that restart before a timestep."""
        if values:
            flags = self.pointer(RESETS)
            there = f"{flags} + ({time}) * samples + sample"
            self.say(depth, f"if {flags} is not None:")
            self.say(depth + 1, f"restarts = tl.load({there}, mask=here, other=0) != 0")
        for value in values:
            self.say(depth + 1, f"{value} = tl.where(restarts, 0.0, {value})")

    def assign(self, depth: int, targets: Iterable[str], values: Iterable[str]) -> None:
        """All at once, since a value may be another target."""
        if left := ", ".join(targets):
            self.say(depth, f"{left} = {', '.join(values)}")


class _Forward(_Direction):
    """The sequence from first to last, states kept on the way."""

    def text(self) -> str:
        states, kept, period = self.traced.states, self.kernel.remembered, self.kernel.period
        self.begin(self.traced.forward)
        for name in states:
            self.say(1, f"{self.name(name)} = {self.load(name, 'lane')}")
        self.say(1, "at = lane")
        if kept:
            self.say(1, "kept_at = lane")
        self.say(1, f"for t in tl.range(0, steps, num_stages={STAGES}):")
        self.restart(2, "t", self.names("", states))
        for name in kept:
            place = f"{self.pointer(f'kept {name}')} + kept_at"
            first = f"lane < lanes * (t % {period} == 0)"
            self.say(2, f"tl.store({place}, {self.name(name)}, mask={first})")
        if kept:
            self.say(2, f"kept_at += lanes * (t % {period} == {period - 1})")
        found = self.timestep(
            2, self.traced.forward, {"x": f"{self.load('x', 'at')}.to(real)"}, "t"
        )
        self.say(2, self.store("y", "at", found["y"]))
        self.assign(2, self.names("", states), (found[f"new {name}"] for name in states))
        for name in self.kernel.recorded:
            self.say(2, self.store(f"every {name}", "at", self.name(name)))
        self.say(2, "at += lanes")
        for name in states:
            self.say(1, self.store(f"new {name}", "lane", self.name(name)))
        return self.finished()


class _Backward(_Direction):
    """Blocks of timesteps from last to first: states recomputed, then the product in reverse."""

    def text(self) -> str:
        kernel, states = self.kernel, self.traced.states
        kept, wanted = kernel.remembered, kernel.wanted
        self.summed = [name for name in self.traced.parameters if f"grad {name}" in wanted]
        again = {f"new {name}": self.traced.forward[f"new {name}"] for name in kept}
        names = {*(f"grad {name}" for name in states), *wanted}
        product = {name: node for name, node in self.traced.backward.items() if name in names}
        self.begin(again, product)
        for name in states:
            label = f"grad new {name}"
            self.say(1, f"{self.name(label)} = {self.given(label, 'lane')}")
        for name in self.names("sum ", self.summed):
            self.say(1, f"{name} = tl.zeros([BLOCK], real)")
        self.say(1, f"blocks = (steps + {kernel.period - 1}) // {kernel.period}")
        self.say(1, "for done in range(blocks):")
        self.say(2, "block = blocks - 1 - done")
        self.say(2, f"first = block * {kernel.period}")
        self.say(2, f"length = tl.minimum(steps - first, {kernel.period})")
        if kept:
            self._recompute(again)
        self._reverse(product)
        self._finish()
        return self.finished()

    def _recompute(self, outputs: Mapping[str, Node]) -> None:
        kept = self.kernel.remembered
        self.say(2, "at = first.to(tl.int64) * lanes + lane")
        self.say(2, "kept_at = block.to(tl.int64) * lanes + lane")
        self.say(2, "past_at = lane")
        for name in kept:
            self.say(2, f"{self.name(name)} = {self.load(f'kept {name}', 'kept_at')}")
            self.say(2, self.store(f"past {name}", "past_at", self.name(name)))
        self.say(2, f"for j in tl.range(1, length, num_stages={STAGES}):")
        read = {"x": f"{self.load('x', 'at')}.to(real)"}
        found = self.timestep(3, outputs, read, "first + j - 1")
        self.assign(3, self.names("", kept), (found[f"new {name}"] for name in kept))
        self.restart(3, "first + j", self.names("", kept))
        self.say(3, "past_at += lanes")
        for name in kept:
            self.say(3, self.store(f"past {name}", "past_at", self.name(name)))
        self.say(3, "at += lanes")
        # another thread of the program may read what one has written
        self.say(2, "tl.debug_barrier()")

    def _reverse(self, outputs: Mapping[str, Node]) -> None:
        states, kept = self.traced.states, self.kernel.remembered
        self.say(2, "at = (first + length - 1).to(tl.int64) * lanes + lane")
        if kept:
            self.say(2, "past_at = (length - 1).to(tl.int64) * lanes + lane")
        parts = self.names("part ", self.summed)
        for name in parts:
            self.say(2, f"{name} = tl.zeros([BLOCK], real)")
        self.say(2, f"for j in tl.range(0, length, num_stages={STAGES}):")
        read = {name: self.load(f"past {name}", "past_at") for name in kept}
        read |= {"x": f"{self.load('x', 'at')}.to(real)", "grad y": self.given("grad y", "at")}
        for name in self.kernel.recorded:
            total = self.name(f"grad new {name}")
            self.say(3, f"{total} = {total} + {self.given(f'grad every {name}', 'at')}")
        found = self.timestep(3, outputs, read, "first + length - 1 - j")
        if "grad x" in self.kernel.wanted:
            self.say(3, self.store("grad x", "at", found["grad x"]))
        for part, name in zip(parts, self.summed, strict=True):
            self.say(3, f"{part} += {found[f'grad {name}']}")
        zeros = "tl.zeros([BLOCK], real)"
        gradients = (found.get(f"grad {name}", zeros) for name in states)
        self.assign(3, self.names("grad new ", states), gradients)
        self.restart(3, "first + length - 1 - j", self.names("grad new ", states))
        self.say(3, "at -= lanes")
        if kept:
            self.say(3, "past_at -= lanes")
        for part, name in zip(parts, self.names("sum ", self.summed), strict=True):
            self.say(2, f"{name} += {part}")
        if kept:
            self.say(2, "tl.debug_barrier()")

    def _finish(self) -> None:
        ends = {f"grad {name}": f"grad new {name}" for name in self.traced.states}
        ends |= {f"lanes grad {name}": f"sum {name}" for name in self.summed}
        for label, value in ends.items():
            if label.removeprefix("lanes ") in self.kernel.wanted:
                self.say(1, self.store(label, "lane", self.name(value)))


def _literal(value: float) -> str:
    return repr(value) if abs(value) < float("inf") else f'float("{value!r}")'
