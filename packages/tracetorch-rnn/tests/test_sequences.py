"""``unroll`` of the three cells through torch's sequence kernels: the answer of single steps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint
from tracetorch import rnn
from tracetorch.rnn.cells import Cell

Kind = type[Cell]
Run = Callable[[Cell, Tensor], Tensor]
KINDS: dict[Kind, type[nn.RNNBase]] = {
    rnn.SimpleRNN: nn.RNN,
    rnn.LSTM: nn.LSTM,
    rnn.GRU: nn.GRU,
}
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def unrolled(layer: Cell, x: Tensor) -> Tensor:
    return layer.unroll(x)


def by_steps(layer: Cell, x: Tensor) -> Tensor:
    return torch.stack([layer(timestep) for timestep in x])


class Calls:
    """Stands in for a kernel and counts its calls."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel, self.count = kernel, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.kernel(*args, **kwargs)


@pytest.fixture
def calls(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """How often torch's sequence kernel of ``kind`` was called."""
    counted = Calls(kind.torch_sequence)
    monkeypatch.setattr(kind, "torch_sequence", counted)
    return counted


def states_like(layer: Cell, timestep: Tensor) -> dict[str, Tensor]:
    """Random states that fit ``timestep``; leaves ``layer`` without any."""
    with torch.no_grad():
        layer(timestep)
    states = {name: torch.randn_like(state) for name, state in layer.get_states().items()}
    layer.zero_states()
    return states


def weighted(values: Iterable[Tensor]) -> Tensor:
    """A sum with random weights, the same for the same shapes."""
    torch.manual_seed(0)
    parts = [(value.double() * torch.randn(value.shape).to(value)).sum() for value in values]
    return torch.stack(parts).sum()


def everything(layer: Cell, x: Tensor, start: dict[str, Tensor], run: Run) -> dict[str, Tensor]:
    """Outputs, final states, and all gradients of a random weighting of both."""
    layer.zero_states()
    x = x.clone().requires_grad_()
    incoming = {name: state.clone().requires_grad_() for name, state in start.items()}
    layer.set_states(incoming, strict=False)
    found = {"y": run(layer, x), **layer.get_states()}
    loss = weighted(found.values())
    sources = {"x": x, **incoming, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(loss, list(sources.values()))
    layer.zero_states()
    return {**found, **{f"d{n}": g for n, g in zip(sources, gradients, strict=True)}}


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_close(name: str, got: Tensor, expected: Tensor) -> None:
    """To the precision of the dtype, relative to the largest value."""
    assert got.dtype == expected.dtype
    tolerance = TOLERANCE.get(got.dtype, 2 * torch.finfo(got.dtype).eps)
    scale = expected.abs().max().clamp(min=1).item() if expected.numel() else 1
    torch.testing.assert_close(
        got, expected, rtol=tolerance, atol=tolerance * scale, msg=lambda m: f"{name}: {m}"
    )


def assert_one_answer(layer: Cell, x: Tensor, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``unroll`` gives, having compared it with stepping."""
    got, expected = (everything(layer, x, start, run) for run in (unrolled, by_steps))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(name, got[name], value)
    return got


# ---------------------------------------------------------------------- one answer


@kinds
@settings(max_examples=40, deadline=None)
@given(
    steps=st.sampled_from([1, 2, 17]),
    around=st.lists(st.integers(0, 3), max_size=3),
    place=st.integers(0, 3),
    from_the_end=st.booleans(),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    warm=st.booleans(),
)
def test_unrolling_is_stepping_for_every_rank_dim_and_batch(
    kind: Kind,
    steps: int,
    around: list[int],
    place: int,
    from_the_end: bool,
    sizes: tuple[int, int],
    warm: bool,
) -> None:
    place = min(place, len(around))
    shape = [*around[:place], sizes[0], *around[place:]]
    layer = kind(*sizes, dim=place - len(shape) if from_the_end else place).double()
    x = torch.randn(steps, *shape, dtype=torch.float64)
    assert_one_answer(layer, x, states_like(layer, x[0]) if warm else {})


@kinds
@pytest.mark.parametrize("steps", [1, 2, 17])
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_stepping(
    kind: Kind, steps: int, batch: int, dtype: torch.dtype
) -> None:
    layer, x = kind(8, 6), torch.randn(steps, batch, 8).to(dtype)
    promoted = torch.promote_types(dtype, torch.float32)
    start = states_like(layer, x[0])
    got = assert_one_answer(layer, x, start)
    assert got["y"].dtype == dtype
    assert all(got[name].dtype == promoted for name in start)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_sixteen_bits_unroll_near_float64(kind: Kind, dtype: torch.dtype) -> None:
    layer, exact = kind(8, 6).to(dtype), kind(8, 6).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(9, 3, 8).to(dtype)
    y = layer.unroll(x)
    assert y.dtype == layer.h.dtype == dtype
    torch.testing.assert_close(y.double(), exact.unroll(x.double()), rtol=0.05, atol=0.05)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_own_layer(kind: Kind, dtype: torch.dtype, calls: Calls) -> None:
    layer, torchs = kind(8, 6).to(dtype), KINDS[kind](8, 6).to(dtype)
    layer.load_state_dict({k.removesuffix("_l0"): v for k, v in torchs.state_dict().items()})
    x = torch.randn(17, 5, 8, dtype=dtype)
    start = states_like(layer, x[0])
    got = everything(layer, x, start, unrolled)
    hx = tuple(state[None].requires_grad_() for state in start.values())
    own = x.clone().requires_grad_()
    y, final = torchs(own, hx if len(hx) > 1 else hx[0])
    outputs = [y, *(state[0] for state in (final if len(hx) > 1 else [final]))]
    loss = weighted(outputs)
    sources = [own, *hx, *torchs.parameters()]
    expected = [*outputs, *torch.autograd.grad(loss, sources)]
    assert calls.count == 1
    for (name, ours), theirs in zip(got.items(), expected, strict=True):
        torch.testing.assert_close(ours, theirs.view_as(ours), rtol=1e-6, atol=1e-6, msg=name)


def spread(tensor: Tensor) -> Tensor:
    """The same values, no two of them adjacent in memory."""
    wide = torch.empty(*tensor.shape, 2, dtype=tensor.dtype)[..., 0].copy_(tensor.detach())
    assert wide.numel() < 2 or not wide.is_contiguous()
    return wide


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_inputs_and_states_may_lie_anywhere_in_memory(
    kind: Kind, dtype: torch.dtype
) -> None:
    layer, scattered = kind(8, 6).to(dtype), kind(8, 6).to(dtype)
    weights = {name: spread(value) for name, value in layer.state_dict().items()}
    scattered.load_state_dict(weights, assign=True)
    x = torch.randn(7, 5, 8, dtype=dtype)
    start = states_like(layer, x[0])
    expected = everything(layer, x, start, by_steps)
    layer.set_states(start)
    y = layer.unroll(x)
    scattered.set_states({name: spread(state) for name, state in start.items()})
    assert not scattered.weight_hh.is_contiguous()
    torch.testing.assert_close(scattered.unroll(spread(x)), y, rtol=1e-6, atol=1e-6)
    got = everything(scattered, spread(x), start, unrolled)
    for name, value in expected.items():
        assert_close(name, got[name], value)


@kinds
def test_compiled_weights_give_the_same_sequence(kind: Kind, calls: Calls) -> None:
    layer, x = kind(3, 4).double(), torch.randn(9, 2, 3, dtype=torch.float64)
    expected = layer.unroll(x)
    layer.zero_states()
    layer.TTcompile()
    own = x.clone().requires_grad_()
    y = layer.unroll(own)
    assert calls.count == 2
    assert torch.equal(y, expected)
    y.sum().backward()
    assert own.grad is not None
    assert all(p.grad is None for p in layer.parameters())


@kinds
def test_without_gradients_the_values_stay(kind: Kind, calls: Calls) -> None:
    layer, x = kind(3, 4), torch.randn(9, 2, 3)
    expected, states = layer.unroll(x), layer.get_states()
    layer.zero_states()
    with torch.no_grad():
        y = layer.unroll(x)
    assert calls.count == 2
    assert not y.requires_grad
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    for name, state in layer.get_states().items():
        assert not state.requires_grad
        torch.testing.assert_close(state, states[name], rtol=1e-6, atol=1e-6)


@kinds
def test_autocast_rounds_nothing_in_a_sequence(kind: Kind) -> None:
    layer, x = kind(3, 4), torch.randn(9, 2, 3)
    expected = everything(layer, x, {}, unrolled)

    def under_autocast(layer: Cell, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer.unroll(x)

    got = everything(layer, x, {}, under_autocast)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@kinds
def test_changing_the_output_in_place_leaves_the_state_alone(kind: Kind) -> None:
    layer, x = kind(3, 4), torch.randn(9, 2, 3)
    with torch.no_grad():
        y = layer.unroll(x)
        before = layer.h.clone()
        y.zero_()
    assert torch.equal(layer.h, before)


# ---------------------------------------------------------------------- derivatives


def flat_loss(layer: Cell, run: Run, *leaves: Tensor) -> Tensor:
    """The summed squares of outputs and final states, of input, states and parameters."""
    x, *rest = leaves
    states = dict(zip(layer.state_names, rest, strict=False))
    parameters = dict(zip(dict(layer.named_parameters()), rest[len(states) :], strict=True))
    layer.set_states(states)
    y = functional_call(_Run(layer, run), {f"layer.{k}": v for k, v in parameters.items()}, x)
    loss = y.square().sum() + sum(state.square().sum() for state in layer.get_states().values())
    layer.zero_states()
    return loss


class _Run(nn.Module):
    def __init__(self, layer: Cell, run: Run) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layer, x)


def all_leaves(layer: Cell, x: Tensor) -> list[Tensor]:
    sources = [x, *states_like(layer, x[0]).values(), *layer.parameters()]
    return [source.detach().clone().requires_grad_() for source in sources]


@kinds
def test_first_and_second_derivatives_agree_with_differences(kind: Kind, calls: Calls) -> None:
    layer = kind(2, 2).double()
    leaves = all_leaves(layer, torch.randn(3, 1, 2, dtype=torch.float64))

    def loss(*leaves: Tensor) -> Tensor:
        return flat_loss(layer, unrolled, *leaves)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)
    assert calls.count > 0


@kinds
def test_second_derivatives_in_float32_are_those_of_stepping(kind: Kind) -> None:
    layer = kind(3, 4)
    leaves = all_leaves(layer, torch.randn(5, 2, 3))
    results = []
    for run in (unrolled, by_steps):
        first = torch.autograd.grad(flat_loss(layer, run, *leaves), leaves, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        results.append(torch.autograd.grad(penalty, leaves))
    for ours, theirs in zip(*results, strict=True):
        assert_close("second derivative", ours, theirs)


@kinds
@pytest.mark.parametrize("how", ["torch.func", "dual numbers"])
def test_forward_mode_steps_and_agrees_with_backward(kind: Kind, how: str, calls: Calls) -> None:
    layer = kind(3, 4).double()
    leaves = all_leaves(layer, torch.randn(5, 2, 3, dtype=torch.float64))
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(flat_loss(layer, by_steps, *leaves), leaves)
    expected = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    primals = tuple(leaf.detach() for leaf in leaves)
    if how == "torch.func":
        _, derivative = jvp(lambda *a: flat_loss(layer, unrolled, *a), primals, tuple(tangents))
    else:
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, primals, tangents)
            derivative = forward_ad.unpack_dual(flat_loss(layer, unrolled, *duals)).tangent
    torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-10)
    assert calls.count == 0


@kinds
def test_gradients_per_sample_by_vmap_are_those_of_single_sequences(
    kind: Kind, calls: Calls
) -> None:
    layer = kind(3, 4).double()
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    start = states_like(layer, x[0, 0])
    parameters = [p.detach() for p in layer.parameters()]

    def loss(x: Tensor) -> Tensor:
        return flat_loss(layer, unrolled, x, *start.values(), *parameters)

    got = vmap(grad(loss))(x)
    assert calls.count == 0
    for sample, gradient in zip(x, got, strict=True):
        own = sample.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(own), own)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    assert calls.count == len(x)


# ---------------------------------------------------------------------- what else may be asked


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_takes_a_whole_sequence(kind: Kind, dtype: torch.dtype, backend: str) -> None:
    layer, x = kind(3, 4).to(dtype), torch.randn(4, 2, 3, dtype=dtype)
    results = []
    torch._dynamo.reset()
    for run in (layer.unroll, torch.compile(layer.unroll, fullgraph=True, backend=backend)):
        layer.zero_states()
        y = run(x)
        final = layer.get_states().values()
        loss = y.square().sum() + sum(state.sum() for state in final)
        results.append([y, *final, *torch.autograd.grad(loss, list(layer.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@kinds
def test_checkpointing_a_sequence_restores_or_refuses(kind: Kind) -> None:
    layer, x = kind(3, 4).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    start = states_like(layer, x[0])
    expected = everything(layer, x, start, unrolled)

    def checkpointed(layer: Cell, x: Tensor) -> Tensor:
        restored = tt.restored_states(layer)
        return checkpoint(layer.unroll, x, use_reentrant=False, context_fn=restored)

    for name, value in everything(layer, x, start, checkpointed).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    y = checkpoint(layer.unroll, x.requires_grad_(), use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"recomputed in a backward pass .*restored_states"):
        y.sum().backward()


@kinds
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.ones(4, 2, 3, dtype=torch.int64), TypeError),
        (torch.ones(4, 2, 5), tt.StateError),
        (torch.ones(4, 7, 3), tt.StateError),
        (torch.ones(4, 2, 3, dtype=torch.float64), tt.StateError),
        (torch.ones(4, 2, 3, device="meta"), tt.StateError),
        (torch.ones(4, 2, 2, 3), tt.StateError),
    ],
    ids=["integers", "features", "batch", "dtype", "device", "rank"],
)
def test_errors_are_those_of_a_step_and_leave_the_states_alone(
    kind: Kind, x: Tensor, error: type[Exception]
) -> None:
    layer = kind(3, 4)
    layer(torch.ones(2, 3))
    before = layer.get_states()
    with pytest.raises(error) as stepped:
        layer(x[0])
    with pytest.raises(error, match=f"^{re.escape(str(stepped.value))}$"):
        layer.unroll(x)
    after = layer.get_states()
    assert all(after[name] is state for name, state in before.items())


@kinds
@pytest.mark.parametrize("x", [torch.ones(0, 2, 3), torch.ones(3), None])
def test_what_is_no_sequence_is_refused(kind: Kind, x: Any) -> None:
    layer = kind(3, 4)
    with pytest.raises(tt.StateError, match=r"unroll takes \[T, …\] with time first"):
        layer.unroll(x)
    assert layer.get_states() == {}


@kinds
def test_a_kernel_that_fails_leaves_the_states_alone(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = kind(3, 4)
    layer(torch.ones(2, 3))
    before = layer.get_states()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(kind, "torch_sequence", staticmethod(fail))
    with pytest.raises(MemoryError):
        layer.unroll(torch.ones(4, 2, 3))
    after = layer.get_states()
    assert all(after[name] is state for name, state in before.items())


@kinds
def test_a_subclass_with_another_timestep_is_unrolled_by_it(kind: Kind) -> None:
    class Clipped(kind):
        def cell(self, x: Tensor, states: Any, weights: Any) -> Any:
            return tuple(state.clamp(-0.1, 0.1) for state in super().cell(x, states, weights))

    class Halved(kind):
        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            new, y = super().step(states, x, p)
            return new, y / 2

    class Doubled(kind):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Renamed(kind):
        """Changes nothing, and keeps the kernels."""

    x = torch.randn(7, 2, 3, dtype=torch.float64)
    plain = kind(3, 4).double()
    expected = plain.unroll(x)
    for changed in (Clipped, Halved, Doubled):
        layer = changed(3, 4).double()
        layer.load_state_dict(plain.state_dict())
        y = by_steps(layer, x)
        layer.zero_states()
        torch.testing.assert_close(layer.unroll(x), y, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(y, expected)
    assert Renamed.torch_sequence is kind.torch_sequence


@kinds
def test_the_equations_are_those_of_torchs_cell(kind: Kind) -> None:
    layer, x = kind(5, 6).double(), torch.randn(8, 3, 5, dtype=torch.float64)

    class Written(kind):
        cell = kind.cell

    written = Written(5, 6).double()
    written.load_state_dict(layer.state_dict())
    start = states_like(layer, x[0])
    expected = everything(layer, x, start, by_steps)
    assert written.torch_cell is None
    for name, value in everything(written, x, start, by_steps).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------- cuDNN


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cudnn_gives_the_answer_of_stepping_and_warns_of_nothing(
    kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    layer = kind(8, 6).to("cuda", dtype)
    x = torch.randn(17, 5, 8, dtype=dtype, device="cuda")
    assert_one_answer(layer, x, states_like(layer, x[0]))


def _counted(method: Any, calls: list[str]) -> Any:
    def sequence(*given: Any, **named: Any) -> Any:
        calls.append("")
        return method(*given, **named)

    return sequence


INSTEAD: dict[str, Callable[[Any, list[str]], Any]] = {
    "a function": lambda layer, calls: _counted(layer.sequence, calls),
    "a partial": lambda layer, calls: functools.partial(_counted(layer.sequence, calls)),
    "compiled": lambda layer, calls: torch.compile(
        _counted(layer.sequence, calls), backend="eager"
    ),
}


@pytest.mark.parametrize("instead", INSTEAD)
def test_what_an_instance_has_for_a_sequence_is_run(instead: str) -> None:
    layer, x, calls = rnn.GRU(4, 4), torch.randn(5, 2, 4), []
    expected, resets = layer.unroll(x), torch.zeros(5, 2, dtype=torch.bool)
    layer.sequence = INSTEAD[instead](layer, calls)
    for options in ({}, {"resets": resets}):
        layer.zero_states()
        torch.testing.assert_close(layer.unroll(x, **options), expected, rtol=1e-5, atol=1e-6)
        assert calls
        calls.clear()
