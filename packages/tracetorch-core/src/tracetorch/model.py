"""A model: one line for all the states of all its layers. Uses the one walk, computes nothing."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from tracetorch import state_files
from tracetorch.assembling import assembled
from tracetorch.checkpointing import restored_states
from tracetorch.engine.admission import parts, peculiar, transformed
from tracetorch.errors import LayerError, StateError
from tracetorch.folding import Unfoldable, folded, hooked_modules, looking_out
from tracetorch.keeping import TORCHS, Kept
from tracetorch.layer import Layer
from tracetorch.parameters import checked_integer
from tracetorch.randomness import RANDOM
from tracetorch.state_files import StateFile, StateRecord, dtype_name
from tracetorch.states import IncompatibleStates, checked_states, compared
from tracetorch.walk import Boundary, named_layers

_log = logging.getLogger("tracetorch")


class ParameterCount(NamedTuple):
    """How many scalar parameters a model has.

    Attributes:
        total: all of them, those of layers in containers and plain objects included.
        in_layers: those inside tt layers.
        learnable: those of the total that require a gradient.
    """

    total: int
    in_layers: int
    learnable: int


class Model(Boundary):
    """Base class of networks with tt layers anywhere inside.

    ``forward`` is the user's and computes one timestep. Layers are found in submodules and in
    lists, tuples, sets, dicts and plain objects held as attributes, at any depth; each once,
    under one stable name. Plain objects do not lead into modules that are or contain a
    ``tt.Model``, so a trainer or logger held by the model does not drag other models in.

    Example:
        >>> import torch, tracetorch as tt
        >>> class Leak(tt.Layer):
        ...     def __init__(self, n):
        ...         super().__init__(n)
        ...         self.add_state("mem")
        ...         self.add_parameter("beta", 0.5, constraint=tt.constraints.sigmoid)
        ...     def step(self, states, x, p):
        ...         mem = p.beta * states.mem + x
        ...         return {"mem": mem}, mem
        >>> class Net(tt.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.leaks = [Leak(1), Leak(1)]
        ...     def forward(self, x):
        ...         return self.leaks[1](self.leaks[0](x))
        >>> net = Net()
        >>> net.unroll(torch.ones(3, 1, 1)).detach().flatten().tolist()
        [1.0, 2.0, 2.75]
        >>> sorted(net.get_states())
        ['leaks.0.mem', 'leaks.1.mem']
        >>> net.zero_states()
        >>> net.get_states()
        {}
    """

    # what is known of how it unrolls
    _tracetorch_private = TORCHS | frozenset(("_stepped", "_foldable", "_changing", "_told"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stepped: dict[tuple[bool, int], str] = {}
        self._foldable: set[tuple[bool, int]] = set()
        self._changing: set[tuple[bool, int]] = set()
        self._told: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``forward``; an error of a layer says the layer's qualified name."""
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except LayerError as error:
            self._locate(error)
            raise

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer with its qualified name: registered ones first, then those in containers.

        A name is the path of attributes, indices and keys that leads to the layer.
        """
        return named_layers(self)

    # ------------------------------------------------------------------ states

    def zero_states(self, mask: Tensor | None = None) -> None:
        """Every state back to None; with a mask only the samples where it is true restart.

        Args:
            mask: boolean ``[B]``, over dimension 0 of one timestep's batch.

        Raises:
            TypeError: ``mask`` is no boolean tensor.
            ValueError: ``mask`` does not fit a state's batch, or a state has none; no state has
                changed then.
        """
        self._for_all(lambda name, layer: layer._zeroed(mask))

    def detach_states(self) -> None:
        """Cut every state from the graph; values stay (truncated back-propagation)."""
        for _, layer in self.named_layers():
            layer.detach_states()

    def get_states(self) -> dict[str, Tensor]:
        """``{qualified name: tensor}`` of the states created so far, in the user's layout."""
        return {
            f"{name}.{state}": tensor
            for name, layer in self.named_layers()
            for state, tensor in layer.get_states().items()
        }

    def set_states(
        self, states: Mapping[str, Tensor | None], strict: bool = True
    ) -> IncompatibleStates:
        """Put states in place; all or none. None stands for "not created yet".

        Args:
            states: qualified names → tensors in the user's layout.
            strict: refuse names the model does not have, and demand every one it has.

        Returns:
            The qualified names that did not fit, as ``load_state_dict`` does: ``missing``, whose
            states stay as they are, and ``unexpected``, which are left out.

        Raises:
            TypeError: ``states`` is no mapping.
            StateError: a name, shape or dtype does not fit; no state has changed then.
        """
        states, layers = checked_states(states), dict(self.named_layers())
        known = {f"{name}.{state}" for name, layer in layers.items() for state in layer._states}
        misfits = compared(states.keys(), known)
        if strict and any(misfits):
            raise StateError(
                self,
                f"states do not match the model: unknown {misfits.unexpected}, "
                f"missing {misfits.missing}; pass strict=False to take those that fit by name",
            )

        def accept(name: str, layer: Layer) -> dict[str, Tensor | None]:
            own = {s: states[f"{name}.{s}"] for s in layer._states if f"{name}.{s}" in states}
            return layer._accepted(own, strict=False)

        self._for_all(accept)
        return misfits

    def save_states(self, path: str | os.PathLike[str]) -> None:
        """Write the states to a ``.safetensors`` or ``.pt`` file, replacing it atomically.

        Raises:
            ValueError: another suffix.
        """
        records, tensors = {}, {}
        for name, layer in self.named_layers():
            for state, tensor in layer._states.items():
                records[f"{name}.{state}"] = _record(layer, tensor)
                if tensor is not None:
                    tensors[f"{name}.{state}"] = tensor
        state_files.write(path, StateFile(_version(), records, tensors))

    def load_states(
        self,
        path: str | os.PathLike[str],
        strict: bool = True,
        device: torch.device | str | None = None,
    ) -> IncompatibleStates:
        """Read states from a file of :meth:`save_states`; all or nothing.

        A state keeps its dtype, unless the layer's parameters have another than when it was
        saved: then it becomes theirs, as ``.to()`` would have done.

        Args:
            path: a ``.safetensors`` or ``.pt`` file (the latter is read with
                ``weights_only=True``).
            strict: the file must have exactly this model's names and layer classes.
            device: where to put the states; each layer's own device where None.

        Returns:
            The qualified names that did not fit, as ``load_state_dict`` does: ``missing`` in the
            file, whose states stay as they are, and ``unexpected`` in it, which are left out.

        Raises:
            ValueError: another suffix.
            FileNotFoundError: there is no such file.
            StateFileError: the file is truncated, damaged or not a state file.
            StateError: the states do not fit this model. In no case has anything changed.
        """
        content = state_files.read(path)
        try:
            return self.set_states(self._from_file(content, strict, device), strict)
        except StateError as error:
            error.message = f"{path}: {error.message}"
            self._locate(error)
            raise

    def _from_file(
        self, content: StateFile, strict: bool, device: torch.device | str | None
    ) -> dict[str, Tensor | None]:
        layers = {
            f"{name}.{s}": layer for name, layer in self.named_layers() for s in layer._states
        }
        states: dict[str, Tensor | None] = {}
        for name, record in content.records.items():
            layer = layers.get(name)
            if strict and layer is not None and record.layer != _class_name(layer):
                raise StateError(
                    layer,
                    f"{name} was saved of a {record.layer}, not of a {_class_name(layer)}; "
                    f"pass strict=False to take it all the same",
                )
            tensor = content.tensors.get(name)
            if tensor is not None and layer is not None:
                tensor = _placed(tensor, record, layer, device)
            states[name] = tensor
        return states

    def _for_all(self, change: Callable[[str, Layer], dict[str, Tensor | None]]) -> None:
        """Compute the new states of every layer, then put all in place: all or none."""
        layers = list(self.named_layers())
        try:
            changed = [change(name, layer) for name, layer in layers]
        except LayerError as error:
            self._locate(error)
            raise
        for (_, layer), states in zip(layers, changed, strict=True):
            layer._states = states

    def _locate(self, error: LayerError) -> None:
        for name, layer in self.named_layers():
            if layer is error.layer:
                error.name = name

    # ------------------------------------------------------------------ sequences

    def unroll(
        self,
        x: Tensor,
        *,
        time_dim: int = 0,
        lengths: Tensor | None = None,
        chunk_size: int | None = None,
        detach_every: int | None = None,
        recompute: bool = False,
    ) -> Any:
        """A whole sequence: ``torch.stack([model(x_t) for x_t in x])``, from the standing states.

        Args:
            x: ``[T, B, …]``, at least one timestep.
            time_dim: which dimension of ``x`` is time, and of the outputs.
            lengths: integers ``[B]`` in 0…T: after its own length a sample's states stand still
                and its outputs are zero.
            chunk_size: how many timesteps are processed at a time, at least 1.
            detach_every: cut the states from the graph between every so many timesteps (truncated
                back-propagation through time), counted from the start of this call. The final
                states keep the graph of the last timesteps, of a sample's own with ``lengths``.
            recompute: keep of each chunk only its outputs and the states it began with, and
                compute the rest again when it is differentiated: the time of one more forward
                pass, and the memory of one chunk. Without gradients, and in a compiled graph,
                this changes nothing.

        Returns:
            The outputs along ``time_dim``. Where ``forward`` returns a tuple, list or dict of
            tensors, so does this. If anything fails, the states are as they were before.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument is out of range, or a state has no batch for ``lengths``.
        """
        before = self._standing()
        if any(layer._fold is not None for layer in before):
            raise Unfoldable(f"forward unrolls a {type(self).__name__} within a timestep")
        steps = _checked_sequence(x, time_dim)
        if lengths is not None:
            lengths = _checked_lengths(lengths, steps)
        every = _checked_count("detach_every", detach_every)
        size = _checked_count("chunk_size", chunk_size)
        if not isinstance(recompute, bool):
            raise TypeError(f"unroll: recompute must be True or False, got {recompute!r}")
        plain = torch.compiler.is_compiling() or transformed()
        recompute = recompute and torch.is_grad_enabled() and not plain
        bounds = _bounds(len(steps), every, size, lengths)
        chunks = self._chunks(steps, bounds, every, lengths, recompute)
        try:
            if len(bounds) == 2:
                outputs = next(chunks)
            elif plain:
                outputs = tree_map(lambda *parts: torch.cat(parts), *chunks)
            else:
                outputs = assembled(chunks, len(steps))
            return tree_map(lambda output: _timed(output, time_dim), outputs)
        except BaseException as error:
            self._restore(before)
            if isinstance(error, LayerError):
                self._locate(error)
            raise

    def _chunks(
        self,
        steps: Tensor,
        bounds: list[int],
        every: int | None,
        lengths: Tensor | None,
        recompute: bool,
    ) -> Iterator[Any]:
        """Outputs ``[t, B, …]`` between every two bounds."""
        for start, stop in itertools.pairwise(bounds):
            active = None if lengths is None else lengths > start
            if every and start and start % every == 0:
                self._cut(active)
            if recompute:
                yield self._recomputed(steps[start:stop], active)
            else:
                yield self._chunk(steps[start:stop], active)

    def _recomputed(self, steps: Tensor, active: Tensor | None) -> Any:
        """The chunk, of which nothing is kept but its outputs."""
        restored = restored_states(self)
        return checkpoint(self._chunk, steps, active, use_reentrant=False, context_fn=restored)

    def _chunk(self, steps: Tensor, active: Tensor | None) -> Any:
        """Some timesteps in which no sample ends; those that have ended stand still, silent."""
        if active is None:
            return self._folded_or_stepped(steps)
        before = self._standing()
        if torch.compiler.is_compiling() or not active.all():
            # what pads a sequence may be no number, and would make every gradient none
            steps = torch.where(
                _over(active, steps) | steps.isfinite(), steps, torch.zeros_like(steps)
            )
        y = self._folded_or_stepped(steps)
        self._hold(active, before)
        return tree_map(lambda t: _silenced(t, active), y)

    def _folded_or_stepped(self, steps: Tensor) -> Any:
        """The chunk at once where that can be, else timestep by timestep."""
        kind, before = (self.training, steps.ndim), self._standing()
        if len(steps) == 1 or self._why_stepped(steps.ndim, before):
            return self._loop(steps)
        if kind not in self._foldable and not torch.compiler.is_compiling():
            why = self._unfoldable(steps[:2], before)
            if why is not None:
                return self._stepped_for(why, kind, steps)
            self._foldable.add(kind)
        try:
            return self._folded(steps, before)
        except Unfoldable as why_not:
            self._restore(before)
            return self._stepped_for(str(why_not), kind, steps)

    def _why_stepped(self, ndim: int, layers: Iterable[Layer]) -> str | None:
        """Why sequences ``[T, B, …]`` of so many dimensions are stepped, as far as is known."""
        hooks = hooked_modules([*self._memoryless(layers), *layers])
        if hooks and hooks not in self._told and not torch.compiler.is_compiling():
            self._told.add(hooks)
            _log.info("%s is stepped: %s", type(self).__name__, hooks)
        return hooks or self._stepped.get((self.training, ndim))

    def _memoryless(self, layers: Iterable[Layer]) -> list[nn.Module]:
        """The modules in none of these layers."""
        own = {id(part) for layer in layers for part in parts(layer)}
        return [module for module in self.modules() if id(module) not in own]

    def _stepped_for(self, why: str, kind: tuple[bool, int], steps: Tensor) -> Any:
        """Step, from now on, if that goes well: else what went wrong is not the folding.

        Where ``forward`` changes something, that is asked once more the next time: it may have made
        for good what it goes by from then on.
        """
        y = self._loop(steps)
        if kind in self._changing or "forward changes" not in why:
            self._stepped[kind] = why
        if kind not in self._changing and not torch.compiler.is_compiling():
            _log.info("%s is stepped: %s", type(self).__name__, why)
        self._changing.add(kind)
        return y

    def _unfoldable(
        self, steps: Tensor, before: dict[Layer, dict[str, Tensor | None]]
    ) -> str | None:
        """Why these few timesteps cannot be folded, if they cannot; nothing else stays of it."""
        watched = Kept(self._memoryless(before), before, copies="all", draws=True)
        own = self._parts(before, copies="all")
        kept, sample = [watched, *self._parts(before, copies="all").values()], steps.clone()
        devices = [steps.device] if steps.is_cuda else []
        try:
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices),
                looking_out(),
            ):
                self._folded_with(watched, own, sample)
            if not sample.is_inference() and sample._version:
                return "forward writes into its input"
            return None
        # whatever forward raises on folded time, stepping shows anew
        except (Exception, Unfoldable) as why:
            return f"{type(why).__name__}: {why}"
        finally:
            for one in kept:
                one.restore()
            self._restore(before)
            # of weights rounded in here, without gradients (torch 2.6 would go on with them)
            torch.clear_autocast_cache()

    def _kept(self, layers: Iterable[Layer]) -> Kept:
        """All that code of the model may change, besides states."""
        return Kept([*self.modules(), *layers], copies="all", draws=True)

    def _parts(
        self, layers: Iterable[Layer], copies: Literal["none", "all"] = "none"
    ) -> dict[Layer, Kept]:
        """What belongs to each layer; a compiled graph does not look for changes of it."""
        if torch.compiler.is_compiling():
            return {layer: Kept(()) for layer in layers}
        return {layer: Kept(parts(layer), copies=copies) for layer in layers}

    def _folded(self, steps: Tensor, layers: Iterable[Layer]) -> Any:
        own = self._parts(layers)
        return self._folded_with(Kept(self._memoryless(own), own), own, steps)

    def _folded_with(self, kept: Kept, own: dict[Layer, Kept], steps: Tensor) -> Any:
        if why := hooked_modules(kept.modules):
            raise Unfoldable(why)
        for layer in own:
            if why := peculiar(layer):
                raise Unfoldable(f"of a {type(layer).__name__}: {why}")
        return folded(self, kept, own, steps)

    def _loop(self, steps: Tensor) -> Any:
        outputs = []
        for timestep in steps:
            y = self(timestep)
            for leaf in tree_leaves(y):
                if not isinstance(leaf, Tensor):
                    raise TypeError(
                        f"unroll: forward of {type(self).__name__} must return tensors, or tuples, "
                        f"lists or dicts of them, got {leaf!r}"
                    )
            outputs.append(y)
        return tree_map(lambda *ys: torch.stack(ys), *outputs)

    def _standing(self) -> dict[Layer, dict[str, Tensor | None]]:
        return {layer: layer._states for _, layer in self.named_layers()}

    def _restore(self, before: dict[Layer, dict[str, Tensor | None]]) -> None:
        for layer in self._standing():
            layer._states = before.get(layer, dict.fromkeys(layer._states))

    def _cut(self, active: Tensor | None) -> None:
        """Detach the states, but not those of samples whose sequence is over."""
        before = self._standing()
        self.detach_states()
        if active is not None and (torch.compiler.is_compiling() or not active.all()):
            self._hold(active, before)

    def _hold(self, active: Tensor, before: dict[Layer, dict[str, Tensor | None]]) -> None:
        for layer in self._standing():
            layer._held(active, before.get(layer, {}))

    # ------------------------------------------------------------------ inference

    def TTcompile(self) -> None:
        """Fix every layer's effective parameters as constants, for inference.

        Constraints are no longer evaluated at each timestep, and no gradient reaches the
        parameters of tt layers. The ``nn.Parameter`` objects stay where they are: ``.to()``,
        ``state_dict()`` and ``load_state_dict()`` go on working with the raw values, and the
        constants follow them. Calling it twice is as calling it once.
        """
        for _, layer in self.named_layers():
            layer.TTcompile()

    def TTdecompile(self) -> None:
        """Back to training with the very same parameters, bit for bit."""
        for _, layer in self.named_layers():
            layer.TTdecompile()

    # ------------------------------------------------------------------ looking

    def num_parameters(self) -> ParameterCount:
        """How many parameters there are, how many of them in tt layers, how many learnable."""
        inside = {
            id(p): p for _, layer in self.named_layers() for p in layer.parameters(recurse=True)
        }
        everything = {**{id(p): p for p in self.parameters()}, **inside}
        return ParameterCount(
            total=sum(p.numel() for p in everything.values()),
            in_layers=sum(p.numel() for p in inside.values()),
            learnable=sum(p.numel() for p in everything.values() if p.requires_grad),
        )

    def summary(self) -> str:
        """A table: each layer, its parameters, its states and their size per sample.

        The size of a state is known once it has been created; ``-`` stands for it before.
        """
        rows = [("layer", "", "parameters", "states", "state per sample")]
        for name, layer in self.named_layers():
            count = sum(p.numel() for p in layer.parameters())
            sizes = [
                state.shape[1 if layer._batched(key, state) else 0 :].numel()
                for key, state in layer.get_states().items()
                if key != RANDOM
            ]
            per_sample = str(sum(sizes)) if len(sizes) == len(layer._state_specs) else "-"
            rows.append((name, repr(layer), f"{count:,}", ", ".join(layer._states), per_sample))
        total, in_layers, learnable = self.num_parameters()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.append(f"{total:,} parameters, {in_layers:,} in tt layers, {learnable:,} learnable")
        return "\n".join(lines)

    # ------------------------------------------------------------------ being a module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        reached = set(map(id, self.modules()))
        inner = [m for m in self.modules() if isinstance(m, Model) and m is not self]
        reached.update(id(layer) for model in inner for _, layer in model.named_layers())
        for _, layer in self.named_layers():
            if id(layer) not in reached:
                layer._apply(fn, recurse)
                reached.update(map(id, layer.modules()))
        return self


def _record(layer: Layer, tensor: Tensor | None) -> StateRecord:
    return StateRecord(
        layer=_class_name(layer),
        shape=None if tensor is None else list(tensor.shape),
        dtype=None if tensor is None else dtype_name(tensor.dtype),
        parameters=_parameter_dtype(layer),
    )


def _placed(
    tensor: Tensor, record: StateRecord, layer: Layer, device: torch.device | str | None
) -> Tensor:
    own = layer._parameter_dtype()
    home = next(iter([*layer.parameters(), *layer.buffers()]), tensor).device
    same = own is None or dtype_name(own) == record.parameters
    same |= not tensor.is_floating_point()
    return tensor.to(device=home if device is None else device, dtype=tensor.dtype if same else own)


def _parameter_dtype(layer: Layer) -> str | None:
    dtype = layer._parameter_dtype()
    return None if dtype is None else dtype_name(dtype)


def _class_name(layer: Layer) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _version() -> str:
    import tracetorch

    return str(tracetorch.__version__)


def _checked_sequence(x: object, time_dim: int) -> Tensor:
    if not isinstance(x, Tensor):
        remedy = ""
        if isinstance(x, nn.utils.rnn.PackedSequence):
            remedy = "; torch.nn.utils.rnn.pad_packed_sequence gives x and lengths"
        elif isinstance(x, (list, tuple)) and x and all(isinstance(part, Tensor) for part in x):
            remedy = "; torch.stack(x), or pad_sequence(x) with lengths, is one"
        raise TypeError(f"unroll: x must be a tensor [T, B, …], got a {type(x).__name__}{remedy}")
    time_dim = checked_integer("unroll", "time_dim", time_dim)
    if not -x.ndim <= time_dim < x.ndim or x.shape[time_dim] == 0:
        raise ValueError(
            f"unroll: x needs at least one timestep at time_dim={time_dim}, "
            f"got the shape {list(x.shape)}"
        )
    return x.movedim(time_dim, 0)


def _timed(outputs: Tensor, time_dim: int) -> Tensor:
    """Outputs ``[T, …]`` with time at ``time_dim``."""
    if not -outputs.ndim <= time_dim < outputs.ndim:
        raise ValueError(
            f"unroll: outputs of shape {list(outputs.shape)}, time first, have no dimension "
            f"time_dim={time_dim} to put time at; give it as a negative number or move it first"
        )
    return outputs.movedim(0, time_dim)


def _checked_count(name: str, value: int | None) -> int | None:
    return None if value is None else checked_integer("unroll", name, value, low=1)


def _bounds(steps: int, every: int | None, size: int | None, lengths: Tensor | None) -> list[int]:
    """Where chunks begin and end: at multiples of the sizes asked for and where samples end."""
    bounds = {0, steps, *range(0, steps, every or steps), *range(0, steps, size or steps)}
    if lengths is not None:
        # a compiled graph cannot depend on where samples end: it asks at every timestep
        bounds.update(range(steps) if torch.compiler.is_compiling() else lengths.tolist())
    return sorted(bounds)


def _silenced(output: Tensor, active: Tensor) -> Tensor:
    """Outputs ``[T, B, …]`` with zeros for the samples that have ended."""
    if output.shape[1:2] != active.shape:
        raise ValueError(
            f"a mask or lengths over {len(active)} samples needs them at dimension 0 of every "
            f"state and output of a timestep, got one of shape {list(output.shape[1:])}"
        )
    return torch.where(_over(active, output), output, torch.zeros_like(output))


def _over(active: Tensor, sequence: Tensor) -> Tensor:
    """The mask of samples, to be broadcast with ``[T, B, …]``."""
    return active.to(sequence.device).view(1, -1, *(1,) * (sequence.ndim - 2))


def _checked_lengths(lengths: Tensor, steps: Tensor) -> Tensor:
    """One length per sample, each within the sequence."""
    kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not isinstance(lengths, Tensor) or lengths.dtype not in kinds:
        got = lengths.dtype if isinstance(lengths, Tensor) else repr(lengths)
        raise TypeError(f"unroll: lengths must be a tensor of integers [B], got {got}")
    if steps.ndim < 2 or lengths.shape != steps.shape[1:2]:
        raise ValueError(
            f"unroll: lengths must have one entry per sample of x in [T, B, …] (here, time first, "
            f"{list(steps.shape)}), got the shape {list(lengths.shape)}; for x in [B, T, …] pass "
            f"time_dim=1"
        )
    lengths = lengths.long()
    if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths > len(steps))).any()):
        raise ValueError(f"unroll: lengths must lie in 0…{len(steps)}, got {lengths.tolist()}")
    return lengths
