"""Which backend serves: the choice, its scope, and what is said where one cannot."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from tracetorch.engine.serving import programs
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace


def test_status_says_what_is_there_and_why_not() -> None:
    status = tt.backends.status()
    assert set(status) == {"cpp", "eager", "triton"}
    assert status["eager"] == "ready"
    assert all(status.values())


def test_a_choice_holds_within_its_block_and_thread() -> None:
    assert tt.backends.chosen() == "auto"
    with tt.backends.use("eager"):
        assert tt.backends.chosen() == "eager"
        with tt.backends.use("auto"):
            assert tt.backends.chosen() == "auto"
        assert tt.backends.chosen() == "eager"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(tt.backends.chosen()))
        thread.start()
        thread.join()
        assert seen == ["auto"]
    assert tt.backends.chosen() == "auto"


def test_a_choice_for_the_process() -> None:
    tt.backends.select("eager")
    try:
        assert tt.backends.chosen() == "eager"
        with tt.backends.use("cpp"):
            assert tt.backends.chosen() == "cpp"
    finally:
        tt.backends.select("auto")


@pytest.mark.parametrize("choose", [tt.backends.select, tt.backends.use])
def test_an_unknown_name_is_refused(choose: Any) -> None:
    with pytest.raises(ValueError, match="one of auto, cpp, triton, eager, got 'numba'"):
        choose("numba").__enter__()


def test_asking_by_name_for_what_cannot_serve_is_an_error_that_changes_nothing() -> None:
    layer, x = StateSpace(3), torch.randn(4, 2, 3)
    layer(x[0])
    before = layer.get_states()
    with tt.backends.use("cpp"), pytest.raises(tt.BackendError) as caught:
        layer.unroll(x)
    for said in ("StateSpace(3", "'cpp'", "the state h has the sizes (3, 3)"):
        assert said in str(caught.value)
    assert all(layer.get_states()[name] is state for name, state in before.items())


def test_falling_back_is_said_once_at_info(caplog: pytest.LogCaptureFixture) -> None:
    class Sorted(Trace):
        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            return super().step(states, x.sort(-1).values, p)

    with caplog.at_level(logging.INFO, "tracetorch"):
        for _ in range(3):
            Sorted(3).unroll(torch.randn(4, 2, 3))
    said = [r for r in caplog.records if "Sorted runs step by step: sort at" in r.message]
    assert len(said) == 1


class Looking(Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x if states.mem.abs() >= 0 else -x, p)


class Reading(Trace):
    table = torch.tensor([1.0, 2.0, 3.0])

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x * self.table, p)


class Shaped(Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x.flip(-1), p)


class Recording(Trace):
    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.seen: list[Tensor] = []

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        self.seen.append(x)
        return super().step(states, x, p)


class Called(Trace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Looking, "looks at values (Tensor.__bool__)"),
        (Reading, "neither a state, a parameter nor computed from them"),
        (Shaped, "flip at"),
        (Recording, "its step reads Recording.seen, a list"),
        (Called, "Called has its own forward"),
    ],
)
def test_what_kernels_cannot_take_steps_with_the_same_answer(kind: type[Trace], says: str) -> None:
    n = 1 if kind is Looking else 3
    x = torch.randn(5, n)
    expected = torch.stack([*map(kind(n), x.clone())])
    assert torch.equal(kind(n).unroll(x.clone()), expected)
    with tt.backends.use("cpp"), pytest.raises(tt.BackendError) as caught:
        kind(n).unroll(x.clone())
    assert says in str(caught.value)


def test_hooks_of_a_layer_see_every_timestep() -> None:
    layer, seen = Trace(3), []
    layer.register_forward_hook(lambda *call: seen.append(call[2].shape))
    layer.unroll(torch.randn(4, 2, 3))
    assert seen == [(2, 3)] * 4


def test_hooks_that_come_after_the_kernel_see_every_timestep_too() -> None:
    layer, seen, x = Trace(3), [], torch.randn(4, 2, 3)
    expected = layer.unroll(x)
    layer.register_forward_pre_hook(lambda *call: seen.append(call))
    layer.zero_states()
    torch.testing.assert_close(layer.unroll(x), expected)
    assert len(seen) == 4


def test_what_a_step_records_is_recorded_of_every_timestep_and_of_nothing_else() -> None:
    layer, x = Recording(3), torch.randn(4, 2, 3)
    for timestep in x:
        layer(timestep)
    layer.unroll(x)
    assert torch.equal(torch.stack(layer.seen), torch.cat([x, x]))


def test_a_changed_attribute_is_not_answered_from_the_old_kernel() -> None:
    class Scaled(Trace):
        factor = 1.0

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            return super().step(states, x * self.factor, p)

    layer, x = Scaled(3), torch.randn(4, 2, 3)
    one = layer.unroll(x)
    layer.zero_states()
    layer.factor = 3.0
    torch.testing.assert_close(layer.unroll(x), 3 * one)


def test_a_method_of_the_instance_and_training_count_too() -> None:
    class Modal(Trace):
        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            return super().step(states, x if self.training else -x, p)

    layer, x = Modal(3), torch.randn(4, 2, 3)
    one = layer.unroll(x)
    layer.eval().zero_states()
    torch.testing.assert_close(layer.unroll(x), -one)


def test_second_derivatives_go_through_the_step() -> None:
    layer = Trace(2).double()
    x = torch.randn(4, 1, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, raw: Tensor) -> Tensor:
        layer.zero_states()
        unrolled = _Unrolled(layer)
        y: Tensor = torch.func.functional_call(unrolled, {"layer.raw_beta": raw}, x)
        return y.square()

    raw = layer.raw_beta.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(run, (x, raw))


def test_second_derivatives_over_chunks_count_every_path_once() -> None:
    """The states between chunks come from the same parameters, and here from the same input."""
    found = []
    for backend in ("cpp", "eager"):
        layer = Trace(2).double()
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 1, 2).requires_grad_()
        with tt.backends.use(backend):
            y = torch.cat([layer.unroll(x), layer.unroll(x), layer(x[0])[None]])
        sources = [x, layer.raw_beta]
        first = torch.autograd.grad(y.square().sum(), sources, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), sources)])
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------ one timestep


def test_a_timestep_through_its_kernel_is_the_step() -> None:
    """Outputs, states and gradients of a stepped loop, in the order of a training loop."""
    found = []
    for backend in ("auto", "eager"):
        torch.manual_seed(0)
        layer, x = AdaptiveLIF(5).double(), torch.randn(40, 3, 5, dtype=torch.float64) + 0.5
        x.requires_grad_()
        with tt.backends.use(backend):
            ys = [layer(timestep) for timestep in x[:20]]
            layer.detach_states()
            ys += [layer(timestep.mT.contiguous().mT) for timestep in x[20:]]
        ends = [torch.stack(ys), *layer.get_states().values()]
        loss = torch.stack([(end * torch.randn_like(end)).sum() for end in ends]).sum()
        found.append([*ends, *torch.autograd.grad(loss, [x, *layer.parameters()])])
        assert backend == "eager" or "_Fused" in type(ys[0].grad_fn).__name__
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learns", [True, False])
def test_a_timestep_of_few_operations_runs_them(learns: bool) -> None:
    for layer, kernel in ((Trace(3), False), (AdaptiveLIF(3), True)):
        with torch.set_grad_enabled(learns):
            y, _ = layer(torch.ones(2, 3)), layer(torch.ones(2, 3))
        assert not learns or ("_Fused" in type(y.grad_fn).__name__) is kernel
        assert bool(programs(layer.tt.findings)) is kernel


def test_a_timestep_and_a_sequence_take_the_same_kernel() -> None:
    layer, x = AdaptiveLIF(300), torch.randn(70, 4, 300)
    stepped = torch.stack([layer(timestep) for timestep in x])
    states = layer.get_states()
    layer.zero_states()
    assert torch.equal(layer.unroll(x), stepped)
    assert all(torch.equal(layer.get_states()[name], state) for name, state in states.items())


def test_a_timestep_is_never_refused_for_a_backend() -> None:
    layer, x = Shaped(3), torch.randn(2, 3)
    with tt.backends.use("cpp"):
        y = layer(x)
    assert torch.equal(y, Shaped(3)(x))


def test_attributes_that_change_all_the_time_make_no_kernel_each() -> None:
    class Counting(AdaptiveLIF):
        count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return super().forward(x)

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            return super().step(states, x * self.count, p)

    layer, reference, x = Counting(3), AdaptiveLIF(3), torch.tensor([0.01, 0.1, 1.0])
    with torch.no_grad():  # one kernel for each, not two
        for count in range(1, 40):
            assert torch.equal(layer(x), reference(x * count))
    assert 10 < len(programs(layer.tt.findings)) <= 32


def test_a_timestep_with_a_tensor_of_another_kind_or_a_mode_is_seen_by_it() -> None:
    class Counted(torch.Tensor):
        pass

    layer, x = Trace(3), torch.randn(2, 3)
    expected = layer(x)
    layer.zero_states()
    y = layer(x.as_subclass(Counted))
    assert type(y) is Counted
    torch.testing.assert_close(y.as_subclass(Tensor), expected)
    layer.zero_states()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = layer(mode.from_tensor(x))
    assert (fake.shape, fake.dtype) == (x.shape, x.dtype)


class _Unrolled(nn.Module):
    def __init__(self, layer: tt.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.unroll(x)


def test_forward_mode_and_transforms_are_the_loops() -> None:
    layer, x, direction = Trace(2).double(), torch.randn(4, 1, 2).double(), torch.ones(4, 1, 2)
    with forward_ad.dual_level():
        y = layer.unroll(forward_ad.make_dual(x, direction.double()))
        tangent = forward_ad.unpack_dual(y).tangent
    layer.zero_states()
    torch.testing.assert_close(tangent, layer.unroll(direction.double()).detach())

    def loss(x: Tensor) -> Tensor:
        layer.zero_states()
        return layer.unroll(x).square().sum()

    plain = x.clone().requires_grad_()
    loss(plain).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), plain.grad)


def test_no_gradient_keeps_nothing() -> None:
    layer, x = Trace(3), torch.randn(8, 2, 3)
    with torch.no_grad():
        y = layer.unroll(x)
    assert y.grad_fn is None
    assert layer.mem is not None
    assert layer.mem.grad_fn is None
    with torch.inference_mode():
        layer.zero_states()
        torch.testing.assert_close(layer.unroll(x), y)


def test_threads_at_once_get_their_own_answers() -> None:
    layers = [AdaptiveLIF(5, beta=0.5 + 0.05 * k) for k in range(6)]
    x = torch.randn(50, 3, 5)
    expected = [torch.stack([*map(layer, x)]).detach() for layer in layers]
    for layer in layers:
        layer.zero_states()
    found: dict[int, Tensor] = {}

    def run(k: int) -> None:
        found[k] = layers[k].unroll(x).detach()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, y in enumerate(expected):
        torch.testing.assert_close(found[k], y)


def test_compiled_graphs_hold_the_operator_and_opcheck_passes() -> None:
    layer, x = AdaptiveLIF(4).double(), torch.randn(9, 2, 4).double()
    expected = layer.unroll(x)
    layer.zero_states()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    unroll = torch.compile(layer.unroll, fullgraph=True, backend=backend)
    torch.testing.assert_close(unroll(x), expected)
    assert "tracetorch.unroll" in graphs[0].code
    (name,) = {by.plan.program.name for by in programs(layer.tt.findings)}
    like = torch.randn(2, 4).double()
    states = [like.clone().requires_grad_() for _ in range(2)]
    parameters = [torch.rand(shape).double().requires_grad_() for shape in ((4,), (), (4,))]
    resets = (torch.rand(9, 2) < 0.3).to(torch.uint8)
    for aside in ([None, None], [None, resets]):
        torch.library.opcheck(
            torch.ops.tracetorch.unroll.default,
            (x.requires_grad_(), states, parameters, aside, name, [True] * 6),
        )


# ------------------------------------------------------------------ what kernels must not touch


@pytest.mark.parametrize("whole", [False, True], ids=["timestep", "sequence"])
def test_parameters_elsewhere_are_never_read(whole: bool) -> None:
    for move in (lambda layer: layer.to("meta"), lambda layer: setattr(
        layer, "raw_beta", nn.Parameter(layer.raw_beta.detach().to("meta"))
    )):  # fmt: skip
        layer, x = AdaptiveLIF(3), torch.ones(4, 2, 3)
        move(layer)
        with pytest.raises((RuntimeError, NotImplementedError)):
            layer.unroll(x) if whole else layer(x[0])


@pytest.mark.parametrize("whole", [False, True], ids=["timestep", "sequence"])
def test_a_parameter_of_another_shape_is_broadcast_as_eager_does(whole: bool) -> None:
    layer, x = AdaptiveLIF(3), torch.randn(40, 2, 3)
    layer.raw_beta = nn.Parameter(torch.zeros(1))
    y = layer.unroll(x) if whole else torch.stack([*map(layer, x)])
    layer.zero_states()
    with tt.backends.use("eager"):
        assert torch.equal(layer.unroll(x), y)


def test_gradients_in_batches_go_through_the_step() -> None:
    layer, x = AdaptiveLIF(3).double(), torch.randn(5, 2, 3, dtype=torch.float64).requires_grad_()
    y, seeds = layer.unroll(x), torch.randn(4, 5, 2, 3, dtype=torch.float64)
    (together,) = torch.autograd.grad(y, x, seeds, is_grads_batched=True, retain_graph=True)
    for seed, got in zip(seeds, together, strict=True):
        torch.testing.assert_close(got, torch.autograd.grad(y, x, seed, retain_graph=True)[0])


class Counted(Trace):
    """Adds truth values: true and true is true."""

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, ((x > 0.2) + (x > 0.5)).to(x.dtype), p)


class Reversed(Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, torch.rsub(x, 1.0, alpha=2.0), p)


class Filling(Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        above = torch.zeros_like(x, dtype=torch.bool)
        torch.gt(x, 0.2, out=above)
        return super().step(states, above.to(x.dtype), p)


@pytest.mark.parametrize("kind", [Counted, Reversed, Filling])
def test_what_the_table_cannot_say_is_stepped(kind: type[Trace]) -> None:
    layer, x = kind(3), torch.rand(9, 2, 3)
    y = layer.unroll(x)
    layer.zero_states()
    with tt.backends.use("eager"):
        assert torch.equal(layer.unroll(x), y)


class First(Trace):
    """Looks whether there is a state yet."""

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, x * (3 if self.mem is None else 1), p)


def test_a_step_that_reads_the_layers_own_state_is_stepped() -> None:
    layer, x = First(3), torch.rand(9, 2, 3)
    ys = [layer.unroll(x), layer.unroll(x)]
    layer.zero_states()
    with tt.backends.use("eager"):
        assert all(torch.equal(layer.unroll(x), y) for y in ys)
    with tt.backends.use("cpp"), pytest.raises(tt.BackendError, match=r"it reads self\.mem"):
        layer.unroll(x)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_looking_for_anomalies_changes_nothing() -> None:
    layer, x = AdaptiveLIF(3), torch.rand(9, 2, 3)
    with torch.autograd.detect_anomaly(check_nan=False), tt.backends.use("cpp"):
        layer.unroll(x).sum().backward()
    assert programs(layer.tt.findings)
