"""What was recorded: values over time by name, part by part. Knows no layer and no figure."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tracetorch.atomic import replaced
from tracetorch.errors import RecordError

_SUFFIXES = (".npz", ".safetensors")


class Place(NamedTuple):
    """How far a track has come.

    Attributes:
        seen: timesteps that have gone by.
        kept: how many of them are kept.
    """

    seen: int
    kept: int


class Track:
    """One name's values, part by part.

    Attributes:
        parts: ``[t, B, …]`` each.
        masks: of each, which timesteps are a sample's own, ``[t, B]``; None: all of them.
        place: how far it has come.
        nbytes: how many bytes are kept.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.parts: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.place = Place(0, 0)

    def put(self, steps: int, part: Tensor, mask: Tensor | None) -> None:
        """Go on by so many timesteps, of which this part is kept."""
        if len(part):
            self.parts.append(part)
            self.masks.append(mask)
            self.nbytes += part.nbytes
        self.place = Place(self.place.seen + steps, self.place.kept + len(part))

    def whole(self) -> Tensor:
        """``[T, B, …]``."""
        if len(self.parts) > 1:
            mask = self.mask()
            self.parts, self.masks = [torch.cat(self.parts)], [mask]
        return self.parts[0]

    def mask(self) -> Tensor | None:
        """Which timesteps are a sample's own ``[T, B]``; None: all of them."""
        if all(mask is None for mask in self.masks):
            return None
        device = next(mask.device for mask in self.masks if mask is not None)
        return torch.cat([
            torch.ones(part.shape[:2], dtype=torch.bool, device=device) if mask is None else mask
            for part, mask in zip(self.parts, self.masks, strict=True)
        ])  # fmt: skip

    def back(self, place: Place) -> None:
        """As it was at an earlier place."""
        self.place = place
        surplus = sum(map(len, self.parts)) - place.kept
        while surplus > 0:
            part, mask = self.parts.pop(), self.masks.pop()
            left = len(part) - surplus
            if left > 0:
                self.parts.append(part[:left])
                self.masks.append(None if mask is None else mask[:left])
            surplus = -left
        self.nbytes = sum(part.nbytes for part in self.parts)

    def outline(self) -> str:
        """Its shape, type and size."""
        if not self.parts:
            return "nothing yet"
        first = self.parts[0]
        shape = [self.place.kept, *first.shape[1:]]
        return f"{shape} {str(first.dtype)[6:]}, {sized(self.nbytes)}"


class Store:
    """Where values go while it lasts.

    Args:
        every: keep each so many-th timestep.
        detach: without their graphs.
        device: where to; where they were computed, if None.
        limit: how many bytes at most.

    Attributes:
        tracks: by name.
    """

    def __init__(
        self, every: int, detach: bool, device: torch.device | None, limit: int | None
    ) -> None:
        self._every, self._detach, self._device, self._limit = every, detach, device, limit
        self.tracks: dict[str, Track] = {}

    @property
    def nbytes(self) -> int:
        """How many bytes are kept."""
        return sum(track.nbytes for track in self.tracks.values())

    def tracked(self, name: str) -> Track:
        """The track of that name, a new one."""
        return self.tracks.setdefault(name, Track())

    def admit(self, layer: object, nbytes: int) -> None:
        """RecordError where so many bytes more would be too many."""
        if self._limit is not None and self.nbytes + nbytes > self._limit:
            raise RecordError(
                layer,
                f"recording {sized(nbytes)} more would exceed limit={sized(self._limit)}, of which "
                f"{sized(self.nbytes)} are used; record fewer states, a larger every, or clear() "
                f"between sequences",
            )

    def kept(self, track: Track, steps: int) -> slice:
        """Which of so many timesteps to come are kept."""
        return slice(-track.place.seen % self._every, steps, self._every)

    def taken(self, values: Tensor, mask: Tensor | None, copied: bool) -> Tensor:
        """What is kept of values ``[T, B, …]``.

        ``copied``: others may write into these.
        """
        found = values.detach() if self._detach else values
        if mask is not None:
            own = mask.to(found.device).view(*mask.shape, *(1,) * (found.ndim - 2))
            # a checkpoint is not to count what is saved here: its recomputation records nothing
            with saved_tensors_hooks(_itself, _itself):
                return torch.where(own, found, torch.zeros_like(found)).to(self._device)
        moved = found.to(self._device)
        fresh = moved is not found or (self._every == 1 and not copied)
        return moved if fresh else moved.clone()


class Recording(Mapping[str, Tensor]):
    """What was recorded: tensors ``[T, B, …]`` by qualified name, time first.

    What of a sample comes after its end (``lengths``) is zero. A name is there once its layer has
    been called. Made by :func:`record`; it lasts after the block.

    Example:
        >>> import torch, tracetorch as tt
        >>> layer = tt.testing.Trace(2)
        >>> with tt.record(layer, "mem", "out") as rec:
        ...     y = layer.unroll(torch.ones(4, 3, 2))
        >>> rec
        Recording(192 bytes)
          mem: [4, 3, 2] float32, 96 bytes
          out: [4, 3, 2] float32, 96 bytes
        >>> torch.equal(rec["out"], y)
        True
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tracks = store.tracks

    def __getitem__(self, name: str) -> Tensor:
        track = self._tracks.get(name)
        if track is None or not track.parts:
            why = "is not recorded" if track is None else "has not been computed yet"
            known = ", ".join(self._tracks)
            raise KeyError(f"{name!r} {why}; this recording is of {known}")
        return track.whole()

    def __iter__(self) -> Iterator[str]:
        return (name for name, track in self._tracks.items() if track.parts)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def mask(self) -> Tensor | None:
        """Which timesteps are a sample's own, booleans ``[T, B]``; None: all of them.

        Raises:
            RecordError: they are not the same of all names: see :meth:`mask_of`.
        """
        return self._common(self.mask_of)

    @property
    def lengths(self) -> Tensor | None:
        """Timesteps of each sample, integers ``[B]``; None: all have them all.

        Raises:
            RecordError: a sample went on after it had ended, in another call: see :attr:`mask`. Or
                they are not the same of all names: see :meth:`lengths_of`.
        """
        return self._common(self.lengths_of)

    def mask_of(self, name: str) -> Tensor | None:
        """Which timesteps of ``name`` are a sample's own, booleans ``[T, B]``; None: all of them.

        Raises:
            KeyError: it is not recorded, or has not been computed yet.
        """
        self[name]
        return self._tracks[name].mask()

    def lengths_of(self, name: str) -> Tensor | None:
        """How many timesteps of ``name`` each sample has ``[B]``; None: all have them all.

        Raises:
            KeyError: it is not recorded, or has not been computed yet.
            RecordError: a sample went on after it had ended, in another call.
        """
        mask = self.mask_of(name)
        if mask is None:
            return None
        if bool((mask[1:] & ~mask[:-1]).any()):
            raise RecordError(
                self,
                "samples have ended and gone on in another call, so no lengths tell which "
                "timesteps are theirs; use its mask [T, B], or clear() between sequences",
            )
        return mask.sum(0)

    def _common(self, of: Callable[[str], Tensor | None]) -> Tensor | None:
        """What all names have in common."""
        found = [of(name) for name in self]
        first = found[0] if found else None
        for other in found[1:]:
            if other is not first and not _same(first, other):
                raise RecordError(
                    self,
                    "not all that is recorded has the same timesteps; ask by name, as in "
                    "lengths_of(name) or mask_of(name)",
                )
        return first

    @property
    def nbytes(self) -> int:
        """How many bytes are kept."""
        return self._store.nbytes

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Arrays by name; of types that NumPy lacks, as float32."""
        return {name: _array(tensor) for name, tensor in self.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to the file ``path``, ``.npz`` or ``.safetensors``, replacing it atomically.

        A mask, if there is one, is in it as ``mask``, or as ``<name>.mask`` where they differ.

        Raises:
            ValueError: another suffix.
            RecordError: nothing has been recorded.
        """
        path = Path(path)
        if path.suffix not in _SUFFIXES:
            raise ValueError(
                f"save: the file must end in {' or '.join(_SUFFIXES)}, got {str(path)!r}"
            )
        if not self:
            raise RecordError(self, "nothing has been recorded that could be saved")
        found = {**self, **self._masks()}
        if path.suffix == ".npz":
            file = io.BytesIO()
            arrays: Any = {name: _array(tensor) for name, tensor in found.items()}
            np.savez(file, **arrays)
            replaced(path, file.getvalue())
        else:
            detached = {name: tensor.detach().contiguous() for name, tensor in found.items()}
            replaced(path, safetensors.torch.save(detached))

    def _masks(self) -> dict[str, Tensor]:
        """The masks by what they are called in a file."""
        try:
            masks = {"mask": self.mask}
        except RecordError:
            masks = {f"{name}.mask": self.mask_of(name) for name in self}
        return {name: mask for name, mask in masks.items() if mask is not None}

    def clear(self) -> None:
        """Forget everything; counting of timesteps starts again."""
        for track in self._tracks.values():
            track.back(Place(0, 0))

    def __repr__(self) -> str:
        lines = [f"{name}: {track.outline()}" for name, track in self._tracks.items()]
        return "\n  ".join([f"Recording({sized(self.nbytes)})", *lines])


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    found: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def sized(nbytes: int) -> str:
    """Bytes, to be read."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"
