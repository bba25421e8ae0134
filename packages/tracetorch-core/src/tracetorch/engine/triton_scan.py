"""A scan → Triton: a loop over time for a block of one sample's channels, all their states at once.

States lie in registers as ``[BLOCK_D, BLOCK_N]``. Outputs, and gradients of what varies over
channels, are summed over the states; gradients of what varies over states are summed over the
block's channels. Both ways of the backward pass are as in :mod:`tracetorch.engine.triton`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracetorch.engine.aside import RESETS
from tracetorch.engine.graph import Node
from tracetorch.engine.scan_kernel import CHANNEL, FIXED, STATE, ScanKernel
from tracetorch.engine.triton import STAGES, Writer, module

PAST = "past h"
_TILE = "[BLOCK_D, BLOCK_N]"
_PLACES = {CHANNEL: "row * channels + channel", STATE: "row * states + state", FIXED: "lane"}
_MASKS = {CHANNEL: "a_channel", STATE: "a_state", FIXED: "here"}


def name_of(kernel: ScanKernel) -> str:
    """The generated function's name."""
    return "tracetorch_scan_backward" if kernel.backward else "tracetorch_scan_forward"


def render(kernel: ScanKernel) -> str:
    """The whole source of a kernel.

    Arguments, in order: what ``kernel.pointers`` lists, of which kept states and cotangents may be
    None; backward, scratch ``[programs, period, BLOCK_D, BLOCK_N]``; then T, B, D, N.
    ``BLOCK_D``: channels of a program, a power of two; ``BLOCK_N``: the next one from N.
    A program for each sample and block of channels, the latter running fastest.
    """
    direction = _Backward(kernel) if kernel.backward else _Forward(kernel)
    body = direction.text()
    labels = (*kernel.pointers, *scratch(kernel))
    pointers = [direction.pointer(label) for label in labels]
    sizes = ["steps", "samples", "channels", "states"]
    blocks = ["BLOCK_D", "BLOCK_N"]
    return module(name_of(kernel), kernel.real, pointers, sizes, sizes[:2], blocks, body)


def scratch(kernel: ScanKernel) -> tuple[str, ...]:
    """What the backward pass recomputes into."""
    return (PAST,) if kernel.backward else ()


class _Tile(Writer):
    """What both directions share: a program's lanes, and what lies where."""

    shape = "[1, 1]"

    def __init__(self, kernel: ScanKernel) -> None:
        super().__init__()
        self.kernel, self.traced = kernel, kernel.traced

    def begin(self, *outputs: Mapping[str, Node]) -> None:
        """Lanes, constant inputs, and the constants of these outputs."""
        self.say(
            1,
            "groups = tl.cdiv(channels, BLOCK_D)",
            "program = tl.program_id(0).to(tl.int64)",
            "sample, group = program // groups, program % groups",
            "channel = group * BLOCK_D + tl.arange(0, BLOCK_D)[:, None]",
            "state = tl.arange(0, BLOCK_N)[None, :]",
            "a_channel, a_state = channel < channels, state < states",
            "here = a_channel & a_state",
            "lane = channel * states + state",
            "own = sample * channels * states + lane",
            "kept_lane = state * channels + channel",
        )
        for name in self.kernel.over(FIXED):
            self.say(1, f"{self.name(name)} = {self.load(name, 'lane')}")
        self.constants(*outputs)

    def restart(self, depth: int, value: str) -> None:
        """Zeros where the sample restarts before the timestep of ``row``."""
        flags = self.pointer(RESETS)
        self.say(
            depth,
            f"if {flags} is not None:",
            f"    {value} = tl.where(tl.load({flags} + row) != 0, 0.0, {value})",
        )

    def rows(self) -> dict[str, str]:
        """How this timestep's inputs are read."""
        return {
            name: self.load(name, _PLACES[axis], _MASKS[axis])
            for name, axis in self.kernel.axes.items()
            if axis != FIXED
        }


class _Forward(_Tile):
    """From first to last, states kept on the way."""

    def text(self) -> str:
        h, kept, period = self.name("h"), self.pointer("kept h"), self.kernel.period
        self.begin(self.traced.forward)
        self.say(
            1,
            f"{h} = {self.load('h', 'own')}",
            "row, kept_row = sample, sample",
            f"for t in tl.range(0, steps, num_stages={STAGES}):",
        )
        self.restart(2, h)
        self.say(
            1,
            f"    if {kept} is not None:",
            f"        place = {kept} + kept_row * states * channels + kept_lane",
            f"        tl.store(place, {h}, mask=here & (t % {period} == 0))",
            f"    kept_row += samples * (t % {period} == {period - 1})",
        )
        found = self.timestep(2, self.traced.forward, self.rows())
        summed = f"tl.sum({_here(found['y'])}, 1, keep_dims=True)"
        self.say(2, self.store("y", _PLACES[CHANNEL], summed, "a_channel"))
        self.say(2, f"{h} = {_here(found['new h'])}", "row += samples")
        self.say(1, self.store("new h", "own", h))
        return self.finished()


class _Backward(_Tile):
    """Blocks of timesteps from last to first: states recomputed, then the product in reverse."""

    def text(self) -> str:
        kernel, period = self.kernel, self.kernel.period
        self.again = {"new h": self.traced.forward["new h"]}
        self.product = {name: self.traced.backward[name] for name in kernel.gradients}
        self.fixed = kernel.differentiated(FIXED)
        self.begin(self.again, self.product)
        self.say(1, f"{self.name('grad new h')} = {self.given('grad new h', 'own')}")
        for name in self.fixed:
            self.say(1, f"{self.name(f'sum {name}')} = tl.zeros({_TILE}, real)")
        self.say(
            1,
            "tile = tl.arange(0, BLOCK_D)[:, None] * BLOCK_N + state",
            f"scratch = program * {period} * BLOCK_D * BLOCK_N + tile",
            f"blocks = (steps + {period - 1}) // {period}",
            "for done in range(blocks):",
            "    block = blocks - 1 - done",
            f"    first = block * {period}",
            f"    length = tl.minimum(steps - first, {period})",
        )
        self._recompute()
        self._reverse()
        self.say(1, self.store("grad h", "own", self.name("grad new h")))
        for name in self.fixed:
            self.say(1, self.store(f"grad {name}", "own", self.name(f"sum {name}")))
        return self.finished()

    def _recompute(self) -> None:
        h, past = self.name("h"), self.pointer(PAST)
        kept_at = "kept_row * states * channels + kept_lane"
        self.say(
            2,
            "row = first.to(tl.int64) * samples + sample",
            "kept_row = block.to(tl.int64) * samples + sample",
            "past_at = scratch",
            f"{h} = {self.load('kept h', kept_at)}",
            f"tl.store({past} + past_at, {h})",
            f"for j in tl.range(1, length, num_stages={STAGES}):",
        )
        found = self.timestep(3, self.again, self.rows())
        self.say(
            3,
            f"{h} = {_here(found['new h'])}",
            "past_at += BLOCK_D * BLOCK_N",
            "row += samples",
        )
        self.restart(3, h)
        self.say(3, f"tl.store({past} + past_at, {h})")
        # another thread of the program may read what one has written
        self.say(2, "tl.debug_barrier()")

    def _reverse(self) -> None:
        parts = [self.name(f"part {name}") for name in self.fixed]
        self.say(
            2,
            "row = (first + length - 1).to(tl.int64) * samples + sample",
            "past_at = scratch + (length - 1) * BLOCK_D * BLOCK_N",
            *(f"{part} = tl.zeros({_TILE}, real)" for part in parts),
            f"for j in tl.range(0, length, num_stages={STAGES}):",
        )
        read = {**self.rows(), "h": f"tl.load({self.pointer(PAST)} + past_at)"}
        read["grad y"] = self.given("grad y", _PLACES[CHANNEL], "a_channel")
        found = self.timestep(3, self.product, read)
        for name in self.kernel.differentiated(CHANNEL):
            gradient = found[f"grad {name}"]
            self._give(name, gradient, 1, _PLACES[CHANNEL], "a_channel")
        for name in self.kernel.differentiated(STATE):
            place = "(group * steps * samples + row) * states + state"
            self._give(name, found[f"grad {name}"], 0, place, "a_state")
        for part, name in zip(parts, self.fixed, strict=True):
            self.say(3, f"{part} += {_here(found[f'grad {name}'])}")
        self.say(3, f"{self.name('grad new h')} = {_here(found['grad h'])}")
        self.restart(3, self.name("grad new h"))
        self.say(3, "past_at -= BLOCK_D * BLOCK_N", "row -= samples")
        for part, name in zip(parts, self.fixed, strict=True):
            self.say(2, f"{self.name(f'sum {name}')} += {part}")
        self.say(2, "tl.debug_barrier()")

    def _give(self, name: str, gradient: str, axis: int, place: str, mask: str) -> None:
        """A timestep's gradient, summed over the other axis."""
        summed = f"tl.sum({_here(gradient)}, {axis}, keep_dims=True)"
        self.say(3, self.store(f"grad {name}", place, summed, mask))


def _here(value: str) -> str:
    """The whole tile of a value, nothing where there is no lane."""
    return f"tl.where(here, {value}, 0.0)"
