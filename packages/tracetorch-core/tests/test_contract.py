"""The conformance suite: the sample layers pass it, and broken layers fail the right property."""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch import testing

LAYOUTS = {"last": ((3, 4), -1), "first of three": ((4, 3, 2), 0), "middle": ((3, 4, 2), 1)}


@pytest.mark.parametrize("holds", testing.PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS.values(), ids=LAYOUTS)
def test_sample_layers_keep_every_property(
    make: Callable[..., tt.Layer], shape: tuple[int, ...], dim: int, holds: testing.Property
) -> None:
    x = 1.5 * torch.randn(6, *shape, dtype=torch.float64)
    holds(functools.partial(make, 4, dim=dim), x)


def test_parameters_of_every_rank_keep_every_property() -> None:
    def make() -> tt.Layer:
        return testing.AdaptiveLIF(
            4, beta=torch.rand(4) * 0.8 + 0.1, jump=torch.tensor(0.3), learn_jump=False
        )

    testing.check_layer(make, 1.5 * torch.randn(6, 3, 4, dtype=torch.float64))


def test_unbatched_input_keeps_every_property(make: Callable[..., tt.Layer]) -> None:
    testing.check_layer(functools.partial(make, 4), torch.randn(5, 4, dtype=torch.float64))


@pytest.mark.parametrize("make", [testing.Trace, testing.StateSpace])
def test_smooth_layers_match_finite_differences(make: Callable[..., tt.Layer]) -> None:
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    testing.check_layer(functools.partial(make, 2), x, properties=(), smooth=True)


# ---------------------------------------------------------------- layers that break one property


class OwnUnroll(testing.Trace):
    def unroll(self, x: Tensor) -> Tensor:
        return super().unroll(x) + 1e-6


class LosesGradients(testing.Trace):
    def unroll(self, x: Tensor) -> Tensor:
        return super().unroll(x.detach())


class MixesSamples(testing.Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x - 0.1 * x.mean(0, keepdim=True), p)


class KeepsMore(testing.Trace):
    past: Any = 0.0

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = super().step(states, x, p)
        self.past = self.past + 0.1 * y.detach().sum()
        return new, y + self.past


class FixedDim(testing.Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x + 0.1 * self.dim, p)


class LeakyDetach(testing.Trace):
    def detach_states(self) -> None:
        """Forgets to."""


class Unpicklable(testing.Trace):
    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.f = lambda: None


class DrawsAgain(testing.Trace):
    def TTdecompile(self) -> None:
        super().TTdecompile()
        self.raw_beta = torch.nn.Parameter(self.raw_beta.detach().clone())


class LowState(testing.Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = super().step(states, x, p)
        return {"mem": new["mem"].bfloat16().to(x.dtype)}, y


class RestartsAll(testing.Trace):
    def zero_states(self, mask: Tensor | None = None) -> None:
        super().zero_states(None if mask is None else torch.ones_like(mask))


class Broadcasts(testing.Trace):
    def forward(self, x: Tensor) -> Tensor:
        mem = self.mem
        if mem is not None and mem.shape != x.shape:
            self.zero_states()
        return super().forward(x)


class Wrong(testing.Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        raise KeyError("oops")


class SurrogateOnly(testing.AdaptiveLIF):
    """Not smooth."""


class Buffered(testing.Trace):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.register_buffer("last", y.detach())
        return y


@pytest.mark.parametrize(
    ("make", "holds", "says"),
    [
        (OwnUnroll, testing.step_equals_unroll, "the output of unroll differs"),
        (LosesGradients, testing.step_equals_unroll, "the gradient of the input of unroll differs"),
        (MixesSamples, testing.samples_are_independent, "sample 0 alone differs"),
        (KeepsMore, testing.zeroing_restarts, "the output after zero_states differs"),
        (KeepsMore, testing.states_round_trip, "the output from states put in place differs"),
        (FixedDim, testing.dim_is_a_layout, "the output at dim=-2 differs"),
        (LeakyDetach, testing.detaching_cuts_the_graph, "mem still requires a gradient"),
        (Unpicklable, testing.copies_keep_states, "raised"),
        (DrawsAgain, testing.compiling_is_exact, "raw_beta is another object"),
        (LowState, testing.step_equals_unroll, None),
        (RestartsAll, testing.masks_restart_samples, "other samples differs"),
        (Broadcasts, testing.misfits_are_refused, "was not refused with a StateError"),
        (Wrong, testing.step_equals_unroll, "raised KeyError: 'oops'"),
        (Buffered, testing.states_follow_the_module, "states are in the state_dict"),
        (SurrogateOnly, testing.gradients_match_differences, "Jacobian mismatch"),
    ],
)
def test_a_broken_property_is_found_and_named(
    make: type[tt.Layer], holds: testing.Property, says: str | None
) -> None:
    x = 1.5 * torch.randn(6, 2, 3, dtype=torch.float64)
    if says is None:
        holds(lambda: make(3), x)
        return
    with pytest.raises(AssertionError) as raised:
        holds(lambda: make(3), x)
    assert f"{make.__name__}(3" in str(raised.value)
    assert f"breaks {holds.__name__}: " in str(raised.value)
    assert says in str(raised.value)


def test_the_properties_are_listed_once_and_documented() -> None:
    names = [holds.__name__ for holds in testing.PROPERTIES]
    assert len(set(names)) == len(names)
    assert {*names, "gradients_match_differences"} <= {*testing.__all__}
    assert all(holds.__doc__ for holds in testing.PROPERTIES)


@pytest.mark.parametrize(
    ("make", "x", "kind", "says"),
    [
        (lambda: testing.Trace(2), torch.zeros(5, 2), TypeError, "float64"),
        (lambda: testing.Trace(2), [1.0], TypeError, "float64"),
        (lambda: testing.Trace(2), torch.zeros(3, 2).double(), ValueError, "at least 4"),
        (lambda: torch.nn.Linear(2, 2), torch.zeros(5, 2).double(), TypeError, "tt.Layer"),
    ],
)
def test_a_wrong_sample_is_no_broken_layer(make: Any, x: Any, kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        testing.check_layer(make, x)


def test_random_initial_parameters_are_made_alike() -> None:
    draws = itertools.count(1)

    def make() -> tt.Layer:
        return testing.Trace(3, beta=1.0 - 0.9 ** next(draws))

    testing.check_layer(make, torch.randn(5, 2, 3, dtype=torch.float64))


def test_a_layer_error_pickles_with_its_name() -> None:
    error = tt.StateError(testing.Trace(2), "no")
    error.name = "a.b"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is tt.StateError
    assert str(again) == str(error) == "layer 'a.b', Trace(2, beta=0.8, dim=-1): no"
