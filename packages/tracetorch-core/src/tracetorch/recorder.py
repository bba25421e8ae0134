"""Recording: chosen states, inputs and outputs of layers, as their calls go by, stepped or at once.

A recorder stands in the way of a layer's calls and looks on. It knows nothing of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.calls import called, unrolled
from tracetorch.effective import promoted
from tracetorch.errors import RecordError
from tracetorch.layer import Layer
from tracetorch.parameters import checked_integer
from tracetorch.passage import Passage, active
from tracetorch.recomputation import restored
from tracetorch.recording import Place, Recording, Store, Track
from tracetorch.walk import named_layers

INPUT, OUTPUT = "in", "out"


@contextmanager
def record(
    model: nn.Module,
    *what: str | type[Layer] | Layer,
    every: int = 1,
    detach: bool = True,
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Iterator[Recording]:
    """Within it, what is chosen of a model's layers is kept, at every timestep.

    It goes on over calls, whether they are single timesteps or ``unroll``. A model stays folded
    and its kernels give out the states that are asked for; a layer with a ``sequence`` of its own
    is stepped where its states are. A state is kept as it is after the timestep, reset included.

    Args:
        model: a model, a layer, or any module that contains layers. Those that it makes later are
            not recorded.
        what: qualified names, ``"encoder.lif.mem"``, with ``.in`` and ``.out`` for a layer's input
            and output, and with ``*`` and ``?`` as in file names; or layers, their classes or
            names, for all of their states and the output. Nothing: that, of every layer.
        every: keep each so many-th timestep of a layer, counted from the first, at least 1.
        detach: False keeps the graph: gradients flow through what was recorded.
        device: where to keep it; where it was computed, if None.
        limit: how many bytes to keep at most.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a name that nothing has, or a number out of range.
        RecordError: the model is compiled by ``torch.compile``; or, from a call of a layer, the
            limit would be exceeded, or another shape has come than before.

    Example:
        >>> import torch, tracetorch as tt
        >>> layer = tt.testing.Trace(1, beta=0.5)
        >>> with tt.record(layer, "mem") as rec:
        ...     y = layer.unroll(torch.ones(2, 1, 1))
        ...     y = layer(torch.ones(1, 1))
        >>> rec["mem"].flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    layers = _layers(model)
    wanted = [_checked_choice(choice, layers) for choice in what]
    store = Store(
        checked_integer("record", "every", every, low=1),
        _checked_flag(detach),
        None if device is None else torch.device(device),
        None if limit is None else checked_integer("record", "limit", limit, low=0),
    )
    heard = []
    for name, layer in layers.items():
        tracks = {n: store.tracked(_key(name, n)) for n in _names(name, layer, wanted)}
        if tracks:
            heard.append((layer, Ear(store, tracks)))
    with listening(heard):
        yield Recording(store)


@contextmanager
def listening(heard: Sequence[tuple[Layer, Listener]]) -> Iterator[None]:
    """Within it, calls of these layers are listened to."""
    with ExitStack() as ending:
        for layer, listener in heard:
            layer.tt.passage = Recorder((*_listeners(layer), listener))
            ending.callback(_end, layer, listener)
        yield


def _end(layer: Layer, listener: Listener) -> None:
    rest = tuple(other for other in _listeners(layer) if other is not listener)
    layer.tt.passage = Recorder(rest) if rest else None


# ---------------------------------------------------------------------- what a layer's calls meet


class Listener(Protocol):
    """What is told of one layer's timesteps.

    Attributes:
        names: what it is to be told, of states, :data:`INPUT` and :data:`OUTPUT`.
    """

    names: tuple[str, ...]

    def admit(self, layer: Layer, x: Tensor) -> None:
        """Raise where timesteps ``[T, …]`` must not come."""
        raise NotImplementedError

    def put(self, layer: Layer, values: Mapping[str, Tensor], fresh: frozenset[str]) -> None:
        """Some timesteps ``[T, …]`` by name; all or nothing. ``fresh``: nobody else has these."""
        raise NotImplementedError

    def place(self) -> object:
        """How far it has come."""
        raise NotImplementedError

    def back(self, place: Any) -> None:
        """As it was then."""
        raise NotImplementedError


class Ear(Listener):
    """What one recording wants of one layer."""

    def __init__(self, store: Store, tracks: Mapping[str, Track]) -> None:
        self._store, self._tracks, self.names = store, tracks, tuple(tracks)

    def admit(self, layer: Layer, x: Tensor) -> None:
        """RecordError where the states of timesteps ``[T, …]`` would be too many bytes."""
        nbytes = 0
        for name, spec in layer.tt.declaration.states.items():
            if name in self._tracks:
                steps = len(range(len(x))[self._store.kept(self._tracks[name], len(x))])
                size = torch.Size(spec.shape(x.shape[1:], layer.dim % (x.ndim - 1))).numel()
                nbytes += steps * size * promoted(layer, x.dtype).itemsize
        self._store.admit(layer, nbytes)

    def put(self, layer: Layer, values: Mapping[str, Tensor], fresh: frozenset[str]) -> None:
        """Keep what is wanted of some timesteps, all or nothing.

        Raises:
            RecordError: it is too much, or of another shape than before.
        """
        store, samples, found = self._store, active(), []
        for name, track in self._tracks.items():
            value = values[name]
            if track.parts and track.parts[0].shape[1:] != value.shape[1:]:
                raise RecordError(
                    layer,
                    f"{name} of timesteps {list(value.shape[1:])} does not fit the "
                    f"{list(track.parts[0].shape[1:])} recorded so far; clear() the recording, "
                    f"or make one for each batch",
                )
            if samples is not None and value.shape[1:2] != samples.shape:
                raise RecordError(
                    layer,
                    f"a mask or lengths over {len(samples)} samples needs them at dimension 0 of "
                    f"every timestep, got {name} of {list(value.shape[1:])}",
                )
            found.append((track, value[store.kept(track, len(value))], len(value), name))
        store.admit(layer, sum(value.nbytes for _, value, _, _ in found))
        for track, value, steps, name in found:
            mask = None if samples is None else samples.expand(len(value), -1)
            track.put(steps, store.taken(value, mask, copied=name not in fresh), mask)

    def place(self) -> list[Place]:
        """How far each track has come."""
        return [track.place for track in self._tracks.values()]

    def back(self, place: list[Place]) -> None:
        """As it was then."""
        for track, then in zip(self._tracks.values(), place, strict=True):
            track.back(then)


class Recorder(Passage):
    """Stands in the way of one layer's calls, and looks on."""

    transparent = True

    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self.listeners = listeners
        self._names = tuple({name: None for one in listeners for name in one.names})

    def call(self, layer: Layer, x: Tensor) -> Tensor:
        """One timestep, kept."""
        self._refuse(layer)
        before = layer.tt.states
        y = called(layer, x)
        try:
            self._put(layer, x[None], y[None], layer.tt.states, each=True)
        except BaseException:
            layer.tt.states = before
            raise
        return y

    def unroll(self, layer: Layer, x: Tensor, resets: Tensor | None) -> Tensor:
        """A whole sequence, kept: its kernel gives out the states."""
        self._refuse(layer)
        states = tuple(name for name in self._names if name in layer.tt.declaration.states)
        before, place = layer.tt.states, self.place()
        try:
            if isinstance(x, Tensor) and x.ndim > 1 and not restored():
                for listener in self.listeners:
                    listener.admit(layer, x)
            found = unrolled(layer, x, states, resets)
            if found.recorded is not None:
                self._put(layer, x, found.y, found.recorded, each=False)
        except BaseException:
            layer.tt.states = before
            self.back(place)
            raise
        return found.y

    def _put(
        self, layer: Layer, x: Tensor, y: Tensor, states: Mapping[str, Any], *, each: bool
    ) -> None:
        """``each``: the states are of one timestep."""
        if layer in restored():  # it has been recorded when it was computed first
            return
        values = {INPUT: x, OUTPUT: y}
        values |= {n: states[n][None] if each else states[n] for n in self._names if n in states}
        fresh = frozenset() if each else frozenset(states)
        for listener in self.listeners:
            listener.put(layer, values, fresh)

    def _refuse(self, layer: Layer) -> None:
        if torch.compiler.is_compiling():
            raise RecordError(layer, _COMPILED)
        if mode.transformed():
            raise RecordError(layer, "within transforms of torch.func nothing can be recorded")

    def refuse_states(self, layer: Layer) -> None:
        """They may be read, and changed."""

    def place(self) -> list[object]:
        """How far each listener has come."""
        return [listener.place() for listener in self.listeners]

    def back(self, place: Sequence[object]) -> None:
        """As it was then."""
        for listener, then in zip(self.listeners, place, strict=True):
            listener.back(then)


_COMPILED = (
    "what torch.compile made of a model keeps no recording: record the model itself, uncompiled, "
    "as in tt.record(model, …) with model(x) or model.unroll(x)"
)


def _listeners(layer: Layer) -> tuple[Listener, ...]:
    passage = layer.tt.passage
    if passage is None:
        return ()
    if not isinstance(passage, Recorder):
        raise RecordError(layer, "a recording cannot begin or end within a forward pass")
    return passage.listeners


# ---------------------------------------------------------------------- what is wanted


def _layers(model: object) -> dict[str, Layer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"record: model must be a torch.nn.Module, got a {type(model).__name__}")
    for module in model.modules():
        made = type(module).__module__.startswith("torch._dynamo")
        if made or getattr(module, "_compiled_call_impl", None) is not None:
            raise RecordError(model, _COMPILED)
    return dict(named_layers(model))


def _checked_choice(choice: object, layers: Mapping[str, Layer]) -> object:
    """A name, layer or class that something fits."""
    kind = isinstance(choice, type) and issubclass(choice, Layer)
    if not kind and not isinstance(choice, (str, Layer)):
        raise TypeError(
            f"record: what to record is a name, a tt.Layer or a class of them, got {choice!r}"
        )
    if not any(_names(name, layer, [choice]) for name, layer in layers.items()):
        known = [_key(name, what) for name, layer in layers.items() for what in _parts(layer)]
        raise ValueError(
            f"record: nothing in the model's tt layers fits {choice!r}; there is "
            f"{', '.join(known) or 'none'}"
        )
    return choice


def _names(name: str, layer: Layer, wanted: Sequence[object]) -> list[str]:
    """What of a layer is wanted."""
    usual = [part for part in _parts(layer) if part != INPUT]
    found: dict[str, None] = {} if wanted else dict.fromkeys(usual)
    for choice in wanted:
        if isinstance(choice, str):
            parts = [part for part in _parts(layer) if _fits(_key(name, part), choice)]
            found.update(dict.fromkeys(parts or (usual if _fits(name, choice) else ())))
        elif layer is choice or (isinstance(choice, type) and isinstance(layer, choice)):
            found.update(dict.fromkeys(usual))
    return [*found]


def _fits(name: str, pattern: str) -> bool:
    """Whether a name, which may have brackets in it, fits; ``*`` and ``?`` are for any letters."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _parts(layer: Layer) -> list[str]:
    """All that can be recorded of a layer."""
    return [*dict.fromkeys([*layer.tt.declaration.states, INPUT, OUTPUT])]


def _key(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _checked_flag(detach: object) -> bool:
    if not isinstance(detach, bool):
        raise TypeError(f"record: detach must be True or False, got {detach!r}")
    return detach
