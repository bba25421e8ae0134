"""A model's whole sequence: arguments, chunks, samples that end, cuts of the graph.

A chunk is folded or stepped, as ``decision`` says; its outputs are put together by ``assembling``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from tracetorch import mode
from tracetorch.calls import timesteps
from tracetorch.errors import FoldError, check_dense
from tracetorch.layer import Layer
from tracetorch.layer_states import States, held
from tracetorch.modules import hooked
from tracetorch.parameters import checked_integer
from tracetorch.passage import Active, Passage
from tracetorch.reasons import Reason, Unfoldable, Unfolded
from tracetorch.recomputation import restored
from tracetorch.sequences.assembling import assembled, mapped
from tracetorch.sequences.decision import conclude, decided, kind_of, seen
from tracetorch.sequences.fold import folded
from tracetorch.sequences.glance import Glance
from tracetorch.sequences.packing import packing
from tracetorch.sequences.recomputing import restored_states
from tracetorch.states import checked_resets
from tracetorch.walk import named_layers
from tracetorch.written import own


class Options(NamedTuple):
    """How a sequence is to be gone through; see ``Model.unroll``."""

    time_dim: int = 0
    lengths: Tensor | None = None
    resets: Tensor | None = None
    chunk_size: int | None = None
    detach_every: int | None = None
    recompute: bool = False
    fold: bool | None = None
    pack_spikes: bool = False


def unrolled(model: Any, x: Tensor, options: Options) -> Any:
    """The outputs along ``time_dim``; the states are the final ones, or those from before.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: it is out of range, or a state has no batch for ``lengths``.
        FoldError: it was to be folded, and cannot be.
    """
    # a compiled graph does not look at what a model holds: it is made again where that changes
    glance = None if torch.compiler.is_compiling() else seen(model)
    layers = glance.layers if glance else [layer for _, layer in named_layers(model)]
    kept = _kept(model, layers)
    steps = _checked_sequence(x, options.time_dim)
    options = _checked(options, steps)
    bounds = _bounds(len(steps), options)
    run = _Run(model, layers, glance, steps, options, bounds)
    before = {layer: layer.tt.states for layer in layers}
    try:
        chunks = run.chunks()
        if len(bounds) == 2:
            outputs = next(chunks)
        elif run.plain:
            outputs = mapped(_joined, *chunks)
        else:
            outputs = assembled(chunks, len(steps))
        return mapped(lambda output: _timed(output, options.time_dim), outputs)
    except BaseException:
        restore(model, before)
        _back(kept)
        raise
    finally:
        model.tt.last = run.why


# ---------------------------------------------------------------------- states of all layers


def standing(model: nn.Module) -> dict[Layer, States]:
    """The states of its layers."""
    return {layer: layer.tt.states for _, layer in named_layers(model)}


def restore(model: nn.Module, before: dict[Layer, States]) -> None:
    """Put states back; a layer that has come since had none."""
    for _, layer in named_layers(model):
        layer.tt.states = before.get(layer, dict.fromkeys(layer.tt.states))


Kept = list[tuple[Passage, object]]


def _kept(model: nn.Module, layers: Iterable[Layer]) -> Kept:
    """What keeps something of the layers' calls, and how far it has come."""
    found: Kept = []
    for layer in layers:
        passage = layer.tt.passage
        if passage is not None:
            if not passage.transparent:
                raise Unfoldable(Unfolded.WITHIN, type(model).__name__)
            found.append((passage, passage.place()))
    return found


def _back(kept: Kept) -> None:
    """Undo what has been kept since."""
    for passage, place in kept:
        passage.back(place)


# ---------------------------------------------------------------------- chunks


class _Run:
    """One sequence ``[T, B, …]`` on its way."""

    def __init__(
        self,
        model: Any,
        layers: list[Layer],
        glance: Glance | None,
        steps: Tensor,
        options: Options,
        bounds: list[int],
    ) -> None:
        self._model, self._layers, self._glance, self._steps = model, layers, glance, steps
        self._options, self._bounds = options, bounds
        self.plain = torch.compiler.is_compiling() or mode.transformed()
        self._recompute = options.recompute and torch.is_grad_enabled() and not self.plain
        self.why = self._decided()

    def _decided(self) -> Reason | None:
        """Why it is stepped; None where it is folded."""
        options, model = self._options, self._model
        why: Reason | None = None
        if options.fold is False and not self._recompute:
            return Reason(Unfolded.ASKED)
        if options.resets is not None and own(type(model).zero_states):
            why = Reason(Unfolded.OWN, (type(model).__name__, "zero_states"))
            model.tt.tell(model, why)
        elif name := self._hooked():
            why = Reason(Unfolded.HOOKS, (name,))
            model.tt.tell(model, why)
        elif not options.fold and (len(self._steps) > 1 or self._recompute):
            why = decided(model, self._steps)
        if options.fold and why is not None:
            raise FoldError(f"{type(model).__name__} cannot be folded: {why}")
        if self._recompute and why is not None and not why.pure:
            raise FoldError(
                f"recompute=True needs timesteps that can be computed again, and "
                f"{type(model).__name__} is stepped: {why}"
            )
        return why or (Reason(Unfolded.ASKED) if options.fold is False else None)

    def _hooked(self) -> str | None:
        """The class of a module with hooks."""
        if self._glance is not None:
            return self._glance.hooked()
        found = [module for module in self._model.modules() if hooked(module)]
        return type(found[0]).__name__ if found and found[0] is not self._model else None

    def chunks(self) -> Iterator[Any]:
        """Outputs ``[t, B, …]`` between every two bounds."""
        lengths, every = self._options.lengths, self._options.detach_every
        resets = self._options.resets
        for start, stop in itertools.pairwise(self._bounds):
            active = None if lengths is None else lengths > start
            if every and start and start % every == 0:
                self._cut(active)
            part = self._steps[start:stop], active, None if resets is None else resets[start:stop]
            yield self._recomputed(*part) if self._recompute else self._chunk(*part)

    def _recomputed(self, *part: Tensor | None) -> Any:
        """The chunk, of which nothing is kept but its outputs."""
        restored = restored_states(self._model)
        return checkpoint(self._chunk, *part, use_reentrant=False, context_fn=restored)

    def _chunk(self, steps: Tensor, active: Tensor | None, resets: Tensor | None) -> Any:
        """Some timesteps in which no sample ends; those that have ended stand still, silent."""
        if active is None:
            return self._timesteps(steps, resets)
        before = standing(self._model)
        ended = torch.compiler.is_compiling() or not active.all()
        if ended and self.why is not None and len(steps) > 1:
            # a forward that mixes samples would see those go on that have ended
            each = [slice(t, t + 1) for t in range(len(steps))]
            masks = [None if resets is None else resets[t] for t in each]
            parts = (self._chunk(steps[t], active, m) for t, m in zip(each, masks, strict=True))
            return mapped(_joined, *parts)
        if ended:
            # what pads a sequence may be no number, and would make every gradient none
            steps = torch.where(
                _over(active, steps) | steps.isfinite(), steps, torch.zeros_like(steps)
            )
        with Active(active):
            y = self._timesteps(steps, resets)
        hold(self._model, active, before)
        return mapped(lambda t: _silenced(t, active), y)

    def _timesteps(self, steps: Tensor, resets: Tensor | None) -> Any:
        """The chunk at once where that was decided, else timestep by timestep."""
        if self.why is not None or (len(steps) == 1 and not self._options.fold):
            return self._packed(looped, self._model, steps, resets)
        before = {layer: layer.tt.states for layer in self._layers}
        kept = _kept(self._model, self._layers)
        glance = None if restored() else self._glance
        writes = [] if glance is None else glance.writes()
        y, why = None, None
        try:
            y = self._packed(folded, self._model, self._layers, steps, resets)
        except Unfoldable as unfoldable:
            why = unfoldable.reason
        if glance is not None and (changed := glance.changes(writes)):
            raise self._changed(changed)
        if why is None:
            return y
        if self._options.fold:
            raise FoldError(f"{type(self._model).__name__} cannot be folded: {why}")
        for layer, states in before.items():
            layer.tt.states = states
        _back(kept)
        self.why = why
        if glance is not None:
            conclude(self._model, kind_of(self._model, self._steps), why)
        return self._packed(looped, self._model, steps, resets)

    def _packed(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Timesteps run; what autograd keeps of their spikes is packed where that was asked for."""
        if not self._options.pack_spikes:
            return run(*arguments)
        with packing(self._model, self._steps):
            return run(*arguments)

    def _changed(self, names: list[str]) -> FoldError:
        """What to raise: what a sequence at once has changed cannot be made undone."""
        model = self._model
        why = Reason(Unfolded.CHANGES, (", ".join(names),))
        for _ in range(2):  # for good
            conclude(model, kind_of(model, self._steps), why)
        return FoldError(
            f"forward of {type(model).__name__} changed {', '.join(names)} for the first time, "
            f"over a whole sequence at once; hold it in a state of a tt.Layer, or unroll with "
            f"fold=False. From now on the model is stepped"
        )

    def _cut(self, active: Tensor | None) -> None:
        """Detach the states, but not those of samples whose sequence is over."""
        before = standing(self._model)
        for layer in before:
            layer.detach_states()
        if active is not None and (torch.compiler.is_compiling() or not active.all()):
            hold(self._model, active, before)


def looped(model: Any, steps: Tensor, resets: Tensor | None = None) -> Any:
    """Timestep by timestep: the definition."""
    outputs = []
    for y in timesteps(model, steps, resets):
        for leaf in tree_leaves(y):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"unroll: forward of {type(model).__name__} must return tensors, or tuples, "
                    f"lists or dicts of them, got {leaf!r}"
                )
        outputs.append(y)
    return mapped(lambda *ys: torch.stack(ys), *outputs)


def hold(model: nn.Module, active: Tensor, before: dict[Layer, States]) -> None:
    """States of samples that are not active as they were before."""
    for _, layer in named_layers(model):
        layer.tt.states = held(layer, active, before.get(layer, {}))


# ---------------------------------------------------------------------- arguments


def _checked(options: Options, steps: Tensor) -> Options:
    lengths = options.lengths
    if lengths is not None:
        lengths = _checked_lengths(lengths, steps)
    resets = options.resets
    if resets is not None:
        resets = _checked_resets(resets, steps, options.time_dim % steps.ndim)
    every = _checked_count("detach_every", options.detach_every)
    size = _checked_count("chunk_size", options.chunk_size)
    either = "True or False"
    flags = {"recompute": either, "fold": f"None, {either}", "pack_spikes": either}
    for name, allowed in flags.items():
        value = getattr(options, name)
        if not isinstance(value, bool) and not (name == "fold" and value is None):
            raise TypeError(f"unroll: {name} must be {allowed}, got {value!r}")
    return options._replace(lengths=lengths, resets=resets, detach_every=every, chunk_size=size)


def _checked_sequence(x: object, time_dim: int) -> Tensor:
    check_dense("unroll: x must be a tensor [T, B, …]", x)
    if not isinstance(x, Tensor):
        remedy = ""
        if isinstance(x, (list, tuple)) and x and all(isinstance(part, Tensor) for part in x):
            remedy = "; torch.stack(x), or pad_sequence(x) with lengths, is one"
        raise TypeError(f"unroll: x must be a tensor [T, B, …], got a {type(x).__name__}{remedy}")
    time_dim = checked_integer("unroll", "time_dim", time_dim)
    if not -x.ndim <= time_dim < x.ndim or x.shape[time_dim] == 0:
        raise ValueError(
            f"unroll: x needs at least one timestep at time_dim={time_dim}, "
            f"got the shape {list(x.shape)}"
        )
    return x.movedim(time_dim, 0)


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


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


def _bounds(steps: int, options: Options) -> list[int]:
    """Where chunks begin and end: at multiples of the sizes asked for and where samples end."""
    every, size, lengths = options.detach_every, options.chunk_size, options.lengths
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


def _checked_resets(resets: object, steps: Tensor, time_dim: int) -> Tensor:
    """Which samples restart before which timesteps, ``[T, B]``; ``x`` had time at ``time_dim``."""
    resets = checked_resets(resets)
    order = ("T", "B") if time_dim == 0 else ("B", "T")
    needed = steps.shape[:2] if time_dim == 0 else steps.shape[:2][::-1]
    if steps.ndim < 2 or resets.shape != needed:
        raise ValueError(
            f"unroll: resets must have an entry for each timestep and sample of x, "
            f"[{', '.join(order)}] = {list(needed)} for time_dim={time_dim}, got the shape "
            f"{list(resets.shape)}"
        )
    return (resets if time_dim == 0 else resets.t()).to(steps.device)


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
