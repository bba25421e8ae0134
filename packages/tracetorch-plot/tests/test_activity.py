"""Rasters and traces: every mark, line and cell is where the tensors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from tracetorch import plot
from tracetorch.plot.style import NEGATIVE, PALETTE, POSITIVE

SIGNS = ((POSITIVE, 1), (NEGATIVE, -1))


def sample(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-1, 2, shape or (40, 7), generator=generator).float()


def marks_of(collection: object) -> np.ndarray:
    return np.asarray(collection.get_offsets())  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- rasters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_marks_are_the_spikes_coloured_by_sign(dtype: torch.dtype) -> None:
    spikes = sample().to(dtype)
    drawn = plot.raster(spikes).collections
    marks = {tuple(m.get_edgecolor()[0]): marks_of(m) for m in drawn}
    for colour, sign in SIGNS:
        np.testing.assert_array_equal(marks[to_rgba(colour)], (spikes == sign).nonzero().numpy())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2500), st.integers(1, 700), st.integers(0, 2**31))
def test_above_the_marks_cells_are_counted_and_mixed(steps: int, neurons: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, (steps, neurons)).astype(float)
    values[: steps // 3] = 0
    if np.count_nonzero(values) <= 20_000:
        return
    ax = plot.raster(values)
    (image,) = ax.images
    cells = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    wide, tall = (right - left) / cells.shape[1], (top - bottom) / cells.shape[0]
    assert (left, bottom) == (-0.5, -0.5)
    assert cells.shape[0] <= 300
    assert cells.shape[1] <= 1000
    for row, column in zip(
        rng.integers(0, cells.shape[0], 20), rng.integers(0, cells.shape[1], 20), strict=True
    ):
        block = values[
            round(column * wide) : round((column + 1) * wide),
            round(row * tall) : round((row + 1) * tall),
        ]
        fired = np.count_nonzero(block)
        assert (cells[row, column, 3] > 0) == (fired > 0)
        if fired:
            share = (block < 0).sum() / fired
            mixed = (1 - share) * np.array(to_rgba(POSITIVE)) + share * np.array(to_rgba(NEGATIVE))
            np.testing.assert_allclose(cells[row, column, :3], mixed[:3], atol=1e-12)


def test_the_denser_a_cell_the_more_opaque() -> None:
    values = np.zeros((2000, 600))
    values[0::2, :] = 1  # each cell is 2 timesteps of 2 neurons, half of it fires
    values[:1000, :300] = 1
    (image,) = plot.raster(values).images
    alpha = np.asarray(image.get_array())[..., 3]
    np.testing.assert_allclose(alpha[:150, :500], 1.0)
    np.testing.assert_allclose(alpha[150:, 500:], 0.15 + 0.85 / 2)


def test_axes_reach_over_all_neurons_and_timesteps() -> None:
    for ax in (plot.raster(torch.zeros(30, 8)), plot.raster(np.ones((300, 100)))):
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert (left, bottom) == (-0.5, -0.5)
        assert (right, top) in ((29.5, 7.5), (299.5, 99.5))


def test_silence_is_said() -> None:
    assert [text.get_text() for text in plot.raster(torch.zeros(30, 8)).texts] == ["no spikes"]
    assert not plot.raster(torch.eye(3)).texts


def test_one_of_everything_has_whole_ticks() -> None:
    ax = plot.raster(torch.ones(1, 1))
    for ticks, (low, high) in ((ax.get_xticks(), ax.get_xlim()), (ax.get_yticks(), ax.get_ylim())):
        assert [tick for tick in ticks if low <= tick <= high] == [0]


# ---------------------------------------------------------------------- traces


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_lines_are_the_membranes_and_the_thresholds(dtype: torch.dtype) -> None:
    values = torch.randn(30, 3, dtype=dtype, requires_grad=True)
    *lines, low, high = plot.traces(values, threshold=(-1.0, 1.0)).lines
    drawn = np.stack([np.asarray(line.get_ydata()) for line in lines], axis=1)
    np.testing.assert_array_equal(drawn, values.detach().double().numpy())
    assert [low.get_ydata()[0], high.get_ydata()[0]] == [-1.0, 1.0]


@pytest.mark.parametrize("threshold", [0.5, torch.tensor(0.5), [0.5], torch.tensor([0.5])])
def test_a_threshold_is_a_number_in_any_form(threshold: object) -> None:
    ax = plot.traces(torch.zeros(5, 1), threshold=threshold)  # type: ignore[arg-type]
    assert ax.lines[-1].get_ydata()[0] == 0.5


def test_spikes_are_ticks_in_rows_beyond_all_lines_and_rings_on_the_line() -> None:
    values, spikes = torch.randn(40, 3), sample(40, 3)
    ax = plot.traces(values, spikes=spikes)
    up, down, rings, *_ = ax.collections
    edge = {1: values.max().item(), -1: values.min().item()}
    for marks, sign in ((up, 1), (down, -1)):
        when, neuron = (spikes == sign).nonzero(as_tuple=True)
        places = marks_of(marks)
        np.testing.assert_array_equal(places[:, 0], when.numpy())
        assert (sign * places[:, 1] > sign * edge[sign]).all()
        rows = [np.unique(places[neuron.numpy() == n, 1]) for n in range(3)]
        assert [len(row) for row in rows] == [1, 1, 1]
        assert (np.diff(np.concatenate(rows)) * sign > 0).all()
        for n in range(3):
            colours = marks.get_facecolor()[neuron.numpy() == n]
            np.testing.assert_allclose(colours, [to_rgba(PALETTE[n])] * len(colours))
    when, neuron = spikes.nonzero(as_tuple=True)
    expected = torch.stack([when.float(), values[when, neuron]], dim=1)
    np.testing.assert_allclose(marks_of(rings), expected.numpy(), rtol=1e-6)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "neuron 0", "neuron 1", "neuron 2", "spike", "reset",
    ]  # fmt: skip


def test_many_neurons_are_quantiles_across_them() -> None:
    values = torch.randn(20, 50, dtype=torch.float64)
    ax = plot.traces(values, threshold=1.0)
    median, threshold = ax.lines
    np.testing.assert_allclose(median.get_ydata(), values.quantile(0.5, dim=1))
    assert threshold.get_ydata()[0] == 1.0
    for band, reach in zip(ax.collections, (0.05, 0.25), strict=True):
        corners = band.get_paths()[0].vertices
        for quantile in (reach, 1 - reach):
            heights = values.quantile(quantile, dim=1)
            for when, height in enumerate(heights.tolist()):
                assert np.isclose(corners, (when, height)).all(1).any()


def test_a_single_timestep_is_a_dot() -> None:
    assert plot.traces(torch.ones(1, 2)).lines[0].get_marker() == "o"
    assert plot.traces(torch.ones(2, 2)).lines[0].get_marker() == "None"


# ---------------------------------------------------------------------- both


def test_activity_draws_the_busiest_neurons() -> None:
    spikes, membranes = torch.zeros(10, 5), torch.randn(10, 5)
    spikes[:, 3], spikes[::2, 1] = 1.0, 1.0
    above, below = plot.activity(spikes, membranes, threshold=0.5, neurons=2).axes
    drawn = [np.asarray(line.get_ydata()) for line in below.lines[:2]]
    np.testing.assert_allclose(drawn, membranes[:, [3, 1]].T.double().numpy())
    assert [line.get_label() for line in below.lines[:2]] == ["neuron 3", "neuron 1"]
    assert below.lines[2].get_ydata()[0] == 0.5
    assert len(marks_of(above.collections[0])) == 15
    assert len(marks_of(below.collections[0])) == 15


def test_a_threshold_that_moves_is_no_level() -> None:
    with pytest.raises(ValueError, match=r"threshold must be a number or one-dim.* \[5, 1\]"):
        plot.traces(torch.zeros(5, 1), threshold=torch.ones(5, 1))


def test_activity_draws_the_thresholds_of_the_neurons_that_are_drawn() -> None:
    spikes = torch.zeros(6, 5)
    spikes[:, 3], spikes[:2, 1] = 1.0, 1.0
    thresholds = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    _, below = plot.activity(spikes, torch.rand(6, 5), threshold=thresholds, neurons=2).axes
    heights = [line.get_ydata()[0] for line in below.lines[2:]]
    assert heights == pytest.approx([0.4, 0.2])


def test_activity_of_a_recording_pairs_output_and_membrane_of_a_layer() -> None:
    recording = {
        "a.mem": torch.randn(6, 2, 3), "a.out": torch.ones(6, 2, 3),
        "b.syn": torch.ones(6, 2, 4), "b.mem": torch.randn(6, 2, 4), "b.out": torch.ones(6, 2, 4),
    }  # fmt: skip
    for layer in "ab":
        below = plot.activity(recording, name=layer, neurons=1, sample=1).axes[1]
        expected = recording[f"{layer}.mem"][:, 1, 0]
        np.testing.assert_array_equal(below.lines[0].get_ydata(), expected)
    below = plot.activity({k: v for k, v in recording.items() if k[0] == "b"}).axes[1]
    np.testing.assert_array_equal(below.lines[0].get_ydata(), recording["b.mem"][:, 0, 0])


def test_activity_refuses_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"same \[T, N\], got \[4, 2\] and \[5, 2\]"):
        plot.activity(torch.ones(4, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"spikes and values must be of the same \[T, N\]"):
        plot.traces(torch.ones(4, 2), spikes=torch.ones(4, 3))
    with pytest.raises(ValueError, match="neurons must be at least 1, got 0"):
        plot.activity(torch.ones(4, 2), torch.ones(4, 2), neurons=0)
    with pytest.raises(ValueError, match="neurons must be at most 24, got 25"):
        plot.activity(torch.ones(4, 2), torch.ones(4, 2), neurons=25)
    with pytest.raises(TypeError, match=r"neurons must be an integer of at least 1, got 2\.0"):
        plot.activity(torch.ones(4, 2), torch.ones(4, 2), neurons=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="membranes must be given where spikes is no recording"):
        plot.activity(torch.ones(4, 2))
    with pytest.raises(TypeError, match="membranes must be None where spikes is a recording"):
        plot.activity({"a.out": torch.ones(4, 2)}, torch.ones(4, 2))
    with pytest.raises(ValueError, match="layers whose output was recorded: 'a', 'b'; got None"):
        plot.activity({"a.out": torch.ones(4, 2), "b.out": torch.ones(4, 2)})
    with pytest.raises(ValueError, match="spikes are marked on at most 24 neurons, got 30"):
        plot.traces(torch.ones(4, 30), spikes=torch.ones(4, 30))
