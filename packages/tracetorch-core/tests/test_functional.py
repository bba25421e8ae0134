"""Half-lives, time constants and decays: round trips, formulas, domains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tracetorch import functional as F

EPS = torch.finfo(torch.float64).eps


@given(halflife=st.floats(1e-2, 1e9))
def test_halflife_to_decay_and_back(halflife: float) -> None:
    decay = F.halflife_to_decay(halflife)
    # the longer the half-life, the more of its digits the decay's distance to 1 has to carry
    assert F.decay_to_halflife(decay) == pytest.approx(halflife, rel=8 * EPS * (1 + halflife))
    tensor = torch.tensor([halflife], dtype=torch.float64)
    assert F.halflife_to_decay(tensor).item() == pytest.approx(decay, rel=1e-13)


@given(timesteps=st.floats(1.001, 1e9))
def test_timesteps_to_decay_and_back(timesteps: float) -> None:
    decay = F.timesteps_to_decay(timesteps)
    assert F.decay_to_timesteps(decay) == pytest.approx(timesteps, rel=8 * EPS * (1 + timesteps))
    tensor = torch.tensor([timesteps], dtype=torch.float64)
    assert F.timesteps_to_decay(tensor).item() == pytest.approx(decay, rel=1e-13)


@given(decay=st.floats(1e-6, 1 - 1e-6))
def test_decay_to_either_and_back(decay: float) -> None:
    assert F.halflife_to_decay(F.decay_to_halflife(decay)) == pytest.approx(decay, rel=1e-12)
    assert F.timesteps_to_decay(F.decay_to_timesteps(decay)) == pytest.approx(decay, rel=1e-9)


@given(steps=st.integers(1, 400))
def test_after_a_halflife_half_is_left(steps: int) -> None:
    assert F.halflife_to_decay(float(steps)) ** steps == pytest.approx(0.5, rel=1e-12)


@given(n=st.integers(1, 40), scale=st.floats(1e-3, 5.0))
def test_hippo_decays_are_the_diagonal(n: int, scale: float) -> None:
    decays = F.hippo_decays(n, scale, dtype=torch.float64)
    assert decays.tolist() == pytest.approx([math.exp(-k * scale) for k in range(1, n + 1)])


@given(halflife=st.floats(0.1, 1e4))
def test_the_slowest_hippo_decay_has_the_halflife_asked_for(halflife: float) -> None:
    scale = F.max_halflife_to_hippo_scale(halflife)
    assert scale == pytest.approx(math.log(2.0) / halflife, rel=1e-15)
    slowest = F.hippo_decays(1, scale, dtype=torch.float64)[0]
    assert F.decay_to_halflife(slowest).item() == pytest.approx(halflife, rel=1e-9)


def test_tensors_keep_dtype_shape_and_gradient() -> None:
    halflives = torch.tensor([[1.0, 2.0, 10.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(F.halflife_to_decay, (halflives,))
    assert torch.autograd.gradcheck(
        lambda h: F.decay_to_timesteps(F.halflife_to_decay(h)), (halflives,)
    )
    assert torch.equal(F.halflife_to_decay(torch.tensor([1.0])), torch.tensor([0.5]))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("convert", "value", "says"),
    [
        (F.halflife_to_decay, 0.0, r"halflife must be in \(0, ∞\), in timesteps, got"),
        (F.halflife_to_decay, -3.0, r"halflife must be in \(0, ∞\), in timesteps, got"),
        (F.halflife_to_decay, math.inf, r"halflife must be in \(0, ∞\), in timesteps, got"),
        (F.halflife_to_decay, math.nan, r"halflife must be in \(0, ∞\), in timesteps, got"),
        (F.halflife_to_decay, 1e30, r"halflife's decay must be in \(0, 1\) in its own precision"),
        (F.halflife_to_decay, 1e-5, r"halflife's decay must be in \(0, 1\) in its own precision"),
        (F.timesteps_to_decay, 1.0, r"timesteps must be in \(1, ∞\), got"),
        (F.timesteps_to_decay, 0.5, r"timesteps must be in \(1, ∞\), got"),
        (F.timesteps_to_decay, 1e30, r"timesteps' decay must be in \(0, 1\) in its own precision"),
        (F.decay_to_halflife, 0.0, r"decay must be in \(0, 1\), per timestep, got"),
        (F.decay_to_halflife, 1.0, r"decay must be in \(0, 1\), per timestep, got"),
        (F.decay_to_halflife, 1.2, r"decay must be in \(0, 1\), per timestep, got"),
        (F.decay_to_timesteps, 1.0, r"decay must be in \(0, 1\), per timestep, got"),
        (F.decay_to_timesteps, -0.1, r"decay must be in \(0, 1\), per timestep, got"),
    ],
)
def test_outside_the_domain_is_said(
    convert: Callable[[Any], Any], value: float, says: str, as_tensor: bool
) -> None:
    argument = torch.tensor([value]) if as_tensor else value
    with pytest.raises(ValueError, match=f"^{says}"):
        convert(argument)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ((0, 0.1), ValueError, "n must be an integer of at least 1, got 0"),
        ((2.0, 0.1), TypeError, r"n must be an integer of at least 1, got 2\.0"),
        ((True, 0.1), TypeError, "n must be an integer of at least 1, got True"),
        ((3, 0.0), ValueError, r"scale must be in \(0, ∞\), per timestep, got 0\.0"),
        ((3, math.inf), ValueError, r"scale must be in \(0, ∞\), per timestep, got inf"),
        ((3, 1e-12), ValueError, r"every one of the 3 decays in \(0, 1\) in torch.float32"),
        ((3, 100.0), ValueError, r"every one of the 3 decays in \(0, 1\) in torch.float32"),
    ],
)
def test_hippo_refuses(arguments: tuple[Any, Any], kind: type, says: str) -> None:
    with pytest.raises(kind, match=f"^{says}|must leave {says}"):
        F.hippo_decays(*arguments)


@pytest.mark.parametrize("halflife", [0.0, -1.0, math.inf, math.nan])
def test_hippo_scale_refuses(halflife: float) -> None:
    with pytest.raises(ValueError, match=r"^halflife must be in \(0, ∞\), in timesteps, got"):
        F.max_halflife_to_hippo_scale(halflife)
