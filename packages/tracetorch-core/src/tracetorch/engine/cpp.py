"""A traced timestep → C++: a loop over time for a block of lanes, states in local arrays.

One function per direction, behind a plain C interface: ``run(pointers, sizes, threads)``; in which
order they come, :class:`Kernel` says. The generated text keeps the names of states and parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib.resources import files

import torch

from tracetorch.engine.aside import RESETS
from tracetorch.engine.graph import CONST, INPUT, RANDOM, Node, draws_of, ordered
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.naming import Names
from tracetorch.engine.ops import TABLE

REAL = {torch.float32: "float", torch.float64: "double"}
STORED = {**REAL, torch.bfloat16: "bfloat16", torch.float16: "float16"}

# A block's working set should stay in the second-level cache. Its rows should be long: 4 KB apiece
# took two thirds of the time of 1 KB (memory comes in pages), in L1 or not.
_CACHE_BYTES = 256_000
_WIDEST, CHUNK = 1024, 64
# lanes times timesteps below which other threads take longer to wake than the work takes
_ALONE = 131_072


def render(kernel: Kernel) -> str:
    """The whole source of a kernel.

    ``pointers`` lead to what ``kernel.pointers`` lists. A state or its gradient that is null is
    zero; a kept state, output state or gradient that is null is not written. ``sizes``: T, L,
    neurons, lanes between two neurons, 0 or 1 for each parameter that is one value or one per
    neuron, lanes of a sample.
    """
    sums = "".join(_sum(kernel, name) for name in kernel.summed) if kernel.backward else ""
    body = _Backward(kernel).text() if kernel.backward else _Forward(kernel).text()
    half = "#define TRACETORCH_HALF 1\n" if torch.float16 == kernel.stored else ""
    return (
        f"{half}{header('prelude.h')}\n"
        f"typedef {REAL[kernel.real]} real;\n"
        f"typedef {STORED[kernel.stored]} stored;\n"
        f"enum {{ WIDTH = {_width(kernel)}, CHUNK = {CHUNK}, PERIOD = {kernel.period} }};\n\n"
        "static void block(void **pointers, const int64_t *sizes, int64_t lane, int rest) "
        f"{{\n{body}}}\n\n"
        'extern "C" void run(void **pointers, const int64_t *sizes, int threads) {\n'
        f"    if (sizes[0] * sizes[1] < {_ALONE}) threads = 1;\n"
        "    run_blocks(block, pointers, sizes, sizes[1], WIDTH, CHUNK, threads);\n"
        f"{sums}"
        "}\n"
    )


def _sum(kernel: Kernel, gradient: str) -> str:
    """A parameter's gradient, once all lanes have theirs."""
    at = {name: index for index, name in enumerate(kernel.pointers)}
    stride = 4 + kernel.traced.parameters.index(gradient.removeprefix("grad "))
    lanes, whole = at[f"lanes {gradient}"], at[gradient]
    return (
        f"    sum_lanes<real>(pointers[{lanes}], pointers[{whole}], sizes[1], sizes[2], sizes[3], "
        f"sizes[{stride}]);\n"
    )


@functools.cache
def header(name: str) -> str:
    """The text of one of the engine's headers."""
    return files("tracetorch.engine").joinpath(name).read_text(encoding="utf-8")


def abridged(source: str) -> str:
    """A source as it was generated, its headers named instead of spelled out."""
    for name in ("prelude.h", "scan.h"):
        source = source.replace(header(name), f'#include "{name}"\n')
    return source


class Writer:
    """Lines of C++, and the loops over lanes in them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names = Names()

    def say(self, depth: int, *lines: str) -> None:
        """Add lines."""
        self.lines += ["    " * depth + line for line in lines]

    def array(self, prefix: str, name: str) -> str:
        """The name of an array that belongs to a state or parameter."""
        return f"{prefix}_{self.names.of(name)}s"  # which no variable ends in

    def loop(
        self,
        depth: int,
        outputs: Mapping[str, Node],
        read: Mapping[str, str],
        write: Mapping[str, str],
        span: tuple[str, str] = ("0", "width"),
        sums: Sequence[str] = (),
    ) -> None:
        """One timestep in every lane of ``span``: inputs read, each value once, outputs written.

        ``sums``: variables that the lanes add to.
        """
        clause = f" reduction(+ : {', '.join(sums)})" if sums else ""
        first, end = span
        self.say(depth, f"#pragma omp simd{clause}", f"for (int i = {first}; i < {end}; ++i) {{")
        names: dict[Node, str] = {}
        for node in ordered(outputs.values()):
            names[node] = self._define(depth + 1, node, names, read)
        for name, node in outputs.items():
            self.say(depth + 1, write[name].format(names[node]))
        self.say(depth, "}")

    def _define(
        self, depth: int, node: Node, names: Mapping[Node, str], read: Mapping[str, str]
    ) -> str:
        if node.op == CONST:
            return _literal(node.value)
        if node.op == RANDOM:
            name, text = f"drawn_{node.label}", f"uniform<real>(mixed_lanes[i], key_{node.label})"
        elif node.op == INPUT:
            name, text = self.names.variable(node.label), read[node.label]
        else:
            name = f"v{len(names)}"
            text = TABLE[node.op].cpp.format(*(names[arg] for arg in node.args))
        kind = "real" if node.gives == "f" else "bool"
        self.say(depth, f"const {kind} {name} = {text};")
        return name


class _Direction(Writer):
    """What both directions share: names, the block's arrays, rows of sequences."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel, self.traced = kernel, kernel.traced
        self.at = {name: index for index, name in enumerate(kernel.pointers)}

    def begin(self, rows: int, cleared: str) -> None:
        """Sizes and parameters; ``rows`` full-length copies, cleared where that is so."""
        self.say(
            1,
            "const int64_t steps = sizes[0], lanes = sizes[1];",
            "const int width = (rest + CHUNK - 1) / CHUNK * CHUNK;",
            f"const stored *const xs = (const stored *)pointers[{self.at['x']}] + lane;",
            f"alignas(64) stored row[{rows}][WIDTH];",
            f"if ({cleared}) memset(row, 0, sizeof row);",
        )
        for index, name in enumerate(self.traced.parameters):
            here = self.array("all", name)
            self.say(
                1,
                f"real {here}[WIDTH];",
                f"gather({here}, width, pointers[{self.at[name]}], sizes[{4 + index}], lane, rest, "
                f"sizes[2], sizes[3]);",
            )

        if self.traced.random:
            self.say(
                1,
                f"const int64_t *const random = (const int64_t *)pointers[{self.at[RANDOM]}];",
                "uint32_t mixed_lanes[WIDTH];",
                "for (int i = 0; i < width; ++i)",
                "    mixed_lanes[i] = random_lane(random, lane + i, sizes[2], sizes[3]);",
            )

        flags, per = f"pointers[{self.at[RESETS]}]", f"sizes[{4 + len(self.traced.parameters)}]"
        self.say(1, f"const Restarts restarts({flags}, {per}, lanes, lane, rest);")

    def restart(self, depth: int, time: str, arrays: Sequence[str]) -> None:
        """Zeros in these, in lanes of the samples that restart before a timestep."""
        if arrays:
            self.say(depth, f"restarts.clear({time}, {', '.join(arrays)});")

    def keys(self, depth: int, outputs: Mapping[str, Node]) -> None:
        """What this timestep's random numbers have in common, for each that it draws."""
        for node in sorted(draws_of(outputs.values()), key=lambda node: node.label):
            text = f"random_key(random, t, {node.label})"
            self.say(depth, f"const uint32_t key_{node.label} = {text};")

    def row(self, depth: int, variable: str, source: str, index: int) -> None:
        """A timestep's row of a sequence; a short block goes through a full-length copy."""
        self.say(
            depth,
            f"const stored *{variable} = {source} + t * lanes;",
            f"if (rest < width) {variable} = (const stored *)"
            f"memcpy(row[{index}], {variable}, rest * sizeof(stored));",
        )

    def put(self, label: str, name: str) -> None:
        """The sequence that is written, ``name`` with an s."""
        self.say(1, f"stored *const {name}s = (stored *)pointers[{self.at[label]}] + lane;")
        self.streams(f"{name}s")

    def streams(self, sequence: str) -> None:
        """Whether sequences are larger than caches; this one has to begin with a line of theirs."""
        large = f"past_caches({sequence}, steps, lanes)"
        self.say(1, f"const bool streams = rest >= width && {large};")

    def row_put(self, depth: int, name: str, index: int) -> None:
        """Where a timestep's row of it is written: itself, or a full-length copy."""
        there = f"{name}s + t * lanes"
        self.say(
            depth,
            f"stored *{name}t = rest < width || streams ? row[{index}] : {there};",
        )

    def lanes(
        self,
        depth: int,
        outputs: Mapping[str, Node],
        read: Mapping[str, str],
        write: Mapping[str, str],
        put: str | None = None,
        ahead: Sequence[str] = (),
    ) -> None:
        """One timestep in all lanes: inner loops of constant length.

        ``put``: the sequence that is written; ``ahead``: rows of others that come next.
        """
        self.keys(depth, outputs)
        self.say(depth, "for (int chunk = 0; chunk < width; chunk += CHUNK) {")
        for row in ahead:
            self.say(depth + 1, f"if (streams) ahead<CHUNK>({row} + chunk);")
        self.loop(depth + 1, outputs, read, write, ("chunk", "chunk + CHUNK"))
        there = f"{put}s + t * lanes"
        if put:
            self.say(depth + 1, f"if (streams) stream<CHUNK>({there} + chunk, {put}t + chunk);")
        self.say(depth, "}")
        if put:
            self.say(depth, f"if (rest < width) memcpy({there}, {put}t, rest * sizeof(stored));")

    def constants(self) -> dict[str, str]:
        return {name: f"{self.array('all', name)}[i]" for name in self.traced.parameters}


class _Forward(_Direction):
    """The sequence from first to last, states kept on the way."""

    def text(self) -> str:
        self.begin(2, "rest < width")
        states, kept = self.traced.states, self.kernel.remembered
        recorded = self.kernel.recorded
        self.put("y", "y")
        for name in states:
            here = self.array("now", name)
            self.say(1, f"alignas(64) real {here}[WIDTH];")
            self.say(1, f"take({here}, width, pointers[{self.at[name]}], lane, rest);")
        for index, name in enumerate(recorded):
            place = f"(const real *)pointers[{self.at[f'every {name}']}] + lane"
            large = f"rest % CHUNK == 0 && past_caches({place}, steps, lanes)"
            self.say(1, f"const bool streams{index} = {large};")
        self.say(1, "for (int64_t t = 0; t < steps; ++t) {")
        self.restart(2, "t", [self.array("now", name) for name in states])
        if kept:
            self.say(2, "if (t % PERIOD == 0) {")
            for name in kept:
                place = f"pointers[{self.at[f'kept {name}']}], t / PERIOD * lanes + lane"
                self.say(3, f"give({self.array('now', name)}, {place}, rest);")
            self.say(2, "}")
        self.row(2, "xt", "xs", 0)
        self.row_put(2, "y", 1)
        now = {name: f"{self.array('now', name)}[i]" for name in states}
        write = {f"new {name}": f"{place} = {{}};" for name, place in now.items()}
        self.lanes(
            2,
            self.traced.forward,
            {**self.constants(), **now, "x": "load(xt[i])"},
            {**write, "y": "store(&yt[i], {});"},
            put="y",
            ahead=["xs + (t + 1) * lanes"],
        )
        for index, name in enumerate(recorded):
            place = f"pointers[{self.at[f'every {name}']}], t * lanes + lane"
            self.say(2, f"give_row({self.array('now', name)}, {place}, rest, streams{index});")
        self.say(1, "}")
        some = " || ".join(["streams", *(f"streams{index}" for index in range(len(recorded)))])
        self.say(1, f"if ({some}) streamed();")
        for name in states:
            place = f"pointers[{self.at[f'new {name}']}], lane"
            self.say(1, f"give({self.array('now', name)}, {place}, rest);")
        return "\n".join(self.lines) + "\n"


class _Backward(_Direction):
    """Blocks of timesteps from last to first: states recomputed, then the product in reverse."""

    def text(self) -> str:
        self.begin(4, f"rest < width || !pointers[{self.at['grad y']}]")
        kept, wanted = self.kernel.remembered, self.kernel.wanted
        self.gradients = {name: self.array("grad", name) for name in self.traced.states}
        self.sums = {
            n: self.array("sum", n) for n in self.traced.parameters if f"grad {n}" in wanted
        }
        self.say(1, f"const stored *const gys = (const stored *)pointers[{self.at['grad y']}];")
        if "grad x" in wanted:
            self.put("grad x", "gx")
        else:
            self.streams("xs")
        for name, here in self.gradients.items():
            pointer = f"pointers[{self.at[f'grad new {name}']}]"
            self.say(1, f"real {here}[WIDTH];", f"take({here}, width, {pointer}, lane, rest);")
        for here in self.sums.values():
            self.say(1, f"real {here}[WIDTH] = {{}}, part_{here}[WIDTH];")
        self.say(1, *(f"real {self.array('past', name)}[PERIOD][WIDTH];" for name in kept))
        self.say(1, "for (int64_t k = (steps - 1) / PERIOD; k >= 0; --k) {")
        self.say(2, "const int64_t first = k * PERIOD;")
        self.say(2, "const int m = int(steps - first < PERIOD ? steps - first : PERIOD);")
        if kept:
            self._recompute(kept)
        self._reverse()
        self.say(1, "}")
        if "grad x" in wanted:
            self.say(1, "if (streams) streamed();")
        self._finish()
        return "\n".join(self.lines) + "\n"

    def _recompute(self, kept: Sequence[str]) -> None:
        for name in kept:
            place = f"pointers[{self.at[f'kept {name}']}], k * lanes + lane"
            self.say(2, f"take({self.array('past', name)}[0], width, {place}, rest);")
        self.say(2, "for (int j = 0; j + 1 < m; ++j) {", "    const int64_t t = first + j;")
        self.row(3, "xt", "xs", 0)
        outputs = {f"new {name}": self.traced.forward[f"new {name}"] for name in kept}
        write = {f"new {name}": f"{self.array('past', name)}[j + 1][i] = {{}};" for name in kept}
        self.lanes(3, outputs, self._reads(kept), write)
        self.restart(3, "t + 1", [f"{self.array('past', name)}[j + 1]" for name in kept])
        self.say(2, "}")

    def _reads(self, kept: Sequence[str]) -> dict[str, str]:
        past = {name: f"{self.array('past', name)}[j][i]" for name in kept}
        return {**self.constants(), **past, "x": "load(xt[i])"}

    def _reverse(self) -> None:
        wanted, states = self.kernel.wanted, self.traced.states
        for here in self.sums.values():
            self.say(2, f"memset(part_{here}, 0, sizeof part_{here});")
        self.say(2, "for (int j = m - 1; j >= 0; --j) {", "    const int64_t t = first + j;")
        self.row(3, "xt", "xs", 0)
        for name in self.kernel.recorded:
            place = f"pointers[{self.at[f'grad every {name}']}], t * lanes + lane"
            self.say(3, f"add({self.gradients[name]}, {place}, rest);")
        self.say(3, "const stored *__restrict gyt = row[2];", "if (gys) {")
        self.row(4, "given", "gys + lane", 1)
        self.say(4, "gyt = given;")
        self.say(3, "}")
        if "grad x" in wanted:
            self.row_put(3, "gx", 3)
        outputs = {f"grad {name}": self.traced.backward.get(f"grad {name}") for name in states}
        outputs |= {name: self.traced.backward[name] for name in wanted}
        reads = self._reads(self.kernel.remembered) | {"grad y": "load(gyt[i])"}
        reads |= {f"grad new {name}": f"{here}[i]" for name, here in self.gradients.items()}
        writes = {f"grad {name}": f"{here}[i] = {{}};" for name, here in self.gradients.items()}
        writes |= {f"grad {name}": f"part_{here}[i] += {{}};" for name, here in self.sums.items()}
        writes["grad x"] = "store(&gxt[i], {});"
        computed = {name: node for name, node in outputs.items() if node is not None}
        ahead = ["(gys ? gys + lane : xs) + (t - 1) * lanes", "xs + (t - PERIOD) * lanes"]
        self.lanes(3, computed, reads, writes, "gx" if "grad x" in wanted else None, ahead)
        for name, node in outputs.items():
            if node is None:
                here = self.gradients[name.removeprefix("grad ")]
                self.say(3, f"memset({here}, 0, sizeof {here});")
        self.restart(3, "t", [*self.gradients.values()])
        self.say(2, "}")
        for here in self.sums.values():
            self.say(2, f"for (int i = 0; i < width; ++i) {here}[i] += part_{here}[i];")

    def _finish(self) -> None:
        ends = {f"grad {name}": here for name, here in self.gradients.items()}
        ends |= {f"lanes grad {name}": here for name, here in self.sums.items()}
        for label, here in ends.items():
            if label.removeprefix("lanes ") in self.kernel.wanted:
                self.say(1, f"give({here}, pointers[{self.at[label]}], lane, rest);")


def _width(kernel: Kernel) -> int:
    """Lanes of a block, at most."""
    arrays = len(kernel.traced.states) + len(kernel.traced.parameters)
    if kernel.backward:
        arrays = 2 * arrays + kernel.period * len(kernel.remembered)
    width = _WIDEST
    while width > CHUNK and arrays * width * torch.finfo(kernel.real).bits // 8 > _CACHE_BYTES:
        width //= 2
    return width


def _literal(value: float) -> str:
    if value != value:
        return 'real(__builtin_nan(""))'
    if value in (float("inf"), float("-inf")):
        return f"real({'-' if value < 0 else ''}__builtin_inf())"
    return f"real({value!r})"
