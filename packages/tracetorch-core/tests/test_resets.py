"""Samples that restart within a sequence: the loop with ``zero_states(mask)``, at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace


class Net(tt.Model):
    """Layers at two depths, a module without memory, and a layer that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"lif": AdaptiveLIF(3)})
        self.mix, self.out, self.idle = nn.Linear(3, 2), Trace(2), Trace(2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mixed = self.mix(self.inner["lif"](x))
        return {"mixed": mixed, "y": self.out(mixed)}


class Clipped(Trace):
    """A step that looks at values: no kernel, no folding."""

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        new, y = super().step(states, x, p)
        return new, y if float(y.detach().sum()) < 100 else y.clamp(max=1.0)


class Cumulative(tt.Layer):
    """A sum over time, by a way of its own through whole sequences."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("total")

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        total = states.total + x
        return {"total": total}, total

    def sequence(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        totals = states.total + x.cumsum(0)
        return {"total": totals[-1]}, totals


class Restarting(Cumulative):
    """The same, told which samples restart."""

    def sequence(  # type: ignore[override]
        self, states: Any, x: Tensor, p: Any, resets: Tensor | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        if resets is None:
            return super().sequence(states, x, p)
        now, totals = states.total, []
        for mask, timestep in zip(resets, x, strict=True):
            now = torch.where(mask[:, None], 0.0, now) + timestep
            totals.append(now)
        return {"total": now}, torch.stack(totals)


class OneLayer(tt.Model):
    def __init__(self, layer: tt.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def loop(model: Any, x: Tensor, resets: Tensor) -> Any:
    """What ``unroll`` with ``resets`` is: written out."""
    outputs = []
    for mask, timestep in zip(resets, x, strict=True):
        model.zero_states(mask)
        outputs.append(model(timestep))
    if isinstance(outputs[0], dict):
        return {name: torch.stack([y[name] for y in outputs]) for name in outputs[0]}
    return torch.stack(outputs)


def results(model: tt.Model, x: Tensor, run: Callable[[Tensor], Any]) -> list[Tensor]:
    """Outputs, final states and all gradients, from states that are not zero."""
    model.zero_states()
    for name in sorted(states := started(model, x)):
        states[name].requires_grad_()
    model.set_states(states)
    x = x.clone().requires_grad_()
    outputs = run(x)
    ends = [*outputs.values()] if isinstance(outputs, dict) else [outputs]
    ends += [state for _, state in sorted(model.get_states().items())]
    loss = sum(((k + 1) * end.sin()).sum() for k, end in enumerate(ends))
    sources = [x, *(states[name] for name in sorted(states)), *model.parameters()]
    return [*ends, *torch.autograd.grad(loss, sources, materialize_grads=True)]


def started(model: tt.Model, x: Tensor) -> dict[str, Tensor]:
    """States of every layer, also of one that is never called."""
    torch.manual_seed(7)
    with torch.no_grad():
        for _, layer in model.named_layers():
            layer(torch.randn(x.shape[1], layer.num_neurons, dtype=x.dtype))
    states = {name: state.clone() for name, state in model.get_states().items()}
    model.zero_states()
    return states


def alike(got: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 40),
    batch=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 2**16),
    options=st.fixed_dictionaries(
        {},
        optional={
            "chunk_size": st.integers(1, 50),
            "recompute": st.booleans(),
            "fold": st.sampled_from([None, False]),
        },
    ),
)
def test_a_model_unrolled_with_resets_is_the_loop_with_masks(
    steps: int, batch: int, rate: float, seed: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(seed)
    model = Net().double()
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    resets = torch.rand(steps, batch) < rate
    expected = results(model, x, lambda x: loop(model, x, resets))
    alike(results(model, x, lambda x: model.unroll(x, resets=resets, **options)), expected)


@pytest.mark.parametrize(
    "make",
    [Trace, AdaptiveLIF, Clipped, StateSpace, Cumulative, Restarting],
)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_every_way_through_a_sequence_restarts_alike(make: type[tt.Layer], backend: str) -> None:
    model = OneLayer(make(3)).double()
    x = torch.randn(70, 4, 3, dtype=torch.float64)
    resets = torch.rand(70, 4) < 0.2
    expected = results(model, x, lambda x: loop(model, x, resets))
    with tt.backends.use(backend):
        alike(results(model, x, lambda x: model.unroll(x, resets=resets)), expected)
        alike(results(model, x, lambda x: model.layer.unroll(x, resets)), expected)


def test_a_sequence_of_its_own_goes_from_restart_to_restart_or_is_told() -> None:
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[[3, 7], [0, 1]] = True
    for kind, expected in ((Cumulative, [3, 4, 2]), (Restarting, [9])):
        asked: list[int] = []

        class Told(kind):  # type: ignore[misc, valid-type]
            @functools.wraps(kind.sequence)
            def sequence(self, states: Any, x: Tensor, p: Any, **resets: Tensor) -> Any:
                asked.append(len(x))  # noqa: B023 - asked within the loop
                return super().sequence(states, x, p, **resets)

        layer = Told(1)
        layer.unroll(torch.ones(9, 2, 1), resets)
        assert asked == expected
        assert layer.total.flatten().tolist() == [6.0, 2.0]


@pytest.mark.parametrize("time_dim", [0, 1, 2, -2])
def test_resets_lie_as_time_and_batch_of_x_do(time_dim: int) -> None:
    model = Net().double()
    x, resets = torch.randn(6, 4, 3, dtype=torch.float64), torch.rand(6, 4) < 0.3
    expected = loop(model, x, resets)["y"]
    model.zero_states()
    given = resets if time_dim == 0 else resets.t()
    if time_dim == 2:  # [B, 3, T]: outputs have it last as well
        y = model.unroll(x.movedim(0, 2), time_dim=2, resets=given)["y"].movedim(2, 0)
    else:
        y = model.unroll(x.movedim(0, time_dim), time_dim=time_dim, resets=given)["y"]
        y = y.movedim(time_dim, 0)
    torch.testing.assert_close(y, expected)


def test_with_lengths_a_sample_that_has_ended_stands_still_whatever_resets_say() -> None:
    model = Net().double()
    x, lengths = torch.randn(8, 3, 3, dtype=torch.float64), torch.tensor([8, 5, 0])
    resets = torch.rand(8, 3) < 0.4
    resets[6] = True
    ends = []
    for sample in range(3):
        model.zero_states()
        own = slice(sample, sample + 1)
        steps = int(lengths[sample])
        y = loop(model, x[:steps, own], resets[:steps, own])["y"] if steps else x[:0, own, :2]
        silence = y.new_zeros(8 - steps, 1, 2)
        states = {n: s for n, s in model.get_states().items() if steps}
        ends.append((torch.cat([y, silence]), states))
    model.zero_states()
    y = model.unroll(x, lengths=lengths, resets=resets)["y"]
    torch.testing.assert_close(y, torch.cat([y for y, _ in ends], 1))
    for name, state in model.get_states().items():
        for sample, (_, states) in enumerate(ends):
            expected = states.get(name, torch.zeros_like(state[:1]))
            torch.testing.assert_close(state[sample : sample + 1], expected)


def test_gradients_stop_where_a_sample_restarts() -> None:
    layer, x = Trace(1, beta=0.5), torch.ones(6, 2, 1, requires_grad=True)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[4, 1] = True
    y = layer.unroll(x, resets)
    (gradient,) = torch.autograd.grad(y[5].sum(), x)
    assert gradient[:, 1, 0].tolist() == [0.0, 0.0, 0.0, 0.0, 0.5, 1.0]
    assert gradient[:, 0, 0].tolist() == [2.0**-k for k in (5, 4, 3, 2, 1, 0)]


def test_resets_in_second_derivatives() -> None:
    layer = AdaptiveLIF(2).double()
    resets = torch.rand(5, 3) < 0.4

    def run(x: Tensor) -> Tensor:
        layer.zero_states()
        return layer.unroll(x, resets)

    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for way in (run, lambda x: (layer.zero_states(), loop(layer, x, resets))[1]):
        (first,) = torch.autograd.grad(way(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_what_is_recorded_is_of_the_restarted_states() -> None:
    model = Net().double()
    x, resets = torch.randn(40, 3, 3, dtype=torch.float64), torch.rand(40, 3) < 0.2
    with tt.record(model, "out.mem", "out.in") as rec:
        model.unroll(x, resets=resets)
    with tt.record(model, "out.mem", "out.in") as steps:
        model.zero_states()
        loop(model, x, resets)
    for name in ("out.mem", "out.in"):
        torch.testing.assert_close(rec[name], steps[name])


def test_resets_may_be_written_over_before_the_backward_pass() -> None:
    layer, x = Trace(2), torch.randn(5, 3, 2, requires_grad=True)
    resets = torch.zeros(5, 3, dtype=torch.bool)
    y = layer.unroll(x, resets)
    resets.fill_(True)
    (gradient,) = torch.autograd.grad(y[-1].sum(), x)
    assert bool((gradient != 0).all())


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 does not trace vars(module)"
)
def test_a_compiled_graph_serves_any_resets() -> None:
    model = Net()
    compiled = torch.compile(model.unroll, backend="aot_eager", fullgraph=True)
    x = torch.randn(7, 4, 3)
    for seed in range(3):
        torch.manual_seed(seed)
        resets = torch.rand(7, 4) < 0.3
        found = []
        for run in (compiled, functools.partial(torch.compiler.disable(model.unroll))):
            model.zero_states()
            own = x.clone().requires_grad_()
            y = run(own, resets=resets)["y"]
            found.append([y.detach(), *torch.autograd.grad(y.sin().sum(), own)])
        torch.testing.assert_close(*found)


def test_resets_of_a_batch_of_models_under_vmap() -> None:
    layer, resets = Trace(2).double(), torch.rand(4, 5, 3) < 0.3
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64)

    def run(x: Tensor, resets: Tensor) -> Tensor:
        layer.zero_states()
        y = layer.unroll(x, resets)
        layer.zero_states()
        return y

    got = torch.func.vmap(run)(x, resets)
    torch.testing.assert_close(got, torch.stack([run(*one) for one in zip(x, resets, strict=True)]))


MISFITS = {
    "no tensor": ([[True]], TypeError, "resets must be a boolean tensor"),
    "no booleans": (torch.zeros(6, 4), TypeError, "torch.float32"),
    "time and batch exchanged": (torch.zeros(4, 6).bool(), ValueError, r"[T, B] = [6, 4]"),
    "a mask of one timestep": (torch.zeros(4).bool(), ValueError, "the shape [4]"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_misfits_are_refused_and_change_nothing(what: str) -> None:
    resets, kind, said = MISFITS[what]
    model, x = Net(), torch.randn(6, 4, 3)
    model(x[0])
    before = model.get_states()
    with pytest.raises(kind) as caught:
        model.unroll(x, resets=resets)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert all(model.get_states()[name] is state for name, state in before.items())
    with pytest.raises((TypeError, tt.StateError), match="resets"):
        model.inner["lif"].unroll(x, resets)


def test_an_unbatched_sequence_takes_no_resets() -> None:
    with pytest.raises(tt.StateError, match="takes no resets; add a batch dimension"):
        Trace(3).unroll(torch.ones(5, 3), torch.zeros(5, 3).bool())


class Resting(Trace):
    """Restarts at a membrane of 1."""

    @functools.wraps(tt.Layer.zero_states)
    def zero_states(self, mask: Tensor | None = None) -> None:
        super().zero_states(mask)
        if mask is not None and self.tt.states["mem"] is not None:
            self.set_states({"mem": self.mem + mask[:, None] * 1.0})


class OneArgument(Trace):
    def unroll(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().unroll(x)


def test_a_zero_states_of_ones_own_restarts() -> None:
    resets = torch.tensor([[False], [True], [False]])
    for run in (Resting(1, beta=0.5).unroll, OneLayer(Resting(1, beta=0.5)).unroll):
        assert run(torch.zeros(3, 1, 1), resets=resets).flatten().tolist() == [0.0, 0.5, 0.25]

    class Counted(OneLayer):
        calls = 0

        @functools.wraps(tt.Model.zero_states)  # what it wraps is not taken for it
        def zero_states(self, mask: Tensor | None = None) -> None:
            super().zero_states(mask)
            type(self).calls += mask is not None

    Counted(Trace(1)).unroll(torch.zeros(3, 1, 1), resets=resets)
    assert Counted.calls == 1


def test_an_unroll_that_knows_no_resets_serves_where_there_are_none() -> None:
    model, x = OneLayer(OneArgument(2)), torch.rand(5, 3, 2)
    y = model.unroll(x, fold=True)
    model.zero_states()
    torch.testing.assert_close(y, torch.stack([model(x_t) for x_t in x]))
