"""Losses and regularisers: NumPy loops, hand-made cases, gradients, padding, errors."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from numpy.typing import NDArray
from torch import Tensor, nn
from tracetorch import snn
from tracetorch.snn import decoders, encoders, losses, regularizers

Array = NDArray[np.float64]
STEPS, BATCH, CLASSES = 7, 5, 4
TARGETS = torch.tensor([0, 3, 1, 1, 2])
LENGTHS = torch.tensor([7, 3, 1, 5, 6])
FAN_OUT = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


def cross_entropy(logits: Array, target: int) -> float:
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])


# each of one sample [T, classes] on its own, by loops


def count_cross_entropy(x: Array, y: int, _: Array) -> float:
    return cross_entropy(x.sum(0), y)


def count_mse(x: Array, y: int, _: Array) -> float:
    wanted = [0.8 if c == y else 0.2 for c in range(CLASSES)]
    return sum((x[:, c].sum() / len(x) - wanted[c]) ** 2 for c in range(CLASSES)) / CLASSES


def timestep_cross_entropy(x: Array, y: int, _: Array) -> float:
    return sum(cross_entropy(row, y) for row in x)


def tet(x: Array, y: int, _: Array) -> float:
    each = [0.95 * cross_entropy(row, y) + 0.05 * ((row - 1.0) ** 2).mean() for row in x]
    return sum(each) / len(x)


def max_membrane(x: Array, y: int, _: Array) -> float:
    return cross_entropy(np.array([max(x[:, c]) for c in range(CLASSES)]), y)


def latencies(x: Array) -> Array:
    """Of probabilities: the expected number of timesteps before the first spike."""
    found = np.zeros(x.shape[1])
    for c in range(x.shape[1]):
        waiting = 1.0
        for t in range(len(x)):
            waiting *= 1 - x[t, c]
            found[c] += waiting
    return found


def first_spike(x: Array, y: int, _: Array) -> float:
    return cross_entropy(-latencies(x) / 2.0, y)


def van_rossum(x: Array, _: int, other: Array) -> float:
    total = 0.0
    for c in range(CLASSES):
        apart = x[:, c] - other[:, c]
        for t in range(len(x)):
            for r in range(len(x)):
                total += apart[t] * apart[r] * math.exp(-abs(t - r) / 4) / 2
    return total / CLASSES


def lower_rate(x: Array, *_: Any) -> float:
    return sum(max(0.0, 0.6 - abs(x[:, c]).mean()) ** 2 for c in range(CLASSES)) / CLASSES


def upper_rate(x: Array, *_: Any) -> float:
    return sum(max(0.0, abs(x[:, c]).mean() - 0.4) ** 2 for c in range(CLASSES)) / CLASSES


def upper_population(x: Array, *_: Any) -> float:
    return max(0.0, abs(x).mean() - 0.4) ** 2


def operations(x: Array, *_: Any) -> float:
    return sum(abs(x[t, c]) * (c + 1) for t in range(len(x)) for c in range(CLASSES))


def band(x: Array, *_: Any) -> float:
    outside = [max(0.0, v - 0.7) ** 2 + max(0.0, 0.3 - v) ** 2 for v in x.flatten()]
    return sum(outside) / len(outside)


Loss = Callable[..., Tensor]
CASES: dict[str, tuple[Loss, Callable[..., float]]] = {
    "count_cross_entropy": (
        lambda x, o, **k: losses.count_cross_entropy(x, TARGETS, **k),
        count_cross_entropy,
    ),
    "count_mse": (lambda x, o, **k: losses.count_mse(x, TARGETS, **k), count_mse),
    "timestep_cross_entropy": (
        lambda x, o, **k: losses.timestep_cross_entropy(x, TARGETS, **k),
        timestep_cross_entropy,
    ),
    "tet": (lambda x, o, **k: losses.tet(x, TARGETS, **k), tet),
    "max_membrane": (
        lambda x, o, **k: losses.max_membrane_cross_entropy(x, TARGETS, **k),
        max_membrane,
    ),
    "first_spike": (
        lambda x, o, **k: losses.first_spike_cross_entropy(x, TARGETS, temperature=2.0, **k),
        first_spike,
    ),
    "van_rossum": (lambda x, o, **k: losses.van_rossum(x, o, tau=4.0, **k), van_rossum),
    "lower_rate": (lambda x, o, **k: regularizers.lower_rate(x, 0.6, **k), lower_rate),
    "upper_rate": (lambda x, o, **k: regularizers.upper_rate(x, 0.4, **k), upper_rate),
    "upper_population": (
        lambda x, o, **k: regularizers.upper_rate(x, 0.4, population=True, **k),
        upper_population,
    ),
    "operations": (
        lambda x, o, **k: regularizers.synaptic_operations(x, FAN_OUT, **k),
        operations,
    ),
    "band": (lambda x, o, **k: regularizers.membrane_band(x, 0.3, 0.7, **k), band),
}
EVERY = pytest.mark.parametrize("name", CASES)


def drawn(seed: int = 0) -> Tensor:
    """Firing probabilities, whose loss is smooth in them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(STEPS, BATCH, CLASSES, dtype=torch.float64, generator=generator)


def references(name: str, x: Tensor, other: Tensor, lengths: Tensor) -> list[float]:
    """Every sample on its own, as long as it is."""
    one = CASES[name][1]
    ends = lengths.tolist()
    return [
        one(x[: ends[b], b].numpy(), int(TARGETS[b]), other[: ends[b], b].numpy())
        for b in range(BATCH)
    ]


@EVERY
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_values_are_those_of_loops_over_unpadded_samples(name: str, lengths: Tensor | None) -> None:
    loss, x, other = CASES[name][0], drawn(), drawn(1)
    ends = torch.full((BATCH,), STEPS) if lengths is None else lengths
    wanted = references(name, x, other, ends)
    found = loss(x, other, lengths=lengths, reduction="none")
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert loss(x, other, lengths=lengths).item() == pytest.approx(np.mean(wanted), rel=1e-12)
    total = loss(x, other, lengths=lengths, reduction="sum").item()
    assert total == pytest.approx(sum(wanted), rel=1e-12)


@EVERY
def test_padding_is_not_read_and_gets_no_gradient(name: str) -> None:
    loss, x, other = CASES[name][0], drawn(), drawn(1)
    padded = torch.arange(STEPS)[:, None] >= LENGTHS
    clean = loss(x, other, lengths=LENGTHS)
    x[padded], other[padded] = math.nan, math.nan
    x.requires_grad_()
    found = loss(x, other, lengths=LENGTHS)
    assert found.item() == clean.item()
    found.backward()
    assert x.grad is not None
    assert (x.grad[padded] == 0).all()
    assert x.grad[~padded].isfinite().all()
    assert (x.grad[~padded] != 0).any()


@EVERY
def test_a_sample_of_no_timesteps_says_nothing(name: str) -> None:
    loss, x, other = CASES[name][0], drawn(), drawn(1)
    lengths = LENGTHS.clone()
    lengths[2] = 0
    each = loss(x, other, lengths=lengths, reduction="none")
    assert each[2] == 0
    rest = [0, 1, 3, 4]
    assert loss(x, other, lengths=lengths).item() == pytest.approx(each[rest].mean().item())
    none = loss(x, other, lengths=torch.zeros(BATCH, dtype=torch.int64))
    assert none.item() == 0


@EVERY
def test_gradients(name: str) -> None:
    loss, x, other = CASES[name][0], drawn().requires_grad_(), drawn(1)
    assert torch.autograd.gradcheck(lambda x: loss(x, other, reduction="none"), (x,))
    assert torch.autograd.gradcheck(lambda x: loss(x, other, lengths=LENGTHS), (x,))


@EVERY
def test_half_precision_keeps_its_type(name: str) -> None:
    loss, x, other = CASES[name][0], drawn().bfloat16(), drawn(1).bfloat16()
    found = loss(x, other, lengths=LENGTHS)
    assert found.dtype == torch.bfloat16
    wanted = loss(x.double(), other.double(), lengths=LENGTHS)
    assert found.item() == pytest.approx(wanted.item(), rel=0.05, abs=0.01)


@EVERY
def test_compiled_whole(name: str) -> None:
    loss, x, other = CASES[name][0], drawn(), drawn(1)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, other, lengths=LENGTHS), loss(x, other, lengths=LENGTHS))


# ---------------------------------------------------------------------- latency


def test_latency_of_spikes_is_that_of_the_decoder() -> None:
    spikes = (drawn() < 0.2).double()
    assert (spikes.sum(0) == 0).any()  # silent ones too
    for lengths in (None, LENGTHS):
        found = losses.latency(spikes, lengths=lengths)
        assert torch.equal(found.long(), snn.decoders.first_spike(spikes, lengths=lengths))
        assert torch.equal(found, found.round())


def test_latency_has_a_gradient_where_there_is_no_spike() -> None:
    """The loss of a silent layer moves its input towards an earlier spike, in each timestep."""
    layer = snn.LIB(2, beta=0.5)
    x = torch.full((4, 1, 2), 0.1, requires_grad=True)
    spikes = layer.unroll(x)
    assert not spikes.any()
    losses.first_spike_cross_entropy(spikes, torch.tensor([0])).backward()
    assert x.grad is not None
    assert (x.grad[:, 0, 0] < 0).all()
    assert (x.grad[:, 0, 1] > 0).all()


# ---------------------------------------------------------------------- van Rossum


def test_van_rossum_is_the_integral_of_its_definition() -> None:
    """Traces in fine continuous time, until they have died away."""
    spikes, targets = torch.zeros(2, 8, 1, 1, dtype=torch.float64)
    spikes[[1, 4]], targets[[2, 7]] = 1, 1
    fine, tau = np.linspace(0, 80, 800_001), 3.0
    apart = np.zeros_like(fine)
    for t, sign in ((1, 1), (4, 1), (2, -1), (7, -1)):
        apart += sign * np.where(fine >= t, np.exp(-(fine - t) / tau), 0)
    wanted = (apart**2).sum() * (fine[1] - fine[0]) / tau
    assert losses.van_rossum(spikes, targets, tau=tau).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_van_rossum_is_the_square_of_the_measure(lengths: Tensor | None) -> None:
    spikes, targets = (drawn() < 0.3).double(), (drawn(1) < 0.3).double()
    measured = tt.measures.van_rossum(spikes, targets, 4.0, lengths=lengths)
    found = losses.van_rossum(spikes, targets, tau=4.0, lengths=lengths, reduction="none")
    torch.testing.assert_close(found, measured.square().mean(1))


def test_van_rossum_draws_a_spike_towards_its_target() -> None:
    spikes, targets = torch.zeros(2, 20, 1, 1)
    spikes[4], targets[10] = 1, 1
    spikes.requires_grad_()
    losses.van_rossum(spikes, targets, tau=3.0).backward()
    assert spikes.grad is not None
    gradient = spikes.grad.flatten()
    assert gradient[5] < gradient[4] < gradient[3] + 1  # to the right of it, less of a loss
    assert gradient[10] == gradient.min()


# ---------------------------------------------------------------------- regularisers


def test_lower_rate_wakes_a_silent_neuron_of_any_firing() -> None:
    for kind in (snn.LIB, snn.LIT):
        layer = kind(3, beta=0.5)
        x = torch.full((4, 1, 3), 0.1, requires_grad=True)
        spikes = layer.unroll(x)
        assert not spikes.any()
        regularizers.lower_rate(spikes, 0.2).backward()
        assert x.grad is not None
        assert (x.grad != 0).all()


def test_negative_spikes_count_as_spikes() -> None:
    spikes = torch.tensor([[[1.0, -1.0]], [[0.0, -1.0]]])
    assert regularizers.upper_rate(spikes, 0.5).item() == 0.125  # rates 0.5 and 1
    assert regularizers.synaptic_operations(spikes, 3.0).item() == 9.0


def test_operations_of_maps_take_a_fan_out_per_channel() -> None:
    spikes = torch.ones(2, 3, 4, 5, 5)
    fan_out = torch.arange(4.0)[:, None, None]
    found = regularizers.synaptic_operations(spikes, fan_out, reduction="none")
    assert found.tolist() == [2 * 25 * (0 + 1 + 2 + 3)] * 3


# ---------------------------------------------------------------------- errors

X = torch.rand(STEPS, BATCH, CLASSES)
ONE = torch.tensor([0])
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: losses.tet(X.long(), TARGETS), TypeError, "x must be a floating-point tensor"),
    (lambda: losses.tet([1.0], TARGETS), TypeError, "x must be a floating-point tensor"),  # type: ignore[arg-type]
    (lambda: losses.tet(X[0], TARGETS), ValueError, "x must be [T, B, classes]"),
    (lambda: losses.tet(X[:0], TARGETS), ValueError, "at least one timestep"),
    (lambda: losses.tet(X, TARGETS.float()), TypeError, "targets must be a tensor of integers"),
    (lambda: losses.tet(X, TARGETS[:2]), ValueError, "one class for each of the 5 samples"),
    (lambda: losses.tet(X, TARGETS + 2), ValueError, "targets must lie in 0…3, got [2, 5"),
    (lambda: losses.tet(X, TARGETS, weight=1.5), ValueError, "weight must be a number in 0…1"),
    (lambda: losses.tet(X, TARGETS, level=math.nan), ValueError, "level must be a finite number"),
    (
        lambda: losses.tet(X, TARGETS, lengths=LENGTHS.float()),
        TypeError,
        "lengths must be a tensor of integers [B], got torch.float32",
    ),
    (
        lambda: losses.tet(X, TARGETS, lengths=LENGTHS[:2]),
        ValueError,
        "one entry for each of the 5 samples, got the shape [2]",
    ),
    (
        lambda: losses.tet(X, TARGETS, lengths=LENGTHS + 1),
        ValueError,
        "lengths must lie in 0…7, got [8, 4, 2, 6, 7]",
    ),
    (
        lambda: losses.tet(X, TARGETS, reduction="max"),
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got 'max'",
    ),
    (
        lambda: losses.count_mse(X, TARGETS, correct=2.0),
        ValueError,
        "correct must be a rate in 0…1, got 2.0",
    ),
    (
        lambda: losses.count_mse(X, TARGETS, incorrect=True),
        TypeError,
        "incorrect must be a rate in 0…1, got True",
    ),
    (
        lambda: losses.first_spike_cross_entropy(X, TARGETS, temperature=0.0),
        ValueError,
        "temperature must be a number of timesteps in (0, ∞), got 0.0",
    ),
    (
        lambda: losses.van_rossum(X, X[:2]),
        ValueError,
        "targets must have the shape [7, 5, 4] of spikes, got [2, 5, 4]",
    ),
    (lambda: losses.van_rossum(X, X, tau=-1.0), ValueError, "tau must be"),
    (
        lambda: regularizers.lower_rate(X, 1.5),
        ValueError,
        "bound must be a rate in 0…1, got 1.5",
    ),
    (
        lambda: regularizers.synaptic_operations(X, torch.ones(3)),
        ValueError,
        "fan_out must broadcast to one timestep of one sample, [4], got the shape [3]",
    ),
    (lambda: regularizers.synaptic_operations(X, -1.0), ValueError, "fan_out must be"),
    (
        lambda: regularizers.membrane_band(X, 1.0, 0.0),
        ValueError,
        "low must not be above high, got low=1.0 and high=0.0",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG)
def test_bad_arguments_are_refused(
    call: Callable[[], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        call()


NOT_DENSE: dict[str, tuple[Callable[[], Any], str]] = {
    "nested": (lambda: torch.nested.nested_tensor([X[:, 0], X[:1, 0]]), "pad_sequence"),
    "packed": (lambda: nn.utils.rnn.pack_sequence([X[:, 0], X[:1, 0]]), "pad_packed_sequence"),
    "sparse": (lambda: X.to_sparse(), "x.to_dense()"),
}
SEQUENCES: dict[str, Callable[[Any], object]] = {
    "a loss": lambda x: losses.tet(x, TARGETS),
    "van Rossum": lambda x: losses.van_rossum(x, x),
    "a regulariser": lambda x: regularizers.upper_rate(x, 0.2),
    "a decoder": decoders.max_membrane,
    "an encoder of values": lambda x: encoders.rate(x, 3),
    "an encoder of signals": lambda x: encoders.delta(x, 0.1),
    "calibrate": lambda x: snn.init.calibrate(nn.Sequential(nn.Linear(4, 4), snn.LIB(4)), x),
}


@pytest.mark.filterwarnings("ignore:.*prototype stage:UserWarning")
@pytest.mark.parametrize("call", SEQUENCES)
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_what_is_not_dense_is_refused_with_its_remedy(kind: str, call: str) -> None:
    make, remedy = NOT_DENSE[kind]
    with pytest.raises(TypeError, match=rf"^\w+ must be a .*, got .*{re.escape(remedy)}"):
        SEQUENCES[call](make())


def test_van_rossum_of_one_neuron_needs_no_dimension_for_it() -> None:
    spikes, targets = (drawn() < 0.3).double()[..., 0], (drawn(1) < 0.3).double()[..., 0]
    alone = losses.van_rossum(spikes, targets)
    assert torch.equal(alone, losses.van_rossum(spikes[..., None], targets[..., None]))


def test_every_public_function_is_in_these_cases() -> None:
    public = {
        name
        for module in (losses, regularizers)
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and f.__module__ == module.__name__
    }
    source = inspect.getsource(inspect.getmodule(drawn))  # type: ignore[arg-type]
    assert {name for name in public if f".{name}(" in source} == public
    assert len(public) == 12


def test_a_negative_spike_is_a_spike_to_a_latency() -> None:
    spikes = torch.zeros(6, 2, 3)
    spikes[2, 0, 1], spikes[4, 1, 2], spikes[5] = -1.0, 1.0, -1.0
    expected = decoders.first_spike(spikes)
    assert torch.equal(losses.latency(spikes), expected.to(spikes.dtype))
