"""What figures take: samples of tensors, arrays and recordings; what they refuse, by words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from tracetorch import plot
from tracetorch.plot.arguments import series


class Recording(dict[str, torch.Tensor]):
    """As ``tt.record`` makes them: a mapping that may know lengths."""

    lengths: torch.Tensor | None = None


def batch() -> torch.Tensor:
    return torch.arange(5.0 * 3 * 2 * 4).reshape(5, 3, 2, 4)


@pytest.mark.parametrize("kind", [lambda x: x, lambda x: x.numpy(), lambda x: {"lif.mem": x}])
@pytest.mark.parametrize("sample", [0, 2])
def test_one_sample_is_drawn_with_its_neurons_flattened(kind: Any, sample: int) -> None:
    expected = batch()[:, sample].flatten(1)
    ax = plot.traces(kind(batch()), sample=sample)
    drawn = np.stack([line.get_ydata() for line in ax.lines], axis=1)
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("dtype", "found"),
    [(torch.bool, np.float32), (torch.int64, np.float64), (torch.float16, np.float32)],
)
def test_values_become_floats_that_hold_them(dtype: torch.dtype, found: type) -> None:
    values = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    drawn = series("values", values)
    assert drawn.dtype == found
    np.testing.assert_array_equal(drawn, np.eye(2))


def test_large_integers_are_not_rounded() -> None:
    assert series("values", torch.tensor([[2**40 + 1]]))[0, 0] == 2**40 + 1


def test_a_sample_ends_at_its_own_length() -> None:
    recording = Recording({"lif.out": torch.ones(5, 3, 2)})
    recording.lengths = torch.tensor([5, 2, 0])
    for sample, length in ((0, 5), (1, 2)):
        ax = plot.raster(recording, sample=sample)
        assert ax.get_xlim() == (-0.5, length - 0.5)
    with pytest.raises(ValueError, match="has no timesteps of sample 2: its length is 0"):
        plot.raster(recording, sample=2)


class Masked(Recording):
    """A recording whose samples end, and go on in another call: it has no lengths."""

    mask = torch.tensor([[True, True], [True, False], [True, True], [True, False]])

    @property
    def lengths(self) -> torch.Tensor:  # type: ignore[override]
        raise RuntimeError("no lengths tell which timesteps are theirs")


def test_only_a_samples_own_timesteps_are_drawn() -> None:
    values = torch.arange(8.0).reshape(4, 2, 1)
    recording = Masked({"lif.mem": values})
    for sample, expected in ((0, [0, 2, 4, 6]), (1, [1, 5])):
        (line,) = plot.traces(recording, sample=sample).lines
        assert line.get_ydata().tolist() == expected
    spikes = Masked({"lif.out": values, "lif.mem": values})
    (line,) = plot.rates(spikes).lines
    assert line.get_ydata().tolist() == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("how", ["stepped", "unrolled"])
def test_recordings_of_models_are_drawn(how: str) -> None:
    layer, x = tt.testing.AdaptiveLIF(3), 3 * torch.rand(20, 2, 3)
    with tt.record(layer, "*") as recording:
        expected = layer.unroll(x) if how == "unrolled" else torch.stack([layer(t) for t in x])
    drawn = plot.raster(recording, sample=1).collections[0].get_offsets()
    np.testing.assert_array_equal(drawn, expected[:, 1].nonzero())
    above, below = plot.activity(recording, sample=1, neurons=3).axes
    busiest = expected[:, 1].sum(0).argsort(descending=True, stable=True)
    np.testing.assert_array_equal(
        [line.get_ydata() for line in below.lines], recording["mem"][:, 1, busiest].T
    )
    np.testing.assert_array_equal(above.collections[0].get_offsets(), drawn)


@pytest.mark.filterwarnings("ignore:.*prototype stage:UserWarning")
@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda x: torch.nested.nested_tensor([x, x[:1]]), r"pad_sequence\(x.unbind\(\)\)"),
        (lambda x: torch.nn.utils.rnn.pack_sequence([x, x[:1]]), "pad_packed_sequence"),
        (lambda x: x.to_sparse(), r"x.to_dense\(\)"),
    ],
    ids=["nested", "packed", "sparse"],
)
def test_what_is_not_dense_is_refused_with_its_remedy(
    make: Callable[[torch.Tensor], Any], remedy: str
) -> None:
    x = make(torch.rand(4, 3))
    calls: list[Callable[[], object]] = [
        lambda: plot.raster(x),
        lambda: plot.traces({"lif.mem": x}),
        lambda: plot.training({"loss": x}),
        lambda: plot.phase(torch.rand(4, 3), x),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"must be a tensor or an array, got .*{remedy}"):
            call()


def test_the_only_fitting_name_is_found() -> None:
    one, other = torch.zeros(4, 1, 2), torch.ones(4, 1, 2)
    recording = {"lif.mem": one, "lif.out": other, "lif.in": one}
    np.testing.assert_array_equal(plot.traces(recording).lines[0].get_ydata(), [0, 0, 0, 0])
    assert len(plot.raster(recording).collections[0].get_offsets()) == 8
    assert len(plot.raster({"anything": other}).collections[0].get_offsets()) == 8
    assert plot.traces(recording, name="lif.out").lines[0].get_ydata()[0] == 1


SHAPE = r"\[T, N\] or \[T, B, N…\]"


@pytest.mark.parametrize("draw", [plot.raster, plot.traces, plot.heatmap])
@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ([[1.0]], TypeError, "must be a tensor or an array, got list"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "of real numbers, got complex64"),
        (np.array([["a"]]), TypeError, "must be of real numbers, got <U1"),
        (torch.ones(3), ValueError, rf"must be a non-empty {SHAPE}, got the shape \[3\]"),
        (torch.ones(0, 2), ValueError, rf"must be a non-empty {SHAPE}, got the shape \[0, 2\]"),
        (torch.ones(2, 0), ValueError, rf"must be a non-empty {SHAPE}, got the shape \[2, 0\]"),
        (torch.full((2, 2), float("nan")), ValueError, "must be finite, got NaN or infinity"),
        (torch.full((2, 1, 2), float("inf")), ValueError, "must be finite, got NaN or infinity"),
    ],
)
def test_bad_values_are_refused_by_name(
    draw: Any, values: object, error: type[Exception], words: str
) -> None:
    name = "spikes" if draw is plot.raster else "values"
    with pytest.raises(error, match=f"^{name} {words}" if "must" in words else words):
        draw(values)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sample": 3}, ValueError, "sample must be in 0..2, got 3"),
        ({"sample": -1}, ValueError, "sample must be at least 0, got -1"),
        ({"sample": 0.0}, TypeError, "sample must be an integer of at least 0, got 0.0"),
        ({"sample": True}, TypeError, "sample must be an integer of at least 0, got True"),
        ({"name": "a"}, ValueError, "name chooses from a recording, but spikes is none; got 'a'"),
        ({"ax": 3}, TypeError, "ax must be an Axes of matplotlib, got 3"),
    ],
)
def test_bad_choices_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        plot.raster(batch(), **options)


def test_a_single_sample_has_no_other() -> None:
    with pytest.raises(ValueError, match=r"^sample must be in 0\.\.0, got 1$"):
        plot.raster(torch.ones(4, 2), sample=1)


def test_a_recording_says_what_it_has() -> None:
    recording = {"a.mem": batch(), "b.mem": batch(), "b.out": batch()}
    with pytest.raises(
        ValueError, match=r"^name must choose one of values's 'a.mem', 'b.mem', got"
    ):
        plot.traces(recording)
    with pytest.raises(ValueError, match=r"^name must be one of spikes's 'a.mem', .* got 'c.out'$"):
        plot.raster(recording, name="c.out")
    with pytest.raises(ValueError, match=r"\(nothing was recorded\)"):
        plot.raster({})
    with pytest.raises(ValueError, match=r"^values\['a.mem'\] must be finite"):
        plot.traces({"a.mem": torch.full((2, 1, 1), torch.nan)})


@pytest.mark.parametrize(
    ("threshold", "error", "words"),
    [
        ("high", TypeError, "threshold must be a tensor or an array, got str"),
        (float("nan"), ValueError, "threshold must be finite, got NaN or infinity"),
    ],
)
def test_bad_thresholds_are_refused(threshold: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plot.traces(torch.ones(3, 2), threshold=threshold)
    with pytest.raises(error, match=words):
        plot.activity(torch.ones(3, 2), torch.ones(3, 2), threshold=threshold)
