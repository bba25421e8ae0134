"""What holds for S4D, S5, LRU and Mamba alike: the contract, sequences at once, what they need."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tracetorch import choice, rnn
from tracetorch.rnn import diagonal

Make = Callable[[], rnn.Layer]
# every layer with what it can be made with
MAKERS: dict[str, Make] = {
    "S4D": lambda: rnn.S4D(3, 4, d_state=4),
    "S4D bilinear": lambda: rnn.S4D(3, 4, d_state=4, init="inv", discretization="bilinear"),
    "S4D real": lambda: rnn.S4D(3, 4, d_state=4, init="real", dt_min=0.1, dt_max=0.5),
    "S5": lambda: rnn.S5(3, 4, d_state=4),
    "S5 blocks": lambda: rnn.S5(3, 4, d_state=8, blocks=2, discretization="bilinear"),
    "LRU": lambda: rnn.LRU(3, 4, d_state=5),
    "LRU ring": lambda: rnn.LRU(3, 4, d_state=2, r_min=0.5, r_max=0.9, max_phase=0.3),
    "Mamba": lambda: rnn.Mamba(3, 4, d_state=2),
    "Mamba wide": lambda: rnn.Mamba(3, 4, d_state=2, d_conv=2, expand=3, dt_rank=2),
}
kinds = pytest.mark.parametrize("make", MAKERS.values(), ids=[*MAKERS])
plain = pytest.mark.parametrize(
    "make", [MAKERS[n] for n in ("S4D", "S5", "LRU", "Mamba")], ids=["S4D", "S5", "LRU", "Mamba"]
)


def by_steps(layer: rnn.Layer, x: Tensor, resets: Tensor | None = None) -> Tensor:
    outputs = []
    for t, timestep in enumerate(x):
        if resets is not None:
            layer.zero_states(resets[t])
        outputs.append(layer(timestep))
    return torch.stack(outputs)


def at_once(layer: rnn.Layer, x: Tensor, resets: Tensor | None = None) -> Tensor:
    """``unroll``, where stepping is an error."""

    def refused(*args: Any) -> Any:
        raise AssertionError("was stepped")

    kind = type(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", refused)
        patch.setattr(kind, "sequence", kind.sequence)
        return layer.unroll(x, resets)


def warm(layer: rnn.Layer, x: Tensor) -> dict[str, Tensor]:
    """Random states that fit a timestep."""
    layer(x[0])
    states = {n: torch.randn_like(s) for n, s in layer.get_states().items()}
    layer.zero_states()
    return states


def everything(
    layer: rnn.Layer, x: Tensor, states: dict[str, Tensor], run: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Outputs, final states, and all gradients of a random weighting of both."""
    own = x.detach().clone().requires_grad_()
    incoming = {n: s.detach().clone().requires_grad_() for n, s in states.items()}
    layer.set_states(incoming)
    y = run(layer, own)
    found = {"y": y, **layer.get_states()}
    torch.manual_seed(1)
    loss = sum(
        (v.double() * torch.randn(v.shape, dtype=torch.float64)).sum() for v in found.values()
    )
    sources = {"x": own, **incoming, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(loss, [*sources.values()])
    layer.zero_states()
    return {**found, **{f"d{n}": g for n, g in zip(sources, gradients, strict=True)}}


@pytest.mark.parametrize("holds", tt.testing.PROPERTIES, ids=lambda holds: holds.__name__)
@kinds
def test_the_contract_of_the_library(make: Make, holds: Callable[..., None]) -> None:
    holds(make, torch.randn(7, 2, 3, dtype=torch.float64))


@kinds
def test_gradients_agree_with_differences(make: Make) -> None:
    tt.testing.gradients_match_differences(make, torch.randn(4, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 2, 17, 63, 64, 65, 130, 200])
@kinds
def test_a_sequence_at_once_is_its_steps(make: Make, steps: int) -> None:
    layer, x = make().double(), torch.randn(steps, 2, 3, dtype=torch.float64)
    states = warm(layer, x)
    expected = everything(layer, x, states, by_steps)
    got = everything(layer, x, states, at_once)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 1.0])
@plain
def test_restarts_within_a_sequence_are_the_loop(make: Make, rate: float) -> None:
    layer, x = make().double(), torch.randn(150, 3, 2, 3, dtype=torch.float64)
    resets, states = torch.rand(150, 3) < rate, warm(layer, x)
    expected = everything(layer, x, states, partial(by_steps, resets=resets))
    got = everything(layer, x, states, partial(at_once, resets=resets))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=name)


diagonals = pytest.mark.parametrize("make", [MAKERS[n] for n in ("S4D", "S5")], ids=["S4D", "S5"])


@diagonals
def test_what_is_before_a_restart_leaves_nothing_behind_it(make: Make) -> None:
    layer, x = make().double(), torch.randn(90, 2, 3, dtype=torch.float64)
    resets = torch.zeros(90, 2, dtype=torch.bool)
    resets[30, 0] = True
    x[20, 0] = 1e300
    y = at_once(layer, x, resets)
    layer.zero_states()
    torch.testing.assert_close(y[30:, :1], at_once(layer, x[30:, :1]), rtol=1e-10, atol=1e-10)


@diagonals
def test_gradients_of_restarts_have_gradients_and_come_several_at_once(make: Make) -> None:
    layer, x = make().double(), torch.randn(7, 2, 3, dtype=torch.float64)
    resets, states = torch.rand(7, 2) < 0.3, warm(layer, x)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        layer.set_states(dict(zip(states, values, strict=True)))
        return layer.unroll(x, resets)

    leaves = [x.requires_grad_(), *(s.requires_grad_() for s in states.values())]
    assert torch.autograd.gradgradcheck(run, leaves)
    y = run(*leaves)
    sources, cotangents = [*leaves, *layer.parameters()], torch.randn(2, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, sources, cotangents, is_grads_batched=True, retain_graph=True)
    for place, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(y, sources, cotangent, retain_graph=True)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[place], theirs, rtol=1e-10, atol=1e-10)


@diagonals
def test_a_compiled_sequence_restarts(make: Make) -> None:
    layer, x, resets = make().double(), torch.randn(5, 2, 3).double(), torch.rand(5, 2) < 0.3
    torch._dynamo.reset()
    y = torch.compile(layer.unroll, fullgraph=True, backend="eager")(x, resets)
    layer.zero_states()
    torch.testing.assert_close(y, by_steps(layer, x, resets), rtol=1e-10, atol=1e-10)


@plain
def test_in_float32_a_long_sequence_stays_as_near_as_its_steps(make: Make) -> None:
    layer, x = make(), torch.randn(1000, 2, 3)
    states = warm(layer, x)
    got = everything(layer, x, states, at_once)
    exact = everything(
        layer.double(), x.double(), {n: s.double() for n, s in states.items()}, by_steps
    )
    for name, value in exact.items():
        scale = value.abs().max().clamp(min=1).item()
        torch.testing.assert_close(
            got[name].double(), value, rtol=2e-5, atol=2e-5 * scale, msg=name
        )


@plain
def test_second_derivatives_agree_with_differences(make: Make) -> None:
    layer, x = make().double(), torch.randn(3, 1, 3, dtype=torch.float64)
    states = warm(layer, x)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        layer.set_states(dict(zip(states, values, strict=True)))
        return layer.unroll(x)

    leaves = [x.requires_grad_(), *(s.requires_grad_() for s in states.values())]
    assert torch.autograd.gradgradcheck(run, leaves)


@plain
def test_several_cotangents_at_once_are_each_alone(make: Make) -> None:
    layer, x = make().double(), torch.randn(70, 2, 3, dtype=torch.float64).requires_grad_()
    y = layer.unroll(x)
    sources, cotangents = [x, *layer.parameters()], torch.randn(3, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, sources, cotangents, is_grads_batched=True, retain_graph=True)
    for place, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(y, sources, cotangent, retain_graph=True)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[place], theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (5, 3, 2, 6), (0, 3, 2)])
@plain
def test_timesteps_of_any_rank_and_neurons_anywhere(make: Make, shape: tuple[int, ...]) -> None:
    layer, place = make().double(), shape.index(3)
    layer.dim = place
    x = torch.randn(80, *shape, dtype=torch.float64)
    states = warm(layer, x)
    expected = everything(layer, x, states, by_steps)
    for name, value in everything(layer, x, states, at_once).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10, msg=name)


@plain
def test_ragged_samples_end_where_they_end(make: Make) -> None:
    class Net(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    net, x = Net().double(), torch.randn(70, 3, 3, dtype=torch.float64)
    lengths = torch.tensor([70, 31, 0])
    y = net.unroll(x, lengths=lengths)
    final = net.get_states()
    for sample, length in enumerate(lengths[:2].tolist()):
        net.zero_states()
        alone = net.unroll(x[:length, sample : sample + 1])
        torch.testing.assert_close(y[:length, sample], alone[:, 0], rtol=1e-10, atol=1e-10)
        for name, state in net.get_states().items():
            torch.testing.assert_close(final[name][sample], state[0], rtol=1e-10, atol=1e-10)
    assert all(not state[2].any() for state in final.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e300])
@plain
def test_what_is_no_finite_number_reaches_as_far_as_in_the_loop(make: Make, bad: float) -> None:
    layer, x = make().double(), torch.randn(90, 2, 3, dtype=torch.float64)
    x[70, 0, 1] = bad
    expected = by_steps(layer, x)
    final = layer.get_states()
    layer.zero_states()
    torch.testing.assert_close(layer.unroll(x), expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    for name, state in layer.get_states().items():
        torch.testing.assert_close(state, final[name], rtol=1e-9, atol=1e-9, equal_nan=True)
    assert expected[:70].isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@plain
def test_torch_compile_takes_a_whole_sequence(make: Make, backend: str) -> None:
    layer, x, results = make().double(), torch.randn(70, 2, 3, dtype=torch.float64), []
    torch._dynamo.reset()
    for run in (layer.unroll, torch.compile(layer.unroll, fullgraph=True, backend=backend)):
        layer.zero_states()
        y = run(x)
        final = [*layer.get_states().values()]
        loss = y.square().sum() + sum(state.sum() for state in final)
        results.append([y, *final, *torch.autograd.grad(loss, [*layer.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@plain
def test_autocast_rounds_no_state(make: Make) -> None:
    layer, x = make(), torch.randn(70, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = at_once(layer, x)
        states = layer.get_states()
        layer.zero_states()
        torch.testing.assert_close(y, by_steps(layer, x), rtol=2e-2, atol=2e-2)
    assert y.dtype == torch.float32
    if not isinstance(layer, rnn.Mamba):  # its scan's inputs are projections, which are rounded
        layer.zero_states()
        by_steps(layer, x)
        for name, state in layer.get_states().items():
            torch.testing.assert_close(states[name], state, rtol=1e-4, atol=1e-4)


@plain
def test_compiled_parameters_give_the_same_sequence_and_get_no_gradient(make: Make) -> None:
    layer, x = make().double(), torch.randn(70, 2, 3, dtype=torch.float64)
    expected = layer.unroll(x)
    layer.zero_states()
    layer.TTcompile()
    y = at_once(layer, x.requires_grad_())
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.sum().backward()
    assert x.grad is not None
    declared = {spec.raw_name for spec in layer.tt.declaration.parameters.values()}
    assert all(layer.get_parameter(name).grad is None for name in declared)


SIXTEEN = ("S4D", "S5", "LRU")


@pytest.mark.parametrize("make", [MAKERS[name] for name in SIXTEEN], ids=SIXTEEN)
def test_states_in_sixteen_bits_are_stepped_which_is_said(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    layer, x = make().bfloat16(), torch.randn(9, 2, 3, dtype=torch.bfloat16)
    expected = by_steps(layer, x)
    layer.zero_states()
    choice._said.clear()
    with caplog.at_level(logging.INFO, "tracetorch"):
        assert torch.equal(layer.unroll(x), expected)
    (message,) = [r.message for r in caplog.records if "runs step by step" in r.message]
    assert re.search(r"no kernels for states in torch\.bfloat16", message)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (list, tuple)) else [out]
        self.elements = max(self.elements, *(t.numel() for t in made if isinstance(t, Tensor)), 0)
        return out


@pytest.mark.parametrize(
    ("layer", "per_step"),
    [
        # a sequence; one of the real numbers of the states; the two halves of in_proj
        (rnn.S4D(16, 16, d_state=64), 16),
        (rnn.S5(16, 16, d_state=64), 64),
        (rnn.LRU(16, 16, d_state=64), 128),
        (rnn.Mamba(16, 16, d_state=16), 64),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_tensor_grows_with_more_than_the_sequence(layer: rnn.Layer, per_step: int) -> None:
    samples, elements = 4, []
    for steps in (512, 1024):
        x = torch.randn(steps, samples, 16, requires_grad=True)
        with Largest() as largest:
            layer.zero_states()
            layer.unroll(x).sum().backward()
        elements.append(largest.elements)
    assert elements[1] - elements[0] <= 512 * samples * per_step * 1.01
    assert diagonal._LENGTH < 512


class Counted(tt.Model):
    def __init__(self, layer: rnn.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "products"),
    [
        (rnn.S4D(8, 5, d_state=6), 5 * 8),
        (rnn.S5(8, 5, d_state=6), 2 * 3 * 8 + 2 * 3 * 5 + 5 * 8),
        (rnn.LRU(8, 5, d_state=3), 2 * 3 * 8 + 2 * 3 * 5 + 5 * 8),
        (rnn.Mamba(8, 5, d_state=6), 32 * 8 + (1 + 12) * 16 + 16 + 5 * 16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_its_matrices_are_counted_as_operations(layer: rnn.Layer, products: int) -> None:
    found = tt.measures.operations(Counted(layer), torch.randn(4, 2, 8))
    assert found.rows["layer"].dense == 4 * 2 * products
