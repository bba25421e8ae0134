"""How much is measured: everything, or a little of everything to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.harness import Rounds
from benchmarks.legacy import Worker


@dataclass(frozen=True)
class Effort:
    """Sizes and repetitions.

    Attributes:
        rounds: of the comparisons that goals hang on.
        brief: rounds of those that are many.
        timesteps: T where nothing else is said.
        scan: T of the selective scan.
        neurons: N of the Open Neuromorphic workload.
        goal: the one of them that the goals are about.
        lengths: T of the scaling in T.
        widths: N of the scaling in N.
        batches: B of the scaling in B.
        processes: fresh processes of each kind.
    """

    rounds: Rounds = field(default_factory=lambda: Rounds(7, 25, 12.0))
    brief: Rounds = field(default_factory=lambda: Rounds(3, 9, 1.5))
    timesteps: int = 500
    scan: int = 512
    neurons: tuple[int, ...] = (256, 512, 1024, 4096)
    goal: int = 512
    lengths: tuple[int, ...] = (100, 300, 1000, 3000, 10_000)
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    processes: int = 3


FULL = Effort()
TINY = Effort(
    rounds=Rounds(2, 2),
    brief=Rounds(1, 1),
    timesteps=30,
    scan=32,
    neurons=(32, 64),
    goal=64,
    lengths=(10, 30, 100),
    widths=(16, 64),
    batches=(1, 4),
    processes=1,
)


@dataclass(frozen=True)
class Context:
    """What a part needs to measure.

    Attributes:
        effort: sizes and repetitions.
        peers: keys of the installed peers.
        worker: the process with tracetorch 0.16.4, where there is one.
    """

    effort: Effort
    peers: tuple[str, ...]
    worker: Worker | None = None
