"""A scan → C++: samples and blocks of channels in parallel, in each a loop over time.

For every timestep and state, one loop over the block's channels. Outputs, and gradients of what
varies over channels, are summed over the states in a row of the block's own; gradients of what
varies over states are summed over the block's channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tracetorch.engine.aside import RESETS
from tracetorch.engine.cpp import REAL, Writer, header
from tracetorch.engine.graph import Graph, Node, ordered
from tracetorch.engine.ops import TABLE
from tracetorch.engine.scan_kernel import CHANNEL, FIXED, STATE, ScanKernel

# what a timestep begins with: what the one before it ended with, or nothing
_BEFORE = "const real (*const before)[WIDTH] = resets && resets[row] ? zeros : past[j];"

_RUN = """
static void block(void **pointers, const int64_t *sizes, int64_t index, int) {
    const int64_t channels = sizes[2], states = sizes[3], groups = (channels + WIDTH - 1) / WIDTH;
    const int64_t b = index / groups, d = index % groups * WIDTH;
    for (int64_t n = 0; n < states; n += STATES) {
        if (channels - d >= WIDTH) tile<WIDTH>(pointers, sizes, b, d, n, WIDTH);
        else tile<0>(pointers, sizes, b, d, n, int(channels - d));
    }
}

extern "C" void run(void **pointers, const int64_t *sizes, int threads) {
    run_blocks(block, pointers, sizes, sizes[1] * ((sizes[2] + WIDTH - 1) / WIDTH), 1, 1, threads);
}
"""


def render(kernel: ScanKernel) -> str:
    """The whole source of a kernel.

    ``pointers`` lead to what ``kernel.pointers`` lists. A cotangent that is null is zero; kept
    states or a gradient that is null is not written. ``sizes``: T, B, D, N.
    """
    body = _Backward(kernel).text() if kernel.backward else _Forward(kernel).text()
    return (
        f"{header('prelude.h')}\n{header('scan.h')}"
        f"\ntypedef {REAL[kernel.real]} real;\n"
        f"enum {{ WIDTH = {kernel.width}, STATES = {kernel.tile}, PERIOD = {kernel.period} }};\n\n"
        "template <int FULL>\n"
        "static void tile(void **pointers, const int64_t *sizes, int64_t b, int64_t d, int64_t n, "
        f"int rest) {{\n{body}}}\n{_RUN}"
    )


class _Tile(Writer):
    """What both directions share: sizes, constants, rows of sequences."""

    def __init__(self, kernel: ScanKernel) -> None:
        super().__init__()
        self.kernel, self.traced = kernel, kernel.traced
        self.at = {name: f"pointers[{index}]" for index, name in enumerate(kernel.pointers)}

    def begin(self) -> None:
        self.say(
            1,
            "const int64_t steps = sizes[0], samples = sizes[1], channels = sizes[2];",
            "const int64_t states = sizes[3], own = (b * channels + d) * states + n;",
            "const int width = FULL ? FULL : rest;",
            "const int count = states - n < STATES ? int(states - n) : STATES;",
        )
        self.say(1, f"const uint8_t *const resets = (const uint8_t *){self.at[RESETS]};")
        for name in self.kernel.over(FIXED):
            here = self.array("all", name)
            self.say(1, f"real {here}[STATES][WIDTH];")
            self.say(1, f"turn_in({here}, {self.at[name]}, d * states + n, states, width, count);")

    def rows(self, depth: int) -> None:
        """Where this timestep's values are."""
        self.say(depth, "const int64_t row = t * samples + b;")
        for name, axis in self.kernel.axes.items():
            if axis != FIXED:
                place = "row * channels + d" if axis == CHANNEL else "row * states + n"
                pointer = f"(const real *){self.at[name]} + {place}"
                self.say(depth, f"const real *__restrict {self.array('row', name)} = {pointer};")

    def lanes(
        self,
        depth: int,
        outputs: Mapping[str, Node],
        read: Mapping[str, str],
        write: Mapping[str, str],
        sums: Iterable[str] = (),
    ) -> None:
        """One timestep of one state ``k`` in all channels."""
        for name in self.kernel.over(STATE):
            self.say(depth, f"const real {self.array('one', name)} = {self.array('row', name)}[k];")
        self.loop(depth, outputs, {**self._inputs(), **read}, write, sums=tuple(sums))

    def _inputs(self) -> dict[str, str]:
        places = {CHANNEL: ("row", "[i]"), STATE: ("one", ""), FIXED: ("all", "[k][i]")}
        return {
            name: self.array(places[axis][0], name) + places[axis][1]
            for name, axis in self.kernel.axes.items()
        }


class _Forward(_Tile):
    """From first to last, states kept on the way."""

    def text(self) -> str:
        self.begin()
        self.say(
            1,
            "real now[STATES][WIDTH];",
            f"turn_in(now, {self.at['h']}, own, states, width, count);",
            "for (int64_t t = 0; t < steps; ++t) {",
        )
        self.rows(2)
        self.say(
            2,
            "if (resets && resets[row]) memset(now, 0, sizeof now);",
            "if (t % PERIOD == 0) {",
            "    const int64_t at = ((t / PERIOD * samples + b) * states + n) * channels + d;",
            f"    keep(now, {self.at['kept h']}, at, channels, width, count);",
            "}",
            "real sum[WIDTH] = {};",
            "for (int k = 0; k < count; ++k) {",
        )
        write = {"new h": "now[k][i] = {};", "y": "sum[i] += {};"}
        self.lanes(3, self.traced.forward, {"h": "now[k][i]"}, write)
        self.say(2, "}", f"put(sum, {self.at['y']}, row * channels + d, width, n == 0);")
        self.say(1, "}", f"turn_out(now, {self.at['new h']}, own, states, width, count);")
        return "\n".join(self.lines) + "\n"


class _Backward(_Tile):
    """Blocks of timesteps from last to first: states recomputed, then the product in reverse.

    What the product shares with the timestep and is costly (an exponential) is computed once.
    """

    def __init__(self, kernel: ScanKernel) -> None:
        super().__init__(kernel)
        wanted = {name: self.traced.backward[name] for name in kernel.gradients}
        shared = set(ordered(wanted.values()))
        costly = (n for n in ordered(self.traced.forward.values()) if _costly(n) and n in shared)
        self.held = {f"held_{index}": node for index, node in enumerate(costly)}
        known = {node: name for name, node in self.held.items()}
        self.product = _given(wanted, {**known, self.traced.forward["new h"]: "new h"})

    def text(self) -> str:
        self.begin()
        self.own = {axis: self.kernel.differentiated(axis) for axis in (CHANNEL, STATE, FIXED)}
        self.say(1, "real grad[STATES][WIDTH], past[PERIOD + 1][STATES][WIDTH];")
        self.say(1, "static const real zeros[STATES][WIDTH] = {};")
        for name in self.own[FIXED]:
            self.say(1, f"real {self.array('sum', name)}[STATES][WIDTH] = {{}};")
            self.say(1, f"real {self.array('part', name)}[STATES][WIDTH];")
        for name in self.held:
            self.say(1, f"real {name}[PERIOD][STATES][WIDTH];")
        self.say(
            1,
            "const real nothing[WIDTH] = {};",
            f"turn_in(grad, {self.at['grad new h']}, own, states, width, count);",
            "for (int64_t block = (steps - 1) / PERIOD; block >= 0; --block) {",
            "    const int64_t first = block * PERIOD;",
            "    const int m = int(steps - first < PERIOD ? steps - first : PERIOD);",
        )
        self._recompute()
        self._reverse()
        self.say(1, "}")
        for array_, name in [("grad", "h"), *((self.array("sum", n), n) for n in self.own[FIXED])]:
            place = f"{self.at[f'grad {name}']}, own, states, width, count"
            self.say(1, f"turn_out({array_}, {place});")
        return "\n".join(self.lines) + "\n"

    def _recompute(self) -> None:
        self.say(
            2,
            "const int64_t at = ((block * samples + b) * states + n) * channels + d;",
            f"recall(past[0], {self.at['kept h']}, at, channels, width, count);",
            "for (int j = 0; j < m; ++j) {",
            "    const int64_t t = first + j;",
        )
        self.rows(3)
        self.say(3, _BEFORE, "for (int k = 0; k < count; ++k) {")
        outputs = {"new h": self.traced.forward["new h"], **self.held}
        write = {name: f"{name}[j][k][i] = {{}};" for name in self.held}
        write["new h"] = "past[j + 1][k][i] = {};"
        self.lanes(4, outputs, {"h": "before[k][i]"}, write)
        self.say(3, "}")
        self.say(2, "}")

    def _reverse(self) -> None:
        for name in self.own[FIXED]:
            part = self.array("part", name)
            self.say(2, f"memset({part}, 0, sizeof {part});")
        self.say(2, "for (int j = m - 1; j >= 0; --j) {", "    const int64_t t = first + j;")
        self.rows(3)
        given = self.at["grad y"]
        pointer = f"{given} ? (const real *){given} + row * channels + d : nothing"
        self.say(3, f"const real *__restrict row_y = {pointer};")
        for name in self.own[CHANNEL]:
            self.say(3, f"real {self.array('sum', name)}[WIDTH] = {{}};")
        self.say(3, _BEFORE, "for (int k = 0; k < count; ++k) {")
        self._product()
        self.say(3, "}", "if (resets && resets[row]) memset(grad, 0, sizeof grad);")
        for name in self.own[CHANNEL]:
            place = f"{self.at[f'grad {name}']}, row * channels + d, width, n == 0"
            self.say(3, f"put({self.array('sum', name)}, {place});")
        self.say(2, "}")
        for name in self.own[FIXED]:
            there, here = self.array("sum", name), self.array("part", name)
            self.say(2, "for (int k = 0; k < count; ++k)")
            self.say(3, f"for (int i = 0; i < width; ++i) {there}[k][i] += {here}[k][i];")

    def _product(self) -> None:
        parts = [self.array("part", name) for name in self.own[STATE]]
        self.say(4, *(f"real {part} = 0;" for part in parts))
        read = {name: f"{name}[j][k][i]" for name in self.held}
        read |= {"h": "before[k][i]", "new h": "past[j + 1][k][i]"}
        read |= {"grad y": "row_y[i]", "grad new h": "grad[k][i]"}
        write = {"grad h": "grad[k][i] = {};"}
        write |= {f"grad {n}": f"{self.array('sum', n)}[i] += {{}};" for n in self.own[CHANNEL]}
        write |= {f"grad {n}": f"{self.array('part', n)} += {{}};" for n in self.own[STATE]}
        write |= {f"grad {n}": f"{self.array('part', n)}[k][i] += {{}};" for n in self.own[FIXED]}
        self.lanes(4, self.product, read, write, parts)
        for name, part in zip(self.own[STATE], parts, strict=True):
            place = "(d / WIDTH * steps * samples + row) * states + n + k"
            self.say(4, f"put(&{part}, {self.at[f'grad {name}']}, {place}, 1, true);")


def _costly(node: Node) -> bool:
    """Whether a value is rather kept than computed again: a function, not arithmetic."""
    return node.op in TABLE and "math::" in TABLE[node.op].cpp and node.gives == "f"


def _given(outputs: Mapping[str, Node], known: Mapping[Node, str]) -> dict[str, Node]:
    """The same outputs where some values come as inputs of these names."""
    graph = Graph()
    made = {node: graph.input(name) for node, name in known.items()}
    for node in ordered(outputs.values()):
        if node not in made:
            args = tuple(made[arg] for arg in node.args)
            made[node] = Node(node.op, args, node.gives, node.label)
    return {name: made[node] for name, node in outputs.items()}
