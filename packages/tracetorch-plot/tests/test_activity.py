"""Figures show what is in the tensors, and touch nothing else."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from tracetorch import plot
from tracetorch.plot.activity import NEGATIVE, POSITIVE


def sample() -> torch.Tensor:
    return torch.randint(-1, 2, (40, 7), generator=torch.Generator().manual_seed(0)).float()


def test_marks_are_the_spikes_coloured_by_sign() -> None:
    spikes = sample()
    marks = {
        tuple(m.get_edgecolor()[0]): np.asarray(m.get_offsets())
        for m in plot.raster(spikes).collections
    }
    for colour, sign in ((POSITIVE, 1), (NEGATIVE, -1)):
        np.testing.assert_array_equal(marks[to_rgba(colour)], (spikes == sign).nonzero().numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_lines_are_the_membranes_and_the_thresholds(dtype: torch.dtype) -> None:
    values = torch.randn(30, 3, dtype=dtype, requires_grad=True)
    *lines, low, high = plot.traces(values, threshold=(-1.0, 1.0)).lines
    drawn = np.stack([np.asarray(line.get_ydata()) for line in lines], axis=1)
    np.testing.assert_array_equal(drawn, values.detach().double().numpy())
    assert [low.get_ydata()[0], high.get_ydata()[0]] == [-1.0, 1.0]


def test_activity_draws_the_busiest_neurons() -> None:
    spikes, membranes = torch.zeros(10, 5), torch.randn(10, 5)
    spikes[:, 3], spikes[::2, 1] = 1.0, 1.0
    below = plot.activity(spikes, membranes, threshold=0.5, neurons=2).axes[1]
    drawn = [np.asarray(line.get_ydata()) for line in below.lines[:2]]
    np.testing.assert_allclose(drawn, membranes[:, [3, 1]].T.double().numpy())
    assert [line.get_label() for line in below.lines[:2]] == ["neuron 3", "neuron 1"]


def test_nothing_global_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    plot.activity(sample(), torch.randn(40, 7))
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (torch.ones(3, 2, dtype=torch.int64), TypeError, r"floating-point tensor \[T, N\]"),
        ([[1.0]], TypeError, "floating-point tensor"),
        (torch.ones(3), ValueError, r"got the shape \[3\]; choose one sample"),
        (torch.ones(0, 2), ValueError, r"non-empty \[T, N\]"),
        (torch.full((2, 2), float("nan")), ValueError, "finite, got NaN"),
    ],
)
def test_bad_tensors_are_refused_by_name(
    values: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"spikes must be .*{words}"):
        plot.raster(values)  # type: ignore[arg-type]
    with pytest.raises(error, match=f"values must be .*{words}"):
        plot.traces(values)  # type: ignore[arg-type]


def test_activity_refuses_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"same \[T, N\], got \[4, 2\] and \[5, 2\]"):
        plot.activity(torch.ones(4, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match="neurons must be at least 1, got 0"):
        plot.activity(torch.ones(4, 2), torch.ones(4, 2), neurons=0)
