"""A traced layer with its kernels: tensors in, tensors out, no autograd.

A program is known by a name made from its content, so that the same layer gets the same one in
every process and generated graphs may refer to it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.engine import build, cpp, triton
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.launch import Launch, launcher
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
        backend: ``cpp`` or ``triton``.
    """

    traced: Traced
    real: torch.dtype
    stored: torch.dtype
    neurons: int
    dim: int
    backend: str = "cpp"

    @functools.cached_property
    def name(self) -> str:
        """What it is registered under: a digest of its kernels."""
        render = triton.render if self.backend == "triton" else cpp.render
        texts = [render(self.kernel(self.gradients, backward)) for backward in (False, True)]
        digest = hashlib.sha256("\0".join([*texts, str(self.neurons), str(self.dim)]).encode())
        return digest.hexdigest()[:24]

    @property
    def gradients(self) -> tuple[str, ...]:
        """Everything a gradient can be asked for, in the order of :meth:`wanted`."""
        names = ("x", *self.traced.states, *self.traced.parameters)
        return tuple(f"grad {n}" for n in names if f"grad {n}" in self.traced.backward)

    def wanted(self, flags: Sequence[bool]) -> tuple[str, ...]:
        """The gradients to compute, given a flag for x, each state and each parameter."""
        names = ("x", *self.traced.states, *self.traced.parameters)
        asked = {f"grad {name}" for name, flag in zip(names, flags, strict=True) if flag}
        return tuple(name for name in self.gradients if name in asked)

    @functools.cache  # noqa: B019 - programs live as long as the process
    def kernel(self, wanted: tuple[str, ...], backward: bool) -> Kernel:
        """One direction; the forward one keeps what these gradients need."""
        return Kernel(self.traced, self.real, self.stored, wanted, backward)

    def prepare(self, flags: Sequence[bool]) -> None:
        """Compile what a sequence with these gradients needs; in C++ both directions at once.

        Raises:
            BuildError: a kernel cannot be compiled here.
        """
        wanted = self.wanted(flags)
        directions = (False, True) if wanted else (False,)
        kernels = [self.kernel(wanted, backward) for backward in directions]
        if self.backend == "triton":  # which compiles for the device current in this thread
            list(map(self._launch, kernels))
            return
        with ThreadPoolExecutor(len(kernels)) as pool:
            list(pool.map(self._launch, kernels))

    def _launch(self, kernel: Kernel) -> Launch:
        return _launchers[self.backend](kernel)

    def forward(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        flags: Sequence[bool],
    ) -> list[Tensor]:
        """``[y, *new states, *kept states]``."""
        kernel = self.kernel(self.wanted(flags), backward=False)
        outputs = self.outputs(x, states, flags)
        names = ["y", *(f"new {n}" for n in self.traced.states)]
        names += [f"kept {n}" for n in kernel.remembered]
        given = dict(zip((*self.traced.states, *names), (*states, *outputs), strict=True))
        self._run(kernel, x, given, parameters)
        return outputs

    def outputs(self, x: Tensor, states: Sequence[Tensor], flags: Sequence[bool]) -> list[Tensor]:
        """What :meth:`forward` fills: also right for tensors without data."""
        kernel = self.kernel(self.wanted(flags), backward=False)
        blocks = (x.shape[0] + kernel.period - 1) // kernel.period
        kept = [x.new_empty((blocks, *x.shape[1:]), dtype=self.real) for _ in kernel.remembered]
        new = [state.new_empty(state.shape) for state in states]
        return [x.new_empty(x.shape), *new, *kept]

    def backward(
        self,
        x: Tensor,
        cotangents: Sequence[Tensor | None],
        kept: Sequence[Tensor],
        parameters: Sequence[Tensor],
        flags: Sequence[bool],
    ) -> list[Tensor]:
        """The wanted gradients in order; ``cotangents``: of y, then of each new state."""
        kernel = self.kernel(self.wanted(flags), backward=True)
        given = dict(zip(("grad y", *(f"grad new {n}" for n in self.traced.states)), cotangents,
                         strict=True))  # fmt: skip
        given |= {f"kept {n}": t for n, t in zip(kernel.remembered, kept, strict=True)}
        found = {
            name: torch.empty_like(x, memory_format=torch.contiguous_format)
            if name == "grad x"
            else x.new_empty(x.shape[1:], dtype=self.real)
            for name in kernel.wanted
        }
        self._run(kernel, x, {**given, **found}, parameters)
        return [self._per_parameter(name, gradient, parameters) for name, gradient in found.items()]

    def gradient_shapes(
        self, x: Tensor, parameters: Sequence[Tensor], flags: Sequence[bool]
    ) -> list[Tensor]:
        """What :meth:`backward` returns, without values."""
        shapes = {"grad x": x}
        shapes.update(
            (f"grad {n}", p) for n, p in zip(self.traced.parameters, parameters, strict=True)
        )
        return [
            shapes[name].new_empty(shapes[name].shape)
            if name in shapes
            else x.new_empty(x.shape[1:], dtype=self.real)
            for name in self.wanted(flags)
        ]

    def _per_parameter(self, name: str, gradient: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """A parameter's gradient per lane, summed to the parameter's shape."""
        parameter = name.removeprefix("grad ")
        if parameter not in self.traced.parameters:
            return gradient
        shape = parameters[self.traced.parameters.index(parameter)].shape
        if not shape:
            return gradient.sum()
        around = [axis for axis in range(gradient.ndim) if axis != gradient.ndim + self.dim]
        return gradient.sum(around) if around else gradient

    def _run(
        self,
        kernel: Kernel,
        x: Tensor,
        tensors: Mapping[str, Tensor | None],
        parameters: Sequence[Tensor],
    ) -> None:
        named = {"x": x, **tensors, **dict(zip(self.traced.parameters, parameters, strict=True))}
        held = [named.get(name) for name in kernel.pointers]
        held = [None if t is None else t.contiguous() for t in held]
        after = x.shape[x.ndim + self.dim + 1 :].numel()
        strides = [parameter.ndim for parameter in parameters]
        sizes = (len(x), x.shape[1:].numel(), self.neurons, after, *strides)
        self._launch(kernel)(held, sizes)


def _native(kernel: Kernel) -> Launch:
    run = build.entry_point(cpp.render(kernel))

    def launch(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        run(
            (ctypes.c_void_p * len(tensors))(*pointers),
            (ctypes.c_int64 * len(sizes))(*sizes),
            torch.get_num_threads(),
        )

    return launch


_launchers = {"cpp": functools.cache(_native), "triton": functools.cache(launcher)}


def register(program: Program) -> Program:
    """Make a program known by its name; the one already known where the content is the same."""
    with _lock:
        return _programs.setdefault(program.name, program)


def registered(name: str) -> Program:
    """The program of that name."""
    return _programs[name]
