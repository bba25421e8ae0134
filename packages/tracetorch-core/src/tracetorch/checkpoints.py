"""A run's checkpoint: all that its next step depends on, in one file, all or nothing.

Knows of a module its weights and the states of the layers in it; of any other object, that it has
``state_dict()`` and ``load_state_dict()``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tracetorch import formats, seals
from tracetorch.atomic import replacing
from tracetorch.errors import CheckpointError, first_line
from tracetorch.generators import everywhere, put_back
from tracetorch.layer_states import states_of
from tracetorch.walk import named_layers, unregistered

FORMAT = "tracetorch-checkpoint-1"

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, **parts: Any) -> None:
    """Write all that a run's next step depends on to a file, replacing it atomically.

    Of ``model`` and every other module: weights, buffers and hidden states, also of layers held in
    plain lists and objects, whether or not it is compiled or wrapped for several processes. The
    global generators of torch (all devices), Python and NumPy are saved with them.

    Args:
        path: of any suffix; the file is one of ``torch.save``, with a SHA-256 at its end.
        model: any module.
        parts: by name, whatever else belongs to the run. An object with ``state_dict()`` and
            ``load_state_dict()`` (optimizer, schedule, scaler, average, loader, another module)
            or a ``torch.Generator`` is saved as such; other values (settings, the position in the
            data, curves) have to be plain: numbers, text, tensors, lists, tuples and dicts of them.

    Raises:
        TypeError: a part is, or holds, something that could not be read back safely.
        FileNotFoundError: there is no such folder.

    Example:
        >>> import pathlib, tempfile, torch, tracetorch as tt
        >>> net = tt.testing.Trace(2)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> y = net.unroll(torch.rand(5, 3, 2))
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "run.pt"
        >>> tt.save_checkpoint(file, net, optimizer=optimizer, settings={"seed": 0}, step=5)
        >>> net.zero_states()
        >>> tt.load_checkpoint(file, net, optimizer=optimizer, settings={"seed": 0})
        {'step': 5}
        >>> torch.equal(net.get_states()["mem"], y[-1].detach())
        True
    """
    objects = {"model": model, **_objects(parts)}
    values = {name: part for name, part in parts.items() if name not in objects}
    content = {
        "objects": {name: _of(part).held() for name, part in objects.items()},
        "values": values,
        "generators": everywhere(),
    }
    _refuse_others(content["objects"], "")
    _refuse_others(values, "")
    said = {"format": FORMAT, "version": formats.version(), **content}
    with replacing(Path(path)) as file:
        torch.save(said, file)
        seals.seal(file)


def load_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, *, generators: bool = True, **parts: Any
) -> dict[str, Any]:
    """Go on where :func:`save_checkpoint` wrote: everything as it was, or nothing changed.

    Args:
        path: the file.
        model: of the same weights and layers as the one that was saved.
        generators: whether the global generators of torch, Python and NumPy go on where they were.
        parts: by the names they were saved under. Objects are given what was saved of them, and
            none may be missing; a plain value, settings for instance, has to equal the one saved.

    Returns:
        The plain values that were saved and are not among ``parts``, by name.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, damaged, no checkpoint, of a later format, or of another
            run: its objects, its values or the shape of its weights are others; or a weight was
            made under ``torch.inference_mode()``. Nothing has changed then.

    Example:
        >>> import pathlib, tempfile, tracetorch as tt
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "run.pt"
        >>> tt.save_checkpoint(file, tt.testing.Trace(2), epoch=3)
        >>> tt.load_checkpoint(file, tt.testing.Trace(2))
        {'epoch': 3}
    """
    path = Path(path)
    saved = _read(path)
    objects = {"model": model, **_objects(parts)}
    _same_names(path, saved["objects"].keys(), objects.keys())
    values = {name: part for name, part in parts.items() if name not in objects}
    for name, value in values.items():
        _same_value(path, name, saved["values"], value)
    _refuse_inference(path, objects)
    with ExitStack() as undo:
        for name, part in objects.items():
            kind = _of(part)
            undo.callback(kind.put, copy.deepcopy(kind.held()))
            try:
                kind.put(saved["objects"][name])
            except Exception as error:
                raise CheckpointError(
                    f"{path} does not fit {name}, {type(part).__name__}: {first_line(error)}"
                ) from error
        if generators:
            undo.callback(put_back, everywhere())
            try:
                put_back(saved["generators"])
            except Exception as error:
                raise CheckpointError(
                    f"{path} does not fit the generators here: {first_line(error)}"
                ) from error
        undo.pop_all()
    return {name: value for name, value in saved["values"].items() if name not in values}


def checkpoint_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain values in a file of :func:`save_checkpoint`, without a model to load it into.

    For what a finished run says of itself: its settings to build the model by, its curves to draw.

    Args:
        path: the file; it is read and verified whole.

    Returns:
        All plain values that were saved, by name; tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, damaged, or no checkpoint.

    Example:
        >>> import pathlib, tempfile, tracetorch as tt
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "run.pt"
        >>> tt.save_checkpoint(file, tt.testing.Trace(2), settings={"width": 2}, losses=[0.7, 0.5])
        >>> tt.checkpoint_values(file)
        {'settings': {'width': 2}, 'losses': [0.7, 0.5]}
    """
    values: dict[str, Any] = _read(Path(path))["values"]
    return values


# ------------------------------------------------------------------ what is saved of each kind


class _Kind(Protocol):
    """How a kind of object says what it holds, and takes it."""

    def held(self) -> Any:
        raise NotImplementedError

    def put(self, held: Any) -> None:
        raise NotImplementedError


class _Module:
    """Weights of all layers that can be found, and their states."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module = _unwrapped(module)
        apart = set(map(id, unregistered(module)))
        self.layers = dict(named_layers(module))
        self.apart = {name: layer for name, layer in self.layers.items() if id(layer) in apart}

    def held(self) -> dict[str, Any]:
        states = {name: states_of(layer) for name, layer in self.layers.items()}
        return {
            "weights": self.module.state_dict(),
            "apart": {name: layer.state_dict() for name, layer in self.apart.items()},
            "states": {
                name: {s: t if t is None else t.detach().clone() for s, t in of.items()}
                for name, of in states.items()
            },
        }

    def put(self, held: dict[str, Any]) -> None:
        if not isinstance(held, dict):
            raise TypeError(f"holds {type(held).__name__} where its layers should be")
        _same("layers outside of submodules", held["apart"].keys(), self.apart.keys())
        _same("layers", held["states"].keys(), self.layers.keys())
        self.module.load_state_dict(held["weights"])
        for name, layer in self.apart.items():
            layer.load_state_dict(held["apart"][name])
        for name, layer in self.layers.items():
            home = next(iter([*layer.parameters(), *layer.buffers()]), None)
            layer.set_states(
                {
                    s: t if t is None or home is None else t.to(home.device)
                    for s, t in held["states"][name].items()
                }
            )


class _Generator:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def held(self) -> Tensor:
        return self.generator.get_state()

    def put(self, held: Tensor) -> None:
        self.generator.set_state(held)


class _Other:
    def __init__(self, part: Any) -> None:
        self.part = part

    def held(self) -> Any:
        return self.part.state_dict()

    def put(self, held: Any) -> None:
        self.part.load_state_dict(held)


def _of(part: Any) -> _Kind:
    if isinstance(part, nn.Module):
        return _Module(part)
    return _Generator(part) if isinstance(part, torch.Generator) else _Other(part)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The user's own, out of those of torch that compile it or send its gradients around."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _unwrapped(module.module)
    if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        return _unwrapped(inner)
    return module


def _objects(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are saved by what they say of themselves."""
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, torch.Generator)
        or (hasattr(part, "state_dict") and hasattr(part, "load_state_dict"))
    }


# ------------------------------------------------------------------ what fits


def _read(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        if not seals.intact(file):
            raise CheckpointError(
                f"{path} does not end with the SHA-256 of its content: it is truncated, damaged or "
                f"no file of tt.save_checkpoint()"
            )
        file.seek(0)
        try:
            saved: Any = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    found: dict[str, Any] = saved if isinstance(saved, dict) else {}
    if refusal := formats.refusal(found.get("format"), FORMAT, found.get("version")):
        kind = "" if "format" in found else " (states alone are for load_states())"
        raise CheckpointError(f"{path} {refusal}{kind}")
    for part in ("objects", "values", "generators"):
        if not isinstance(found.get(part), dict):
            raise CheckpointError(f"{path} holds no {part}: it is damaged")
    return found


def _refuse_inference(path: Path, objects: Mapping[str, Any]) -> None:
    """CheckpointError where torch would not let weights be written, or put back."""
    if torch.is_inference_mode_enabled():
        return
    for name, part in objects.items():
        layers = named_layers(part) if isinstance(part, nn.Module) else ()
        for module in (part, *(layer for _, layer in layers)):
            held = module.state_dict().items() if isinstance(module, nn.Module) else ()
            for weight, value in held:
                if isinstance(value, Tensor) and value.is_inference():
                    raise CheckpointError(
                        f"{path} cannot be loaded into {name}: {weight} of {type(module).__name__} "
                        f"was made under torch.inference_mode(), outside of which torch does not "
                        f"write to it; make the model first"
                    )


def _same_names(path: Path, saved: Iterable[str], given: Iterable[str]) -> None:
    try:
        _same("objects", saved, given)
    except ValueError as error:
        raise CheckpointError(
            f"{path} {error}: it is of another program, or load_checkpoint() is not given what "
            f"save_checkpoint() was"
        ) from None


def _same(what: str, saved: Iterable[str], own: Iterable[str]) -> None:
    if set(saved) != set(own):
        raise ValueError(
            f"holds the {what} {sorted(saved, key=str)}, where {sorted(own)} are to be loaded"
        )


def _same_value(path: Path, name: str, saved: Mapping[str, Any], given: Any) -> None:
    if name not in saved:
        raise CheckpointError(f"{path} holds no {name}, but {sorted(saved, key=str)}")
    theirs = saved[name]
    if isinstance(given, dict) and isinstance(theirs, dict) and given.keys() == theirs.keys():
        for key, value in given.items():
            _same_value(path, key, theirs, value)
    elif not _equal(theirs, given):
        raise CheckpointError(f"{path} is of another run: its {name} is {theirs!r}, not {given!r}")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other.cpu())
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        return all(map(_equal, one, other))
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)


def _refuse_others(value: Any, place: str) -> None:
    """TypeError where something is not plain: reading it back would run code of the file."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_others(key, f"a key of {place or 'the parts'}")
            _refuse_others(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_others(item, f"{place}[{index}]")
    elif not (isinstance(value, Tensor) or type(value) in _PLAIN):
        raise TypeError(
            f"{place} is {value!r}, a {type(value).__name__}; a checkpoint holds numbers, text, "
            f"tensors, and lists, tuples and dicts of them"
        )
