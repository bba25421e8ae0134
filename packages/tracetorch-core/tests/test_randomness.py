"""``tt.Random``: one stream of numbers per layer, however and wherever the layer runs."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tracetorch.randomness import Drawing

WORD = np.uint64(0xFFFFFFFF)


class Noisy(tt.Layer):
    """Two numbers a timestep: one into the membrane, one against which it fires."""

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem")
        self.add_parameter("beta", 0.8, constraint=tt.constraints.sigmoid)
        self.uniform = tt.Random()

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + x + 0.1 * self.uniform(x)
        probability = torch.sigmoid(mem)
        fired = (self.uniform(x) < probability).to(x.dtype)
        spike = fired + (probability - probability.detach())
        return {"mem": mem - spike}, spike


class Net(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.second = Noisy(4), nn.Linear(4, 3), Noisy(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.mix(self.first(x)))


def stepped(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model(timestep) for timestep in x])


def seeded(layer: Any, run: Any, seed: int = 5) -> Any:
    layer.zero_states()
    torch.manual_seed(seed)
    return run()


def by_numpy(seed: int, count: int, lanes: int, draw: int) -> np.ndarray:
    """The numbers of one timestep, in unsigned arithmetic."""

    def mixed(x: np.ndarray) -> np.ndarray:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & WORD
        return x ^ (x >> np.uint64(16))

    lane = mixed((np.arange(lanes, dtype=np.uint64) + np.uint64(seed)) & WORD)
    time = mixed(np.array([(count & 0xFFFFFFFF) ^ (seed >> 32)], dtype=np.uint64))
    key = mixed((time + np.uint64(draw * 0x9E3779B9 % (1 << 32))) & WORD)
    return (mixed(lane ^ key) >> np.uint64(8)).astype(np.float64) * 2.0**-24


def drawn(seed: int, count: int, lanes: int, draws: int = 1) -> list[Tensor]:
    drawing = Drawing(torch.tensor([seed, count]), torch.Size((lanes,)))
    return [drawing.draw(torch.empty(lanes, dtype=torch.float64)) for _ in range(draws)]


@pytest.mark.parametrize(("seed", "count"), [(0, 0), (123, 7), ((1 << 62) - 1, 1 << 33)])
def test_numbers_are_those_of_the_hash(seed: int, count: int) -> None:
    for draw, numbers in enumerate(drawn(seed, count, 1000, draws=3)):
        np.testing.assert_array_equal(numbers.numpy(), by_numpy(seed, count, 1000, draw))


def test_numbers_are_uniform_and_unrelated() -> None:
    """Chi-square over 256 cells; correlations along lanes, time, draws and seeds."""
    lanes, steps = 2048, 200
    grids = []
    for seed in (1, 2):
        rows = [drawn(seed, t, lanes, draws=2) for t in range(steps)]
        grids += [torch.stack([row[draw] for row in rows]) for draw in (0, 1)]
    count = lanes * steps
    for numbers in grids:
        cells = torch.histc(numbers, 256, 0, 1)
        chi_square = float(((cells - count / 256) ** 2 / (count / 256)).sum())
        assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5
        for along in (0, 1):
            left = numbers.narrow(along, 1, numbers.shape[along] - 1)
            right = numbers.narrow(along, 0, numbers.shape[along] - 1)
            assert abs(correlation(left, right)) < 5 / count**0.5
    for left, right in itertools.combinations(grids, 2):
        assert abs(correlation(left, right)) < 5 / count**0.5


def correlation(left: Tensor, right: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_reach_zero_but_never_one(dtype: torch.dtype) -> None:
    drawing = Drawing(torch.tensor([3, 0]), torch.Size((1 << 18,)))
    numbers = drawing.draw(torch.empty(1 << 18, dtype=dtype))
    assert numbers.dtype == dtype
    assert 0 <= float(numbers.min()) < 0.01
    assert 0.99 < float(numbers.max()) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((3, 5), -1), ((5, 3), 0), ((2, 5, 3), 1), ((5,), 0)])
def test_stepping_and_unrolling_draw_the_same_on_every_backend(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    layer = Noisy(5, dim).to(torch.promote_types(dtype, torch.float32))
    x = torch.randn(40, *shape, dtype=dtype)
    answers = {}
    for name, run in (
        ("stepped", lambda: stepped(layer, x)),
        ("unrolled", lambda: layer.unroll(x)),
    ):
        for backend in ("eager", "cpp"):
            with tt.backends.use(backend):
                answers[name, backend] = (seeded(layer, run).detach(), layer.random.tolist())
    expected, state = answers["stepped", "eager"]
    assert state[1] == 40
    assert set(expected.float().unique().tolist()) <= {0.0, 1.0}
    assert 0.1 < float(expected.float().mean()) < 0.9
    for answer, its_state in answers.values():
        assert torch.equal(answer, expected)
        assert its_state == state


def test_models_of_several_layers_draw_the_same_unrolled_chunked_and_stepped() -> None:
    model, x = Net(), torch.randn(30, 3, 4)
    expected = seeded(model, lambda: stepped(model, x))
    assert model.first.random[0] != model.second.random[0]
    for options in ({}, {"chunk_size": 7}, {"detach_every": 10}):
        got = seeded(model, lambda options=options: model.unroll(x, **options))
        assert torch.equal(got, expected), options
    assert tt.check_unroll(model, x) is None


def test_a_seed_reproduces_a_run_and_another_does_not() -> None:
    layer, x = Noisy(6), torch.randn(20, 4, 6)
    one, same, other = (seeded(layer, lambda: layer.unroll(x), seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    again = layer.unroll(x)
    assert not torch.equal(again, other)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_run_goes_on_from_a_file_as_if_it_had_not_stopped(tmp_path: Path, suffix: str) -> None:
    model, x = Net(), torch.randn(20, 2, 4)
    seeded(model, lambda: model.unroll(x[:12]))
    model.save_states(tmp_path / f"states{suffix}")
    expected = model.unroll(x[12:])
    model.zero_states()
    model.load_states(tmp_path / f"states{suffix}")
    assert torch.equal(model.unroll(x[12:]), expected)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.unroll(x), model.unroll(x))


def test_the_stream_is_a_state_among_the_others() -> None:
    layer, x = Noisy(3), torch.randn(2, 3)
    assert layer.get_states() == {}
    assert layer.random is None
    layer(x)
    states = layer.get_states()
    assert sorted(states) == ["mem", "random"]
    seed = int(states["random"][0])
    layer.zero_states(torch.tensor([True, False]))
    assert layer.random.tolist() == [seed, 1]
    layer.detach_states()
    layer.double()
    assert (layer.random.dtype, layer.mem.dtype) == (torch.int64, torch.float64)
    layer.zero_states()
    assert layer.random is None
    with pytest.raises(tt.StateError, match=r"missing \['random'\]"):
        layer.set_states({"mem": torch.zeros(2, 3)})
    with pytest.raises(tt.StateError, match=r"random must be int64 \[2\], seed and count"):
        layer.set_states({"mem": None, "random": torch.zeros(2)})
    with pytest.raises(ValueError, match="taken"):
        layer.add_state("random")


def test_lengths_hold_samples_while_the_stream_goes_on() -> None:
    model, x, lengths = Net(), torch.randn(10, 3, 4), torch.tensor([10, 4, 7])
    whole = seeded(model, lambda: model.unroll(x))
    short = seeded(model, lambda: model.unroll(x, lengths=lengths))
    for sample, length in enumerate(lengths.tolist()):
        assert torch.equal(short[:length, sample], whole[:length, sample])
    assert model.first.random[1] == 10


def test_gradients_are_those_of_the_eager_step_and_of_its_graph() -> None:
    layer, x = Noisy(4).double(), torch.randn(35, 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(35, 2, 4, dtype=torch.float64)
    found = []
    for backend in ("eager", "cpp"):
        with tt.backends.use(backend):
            y = seeded(layer, lambda: layer.unroll(x))
        first = torch.autograd.grad((y * weights).sum(), [x, layer.raw_beta], create_graph=True)
        second = torch.autograd.grad(first[0].pow(2).sum(), [x, layer.raw_beta])
        found.append([*first, *second])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_checkpointing_draws_again_what_it_drew() -> None:
    model, x = Net(), torch.randn(8, 2, 4, requires_grad=True)
    gradients = []
    for run in (
        lambda: model.unroll(x),
        lambda: checkpoint(
            model.unroll, x, use_reentrant=False, context_fn=tt.restored_states(model)
        ),
    ):
        seeded(model, run).sum().backward()
        gradients.append(x.grad.clone())
        x.grad = None
    assert torch.equal(*gradients)


def test_compiled_graphs_draw_the_same() -> None:
    layer, x = Noisy(4), torch.randn(6, 2, 4)
    layer.set_states({"mem": torch.zeros(2, 4), "random": torch.tensor([99, 0])})
    start = layer.get_states()
    expected = stepped(layer, x)
    for run in (layer.unroll, lambda x: stepped(layer, x)):
        layer.set_states(start)
        assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(x), expected)
        assert layer.random.tolist() == [99, 6]


def test_outside_of_a_layer_the_numbers_are_torchs() -> None:
    like = torch.empty(3, 4, dtype=torch.float64)
    torch.manual_seed(0)
    expected = torch.rand_like(like)
    torch.manual_seed(0)
    assert torch.equal(tt.Random()(like), expected)


class Misshapen(Noisy):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return {"mem": states.mem + self.uniform(x[..., :1])}, x


def test_a_number_for_something_else_than_the_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one number per lane .* \[2, 3\], got .* \[2, 1\]"):
        Misshapen(3)(torch.zeros(2, 3))


class Deep(tt.Layer):
    """The source is put in its place after the layer was made."""

    def __init__(self) -> None:
        super().__init__(3)
        self.add_state("mem")
        self.noise = nn.Sequential()

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = states.mem + self.noise(x)
        return {"mem": mem}, mem


def test_a_source_that_comes_later_is_found() -> None:
    layer = Deep()
    layer.noise.append(tt.Random())
    x = torch.zeros(4, 2, 3)
    expected = seeded(layer, lambda: stepped(layer, x))
    assert layer.random[1] == 4
    torch.testing.assert_close(seeded(layer, lambda: layer.unroll(x)), expected)
    assert 0 < float(expected[0].min()) < float(expected[0].max()) < 1


class Unkernelled(Noisy):
    """What it sorts has no kernel: it steps, whatever is called."""

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x.sort(-1).values, p)


def test_a_layer_without_a_kernel_draws_the_same_unrolled() -> None:
    layer, x = Unkernelled(4), torch.randn(9, 2, 4)
    expected = seeded(layer, lambda: stepped(layer, x))
    assert torch.equal(seeded(layer, lambda: layer.unroll(x)), expected)


class Quiet(Noisy):
    """Holds a source that its step does not ask."""

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + x
        return {"mem": mem}, mem


def test_a_source_that_is_not_asked_changes_nothing() -> None:
    layer, x = Quiet(4), torch.randn(9, 2, 4)
    with tt.backends.use("cpp"):
        y = layer.unroll(x)
    layer.zero_states()
    with tt.backends.use("eager"):
        torch.testing.assert_close(layer.unroll(x), y)
