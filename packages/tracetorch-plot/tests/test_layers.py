"""Distributions and surrogates: bars are shares, curves and their gradients are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tracetorch import plot


def bars(patch: Any) -> np.ndarray:
    return np.asarray(patch.get_data().values)


def test_bars_are_the_shares_in_common_intervals() -> None:
    before, after = torch.rand(300), 2 * torch.rand(50, 4) + 0.5
    (ax,) = plot.distributions({"decay": before}, {"decay": after}, bins=7).axes
    edges = np.linspace(before.min().item(), after.max().item(), 8)
    for patch, values in zip(ax.patches, (before, after), strict=True):
        np.testing.assert_allclose(patch.get_data().edges, edges, rtol=1e-6)
        expected = np.histogram(values.double(), edges)[0] / values.numel()
        np.testing.assert_allclose(bars(patch), expected)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["before", "after"]


def test_values_that_are_all_alike_are_a_line() -> None:
    (ax,) = plot.distributions({"decay": 0.9}, {"decay": torch.rand(20)}).axes
    (line,) = ax.lines
    assert line.get_xdata()[0] == 0.9
    assert [patch.get_label() for patch in ax.patches] == ["after"]
    assert line.get_label() == "before: 0.9"


def test_each_name_has_its_panel() -> None:
    figure = plot.distributions({name: torch.rand(9) for name in "abcde"})
    assert [ax.get_xlabel() for ax in figure.axes] == [*"abcde"]
    assert all(ax.get_legend() is None for ax in figure.axes)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (({},), ValueError, "before must have at least one name, got none"),
        ((torch.ones(3),), TypeError, "before must be a mapping by name, got Tensor"),
        (({"a": []},), ValueError, r"before\['a'\] must be a non-empty tensor"),
        (({"a": torch.tensor([torch.nan])},), ValueError, r"before\['a'\] must be finite"),
        (({"a": 1.0}, {"b": 1.0}), ValueError, r"names of before, \['a'\], got \['b'\]"),
    ],
)
def test_bad_distributions_are_refused(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plot.distributions(*arguments)


def test_bins_are_a_count() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        plot.distributions({"a": torch.rand(3)}, bins=0)


# ---------------------------------------------------------------------- surrogates


class Slope(nn.Module):
    """Has a parameter, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.slope * u)


class Spike(torch.autograd.Function):
    """A step forward, a triangle backward."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grads[0] * (1 - ctx.saved_tensors[0].abs()).clamp(0)


def test_curves_and_gradients_are_exact() -> None:
    module = Slope()
    functions: dict[str, Any] = {"slope": module, "spike": Spike.apply, "sine": torch.sin}
    with torch.no_grad():
        left, right = plot.surrogate(functions, span=(-1.5, 2.0), points=29).axes
    u = np.linspace(-1.5, 2.0, 29)
    s = 1 / (1 + np.exp(-3 * u))
    values = [s, u > 0, np.sin(u)]
    slopes = [3 * s * (1 - s), np.clip(1 - np.abs(u), 0, None), np.cos(u)]
    for ax, expected in ((left, values), (right, slopes)):
        for line, name, heights in zip(ax.lines[:3], functions, expected, strict=True):
            assert line.get_label() == name
            np.testing.assert_allclose(line.get_xdata(), u, atol=1e-14)
            np.testing.assert_allclose(line.get_ydata(), heights, atol=1e-12)
    assert module.slope.grad is None


@pytest.mark.parametrize(
    ("functions", "options", "error", "words"),
    [
        ({}, {}, ValueError, "functions must have at least one name, got none"),
        (torch.sigmoid, {}, TypeError, "functions must be a mapping by name"),
        ({"a": lambda u: (u > 0).double()}, {}, ValueError, r"functions\['a'\] has no gradient"),
        ({"a": lambda u: u.sum()}, {}, ValueError, r"return the shape it is given, \[401\]: \[\]"),
        ({"a": torch.log}, {}, ValueError, r"functions\['a'\] must be finite"),
        ({"a": torch.sin}, {"span": (1.0, 1.0)}, ValueError, r"low < high, got \(1.0, 1.0\)"),
        ({"a": torch.sin}, {"points": 1}, ValueError, "points must be at least 2, got 1"),
    ],
)
def test_bad_surrogates_are_refused(
    functions: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plot.surrogate(functions, **options)
