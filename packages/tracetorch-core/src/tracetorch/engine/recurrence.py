"""Recurrences within a layer: elementwise in channels, fused like a layer's ``step``.

What :class:`~tracetorch.engine.scan.Scan` is to outputs that are summed over states, a
:class:`Recurrence` is to those that are not. A layer whose sequence goes through several of them
hands states, input and parameters to each; they are its own, and nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tracetorch import constraints
from tracetorch.declaration import Declaration
from tracetorch.engine import serving
from tracetorch.engine.findings import Findings
from tracetorch.engine.request import Request, Subject
from tracetorch.modules import Bookkeeping
from tracetorch.numbering import number
from tracetorch.parameters import ParameterSpec
from tracetorch.states import StateSpec

Step = Callable[[Any, Tensor, Any], tuple[Mapping[str, Tensor], Tensor]]


class Recurrence(Bookkeeping):
    """An elementwise timestep over channels, for whole sequences in one kernel.

    Args:
        step: ``(states, x, p) → (new states by name, y)`` as a layer's, pure, a function of a
            module. Shared with what is copied, pickled by its name.
        channels: size of the last dimension of everything.
        states: their names.
        parameters: likewise, each of one value per channel.

    Example:
        >>> import torch
        >>> def leaky(states, x, p):
        ...     mem = p.decay * states.mem + x
        ...     return {"mem": mem}, torch.tanh(mem)
        >>> recurrence = Recurrence(leaky, 2, states=("mem",), parameters=("decay",))
        >>> mem, decay = torch.zeros(1, 2), torch.tensor([0.5, 1.0])
        >>> (mem,), y = recurrence.sequence([mem], torch.ones(3, 1, 2), [decay])
        >>> mem, y.shape
        (tensor([[1.7500, 3.0000]]), torch.Size([3, 1, 2]))
    """

    def __init__(
        self, step: Step, channels: int, states: Sequence[str], parameters: Sequence[str]
    ) -> None:
        self._made_of = step, channels, tuple(states), tuple(parameters)
        declaration = Declaration()
        declaration.states |= {name: StateSpec((channels,)) for name in states}
        identity = constraints.identity
        declaration.parameters |= {
            name: ParameterSpec(name, name, identity, (channels,)) for name in parameters
        }
        declaration.complete()
        findings = Findings(number(self, _subject_of))
        kind = type(step.__name__, (_Stepped,), {})  # by which the log knows it
        self.subject = Subject(kind(step), declaration, channels, -1, findings)

    def sequence(
        self,
        states: Sequence[Tensor],
        x: Tensor,
        parameters: Sequence[Tensor],
        resets: Tensor | None = None,
    ) -> tuple[Sequence[Tensor], Tensor] | None:
        """All timesteps in one kernel; None where they have to be stepped, which is said.

        Args:
            states: to begin with, ``[…, channels]``, in order.
            x: ``[T, …, channels]``, in the type of the states.
            parameters: ``[channels]``, in order, in that type.
            resets: before which timesteps which samples restart, boolean ``[T, B]``; B is the first
                dimension of a state.

        Returns:
            The last states and y ``[T, …, channels]``.

        Raises:
            BackendError: a backend was asked for by name, and cannot take it.
        """
        request = Request(self.subject, x, [*states], parameters, x.dtype, _nothing, single=False)
        answer = serving.unroll(request._replace(resets=resets))
        return None if answer is None else (answer.states, answer.y)

    def renewed(self) -> Recurrence:
        """Itself: it keeps nothing of what it is used for."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Recurrence:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of


class _Stepped(nn.Module):
    """What the engine takes a step from."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        return self.function(states, x, p)

    def __repr__(self) -> str:
        return f"the recurrence {self.function.__name__}"


def _subject_of(recurrence: Recurrence) -> Subject:
    return recurrence.subject


def _nothing() -> None:
    """The seed of a recurrence that draws no random numbers."""
