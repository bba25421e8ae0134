"""A layer's parameters: value, rank, learnability, constraint. Knows no layer.

What a user gives (a number or a tensor) becomes the raw tensor that is stored; what is stored
is read back through the constraint.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.constraints import Constraint, identity


@dataclass(frozen=True)
class ParameterSpec:
    """How one parameter is stored: under ``raw_name``, read through ``constraint``."""

    name: str
    raw_name: str
    constraint: Constraint
    shape: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether the effective value is the raw one."""
        return self.constraint.forward is identity.forward

    @property
    def derived(self) -> bool:
        """Whether the plain name is computed from a tensor stored under another name."""
        return self.name != self.raw_name


def parameter_shape(
    owner: str, name: str, value: float | Tensor, rank: int, num_neurons: int
) -> tuple[int, ...]:
    """The shape of a parameter of rank 0 or 1; a tensor's own rank wins over ``rank``."""
    if not _is_integer(rank) or rank not in (0, 1):
        raise _problem(
            ValueError if _is_integer(rank) else TypeError,
            owner,
            f"{name}_rank",
            rank,
            "0 (one scalar for the layer) or 1 (one value per neuron)",
        )
    if not isinstance(value, Tensor):
        return (num_neurons,) if rank else ()
    if value.shape in ((), (num_neurons,)):
        return tuple(value.shape)
    raise ValueError(
        f"{owner}: {name} has shape {list(value.shape)}; a tensor must have rank 0 (shape []) "
        f"or one value per neuron (shape [{num_neurons}])"
    )


def to_raw(
    owner: str, name: str, value: object, constraint: Constraint, like: Tensor | None = None
) -> Tensor:
    """The raw tensor whose effective value is ``value``; the domain is checked in its dtype.

    Args:
        owner: the layer's name, for messages.
        name: the parameter's name, for messages.
        value: a real number, or a floating-point tensor.
        constraint: maps raw to effective.
        like: take dtype and device from here instead of from the value; the device of a number is
            torch's default.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise _problem(TypeError, owner, name, value, "a floating-point tensor or a number")
        effective, home = value.detach().clone(), value.device
    elif not isinstance(value, bool) and isinstance(value, numbers.Real):
        # where it can be checked, whatever torch's default
        effective = torch.tensor(float(value), dtype=torch.get_default_dtype(), device="cpu")
        home = torch.empty(0).device  # get_default_device of torch 2.6 knows no `with`
    else:
        raise _problem(TypeError, owner, name, value, "a number or a floating-point tensor")
    if like is not None:
        effective, home = effective.to(like.dtype), like.device
    if not constraint.admits(effective):
        held = f" (held as {effective.dtype})".replace("torch.", "")
        raise _problem(ValueError, owner, name, value, constraint.domain + held)
    return constraint.inverse(effective).to(home)


def _problem(
    kind: type[Exception], owner: str, name: str, value: object, allowed: str
) -> Exception:
    return kind(f"{owner}: {name} must be {allowed}, got {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def checked_integer(
    owner: str,
    name: str,
    value: object,
    low: int | None = None,
    high: int | None = None,
    what: str = "an integer",
) -> int:
    """``value`` as an int in ``low``…``high``, either None for no end; an error otherwise.

    Args:
        owner: the layer or function, for messages.
        name: of the argument, for messages.
        value: what was given.
        low: the least it may be.
        high: the most it may be; needs ``low``.
        what: it is, in words.

    Raises:
        TypeError: it is no integer.
        ValueError: it lies outside.
    """
    allowed = what if low is None else f"{what} of at least {low}"
    if high is not None:
        allowed = f"{what} in {low}…{high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _problem(TypeError, owner, name, value, allowed)
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise _problem(ValueError, owner, name, value, allowed)
    return number
