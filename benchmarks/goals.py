"""What must be reached, and whether it was, from the measured data alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import events, layers, memory, recording, recurrent, scaling, startup
from benchmarks.harness import OURS, Data, fastest_peer, increments, median
from benchmarks.peers import CHUNKED
from benchmarks.tables import ratio, table


@dataclass(frozen=True)
class Goal:
    """One row.

    Attributes:
        what: is measured.
        at_least: the goal.
        measured: what was found, in words.
        reached: whether; None where it was not measured.
    """

    what: str
    at_least: str
    measured: str = "not measured"
    reached: bool | None = None


def goals(data: Data) -> Iterator[Goal]:
    """Every goal, from the data by part."""
    for what, at_least, part, judge in ROWS:
        measured, reached = "not measured", None
        if part in data:
            measured, reached = judge(data[part])
        yield Goal(what, at_least, measured, reached)


Verdict = tuple[str, bool | None]
NO_PEER: Verdict = ("no peer installed", None)


def _times_the_fastest(compared: Data, least: float) -> Verdict:
    peer = fastest_peer(compared)
    if peer is None:
        return NO_PEER
    found = ratio(compared, peer)
    return f"{found:.2f}× ({peer})", found >= least


def _neuron(data: Data) -> Verdict:
    return _times_the_fastest(data["neuron"]["compared"], 10)


def _network(data: Data) -> Verdict:
    (entry,) = [entry for entry in data["network"] if entry["shape"] == data["goal"]]
    return _times_the_fastest(entry["compared"], 3)


def _copying(data: Data) -> Verdict:
    compared = data["copying"]["compared"]
    fresh, standing = (name for name in compared if name != OURS)

    def times(phase: str, name: str) -> float:
        return median(compared, OURS, phase) / median(compared, name, phase)

    forward, backward = times("forward", fresh), times("backward", fresh)
    strict = f"{times('forward', standing):.1f}× / {times('backward', standing):.1f}×"
    text = f"{forward:.2f}× / {backward:.2f}× into fresh memory ({strict} into standing memory)"
    return text, forward <= 3 and backward <= 5


def _largest(data: Data) -> Verdict:
    found = ratio(data["largest"], layers.EAGER)
    return f"{found:.1f}×", found >= 25


def _mean(data: Data) -> Verdict:
    found = data["geometric mean"]
    return f"{found:.1f}×", found >= 15


def _memory(data: Data) -> Verdict:
    peer = memory.leanest_peer(data)
    if peer is None:
        return NO_PEER
    found = {key: data["peaks"][key] for key in ("ours", *CHUNKED)}
    shares = {key: entry["bytes"] / peer["bytes"] for key, entry in found.items()}
    theirs = f"{peer['name']} {peer['bytes'] / 1e6:.0f} MB, at its lowest {peer['low'] / 1e6:.0f}"
    text = ", ".join(
        f"{shares[key]:.2f} {entry['name'].removeprefix(OURS).strip(', ')}".strip()
        + f" ({entry['bytes'] / 1e6:.0f} MB)"
        for key, entry in found.items()
    )
    return f"{text}; {theirs}", shares["ours"] <= 1 / 3


def _stepped(data: Data) -> Verdict:
    found = {kind: _times_the_fastest(data[kind], 1) for kind in ("training", "inference")}
    reached = [verdict for _, verdict in found.values()]
    text = "; ".join(f"{kind} {measured}" for kind, (measured, _) in found.items())
    return text, None if None in reached else all(reached)


def _recorded(data: Data) -> Verdict:
    found = {key: ratio(data[key], recording.RECORDED) for key in ("network", "layer")}
    text = f"Linear and layer {found['network']:.2f}×, the layer alone {found['layer']:.2f}×"
    return text, found["network"] <= 1.5


def _events(data: Data) -> Verdict:
    found = [events.at(data, rate) for rate in (events.SPARSE, events.HALF)]
    if not all(found):
        return "not measured", None
    text = " / ".join(f"{min(ratios):.2f}× to {max(ratios):.2f}×" for ratios in found)
    return text, min(found[0]) >= 2 and min(found[1]) >= 0.95


def _cells(data: Data) -> Verdict:
    found = {name: ratio(data["cells"][name], recurrent.TORCH) for name in ("LSTM", "GRU")}
    text = ", ".join(f"{name} {value:.2f}×" for name, value in found.items())
    return text, min(found.values()) >= 0.95


def _scan(data: Data) -> Verdict:
    return _times_the_fastest(data["scan"], 2)


def _scan_memory(data: Data) -> Verdict:
    scan = data["scan"]
    if "mambapy" not in scan:
        return NO_PEER
    own, other = (scan[key]["bytes"] for key in ("ssm", "mambapy"))
    return f"{own / other:.2f} ({own / 1e6:.0f} of {other / 1e6:.0f} MB)", own / other <= 1 / 3


def _time_per_step(data: Data) -> Verdict:
    return _constant([value * 1e6 for value in scaling.per_timestep(data["T"])], "µs")


def _memory_per_step(data: Data) -> Verdict:
    peaks = [entry["bytes"] / 1e3 for entry in data["of lengths"]]
    return _constant(increments(data["lengths"], peaks), "kB")


def _constant(costs: list[float], unit: str) -> Verdict:
    found = scaling.unevenness(costs)
    return f"{min(costs):.1f}–{max(costs):.1f} {unit}, {found:.0%} apart", found <= 0.2


def _first_call(data: Data) -> Verdict:
    cold, warm = startup.worst(data, "cold"), startup.worst(data, "warm")
    return f"{cold:.2f} s / {warm:.2f} s (the slowest layer)", cold <= 3 and warm <= 0.3


def _import(data: Data) -> Verdict:
    found = data["import"]["tracetorch"]["median"]
    return f"{found:.3f} s", found <= 0.15


Judge = Callable[[Data], Verdict]
ROWS: tuple[tuple[str, str, str, Judge], ...] = (
    ("LIB alone, forward + backward, against the fastest peer", "10×", "onm", _neuron),
    ("Open Neuromorphic workload, against the fastest peer", "3×", "onm", _network),
    ("DSRLITS against its own eager loop", "25×", "layers", _largest),
    ("geometric mean of the 32 layers against their eager loops", "15×", "layers", _mean),
    ("LIB forward / backward against moving its bytes", "≤ 3× / ≤ 5×", "onm", _copying),
    ("peak memory of a training step, against the leanest peer", "≤ 1/3", "memory", _memory),
    ("stepped loop, LIB, against the fastest peer's", "1×", "stepping", _stepped),
    ("forward pass with two states recorded, to without", "≤ 1.5×", "recording", _recorded),
    ("linear layer by events at 5 % / 50 % of spikes, to dense", "2× / 0.95×", "events", _events),
    ("LSTM, GRU unrolled against torch.nn", "0.95×", "recurrent", _cells),
    ("SelectiveSSM training step against mambapy", "2×", "recurrent", _scan),
    ("SelectiveSSM peak memory against mambapy", "≤ 1/3", "memory", _scan_memory),
    ("time per added timestep, T = 100 → 10 000", "within 20 %", "scaling", _time_per_step),
    ("memory per added timestep, T = 100 → 10 000", "within 20 %", "memory", _memory_per_step),
    ("first call of a new layer, cold / cached", "≤ 3 s / ≤ 0.3 s", "startup", _first_call),
    ("`import tracetorch` over `import torch`", "≤ 0.15 s", "startup", _import),
)


def render(data: Data) -> str:
    """As a table."""
    words = {True: "yes", False: "**no**", None: "–"}
    rows = [[g.what, g.at_least, g.measured, words[g.reached]] for g in goals(data)]
    return table(["what", "goal", "measured", "reached"], rows)
