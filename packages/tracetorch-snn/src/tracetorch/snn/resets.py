"""What a spike does to the membrane: takes its threshold off, puts it to a value, or nothing.

A reset is one tensor that is due, made where the membrane fires, and what it does to the membrane,
at once or with the next timestep. Written once for single and dual membranes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from tracetorch.snn.firing import Fired


@dataclass(frozen=True)
class Reset:
    """One kind of reset; made by the functions of this module.

    Attributes:
        delayed: it reaches the membrane with the next timestep, once that has leaked and its input
            has come. Until then the state ``due`` holds it.
        detach: no gradient goes through it.

    Source: one tensor, made where a neuron fires, acts on its membrane: mem ← apply(mem, due).

    Example:
        >>> from tracetorch import snn
        >>> snn.LIB(2, reset=snn.resets.to(0.0, detach=True))
        LIB(2, beta=0.9, threshold=1, dim=-1, reset=to(0.0, detach=True))
    """

    delayed: bool
    detach: bool

    def due(self, fired: Fired) -> Tensor:
        """What a timestep leaves to be done, ``[…, N]``.

        Args:
            fired: what the membrane did in it.
        """
        due = self._due(fired)
        return due.detach() if self.detach else due

    def _due(self, fired: Fired) -> Tensor:
        return fired.taken

    def apply(self, membrane: Sequence[Tensor], due: Tensor) -> list[Tensor]:
        """The membrane after it.

        Args:
            membrane: its halves, or the whole one, each ``[…, N]``.
            due: of :meth:`due`, ``[…, N]``.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        flags = [f"{name}=True" for name in ("delayed", "detach") if getattr(self, name)]
        return f"{type(self).__name__[1:].lower()}({', '.join([*self._shown(), *flags])})"

    def _shown(self) -> list[str]:
        return []


@dataclass(frozen=True, repr=False)
class _Subtract(Reset):
    """mem ← mem − s·θ, half of it from either half of a dual membrane."""

    def apply(self, membrane: Sequence[Tensor], due: Tensor) -> list[Tensor]:
        """Each half less its part of what is taken."""
        return [half - due / len(membrane) for half in membrane]


@dataclass(frozen=True, repr=False)
class _To(Reset):
    """mem ← (1 − s)·mem + s·value, with |s| of a ternary spike."""

    value: float

    def _due(self, fired: Fired) -> Tensor:
        return fired.number

    def apply(self, membrane: Sequence[Tensor], due: Tensor) -> list[Tensor]:
        """The halves of those that fired become those of the value."""
        kept = [(1 - due) * half for half in membrane]
        return [half + due * (self.value / len(kept)) for half in kept] if self.value else kept

    def _shown(self) -> list[str]:
        return [repr(self.value)]


@dataclass(frozen=True, repr=False)
class _Never(Reset):
    """The membrane goes on."""

    def apply(self, membrane: Sequence[Tensor], due: Tensor) -> list[Tensor]:
        """As they are."""
        del due
        return list(membrane)


def subtract(*, delayed: bool = False, detach: bool = False) -> Reset:
    """A spike takes the threshold off the membrane: mem ← mem − s·θ.

    What was above the threshold stays, so that the rate of spikes is proportional to the input.

    Args:
        delayed: with the next timestep: mem ← β·mem + i − s[t−1]·θ.
        detach: no gradient goes through s·θ.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> neuron = snn.LIB(1, 0.5, 1.0, reset=snn.resets.subtract(delayed=True))
        >>> [neuron(torch.tensor([1.5])).item() for _ in range(3)], neuron.mem.item()
        ([1.0, 1.0, 1.0], 1.125)

    Source: Rueckauer et al., Conversion of continuous-valued deep networks to efficient
    event-driven networks for image classification, Frontiers in Neuroscience 11, 2017.
    """
    return _Subtract(_flag("delayed", delayed), _flag("detach", detach))


def to(value: float = 0.0, *, delayed: bool = False, detach: bool = False) -> Reset:
    """A spike puts the membrane to a value: mem ← (1 − s)·mem + s·value.

    Args:
        value: finite; the same for the negative spikes of a ternary layer.
        delayed: with the next timestep, whose own input is then lost.
        detach: no gradient goes through s.

    Raises:
        ValueError: the value is not finite.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> neuron = snn.LIB(1, 0.5, 1.0, reset=snn.resets.to(-0.5))
        >>> [neuron(torch.tensor([1.5])).item() for _ in range(3)], neuron.mem.item()
        ([1.0, 1.0, 1.0], -0.5)

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 1.3, equation 1.7.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"resets.to: value must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"resets.to: value must be finite, got {value!r}")
    return _To(_flag("delayed", delayed), _flag("detach", detach), float(value))


def never() -> Reset:
    """A spike leaves the membrane as it is.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> neuron = snn.LIB(1, 0.5, 1.0, reset=snn.resets.never())
        >>> [neuron(torch.tensor([1.5])).item() for _ in range(3)], neuron.mem.item()
        ([1.0, 1.0, 1.0], 2.625)

    Source: mem ← mem.
    """
    return _Never(delayed=False, detach=False)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"a reset's {name} must be True or False, got {value!r}")
    return value
