"""States ↔ file, all or nothing. Knows no layer: tensors and a description of each.

A file carries, next to the tensors, a JSON manifest (library version; layer class, shape, dtype
of each state; names of states not created yet) and a SHA-256, so that damage anywhere is found
before anything is loaded. In ``.safetensors`` it stands in the metadata and covers manifest and
tensors (the reader itself refuses damage to the rest); in ``.pt`` it is the zip archive's comment
and covers every byte before it. The first ``.pt`` files had it beside the tensors, of these and the
manifest; they are read too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tracetorch import formats, seals
from tracetorch.atomic import replaced
from tracetorch.errors import StateFileError, first_line

FORMAT = "tracetorch-states-1"


@dataclass(frozen=True)
class StateRecord:
    """What a file says of one state.

    Attributes:
        layer: qualified class of its layer, ``module.Class``.
        shape: of the tensor; None for a state that was not created yet.
        dtype: of the tensor, ``"float32"``; None likewise.
        parameters: the dtype its layer's parameters had; None for a layer without any.
    """

    layer: str
    shape: list[int] | None
    dtype: str | None
    parameters: str | None


@dataclass(frozen=True)
class StateFile:
    """The whole content of a state file."""

    version: str
    records: dict[str, StateRecord]
    tensors: dict[str, Tensor]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` → ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def checked_suffix(path: str | os.PathLike[str]) -> Path:
    """The path, if its suffix names one of the two formats; ValueError otherwise."""
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ValueError(
            f"a state file is {' or '.join(_FORMATS)}, got the suffix {path.suffix!r} in {path}"
        )
    return path


def write(path: str | os.PathLike[str], content: StateFile) -> None:
    """Write ``content``; an existing file is replaced only by a whole new one."""
    path = checked_suffix(path)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in content.tensors.items()}
    manifest = json.dumps(
        {
            "format": FORMAT,
            "version": content.version,
            "states": {name: asdict(record) for name, record in content.records.items()},
        },
        sort_keys=True,
    )
    pack, _ = _FORMATS[path.suffix]
    replaced(path, pack(manifest, tensors))


def read(path: str | os.PathLike[str]) -> StateFile:
    """Read and verify a whole file.

    Raises:
        ValueError: unknown suffix.
        FileNotFoundError: there is no such file.
        StateFileError: the file is truncated, damaged, no state file, or of a later format.
    """
    path = checked_suffix(path)
    data = path.read_bytes()
    _, unpack = _FORMATS[path.suffix]
    try:
        return _content(*unpack(data))
    except _Unfit as error:
        raise StateFileError(f"{path} {error}") from None
    # the readers raise a zoo of types on damaged input; each means the same to the user
    except Exception as error:
        raise StateFileError(
            f"{path} cannot be read as a {path.suffix} state file: {first_line(error)}; "
            f"it is truncated, damaged or of another kind"
        ) from error


class _Unfit(Exception):
    """What is wrong with a file, to be said after its path."""


def _pack_safetensors(manifest: str, tensors: dict[str, Tensor]) -> bytes:
    metadata = {"tracetorch": manifest, "sha256": _digest(manifest, tensors)}
    return safetensors.torch.save(tensors, metadata)


def _unpack_safetensors(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if "tracetorch" not in metadata:
        raise _Unfit(
            "holds no states of traceTorch: it is damaged or of another kind (weights are for "
            "load_state_dict())"
        )
    manifest = metadata["tracetorch"]
    said = _said(manifest)
    if metadata["sha256"] != _digest(manifest, tensors):
        raise _Unfit("is damaged: its content does not match its SHA-256")
    return said, tensors


def _pack_pt(manifest: str, tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"tracetorch": manifest, "tensors": tensors}, buffer)
    seals.seal(buffer)
    return buffer.getvalue()


def _unpack_pt(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not seals.intact(io.BytesIO(data)):
        return _unpack_unsealed(data)
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    said = _said(content["tracetorch"])
    return said, _contiguous(content["tensors"])


def _unpack_unsealed(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    unfit = (
        "does not end with the SHA-256 of its content: it is truncated, damaged or no state "
        "file (weights are for load_state_dict())"
    )
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        manifest, digest = content["tracetorch"], content["sha256"]
        tensors = _contiguous(content["tensors"])
        intact = digest == _digest(manifest, tensors)
    except Exception:  # whatever a reader raises on what is no file of ours
        raise _Unfit(unfit) from None
    if not intact:
        raise _Unfit(unfit)
    return _said(manifest), tensors


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


Pack = Callable[[str, dict[str, Tensor]], bytes]
Unpack = Callable[[bytes], tuple[dict[str, Any], dict[str, Tensor]]]

_FORMATS: dict[str, tuple[Pack, Unpack]] = {
    ".safetensors": (_pack_safetensors, _unpack_safetensors),
    ".pt": (_pack_pt, _unpack_pt),
}


def _said(manifest: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(manifest)
    if refusal := formats.refusal(said.get("format"), FORMAT, said.get("version")):
        raise _Unfit(refusal)
    return said


def _content(said: dict[str, Any], tensors: dict[str, Tensor]) -> StateFile:
    records = {name: StateRecord(**record) for name, record in said["states"].items()}
    named = {name for name, record in records.items() if record.shape is not None}
    if named != tensors.keys():
        raise _Unfit(
            f"names the states {sorted(named, key=str)} but holds {sorted(tensors, key=str)}"
        )
    for name, tensor in tensors.items():
        held, record = (list(tensor.shape), dtype_name(tensor.dtype)), records[name]
        if held != (record.shape, record.dtype):
            raise _Unfit(
                f"says that {name} is {record.shape} {record.dtype}, but holds {held[0]} {held[1]}"
            )
    return StateFile(said["version"], records, tensors)


def _digest(manifest: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(tensors, key=str):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
