"""Parameters: what is given, what is stored, what is read back, what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import tracetorch as tt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from tracetorch import testing
from tracetorch.constraints import identity, negative_exp, sigmoid, softplus

CONSTRAINTS = {c.name: c for c in (sigmoid, softplus, identity, negative_exp)}


def _double(raw: Tensor) -> Tensor:
    return 2.0 * raw.exp() + 1.0


def _halve(value: Tensor) -> Tensor:
    return ((value - 1.0) / 2.0).log()


above_one = tt.Constraint("above_one", _double, _halve, low=1.0)


class One(tt.Layer):
    """A layer with one parameter ``q``, declared as the test says."""

    def __init__(self, n: int, value: Any, **options: Any) -> None:
        super().__init__(n)
        self.add_parameter("q", value, **options)

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return {}, p.q * x


POWERS = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)
DOMAINS = {
    "sigmoid": st.one_of(
        st.floats(-30, -1).map(lambda exponent: 10.0**exponent),
        st.floats(0.1, 0.9),
        st.floats(-6, -1).map(lambda exponent: 1.0 - 10.0**exponent),
    ),
    "softplus": POWERS,
    "identity": st.one_of(POWERS, POWERS.map(lambda value: -value), st.just(0.0)),
    "negative_exp": POWERS.map(lambda value: -value),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
@given(data=st.data())
def test_a_value_is_read_back_as_given(
    constraint: tt.Constraint, dtype: torch.dtype, data: st.DataObject
) -> None:
    value = torch.tensor(data.draw(DOMAINS[constraint.name]), dtype=dtype)
    layer = One(3, value, constraint=constraint)
    # rounding the stored value once moves the effective one by its condition number
    (slope,) = torch.autograd.grad(layer.q, layer.raw_q)
    condition = (slope * layer.raw_q / value).abs().item() if value else 0.0
    allowed = 4 * torch.finfo(dtype).eps * (1 + condition)
    torch.testing.assert_close(layer.q, value, rtol=allowed, atol=0.0)
    assert layer.raw_q.dtype == dtype


@pytest.mark.parametrize("constraint", [*CONSTRAINTS.values(), above_one], ids=lambda c: c.name)
@given(raw=st.floats(-15, 15))
def test_the_inverse_undoes_the_constraint(constraint: tt.Constraint, raw: float) -> None:
    stored = torch.tensor(raw, dtype=torch.float64)
    again = constraint.inverse(constraint.forward(stored))
    torch.testing.assert_close(again, stored, rtol=1e-8, atol=1e-8)
    assert constraint.admits(constraint.forward(stored))


@pytest.mark.parametrize("constraint", [*CONSTRAINTS.values(), above_one], ids=lambda c: c.name)
def test_constraints_are_differentiable(constraint: tt.Constraint) -> None:
    raw = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(constraint.forward, (raw,))


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(
    ("value", "rank", "shape"),
    [
        (0.5, 0, ()),
        (0.5, 1, (4,)),
        (1, 1, (4,)),
        (torch.tensor(0.5), 1, ()),
        (torch.tensor([0.1, 0.2, 0.3, 0.4]), 0, (4,)),
    ],
)
def test_value_rank_and_learn(value: Any, rank: int, shape: tuple[int, ...], learn: bool) -> None:
    layer = One(4, value, rank=rank, learn=learn)
    assert layer.q.shape == layer.raw_q.shape == shape
    torch.testing.assert_close(layer.q, torch.as_tensor(value).float().expand(shape))
    assert ("raw_q" in dict(layer.named_parameters())) is learn
    assert ("raw_q" in dict(layer.named_buffers())) is not learn
    assert list(layer.state_dict()) == ["raw_q"]


def test_a_given_tensor_stays_the_users() -> None:
    given_value = torch.tensor([0.25, 0.5])
    layer = One(2, given_value)
    layer.q = 0.75
    assert given_value.tolist() == [0.25, 0.5]
    given_value.zero_()
    assert layer.q.tolist() == [0.75, 0.75]


def test_the_raw_value_is_what_the_constraint_stores() -> None:
    layer = One(2, 0.8, constraint=sigmoid)
    assert layer.raw_q.tolist() == pytest.approx([math.log(4.0)] * 2)
    assert One(2, 3.0, constraint=above_one).raw_q.tolist() == pytest.approx([0.0, 0.0])


def test_an_exact_shape_under_its_own_name() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    layer = One(2, weight, shape=(2, 3), raw_name="q")
    assert torch.equal(layer.q, weight)
    assert layer.q is dict(layer.named_parameters())["q"]


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("value", [0.25, torch.tensor(0.25), torch.tensor([0.1, 0.2, 0.3])])
def test_assignment_goes_through_the_inverse_in_place(value: Any, learn: bool) -> None:
    layer = One(3, 0.8, learn=learn, constraint=sigmoid)
    stored, address = layer.raw_q, layer.raw_q.data_ptr()
    layer.q = value
    assert layer.raw_q is stored
    assert stored.data_ptr() == address
    torch.testing.assert_close(layer.q.detach(), torch.as_tensor(value).expand(3))
    assert stored.requires_grad is learn


def test_assignment_of_a_float_keeps_the_stored_dtype() -> None:
    layer = One(3, 0.8, constraint=sigmoid).double()
    layer.q = 0.1
    assert layer.q.dtype == torch.float64
    torch.testing.assert_close(layer.q.detach(), torch.full((3,), 0.1).double(), rtol=1e-14, atol=0)


def test_assignment_reaches_an_optimizer_made_before() -> None:
    layer = One(1, 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer.q = 2.0
    layer(torch.ones(1)).sum().backward()
    optimizer.step()
    assert layer.q.item() == 1.5


def test_assignment_is_per_instance() -> None:
    first, second = One(1, 0.5, constraint=sigmoid), One(1, 0.5, constraint=softplus)
    first.q, second.q = 0.25, 8.0
    assert first.q.item() == pytest.approx(0.25)
    assert second.q.item() == pytest.approx(8.0)


def test_a_users_constraint_survives_copy_and_pickle() -> None:
    layer = One(2, 4.0, constraint=above_one)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        twin.q = 9.0
        assert twin.q.tolist() == pytest.approx([9.0, 9.0])
        assert layer.q.tolist() == pytest.approx([4.0, 4.0])
        with pytest.raises(ValueError, match=r"q must be in \(1, ∞\).*got 0.5"):
            twin.q = 0.5


@pytest.mark.parametrize("value", [20.5, 10.0**1.375, 39.0, 41.0])
def test_a_large_positive_value_is_exact_in_float64(value: float) -> None:
    layer = One(1, torch.tensor(value, dtype=torch.float64), constraint=softplus)
    assert layer.q.item() == pytest.approx(value, rel=1e-15)


def test_gradients_pass_the_constraint() -> None:
    layer = One(1, 0.8, constraint=sigmoid).double()
    layer(torch.ones(1).double()).sum().backward()
    assert layer.raw_q.grad is not None
    assert layer.raw_q.grad.item() == pytest.approx(0.8 * 0.2)


class Doubled(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return 2 * original


class Redoubled(Doubled):
    def right_inverse(self, raw: Tensor) -> Tensor:
        return raw / 2


class Holder(tt.Model):
    def __init__(self, layer: tt.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def parametrized(layer: tt.Layer, name: str, computed: nn.Module) -> nn.Parameter:
    parametrize.register_parametrization(layer, name, computed)
    return layer.get_parameter(f"parametrizations.{name}.original")


def pruned(layer: tt.Layer, name: str) -> nn.Parameter:
    prune.l1_unstructured(layer, name, amount=0.5)
    return layer.get_parameter(f"{name}_orig")


RUNS = {
    "stepped": lambda layer, x: torch.stack([layer(timestep) for timestep in x]),
    "unrolled": lambda layer, x: layer.unroll(x),
    "in a model": lambda layer, x: Holder(layer).unroll(x),
}


@pytest.mark.parametrize("how", ["parametrized", "with an inverse", "pruned"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [(testing.Trace, "raw_beta"), (testing.AdaptiveLIF, "raw_beta"), (testing.StateSpace, "c")],
)
def test_a_raw_value_computed_from_another_parameter(
    kind: Any, name: str, run: Any, how: str
) -> None:
    layer, plain, x = kind(4).double(), kind(4).double(), torch.randn(6, 3, 4).double()
    original = {
        "parametrized": lambda: parametrized(layer, name, Doubled()),
        "with an inverse": lambda: parametrized(layer, name, Redoubled()),
        "pruned": lambda: pruned(layer, name),
    }[how]()
    slope = layer.get_buffer(f"{name}_mask") if how == "pruned" else 2.0
    with torch.no_grad():
        getattr(plain, name).copy_(slope * original)
    short = name.removeprefix("raw_")
    torch.testing.assert_close(getattr(layer, short), getattr(plain, short))
    y, expected = run(layer, x.float()), run(plain, x.float())
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(original.grad, slope * getattr(plain, name).grad)
    for state, wanted in plain.get_states().items():
        torch.testing.assert_close(layer.get_states()[state], wanted)


def test_assignment_goes_through_the_inverse_of_a_parametrization() -> None:
    layer = One(3, 0.8, constraint=sigmoid)
    original = parametrized(layer, "raw_q", Redoubled())
    for value in (0.25, torch.tensor([0.1, 0.2, 0.3])):
        layer.q = value
        torch.testing.assert_close(layer.q.detach(), torch.as_tensor(value).expand(3))
    assert layer.get_parameter("parametrizations.raw_q.original") is original
    parametrize.remove_parametrizations(layer, "raw_q")
    torch.testing.assert_close(layer.q.detach(), torch.tensor([0.1, 0.2, 0.3]))


def test_assignment_to_what_has_no_inverse_is_refused() -> None:
    layers = [One(3, 0.8, constraint=sigmoid) for _ in range(2)]
    parametrized(layers[0], "raw_q", Doubled()), pruned(layers[1], "raw_q")
    says = [r"by a parametrization; .*right_inverse", r"anew at every call; .*prune\.remove"]
    for layer, why in zip(layers, says, strict=True):
        before = layer.q.detach().clone()
        with pytest.raises(RuntimeError, match=rf"One\(3.*cannot assign 0\.3 to q: raw_q .*{why}"):
            layer.q = 0.3
        with pytest.raises(ValueError, match=r"q must be in \(0, 1\)"):
            layer.q = 1.3
        layer(torch.ones(3))
        assert torch.equal(layer.q, before)
    prune.remove(layers[1], "raw_q")
    layers[1].q = 0.3
    torch.testing.assert_close(layers[1].q.detach(), torch.full((3,), 0.3))


NEURON = r"one value per neuron \(shape \[3\]\)"


@pytest.mark.parametrize(
    ("value", "options", "kind", "says"),
    [
        (1.2, {"constraint": sigmoid}, ValueError, r"q must be in \(0, 1\).*got 1\.2"),
        (0.0, {"constraint": sigmoid}, ValueError, r"in \(0, 1\).*got 0\.0"),
        (1.0, {"constraint": sigmoid}, ValueError, r"in \(0, 1\).*got 1\.0"),
        (0.999999999, {"constraint": sigmoid}, ValueError, r"held as float32\), got 0\.999999999"),
        (-1.0, {"constraint": softplus}, ValueError, r"q must be in \(0, ∞\).*got -1\.0"),
        (1.0, {"constraint": negative_exp}, ValueError, r"in \(-∞, 0\).*got 1\.0"),
        (math.nan, {}, ValueError, "any finite number.*got nan"),
        (math.inf, {}, ValueError, "any finite number.*got inf"),
        (1e39, {}, ValueError, r"any finite number \(held as float32\), got 1e\+39"),
        (torch.tensor([0.5, 1.5, 0.5]), {"constraint": sigmoid}, ValueError, r"in \(0, 1\)"),
        (torch.zeros(2), {}, ValueError, r"shape \[2\].*" + NEURON),
        (torch.zeros(1), {}, ValueError, r"shape \[1\].*" + NEURON),
        (torch.zeros(3, 1), {}, ValueError, r"shape \[3, 1\].*" + NEURON),
        (torch.zeros(3), {"shape": (2, 4)}, ValueError, r"shape \(2, 4\), got \(3,\)"),
        (torch.zeros(4), {"shape": (2, 4)}, ValueError, r"shape \(2, 4\), got \(4,\)"),
        (torch.zeros(3).long(), {}, TypeError, "floating-point tensor or a number"),
        ("0.5", {}, TypeError, "q must be a number .*got '0.5'"),
        (None, {}, TypeError, "q must be a number .*got None"),
        (True, {}, TypeError, "q must be a number .*got True"),
        (1j, {}, TypeError, "q must be a number .*got 1j"),
        (0.5, {"rank": 3}, ValueError, "q_rank must be 0 .* or 1 .*got 3"),
        (0.5, {"rank": -1}, ValueError, "q_rank must be 0 .* or 1 .*got -1"),
        (0.5, {"rank": True}, TypeError, "q_rank must be .*got True"),
        (0.5, {"rank": 1.0}, TypeError, r"q_rank must be .*got 1\.0"),
        (0.5, {"learn": 1}, TypeError, "learn_q must be True or False, got 1"),
        (0.5, {"constraint": torch.sigmoid}, TypeError, "constraint of q must be a tt.Constraint"),
    ],
)
def test_bad_parameters_are_refused(
    value: Any, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=r"(?s)^One: .*" + says):
        One(3, value, **options)


def test_a_decay_too_close_to_one_for_float32_fits_float64() -> None:
    value = torch.tensor(0.999999999, dtype=torch.float64)
    assert One(3, value, constraint=sigmoid).q.item() == pytest.approx(0.999999999, abs=1e-15)
    layer = One(3, 0.5, constraint=sigmoid)
    with pytest.raises(ValueError, match="held as float32"):
        layer.q = value
    layer.double().q = value
    assert layer.q[0].item() == pytest.approx(0.999999999, abs=1e-15)


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (1.2, ValueError, r"q must be in \(0, 1\) \(held as float32\), got 1\.2"),
        (torch.full((2,), 0.5), ValueError, r"q has shape \[3\], cannot assign shape \[2\]"),
        (torch.full((1,), 0.5), ValueError, r"q has shape \[3\], cannot assign shape \[1\]"),
        ("high", TypeError, "q must be a number"),
        (True, TypeError, "q must be a number"),
    ],
)
def test_a_refused_assignment_changes_nothing(value: Any, kind: type, says: str) -> None:
    layer = One(3, 0.8, constraint=sigmoid)
    before = layer.raw_q.detach().clone()
    with pytest.raises(kind, match=says):
        layer.q = value
    assert torch.equal(layer.raw_q.detach(), before)


@pytest.mark.parametrize(
    "name", ["q", "mem", "step", "forward", "training", "_q", "2q", "a b", "num_neurons", 3]
)
@pytest.mark.parametrize("what", ["state", "parameter"])
def test_a_name_that_is_taken_or_none_is_refused(name: Any, what: str) -> None:
    layer = One(2, 0.5)
    layer.add_state("mem")
    with pytest.raises(ValueError, match=r"is taken|identifier"):
        layer.add_state(name) if what == "state" else layer.add_parameter(name, 0.5)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ((0,), ValueError, "num_neurons must be an integer of at least 1, got 0"),
        ((-2,), ValueError, "num_neurons must be an integer of at least 1, got -2"),
        ((2.0,), TypeError, r"num_neurons must be an integer of at least 1, got 2\.0"),
        ((True,), TypeError, "num_neurons must be an integer of at least 1, got True"),
        ((None,), TypeError, "num_neurons must be an integer of at least 1, got None"),
    ],
)
def test_bad_sizes_are_refused(arguments: tuple[Any, ...], kind: type, says: str) -> None:
    with pytest.raises(kind, match=f"^Trace: {says}$"):
        testing.Trace(*arguments)


@pytest.mark.parametrize("dim", [1.0, None, "last", True])
def test_a_bad_dim_is_refused(dim: Any) -> None:
    with pytest.raises(TypeError, match=f"^Trace: dim must be an integer, got {dim!r}$"):
        testing.Trace(2, dim=dim)


def test_a_constraint_with_an_empty_domain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'odd': low must be below high, got 1\.0 and 1\.0"):
        tt.Constraint("odd", torch.exp, torch.log, low=1.0, high=1.0)


def test_repr_shows_values_as_a_reader_wants_them() -> None:
    layer = testing.AdaptiveLIF(2, beta=torch.tensor([0.25, 0.5]), rho=0.9, dim=1)
    assert repr(layer) == "AdaptiveLIF(2, beta=0.25…0.5, rho=0.9, jump=0.5, dim=1)"
    assert repr(layer.to("meta")) == "AdaptiveLIF(2, beta=…, rho=…, jump=…, dim=1)"


@pytest.mark.parametrize("kind", [testing.Trace, testing.AdaptiveLIF, testing.StateSpace])
@pytest.mark.parametrize("assign", [True, False])
def test_a_layer_made_on_meta_takes_its_values_later(kind: type[tt.Layer], assign: bool) -> None:
    filled, x = kind(3), torch.randn(4, 2, 3)
    with torch.device("meta"):
        layer = kind(3)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert repr(layer).startswith(f"{kind.__name__}(3, ")
    assert repr(layer).count("=…, ") == len(layer.state_dict())
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(filled.state_dict(), assign=assign)
    assert torch.equal(layer.unroll(x), filled.unroll(x))
    assert repr(layer) == repr(filled)


def test_numbers_and_values_that_are_there_are_checked_on_meta_too() -> None:
    value = torch.full((3,), 0.5)
    says = r"q must be in \(0, 1\).*got "
    with torch.device("meta"):
        layers = [One(3, q, constraint=sigmoid) for q in (0.8, torch.full((3,), 2.0))]
        assert One(3, value, constraint=sigmoid).q.tolist() == value.tolist()
        with pytest.raises(ValueError, match=says + r"1\.2"):
            One(3, 1.2, constraint=sigmoid)
    for layer in layers:
        layer.q = value
        layer.q = 0.5
        with pytest.raises(ValueError, match=says + r"tensor\(1\.2"):
            layer.q = torch.tensor(1.2)
        assert layer.q.is_meta


def test_dir_lists_parameters_and_states() -> None:
    layer = testing.AdaptiveLIF(2)
    assert {"beta", "rho", "jump", "mem", "raised", "raw_beta"} <= {*dir(layer)}


def test_parameters_count_and_are_all_of_the_modules() -> None:
    layer = testing.AdaptiveLIF(5, learn_jump=False)
    assert all(isinstance(p, nn.Parameter) for p in layer.parameters())
    assert {n: p.numel() for n, p in layer.named_parameters()} == {"raw_beta": 5, "raw_rho": 1}


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_writing_into_what_is_read_changes_nothing(learn: bool, compiled: bool) -> None:
    layer = testing.AdaptiveLIF(3, learn_jump=learn)
    if compiled:
        layer.TTcompile()
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        expected = layer.unroll(x)
        layer.zero_states()
        for name in ("beta", "rho", "jump"):
            getattr(layer, name).fill_(0.1)
        assert torch.equal(layer.unroll(x), expected)
    layer.zero_states()
    assert torch.equal(layer.unroll(x), expected)
    torch.testing.assert_close(layer.beta.detach(), torch.full((3,), 0.9))
