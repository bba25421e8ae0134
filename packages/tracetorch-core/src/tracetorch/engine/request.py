"""What the engine is told: a pure step, what was declared of it, and tensors. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.declaration import Declaration
from tracetorch.engine.findings import Findings
from tracetorch.reasons import Reason


class Subject(NamedTuple):
    """What computes a timestep.

    Attributes:
        module: has the pure method ``step(states, x, p) → (new states by name, y)``, and whatever
            the step reads.
        declaration: its states and parameters.
        neurons: how many there are along ``dim``.
        dim: where they are in a timestep.
        findings: what the engine already knows of it.
    """

    module: nn.Module
    declaration: Declaration
    neurons: int
    dim: int
    findings: Findings


class Request(NamedTuple):
    """A sequence or a timestep to be computed.

    Attributes:
        subject: what computes it.
        x: ``[T, …]``, or one timestep ``[…]``, in the user's layout.
        states: at the start, in the order of the declaration, in the user's layout.
        parameters: effective parameters in that order, in the type of the states.
        real: that type.
        random: gives seed and count of its random numbers, if it draws any; asked once it is
            certain that it runs here, for a seed may have to be drawn.
        single: ``x`` is one timestep.
        recorded: names of states that are wanted after every timestep of a sequence.
        resets: before which timesteps which samples of a sequence restart, boolean ``[T, B]``.
        besides: why it does not run in a way of the module's own, where there is one.
    """

    subject: Subject
    x: Tensor
    states: list[Tensor]
    parameters: Sequence[Tensor]
    real: torch.dtype
    random: Callable[[], Tensor | None]
    single: bool
    recorded: tuple[str, ...] = ()
    resets: Tensor | None = None
    besides: Reason | None = None
