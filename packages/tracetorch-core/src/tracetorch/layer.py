"""A layer: states and parameters declared, one pure timestep, everything else done here.

``step`` is the definition of a layer. This module turns it into a call, a sequence, state
management and compiled parameters; it knows no model and no file.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import checkpointing, constraints, randomness
from tracetorch.constraints import Constraint
from tracetorch.engine import sequence
from tracetorch.engine.admission import parts
from tracetorch.engine.known import Known
from tracetorch.errors import StateError
from tracetorch.folding import USED, Fold, Unfoldable, time_is, under_way
from tracetorch.keeping import TORCHS
from tracetorch.numbering import number
from tracetorch.parameters import ParameterSpec, checked_integer, parameter_shape, to_raw
from tracetorch.randomness import RANDOM, Drawing, Random, after, lent
from tracetorch.states import (
    IncompatibleStates,
    StateSpec,
    alike,
    checked_mask,
    checked_states,
    compared,
    keep_where,
    moved,
    restarted,
)

_serial = itertools.count()


class Layer(nn.Module):
    r"""One input, one output, one timestep; the states are kept inside.

    A layer of one's own declares its states and parameters in ``__init__`` and computes one
    timestep in :meth:`step`. Creation of the states, ``dim``, dtypes, files, compilation, masks
    and whole sequences follow from that.

    Args:
        num_neurons: size of the input along ``dim``, at least 1.
        dim: which dimension of one timestep's input holds the neurons.

    Raises:
        TypeError: ``num_neurons`` or ``dim`` is no integer.
        ValueError: ``num_neurons`` is below 1.

    Example:
        An adaptive-threshold LIF: every spike raises the threshold, which then relaxes.

        >>> import torch, tracetorch as tt
        >>> class AdaptiveLIF(tt.Layer):
        ...     def __init__(self, num_neurons, beta=0.9, rho=0.97, jump=0.5, dim=-1):
        ...         super().__init__(num_neurons, dim)
        ...         self.add_state("mem", "raised")
        ...         self.add_parameter("beta", beta, constraint=tt.constraints.sigmoid)
        ...         self.add_parameter("rho", rho, constraint=tt.constraints.sigmoid)
        ...         self.add_parameter("jump", jump, constraint=tt.constraints.softplus)
        ...
        ...     def step(self, states, x, p):
        ...         mem = p.beta * states.mem + x
        ...         spike = (mem > 1 + states.raised).to(mem.dtype)
        ...         raised = p.rho * states.raised + p.jump * spike
        ...         return {"mem": mem - spike, "raised": raised}, spike
        >>> layer = AdaptiveLIF(2)
        >>> [layer(torch.tensor([[1.2, 0.3]])).tolist() for _ in range(2)]
        [[[1.0, 0.0]], [[0.0, 0.0]]]
    """

    num_neurons: int
    dim: int

    # attributes which say nothing about what the layer computes, or are looked after by themselves
    _tracetorch_private = TORCHS | frozenset((
        "_specs", "_state_specs", "_states", "_baked", "_fold", "_construction", "_known",
        "_state_fields", "_parameter_fields",
    ))  # fmt: skip

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__()
        owner = type(self).__name__
        self.num_neurons = checked_integer(owner, "num_neurons", num_neurons, low=1)
        self.dim = checked_integer(owner, "dim", dim)
        self._specs: dict[str, ParameterSpec] = {}
        self._state_specs: dict[str, StateSpec] = {}
        self._states: dict[str, Tensor | None] = {}
        self._baked: dict[str, Tensor] | None = None
        self._fold: Fold | None = None
        self._construction = (next(_serial), 0)
        self._known = Known(number(self))
        self._name_fields()

    # ------------------------------------------------------------------ declaring a layer

    def add_state(self, *names: str, sizes: tuple[int, ...] | None = None) -> None:
        """Declare states; each starts as zeros on the first timestep.

        Args:
            names: one or more identifiers, the attributes of ``states`` in :meth:`step`.
            sizes: size of the state where the input has ``num_neurons``, then any extra
                trailing dimensions; ``(num_neurons,)`` where None.

        Raises:
            ValueError: a name is no identifier or is taken.
        """
        for name in names:
            self._check_name(name)
            self._state_specs[name] = StateSpec(sizes or (self.num_neurons,))
            self._states[name] = None
        self._name_fields()

    def add_parameter(
        self,
        name: str,
        value: float | Tensor,
        *,
        rank: int = 1,
        learn: bool = True,
        constraint: Constraint = constraints.identity,
        raw_name: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Declare a parameter: its raw value is stored, ``layer.<name>`` is the effective one.

        Args:
            name: attribute of ``p`` in :meth:`step` and of the layer, readable and assignable.
            value: the initial effective value: a number, or a floating-point tensor whose own
                rank wins over ``rank``.
            rank: 0 = one scalar for the layer, 1 = one value per neuron.
            learn: True stores an ``nn.Parameter``, False a buffer.
            constraint: map from raw to effective value, with its inverse.
            raw_name: key in the ``state_dict``; ``raw_<name>`` where None. Giving ``name``
                itself stores an unconstrained weight under its own name.
            shape: for weights that are not per neuron: the exact shape of ``value``.

        Raises:
            TypeError: ``value``, ``rank`` or ``learn`` is of the wrong kind.
            ValueError: ``value`` lies outside the constraint's domain or has the wrong shape.
        """
        self._check_name(name)
        owner = type(self).__name__
        if not isinstance(learn, bool):
            raise TypeError(f"{owner}: learn_{name} must be True or False, got {learn!r}")
        if not isinstance(constraint, Constraint):
            raise TypeError(
                f"{owner}: the constraint of {name} must be a tt.Constraint, got {constraint!r}"
            )
        if shape is None:
            shape = parameter_shape(owner, name, value, rank, self.num_neurons)
        elif isinstance(value, Tensor) and value.shape not in ((), tuple(shape)):
            raise ValueError(f"{owner}: {name} must have shape {shape}, got {tuple(value.shape)}")
        raw = to_raw(owner, name, value, constraint).expand(shape).contiguous().clone()
        spec = ParameterSpec(name, raw_name or f"raw_{name}", constraint, shape)
        if learn:
            self.register_parameter(spec.raw_name, nn.Parameter(raw))
        else:
            self.register_buffer(spec.raw_name, raw)
        self._specs[name] = spec
        self._name_fields()

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """Compute one timestep, without side effects; to be written by each layer.

        Args:
            states: the states by attribute, neurons last: ``[…, size, *extra]``.
            x: input ``[…, num_neurons]``, in the states' dtype.
            p: the effective parameters by attribute.

        Returns:
            The new states by name, and the output ``[…, any size]``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(self, states, x, p)")

    # ------------------------------------------------------------------ computing

    def forward(self, x: Tensor) -> Tensor:
        """One timestep.

        Args:
            x: floating-point input of any shape with ``num_neurons`` at ``dim``.

        Returns:
            Output of the input's dtype, the output's neurons at ``dim``.

        Raises:
            TypeError: ``x`` is no floating-point tensor.
            StateError: ``x`` does not fit the layer, or the standing state does not fit ``x``.
        """
        if self._fold is not None:
            return self._unfolded(x, self._fold)
        self._refuse_lost()
        self._check_input(x)
        checkpointing.refuse_plain_recomputation(self)
        fused = sequence.step(self, x)
        return (
            self._advance(x, self._parameters_as(self._state_dtype(x))) if fused is None else fused
        )

    def unroll(self, x: Tensor) -> Tensor:
        """A whole sequence: the outputs, gradients and final states of calling it step by step.

        Args:
            x: ``[T, …]``, time first, at least one timestep.

        Returns:
            Outputs ``[T, …]``. If a timestep fails, the states are as they were before.
        """
        if self._fold is not None:
            raise Unfoldable(f"forward unrolls a {type(self).__name__} within a timestep")
        self._refuse_lost()
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[0] == 0:
            got = list(x.shape) if isinstance(x, Tensor) else _outlined(x)
            raise StateError(
                self, f"unroll takes [T, …] with time first and at least one timestep, got {got}"
            )
        self._check_input(x[0])
        checkpointing.refuse_plain_recomputation(self)
        before = self._states
        try:
            return self._sequence(x)
        except BaseException:
            self._states = before
            raise

    def kernel_source(
        self,
        ndim: int = 2,
        dtype: torch.dtype = torch.float32,
        backward: bool = False,
        backend: str = "cpp",
    ) -> str:
        """The generated source of this layer's sequence kernel, for reading, without the headers.

        Args:
            ndim: dimensions of one timestep.
            dtype: of the input.
            backward: the kernel of the backward pass, with every gradient, instead of the forward.
            backend: ``"cpp"``, or ``"triton"`` for CUDA's; neither a compiler nor a GPU is needed.

        Raises:
            BackendError: the layer has no kernel; the message says why.
            ValueError: there is no such backend.

        Example:
            >>> import torch, tracetorch as tt
            >>> source = tt.testing.Trace(3).kernel_source()
            >>> [line.strip() for line in source.splitlines() if "mem_;" in line]
            ['const real v2 = beta_ * mem_;']
        """
        return sequence.source(self, ndim, dtype, backward, backend)

    def _unfolded(self, x: Tensor, fold: Fold) -> Tensor:
        """All timesteps of a folded sequence, in its own order of time."""
        if fold is USED:
            raise Unfoldable(f"a {type(self).__name__} is called more than once in a timestep")
        steps = fold.apart(x)
        if changed := fold.kept.changed():
            raise Unfoldable(f"forward changes {', '.join(changed)} between timesteps")
        self._fold = None
        with time_is(folded=False):
            y = self.unroll(steps)
        if fold.kept.changed():
            fold.kept.look()  # what it has changed itself, it has at every timestep
        self._fold = USED
        return y.flatten(0, 1)

    def _refuse_lost(self) -> None:
        """Unfoldable where timesteps are under way at once, but the model does not know of it."""
        if not torch.compiler.is_compiling() and under_way():
            raise Unfoldable(f"forward calls a {type(self).__name__} that the model does not hold")

    def _sequence(self, x: Tensor) -> Tensor:
        """Outputs of a checked sequence ``[T, …]``, leaving the final states.

        Through the engine where it can be, else the loop over calls. A layer that computes whole
        sequences in another way overrides this.
        """
        fused = sequence.unroll(self, x)
        return torch.stack([self(timestep) for timestep in x]) if fused is None else fused

    def _advance(self, x: Tensor, p: Any) -> Tensor:
        dim, dtype = self.dim, self._state_dtype(x)
        standing = [
            spec.to_last(self._standing(name, spec, x, dtype), dim % x.ndim)
            for name, spec in self._state_specs.items()
        ]
        last = moved(x, dim % x.ndim, x.ndim - 1).to(dtype)
        random = self._random(x)
        with self._drawing(random, x):
            new, y = self._checked_step(standing, last, p)
        kept: dict[str, Tensor | None] = {}
        for (name, spec), old in zip(self._state_specs.items(), standing, strict=True):
            if new[name].shape != old.shape:
                raise StateError(
                    self,
                    f"step must return {name} in its own shape {list(old.shape)} (neurons last), "
                    f"got {list(new[name].shape)}",
                )
            # what others write into the input or the output is not to change a state
            state = new[name].clone() if alike(new[name], last) else new[name]
            kept[name] = spec.from_last(state.to(dtype), dim % x.ndim)
        if random is not None:
            kept[RANDOM] = after(random, 1)
        self._states = kept
        if any(alike(y, other) for other in (last, *standing, *new.values())):
            y = y.clone()
        return moved(y, -1, -1 if dim == y.ndim - 1 else dim).to(x.dtype)

    def _checked_step(
        self, standing: list[Tensor], x: Tensor, p: Any
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        """What ``step`` returns, where it is what it should be."""
        states, given = (
            self._state_fields(*standing),
            {"x": x, **dict(zip(self._state_specs, standing, strict=True))},
        )
        versions = {} if torch.compiler.is_compiling() else _versions(given)
        try:
            found: Any = self.step(states, x, p)
        except AttributeError as error:
            for what, fields in (("states", states), ("parameters", p)):
                known = ", ".join(fields._fields)
                if error.obj is fields:
                    raise AttributeError(
                        f"{self!r}: step reads {error.name!r}, which is none of its {what}: "
                        f"{known or 'it has none'}",
                        name=error.name,
                        obj=fields,
                    ) from None
            raise
        if not (
            isinstance(found, tuple)
            and len(found) == 2
            and isinstance(found[0], Mapping)
            and isinstance(found[1], Tensor)
            and all(isinstance(state, Tensor) for state in found[0].values())
        ):
            names = ", ".join(f"{name!r}: tensor" for name in self._state_specs)
            raise StateError(
                self, f"step must return ({{{names}}}, output), got {_outlined(found)}"
            )
        if found[0].keys() != self._state_specs.keys():
            raise StateError(
                self,
                f"step must return the states {sorted(self._state_specs)}, got {sorted(found[0])}",
            )
        for name, version in versions.items():
            if given[name]._version != version:
                raise StateError(
                    self, f"step writes into {name} in place; it must compute new tensors instead"
                )
        return found

    def _sources(self) -> list[Random]:
        """What draws random numbers in its step."""
        return [part for part in parts(self) if isinstance(part, Random)]

    def _random(self, x: Tensor) -> Tensor | None:
        """Seed and count of the random numbers, new where there are none yet, if it draws any."""
        if not self._sources():
            return None
        random = self._states.get(RANDOM)
        if random is None:
            return randomness.new(x.device)
        if random.device != x.device:
            raise StateError(
                self,
                f"the standing state {RANDOM} is on {random.device}, the input on {x.device}; "
                f"call zero_states() before a new sequence, or move the layer with .to()",
            )
        return random

    def _drawing(self, random: Tensor | None, x: Tensor) -> contextlib.AbstractContextManager[None]:
        """Within it, its step draws the numbers of the timestep of this input."""
        if random is None:
            return contextlib.nullcontext()
        return lent(self._sources(), Drawing(random, x.movedim(self.dim, -1).shape))

    def _standing(self, name: str, spec: StateSpec, x: Tensor, dtype: torch.dtype) -> Tensor:
        state, shape = self._states[name], spec.shape(x.shape, self.dim % x.ndim)
        if state is None:
            return torch.zeros(shape, dtype=dtype, device=x.device)
        if state.shape != shape or state.dtype != dtype or state.device != x.device:
            remedy = "or detach and convert the state with get_states() and set_states()"
            if state.shape != shape:
                remedy = "and give whole sequences to unroll, time first or with time_dim"
            raise StateError(
                self,
                f"the standing state {name} is {_describe(state.shape, state.dtype, state.device)}"
                f", but an input of {_describe(x.shape, x.dtype, x.device)} needs "
                f"{_describe(shape, dtype, x.device)}; call zero_states() before a new sequence, "
                f"{remedy}",
            )
        return state

    def _check_input(self, x: object) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"{self!r}: the input x must be a floating-point tensor, {_got_instead(x)}"
            )
        if not -x.ndim <= self.dim < x.ndim:
            raise StateError(
                self, f"the input x of shape {list(x.shape)} has no dimension dim={self.dim}"
            )
        if x.shape[self.dim] != self.num_neurons:
            raise StateError(
                self,
                f"the input x of shape {list(x.shape)} has {x.shape[self.dim]} neurons at "
                f"dim={self.dim}, the layer has {self.num_neurons}",
            )

    # ------------------------------------------------------------------ parameters

    def _state_dtype(self, x: Tensor) -> torch.dtype:
        return self._promoted(x.dtype)

    def _promoted(self, dtype: torch.dtype) -> torch.dtype:
        own = self._parameter_dtype()
        return dtype if own is None else torch.promote_types(dtype, own)

    def _parameter_dtype(self) -> torch.dtype | None:
        """The promoted dtype of all parameters and buffers; None where there are none."""
        dtype = None
        tensors = [*self._parameters.values(), *self._buffers.values()]
        if parametrized := self._modules.get("parametrizations"):
            # as they are stored: to compute what torch.nn.utils.parametrize does may change them
            for held in parametrized.children():
                tensors += [*held._parameters.values(), *held._buffers.values()]
        for tensor in tensors:
            if tensor is not None and tensor.is_floating_point():
                dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
        return dtype

    def _effective(self, spec: ParameterSpec) -> Tensor:
        if self._baked is not None:
            return self._baked[spec.name]
        return spec.constraint.forward(self._raw(spec))

    def _raw(self, spec: ParameterSpec) -> Tensor:
        raw: Tensor | None = self._parameters.get(spec.raw_name)
        if raw is None:
            raw = self._buffers.get(spec.raw_name)
        if raw is None:  # parametrize and prune of torch.nn.utils leave an attribute in its place
            raw = getattr(self, spec.raw_name)
        if raw is None:
            raise AttributeError(f"{type(self).__name__}: {spec.raw_name} was set to None")
        return raw

    def _parameters_as(self, dtype: torch.dtype) -> Any:
        return self._parameter_fields(
            *[self._effective(spec).to(dtype) for spec in self._specs.values()]
        )

    def _assign(self, spec: ParameterSpec, value: float | Tensor) -> None:
        raw = self._raw(spec)
        new = to_raw(type(self).__name__, spec.name, value, spec.constraint, like=raw)
        if new.ndim and new.shape != raw.shape:
            raise ValueError(
                f"{self!r}: {spec.name} has shape {list(raw.shape)}, cannot assign shape "
                f"{list(new.shape)}"
            )
        if spec.raw_name in self._parameters or spec.raw_name in self._buffers:
            with torch.no_grad():
                raw.copy_(new)
        else:
            self._assign_computed(spec, new.expand(raw.shape).clone(), value)
        self._rebake()

    def _assign_computed(self, spec: ParameterSpec, raw: Tensor, value: float | Tensor) -> None:
        """Assign where the raw value is computed from another tensor: through its setter."""
        refused = f"{self!r}: cannot assign {value!r} to {spec.name}: {spec.raw_name} is computed"
        if spec.raw_name in vars(self):
            raise RuntimeError(
                f"{refused} anew at every call; assign what it is computed from, or remove that "
                f"first, as with torch.nn.utils.prune.remove(layer, {spec.raw_name!r})"
            )
        try:
            setattr(self, spec.raw_name, raw)
        except RuntimeError as error:
            raise RuntimeError(
                f"{refused} by a parametrization; assign what it is computed from, or give that a "
                f"right_inverse ({error})"
            ) from error

    def TTcompile(self) -> None:
        """Fix the effective parameters as constants for inference; see ``tt.Model.TTcompile``."""
        if self._baked is None:
            self._bake()

    def TTdecompile(self) -> None:
        """Back to training: parameters are computed from their raw values again."""
        self._baked = None

    def _bake(self) -> None:
        self._baked = None
        self._baked = {
            name: self._effective(spec).detach().clone() for name, spec in self._specs.items()
        }

    def _rebake(self) -> None:
        if self._baked is not None:
            self._bake()

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_states" not in own and not name.startswith("__"):
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__(num_neurons) before anything else"
            )
        if name in own.get("_states", ()):
            self._refuse_folded()
            return own["_states"][name]
        spec = own.get("_specs", {}).get(name)
        if spec is not None and spec.derived:
            return self._effective(spec)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        spec = own.get("_specs", {}).get(name)
        if name in own.get("_states", ()):
            self.set_states({name: value}, strict=False)
        elif spec is not None and spec.derived:
            self._assign(spec, value)
        else:
            super().__setattr__(name, value)
            if isinstance(value, nn.Module) and any(isinstance(m, Random) for m in parts(value)):
                own["_states"].setdefault(RANDOM, None)
            if own.get("_baked") and any(name == s.raw_name for s in own["_specs"].values()):
                self._rebake()

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._specs, *self._states})  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------------ states

    def zero_states(self, mask: Tensor | None = None) -> None:
        """Every state back to None; with a mask only the samples where it is true restart.

        Args:
            mask: boolean ``[B]`` over dimension 0 of a timestep.

        Raises:
            TypeError: ``mask`` is no boolean tensor.
            ValueError: ``mask`` has another length than the batch, or the state has no batch.
        """
        self._states = self._zeroed(mask)

    def _refuse_folded(self) -> None:
        """Unfoldable where all timesteps are under way at once: there is no state of this one."""
        if self._fold is not None:
            raise Unfoldable(
                f"forward reads or changes the states of a {type(self).__name__} between timesteps"
            )

    def _zeroed(self, mask: Tensor | None) -> dict[str, Tensor | None]:
        self._refuse_folded()
        if mask is None:
            return dict.fromkeys(self._states)
        mask = checked_mask(mask)
        return {
            name: state
            if state is None or name == RANDOM
            else restarted(state, self._fitted(mask, name, state))
            for name, state in self._states.items()
        }

    def _held(self, active: Tensor, before: Mapping[str, Tensor | None]) -> None:
        """Keep the states from before wherever a sample is not active (its sequence is over)."""
        held: dict[str, Tensor | None] = {}
        for name, state in self._states.items():
            old = before.get(name)
            if state is not None and state is not old and name != RANDOM:
                other = torch.zeros_like(state) if old is None else old
                state = keep_where(self._fitted(active, name, state), state, other)
            held[name] = state
        self._states = held

    def _fitted(self, mask: Tensor, name: str, state: Tensor) -> Tensor:
        if not self._batched(name, state):
            raise StateError(
                self,
                f"the state {name} of shape {list(state.shape)} is unbatched (its neurons are at "
                f"dimension 0) and takes no mask or lengths; add a batch dimension to the input",
            )
        if len(mask) != state.shape[0]:
            raise StateError(
                self,
                f"the mask or lengths has {len(mask)} entries, the state {name} of shape "
                f"{list(state.shape)} has a batch of {state.shape[0]}",
            )
        return mask.to(state.device)

    def _batched(self, name: str, state: Tensor) -> bool:
        return self._state_specs[name].neuron_dim(state.ndim, self.dim) != 0

    def detach_states(self) -> None:
        """Cut every state from the graph that computed it; values stay."""
        self._refuse_folded()
        self._states = {
            name: None if state is None else state.detach() for name, state in self._states.items()
        }

    def get_states(self) -> dict[str, Tensor]:
        """The standing states by name, in the user's layout; those not created yet are absent."""
        self._refuse_folded()
        return {name: state for name, state in self._states.items() if state is not None}

    def set_states(
        self, states: Mapping[str, Tensor | None], strict: bool = True
    ) -> IncompatibleStates:
        """Put states in place, all or none; they may carry a graph.

        Args:
            states: name → tensor in the user's layout, or None for "not created yet".
            strict: refuse unknown names and demand every state of the layer.

        Returns:
            The names that did not fit, ``missing`` and ``unexpected``.

        Raises:
            TypeError: ``states`` is no mapping.
            StateError: a name or tensor does not fit; nothing has changed then.
        """
        self._states = self._accepted(states, strict)
        return compared(states.keys(), self._states.keys())

    def _accepted(
        self, states: Mapping[str, Tensor | None], strict: bool
    ) -> dict[str, Tensor | None]:
        self._refuse_folded()
        states = checked_states(states)
        missing, unknown = compared(states.keys(), self._states.keys())
        if strict and (unknown or missing):
            raise StateError(
                self,
                f"states do not match: unknown {unknown}, missing {missing}; "
                f"pass strict=False to take what fits by name",
            )
        accepted = dict(self._states)
        for name in states.keys() & accepted.keys():
            accepted[name] = self._checked_state(name, states[name])
        leading = {
            name: self._batch_shape(name, state)
            for name, state in accepted.items()
            if state is not None and name != RANDOM
        }
        if len(set(leading.values())) > 1:
            raise StateError(self, f"states disagree on the shape around the neurons: {leading}")
        return accepted

    def _checked_state(self, name: str, state: Tensor | None) -> Tensor | None:
        if state is None:
            return None
        if name == RANDOM:
            if not isinstance(state, Tensor) or state.dtype != torch.int64 or state.shape != (2,):
                raise StateError(
                    self, f"the state {RANDOM} must be int64 [2], seed and count, got {state!r}"
                )
            return state
        if not isinstance(state, Tensor) or not state.is_floating_point():
            got = state.dtype if isinstance(state, Tensor) else repr(state)
            raise StateError(self, f"the state {name} must be a floating-point tensor, got {got}")
        spec = self._state_specs[name]
        if not spec.holds(state, self.dim):
            raise StateError(
                self,
                f"a state {name} of shape {list(state.shape)} does not fit: needs sizes "
                f"{list(spec.sizes)} with the neurons at dim={self.dim}; it is of another layer",
            )
        return state.to(self._promoted(state.dtype))

    def _batch_shape(self, name: str, state: Tensor) -> tuple[int, ...]:
        spec = self._state_specs[name]
        rank = state.ndim - len(spec.sizes) + 1
        place = self.dim % rank
        return tuple(size for at, size in enumerate(state.shape[:rank]) if at != place)

    # ------------------------------------------------------------------ being a module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._states = {
            name: None if state is None else fn(state) for name, state in self._states.items()
        }
        self._rebake()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._rebake()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_states"] = {
            name: None if tensor is None else tensor.detach()
            for name, tensor in self._states.items()
        }
        state["_fold"] = None
        for transient in ("_state_fields", "_parameter_fields", "_known"):
            del state[transient]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # the original's place comes first, so that layers in a set keep their names in a copy
        self._construction = (state["_construction"][0], next(_serial))
        self._known = Known(number(self))
        self._name_fields()

    def _name_fields(self) -> None:
        self._state_fields = _fields("States", self._state_specs)
        self._parameter_fields = _fields("Parameters", self._specs)

    def _check_name(self, name: str) -> None:
        owner = type(self).__name__
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ValueError(
                f"{owner}: a state or parameter needs an identifier that does not start with an "
                f"underscore, got {name!r}"
            )
        if name in {RANDOM, *vars(self), *self._specs, *self._state_specs} or hasattr(
            type(self), name
        ):
            raise ValueError(f"{owner}: the name {name!r} is taken; choose another")

    def extra_repr(self) -> str:
        """What stands in the brackets of ``repr``: neurons, uniform parameters, dim."""
        shown = {spec.name: _brief(self._effective(spec)) for spec in self._specs.values()}
        parts = [str(self.num_neurons), *(f"{name}={text}" for name, text in shown.items())]
        return ", ".join([*parts, f"dim={self.dim}"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _fields(name: str, fields: Iterable[str]) -> Callable[..., Any]:
    kind: Callable[..., Any] = namedtuple(name, list(fields))  # type: ignore[misc]
    return kind


def _describe(shape: object, dtype: torch.dtype, device: torch.device) -> str:
    return f"{list(shape)} {dtype} on {device}".replace("torch.", "")  # type: ignore[call-overload]


def _outlined(value: object) -> str:
    """What something is that should be something else, at a length that can be read."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_outlined, value))})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"a {type(value).__name__}"


def _got_instead(x: object) -> str:
    """What came instead of a floating-point tensor, and the remedy."""
    if isinstance(x, Tensor):
        return f"got {x.dtype}; convert it with x.float()"
    if x is None:
        return "got None; does the module before it return its output?"
    return f"got {_outlined(x)}; convert it with torch.as_tensor(x)"


def _versions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How often each has been written to, where torch counts it."""
    return {name: t._version for name, t in tensors.items() if not t.is_inference()}


def _brief(value: Tensor) -> str:
    """A number where all are equal to 4 digits, else the range."""
    if value.numel() == 0 or value.device.type == "meta":
        return "…"
    low, high = (f"{end.item():.4g}" for end in value.detach().float().aminmax())
    return low if low == high else f"{low}…{high}"
