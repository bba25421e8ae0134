"""Responses and phase portraits: what a NumPy loop of the layer gives, and the layer as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from tracetorch import plot


class Spiking(tt.Layer):
    """Subtracts one from its membrane when that is above one; two traces of another size beside."""

    def __init__(self, num_neurons: int, beta: float | torch.Tensor = 0.9, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem")
        self.add_state("lags", sizes=(num_neurons, 2))
        self.add_parameter("beta", beta, constraint=tt.constraints.sigmoid)

    def step(self, states: Any, x: torch.Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + x
        spike = (mem > 1).to(mem.dtype)
        lags = torch.stack([x, states.lags[..., 0]], dim=-1)
        return {"mem": mem - spike, "lags": lags}, spike


def rows_of(figure: Any, columns: int) -> list[list[Any]]:
    axes = figure.axes
    return [axes[i : i + columns] for i in range(0, len(axes), columns)]


def heights(ax: Any) -> np.ndarray:
    return np.asarray(ax.lines[0].get_ydata())


SIGNALS = {
    "pulse": [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "step": [0, 0] + [1] * 18,
    "ramp": [0, 0, *(np.arange(18) / 17)],
}


@pytest.mark.parametrize("dim", [-1, -3, 0, 1])
def test_states_are_those_of_the_loop(dim: int) -> None:
    betas = torch.tensor([0.5, 0.8, 0.95], dtype=torch.float64)
    layer = tt.testing.Trace(3, beta=betas, dim=dim).double()
    figure = plot.response(layer, steps=20, amplitude=2.0, neuron=1)
    inputs, mems, outputs = rows_of(figure, 3)
    for column, (name, signal) in enumerate(SIGNALS.items()):
        mem, expected = 0.0, []
        for x in signal:
            mem = 0.8 * mem + 2.0 * x
            expected.append(mem)
        assert inputs[column].get_title() == name
        np.testing.assert_allclose(heights(inputs[column]), 2.0 * np.array(signal))
        np.testing.assert_allclose(heights(mems[column]), expected, rtol=1e-12)
        np.testing.assert_allclose(heights(outputs[column]), expected, rtol=1e-12)


def test_spikes_are_strokes_and_further_dimensions_lines() -> None:
    figure = plot.response(Spiking(2), ["step"], steps=20, amplitude=0.6, threshold=1.0)
    signal, mem, lags, output = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["input", "mem", "lags", "output"]
    level, expected, spikes = 0.0, [], []
    for x in 0.6 * np.array(SIGNALS["step"]):
        level = 0.9 * level + x
        spikes.append(level > 1)
        level -= spikes[-1]
        expected.append(level)
    np.testing.assert_allclose(heights(mem), expected, atol=1e-6)
    assert mem.lines[1].get_ydata()[0] == 1.0
    strokes = np.array([stroke[1] for stroke in output.collections[0].get_segments()])
    np.testing.assert_array_equal(strokes, np.stack([np.arange(20), spikes], axis=1))
    drawn = heights(signal)
    np.testing.assert_allclose(lags.lines[0].get_ydata(), drawn)
    np.testing.assert_allclose(lags.lines[1].get_ydata()[1:], drawn[:-1])


def test_the_layer_is_left_alone() -> None:
    layer = tt.testing.AdaptiveLIF(2)
    layer(torch.ones(4, 2))
    before = {name: state.clone() for name, state in layer.get_states().items()}
    random = torch.random.get_rng_state()
    plot.response(layer)
    assert layer.training
    assert all(torch.equal(before[name], state) for name, state in layer.get_states().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_signals_of_ones_own() -> None:
    figure = plot.response(tt.testing.Trace(1, beta=0.5), {"mine": torch.tensor([1.0, 0.0, 4.0])})
    np.testing.assert_allclose(heights(figure.axes[1]), [1.0, 0.5, 4.25])
    assert figure.axes[0].get_title() == "mine"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"inputs": ["puls"]}, ValueError, r"among pulse, step, ramp, got \['puls'\]"),
        ({"inputs": []}, ValueError, r"among pulse, step, ramp, got \[\]"),
        ({"inputs": {"a": torch.ones(2, 2)}}, ValueError, r"inputs\['a'\] must be a non-empty \[T"),
        ({"steps": 1}, ValueError, "steps must be at least 2, got 1"),
        ({"amplitude": float("inf")}, ValueError, "amplitude must be finite"),
        ({"neuron": 2}, ValueError, r"neuron must be in 0\.\.1, got 2"),
        ({"threshold": {"syn": 1.0}}, ValueError, "one of the states mem, got 'syn'"),
    ],
)
def test_bad_responses_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plot.response(tt.testing.Trace(2), **options)


def test_only_layers_respond() -> None:
    with pytest.raises(TypeError, match=r"^layer must be a tt.Layer, got Linear$"):
        plot.response(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- phase portraits


def test_a_path_joins_the_states_in_order() -> None:
    x, y = torch.randn(9, 2, 3), torch.randn(9, 2, 3)
    ax = plot.phase(x, y, neuron=2, sample=1, names=("syn", "mem"))
    path, start, end = ax.collections
    points = torch.stack([x[:, 1, 2], y[:, 1, 2]], dim=1).numpy()
    pieces = np.asarray(path.get_segments())
    np.testing.assert_array_equal(pieces[:, 0], points[:-1])
    np.testing.assert_array_equal(pieces[:, 1], points[1:])
    np.testing.assert_array_equal(path.get_array(), np.arange(1, 9))
    np.testing.assert_allclose(np.asarray(start.get_offsets())[0], points[0])
    np.testing.assert_allclose(np.asarray(end.get_offsets())[0], points[-1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("syn", "mem")


def test_the_only_two_states_of_a_recording_are_taken_or_those_named() -> None:
    recording = {"l.syn": torch.rand(4, 1, 1), "l.mem": torch.rand(4, 1, 1)}
    ax = plot.phase({**recording, "l.out": torch.ones(4, 1, 1)})
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("l.syn", "l.mem")
    turned = plot.phase(recording, names=("l.mem", "l.syn"))
    np.testing.assert_array_equal(
        np.asarray(turned.collections[0].get_segments())[:, 0, 0], recording["l.mem"][:-1, 0, 0]
    )
    with pytest.raises(ValueError, match=r"names must choose two of 'l.syn', 'l.mem', 'm', got"):
        plot.phase({**recording, "m": torch.ones(4, 1, 1)})


def test_bad_phases_are_refused() -> None:
    x = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"of the same \[T, N\], got \[4, 2\] and \[3, 2\]"):
        plot.phase(x, x[:3])
    with pytest.raises(ValueError, match=r"neuron must be in 0\.\.1, got 2"):
        plot.phase(x, x, neuron=2)
    with pytest.raises(ValueError, match="at least 2 timesteps to draw a path, got 1"):
        plot.phase(x[:1], x[:1])
    with pytest.raises(TypeError, match="vertical must be given where horizontal is no recording"):
        plot.phase(x)
    with pytest.raises(TypeError, match="vertical must be None where horizontal is a recording"):
        plot.phase({"a": x, "b": x}, x)
