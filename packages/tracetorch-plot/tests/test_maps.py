"""Heatmaps and feature maps: every cell has the value of its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tracetorch import plot


def cells_of(ax: object) -> np.ma.MaskedArray:
    (image,) = ax.images  # type: ignore[attr-defined]
    return np.ma.asarray(image.get_array())


def test_a_cell_is_a_neuron_at_a_timestep() -> None:
    values = torch.randn(12, 2, 5)
    ax = plot.heatmap(values, sample=1, label="membrane (mV)")
    np.testing.assert_array_equal(cells_of(ax), values[:, 1].T)
    assert ax.images[0].get_extent() == [-0.5, 11.5, -0.5, 4.5]
    assert ax.figure.axes[1].get_ylabel() == "membrane (mV)"


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4500), st.integers(1, 2300))
def test_too_many_are_means_of_neighbours(steps: int, neurons: int) -> None:
    values = np.random.default_rng(steps).standard_normal((steps, neurons)).astype(np.float32)
    ax = plot.heatmap(values)
    cells = cells_of(ax)
    assert cells.shape[0] <= 1000
    assert cells.shape[1] <= 2000
    left, right, bottom, top = ax.images[0].get_extent()
    wide, tall = round((right - left) / cells.shape[1]), round((top - bottom) / cells.shape[0])
    assert (cells.shape[1] - 1) * wide < steps <= cells.shape[1] * wide
    assert (cells.shape[0] - 1) * tall < neurons <= cells.shape[0] * tall
    for row, column in ((0, 0), (-1, -1), (cells.shape[0] // 2, cells.shape[1] // 3)):
        i, j = row % cells.shape[0], column % cells.shape[1]
        block = values[j * wide : (j + 1) * wide, i * tall : (i + 1) * tall]
        np.testing.assert_allclose(cells[i, j], block.mean(), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "limits", "colours"),
    [
        ([[1.0, 3.0]], (1.0, 3.0), "viridis"),
        ([[-1.0, 3.0]], (-3.0, 3.0), "RdBu_r"),
        ([[-4.0, 3.0]], (-4.0, 4.0), "RdBu_r"),
        ([[0.0, 0.0]], (0.0, 1.0), "viridis"),
        ([[2.0, 2.0]], (0.0, 2.0), "viridis"),
    ],
)
def test_colours_show_the_sign(
    values: list[list[float]], limits: tuple[float, float], colours: str
) -> None:
    (image,) = plot.heatmap(torch.tensor(values)).images
    assert image.get_clim() == limits
    assert image.get_cmap().name == colours


def test_maps_stand_in_rows_with_nothing_between() -> None:
    maps = torch.rand(5, 2, 3)
    cells = cells_of(plot.feature_maps(maps, columns=2))
    assert cells.shape == (3 * 2 + 2, 2 * 3 + 1)
    for channel in range(5):
        top, left = channel // 2 * 3, channel % 2 * 4
        np.testing.assert_array_equal(cells[top : top + 2, left : left + 3], maps[channel])
    mask = np.ma.getmaskarray(cells)
    assert mask.sum() == cells.size - maps.numel()
    assert mask[2].all()
    assert mask[:, 3].all()
    assert mask[6:, 4:].all()


def test_maps_over_time_are_their_mean_or_one_timestep() -> None:
    spikes = (torch.rand(8, 2, 1, 3, 4) > 0.5).float()
    np.testing.assert_allclose(
        cells_of(plot.feature_maps(spikes, sample=1)), spikes[:, 1, 0].mean(0)
    )
    one = plot.feature_maps({"conv.out": spikes, "conv.mem": -spikes}, timestep=7)
    np.testing.assert_array_equal(cells_of(one), spikes[7, 0, 0])


@pytest.mark.parametrize(
    ("shape", "columns"), [((9, 4, 4), 3), ((16, 32, 2), 16), ((16, 2, 32), 1), ((1, 5, 5), 1)]
)
def test_maps_make_about_a_square(shape: tuple[int, int, int], columns: int) -> None:
    count, height, width = shape
    rows = -(-count // columns)
    expected = (rows * (height + 1) - 1, columns * (width + 1) - 1)
    assert cells_of(plot.feature_maps(torch.rand(shape))).shape == expected


def test_ticks_number_the_channels() -> None:
    ax = plot.feature_maps(torch.rand(6, 3, 3), columns=2)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "2", "4"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["+0", "+1"]
    assert ax.get_yticks().tolist() == [1, 5, 9]


@pytest.mark.parametrize(
    ("maps", "options", "words"),
    [
        (torch.rand(2, 2), {}, "sample of"),
        (torch.rand(2, 2, 2, 2), {}, r"\[C, H, W\] or \[T, B, C, H, W\], got a sample of \[2, 2"),
        (torch.rand(0, 2, 2), {}, r"maps must be a non-empty .* got the shape \[0, 2, 2\]"),
        (torch.full((1, 2, 2), torch.nan), {}, "maps must be finite"),
        (torch.rand(3, 2, 2), {"timestep": 1}, r"timestep must be None for maps of \[C, H, W\]"),
        (torch.rand(3, 2, 2), {"columns": 0}, "columns must be at least 1, got 0"),
        (torch.rand(3, 2, 2), {"sample": 1}, r"sample must be in 0\.\.0, got 1"),
        (torch.rand(3, 2, 2), {"name": "a"}, "name chooses from a recording"),
        (torch.rand(3, 1, 1, 2, 2), {"timestep": 3}, r"timestep must be in 0\.\.2, got 3"),
    ],
)
def test_maps_that_are_none_are_refused(
    maps: torch.Tensor, options: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        plot.feature_maps(maps, **options)  # type: ignore[arg-type]
