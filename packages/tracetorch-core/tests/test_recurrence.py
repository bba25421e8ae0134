"""Recurrences within a layer: the kernel gives what the steps give, and nothing is kept."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from tracetorch.choice import BackendError, choosing
from tracetorch.engine import Recurrence


def turning(states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
    """Two states that turn into one another, a nonlinear output."""
    a = p.cosine * states.a - p.sine * states.b + x
    b = p.sine * states.a + p.cosine * states.b
    return {"a": a, "b": b}, torch.tanh(a) * b


def looking(states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
    """Looks at a value: there is no kernel."""
    return {"a": states.a + float(x.sum())}, x


def made() -> Recurrence:
    return Recurrence(turning, 3, states=("a", "b"), parameters=("cosine", "sine"))


def tensors(*around: int) -> list[Tensor]:
    """Two states, x of 20 timesteps, two parameters."""
    torch.manual_seed(0)
    shapes = [(*around, 3)] * 2 + [(20, *around, 3)] + [(3,)] * 2
    found = [torch.randn(shape, dtype=torch.float64).mul_(0.5) for shape in shapes]
    return [tensor.requires_grad_() for tensor in found]


def fused(recurrence: Recurrence, a: Tensor, b: Tensor, x: Tensor, *p: Tensor) -> list[Tensor]:
    found = recurrence.sequence([a, b], x, p)
    assert found is not None
    states, y = found
    return [y, *states]


def stepped(recurrence: Recurrence, a: Tensor, b: Tensor, x: Tensor, *p: Tensor) -> list[Tensor]:
    declared, ys = recurrence.subject.declaration, []
    for timestep in x:
        new, y = turning(declared.state_fields(a, b), timestep, declared.parameter_fields(*p))
        a, b = new["a"], new["b"]
        ys.append(y)
    return [torch.stack(ys), a, b]


def measured(run: Any, recurrence: Recurrence, given: list[Tensor]) -> list[Tensor]:
    ends = run(recurrence, *given)
    return [*ends, *torch.autograd.grad(sum(end.sin().sum() for end in ends), given)]


@pytest.mark.parametrize("around", [(), (2,), (2, 1)])
def test_the_kernel_is_the_steps(around: tuple[int, ...]) -> None:
    with choosing("cpp"):
        got = measured(fused, made(), tensors(*around))
    for ours, theirs in zip(got, measured(stepped, made(), tensors(*around)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_copy_is_itself_and_a_pickle_computes_the_same() -> None:
    recurrence, given = made(), tensors(2)
    assert copy.deepcopy(recurrence) is recurrence
    again = pickle.loads(pickle.dumps(recurrence))
    assert again is not recurrence
    for one, other in zip(fused(again, *given), fused(recurrence, *given), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_kernel_is_said_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    recurrence = Recurrence(looking, 3, states=("a",), parameters=())
    given = [torch.zeros(2, 3)], torch.ones(4, 2, 3), ()
    with caplog.at_level(logging.INFO, "tracetorch"):
        assert recurrence.sequence(*given) is None
    assert "looking runs step by step: " in caplog.text
    with choosing("cpp"), pytest.raises(BackendError, match=r"^the recurrence looking cannot run "):
        recurrence.sequence(*given)
