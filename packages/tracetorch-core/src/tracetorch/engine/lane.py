"""Timestep after timestep through one kernel: what they have in common is found out once.

The kernel of a single timestep takes less time than to find out that it may run. So what a step
was served by is kept, with all that it was served for; the next one only has to be like it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tracetorch import mode
from tracetorch.engine import operators
from tracetorch.engine.aside import NOTHING
from tracetorch.engine.operators import Served
from tracetorch.engine.reads import Reads
from tracetorch.engine.request import Request


class Lane:
    """Single timesteps of one kind on the CPU, of a step that draws no random numbers.

    Args:
        by: what serves them.
        reads: what the step has read.
        request: the one that it was found for.
    """

    def __init__(self, by: Served, reads: Reads, request: Request) -> None:
        x, parameters = request.x, request.parameters
        self._by, self._last, self._dim = by, reads.last, request.subject.dim
        self._shape, self._stored, self._real = x.shape, x.dtype, request.real
        self._shapes = [parameter.shape for parameter in parameters]
        self._flags, self._differentiates = by.plan.flags, any(by.plan.flags)
        self._sizes = by.plan.sizes(x.shape, True, [len(shape) for shape in self._shapes])

    def fits(
        self, dim: int, x: Tensor, states: Iterable[Tensor | None], parameters: Sequence[Tensor]
    ) -> bool:
        """Whether a timestep is of this kind, whatever x and the states are."""
        plain, shape, real = mode.PLAIN, self._shape, self._real
        if not (
            type(x) in plain
            and x.shape == shape
            and x.dtype is self._stored
            and x.is_cpu
            and x.is_contiguous()
            and not x.is_neg()
            and dim == self._dim
        ):
            return False
        through = False
        for state in states:
            if not (
                type(state) is Tensor
                and state.shape == shape
                and state.dtype is real
                and state.is_cpu
                and state.is_contiguous()
                and not state.is_inference()
                and not mode.is_wrapped(state)
            ):
                return False
            through = through or state.requires_grad
        own = [x.requires_grad]
        for parameter, expected in zip(parameters, self._shapes, strict=True):
            if not (
                type(parameter) in plain
                and parameter.shape == expected
                and parameter.dtype is real
                and parameter.is_cpu
                and parameter.is_contiguous()
            ):
                return False
            own.append(parameter.requires_grad)
        if torch.is_grad_enabled():
            through = through or True in own
            count = len(self._flags) - len(own)
            flags = (own[0], *[through] * count, *own[1:])
        else:
            flags = (False,) * len(self._flags)
        return flags == self._flags and self._last()

    def run(
        self, x: Tensor, states: Iterable[Tensor], parameters: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The output and the new states of a timestep that fits."""
        if self._differentiates:
            return operators.run(self._by, x, [*states], parameters, NOTHING, single=True)
        return self._by.plan.timestep(x, [*states], parameters, self._sizes)
