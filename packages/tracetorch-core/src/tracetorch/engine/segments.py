"""Affine recurrences in parallel over time: a few lanes' long sequence cut into segments.

Where new states are ``A·states + (what x gives)`` with ``A`` made of parameters alone (LI, LIEMA,
SLI and their like; the output may be anything), every segment can start from zero at once, as one
more lane of the same kernel. ``A`` to the power of a segment's length is what the kernel makes of
unit states. From both follow the true starts, in a scan over the segments, and from these a second
run gives outputs and final states. Gradients are those of all this, again two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tracetorch.engine.graph import INPUT, Node, ordered
from tracetorch.engine.trace import Traced

Run = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


def affine(traced: Traced) -> bool:
    """Whether the new states are affine in the states, with factors of parameters alone."""
    if traced.random or not traced.states:
        return False
    # what a value depends on: nothing but parameters, x as well, or affinely on the states
    constant, free, linear = 0, 1, 2
    kinds: dict[Node, int] = {}
    for node in ordered(traced.forward[f"new {name}"] for name in traced.states):
        args = [kinds[arg] for arg in node.args]
        if node.op == INPUT:
            kind = free if node.label == "x" else constant
            kinds[node] = linear if node.label in traced.states else kind
        elif linear not in args:
            kinds[node] = max(args, default=constant)
        elif not _keeps_affine(node.op, [arg == constant for arg in args]):
            return False
        else:
            kinds[node] = linear
    return True


def _keeps_affine(op: str, constant: Sequence[bool]) -> bool:
    """Whether an operation on affine arguments, of which some are constant, is affine."""
    if op == "mul":
        return any(constant)
    return constant[1] if op == "div" else op in ("add", "sub", "rsub", "neg")


def count(steps: int, lanes: int, device: torch.device) -> int:
    """Into how many segments a sequence is best cut; 1: it is run as it is."""
    if device.type != "cuda" or steps < _FEWEST or not 0 < lanes <= _MOST:
        return 1
    return _WANTED // lanes


# On a CPU the loop was as fast or faster, up to one lane for 100 000 timesteps where they were even
# (benchmarks/results, "Parallel over time"). On a GPU, few lanes leave it idle; the bounds are
# judgement, unmeasured: fewest timesteps, most lanes, and how many lanes all segments should have.
_FEWEST, _MOST, _WANTED = 8_000, 2_048, 32_768


def unroll(run: Run, x: Tensor, states: Sequence[Tensor], segments: int) -> list[Tensor] | None:
    """``y`` and the final states, or None where infinities would take another way than in the loop.

    Args:
        run: ``(x, states) → (y, *final states)`` of a whole sequence ``[T, …]``.
        x: ``[T, …]``, at least one timestep for each segment.
        states: at the start.
        segments: at least 2.
    """
    length = len(x) // segments
    cut = x[: segments * length].reshape(segments, length, *x.shape[1:]).transpose(0, 1)
    # behind the segments: one for each unit state and one for none, all without input
    still = x.new_zeros(length, 1 + len(states), *x.shape[1:])
    cut = torch.cat([cut, still], 1)
    zero = torch.zeros_like(states[0])
    begun = [
        torch.stack([zero] * segments + [zero + (i == j) for j in range(len(states))] + [zero])
        for i in range(len(states))
    ]
    ends = torch.stack([*run(cut, begun)[1:]])  # [state, segment, …]
    if not bool(torch.isfinite(ends).all() & torch.isfinite(torch.stack([*states])).all()):
        return None
    rest, units, offset = ends[:, :segments], ends[:, segments:-1], ends[:, -1:]
    starts = _scan(units - offset, torch.cat([torch.stack([*states])[:, None], rest[:, :-1]], 1))
    y, *finals = run(cut, [torch.cat([own, own.new_zeros(still.shape[1:])]) for own in starts])
    y = y[:, :segments].transpose(0, 1).flatten(0, 1)
    final = [state[segments - 1] for state in finals]
    if len(y) == len(x):
        return [y, *final]
    last, *final = run(x[len(y) :], final)
    return [torch.cat([y, last]), *final]


def _scan(power: Tensor, values: Tensor) -> Tensor:
    """Σ_{i ≤ m} Aᵐ⁻ⁱ·valuesᵢ for every m, in log₂ rounds.

    Args:
        power: A, ``[state to, state from, …]``.
        values: ``[state, m, …]``.
    """
    shift = 1
    while shift < values.shape[1]:
        carried = (power[:, :, None] * values[None, :, :-shift]).sum(1)
        values = torch.cat([values[:, :shift], values[:, shift:] + carried], 1)
        power = (power[:, :, None] * power[None]).sum(1)
        shift *= 2
    return values
