"""What a figure is given → arrays of finite numbers, of one sample. Knows no figure.

Tensors, arrays, and recordings: mappings from a name to a tensor ``[T, B, …]`` that may know which
timesteps of each sample count, as ``mask`` ``[T, B]`` or as ``lengths`` ``[B]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tracetorch.errors import check_dense

Array: TypeAlias = NDArray[Any]
Values: TypeAlias = Tensor | NDArray[Any]
Recording: TypeAlias = Mapping[str, Tensor]
Data: TypeAlias = Values | Recording
Levels: TypeAlias = float | Tensor | Sequence[float]


def array(argument: str, values: object) -> Array:
    """A tensor or array as an array of float32 or float64, off the graph and the device.

    Raises:
        TypeError: it is neither, or not of real numbers or booleans.
    """
    check_dense(f"{argument} must be a tensor or an array", values)
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        values = values.numpy()
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{argument} must be a tensor or an array, got {type(values).__name__}")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{argument} must be of real numbers, got {values.dtype}")
    small = values.dtype.kind == "b" or values.dtype.itemsize < 4
    return (
        values.astype(np.float32 if small else np.float64, copy=False)
        if (values.dtype not in (np.float32, np.float64))
        else values
    )


def finite(argument: str, values: Array) -> Array:
    """The same values.

    Raises:
        ValueError: NaN or infinity is among them.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"{argument} must be finite, got NaN or infinity")
    return values


def filled(argument: str, values: Array, shape: str, dimensions: Iterable[int]) -> Array:
    """The same values.

    Raises:
        ValueError: they are empty, or of another number of dimensions.
    """
    if values.ndim not in dimensions or values.size == 0:
        raise ValueError(
            f"{argument} must be a non-empty {shape}, got the shape {list(values.shape)}"
        )
    return values


def chosen(argument: str, data: Recording, name: str | None, kinds: Sequence[str]) -> str:
    """The name within a recording: the one given, or the only one of these kinds, or the only one.

    Args:
        argument: as the caller knows the recording.
        data: the recording.
        name: as given.
        kinds: what the last part of a fitting name is, as ``"out"``; any state where empty.

    Raises:
        ValueError: there is no such name, or several fit.
    """
    if name is not None:
        if name not in data:
            raise ValueError(f"name must be one of {argument}'s {_listed(data)}, got {name!r}")
        return name
    names = list(data)
    fitting = [each for each in names if _fits(each.rpartition(".")[2], kinds)]
    only = names if len(names) == 1 else fitting
    if len(only) != 1:
        raise ValueError(f"name must choose one of {argument}'s {_listed(only or data)}, got None")
    return only[0]


def _fits(last: str, kinds: Sequence[str]) -> bool:
    return last in kinds if kinds else last not in ("in", "out")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "(nothing was recorded)"


def sample_of(
    argument: str,
    data: Data,
    *,
    name: str | None = None,
    sample: int = 0,
    kinds: Sequence[str] = (),
    unbatched: Sequence[int] = (2,),
) -> Array:
    """One sample over time, ``[T, …]``, without the timesteps that are not its own.

    Args:
        argument: as the caller knows ``data``.
        data: tensor, array or recording.
        name: within a recording.
        sample: which one of the batch.
        kinds: see :func:`chosen`.
        unbatched: with so many dimensions, ``data`` is one sample already.

    Raises:
        TypeError: ``data`` is of another kind, or ``sample`` no integer.
        ValueError: no such name or sample, nothing to draw, or NaN.
    """
    recording = data if isinstance(data, Mapping) else None
    if recording is not None:
        key = chosen(argument, recording, name, kinds)
        argument, data = f"{argument}[{key!r}]", recording[key]
    elif name is not None:
        raise ValueError(f"name chooses from a recording, but {argument} is none; got {name!r}")
    values = filled(argument, array(argument, data), "[T, N] or [T, B, N…]", range(2, 100))
    mask = None if recording is None else mask_of(recording, len(values))
    checked_index("sample", sample, 1 if values.ndim in unbatched else values.shape[1])
    if values.ndim in unbatched:
        return finite(argument, values)
    own = values[:, sample] if mask is None else values[mask[:, sample], sample]
    if len(own) == 0:
        raise ValueError(f"{argument} has no timesteps of sample {sample}: its length is 0")
    return finite(argument, own)


def mask_of(recording: Mapping[str, Any], steps: int) -> Array | None:
    """Which timesteps are a sample's own, booleans ``[T, B]``; None: all of them."""
    mask = getattr(recording, "mask", None)
    if mask is not None:
        return np.asarray(mask.cpu())
    lengths = getattr(recording, "lengths", None)
    return None if lengths is None else np.arange(steps)[:, None] < array("lengths", lengths)


def series(
    argument: str,
    data: Data,
    *,
    name: str | None = None,
    sample: int = 0,
    kinds: Sequence[str] = (),
) -> Array:
    """One sample over time with its further dimensions flattened: ``[T, N]``.

    Raises:
        TypeError: see :func:`sample_of`.
        ValueError: see :func:`sample_of`.
    """
    values = sample_of(argument, data, name=name, sample=sample, kinds=kinds)
    return values.reshape(len(values), -1)


def checked_index(argument: str, index: int, size: int) -> int:
    """The same index.

    Raises:
        TypeError: it is no integer.
        ValueError: it is not one of ``0 … size − 1``.
    """
    checked_count(argument, index, low=0)
    if index >= size:
        raise ValueError(f"{argument} must be in 0..{size - 1}, got {index!r}")
    return index


def checked_count(argument: str, count: int, low: int = 1) -> int:
    """The same count.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below ``low``.
    """
    if not isinstance(count, (int, np.integer)) or isinstance(count, bool):
        raise TypeError(f"{argument} must be an integer of at least {low}, got {count!r}")
    if count < low:
        raise ValueError(f"{argument} must be at least {low}, got {count!r}")
    return count


def levels(argument: str, heights: Levels | None) -> list[float]:
    """None, one or several heights as a list, each once.

    Raises:
        TypeError: they are no numbers.
        ValueError: one is not finite, or they have more than one dimension.
    """
    if heights is None:
        return []
    given = numbers(argument, heights)
    if given.ndim > 1:
        raise ValueError(
            f"{argument} must be a number or one-dimensional, got the shape {list(given.shape)}; "
            f"what changes with time is a curve: ax.plot"
        )
    found = finite(argument, given.reshape(-1))
    return [*dict.fromkeys(map(float, found))]


def numbers(argument: str, values: object) -> Array:
    """A number, tensor, array or sequence of numbers or of scalar tensors, as an array.

    Raises:
        TypeError: it is none of these.
    """
    check_dense(f"{argument} must be a tensor or an array", values)
    if isinstance(values, Sequence) and not isinstance(values, str):
        values = [v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for v in values]
        values = np.array(values)
    elif isinstance(values, (int, float)):
        values = np.array(values)
    return array(argument, values)


def named(argument: str, mapping: object) -> Mapping[str, Any]:
    """The same mapping.

    Raises:
        TypeError: it is none.
        ValueError: it is empty.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{argument} must be a mapping by name, got {type(mapping).__name__}")
    if not mapping:
        raise ValueError(f"{argument} must have at least one name, got none")
    return mapping
