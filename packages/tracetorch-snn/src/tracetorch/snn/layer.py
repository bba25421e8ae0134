"""The one step behind all leaky integrators, and what turns a declaration into a class.

A class says which of the ideas it combines (dual, synapse, recurrence, average, firing); its
parameters, states, constructor and documentation follow.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tracetorch import Layer, StateError
from tracetorch.errors import LayerError
from tracetorch.parameters import checked_integer
from tracetorch.randomness import RANDOM
from tracetorch.recomputation import restoring
from tracetorch.snn import describe, resets
from tracetorch.snn.adaptation import Adaptation
from tracetorch.snn.firing import Firing, Spike
from tracetorch.snn.quantities import QUANTITIES
from tracetorch.snn.quantizers import Round, carrying, nothing
from tracetorch.snn.quantizers import round as rounding
from tracetorch.snn.resets import Reset
from tracetorch.snn.surrogates import Surrogate, sigmoid
from tracetorch.snn.traces import DUAL, SINGLE, Polarity, halves, leak, named
from tracetorch.states import moved, restarted

Elementwise = Callable[[Tensor], Tensor]

LONGEST = 256  # timesteps that every type of float counts down from
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
        reset: Reset | None = None,
        refractory: int = 0,
        adaptation: Adaptation | None = None,
        graded: bool = False,
        feedback: nn.Module | None = None,
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
            self._declare_firing(reset, refractory, adaptation, graded)
            self._demand("feedback", feedback, (nn.Module, type(None)), "a module, or None")
            self.feedback = feedback
            if feedback is not None and not self.recurrence:
                self.add_state("prev_output")

    def _declare_firing(
        self,
        reset: Reset | None,
        refractory: int,
        adaptation: Adaptation | None,
        graded: bool,
    ) -> None:
        self._demand("reset", reset, (Reset, type(None)), "made by snn.resets, or None")
        self._demand("adaptation", adaptation, (Adaptation, type(None)), "snn.Adaptation, or None")
        self._demand("graded", graded, (bool,), "True or False")
        owner = type(self).__name__
        refractory = checked_integer(
            owner, "refractory", refractory, 0, LONGEST, "a number of timesteps"
        )
        self.reset = resets.subtract() if reset is None else reset
        self.refractory, self.graded = refractory, graded
        self.adaptive = adaptation is not None
        self.jump_detached = adaptation is not None and adaptation.detach
        if self.reset.delayed:
            self.add_state("due")
        if refractory:
            self.add_state("waiting")
        if adaptation is not None:
            self.add_state("raised")
            for name, value in (("rho", adaptation.decay), ("jump", adaptation.jump)):
                self.add_parameter(
                    name,
                    value,
                    rank=adaptation.rank,
                    learn=adaptation.learn,
                    constraint=QUANTITIES[name].constraint,
                )

    def _demand(self, name: str, value: object, kinds: tuple[type, ...], what: str) -> None:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{type(self).__name__}: {name} must be {what}, got {value!r}")

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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("spike_fn", "quant_fn") and not isinstance(value, nn.Module):
            # torch refuses a function in the place of a module
            value = self._checked_function(name, value, sigmoid if name == "spike_fn" else rounding)
            if isinstance(getattr(self, name, None), nn.Module):
                delattr(self, name)
        super().__setattr__(name, value)

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
        fed_back = self.firing is not None and self.feedback is not None
        if fed_back:
            x = x + self._fed_back(states.prev_output, x)
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
            out, mem, more = self._fire(self.firing, mem, states, p)
            new.update(more)
        new.update(_by_name("mem", two, mem))
        if self.recurrence or fed_back:
            new["prev_output"] = out
        return new, out

    @property
    def sequence(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> Callable[..., tuple[Mapping[str, Tensor], Tensor] | None]:
        """A way of its own where there is a feedback; else that of every layer, a kernel."""
        fed_back = self.firing is not None and self.feedback is not None
        return self._sequence_fed_back if fed_back else self._sequence_in_a_kernel

    _sequence_in_a_kernel = Layer.sequence  # torch.compile does not see through super() here

    def _sequence_fed_back(
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """Timestep after timestep, each the feedback and a kernel, with nothing else around it."""
        if RANDOM in self.tt.states or torch.compiler.is_compiling():
            return None
        out, outs = states.prev_output, []
        with _without_feedback(self, p) as plain:
            plain.tt.states = {name: getattr(states, name) for name in plain.tt.states}
            for t, now in enumerate(x.contiguous().unbind()):
                if resets is not None and bool(resets[t].any()):
                    plain.zero_states(resets[t])
                    out = restarted(out, resets[t])
                out = plain.forward(now + self._fed_back(out, now))
                outs.append(out)
            return {**plain.tt.states, "prev_output": out}, torch.stack(outs)

    def _fed_back(self, output: Tensor, x: Tensor) -> Tensor:
        """What the module ``feedback`` makes of the last output, for the input."""
        found: Any = self.feedback(moved(output, -1, self.dim))  # type: ignore[misc]
        back = moved(found, self.dim, -1) if isinstance(found, Tensor) else None
        if back is None or back.shape != x.shape:
            wanted = list(x.movedim(-1, self.dim).shape)
            got = repr(found) if back is None else f"shape {list(found.shape)}"
            raise StateError(
                self,
                f"feedback must return a tensor of the input's shape {wanted}, got {got}",
            )
        return back if back.dtype is x.dtype else back.to(x.dtype)

    def _fire(
        self, firing: Firing, mem: list[Tensor], states: Any, p: Any
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Output, membrane after it, and the further states."""
        new: dict[str, Tensor] = {}
        spike: Spike = self.spike
        if self.adaptive:
            spike = _above(spike, states.raised)
        if self.refractory:
            ready = states.waiting <= 0
            standing = named(states, "mem", self.polarity)
            mem = [torch.where(ready, m, s) for m, s in zip(mem, standing, strict=True)]
            spike = _where(spike, ready)
        if self.reset.delayed:
            mem = self.reset.apply(mem, states.due)
        membrane = reduce(add, mem)
        fired = firing.fire(spike, membrane, p)
        if self.adaptive:
            number = fired.number.detach() if self.jump_detached else fired.number
            new["raised"] = p.rho * states.raised + p.jump * number
        if self.refractory:
            waiting, any_ = states.waiting, fired.number.detach() > 0
            left = (waiting - 1).clamp(min=0)
            new["waiting"] = torch.where(any_, torch.full_like(waiting, self.refractory), left)
        if self.reset.delayed:
            new["due"] = self.reset.due(fired)
        else:
            mem = self.reset.apply(mem, self.reset.due(fired))
        return fired.out * membrane.abs() if self.graded else fired.out, mem, new

    def extra_repr(self) -> str:
        """Neurons, parameters, dim, and the spike and quantisation functions if not default."""
        text = super().extra_repr()
        if self.firing is not None:
            defaults = {
                "spike_fn": repr(sigmoid()),
                "quant_fn": repr(rounding()),
                "reset": repr(resets.subtract()),
                "refractory": "0",
                "graded": "False",
                "jump_detached": "False",
            }
            for name, default in defaults.items():
                value = getattr(self, name)
                shown = getattr(value, "__name__", None) or repr(value)
                text += "" if shown == default else f", {name}={shown}"
        return text


# of layers with a feedback, the same without
_plain: weakref.WeakKeyDictionary[LeakyIntegrator, LeakyIntegrator] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def _without_feedback(layer: LeakyIntegrator, p: Any) -> Iterator[LeakyIntegrator]:
    """All that a layer holds now but its feedback, with neurons last and these parameters."""
    plain = _plain.get(layer)
    if plain is None or type(plain) is not type(layer):
        plain = _plain[layer] = _declared_alike(layer)
    held, now = vars(plain), vars(layer)
    own = {name: held[name] for name in ("tt", "dim", "_parameters", "_buffers", "_modules")}
    modules, buffers = own["_modules"], own["_buffers"]
    held.update({**now, **own, "feedback": None})
    modules.update({name: part for name, part in now["_modules"].items() if name != "feedback"})
    buffers.update(p._asdict())
    try:
        with restoring([plain]):  # it is called where the layer may be
            yield plain
    except LayerError as error:  # of a step, within the one that is about to be emptied
        if error.layer is plain:
            error.layer = layer
        raise
    finally:
        plain.tt.states = dict.fromkeys(plain.tt.states)
        for names in (held, modules, buffers):
            names.clear()
        held.update(own)


def _declared_alike(layer: LeakyIntegrator) -> LeakyIntegrator:
    plain = type(layer).__new__(type(layer))
    Layer.__init__(plain, layer.num_neurons)
    declared = layer.tt.declaration
    fed_back = () if layer.recurrence else ("prev_output",)
    plain.add_state(*[name for name in declared.states if name not in fed_back])
    for name, spec in declared.parameters.items():
        plain.add_parameter(name, 0.5, learn=False, raw_name=name, shape=spec.shape)
    return plain


def _above(spike: Spike, raised: Tensor) -> Spike:
    """The same at a threshold that much higher."""
    return lambda distance: spike(distance - raised)


def _where(spike: Spike, ready: Tensor) -> Spike:
    """The same, of those alone that are ready."""

    def those(distance: Tensor) -> Tensor:
        spikes = spike(distance)
        return torch.where(ready, spikes, torch.zeros_like(spikes))

    return those


def _by_name(name: str, polarity: Polarity, values: list[Tensor]) -> dict[str, Tensor]:
    return {half + name: value for half, value in zip(polarity, values, strict=True)}


# what a firing layer may be given beyond its parameters: kind and default
PIECES: dict[str, tuple[Any, Any]] = {
    "reset": (Reset | None, None),  # pyright: ignore[reportOperatorIssue]
    "refractory": (int, 0),
    "adaptation": (Adaptation | None, None),  # pyright: ignore[reportOperatorIssue]
    "graded": (bool, False),
    "feedback": (nn.Module | None, None),  # pyright: ignore[reportOperatorIssue]
}


def constructor_signature(cls: type[LeakyIntegrator]) -> inspect.Signature:
    """``(self, num_neurons, <parameters>, dim, <ranks>, <learn flags>, spike_fn, quant_fn)``.

    The further pieces of a layer that fires are given by keyword alone.
    """
    names = cls.parameter_names()
    fields: list[tuple[str, Any, Any]] = [
        ("self", inspect.Parameter.empty, inspect.Parameter.empty),
        ("num_neurons", int, inspect.Parameter.empty),
        *((name, float | Tensor, QUANTITIES[describe.bare(name)].default) for name in names),
        ("dim", int, -1),
        *((f"{name}_rank", int, 1) for name in names),
        *((f"learn_{name}", bool, True) for name in names),
    ]
    pieces: list[tuple[str, Any, Any]] = []
    if cls.firing is not None:
        given = Elementwise | None  # pyright: ignore[reportOperatorIssue]
        fields += [(name, given, None) for name in ("spike_fn", "quant_fn")]
        pieces = [(name, *piece) for name, piece in PIECES.items()]
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, annotation=annotation, default=default)
            for kind, those in (
                (inspect.Parameter.POSITIONAL_OR_KEYWORD, fields),
                (inspect.Parameter.KEYWORD_ONLY, pieces),
            )
            for name, annotation, default in those
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
