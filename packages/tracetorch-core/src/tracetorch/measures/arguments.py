"""What the measures of spikes share: checks, ragged sequences, recordings by name.

Knows tensors and mappings of them; no layer, and nothing of how a recording is made.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor

from tracetorch.errors import check_dense
from tracetorch.parameters import checked_integer

Options = ParamSpec("Options")
Answer = TypeVar("Answer")

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


# ---------------------------------------------------------------------- recordings


class Measure(Protocol[Options, Answer]):
    """A measure of a tensor; of a recording, the measures of its tensors by name."""

    @overload
    def __call__(
        self, spikes: Tensor, /, *args: Options.args, **kwargs: Options.kwargs
    ) -> Answer: ...

    @overload
    def __call__(
        self, spikes: Mapping[str, Tensor], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> dict[str, Answer]: ...


class Comparison(Protocol[Options, Answer]):
    """A measure of two tensors; of two recordings, those of their tensors by name."""

    @overload
    def __call__(
        self, first: Tensor, second: Tensor, /, *args: Options.args, **kwargs: Options.kwargs
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        /,
        *args: Options.args,
        **kwargs: Options.kwargs,
    ) -> dict[str, Answer]: ...


def measure(function: Callable[Concatenate[Tensor, Options], Answer]) -> Measure[Options, Answer]:
    """The function of a tensor, which takes a recording as well."""
    return cast("Measure[Options, Answer]", _by_name(function))


def comparison(
    function: Callable[Concatenate[Tensor, Tensor, Options], Answer],
) -> Comparison[Options, Answer]:
    """The function of two tensors, which takes two recordings as well."""
    return cast("Comparison[Options, Answer]", _by_name(function))


def _by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def mapped(*given: Any, lengths: Tensor | None = None, **options: Any) -> Any:
        recordings = [value for value in given if isinstance(value, Mapping)]
        if not recordings or not isinstance(given[0], Mapping):
            return function(*given, lengths=lengths, **options)
        names = list(recordings[0])
        for other in recordings[1:]:
            if other.keys() != recordings[0].keys():
                raise ValueError(
                    f"{function.__name__}: both recordings must have the same names, got {names} "
                    f"and {list(other)}"
                )
        own = dict.fromkeys(names, lengths)
        if lengths is None:
            own = {name: _own_lengths(recordings[0], name) for name in names}
        return {
            name: function(
                *(value[name] if isinstance(value, Mapping) else value for value in given),
                lengths=own[name],
                **options,
            )
            for name in names
        }

    return mapped


def _own_lengths(recording: Any, name: str) -> Tensor | None:
    """Those of a name, or of all, where the recording has any."""
    if hasattr(recording, "lengths_of"):
        return cast("Tensor | None", recording.lengths_of(name))
    return cast("Tensor | None", getattr(recording, "lengths", None))


# ---------------------------------------------------------------------- tensors


class Spikes:
    """Which places of ``[T, B, …]`` hold a spike that counts.

    Args:
        owner: the measure, for messages.
        spikes: ``[T, B, …]``; whatever is not zero is a spike.
        lengths: integers ``[B]`` in 0…T, or None.
        name: of the argument, for messages.
        neurons: whether there has to be a dimension after the batch's.

    Attributes:
        fired: boolean, as ``spikes``.
        steps: how many timesteps of each sample count: integers, to be broadcast with ``[B, …]``.
        lengths: the same as ``[B]``.
        dtype: of results that are no integers.
    """

    def __init__(
        self,
        owner: str,
        spikes: object,
        lengths: object,
        *,
        name: str = "spikes",
        neurons: bool = False,
    ) -> None:
        tensor = _checked(owner, spikes, name, neurons)
        real = tensor.dtype in (torch.float32, torch.float64)
        self.dtype = tensor.dtype if real else torch.get_default_dtype()
        self.fired = tensor.detach() != 0
        if lengths is None:
            self.lengths = torch.full(tensor.shape[1:2], len(tensor), device=tensor.device)
        else:
            self.lengths = checked_lengths(owner, lengths, tensor).to(tensor.device)
            self.fired &= self.within()
        self.steps = self.lengths.view(-1, *(1,) * (tensor.ndim - 2))

    def within(self) -> Tensor:
        """Which timesteps of which samples count, to be broadcast with ``[T, B, …]``."""
        time = torch.arange(len(self.fired), device=self.fired.device)
        mask = time[:, None] < self.lengths
        return mask.view(*mask.shape, *(1,) * (self.fired.ndim - 2))

    def real(self, values: Tensor) -> Tensor:
        """A result in the type that results have here."""
        return values.to(self.dtype)


def counted(fired: Tensor) -> Tensor:
    """How many are true along dimension 0: integers."""
    # torch adds bytes as bytes several times as fast as it does as integers of 8
    parts = [p.sum(0, dtype=torch.uint8) for p in torch.split(fired.view(torch.uint8), 255)]
    return torch.stack(parts).sum(0)


def _checked(owner: str, spikes: object, name: str, neurons: bool) -> Tensor:
    shape = "[T, B, …]"
    check_dense(f"{owner}: {name} must be a real tensor {shape}", spikes)
    if not isinstance(spikes, Tensor) or spikes.is_complex():
        got = spikes.dtype if isinstance(spikes, Tensor) else f"a {type(spikes).__name__}"
        raise TypeError(f"{owner}: {name} must be a real tensor {shape}, got {got}")
    least = 3 if neurons else 2
    if spikes.ndim < least or len(spikes) == 0:
        what = f"{shape} with neurons after the batch" if neurons else shape
        raise ValueError(
            f"{owner}: {name} must be {what} and have a timestep, got the shape "
            f"{list(spikes.shape)}; one sample of [T, N] is {name}[:, None]"
        )
    return spikes


def checked_lengths(owner: str, lengths: object, x: Tensor) -> Tensor:
    """One length for each sample of ``x`` ``[T, B, …]``; TypeError or ValueError otherwise."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        got = lengths.dtype if isinstance(lengths, Tensor) else repr(lengths)
        raise TypeError(f"{owner}: lengths must be a tensor of integers [B], got {got}")
    if lengths.shape != x.shape[1:2]:
        raise ValueError(
            f"{owner}: lengths must have one entry for each sample of [T, B, …], here "
            f"{list(x.shape)}, got the shape {list(lengths.shape)}"
        )
    if bool(((lengths < 0) | (lengths > len(x))).any()):
        raise ValueError(f"{owner}: lengths must lie in 0…{len(x)}, got {lengths.tolist()}")
    return lengths.long()


# ---------------------------------------------------------------------- numbers


def checked_number(
    owner: str, name: str, value: object, allowed: str, fits: Callable[[float], bool]
) -> float:
    """A real number that fits; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {name} must be {allowed}, got {value!r}")
    if not fits(float(value)):
        raise ValueError(f"{owner}: {name} must be {allowed}, got {value!r}")
    return float(value)


def checked_positive(owner: str, name: str, value: object) -> float:
    """A positive, finite number; TypeError or ValueError otherwise."""
    return checked_number(owner, name, value, "a number in (0, ∞)", lambda v: 0 < v < math.inf)


def checked_amount(owner: str, name: str, value: object) -> float:
    """A finite number, not negative; TypeError or ValueError otherwise."""
    return checked_number(owner, name, value, "a number in [0, ∞)", lambda v: 0 <= v < math.inf)


def checked_window(owner: str, window: object, steps: int) -> int:
    """A number of timesteps in 1…T; TypeError or ValueError otherwise."""
    size = checked_integer(owner, "window", window, low=1)
    if size > steps:
        raise ValueError(
            f"{owner}: window must be at most the {steps} timesteps of the sequence, got {window!r}"
        )
    return size
