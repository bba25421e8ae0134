"""Random models, calls and faults against the library, until the time is over.

``python tests/soak --minutes 60 --seed 0``. What fails is printed with the command that replays it
alone; a program also as short as it could be made. Exits with 1 where something failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))

import files
import kills
import leaks
import running
import shrinking
import torch
import workers
from programs import Program, program

FAULTS: dict[str, tuple[ModuleType, int]] = {
    "workers": (workers, 1),
    "kills": (kills, 40),
    "files": (files, 1000),
    "leaks": (leaks, 100_000),
}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def failing(one: Program) -> BaseException | None:
    """What is wrong with a program."""
    try:
        running.run(one)
    except Exception as error:
        return error
    return None


def check_program(seed: int, counts: Counter[str]) -> bool:
    """Whether the program of a seed is the same both ways; else it is told."""
    one = program(seed)
    error = failing(one)
    counts["programs"] += 1
    counts["calls"] += len(one.calls)
    if error is None:
        return True
    if one.dtype == "float32" and failing(dataclasses.replace(one, dtype="float64")) is None:
        counts["only in float32: rounding at a threshold"] += 1
        return True
    say(f"\nFAILED programs {seed}: {type(error).__name__}: {error}")
    if not isinstance(error, running.Failure):
        say("".join(traceback.format_exception(error)[-6:]))
    short = shrinking.shorter(one, lambda other: failing(other) is not None, 90)
    say(f"{short}\n# {failing(short)}\nREPLAY python tests/soak --only programs --seed {seed}\n")
    return False


def check_faults(kind: str, seed: int, count: int) -> bool:
    module, _ = FAULTS[kind]
    begun = time.monotonic()
    try:
        said = module.run(seed, count)
    except Exception:
        say(f"\nFAILED {kind} {seed}:\n{traceback.format_exc()}")
        say(f"REPLAY python tests/soak --only {kind} --seed {seed} --count {count}\n")
        return False
    say(f"{kind}: {said} ({time.monotonic() - begun:.0f} s)")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["programs", *FAULTS], help="one of the seed, alone")
    parser.add_argument("--count", type=int, help="how many of a fault")
    given = parser.parse_args()
    torch.set_num_threads(1)
    failures, counts = 0, Counter[str]()
    until = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="tracetorch-soak-") as kernels:
        os.environ["TRACETORCH_CACHE_DIR"] = kernels
        if given.only == "programs":
            say(str(program(given.seed)))
            failures += not check_program(given.seed, counts)
        elif given.only:
            count = given.count or FAULTS[given.only][1]
            failures += not check_faults(given.only, given.seed, count)
        else:
            # an hour has all of each fault; less has its part of it
            part = min(1.0, given.minutes / 60)
            for kind, (_, count) in FAULTS.items():
                failures += not check_faults(kind, given.seed, max(1, int(count * part)))
            seed = 1_000_000 * given.seed
            while time.monotonic() < until:
                failures += not check_program(seed, counts)
                seed += 1
    say(", ".join(f"{number} {name}" for name, number in counts.items()))
    say(f"{failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
