"""All 32 layers of ``tracetorch.snn`` against their own eager loops."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import snn

from benchmarks.effort import Context
from benchmarks.harness import OURS, Contender, Data, Rounds, applied, compare, training
from benchmarks.peers import eager
from benchmarks.tables import comparison, milliseconds, ratio, table
from benchmarks.workload import TOLERATED, Shape, cotangent

TITLE = "The 32 layers against their own eager loops"
ABOUT = """\
`layer.unroll(x)`, forward and backward, with the engine and with `tt.backends.use("eager")`.
Outputs are compared before anything is timed."""
EAGER = "eager loop"
LARGEST = "DSRLITS"


def measure(context: Context) -> Data:
    """Every layer, and the largest of them with more rounds at the goals' length."""
    shape = Shape(max(10, context.effort.timesteps // 2))
    largest = Shape(context.effort.timesteps)
    every = {
        cls.__name__: against_eager(cls(shape.neurons), shape, context.effort.brief)
        for cls in snn.LAYERS
    }
    return {
        "shape": str(shape),
        "compared": every,
        "geometric mean": geometric_mean(every),
        "largest shape": str(largest),
        "largest": against_eager(snn.DSRLITS(largest.neurons), largest, context.effort.rounds),
    }


def against_eager(
    layer: tt.Layer, shape: Shape, rounds: Rounds, run: Callable[[Tensor], Tensor] | None = None
) -> Data:
    """One layer, fused and eager: outputs compared, then timed; ``run``: another way to unroll."""
    run = run or layer.unroll
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    runs = {OURS: run, EAGER: eager(run)}
    _check(layer, [_outputs(layer, run, x) for run in runs.values()])
    leaves = [x, *layer.parameters()]
    contenders = []
    for name, run in runs.items():
        timed = training(applied(run, x), cotangent(shape), leaves, layer.zero_states)
        contenders.append(Contender(name, timed))
    return compare(contenders, rounds)


def _outputs(layer: tt.Layer, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    layer.zero_states()
    with torch.no_grad():
        return run(x)


def _check(layer: tt.Layer, outputs: Sequence[Tensor]) -> None:
    got, expected = outputs
    share = (~torch.isclose(got, expected, rtol=1e-4, atol=1e-5)).float().mean().item()
    if share > TOLERATED:
        raise ValueError(f"{layer!r}: {share:.2%} of the fused outputs are not those of its step")


def geometric_mean(compared: Data) -> float:
    """Of the ratios eager ÷ fused."""
    return statistics.geometric_mean(ratio(entry, EAGER) for entry in compared.values())


def render(data: Data) -> str:
    """One row a layer, then the largest in full."""
    rows = [
        [
            f"`{name}`",
            milliseconds(entry[OURS]["phases"]["total"]),
            milliseconds(entry[EAGER]["phases"]["total"]),
            f"{ratio(entry, EAGER, 'forward'):.1f}",
            f"{ratio(entry, EAGER, 'backward'):.1f}",
            f"**{ratio(entry, EAGER):.1f}**",
        ]
        for name, entry in data["compared"].items()
    ]
    header = ["layer", "fused, ms", "eager, ms", "forward ×", "backward ×", "both ×"]
    mean = f"Geometric mean of the last column: **{data['geometric mean']:.1f}**."
    largest = [f"### `{LARGEST}`, {data['largest shape']}", comparison(data["largest"])]
    return "\n\n".join([f"{ABOUT} {data['shape']}.", table(header, rows), mean, *largest])
