"""Times what the README's table says, as rows of it: ``python timings.py``. Best of three."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tracetorch import plot


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """A row for each case: what is drawn, and the seconds until its file is written."""
    rng = np.random.default_rng(0)
    file = Path(tempfile.mkdtemp()) / "figure"
    png, gif = file.with_suffix(".png"), file.with_suffix(".gif")
    large = (rng.random((10_000, 5_000), dtype=np.float32) < 0.02).astype(np.float32)
    few = large[:1000, :900]
    values = rng.standard_normal((10_000, 5_000), dtype=np.float32)
    maps = rng.random((100, 1, 16, 14, 14), dtype=np.float32)
    row = {"name": "a", "kind": "LIB", "input": (1, 8), "output": (1, 8), "parameters": 8}
    summary = SimpleNamespace(rows=[SimpleNamespace(**row, rate=0.1)] * 20)
    cases: dict[str, Callable[[], object]] = {
        "`raster`, 10 000 timesteps × 5 000 neurons, 10⁶ spikes": lambda: plot.raster(
            large
        ).figure.savefig(png),
        "`raster`, 18 000 spikes as marks": lambda: plot.raster(few).figure.savefig(png),
        "`heatmap`, 1 000 × 5 000": lambda: plot.heatmap(values[:1000]).figure.savefig(png),
        "`heatmap`, 10 000 × 5 000": lambda: plot.heatmap(values).figure.savefig(png),
        "`traces`, 10 000 × 5 000, as quantiles": lambda: plot.traces(values).figure.savefig(png),
        "`activity`, 10 000 × 5 000": lambda: plot.activity(large, values).savefig(png),
        "`network`, 20 layers": lambda: plot.network(summary).figure.savefig(png),
        "`animate`, a raster of 200 × 100, 100 frames": lambda: plot.animate(
            large[:200, :100], gif
        ),
        "`animate`, 16 maps of 14 × 14, 100 frames": lambda: plot.animate(maps, gif),
    }
    for name, run in cases.items():
        sys.stdout.write(f"| {name} | {best(run):.2f} s |\n")


if __name__ == "__main__":
    main()
