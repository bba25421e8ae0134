"""Event-driven linear layers: a compiled model of one, with and without, by how many fire."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
import tracetorch as tt
from torch import Tensor, nn

from benchmarks.effort import Context
from benchmarks.harness import OURS, TOTAL, Contender, Data, Rounds, Seconds, compare, median, now
from benchmarks.tables import ratio, table

TITLE = "Event-driven linear layers"
ABOUT = """\
A call, without gradients, of a `tt.Model` that holds one `nn.Linear` N → N: how many times as long
it takes after `TTcompile()`, dense, as after `TTcompile(events=True)`; both in turn, so that each
finds the caches as the other left them. Inputs are 0 and 1, and the columns say what share is 1."""

DENSE = "dense"
RATES = (0.05, 0.2, 0.5, 1.0)
SPARSE, HALF = 0.05, 0.5
WIDTHS, BATCHES = (512, 1024, 2048, 4096), (1, 16)
# timesteps times samples, folded, for these widths
FOLDED, FOLDED_WIDTHS = 1600, (512, 1024)
_LONG_ENOUGH = 1e-3  # seconds that are timed at a time


class Network(tt.Model):
    """A linear module alone."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.linear = nn.Linear(neurons, neurons)

    def forward(self, x: Tensor) -> Tensor:
        """One timestep."""
        y: Tensor = self.linear(x)
        return y


def measure(context: Context) -> Data:
    """Every size with one thread, and with all."""
    tiny = context.effort.processes == 1
    rounds = Rounds(2, 2) if tiny else Rounds(7, 25, 0.5)
    before, entries = torch.get_num_threads(), []
    try:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            for neurons, batch in sizes(tiny=tiny):
                found = {str(rate): compared(neurons, batch, rate, rounds) for rate in RATES}
                entries.append(
                    {"threads": threads, "neurons": neurons, "batch": batch, "rates": found}
                )
    finally:
        torch.set_num_threads(before)
    return {"entries": entries}


def sizes(*, tiny: bool) -> Iterator[tuple[int, int]]:
    """N and B."""
    if tiny:
        yield 256, 2
        return
    for neurons in WIDTHS:
        yield from ((neurons, batch) for batch in BATCHES)
    yield from ((neurons, FOLDED) for neurons in FOLDED_WIDTHS)


def compared(neurons: int, batch: int, rate: float, rounds: Rounds) -> Data:
    """With events and without; their outputs are compared before."""
    dense, driven = Network(neurons), Network(neurons)
    driven.load_state_dict(dense.state_dict())
    dense.TTcompile()
    driven.TTcompile(events=True)
    x = (torch.rand(batch, neurons) < rate).float()
    with torch.no_grad():
        torch.testing.assert_close(driven(x), dense(x), rtol=1e-4, atol=1e-4)
    times = _times(dense, x)
    return compare(
        [Contender(OURS, _calls(driven, x, times)), Contender(DENSE, _calls(dense, x, times))],
        rounds,
    )


def _times(model: tt.Model, x: Tensor) -> int:
    """How many calls are timed at once."""
    call = _calls(model, x, 1)
    return max(1, int(_LONG_ENOUGH / min(call()[TOTAL] for _ in range(3))))


def _calls(model: tt.Model, x: Tensor, times: int) -> Callable[[], Seconds]:
    def measured() -> Seconds:
        with torch.no_grad():
            start = now()
            for _ in range(times):
                model(x)
            return {TOTAL: (now() - start) / times}

    return measured


def at(data: Data, rate: float) -> list[float]:
    """Ratios of the sizes that the goals are about."""
    return [
        ratio(entry["rates"][str(rate)], DENSE)
        for entry in data["entries"]
        if entry["batch"] in BATCHES and entry["neurons"] in WIDTHS
    ]


def render(data: Data) -> str:
    """The table."""
    header = ["threads", "N", "B", "dense, µs", *(f"{100 * rate:g} %" for rate in RATES)]
    rows = []
    for entry in data["entries"]:
        rates = entry["rates"].values()
        dense = sorted(median(found, DENSE) for found in rates)[len(rates) // 2]
        row = [entry[key] for key in ("threads", "neurons", "batch")]
        rows.append([*row, f"{1e6 * dense:.3g}", *map(_ratio, rates)])
    return "\n\n".join([ABOUT, table(header, rows)])


def _ratio(found: Data) -> str:
    """Of medians, and of the quartiles that are worst and best for us."""
    dense, ours = (found[name]["phases"][TOTAL] for name in (DENSE, OURS))
    low, high = dense["low"] / ours["high"], dense["high"] / ours["low"]
    return f"{ratio(found, DENSE):.2f} ({low:.2f}–{high:.2f})"
