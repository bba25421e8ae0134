"""``Model.unroll`` against the loop written out; lengths, detaching, failures, bad arguments."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace

Everything = dict[str, Tensor]


class Net(tt.Model):
    """Layers registered, listed and called twice per timestep; a dict with a tuple comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.lif = AdaptiveLIF(4)
        self.rest = [Trace(4), {"mix": StateSpace(4, out_size=2)}]

    def forward(self, x: Tensor) -> Any:
        spikes = self.lif(self.fc(x))
        twice = self.rest[0](self.rest[0](spikes))
        return {"spikes": spikes, "rest": (twice, [self.rest[1]["mix"](twice)])}


def net() -> Net:
    torch.manual_seed(3)
    return Net().double()


def flat(outputs: dict[str, Any]) -> Everything:
    twice, (mixed,) = outputs["rest"]
    return {"spikes": outputs["spikes"], "twice": twice, "mixed": mixed}


def written_out(model: Net, x: Tensor, detach_every: int | None = None) -> Everything:
    """``x`` is time first; so are the outputs."""
    outputs = []
    for t in range(len(x)):
        if detach_every is not None and t > 0 and t % detach_every == 0:
            model.detach_states()
        outputs.append(flat(model(x[t])))
    return {name: torch.stack([y[name] for y in outputs]) for name in outputs[0]}


def learned(model: tt.Model) -> Everything:
    layers = {
        f"{n}.{k}": p for n, layer in model.named_layers() for k, p in layer.named_parameters()
    }
    return {**dict(model.named_parameters()), **layers}


def measured(
    model: Net, x: Tensor, warm: Tensor, run: Callable[[Net, Tensor], Everything]
) -> Everything:
    """Outputs (time first), final states, and the gradients of a weighted sum of all of them."""
    for timestep in warm:
        model(timestep)
    incoming = {n: s.detach().requires_grad_() for n, s in model.get_states().items()}
    model.set_states(incoming, strict=False)
    x = x.clone().requires_grad_()
    found = {**run(model, x), **model.get_states()}
    weights = torch.Generator().manual_seed(5)
    loss = sum(
        (value * torch.randn(value.shape, generator=weights, dtype=value.dtype)).sum()
        for value in found.values()
    )
    sources = {"x": x, **{f"incoming {n}": s for n, s in incoming.items()}, **learned(model)}
    gradients = torch.autograd.grad(loss, list(sources.values()), materialize_grads=True)
    return {**found, **{f"d{n}": g for n, g in zip(sources, gradients, strict=True)}}


def same(got: Everything, expected: Everything) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=name)


counts = st.one_of(st.none(), st.integers(1, 8))


@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    warm=st.integers(0, 2),
    time_dim=st.integers(-3, 2),
    chunk_size=counts,
    detach_every=counts,
    recompute=st.booleans(),
)
def test_unroll_is_the_loop_written_out(
    steps: int, batch: int, warm: int, time_dim: int, chunk_size: int | None,
    detach_every: int | None, recompute: bool,
) -> None:  # fmt: skip
    x, before = torch.randn(steps, batch, 3).double(), torch.randn(warm, batch, 3).double()

    def unrolled(model: Net, x: Tensor) -> Everything:
        outputs = model.unroll(
            x.movedim(0, time_dim),
            time_dim=time_dim,
            chunk_size=chunk_size,
            detach_every=detach_every,
            recompute=recompute,
        )
        assert type(outputs["rest"]) is tuple
        assert type(outputs["rest"][1]) is list
        return {name: y.movedim(time_dim, 0) for name, y in flat(outputs).items()}

    expected = measured(net(), x, before, lambda m, x: written_out(m, x, detach_every))
    same(measured(net(), x, before, unrolled), expected)


# ---------------------------------------------------------------- lengths


@given(data=st.data())
def test_a_sample_ends_at_its_own_length(data: st.DataObject) -> None:
    steps, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    time_dim, chunk_size = data.draw(st.integers(-3, 2)), data.draw(counts)
    warm, detach_every = data.draw(st.integers(0, 2)), data.draw(counts)
    recompute = data.draw(st.booleans())
    x, before = torch.randn(steps, batch, 3).double(), torch.randn(warm, batch, 3).double()

    def unrolled(model: Net, x: Tensor) -> Everything:
        outputs = model.unroll(
            x.movedim(0, time_dim),
            time_dim=time_dim,
            lengths=torch.tensor(lengths),
            chunk_size=chunk_size,
            detach_every=detach_every,
            recompute=recompute,
        )
        return {name: y.movedim(time_dim, 0) for name, y in flat(outputs).items()}

    def each_alone(model: Net, x: Tensor) -> Everything:
        """Every sample by itself over its own length, from its own standing state."""
        standing = model.get_states()
        parts: list[Everything] = []
        for sample, length in enumerate(lengths):
            own = slice(sample, sample + 1)
            model.set_states({name: s[own] for name, s in standing.items()}, strict=False)
            if not standing:
                model.zero_states()
            outputs = written_out(model, x[:length, own], detach_every) if length else {}
            padded = {
                name: torch.cat([y, y.new_zeros(steps - length, *y.shape[1:])])
                for name, y in outputs.items()
            }
            parts.append({**padded, **model.get_states()})
        names = {name: part[name] for part in parts for name in part}
        time_first = {"spikes", "twice", "mixed"}
        whole = {
            name: torch.cat(
                [part.get(name, torch.zeros_like(like)) for part in parts],
                dim=1 if name in time_first else 0,
            )
            for name, like in names.items()
        }
        states = {name: s for name, s in whole.items() if name not in time_first}
        model.set_states(states, strict=False)
        return {name: whole[name] for name in ("spikes", "twice", "mixed")}

    if not any(lengths):
        lengths[data.draw(st.integers(0, batch - 1))] = 1
    same(measured(net(), x, before, unrolled), measured(net(), x, before, each_alone))


def test_a_forward_that_mixes_samples_sees_those_that_have_ended_stand_still() -> None:
    class Centred(Holder):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y - y.mean(0)

    x, lengths = torch.randn(7, 3, 2).double(), torch.tensor([2, 5, 7])
    resets = torch.rand(7, 3) < 0.3
    found = []
    for size in (None, 1):
        model = Centred(Trace(2), Trace(2)).double()
        y = model.unroll(x, lengths=lengths, resets=resets, chunk_size=size)
        found.append([y, *model.get_states().values()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_of_length_zero_everything_stands_still() -> None:
    model, x = net(), torch.randn(4, 2, 3).double()
    y = model.unroll(x, lengths=torch.zeros(2, dtype=torch.int64))
    assert all(not out.any() for out in flat(y).values())
    assert all(not state.any() for state in model.get_states().values())
    model.zero_states()
    model(x[0])
    before = model.get_states()
    model.unroll(x, lengths=torch.tensor([0, 0]))
    assert all(torch.equal(model.get_states()[name], state) for name, state in before.items())


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_padding_that_is_no_number_reaches_no_gradient(chunk_size: int | None) -> None:
    lengths, found = torch.tensor([2, 5, 0]), []
    for padding in (0.0, float("nan")):
        model, x = net(), torch.linspace(-2, 2, 45).view(5, 3, 3).double()
        x[torch.arange(5)[:, None] >= lengths] = padding
        x.requires_grad_()
        ys = flat(model.unroll(x, lengths=lengths, chunk_size=chunk_size))
        if not torch.isfinite(x).all():  # what was not touched is as it was
            assert torch.equal(x.isnan().any(-1), torch.arange(5)[:, None] >= lengths)
        torch.stack([y.square().sum() for y in ys.values()]).sum().backward()
        found.append([*ys.values(), x.grad, *[p.grad for p in model.parameters()]])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_padding_that_is_a_number_is_left_as_it_is() -> None:
    class Directions(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.leak = Trace(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.leak(x / x.norm(dim=-1, keepdim=True))
            return y

    model, x = Directions(), torch.ones(4, 2, 3, requires_grad=True)
    model.unroll(x, lengths=torch.tensor([4, 1])).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert model.leak.raw_beta.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_every_integer_dtype(dtype: torch.dtype) -> None:
    model = Holder(Trace(1))
    y = model.unroll(torch.ones(300, 2, 1), lengths=torch.tensor([100, 0], dtype=dtype))
    assert y.bool().sum(0).flatten().tolist() == [100, 0]


class Tokens(tt.Model):
    """A timestep is ``[B]``, of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.leak = nn.Embedding(5, 2), Trace(2, beta=0.5)
        self.table.weight.data = torch.arange(10.0).reshape(5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.leak(self.table(tokens))
        return y


def test_a_timestep_may_be_a_batch_of_integers() -> None:
    tokens = torch.tensor([[1, 2], [3, 4]])
    y = Tokens().unroll(tokens, lengths=torch.tensor([2, 1]))
    torch.testing.assert_close(
        y, torch.tensor([[[2.0, 3.0], [4.0, 5.0]], [[7.0, 8.5], [0.0, 0.0]]])
    )


class Holder(tt.Model):
    """Calls its layers in turn."""

    def __init__(self, *held: tt.Layer) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.held:
            x = layer(x)
        return x


def test_a_layer_that_forward_does_not_call_is_left_alone() -> None:
    model = Holder(Trace(3))
    model.aside = Trace(3)
    model.aside(torch.ones(7, 3))
    mem = model.aside.mem
    model.unroll(torch.ones(4, 2, 3), lengths=torch.tensor([1, 4]))
    assert model.aside.mem is mem


class Late(tt.Model):
    """Makes its layer on the first timestep, and fails when told to."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.made: list[tt.Layer] = []
        self.fails_at, self.count = fails_at, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.made:
            self.made.append(Trace(x.shape[-1], beta=0.5))
        y: Tensor = self.made[0](x)
        if self.count == self.fails_at:
            raise ArithmeticError("told to")
        self.count += 1
        return y


def test_a_layer_made_on_the_way_keeps_to_lengths_and_failures() -> None:
    model = Late()
    y = model.unroll(torch.ones(3, 2, 1), lengths=torch.tensor([0, 2]))
    assert y.flatten().tolist() == [0.0, 1.0, 0.0, 1.5, 0.0, 0.0]
    assert model.made[0].mem.tolist() == [[0.0], [1.5]]
    failing = Late(fails_at=1)
    with pytest.raises(ArithmeticError):
        failing.unroll(torch.ones(3, 2, 1))
    assert failing.made[0].mem is None


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
def test_an_unbatched_state_takes_no_lengths(shape: tuple[int, ...]) -> None:
    model = Holder(Trace(3, dim=-1 if len(shape) == 2 else 0))
    with pytest.raises(tt.StateError, match=r"^layer 'held\.0', Trace\(3.*is unbatched .*lengths"):
        model.unroll(torch.ones(shape), lengths=torch.tensor([1, 2, 3]))
    assert model.held[0].mem is None


def test_an_output_without_a_batch_takes_no_lengths() -> None:
    class Mean(Holder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(0)

    model = Mean(Trace(3))
    with pytest.raises(ValueError, match=r"over 2 samples needs them at dimension 0 .*shape \[3\]"):
        model.unroll(torch.ones(4, 2, 3), lengths=torch.tensor([1, 2]))
    assert model.held[0].mem is None


# ---------------------------------------------------------------- detaching


def test_detaching_cuts_exactly_where_it_says() -> None:
    def gradient(detach_every: int | None, out: int) -> list[float]:
        x = torch.ones(5, 1, 1, requires_grad=True)
        y = Holder(Trace(1, beta=0.5)).unroll(x, detach_every=detach_every)
        (grad,) = torch.autograd.grad(y[out].sum(), x)
        return grad.flatten().tolist()

    assert gradient(None, 4) == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert gradient(2, 4) == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert gradient(2, 3) == [0.0, 0.0, 0.5, 1.0, 0.0]
    assert gradient(3, 4) == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert gradient(1, 2) == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert gradient(5, 4) == gradient(None, 4)


def test_the_final_states_keep_the_graph_of_the_last_timesteps() -> None:
    model, x = Holder(Trace(1, beta=0.5)), torch.ones(4, 1, 1, requires_grad=True)
    model.unroll(x, detach_every=2)
    (grad,) = torch.autograd.grad(model.held[0].mem.sum(), x)
    assert grad.flatten().tolist() == [0.0, 0.0, 0.5, 1.0]


# ---------------------------------------------------------------- failures


class Fails(Holder):
    """Raises at one timestep, after its layers were called."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__(Trace(3), AdaptiveLIF(3))
        self.at, self.error, self.count = at, error, 0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.count += 1
        if self.count > self.at:
            raise self.error
        return y


@pytest.mark.parametrize("error", [ArithmeticError("told to"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 1])], ids=["whole", "lengths"])
@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_a_failure_at_any_timestep_leaves_the_states(
    at: int, standing: bool, lengths: Tensor | None, error: BaseException
) -> None:
    model = Fails(at + standing, error)
    if standing:
        model(torch.ones(2, 3))
    before = model.get_states()
    with pytest.raises(type(error)) as raised:
        model.unroll(torch.ones(4, 2, 3), lengths=lengths, detach_every=1, chunk_size=2)
    assert type(raised.value) is type(error)
    after = model.get_states()
    assert len(after) == 3 * standing
    assert all(after[name] is state for name, state in before.items())


def test_a_misfit_midway_names_the_layer_and_changes_nothing() -> None:
    class Shrinks(Holder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:1] if x.max() > 1 else x)

    model, x = Shrinks(Trace(3)), torch.ones(4, 2, 3)
    x[2] = 2.0
    with pytest.raises(tt.StateError, match=r"^layer 'held\.0', .*\[2, 3\].*\[1, 3\].*zero_states"):
        model.unroll(x)
    assert model.held[0].mem is None


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor [T, B, …], got a list"),
        ({"x": None}, TypeError, "x must be a tensor [T, B, …], got a NoneType"),
        ({"x": [torch.ones(2, 3)]}, TypeError, "x must be a tensor [T, B, …], got a list; "
         "torch.stack(x), or pad_sequence(x) with lengths, is one"),
        ({"x": nn.utils.rnn.pack_sequence([torch.ones(2, 3)])}, TypeError,
         "x must be a tensor [T, B, …], got a PackedSequence; "
         "torch.nn.utils.rnn.pad_packed_sequence gives x and lengths"),
        ({"x": torch.ones(0, 2, 3)}, ValueError,
         "x needs at least one timestep at time_dim=0, got the shape [0, 2, 3]"),
        ({"x": torch.ones(())}, ValueError,
         "x needs at least one timestep at time_dim=0, got the shape []"),
        ({"time_dim": 3}, ValueError,
         "x needs at least one timestep at time_dim=3, got the shape [4, 2, 3]"),
        ({"time_dim": -4}, ValueError,
         "x needs at least one timestep at time_dim=-4, got the shape [4, 2, 3]"),
        ({"time_dim": 1.0}, TypeError, "time_dim must be an integer, got 1.0"),
        ({"time_dim": None}, TypeError, "time_dim must be an integer, got None"),
        ({"time_dim": True}, TypeError, "time_dim must be an integer, got True"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be an integer of at least 1, got 0"),
        ({"chunk_size": -1}, ValueError, "chunk_size must be an integer of at least 1, got -1"),
        ({"chunk_size": 2.5}, TypeError, "chunk_size must be an integer of at least 1, got 2.5"),
        ({"detach_every": 0}, ValueError, "detach_every must be an integer of at least 1, got 0"),
        ({"detach_every": "all"}, TypeError,
         "detach_every must be an integer of at least 1, got 'all'"),
        ({"recompute": 1}, TypeError, "recompute must be True or False, got 1"),
        ({"lengths": [1, 2]}, TypeError, "lengths must be a tensor of integers [B], got [1, 2]"),
        ({"lengths": 3}, TypeError, "lengths must be a tensor of integers [B], got 3"),
        ({"lengths": torch.ones(2)}, TypeError,
         "lengths must be a tensor of integers [B], got torch.float32"),
        ({"lengths": torch.ones(2).bool()}, TypeError,
         "lengths must be a tensor of integers [B], got torch.bool"),
        ({"lengths": torch.tensor([1, 5])}, ValueError, "lengths must lie in 0…4, got [1, 5]"),
        ({"lengths": torch.tensor([-1, 2])}, ValueError, "lengths must lie in 0…4, got [-1, 2]"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError,
         "lengths must have one entry per sample of x in [T, B, …] (here, time first, [4, 2, 3]), "
         "got the shape [3]; for x in [B, T, …] pass time_dim=1"),
        ({"lengths": torch.tensor([[1, 2]])}, ValueError,
         "lengths must have one entry per sample of x in [T, B, …] (here, time first, [4, 2, 3]), "
         "got the shape [1, 2]; for x in [B, T, …] pass time_dim=1"),
        ({"lengths": torch.tensor(1)}, ValueError,
         "lengths must have one entry per sample of x in [T, B, …] (here, time first, [4, 2, 3]), "
         "got the shape []; for x in [B, T, …] pass time_dim=1"),
        ({"x": torch.ones(4), "lengths": torch.tensor([1])}, ValueError,
         "lengths must have one entry per sample of x in [T, B, …] (here, time first, [4]), "
         "got the shape [1]; for x in [B, T, …] pass time_dim=1"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused(
    arguments: dict[str, Any], kind: type[Exception], says: str
) -> None:
    model = Holder(Trace(3))
    model(torch.ones(2, 3))
    mem = model.held[0].mem
    with pytest.raises(kind, match=f"^{re.escape('unroll: ' + says)}$") as raised:
        model.unroll(**{"x": torch.ones(4, 2, 3), **arguments})
    assert type(raised.value) is kind
    assert model.held[0].mem is mem


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError, match="positional"):
        Holder(Trace(3)).unroll(torch.ones(4, 2, 3), 0)


class PerSample(Holder):
    """One number per sample comes out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum((1, 2))


def test_time_goes_where_outputs_of_fewer_dimensions_have_it() -> None:
    x = torch.arange(24.0).reshape(2, 1, 3, 4)
    model = PerSample(Trace(1, beta=0.5, dim=1))
    expected = torch.stack([model(x[..., t]) for t in range(4)], dim=1)
    model.zero_states()
    assert torch.equal(model.unroll(x, time_dim=-1), expected)
    before = model.held[0].mem
    says = (
        "unroll: outputs of shape [4, 2], time first, have no dimension time_dim=3 to put time at; "
        "give it as a negative number or move it first"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        model.unroll(x, time_dim=3)
    assert model.held[0].mem is before


# ---------------------------------------------------------------- a layer by itself


@pytest.mark.parametrize(
    ("x", "kind", "says"),
    [
        (torch.ones(3), tt.StateError, "Trace(3, beta=0.8, dim=-1): unroll takes [T, …] with time "
         "first and at least one timestep, got [3]"),
        (torch.ones(0, 2, 3), tt.StateError, "at least one timestep, got [0, 2, 3]"),
        ("x", tt.StateError, "at least one timestep, got 'x'"),
        (torch.ones(4, 2, 5), tt.StateError, "has 5 neurons at dim=-1, the layer has 3"),
        (torch.ones(4, 2, 3).long(), TypeError, "must be a floating-point tensor, got torch.int64"),
        (torch.ones(4, 7, 3), tt.StateError, "the standing state mem is [2, 3] float32 on cpu"),
    ],
)  # fmt: skip
def test_a_layer_refuses_what_is_no_sequence(x: Any, kind: type[Exception], says: str) -> None:
    layer = Trace(3)
    layer(torch.ones(2, 3))
    mem = layer.mem
    with pytest.raises(kind, match=re.escape(says)):
        layer.unroll(x)
    assert layer.mem is mem


def test_a_layer_that_fails_midway_has_its_states_from_before() -> None:
    class Fragile(Trace):
        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            if x.max() > 1:
                raise ArithmeticError("told to")
            return super().step(states, x, p)

    layer, x = Fragile(2), torch.ones(3, 1, 2)
    x[2] = 2.0
    with pytest.raises(ArithmeticError):
        layer.unroll(x)
    assert layer.mem is None
    layer(x[0])
    mem = layer.mem
    with pytest.raises(ArithmeticError):
        layer.unroll(x)
    assert layer.mem is mem


def test_a_model_that_unrolls_its_layers_is_a_model_unrolled() -> None:
    class Sequences(Net):
        def forward(self, x: Tensor) -> Any:
            spikes = self.lif.unroll(self.fc(x))
            return {"spikes": spikes, "rest": (spikes, [self.rest[1]["mix"].unroll(spikes)])}

    x = torch.randn(5, 2, 3).double()
    model, stepped = Sequences().double(), Net().double()
    stepped.load_state_dict(model.state_dict())
    stepped.rest[0] = nn.Identity()
    for found, expected in ((flat(model(x)), flat(stepped.unroll(x))),
                            (model.get_states(), stepped.get_states())):  # fmt: skip
        same(found, expected)


@pytest.mark.parametrize("options", [{}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_sequence_without_samples_has_outputs_without_samples(
    steps: int, options: dict[str, bool]
) -> None:
    model = net()
    y = flat(model.unroll(torch.rand(steps, 0, 3).double(), **options))
    assert {name: value.shape[:2] for name, value in y.items()} == dict.fromkeys(y, (steps, 0))
    model.zero_states()
    x, twin = torch.rand(steps, 2, 3).double(), net()
    same(flat(model.unroll(x)), written_out(twin, x))  # the other one has decided nothing


# ---------------------------------------------------------------- elsewhere


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 does not trace vars(module)"
)
def test_unrolling_is_one_graph_for_torch_compile() -> None:
    model, x = net(), torch.randn(4, 2, 3).double()
    lengths = torch.tensor([1, 4])
    expected = {**flat(model.unroll(x, lengths=lengths, detach_every=3)), **model.get_states()}
    twin = copy.deepcopy(model)
    twin.zero_states()

    def run(x: Tensor) -> Any:
        return twin.unroll(x, lengths=lengths, detach_every=3)

    got = flat(torch.compile(run, fullgraph=True, backend="eager")(x))
    same({**got, **twin.get_states()}, expected)


@pytest.mark.parametrize(
    ("output", "got"),
    [(None, "None"), (0.5, "0.5"), ((torch.ones(2), None), "None"), ({"y": "no"}, "'no'")],
)
def test_what_forward_returns_must_be_tensors(output: Any, got: str) -> None:
    class Returning(Holder):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            return output

    model = Returning(Trace(3))
    with pytest.raises(TypeError, match=f"^unroll: forward of Returning must .*, got {got}$"):
        model.unroll(torch.ones(4, 2, 3))
    assert model.get_states() == {}


def test_modules_whose_sizes_come_with_the_first_timestep() -> None:
    class Sized(Holder):
        def __init__(self) -> None:
            super().__init__(Trace(2))
            self.linear = nn.LazyLinear(2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(self.linear(x))
            return y

    torch.manual_seed(0)
    model, x = Sized(), torch.randn(5, 3, 4)
    first = model.unroll(x)
    stepped = Sized()
    stepped(x[0])
    stepped.load_state_dict(model.state_dict())
    stepped.zero_states()
    torch.testing.assert_close(first, torch.stack([stepped(x_t) for x_t in x]))
    model.zero_states()
    torch.testing.assert_close(model.unroll(x, fold=True), first)
