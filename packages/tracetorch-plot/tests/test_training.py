"""Curves over training: means, spreads, rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tracetorch import plot


class Recording(dict[str, torch.Tensor]):
    """As ``tt.record`` makes them."""

    lengths: torch.Tensor | None = None


def test_a_curve_is_the_mean_in_a_band_of_one_deviation() -> None:
    seeds = torch.randn(4, 6, dtype=torch.float64)
    ax = plot.training({"loss": seeds, "single": [1.0, 2.0, 3.0]}, ylabel="nats")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), np.arange(1, 7))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), seeds.mean(0))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1, 2, 3])
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for sign in (-1, 1):
        edge = seeds.mean(0) + sign * seeds.std(0)
        for epoch, height in enumerate(edge.tolist(), start=1):
            assert np.isclose(corners, (epoch, height)).all(1).any()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["loss (4 seeds)", "single"]


def test_lists_of_scalars_of_torch_are_curves() -> None:
    losses = [torch.tensor(2.0, requires_grad=True), torch.tensor(1.0)]
    assert plot.training({"loss": losses}).lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert plot.rates({"lif": [torch.tensor(0.5)]}).lines[0].get_ydata().tolist() == [0.5]


def test_twenty_four_curves_look_different() -> None:
    ax = plot.training({str(i): [0.0, 1.0] for i in range(24)})
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 24


@pytest.mark.parametrize(
    ("curves", "error", "words"),
    [
        ({}, ValueError, "curves must have at least one name, got none"),
        ([1.0], TypeError, "curves must be a mapping by name, got list"),
        ({"a": torch.ones(2, 2, 2)}, ValueError, r"\[epochs\] or \[seeds, epochs\], got the shape"),
        ({"a": []}, ValueError, r"curves\['a'\] must be a non-empty \[epochs\]"),
        ({"a": [1.0, float("nan")]}, ValueError, r"curves\['a'\] must be finite, got NaN"),
    ],
)
def test_bad_curves_are_refused(curves: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plot.training(curves)


# ---------------------------------------------------------------------- rates


def test_rates_over_training_are_as_given_in_the_band() -> None:
    ax = plot.rates({"a": [0.0, 0.1], "b": torch.tensor([0.2, 0.3])}, band=(0.05, 0.2))
    assert ax.lines[0].get_xydata().tolist() == [[1, 0.0], [2, 0.1]]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.2, 0.3], rtol=1e-6)
    (band,) = ax.patches
    corners = band.get_path().vertices if not hasattr(band, "get_y") else None
    low, high = (
        (corners[:, 1].min(), corners[:, 1].max())
        if corners is not None
        else (band.get_y(), band.get_y() + band.get_height())
    )
    assert (low, high) == (0.05, pytest.approx(0.2))
    assert ax.get_xlabel() == "epoch"


def test_rates_over_time_are_the_share_that_fires() -> None:
    spikes = torch.tensor([[[1.0, 0.0]], [[-2.0, 1.0]], [[0.0, 0.0]]])
    ax = plot.rates({"a": spikes})
    assert ax.lines[0].get_xydata().tolist() == [[0, 0.5], [1, 1.0], [2, 0.0]]
    assert ax.get_xlabel() == "timestep"


def test_of_a_recording_outputs_count_while_their_sample_lasts() -> None:
    recording = Recording({"a.out": torch.zeros(4, 3, 2), "a.mem": torch.ones(4, 3, 2)})
    recording["a.out"][:, 0] = 1.0
    recording["a.out"][:, 1, 0] = 1.0
    recording.lengths = torch.tensor([3, 1, 0])
    (line,) = plot.rates(recording).lines
    np.testing.assert_allclose(line.get_ydata(), [(1 + 0.5) / 2, 1.0, 1.0])
    recording.lengths = torch.tensor([0, 0, 0])
    with pytest.raises(ValueError, match="no timesteps: the lengths of all samples are 0"):
        plot.rates(recording)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (({},), ValueError, "rates must have at least one name, got none"),
        (({"a": [1.5]},), ValueError, r"rates\['a'\] must be in \[0, 1\], got 1.5 … 1.5"),
        (({"a": 0.5},), ValueError, r"non-empty \[epochs\] or \[T, B, N…\], got the shape \[\]"),
        (({"a": [0.5]}, (0.3, 0.2)), ValueError, r"0 ≤ low < high ≤ 1, got \(0.3, 0.2\)"),
        (({"a": [0.5]}, 0.3), ValueError, r"band must be \(low, high\) .* got 0.3"),
    ],
)
def test_bad_rates_are_refused(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plot.rates(*arguments)
