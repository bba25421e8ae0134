"""What `import tracetorch` costs over `import torch`: alternating fresh processes, medians.

Run: uv run python benchmarks/import_time.py [--runs 15]
Writes benchmarks/results/import_time.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "import_time.md"

# torch is imported first in both, so that disk caches and torch's own spread cancel
PROBE = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import tracetorch
print(middle - start, time.perf_counter() - middle, torch.__version__, tracetorch.__version__)
"""


def probe() -> list[str]:
    """One fresh process: seconds for torch, further seconds for tracetorch, versions."""
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    return done.stdout.split()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="fresh processes, after one to warm")
    runs = parser.parse_args().runs
    probe()
    measured = [probe() for _ in range(runs)]
    torch_s = sorted(float(row[0]) for row in measured)
    ours_s = sorted(float(row[1]) for row in measured)
    text = "\n".join(
        [
            "# Import time",
            "",
            f"`python benchmarks/import_time.py --runs {runs}`; {platform.processor() or 'CPU'}, "
            f"Python {platform.python_version()}, torch {measured[0][2]}, "
            f"tracetorch {measured[0][3]}.",
            "",
            "| import | median s | min s | max s |",
            "|---|---|---|---|",
            *(
                f"| {name} | {statistics.median(s):.3f} | {s[0]:.3f} | {s[-1]:.3f} |"
                for name, s in (("torch", torch_s), ("tracetorch, after torch", ours_s))
            ),
            "",
        ]
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
