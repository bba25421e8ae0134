"""What one direction of one layer computes: said once for every target language."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from tracetorch.engine.aside import RESETS
from tracetorch.engine.trace import Traced
from tracetorch.randomness import RANDOM


@dataclass(frozen=True, eq=False)
class Kernel:
    """One direction of one layer, in which types, and the order in which it takes its tensors.

    Attributes:
        traced: the timestep.
        real: the type of states, parameters and arithmetic.
        stored: the type of input and output in memory.
        wanted: gradients to compute, as names of ``traced.backward``; empty for the forward pass
            of a sequence that needs none.
        backward: which direction.
        recorded: the states that are given out after every timestep.
    """

    traced: Traced
    real: torch.dtype
    stored: torch.dtype
    wanted: tuple[str, ...]
    backward: bool
    recorded: tuple[str, ...] = ()

    @cached_property
    def remembered(self) -> tuple[str, ...]:
        """States kept every :attr:`period` timesteps, from which the backward pass recomputes."""
        return self.traced.remembered(self.wanted)

    @property
    def period(self) -> int:
        """Timesteps between two kept states."""
        return 32 if len(self.remembered) <= 2 else 16

    @property
    def pointers(self) -> tuple[str, ...]:
        """What each pointer leads to, in order.

        Sequences ``[T, L]`` of ``stored``, states ``[L]``, recorded ones ``[T, L]``, kept ones
        ``[ceil(T / period), L]``, parameters ``[neurons]`` or one value; ``grad x`` is a sequence,
        gradients of states are as these, those of parameters as the parameters; each of the latter
        has a ``lanes grad`` ``[L]`` to be summed from. Where random numbers are drawn, their seed
        and count ``[2]``; which samples restart before which timesteps, ``[T, samples]``, or null.
        """
        aside = (RANDOM, RESETS) if self.traced.random else (RESETS,)
        states, kept = self.traced.states, [f"kept {name}" for name in self.remembered]
        if not self.backward:
            ends = [f"new {name}" for name in states]
            ends += [f"every {name}" for name in self.recorded]
            return ("x", "y", *states, *ends, *kept, *self.traced.parameters, *aside)
        ends = [f"grad new {name}" for name in states]
        ends += [f"grad every {name}" for name in self.recorded]
        lanes = [f"lanes {name}" for name in self.summed]
        return ("x", "grad y", *ends, *kept, *self.traced.parameters, *self.wanted, *lanes, *aside)

    @property
    def sizes(self) -> int:
        """How many sizes it takes: T, L, neurons, lanes between two; a parameter's; a sample's."""
        return 4 + len(self.traced.parameters) + 1

    @cached_property
    def summed(self) -> tuple[str, ...]:
        """The wanted gradients of parameters: sums over lanes."""
        parameters = {f"grad {name}" for name in self.traced.parameters}
        return tuple(name for name in self.wanted if name in parameters)

    def type_of(self, label: str) -> torch.dtype:
        """The type in memory of what a pointer leads to."""
        if label == RANDOM:
            return torch.int64
        if label == RESETS:
            return torch.uint8
        return self.stored if label in ("x", "y", "grad x", "grad y") else self.real
