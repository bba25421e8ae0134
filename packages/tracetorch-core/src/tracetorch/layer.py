"""A layer: states and parameters declared, one pure timestep, everything else done around it.

``step`` is the definition of a layer. What a call does is in ``calls``, states in ``layer_states``,
effective parameters in ``effective``; this module is what a user subclasses, and knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import constraints
from tracetorch.calls import called, subject_of, unrolled
from tracetorch.constraints import Constraint
from tracetorch.declaration import Record, check_name
from tracetorch.effective import assign, brief, effective, promoted
from tracetorch.engine import serving
from tracetorch.engine.findings import Findings
from tracetorch.layer_states import Stateful, refuse_left_overs, states_of
from tracetorch.modules import parts
from tracetorch.numbering import number
from tracetorch.parameters import ParameterSpec, checked_integer, parameter_shape, to_raw
from tracetorch.randomness import RANDOM, Random
from tracetorch.states import StateSpec
from tracetorch.written import standard


class Layer(Stateful):
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
    tt: Record

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__()
        owner = type(self).__name__
        self.tt = Record()
        self.tt.findings = Findings(number(self, subject_of))
        self.num_neurons = checked_integer(owner, "num_neurons", num_neurons, low=1)
        self.dim = checked_integer(owner, "dim", dim)

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
            check_name(self, name, self.tt)
            self.tt.declaration.states[name] = StateSpec(sizes or (self.num_neurons,))
            self.tt.states = {**self.tt.states, name: None}
        self._declared()

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
            value: the initial effective value: a number, or a floating-point tensor, ``[]`` or
                ``[num_neurons]``, whose own rank wins over ``rank``.
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
        check_name(self, name, self.tt)
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
        self.tt.declaration.parameters[name] = spec
        self._declared()

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

    @standard
    def sequence(
        self, states: Any, x: Tensor, p: Any
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """Compute a whole sequence in a way of the layer's own; to be written where there is one.

        A layer without it runs its ``step`` in a kernel where that can be, else in a loop. It is
        not asked where steps are wanted: under ``tt.backends.use("eager")``, with hooks or a
        ``forward`` of the layer's own, within transforms of torch, where its states are recorded,
        and where a subclass has another ``step``. Where samples restart within the sequence, a
        method that takes ``resets`` as well (boolean ``[T, B]``, or None) is given them, any other
        is called from restart to restart.

        Args:
            states: the states to begin with by attribute, as in :meth:`step`.
            x: input ``[T, …, num_neurons]``, in the states' dtype.
            p: the effective parameters by attribute.

        Returns:
            The final states by name, and the outputs ``[T, …, any size]``: what the steps would
            give. None: this sequence is to run as that of a layer without the method.
        """
        del states, x, p
        return None

    _sequence_of_steps = sequence  # what another one is compared with

    # ------------------------------------------------------------------ computing

    @standard
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
        passage = self.tt.passage
        return called(self, x) if passage is None else passage.call(self, x)

    def unroll(self, x: Tensor, resets: Tensor | None = None) -> Tensor:
        """A whole sequence: the outputs, gradients and final states of calling it step by step.

        Args:
            x: ``[T, …]``, time first, at least one timestep.
            resets: boolean ``[T, B]``: before timestep t the samples restart where ``resets[t]`` is
                true, as by ``zero_states(resets[t])``. B is dimension 0 of a timestep.

        Returns:
            Outputs ``[T, …]``. If a timestep fails, the states are as they were before.

        Raises:
            TypeError: ``x`` is no floating-point tensor, or ``resets`` no boolean one.
            StateError: ``x`` or ``resets`` does not fit the layer or the standing states.
        """
        passage = self.tt.passage
        if passage is None:
            return unrolled(self, x, resets=resets).y
        return passage.unroll(self, x, resets)

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
        real = promoted(self, dtype)
        return serving.source(subject_of(self), ndim, real, dtype, backward, backend)

    # ------------------------------------------------------------------ parameters

    def TTcompile(self) -> None:
        """Take the effective parameters as constants for inference; see ``tt.Model.TTcompile``."""
        self.tt.compiled = True

    def TTdecompile(self) -> None:
        """Back to training: gradients reach the parameters again."""
        self.tt.compiled = False

    def _effective(self, spec: ParameterSpec) -> Tensor:
        return effective(self, [spec], self.tt.constants, self.tt.compiled)[0]

    def __getattr__(self, name: str) -> Any:
        record = self.__dict__.get("tt")
        if record is None:
            if name.startswith("__"):
                return super().__getattr__(name)
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__(num_neurons) before anything else"
            )
        if name in record.states:
            return states_of(self)[name]
        spec = record.declaration.parameters.get(name)
        if spec is not None and spec.derived:
            value = self._effective(spec)
            # what a timestep computes with is not to change by what is written into this one
            return value if value.requires_grad else value.clone()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        record = self.__dict__.get("tt")
        if record is None:
            super().__setattr__(name, value)
            return
        spec = record.declaration.parameters.get(name)
        if name in record.states:
            self.set_states({name: value}, strict=False)
        elif spec is not None and spec.derived:
            assign(self, spec, value)
        else:
            super().__setattr__(name, value)
            if isinstance(value, nn.Module) and any(isinstance(m, Random) for m in parts(value)):
                record.states = {RANDOM: None, **record.states}

    def __dir__(self) -> list[str]:
        names = {*self.tt.declaration.parameters, *self.tt.states}
        return sorted({*super().__dir__(), *names})  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------------ being a module

    def __getstate__(self) -> dict[str, Any]:
        refuse_left_overs(self)
        return {**self.__dict__, "tt": self.tt.renewed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.tt.findings = Findings(number(self, subject_of))

    def _replicate_for_data_parallel(self) -> Layer:
        replica: Layer = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.__dict__["tt"] = self.tt.renewed()
        replica.tt.findings = Findings(number(replica, subject_of))
        return replica

    def _declared(self) -> None:
        self.tt.declaration.complete()
        self.tt.findings.traced.clear()

    def extra_repr(self) -> str:
        """What stands in the brackets of ``repr``: neurons, uniform parameters, dim."""
        specs = self.tt.declaration.parameters.values()
        shown = [f"{spec.name}={brief(self._effective(spec))}" for spec in specs]
        return ", ".join([str(self.num_neurons), *shown, f"dim={self.dim}"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
