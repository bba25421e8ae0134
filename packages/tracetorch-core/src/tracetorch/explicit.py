"""A model with its states among arguments and results: for transforms, exporters, other loops.

The layers compute as they always do: the states given are put in place, those that stood there are
put back. Knows nothing of what exporters make of it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import tracetorch.functional as conversions
from tracetorch import randomness
from tracetorch.errors import LayerError, StateError
from tracetorch.generators import left_alone
from tracetorch.layer import Layer
from tracetorch.layer_states import RESTART, States, accepted
from tracetorch.model import Model
from tracetorch.modules import Bookkeeping
from tracetorch.randomness import RANDOM
from tracetorch.recomputation import recomputing, restoring
from tracetorch.sequences.glance import Glance
from tracetorch.sequences.recomputing import normalizations, statistics_kept
from tracetorch.states import checked_states, compared
from tracetorch.walk import named_layers

Stepped = tuple[Any, States]
Owners = dict[str, tuple[Layer, str]]


class Functional(nn.Module):
    r"""One timestep as a pure function: ``(states, x) → (y, states)``.

    It is what ``tt.functional(model)`` makes, for whatever takes states as a tree of tensors:
    ``torch.export``, ONNX, ``torch.func``, checkpointing, a loop or scan of one's own. The model
    is held, not copied, and every call leaves it as it was: its states stay, and running
    statistics of torch's normalizations too. States are a flat dict by the names that
    ``model.get_states()`` and the files of ``save_states`` have, always in the same order.

    Parameters are those of the model, one name deeper:
    ``torch.func.functional_call(step, parameters, (states, x))`` with ``parameters`` like
    ``dict(step.named_parameters())``.

    Args:
        model: a ``tt.Model``, a ``tt.Layer``, or any module that contains layers.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import torch, tracetorch as tt
        >>> step = tt.functional(tt.testing.Trace(1, beta=0.5))
        >>> states = step.initial_states(torch.ones(1, 1))
        >>> states
        {'mem': tensor([[0.]])}
        >>> y, states = step(states, torch.ones(1, 1))
        >>> y, states = step(states, torch.ones(1, 1))
        >>> y.item(), sorted(states)
        (1.5, ['mem'])
        >>> y, states = step.unroll(states, torch.ones(3, 1, 1))
        >>> y.flatten().tolist()
        [1.75, 1.875, 1.9375]
        >>> step.model.get_states()
        {}
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"tt.functional: model must be a tt.Model, a tt.Layer or another module that "
                f"contains layers, got {model!r}"
            )
        self.model = model
        self.tt = _Found()
        self.tt.parts(model)

    def forward(
        self, states: Mapping[str, Tensor | None], x: Any
    ) -> tuple[Any, dict[str, Tensor | None]]:
        """One timestep.

        Args:
            states: every state of the model by name, in the user's layout ``[B, …]``; None stands
                for "not created yet", zeros.
            x: what the model's ``forward`` takes, ``[B, …]``.

        Returns:
            What ``forward`` returns, and the new states by name, with their graph.

        Raises:
            TypeError: ``states`` is no mapping.
            StateError: a name is missing or unknown, or a state does not fit its layer or ``x``.
        """
        return self._run(states, lambda: self.model(x))

    def unroll(
        self, states: Mapping[str, Tensor | None], x: Tensor, **options: Any
    ) -> tuple[Any, dict[str, Tensor | None]]:
        """A whole sequence, as ``model.unroll`` runs it.

        Args:
            states: as for one timestep: those before the first.
            x: ``[T, B, …]``.
            options: those of ``tt.Model.unroll``; a ``tt.Layer`` has ``resets`` alone.

        Returns:
            The outputs, and the states after the last timestep by name.

        Raises:
            TypeError: the model has no ``unroll``, or ``states`` is no mapping.
            StateError: as for one timestep. What else ``tt.Model.unroll`` raises, this does.
        """
        model: Any = self.model
        if not isinstance(model, (Model, Layer)):
            raise TypeError(
                f"tt.functional: a {type(model).__name__} has no unroll; make it a tt.Model, or "
                f"step through the sequence"
            )
        return self._run(states, lambda: model.unroll(x, **options))

    def initial_states(self, x: Any) -> dict[str, Tensor]:
        """What a sequence begins with: zeros, of the shapes that an input of this kind gives.

        ``forward`` runs once to see them. A layer that draws random numbers (``tt.Random``) takes
        its seed from torch's generator here, as it would at the model's first timestep.

        Args:
            x: one timestep's input ``[B, …]``; its values do not matter.

        Returns:
            Every state that ``forward`` creates, by name.
        """
        devices = {tensor.device for tensor in (*self.model.parameters(), *self.model.buffers())}
        with torch.no_grad(), left_alone(devices):
            owners = self.tt.parts(self.model).owners
            _, found = self._run(dict.fromkeys(owners), lambda: self.model(x))
        return {
            name: randomness.new(state.device) if owner == RANDOM else torch.zeros_like(state)
            for (name, state), (_, owner) in zip(found.items(), owners.values(), strict=True)
            if state is not None
        }

    def _run(self, states: Mapping[str, Tensor | None], call: Callable[[], Any]) -> Stepped:
        parts = self.tt.parts(self.model)
        owners, layers = parts.owners, parts.layers
        if checked_states(states).keys() != owners.keys():
            misfits = compared(states.keys(), owners.keys())
            raise StateError(
                self.model,
                f"states do not match the model: unknown {misfits.unexpected}, "
                f"missing {misfits.missing}; tt.functional(model).initial_states(x) has them all",
            )
        given: dict[Layer, States] = {layer: {} for layer in layers.values()}
        for name, (layer, state) in owners.items():
            given[layer][state] = states[name]
        if torch.compiler.is_compiling():
            return self._lent(given, owners, call)
        with _alone(self.model), _again(given), statistics_kept(parts.norms):
            try:
                return self._lent(given, owners, call)
            except LayerError as error:
                raise _told(error, layers) from None

    def _lent(
        self, given: Mapping[Layer, States], owners: Owners, call: Callable[[], Any]
    ) -> Stepped:
        """What comes of a call while the layers have these states."""
        before = {layer: layer.tt.states for layer in given}
        put = {layer: accepted(layer, own, strict=True)[0] for layer, own in given.items()}
        try:
            for layer, own in put.items():
                layer.tt.states = own
            y = call()
            found = {n: layer.tt.states[state] for n, (layer, state) in owners.items()}
            return y, found
        finally:
            for layer, own in before.items():
                layer.tt.states = own


class _Found(Bookkeeping):
    """The parts of a model, looked for again where anything shallow in it has changed."""

    def __init__(self) -> None:
        self._parts: _Parts | None = None

    def parts(self, model: nn.Module) -> _Parts:
        """Those of the model, as it is now."""
        found = self._parts
        if found is None or not (torch.compiler.is_compiling() or found.glance.holds()):
            found = self._parts = _Parts(model)
        return found

    def renewed(self) -> _Found:
        """Those of a copy are to be looked for."""
        return _Found()

    def __reduce__(self) -> tuple[type[_Found], tuple[()]]:
        return _Found, ()


class _Parts:
    """What is looked for in a model: layers, the owners of states by name, norms."""

    def __init__(self, model: nn.Module) -> None:
        self.glance = Glance(model)
        self.layers = dict(named_layers(model))
        self.owners: Owners = {
            f"{name}.{state}" if name else state: (layer, state)
            for name, layer in self.layers.items()
            for state in layer.tt.states
        }
        self.norms = normalizations(model)


def _alone(model: nn.Module) -> AbstractContextManager[None]:
    return model.tt.alone(model) if isinstance(model, Model) else nullcontext()


def _again(layers: Iterable[Layer]) -> AbstractContextManager[None]:
    """Within it, they may be called in a backward pass: their states are those of the first run."""
    return restoring(layers) if recomputing() else nullcontext()


def _told(error: LayerError, layers: Mapping[str, Layer]) -> LayerError:
    """The same error with its layer's name, and the remedy that there is where states are given."""
    for name, layer in layers.items():
        if layer is error.layer and name:
            error.name = name
    what, restart, _ = error.message.partition(f"; {RESTART}")
    if restart:
        error.message = f"{what}; tt.functional(model).initial_states(x) makes states that fit"
    return error


if TYPE_CHECKING:
    _Module = object  # to a checker a ModuleType has every name
else:
    _Module = types.ModuleType


class CallableModule(_Module):
    """The module ``tt.functional``, which makes a function of a model when it is called.

    Its conversions are listed for type checkers, to which no module can be called.
    """

    halflife_to_decay = staticmethod(conversions.halflife_to_decay)
    decay_to_halflife = staticmethod(conversions.decay_to_halflife)
    timesteps_to_decay = staticmethod(conversions.timesteps_to_decay)
    decay_to_timesteps = staticmethod(conversions.decay_to_timesteps)
    hippo_decays = staticmethod(conversions.hippo_decays)
    max_halflife_to_hippo_scale = staticmethod(conversions.max_halflife_to_hippo_scale)

    def __call__(self, model: nn.Module) -> Functional:
        """The model as a pure function; see :class:`Functional`."""
        return Functional(model)
