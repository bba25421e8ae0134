"""The one step behind all leaky integrators, and what turns a declaration into a class.

A class says which of the ideas it combines (dual, synapse, recurrence, average, firing); its
parameters, states, constructor and documentation follow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Any, ClassVar

from torch import Tensor, nn
from tracetorch import Layer, StateError
from tracetorch.snn import describe
from tracetorch.snn.firing import Firing
from tracetorch.snn.quantities import QUANTITIES
from tracetorch.snn.quantizers import Round, carrying, nothing
from tracetorch.snn.quantizers import round as rounding
from tracetorch.snn.surrogates import Surrogate, sigmoid
from tracetorch.snn.traces import DUAL, SINGLE, Polarity, halves, leak, named

Elementwise = Callable[[Tensor], Tensor]

# modules whose functions make a spike_fn or quant_fn, and are none
_FACTORIES = (Surrogate.__module__, Round.__module__)


class LeakyIntegrator(Layer):
    """Base of the leaky-integrator layers; a subclass declares what it combines.

    Class arguments:
        dual: keep separate traces for positive and negative inflow.
        synapse: filter the input through a synaptic trace.
        recurrence: feed a trace of the layer's own output back into the membrane.
        average: weigh the membrane's inflow with 1 − beta (exponential moving average).
        firing: how the membrane fires; None emits the membrane itself.

    Args:
        num_neurons: size of the input along ``dim``, at least 1.
        dim: which dimension of a timestep's input holds the neurons.

    A subclass also takes the parameters of what it combines; its own docstring lists them.

    Raises:
        TypeError: an argument is of the wrong kind or unknown.
        ValueError: a value lies outside its range, or a tensor has the wrong shape.

    Example:
        >>> from tracetorch.snn.firing import BINARY
        >>> class MySLIB(LeakyIntegrator, synapse=True, firing=BINARY):
        ...     "A synaptic LIF of one's own."
        >>> MySLIB(4)
        MySLIB(4, alpha=0.5, beta=0.9, threshold=1, dim=-1)

    Source: Gerstner et al., Neuronal Dynamics, Cambridge 2014, section 1.3.
    """

    polarity: ClassVar[Polarity] = SINGLE
    synapse: ClassVar[bool] = False
    recurrence: ClassVar[bool] = False
    average: ClassVar[bool] = False
    firing: ClassVar[Firing | None] = None

    def __init_subclass__(
        cls,
        *,
        dual: bool | None = None,
        synapse: bool | None = None,
        recurrence: bool | None = None,
        average: bool | None = None,
        firing: Firing | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if dual is not None:
            cls.polarity = DUAL if dual else SINGLE
        declared = {
            "synapse": synapse,
            "recurrence": recurrence,
            "average": average,
            "firing": firing,
        }
        for idea, value in declared.items():
            if value is not None:
                setattr(cls, idea, value)
        if "__init__" not in vars(cls):
            cls.__init__ = _constructor(cls)  # type: ignore[method-assign]
            cls.__doc__ = describe.docstring(cls, (cls.__doc__ or "").strip())

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """The parameters in the constructor's order."""
        fires = cls.firing.parameters if cls.firing else ()
        per_half = [
            ("alpha", cls.synapse),
            ("beta", True),
            ("gamma", cls.recurrence),
        ]
        decays = [half + name for name, there in per_half if there for half in cls.polarity]
        weights = [half + "rec_weight" for half in cls.polarity if cls.recurrence]
        return (*decays, *fires, *weights)

    @classmethod
    def state_names(cls) -> tuple[str, ...]:
        """The states in the order they are updated."""
        traces = [("syn", cls.synapse), ("rec", cls.recurrence), ("mem", True)]
        split = [half + name for name, there in traces if there for half in cls.polarity]
        return (*split, "prev_output") if cls.recurrence else tuple(split)

    def _declare(
        self,
        num_neurons: int,
        dim: int,
        spike_fn: Elementwise | None = None,
        quant_fn: Elementwise | None = None,
        **values: Any,
    ) -> None:
        Layer.__init__(self, num_neurons, dim)
        self.add_state(*self.state_names())
        for name in self.parameter_names():
            self.add_parameter(
                name,
                values[name],
                rank=values[f"{name}_rank"],
                learn=values[f"learn_{name}"],
                constraint=QUANTITIES[describe.bare(name)].constraint,
            )
        if self.firing is not None:
            self.spike_fn = self._checked_function("spike_fn", spike_fn, sigmoid)
            self.quant_fn = self._checked_function("quant_fn", quant_fn, rounding)

    def _checked_function(
        self, name: str, function: Elementwise | None, default: Callable[[], nn.Module]
    ) -> Elementwise:
        if function is None:
            return default()
        if inspect.isfunction(function) and function.__module__ in _FACTORIES:
            maker = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
            raise TypeError(
                f"{type(self).__name__}: {name} must be what {maker} makes: {name}={maker}()"
            )
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                f"{type(self).__name__}: {name} must be a function or module from tensor to "
                f"tensor, got {function!r}"
            )
        return function

    def spike(self, u: Tensor) -> Tensor:
        """What is emitted at distance ``u`` from a threshold: ``quant_fn(spike_fn(u))``.

        A named surrogate with rounding fires exactly where ``u > 0``: rounding the rounded
        probability would miss membranes just above the threshold.

        Raises:
            StateError: either function returns no tensor, or one of another shape.
        """
        if isinstance(self.spike_fn, Surrogate) and isinstance(self.quant_fn, Round):
            distance = u.detach()
            return carrying((distance > 0).to(u.dtype) + nothing(distance), self.spike_fn(u))
        return self._checked("quant_fn", self._checked("spike_fn", u))

    def _checked(self, name: str, u: Tensor) -> Tensor:
        """What a function of the user returns, where it is one value for each of ``u``."""
        found: Any = getattr(self, name)(u)
        if not isinstance(found, Tensor) or found.shape != u.shape:
            got = f"shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise StateError(
                self,
                f"{name} must return a tensor of its input's shape {list(u.shape)}, got {got}; "
                f"it is applied elementwise",
            )
        return found

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """One timestep of the leaky-integrator family; see the class for its equations."""
        two = self.polarity
        # update, not |=: torch.compile of torch 2.6 does not take that
        new: dict[str, Tensor] = {}
        inflow = halves(x, two)
        if self.synapse:
            syn = leak(named(states, "syn", two), named(p, "alpha", two), inflow, average=True)
            new.update(_by_name("syn", two, syn))
            inflow = halves(reduce(add, syn), two)
        if self.recurrence:
            back = halves(states.prev_output, two)
            rec = leak(named(states, "rec", two), named(p, "gamma", two), back, average=True)
            new.update(_by_name("rec", two, rec))
            weighted = zip(named(p, "rec_weight", two), halves(reduce(add, rec), two), strict=True)
            inflow = [i + w * r for i, (w, r) in zip(inflow, weighted, strict=True)]
        mem = leak(named(states, "mem", two), named(p, "beta", two), inflow, self.average)
        out = reduce(add, mem)
        if self.firing is not None:
            out, reset = self.firing.fire(self.spike, out, p)
            mem = [half - reset / len(two) for half in mem]
        new.update(_by_name("mem", two, mem))
        if self.recurrence:
            new["prev_output"] = out
        return new, out

    def extra_repr(self) -> str:
        """Neurons, parameters, dim, and the spike and quantisation functions if not default."""
        text = super().extra_repr()
        if self.firing is not None:
            defaults = {"spike_fn": repr(sigmoid()), "quant_fn": repr(rounding())}
            for name, default in defaults.items():
                function = getattr(self, name)
                shown = getattr(function, "__name__", None) or repr(function)
                text += "" if shown == default else f", {name}={shown}"
        return text


def _by_name(name: str, polarity: Polarity, values: list[Tensor]) -> dict[str, Tensor]:
    return {half + name: value for half, value in zip(polarity, values, strict=True)}


def constructor_signature(cls: type[LeakyIntegrator]) -> inspect.Signature:
    """``(self, num_neurons, <parameters>, dim, <ranks>, <learn flags>, spike_fn, quant_fn)``."""
    names = cls.parameter_names()
    fields: list[tuple[str, Any, Any]] = [
        ("self", inspect.Parameter.empty, inspect.Parameter.empty),
        ("num_neurons", int, inspect.Parameter.empty),
        *((name, float | Tensor, QUANTITIES[describe.bare(name)].default) for name in names),
        ("dim", int, -1),
        *((f"{name}_rank", int, 1) for name in names),
        *((f"learn_{name}", bool, True) for name in names),
    ]
    if cls.firing is not None:
        given = Elementwise | None  # pyright: ignore[reportOperatorIssue]
        fields += [(name, given, None) for name in ("spike_fn", "quant_fn")]
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=annotation,
                default=default,
            )
            for name, annotation, default in fields
        ],
        return_annotation=None,
    )


def _constructor(cls: type[LeakyIntegrator]) -> Callable[..., None]:
    signature = constructor_signature(cls)

    def __init__(self: LeakyIntegrator, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            allowed = ", ".join(list(signature.parameters)[1:])
            raise TypeError(
                f"{type(self).__name__}: {error}; its arguments are {allowed}"
            ) from None
        bound.apply_defaults()
        values = dict(bound.arguments)
        del values["self"]
        self._declare(**values)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__module__ = cls.__module__
    return __init__
