"""Torch's kernels where samples restart: packed or piece by piece, what the steps give."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracetorch import rnn
from tracetorch.rnn import cells
from tracetorch.rnn.restarts import pieces


def by_steps(layer: rnn.LSTM | rnn.GRU | rnn.SimpleRNN, x: Tensor, resets: Tensor) -> Tensor:
    outputs = []
    for mask, timestep in zip(resets, x, strict=True):
        layer.zero_states(mask)
        outputs.append(layer(timestep))
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", [rnn.SimpleRNN, rnn.LSTM, rnn.GRU])
@pytest.mark.parametrize("around", [(), (2,)], ids=["", "with another dimension"])
@settings(max_examples=12, deadline=None)
@given(
    steps=st.integers(1, 30),
    batch=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    warm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_they_are_the_steps(
    kind: type, around: tuple[int, ...], steps: int, batch: int, rate: float, warm: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = kind(3, 4).double()
    x = torch.randn(steps, batch, *around, 3, dtype=torch.float64, requires_grad=True)
    resets = torch.rand(steps, batch) < rate
    found = []
    for run in (by_steps, type(layer).unroll):
        layer.zero_states()
        if warm:
            layer(x[0])
        y = run(layer, x, resets)
        ends = [y, *layer.get_states().values()]
        loss = sum(((k + 1) * end.sin()).sum() for k, end in enumerate(ends))
        found.append([*ends, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("restarts", "packed"), [(0, 0), (5, 0), (15, 0), (16, 1), (30, 1)])
def test_they_are_packed_where_they_are_many(
    restarts: int, packed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(cells, "pieces", lambda cut: calls.append(cut) or pieces(cut))
    resets = torch.zeros(30, 2, dtype=torch.bool)
    resets[30 - restarts :, 1] = True
    rnn.LSTM(2, 3).unroll(torch.randn(30, 2, 2), resets)
    assert len(calls) == packed


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 4),
    rate=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_pieces_are_those_that_torch_packs(steps: int, batch: int, rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    resets = torch.rand(steps, batch) < rate
    cut = pieces(resets)
    numbers = torch.arange(steps * batch).view(steps, batch)
    own = []
    for sample in range(batch):
        starts = [0, *[t for t in range(1, steps) if resets[t, sample]], steps]
        own += [numbers[a:b, sample] for a, b in itertools.pairwise(starts)]
    packed = torch.nn.utils.rnn.pack_sequence(sorted(own, key=len, reverse=True))
    assert cut.order.tolist() == packed.data.tolist()
    assert cut.sizes.tolist() == packed.batch_sizes.tolist()
    assert torch.equal(numbers.flatten()[cut.order][cut.back], numbers.flatten())
    for sample in range(batch):
        assert int(cut.samples[cut.last[sample]]) == sample


@pytest.mark.parametrize("kind", [rnn.SimpleRNN, rnn.LSTM, rnn.GRU])
def test_no_samples_restart_as_well(kind: type) -> None:
    y = kind(4, 5).unroll(torch.rand(6, 0, 4), torch.zeros(6, 0, dtype=torch.bool))
    assert y.shape == (6, 0, 5)
