"""Measures of spikes: against loops over single trains, by hand, ragged, by name, refused."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from tracetorch import measures, testing

# ------------------------------------------------------------------ one train, as a loop

Train = list[bool]


def times(train: Train) -> list[int]:
    return [time for time, fires in enumerate(train) if fires]


def gaps(train: Train) -> list[int]:
    found = times(train)
    return [after - before for before, after in itertools.pairwise(found)]


def mean_gap(train: Train) -> float:
    return statistics.fmean(gaps(train)) if gaps(train) else math.nan


def cv(train: Train) -> float:
    found = gaps(train)
    if len(found) < 2:
        return math.nan
    return statistics.pstdev(found) / statistics.fmean(found)


def lv(train: Train) -> float:
    found = gaps(train)
    if len(found) < 2:
        return math.nan
    pairs = itertools.pairwise(found)
    return 3 * statistics.fmean([((a - b) / (a + b)) ** 2 for a, b in pairs])


def fano(train: Train, window: int) -> float:
    counts = [
        sum(train[start : start + window])
        for start in range(0, len(train), window)
        if start + window <= len(train)
    ]
    if len(counts) < 2 or not any(counts):
        return math.nan
    return statistics.variance(counts) / statistics.fmean(counts)


def rate(train: Train) -> float:
    return sum(train) / len(train) if train else math.nan


def latency(train: Train) -> float:
    return times(train)[0] if any(train) else math.inf


# of each train: the measure, and the loop
OF_TRAINS: dict[str, tuple[Callable[..., Tensor], Callable[[Train], float]]] = {
    "spike_counts": (measures.spike_counts, lambda train: sum(train)),
    "firing_rate": (measures.firing_rate, rate),
    "first_spike_latency": (measures.first_spike_latency, latency),
    "interval_mean": (measures.interval_mean, mean_gap),
    "interval_cv": (measures.interval_cv, cv),
    "local_variation": (measures.local_variation, lv),
    "fano_factor": (
        lambda spikes, **more: measures.fano_factor(spikes, 3, **more),
        lambda train: fano(train, 3),
    ),
}


def population(fired: list[Train]) -> float:
    """Golomb and Rinzel's measure of several trains, in windows of 2."""
    starts = range(0, len(fired[0]) // 2 * 2, 2)
    counts = [[sum(train[at : at + 2]) for at in starts] for train in fired]
    if not counts[0]:
        return math.nan
    alone = statistics.fmean([statistics.pvariance(row) for row in counts])
    mean = [statistics.fmean(column) for column in zip(*counts, strict=True)]
    return statistics.pvariance(mean) / alone if alone else math.nan


# all that is measured of [T, B, …]
ALL: dict[str, Callable[..., Any]] = {
    **{name: function for name, (function, _) in OF_TRAINS.items()},
    "rate of the batch": lambda s, **m: measures.firing_rate(s, over="batch", **m),
    "rate of all": lambda s, **m: measures.firing_rate(s, over="all", **m),
    "activation_sparsity": measures.activation_sparsity,
    "dead": measures.dead,
    "saturated": lambda s, **m: measures.saturated(s, share=0.5, **m),
    "synchrony": lambda s, **m: measures.synchrony(s, 2, **m),
    "interspike_intervals": measures.interspike_intervals,
}


def drawn(*shape: int, share: float = 0.4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < share).double()


@st.composite
def ragged(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, B, N]`` and lengths."""
    steps = draw(st.integers(3, 12))
    batch, neurons = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    share, seed = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])), draw(st.integers(0, 999))
    lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    return drawn(steps, batch, neurons, share=share, seed=seed), torch.tensor(lengths)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("name", OF_TRAINS)
@given(case=ragged())
def test_each_train_is_measured_as_a_loop_would(name: str, case: tuple[Tensor, Tensor]) -> None:
    spikes, lengths = case
    found, loop = OF_TRAINS[name]
    for given_lengths in (None, lengths):
        ends = [len(spikes)] * len(lengths) if given_lengths is None else lengths.tolist()
        expected = [
            [loop((spikes[:end, b, n] != 0).tolist()) for n in range(spikes.shape[2])]
            for b, end in enumerate(ends)
        ]
        got = found(spikes, lengths=given_lengths)
        same(got, torch.tensor(expected, dtype=got.dtype))


@given(case=ragged())
def test_synchrony_is_that_of_a_loop(case: tuple[Tensor, Tensor]) -> None:
    spikes, lengths = case
    expected = [
        population((spikes[:end, b] != 0).T.tolist()) for b, end in enumerate(lengths.tolist())
    ]
    got = measures.synchrony(spikes, 2, lengths=lengths)
    same(got, torch.tensor(expected, dtype=torch.float64))


@given(case=ragged())
def test_rates_and_neurons_over_samples_are_those_of_a_loop(case: tuple[Tensor, Tensor]) -> None:
    spikes, lengths = case
    fired = [spikes[:end, b] != 0 for b, end in enumerate(lengths.tolist())]
    together = torch.cat(fired)  # [timesteps of all samples, N]
    same(measures.firing_rate(spikes, over="batch", lengths=lengths), together.double().mean(0))
    same(measures.firing_rate(spikes, over="all", lengths=lengths), together.double().mean())
    same(measures.activation_sparsity(spikes, lengths=lengths), (~together).double().mean())
    never = [not any(column) for column in together.T.tolist()]
    assert measures.dead(spikes, lengths=lengths).tolist() == never
    often = [bool(c) and sum(c) / len(c) >= 0.5 for c in together.T.tolist()]
    assert measures.saturated(spikes, share=0.5, lengths=lengths).tolist() == often


@given(case=ragged())
def test_the_intervals_are_those_of_all_trains_in_their_order(case: tuple[Tensor, Tensor]) -> None:
    spikes, lengths = case
    expected = [
        (place, gap)
        for place, train in enumerate(spikes.flatten(1).T)
        for gap in gaps((train[: lengths[place // spikes.shape[2]]] != 0).tolist())
    ]
    found = measures.interspike_intervals(spikes, dt=0.5, lengths=lengths)
    pairs = zip(found.trains.tolist(), found.durations.tolist(), strict=True)
    assert [*pairs] == [(place, gap * 0.5) for place, gap in expected]


def test_by_hand() -> None:
    spikes = torch.zeros(8, 1, 3, dtype=torch.float64)
    spikes[[1, 2, 4, 7], 0, 0] = 1  # intervals 1, 2, 3
    spikes[[0, 7], 0, 1] = 1  # one interval
    same(measures.spike_counts(spikes), torch.tensor([[4, 2, 0]]))
    same(measures.firing_rate(spikes, dt=1e-3)[0, :2], torch.tensor([500.0, 250.0]).double())
    same(measures.interval_mean(spikes)[0, :2], torch.tensor([2.0, 7.0]).double())
    same(
        measures.interval_cv(spikes)[0, 0], torch.tensor(math.sqrt(2 / 3) / 2, dtype=torch.float64)
    )
    same(
        measures.local_variation(spikes)[0, 0],
        torch.tensor(1.5 * (1 / 9 + 1 / 25), dtype=torch.float64),
    )
    # counts in windows of 4: 2, 2 and 1, 1
    same(measures.fano_factor(spikes, 4)[0, :2], torch.zeros(2).double())
    # in windows of 2: 1, 1, 1, 1 and 1, 0, 0, 1: 1/3 over 1/2
    same(measures.fano_factor(spikes, 2)[0, :2], torch.tensor([0.0, 2 / 3], dtype=torch.float64))
    assert measures.dead(spikes).tolist() == [False, False, True]
    assert measures.first_spike_latency(spikes, silent=-1.0).tolist() == [[1.0, 0.0, -1.0]]


def test_what_is_not_defined_is_nan() -> None:
    spikes = torch.zeros(6, 1, 3)
    spikes[2, 0, 1] = 1
    spikes[[1, 4], 0, 2] = 1
    assert measures.interval_mean(spikes).isnan().tolist() == [[True, True, False]]
    assert measures.interval_cv(spikes).isnan().all()
    assert measures.local_variation(spikes).isnan().all()
    assert measures.fano_factor(spikes, 3).isnan().tolist() == [[True, False, False]]
    assert measures.fano_factor(spikes, 4).isnan().all()
    assert measures.synchrony(torch.ones(6, 2, 3), 2).isnan().all()
    never = torch.tensor([0])
    assert measures.firing_rate(spikes, lengths=never).isnan().all()
    assert measures.activation_sparsity(spikes, lengths=never).isnan()
    assert measures.first_spike_latency(spikes, lengths=never).isinf().all()
    assert measures.dead(spikes, lengths=never).all()
    assert not measures.saturated(spikes, lengths=never).any()


def test_a_poisson_process_has_one_everywhere_and_a_clock_none() -> None:
    poisson = drawn(60_000, 1, 4, share=0.02)
    for found in (measures.interval_cv(poisson), measures.local_variation(poisson)):
        assert (found - 1).abs().max() < 0.1
    assert (measures.fano_factor(poisson, 200) - 1).abs().max() < 0.25
    assert abs(measures.synchrony(poisson, 200).item() - 1 / 4) < 0.05
    clock = torch.zeros(600, 1, 4)
    clock[::5] = 1
    assert measures.interval_cv(clock).tolist() == [[0.0] * 4]
    assert measures.local_variation(clock).tolist() == [[0.0] * 4]
    assert measures.fano_factor(clock, 10).tolist() == [[0.0] * 4]


def test_the_share_of_saturated_neurons_is_a_share_of_timesteps_that_is_reached_exactly() -> None:
    spikes = torch.zeros(10, 1, 11)
    for neuron in range(11):
        spikes[:neuron, 0, neuron] = 1
    for tenths in range(1, 11):
        found = measures.saturated(spikes, share=tenths / 10)
        assert found.tolist() == [neuron >= tenths for neuron in range(11)]


# ------------------------------------------------------------------ what makes no difference


@pytest.mark.parametrize("name", ALL)
@given(case=ragged(), seed=st.integers(0, 99))
def test_a_spike_is_whatever_is_not_zero_and_what_comes_after_the_end_is_nothing(
    name: str, case: tuple[Tensor, Tensor], seed: int
) -> None:
    spikes, lengths = case
    generator = torch.Generator().manual_seed(seed)
    signed = torch.randn(spikes.shape, generator=generator, dtype=torch.float64)
    other = torch.where(spikes != 0, signed, 0.0)
    other[torch.arange(len(spikes))[:, None] >= lengths] = math.nan
    kept = other.clone()
    same(ALL[name](other, lengths=lengths), ALL[name](spikes, lengths=lengths))
    same(other, kept)


@pytest.mark.parametrize("name", ALL)
def test_samples_that_end_together_are_shorter_sequences(name: str) -> None:
    spikes = drawn(12, 3, 4)
    cut = ALL[name](spikes[:7])
    same(ALL[name](spikes, lengths=torch.tensor([7, 7, 7])), cut)


@pytest.mark.parametrize("name", ALL)
def test_neurons_may_have_any_shape(name: str) -> None:
    spikes = drawn(12, 3, 2 * 3 * 2)
    flat, shaped = ALL[name](spikes), ALL[name](spikes.unflatten(2, (2, 3, 2)))
    if isinstance(flat, Tensor) and flat.ndim and name != "synchrony":
        flat = flat.unflatten(-1, (2, 3, 2))
    same(shaped, flat)


@pytest.mark.parametrize("name", OF_TRAINS)
def test_a_measure_of_each_train_takes_one_sample_of_neurons_as_well(name: str) -> None:
    spikes = drawn(12, 5)
    same(OF_TRAINS[name][0](spikes), OF_TRAINS[name][0](spikes[:, None])[0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.bfloat16, torch.float32])
def test_other_types_of_spikes_give_the_same(name: str, dtype: torch.dtype) -> None:
    spikes = drawn(12, 3, 4)
    found, exact = ALL[name](spikes.to(dtype)), ALL[name](spikes)
    for one, other in zip(_tensors(found), _tensors(exact), strict=True):
        expected = other.float() if other.dtype == torch.float64 else other
        torch.testing.assert_close(one, expected, equal_nan=True)


def _tensors(found: Any) -> list[Tensor]:
    return [*found] if isinstance(found, tuple) else [found]


# ------------------------------------------------------------------ recordings


class Recording(Mapping[str, Tensor]):
    """As ``tt.record`` gives them."""

    def __init__(self, lengths: Tensor | None, **tensors: Tensor) -> None:
        self.lengths, self._tensors = lengths, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@pytest.mark.parametrize("name", ALL)
def test_of_a_recording_each_tensor_is_measured_by_name_with_its_lengths(name: str) -> None:
    one, other = drawn(9, 2, 3), drawn(9, 2, 2, 2, seed=1)
    own, given_lengths = torch.tensor([4, 9]), torch.tensor([9, 3])
    function = ALL[name]
    plain = function({"one": one, "other": other})
    assert list(plain) == ["one", "other"]
    same(plain, {"one": function(one), "other": function(other)})
    recording = Recording(own, one=one, other=other)
    expected = {"one": function(one, lengths=own), "other": function(other, lengths=own)}
    same(function(recording), expected)
    same(function(recording, lengths=given_lengths)["one"], function(one, lengths=given_lengths))
    same(function(Recording(None, one=one))["one"], function(one))


def test_what_a_model_records_is_measured_up_to_the_end_of_each_sample() -> None:
    class Net(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = testing.AdaptiveLIF(3), testing.AdaptiveLIF(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(2 * self.first(x))

    net, x, lengths = Net(), 2 * torch.rand(9, 2, 3), torch.tensor([9, 4])
    with tt.record(net, "*.out") as rec, torch.no_grad():
        net.unroll(x, lengths=lengths)
    rates = measures.firing_rate(rec)
    assert list(rates) == ["first.out", "second.out"]
    for name, spikes in rec.items():
        expected = [spikes[:9, 0].mean(0), spikes[:4, 1].mean(0)]
        torch.testing.assert_close(rates[name], torch.stack(expected))
        assert spikes.any()


# ------------------------------------------------------------------ refused

FINE = torch.zeros(5, 2, 3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("spikes", "lengths", "kind", "says"),
    [
        ([0.0], None, TypeError, r"be a real tensor \[T, B, …\], got a list"),
        (FINE.cfloat(), None, TypeError, "be a real tensor .* got torch.complex64"),
        (torch.zeros(3), None, ValueError, r"have a timestep, got the shape \[3\]; one sample"),
        (torch.zeros(0, 2, 3), None, ValueError, r"have a timestep, got the shape \[0, 2, 3\]"),
        (FINE, [1, 2], TypeError, r"be a tensor of integers \[B\], got \[1, 2\]"),
        (FINE, torch.ones(2), TypeError, "be a tensor .* got torch.float32"),
        (FINE, torch.ones(3).long(), ValueError, r"here \[5, 2, 3\], got the shape \[3\]"),
        (FINE, torch.tensor([6, 1]), ValueError, r"lie in 0…5, got \[6, 1\]"),
        (FINE, torch.tensor([-1, 1]), ValueError, r"lie in 0…5, got \[-1, 1\]"),
    ],
)
def test_what_is_no_sequence_is_refused(
    name: str, spikes: Any, lengths: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=rf"^[a-z_]+: (spikes|lengths) must .*{says}") as error:
        ALL[name](spikes, lengths=lengths)
    owner = str(error.value).partition(":")[0]
    assert callable(getattr(measures, owner))
    assert owner == name or name.startswith("rate of")


@pytest.mark.parametrize("name", ["rate of the batch", "dead", "saturated", "synchrony"])
def test_what_averages_over_samples_or_neurons_wants_both(name: str) -> None:
    with pytest.raises(ValueError, match=r"with neurons after the batch and have .* \[5, 2\]"):
        ALL[name](torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: measures.firing_rate(FINE, over="space"), ValueError, "over must be 'time', "),
        (lambda: measures.firing_rate(FINE, dt=0.0), ValueError, r"dt must .* in \(0, ∞\), got 0"),
        (lambda: measures.interval_mean(FINE, dt=math.inf), ValueError, "dt must .*, got inf"),
        (lambda: measures.interspike_intervals(FINE, dt=True), TypeError, "dt must .*, got True"),
        (lambda: measures.first_spike_latency(FINE, dt=-1), ValueError, "dt must .*, got -1"),
        (
            lambda: measures.first_spike_latency(FINE, silent="never"),  # type: ignore[arg-type]
            TypeError,
            "silent must be a number, got 'never'",
        ),
        (lambda: measures.saturated(FINE, share=0.0), ValueError, r"share must .* in \(0, 1\]"),
        (lambda: measures.saturated(FINE, share=1.1), ValueError, "share must .*, got 1.1"),
        (
            lambda: measures.fano_factor(FINE, 0),
            ValueError,
            "window must be an integer of at least 1, got 0",
        ),
        (
            lambda: measures.fano_factor(FINE, 6),
            ValueError,
            "window must be at most the 5 timesteps .* got 6",
        ),
        (
            lambda: measures.synchrony(FINE, 2.0),  # type: ignore[arg-type]
            TypeError,
            r"window must be an integer of at least 1, got 2\.0",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(
    call: Callable[[], object], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=rf"^[a-z_]+: {says}"):
        call()
