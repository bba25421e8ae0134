"""SimpleRNN, LSTM and GRU against torch's cells, bit for bit, and the equations in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tracetorch import rnn

Kind = type[rnn.cells.Cell]
TorchKind = type[nn.RNNCellBase]
Stepped = Callable[[rnn.Layer, Tensor], Tensor]

PAIRS = [(rnn.SimpleRNN, nn.RNNCell), (rnn.LSTM, nn.LSTMCell), (rnn.GRU, nn.GRUCell)]
pairs = pytest.mark.parametrize(("kind", "torch_kind"), PAIRS, ids=lambda kind: kind.__name__)


def twins(
    kind: Kind, torch_kind: TorchKind, dim: int = -1, sizes: tuple[int, ...] = (3, 4)
) -> tuple[Any, Any]:
    cell = torch_kind(*sizes).double()
    layer = kind(*sizes, dim=dim).double()
    layer.load_state_dict(cell.state_dict())
    return layer, cell


def run_cell(cell: nn.Module, x: Any, hx: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs = []
    for timestep in x:
        hx = cell(timestep, hx)
        # a copy, as the layer gives: gradients are then added in the same order
        outputs.append((hx[0] if isinstance(hx, tuple) else hx).clone())
    return torch.stack(outputs), hx if isinstance(hx, tuple) else (hx,)


def states_of(layer: rnn.cells.Cell) -> list[Tensor]:
    return [layer.get_states()[name] for name in layer.state_names]


@pairs
def test_outputs_states_and_gradients_are_those_of_the_cell_bit_for_bit(
    kind: Kind, torch_kind: TorchKind, stepped: Stepped
) -> None:
    layer, cell = twins(kind, torch_kind)
    x = torch.randn(9, 5, 3, dtype=torch.float64)
    weights = torch.randn(9, 5, 4, dtype=torch.float64)
    results = []
    for module in (layer, cell):
        own = x.clone().requires_grad_()
        if module is layer:
            y, states = stepped(layer, own), states_of(layer)
        else:
            y, states = run_cell(cell, own)
        ((y * weights).sum() + sum(s.square().sum() for s in states)).backward()
        gradients = [own.grad, *(p.grad for p in dict(module.named_parameters()).values())]
        results.append([y, *states, *gradients])
    assert len(results[0]) == len(results[1]) == 1 + len(layer.state_names) + 5
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pairs
def test_gradient_of_an_incoming_state_is_that_of_the_cell(
    kind: Kind, torch_kind: TorchKind, stepped: Stepped
) -> None:
    layer, cell = twins(kind, torch_kind)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    start = [torch.randn(5, 4, dtype=torch.float64) for _ in layer.state_names]
    ours = [s.clone().requires_grad_() for s in start]
    theirs = [s.clone().requires_grad_() for s in start]
    layer.set_states(dict(zip(layer.state_names, ours, strict=True)))
    stepped(layer, x).sum().backward()
    run_cell(cell, x, tuple(theirs) if len(theirs) > 1 else theirs[0])[0].sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad.abs().sum() > 0
        assert torch.equal(a.grad, b.grad)


@pairs
def test_state_dicts_load_both_ways(kind: Kind, torch_kind: TorchKind) -> None:
    layer, cell = kind(3, 4), torch_kind(3, 4)
    assert layer.load_state_dict(cell.state_dict(), strict=True)
    fresh, other = torch_kind(3, 4), kind(3, 4)
    assert fresh.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(2, 3)
    assert torch.equal(layer(x), run_cell(cell, x[None])[0][0])
    assert torch.equal(other(x), run_cell(fresh, x[None])[0][0])


@pairs
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_one_seed_gives_the_cells_weights_and_leaves_the_generator_as_the_cell_does(
    kind: Kind, torch_kind: TorchKind, seed: int, sizes: tuple[int, ...]
) -> None:
    drawn = []
    for make in (kind, torch_kind):
        torch.manual_seed(seed)
        drawn.append((make(*sizes).state_dict(), torch.rand(())))
    (ours, after), (theirs, after_cell) = drawn
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert after == after_cell


@pairs
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((3,), -1),
        ((3,), 0),
        ((5, 3), 1),
        ((3, 5), 0),
        ((5, 3, 2, 6), -3),
        ((5, 3, 2, 6), 1),
        ((2, 5, 6, 3), -1),
        ((2, 5, 3), 2),
    ],
)
def test_neurons_anywhere_in_inputs_of_any_rank(
    kind: Kind, torch_kind: TorchKind, shape: tuple[int, ...], dim: int, stepped: Stepped
) -> None:
    layer, cell = twins(kind, torch_kind, dim)
    x = torch.randn(6, *shape, dtype=torch.float64)
    last = x.movedim(dim + 1 if dim >= 0 else dim, -1)
    around = last.shape[1:-1]
    expected, states = run_cell(cell, last.reshape(6, -1, 3))
    expected = expected.reshape(6, *around, 4)
    y = stepped(layer, x)
    # a matrix product of another layout in memory may round its sums in another order
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(y.movedim(dim + 1 if dim >= 0 else dim, -1), expected, **close)
    for ours, theirs in zip(states_of(layer), states, strict=True):
        assert ours.shape == (*shape[: dim % len(shape)], 4, *shape[dim % len(shape) + 1 :])
        torch.testing.assert_close(ours.movedim(dim, -1), theirs.reshape(*around, 4), **close)


def sigmoid(u: Any) -> Any:
    return 1 / (1 + np.exp(-u))


def numpy_step(kind: Kind, x: Any, states: Any, w: dict[str, Any]) -> tuple[Any, ...]:
    """The equations of the docstrings, in NumPy."""
    from_x = x @ w["weight_ih"].T + w["bias_ih"]
    from_h = states[0] @ w["weight_hh"].T + w["bias_hh"]
    if kind is rnn.SimpleRNN:
        return (np.tanh(from_x + from_h),)
    if kind is rnn.LSTM:
        i, f, g, o = np.split(from_x + from_h, 4, axis=-1)
        c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3, -1), np.split(from_h, 3, -1)
    z, n = sigmoid(xz + hz), np.tanh(xn + sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * states[0],)


@pytest.mark.parametrize("kind", [kind for kind, _ in PAIRS])
def test_equations_of_the_docstring(kind: Kind) -> None:
    layer = kind(3, 4).double()
    weights = {key: value.numpy() for key, value in layer.state_dict().items()}
    states = [np.zeros((5, 4)) for _ in layer.state_names]
    for x in torch.randn(8, 5, 3, dtype=torch.float64):
        states = numpy_step(kind, x.numpy(), states, weights)
        np.testing.assert_allclose(layer(x).detach(), states[0], rtol=0, atol=1e-12)
    for ours, theirs in zip(states_of(layer), states, strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind, _ in PAIRS])
def test_autocast_rounds_no_state(kind: Kind, stepped: Stepped) -> None:
    layer, x = kind(3, 4), torch.randn(6, 2, 3)
    expected = stepped(layer, x)
    states = states_of(layer)
    layer.zero_states()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = stepped(layer, x)
    assert torch.equal(y, expected)
    for ours, theirs in zip(states_of(layer), states, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_a_cell_without_its_equations_says_so() -> None:
    class Empty(rnn.cells.Cell):
        gates = 1

    with pytest.raises(NotImplementedError, match=r"Empty must define cell\(self, x, states"):
        Empty(3, 4)(torch.ones(1, 3))
