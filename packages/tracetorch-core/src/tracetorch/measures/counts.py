"""Synaptic operations as numbers, and the energy that they take. Knows no module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tracetorch.measures.arguments import checked_amount


class Count(NamedTuple):
    """How many synaptic operations there are; counts are added by ``+``.

    Attributes:
        dense: multiply-accumulates of hardware that skips nothing: one for each connection and
            timestep.
        macs: multiply-accumulates that have to be done: weights and activations that are not
            zero, activations other than -1 and 1.
        acs: accumulates that have to be done: weights that are not zero, activations -1 and 1.

    Example:
        >>> Count(6, 1, 2) + Count(4, 0, 1)
        Count(dense=10, macs=1, acs=3)
    """

    dense: int = 0
    macs: int = 0
    acs: int = 0

    def __add__(self, other: object) -> Count:
        """Both together."""
        if not isinstance(other, Count):
            return NotImplemented
        return Count(self.dense + other.dense, self.macs + other.macs, self.acs + other.acs)


@dataclass(frozen=True)
class Operations:
    """The synaptic operations of a model over a batch of sequences; batches are added by ``+``.

    Attributes:
        rows: the count of each module by its qualified name, over all timesteps and samples.
        samples: how many samples there were; ``total.dense / samples`` is what a sequence takes.
        timesteps: how many timesteps of them counted, all samples together.
        uncounted: names of modules with weights that it is not known how to count.

    Example:
        >>> one = Operations({"fc": Count(6, 1, 2)}, samples=1, timesteps=3)
        >>> (one + one).total
        Count(dense=12, macs=2, acs=4)
    """

    rows: Mapping[str, Count]
    samples: int
    timesteps: int
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> Count:
        """Of all modules."""
        return sum(self.rows.values(), Count())

    def __add__(self, other: Operations) -> Operations:
        """Of both batches."""
        if not isinstance(other, Operations):
            return NotImplemented
        names = dict.fromkeys([*self.rows, *other.rows])
        none = Count()
        return Operations(
            {name: self.rows.get(name, none) + other.rows.get(name, none) for name in names},
            self.samples + other.samples,
            self.timesteps + other.timesteps,
            tuple(dict.fromkeys([*self.uncounted, *other.uncounted])),
        )


@dataclass(frozen=True)
class EnergyConstants:
    """What one operation takes, in joule.

    Attributes:
        mac: of a multiply-accumulate, at least 0.
        ac: of an accumulate, at least 0.

    Raises:
        TypeError: a constant is no number.
        ValueError: it is negative or not finite.

    Example:
        >>> EnergyConstants(mac=1e-12, ac=1e-13)
        EnergyConstants(mac=1e-12, ac=1e-13)
    """

    mac: float
    ac: float

    def __post_init__(self) -> None:
        for name, value in (("mac", self.mac), ("ac", self.ac)):
            checked_amount("EnergyConstants", name, value)


HOROWITZ_45NM = EnergyConstants(mac=4.6e-12, ac=0.9e-12)
"""A 45 nm chip at 0.9 V with numbers of 32-bit floating point, for operations alone: a
multiplication takes 3.7 pJ, an addition 0.9 pJ.

Source: Horowitz, Computing's Energy Problem (and What We Can Do About It), ISSCC 2014.
"""


def energy(operations: Count | Operations, constants: EnergyConstants = HOROWITZ_45NM) -> float:
    """The energy of the effective operations: each kind times its constant.

    Memory, which takes more than arithmetic on most hardware, is not in it.

    Args:
        operations: of a model over a batch, or a count of one module.
        constants: joule per operation; those of a 45 nm chip by default.

    Returns:
        Joule, for all that was counted.

    Raises:
        TypeError: ``operations`` is neither.

    Example:
        >>> f"{energy(Count(dense=100, macs=10, acs=20)):.3g}"
        '6.4e-11'

    Source: Horowitz, ISSCC 2014, for the constants.
    """
    if not isinstance(operations, (Count, Operations)):
        raise TypeError(
            f"energy: operations must be a Count or Operations, got a {type(operations).__name__}"
        )
    count = operations.total if isinstance(operations, Operations) else operations
    return count.macs * constants.mac + count.acs * constants.ac
