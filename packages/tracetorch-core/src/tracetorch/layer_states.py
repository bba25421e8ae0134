"""The states of one layer: read, checked, and what they become.

Each function takes a layer for its record, its ``dim`` and its name in errors, and returns new
states by name; :class:`Stateful`, what a layer inherits, puts them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.declaration import Record
from tracetorch.effective import promoted
from tracetorch.errors import StateError
from tracetorch.randomness import RANDOM
from tracetorch.states import (
    IncompatibleStates,
    StateSpec,
    checked_index,
    checked_mask,
    checked_resets,
    checked_states,
    compared,
    keep_where,
    restarted,
)
from tracetorch.written import standard

States = dict[str, Tensor | None]

# the remedy where a standing state does not fit what comes next
RESTART = "call zero_states() before a new sequence"


def states_of(layer: Any) -> States:
    """The standing states, for who looks at them from outside a timestep."""
    refuse_passage(layer)
    refuse_left_overs(layer)
    states: States = layer.tt.states
    return states


def refuse_passage(layer: Any) -> None:
    """Raise where there is no state of this timestep: all are under way at once."""
    if layer.tt.passage is not None:
        layer.tt.passage.refuse_states(layer)


def refuse_left_over(layer: Any, name: str, state: Tensor) -> None:
    """StateError where a state belongs to a transform of torch that has ended."""
    if mode.left_over(state):
        raise StateError(
            layer,
            f"the standing state {name} was left behind by a transform or tracer of torch "
            f"(torch.func.vmap or grad, FakeTensorMode) that has ended; call zero_states() inside "
            f"of it, before it returns, or now",
        )


def refuse_left_overs(layer: Any) -> None:
    """The same of all its states, where they are to be copied or moved."""
    for name, state in layer.tt.states.items():
        if state is not None:
            refuse_left_over(layer, name, state)


def standing(layer: Any, timestep: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The states that a timestep begins with, in the user's layout: zeros where there are none.

    Raises:
        StateError: a standing state does not fit the input.
    """
    record, found = layer.tt, []
    place, around, device = layer.dim % timestep.ndim, timestep.shape, timestep.device
    compiling = torch.compiler.is_compiling()
    for name, spec in record.declaration.states.items():
        state = record.states[name]
        shape = spec.shape(around, place)
        if state is not None and not compiling:
            refuse_left_over(layer, name, state)
        if state is None:
            state = torch.zeros(shape, dtype=dtype, device=device)
        elif state.shape != shape or state.dtype is not dtype or state.device != device:
            raise _misfit(layer, name, state, timestep, _described(shape, dtype, device))
        elif not compiling and state.is_inference() and not torch.is_inference_mode_enabled():
            state = state.clone()
        found.append(state)
    return found


def _misfit(layer: Any, name: str, state: Tensor, timestep: Tensor, needs: str) -> StateError:
    is_as = _described(state.shape, state.dtype, state.device)
    same = is_as.partition("]")[0] == needs.partition("]")[0]
    remedy = "or detach and convert the state with get_states() and set_states()"
    if not same:
        remedy = "and give whole sequences to unroll, time first or with time_dim"
    came = _described(timestep.shape, timestep.dtype, timestep.device)
    return StateError(
        layer,
        f"the standing state {name} is {is_as}, but an input of {came} needs {needs}; "
        f"{RESTART}, {remedy}",
    )


def _described(shape: object, dtype: torch.dtype, device: torch.device) -> str:
    return f"{list(shape)} {dtype} on {device}".replace("torch.", "")  # type: ignore[call-overload]


# ---------------------------------------------------------------------- what they become


def zeroed(layer: Any, mask: Tensor | None) -> States:
    """None, or only the samples where the mask is true restarted."""
    refuse_passage(layer)
    states: States = layer.tt.states
    if mask is None:
        return dict.fromkeys(states)
    mask = checked_mask(mask)
    return {
        name: state
        if state is None or name == RANDOM
        else restarted(state, _fitted(layer, mask, name, state))
        for name, state in states_of(layer).items()
    }


def selected(layer: Any, index: Tensor) -> States:
    """Other samples of dimension 0: those at ``index`` in its order, or where it is true."""
    index = checked_index(index)
    found: States = {}
    for name, state in states_of(layer).items():
        if state is None or name == RANDOM:
            found[name] = state
            continue
        if not batched(layer, name, state):
            raise _unbatched(layer, name, state, "samples that could be selected")
        if index.dtype == torch.bool:
            found[name] = state[_fitted(layer, index, name, state)]
            continue
        if index.numel() and not -len(state) <= int(index.min()) <= int(index.max()) < len(state):
            raise StateError(
                layer,
                f"the index selects samples {int(index.min())}…{int(index.max())}, the state "
                f"{name} of shape {list(state.shape)} has a batch of {len(state)}",
            )
        found[name] = state[index.to(state.device)]
    return found


def detached(layer: Any) -> States:
    """Cut from the graph."""
    states = states_of(layer)
    return {name: None if state is None else state.detach() for name, state in states.items()}


def held(layer: Any, active: Tensor, before: Mapping[str, Tensor | None]) -> States:
    """Those from before wherever a sample is not active (its sequence is over)."""
    found: States = {}
    for name, state in layer.tt.states.items():
        old = before.get(name)
        if state is not None and state is not old and name != RANDOM:
            other = torch.zeros_like(state) if old is None else old
            state = keep_where(_fitted(layer, active, name, state), state, other)
        found[name] = state
    return found


def _fitted(layer: Any, mask: Tensor, name: str, state: Tensor) -> Tensor:
    if not batched(layer, name, state):
        raise _unbatched(layer, name, state, "mask or lengths")
    if len(mask) != state.shape[0]:
        raise StateError(
            layer,
            f"the mask or lengths has {len(mask)} entries, the state {name} of shape "
            f"{list(state.shape)} has a batch of {state.shape[0]}",
        )
    return mask.to(state.device)


def fitted_resets(layer: Any, resets: object, x: Tensor) -> Tensor:
    """Which samples of a layer's sequence restart before which timesteps, on its device.

    Raises:
        TypeError: ``resets`` is no boolean tensor.
        StateError: it has another shape than the sequence's time and batch.
    """
    resets = checked_resets(resets)
    if layer.dim % (x.ndim - 1) == 0:
        raise StateError(
            layer,
            f"an input of {list(x.shape)} is unbatched (its neurons are at dimension 0 of a "
            f"timestep) and takes no resets; add a batch dimension to the input",
        )
    if resets.shape != x.shape[:2]:
        raise StateError(
            layer,
            f"resets must have an entry for each timestep and sample of x, {list(x.shape[:2])}, "
            f"got the shape {list(resets.shape)}",
        )
    return resets.to(x.device)


def _unbatched(layer: Any, name: str, state: Tensor, what: str) -> StateError:
    return StateError(
        layer,
        f"the state {name} of shape {list(state.shape)} is unbatched (its neurons are at "
        f"dimension 0) and takes no {what}; add a batch dimension to the input",
    )


def batched(layer: Any, name: str, state: Tensor) -> bool:
    """Whether a state's dimension 0 is the batch."""
    spec: StateSpec = layer.tt.declaration.states[name]
    return spec.neuron_dim(state.ndim, layer.dim) != 0


# ---------------------------------------------------------------------- given from outside


def accepted(
    layer: Any, states: Mapping[str, Tensor | None], strict: bool
) -> tuple[States, IncompatibleStates]:
    """The standing states with these in their places, and the names that did not fit.

    Raises:
        TypeError: ``states`` is no mapping.
        StateError: a name or tensor does not fit.
    """
    refuse_passage(layer)
    states, own = checked_states(states), layer.tt.states
    if strict and not states:
        return dict.fromkeys(own), IncompatibleStates([], [])
    misfits = compared(states.keys(), own.keys())
    if strict and any(misfits):
        raise StateError(
            layer,
            f"states do not match: unknown {misfits.unexpected}, missing {misfits.missing}; "
            f"pass strict=False to take what fits by name, or give None for a state that is not "
            f"created yet",
        )
    found: States = dict(own)
    for name in states.keys() & own.keys():
        found[name] = _checked(layer, name, states[name])
    leading = {
        name: _around(layer, name, state)
        for name, state in found.items()
        if state is not None and name != RANDOM
    }
    # compared, for sizes in a graph have no hash
    around = [*leading.values()]
    if any(other != around[0] for other in around[1:]):
        raise StateError(layer, f"states disagree on the shape around the neurons: {leading}")
    return found, misfits


def _checked(layer: Any, name: str, state: Tensor | None) -> Tensor | None:
    if state is None:
        return None
    if name == RANDOM:
        if not isinstance(state, Tensor) or state.dtype != torch.int64 or state.shape != (2,):
            raise StateError(
                layer, f"the state {RANDOM} must be int64 [2], seed and count, got {state!r}"
            )
        return state
    if not isinstance(state, Tensor) or not state.is_floating_point():
        got = state.dtype if isinstance(state, Tensor) else repr(state)
        raise StateError(layer, f"the state {name} must be a floating-point tensor, got {got}")
    spec: StateSpec = layer.tt.declaration.states[name]
    if not spec.holds(state, layer.dim):
        raise StateError(
            layer,
            f"a state {name} of shape {list(state.shape)} does not fit: needs sizes "
            f"{list(spec.sizes)} with the neurons at dim={layer.dim}; it is of another layer",
        )
    return state.to(promoted(layer, state.dtype))


def _around(layer: Any, name: str, state: Tensor) -> tuple[int, ...]:
    spec: StateSpec = layer.tt.declaration.states[name]
    rank = state.ndim - len(spec.sizes) + 1
    place = layer.dim % rank
    return tuple(size for at, size in enumerate(state.shape[:rank]) if at != place)


# ---------------------------------------------------------------------- put in place


class Stateful(nn.Module):
    """What every layer can do with its states."""

    dim: int
    tt: Record

    @standard
    def zero_states(self, mask: Tensor | None = None) -> None:
        """Every state back to None; with a mask only the samples where it is true restart.

        Args:
            mask: boolean ``[B]`` over dimension 0 of a timestep.

        Raises:
            TypeError: ``mask`` is no boolean tensor.
            ValueError: ``mask`` has another length than the batch, or the state has no batch.
        """
        self.tt.states = zeroed(self, mask)

    def select_states(self, index: Tensor) -> None:
        """Other samples of the batch in its place; see ``tt.Model.select_states``.

        Args:
            index: integers ``[B']`` into dimension 0 of a timestep's batch, or a boolean mask
                ``[B]`` of the samples to keep.

        Raises:
            TypeError: ``index`` is neither.
            ValueError: it does not fit a state's batch, or a state has none; nothing has changed.
        """
        self.tt.states = selected(self, index)

    def detach_states(self) -> None:
        """Cut every state from the graph that computed it; values stay."""
        self.tt.states = detached(self)

    def get_states(self) -> dict[str, Tensor]:
        """The standing states by name, in the user's layout; those not created yet are absent."""
        states = states_of(self)
        return {name: state for name, state in states.items() if state is not None}

    def set_states(
        self, states: Mapping[str, Tensor | None], strict: bool = True
    ) -> IncompatibleStates:
        """Put states in place, all or none; they may carry a graph.

        Args:
            states: name → tensor in the user's layout, or None for "not created yet"; without any
                name none is, as ``get_states()`` then gives them.
            strict: refuse unknown names and demand every state of the layer.

        Returns:
            The names that did not fit, ``missing`` and ``unexpected``.

        Raises:
            TypeError: ``states`` is no mapping.
            StateError: a name or tensor does not fit; nothing has changed then.
        """
        self.tt.states, misfits = accepted(self, states, strict)
        return misfits

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stateful:
        states = {name: _changed(self, name, s, fn) for name, s in self.tt.states.items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tt.states = states
        return self


def _changed(
    layer: Any, name: str, state: Tensor | None, fn: Callable[[Tensor], Tensor]
) -> Tensor | None:
    try:
        return None if state is None else fn(state)
    except RuntimeError:
        if state is not None:
            refuse_left_over(layer, name, state)
        raise
