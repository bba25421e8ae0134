"""The figure of the report, from the measured data alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import layers
from benchmarks.harness import OURS, Data, median
from benchmarks.tables import ratio

OWN, OTHERS, LOOPS = "tab:orange", "tab:blue", "tab:gray"


def draw(data: Data, file: Path) -> None:
    """Every panel there is data for, two in a row."""
    there = [(part, panel) for part, panel in PANELS if part in data]
    if not there:
        return
    rows = -(-len(there) // 2)
    figure = Figure(figsize=(13, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for ax, (part, panel) in zip(axes, there, strict=False):
        panel(ax, data[part])
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(there) :]:
        ax.remove()
    figure.suptitle("Training steps: forward and backward")
    figure.savefig(file, dpi=120)


def _network(ax: Axes, data: Data) -> None:
    (entry,) = [entry for entry in data["network"] if entry["shape"] == data["goal"]]
    _times(ax, entry["compared"], f"Linear and LIF, {entry['shape']}: ms")


def _neuron(ax: Axes, data: Data) -> None:
    shape = data["neuron"]["shape"]
    _times(ax, data["neuron"]["compared"], f"LIF alone, {shape}: ms")


def _stepped(ax: Axes, data: Data) -> None:
    _times(ax, data["training"], f"LIF stepped, {data['shape']}: ms")


def _times(ax: Axes, compared: Data, title: str) -> None:
    """A bar a contender, the slowest above, with its quartiles."""
    names = sorted(compared, key=lambda name: median(compared, name))
    totals = [compared[name]["phases"]["total"] for name in names]
    centers = [1e3 * total["median"] for total in totals]
    below = [1e3 * (total["median"] - total["low"]) for total in totals]
    above = [1e3 * (total["high"] - total["median"]) for total in totals]
    colors = [_color(name, compared[name]["peer"]) for name in names]
    bars = ax.barh(names, centers, xerr=(below, above), color=colors, ecolor="0.3")
    ax.bar_label(bars, [f"{center:.3g}" for center in centers], padding=6)
    ax.margins(x=0.12)
    ax.set_title(title)


def _color(name: str, peer: bool) -> str:
    return OWN if name == OURS else OTHERS if peer else LOOPS


def _thirty_two(ax: Axes, data: Data) -> None:
    ratios = {name: ratio(entry, layers.EAGER) for name, entry in data["compared"].items()}
    ax.bar(list(ratios), list(ratios.values()), color=OWN)
    ax.axhline(data["geometric mean"], color="0.3", linestyle="--")
    ax.tick_params(axis="x", rotation=90)
    ax.set_title(f"The 32 layers: eager time ÷ fused; mean {data['geometric mean']:.1f}")


def _lengths(ax: Axes, data: Data) -> None:
    colors = {OURS: OWN, "plain loop": LOOPS}
    measured = [
        ({**entry["others"], **entry["compared"]}, entry["timesteps"]) for entry in data["T"]
    ]
    names = dict.fromkeys(name for found, _ in reversed(measured) for name in found)
    for name in names:
        lengths = [timesteps for found, timesteps in measured if name in found]
        times = [1e3 * median(found, name) for found, _ in measured if name in found]
        ax.loglog(lengths, times, "o-", label=name, color=colors.get(name, OTHERS))
    ax.set_xlabel("timesteps")
    ax.set_title(f"LIF alone, B={data['T'][0]['batch']}, N={data['T'][0]['neurons']}: ms")
    ax.legend(frameon=False)


def _peaks(ax: Axes, data: Data) -> None:
    entries = sorted(data["peaks"].values(), key=lambda entry: entry["bytes"])
    names = [entry["name"] for entry in entries]
    colors = [_color(entry["name"], entry["peer"]) for entry in entries]
    bars = ax.barh(names, [entry["bytes"] / 1e6 for entry in entries], color=colors)
    ax.bar_label(bars, fmt="%.0f", padding=4)
    ax.margins(x=0.12)
    ax.set_title(f"Peak memory, Linear and LIF, {data['shape']}: MB")


Panel: TypeAlias = Callable[[Axes, Data], None]
PANELS: tuple[tuple[str, Panel], ...] = (
    ("onm", _network),
    ("onm", _neuron),
    ("layers", _thirty_two),
    ("scaling", _lengths),
    ("memory", _peaks),
    ("stepping", _stepped),
)
