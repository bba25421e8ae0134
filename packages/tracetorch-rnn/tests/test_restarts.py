"""Where samples restart: torch's kernels, and how pieces are placed and cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracetorch import rnn
from tracetorch.rnn.restarts import apart, chunks, piece_lengths, pieces


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


def first_and_second(kind: type, run: object, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    layer = kind(3, 4).to(dtype)
    x = torch.randn(12, 3, 3, dtype=dtype, requires_grad=True)
    y = run(layer, x, torch.rand(12, 3) < 0.3)
    leaves = [x, *layer.parameters()]
    first = torch.autograd.grad(y.sin().sum() + layer.h.sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [y, *layer.get_states().values(), *first, *second]


@pytest.mark.parametrize("kind", [rnn.SimpleRNN, rnn.LSTM, rnn.GRU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_second_derivatives_are_those_of_the_steps(kind: type, dtype: torch.dtype) -> None:
    with torch.autograd.detect_anomaly(check_nan=True):
        found = [first_and_second(kind, run, dtype) for run in (by_steps, kind.unroll)]
    close = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(*found, rtol=close, atol=close)


@pytest.mark.parametrize("kind", [rnn.SimpleRNN, rnn.LSTM, rnn.GRU])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 1e12])
def test_a_restart_forgets_what_is_not_finite(kind: type, odd: float) -> None:
    torch.manual_seed(0)
    layer, x = kind(2, 3), torch.randn(9, 3, 2)
    x[2, 1] = odd
    resets = torch.zeros(9, 3, dtype=torch.bool)
    resets[5, 1] = resets[7, 0] = True
    expected = [by_steps(layer, x, resets), *layer.get_states().values()]
    layer.zero_states()
    y = layer.unroll(x, resets)
    torch.testing.assert_close([y, *layer.get_states().values()], expected, equal_nan=True)
    assert bool(y[5:].isfinite().all())


cuts = given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 4),
    rate=st.floats(0, 1),
    seed=st.integers(0, 1000),
)


def cut_by_hand(steps: int, batch: int, rate: float, seed: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(seed)
    resets = torch.rand(steps, batch) < rate
    numbers = torch.arange(steps * batch).view(steps, batch)
    own = []
    for sample in range(batch):
        starts = [0, *[t for t in range(1, steps) if resets[t, sample]], steps]
        own += [numbers[a:b, sample] for a, b in itertools.pairwise(starts)]
    return resets, own


@settings(max_examples=60, deadline=None)
@cuts
def test_pieces_are_those_that_torch_packs(steps: int, batch: int, rate: float, seed: int) -> None:
    resets, own = cut_by_hand(steps, batch, rate, seed)
    cut = pieces(resets)
    packed = torch.nn.utils.rnn.pack_sequence(sorted(own, key=len, reverse=True))
    assert cut.order.tolist() == packed.data.tolist()
    assert cut.widths == packed.batch_sizes.tolist()
    assert cut.order[cut.back].tolist() == list(range(steps * batch))
    for sample in range(batch):
        assert int(cut.samples[cut.last[sample]]) == sample


@settings(max_examples=60, deadline=None)
@cuts
def test_rectangles_hold_every_piece_and_little_else(
    steps: int, batch: int, rate: float, seed: int
) -> None:
    resets, own = cut_by_hand(steps, batch, rate, seed)
    own.sort(key=len, reverse=True)
    cut = pieces(resets, spare=3)
    found: list[list[int]] = [[] for _ in own]
    places = iter(cut.order.tolist())
    for length, width in cut.rectangles():
        rows = [[next(places) for _ in range(width)] for _ in range(length)]
        assert sum(row.count(steps * batch) for row in rows) <= 3
        for row in rows:
            for piece, place in zip(found, row, strict=False):
                piece.append(place)
    assert next(places, None) is None
    for piece, expected in zip(found, own, strict=True):
        assert piece[: len(expected)] == expected.tolist()
        assert set(piece[len(expected) :]) <= {steps * batch}
    assert cut.order[cut.back].tolist() == list(range(steps * batch))


@settings(max_examples=60, deadline=None)
@cuts
def test_pieces_apart_are_in_order_with_a_restart_between(
    steps: int, batch: int, rate: float, seed: int
) -> None:
    resets, own = cut_by_hand(steps, batch, rate, seed)
    order, back = apart(resets, unit=3)
    columns = order.view(-1, batch)
    assert (len(columns) - steps) % 3 == 0
    for sample, column in enumerate(columns.t().tolist()):
        expected: list[int] = []
        for piece in own:
            if piece[0] % batch == sample:
                expected += [steps * batch] * bool(expected) + piece.tolist()
        assert column[: len(expected)] == expected
        assert set(column[len(expected) :]) <= {steps * batch + 1}
    assert order[back].tolist() == list(range(steps * batch))


@pytest.mark.parametrize("kind", rnn.LAYERS, ids=lambda kind: kind.__name__)
def test_no_samples_restart_as_well(kind: type) -> None:
    y = kind(4, 5).unroll(torch.rand(6, 0, 4), torch.zeros(6, 0, dtype=torch.bool))
    assert y.shape == (6, 0, 5)


@pytest.mark.parametrize("kind", [rnn.SimpleRNN, rnn.LSTM, rnn.GRU])
def test_states_share_no_memory_with_the_output(kind: type) -> None:
    layer = kind(3, 4)
    with torch.no_grad():
        y = layer.unroll(torch.randn(6, 2, 3), torch.ones(6, 2, dtype=torch.bool))
    state = layer.h.clone()
    y.zero_()
    assert torch.equal(layer.h, state)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 40),
    batch=st.integers(1, 4),
    rate=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    half=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_chunks_hold_every_timestep_once_and_know_what_they_begin_with(
    steps: int, batch: int, rate: float, half: int, seed: int
) -> None:
    torch.manual_seed(seed)
    resets, length = torch.rand(steps, batch) < rate, 2 * half
    cut = chunks(resets, length)
    spans = [half, *[length] * 4]
    assert all(size % span == 0 for size, span in zip(cut.sizes, spans, strict=True))
    begins = [0]
    for size, span in zip(cut.sizes, spans, strict=True):
        begins += range(begins[-1] + span, begins[-1] + size + 1, span)
    rows = cut.rows.view(steps, batch)
    assert len(set(cut.rows.tolist())) == steps * batch
    # by hand: what each chunk begins with, and what it leaves
    seen, handed, lengths = {}, [], []
    for sample in range(batch):
        since = 0
        for t in range(steps):
            starts = t == 0 or bool(resets[t, sample])
            since = 0 if starts else since + 1
            lengths += [1] if starts else []
            lengths[-1] += not starts
            row = int(rows[t, sample])
            if since % length:
                assert row == int(rows[t - 1, sample]) + 1
                continue
            assert row in begins[:-1]
            if not starts:
                handed.append(int(rows[t - length, sample]))
                seen[row] = len(handed) - 1
            elif not resets[t, sample]:
                seen[row] = ("standing", sample)
    assert piece_lengths(resets).tolist() == lengths
    fresh = sum(size // span for size, span in zip(cut.sizes[:3], spans, strict=False))
    sources = [s if isinstance(s, int) else len(handed) + s[1] for _, s in sorted(seen.items())]
    assert sorted(seen) == begins[fresh:-1]
    assert cut.sources.tolist() == sources
    assert [row for row in begins[:-1] if row in handed] == sorted(handed)
    own = sum(size // span for size, span in zip(cut.sizes[:2], spans, strict=False))
    assert [begins[own + place] for place in cut.order.tolist()] == handed
    left, source, reads = (part.tolist() for part in cut.last)
    for sample in range(batch):
        first = int(rows[steps - left[sample], sample])
        assert first in begins[:-1]
        assert reads[sample] == (first in seen)
        if reads[sample]:
            assert source[sample] == sources[sorted(seen).index(first)]
