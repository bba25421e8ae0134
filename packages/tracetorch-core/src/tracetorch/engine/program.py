"""A traced layer with its kernels: tensors in, tensors out, no autograd.

A program is known by a name made from its content, so that the same layer gets the same one in
every process and generated graphs may refer to it.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracetorch.engine import memory, segments
from tracetorch.engine.aside import Aside
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.launch import in_order
from tracetorch.engine.targets import TARGETS, Target
from tracetorch.engine.trace import Traced

_programs: dict[str, Program] = {}
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Program:
    """The kernels of one layer for one combination of types.

    Attributes:
        traced: the timestep and its vector-Jacobian product.
        real: dtype of states, parameters and arithmetic.
        stored: dtype of input and output.
        neurons: how many there are along ``dim``.
        dim: where they are in a timestep, as a negative number.
        backend: the target's name.
        recorded: the states that it gives out after every timestep, too.
    """

    traced: Traced
    real: torch.dtype
    stored: torch.dtype
    neurons: int
    dim: int
    backend: str = "cpp"
    recorded: tuple[str, ...] = ()

    @functools.cached_property
    def name(self) -> str:
        """What it is registered under: a digest of its kernels."""
        texts = [self.source(self.gradients, backward) for backward in (False, True)]
        rest = (self.neurons, self.dim, self.real, self.stored, self.backend, self.recorded)
        digest = hashlib.sha256("\0".join([*texts, *map(str, rest)]).encode())
        return digest.hexdigest()[:24]

    @functools.cached_property
    def affine(self) -> bool:
        """Whether it can run in segments, see :mod:`tracetorch.engine.segments`."""
        return segments.affine(self.traced)

    @property
    def gradients(self) -> tuple[str, ...]:
        """Everything a gradient can be asked for, in the order of :meth:`wanted`."""
        return tuple(f"grad {n}" for n in self.inputs if f"grad {n}" in self.traced.backward)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What gradients are asked by: x, the states, the parameters."""
        return ("x", *self.traced.states, *self.traced.parameters)

    @property
    def ends(self) -> tuple[str, ...]:
        """What it computes, in the order of outputs and cotangents: y, new and recorded states.

        A recorded state is named as the new one, which has a gradient where that has one.
        """
        return ("y", *(f"new {name}" for name in (*self.traced.states, *self.recorded)))

    def wanted(self, flags: Sequence[bool]) -> tuple[str, ...]:
        """The gradients to compute, given a flag for each of :attr:`inputs`."""
        asked = {f"grad {name}" for name, flag in zip(self.inputs, flags, strict=True) if flag}
        return tuple(name for name in self.gradients if name in asked)

    def source(self, wanted: tuple[str, ...], backward: bool) -> str:
        """The text of one direction's kernel."""
        return self.target.render(self.kernel(wanted, backward))

    @property
    def target(self) -> Target:
        """The language of its kernels."""
        return TARGETS[self.backend]

    @functools.cached_property
    def _kernels(self) -> dict[tuple[tuple[str, ...], bool], Kernel]:
        """Its own, so that they go with a program that another one of its content stands for."""
        return {}

    def kernel(self, wanted: tuple[str, ...], backward: bool) -> Kernel:
        """One direction; the forward one keeps what these gradients need."""
        key = (wanted, backward)
        if key not in self._kernels:
            kernel = Kernel(self.traced, self.real, self.stored, wanted, backward, self.recorded)
            self._kernels.setdefault(key, kernel)
        return self._kernels[key]

    @functools.lru_cache(1024)  # noqa: B019 - programs live as long as the process
    def sizes(self, shape: torch.Size, single: bool, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """What kernels take as sizes, for an input of this shape and parameters of these ranks."""
        lanes = shape if single else shape[1:]
        after = lanes[len(lanes) + self.dim + 1 :].numel()
        steps, sample = 1 if single else shape[0], lanes[1:].numel()
        return (steps, lanes.numel(), self.neurons, after, *ranks, sample)

    @functools.cache  # noqa: B019 - programs live as long as the process
    def plan(self, flags: tuple[bool, ...]) -> Plan:
        """How to compute it with these gradients."""
        return Plan(self, flags)


class Plan:
    """A program with the gradients that are wanted: both directions, ready to run.

    Tensors come in the order of the program's :attr:`~Program.inputs`. A ``single`` timestep has no
    dimension of time and keeps nothing: its backward pass takes the states themselves. ``aside``:
    what kernels read that has no gradient, see :class:`Aside`.
    """

    def __init__(self, program: Program, flags: tuple[bool, ...]) -> None:
        self.program, self.flags = program, flags
        self.wanted = program.wanted(flags)
        self._forward = program.kernel(self.wanted, False)
        self._backward = program.kernel(self.wanted, True)
        traced = program.traced
        self._remembered = [traced.states.index(name) for name in self._forward.remembered]
        self.recorded = [traced.states.index(name) for name in program.recorded]
        self.ends = len(program.ends)
        self._gradients = [
            self.wanted.index(f"grad {name}") if f"grad {name}" in self.wanted else None
            for name in program.inputs
        ]
        # of each gradient, whose it is: None x, 0 a state, else a parameter, counted from 1
        places = {"x": None} | dict.fromkeys(traced.states, 0)
        places |= {name: at for at, name in enumerate(traced.parameters, 1)}
        self._found = [
            (places[name.removeprefix("grad ")], self._backward.type_of(name))
            for name in self.wanted
        ]
        self.draws = traced.random
        self._target = program.target
        # whether what was x may become its gradient
        self.in_place = self._target.in_place and "grad x" in self.wanted

    def prepare(self) -> None:
        """Compile what is needed; in C++ both directions at once.

        Raises:
            BuildError: a kernel cannot be compiled here.
        """
        kernels = [self._forward, self._backward] if self.wanted else [self._forward]
        self._target.prepare(kernels)

    @functools.lru_cache(64)  # noqa: B019 - programs live as long as the process
    def constant(self, tracked: tuple[bool, ...], again: bool) -> list[int]:
        """Which of the outputs have no gradient.

        Args:
            tracked: which of the inputs have one.
            again: there is more than one timestep.
        """
        program = self.program
        known = [name for name, has in zip(program.inputs, tracked, strict=True) if has]
        found = program.traced.reached(known, again)
        return [at for at, name in enumerate(program.ends) if name not in found]

    def forward(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        aside: Aside,
        single: bool,
    ) -> list[Tensor]:
        """``[y, *new states, *recorded, *kept]``."""
        outputs = self.outputs(x, states, single)
        absent = [None] * len(self._remembered) if single else []
        given = [in_order(tensor) for tensor in (x, *states, *parameters)]
        count = 1 + len(states)
        tensors = [given[0], outputs[0], *given[1:count], *outputs[1:], *absent, *given[count:]]
        self._run(self._forward, x, tensors, parameters, aside, single)
        return outputs

    def timestep(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> list[Tensor]:
        """The same for one timestep in which all tensors are in order, and no numbers are drawn."""
        made = [torch.empty_like(x), *[torch.empty_like(state) for state in states]]
        absent = [None] * len(self._remembered)
        tensors = [x, made[0], *states, *made[1:], *absent, *parameters, None]
        self._target.launch(self._forward)(tensors, sizes)
        return made

    def sizes(self, shape: torch.Size, single: bool, ranks: Sequence[int]) -> tuple[int, ...]:
        """What its kernels take as sizes, for an input of this shape."""
        return self.program.sizes(shape, single, tuple(ranks))

    def outputs(self, x: Tensor, states: Sequence[Tensor], single: bool) -> list[Tensor]:
        """What :meth:`forward` fills: also right for tensors without data."""
        new = [_like(state) for state in states]
        if single:
            return [_like(x), *new]
        made = [_empty(x, x.shape, x.dtype), *new]
        made += [_empty(x, (len(x), *new[at].shape), new[at].dtype) for at in self.recorded]
        if not self._remembered:
            return made
        period = self._forward.period
        kept = ((x.shape[0] + period - 1) // period, *x.shape[1:])
        return made + [_empty(x, kept, self.program.real) for _ in self._remembered]

    def backward(
        self,
        x: Tensor,
        cotangents: Sequence[Tensor | None],
        kept: Sequence[Tensor],
        parameters: Sequence[Tensor],
        aside: Aside,
        single: bool,
        in_place: bool = False,
    ) -> list[Tensor]:
        """The wanted gradients in order; ``cotangents``: of the program's :attr:`~Program.ends`.

        ``in_place``: that of a sequence ``x`` takes its place in memory; ``x`` is gone.
        """
        lanes = x.shape if single else x.shape[1:]
        found, parts = [], []
        for place, dtype in self._found:
            if place is None and in_place:
                found.append(_on_memory_of(x))
            elif place is None:
                found.append(_like(x) if single else _empty(x, x.shape, dtype))
            elif place == 0:
                found.append(_lanes(x, lanes, dtype, single))
            else:
                found.append(_like(parameters[place - 1]))
                parts.append(_lanes(x, lanes, dtype, single))
        given = [in_order(tensor) for tensor in (x, *cotangents, *kept, *parameters)]
        tensors = [*given, *found, *parts]
        self._run(self._backward, x, tensors, parameters, aside, single)
        return found

    def remembered(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Of a timestep's states, those that its backward pass takes as kept ones."""
        return [states[index] for index in self._remembered]

    def gradient_shapes(self, x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """What :meth:`backward` returns for a sequence, without values."""
        own = dict(zip(self.program.traced.parameters, parameters, strict=True))
        shapes = {name: p.shape for name, p in own.items()} | {"x": x.shape}
        return [
            x.new_empty(shapes.get(name.removeprefix("grad "), x.shape[1:]),
                        dtype=self._backward.type_of(name))
            for name in self.wanted
        ]  # fmt: skip

    def placed(
        self, gradients: Sequence[Tensor], cotangents: Sequence[Tensor | None], again: bool
    ) -> list[Tensor | None]:
        """The wanted gradients, one for each input; None where nothing comes from.

        ``again``: there is more than one timestep.
        """
        idle = self._idle(tuple([cotangent is not None for cotangent in cotangents]), again)
        return [
            None if index is None or at in idle else gradients[index]
            for at, index in enumerate(self._gradients)
        ]

    @functools.lru_cache(64)  # noqa: B019 - programs live as long as the process
    def _idle(self, given: tuple[bool, ...], again: bool) -> set[int]:
        """Which inputs no given cotangent leads to."""
        if all(given):
            return set()
        program = self.program
        asked = {name for name, has in zip(program.ends, given, strict=True) if has}
        reached = [program.traced.reached([name], again) for name in program.inputs]
        return {at for at, found in enumerate(reached) if asked.isdisjoint(found)}

    def _run(
        self,
        kernel: Kernel,
        x: Tensor,
        tensors: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        aside: Aside,
        single: bool,
    ) -> None:
        ranks = tuple([parameter.ndim for parameter in parameters])
        sizes = self.program.sizes(x.shape, single, ranks)
        tensors = [*tensors, *(aside if self.draws else aside[1:])]
        self._target.launch(kernel)(tensors, sizes)


def _like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor of the same shape and type, in order."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _lanes(x: Tensor, shape: Sequence[int], dtype: torch.dtype, single: bool) -> Tensor:
    """An uninitialised tensor of one value per lane of a timestep."""
    if single and x.dtype is dtype:  # the fastest way to make one
        return _like(x)
    return _empty(x, shape, dtype)


def _on_memory_of(x: Tensor) -> Tensor:
    """A tensor of its own, in the same place: autograd sees nothing in common."""
    there = torch.empty(0, dtype=x.dtype, device=x.device)
    return there.set_(x.untyped_storage(), x.storage_offset(), x.shape)  # type: ignore[call-overload, no-any-return]


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if type(like) is Tensor or type(like) is nn.Parameter:
        return memory.empty(shape, dtype, like.device)
    return like.new_empty(shape, dtype=dtype)


def register(program: Program) -> Program:
    """Make a program known by its name; the one already known where the content is the same."""
    with _lock:
        return _programs.setdefault(program.name, program)


def registered(name: str) -> Program:
    """The program of that name."""
    return _programs[name]
