"""What holds for each: one answer, exact compilation, dtypes, copies, transforms, messages."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune
from tracetorch import rnn

Make = Callable[..., rnn.Layer]
Stepped = Callable[[rnn.Layer, Tensor], Tensor]


def inputs(steps: int = 4, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(steps, batch, 3, dtype=dtype)


def random_states(layer: rnn.Layer, x: Tensor) -> dict[str, Tensor]:
    """States as after ``x``, with random values."""
    layer(x)
    return {name: torch.randn_like(state) for name, state in layer.get_states().items()}


def test_the_list_of_layers_is_the_list_of_exports() -> None:
    public = {getattr(rnn, name) for name in rnn.__all__}
    kinds = {kind for kind in public if isinstance(kind, type) and kind is not rnn.Layer}
    assert kinds == set(rnn.LAYERS)
    assert rnn.Layer is tt.Layer


def test_gradients_of_input_states_and_parameters(layer: rnn.Layer) -> None:
    x = inputs(3)
    names, values = zip(*layer.named_parameters(), strict=True)
    states = random_states(layer, x[0])

    def run(x: Tensor, *rest: Tensor) -> Any:
        layer.set_states(dict(zip(states, rest, strict=False)))
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        y = functional_call(_Unrolled(layer), {f"layer.{n}": v for n, v in parameters.items()}, x)
        return y, *layer.get_states().values()

    leaves = [x, *states.values(), *(value.detach() for value in values)]
    assert torch.autograd.gradcheck(run, [leaf.clone().requires_grad_() for leaf in leaves])


class _Unrolled(torch.nn.Module):
    def __init__(self, layer: rnn.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.unroll(x)


def test_unrolling_is_stepping(layer: rnn.Layer, stepped: Stepped) -> None:
    x = inputs(7)
    start = random_states(layer, x[0])
    results = []
    for run in (stepped, lambda layer, x: layer.unroll(x)):
        layer.zero_grad()
        own = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in start.values())]
        layer.set_states(dict(zip(start, own[1:], strict=True)))
        y = run(layer, own[0])
        final = list(layer.get_states().values())
        sum(t.square().sum() for t in (y, *final)).backward()
        parameters = [p.grad.clone() for p in layer.parameters()]
        results.append([y, *final, *(leaf.grad for leaf in own), *parameters])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_states_carry_on_restart_and_restart_by_sample(layer: rnn.Layer, stepped: Stepped) -> None:
    x = inputs(6, batch=3)
    whole = stepped(layer, x)
    layer.zero_states()
    assert torch.equal(torch.cat([stepped(layer, x[:2]), stepped(layer, x[2:])]), whole)
    layer.zero_states()
    chunks = torch.cat([layer.unroll(x[:2]), layer.unroll(x[2:])])
    torch.testing.assert_close(chunks, whole, rtol=1e-12, atol=1e-12)
    layer.zero_states(torch.tensor([True, False, True]))
    mixed = layer(x[0])
    assert torch.equal(mixed[[0, 2]], whole[0, [0, 2]])
    assert not torch.allclose(mixed[1], whole[0, 1])


def test_compiling_and_back_is_exact(layer: rnn.Layer) -> None:
    x = inputs()
    before = dict(layer.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    expected = layer.unroll(x)
    layer.zero_states()
    layer.TTcompile()
    with torch.no_grad():
        torch.testing.assert_close(layer.unroll(x), expected, rtol=0, atol=1e-6)
    saved = layer.state_dict()
    layer.TTdecompile()
    after = dict(layer.named_parameters())
    assert before.keys() == after.keys() == saved.keys()
    assert all(before[name] is after[name] for name in before)
    assert all(torch.equal(after[name], values[name]) for name in before)
    layer.zero_states()
    assert torch.equal(layer.unroll(x), expected)


def test_a_compiled_model_saves_loads_and_follows_the_dtype(name: str, small: Make) -> None:
    class Net(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = small(name)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    net, other, x = Net(), Net(), inputs()
    other.TTcompile()
    other.load_state_dict(net.state_dict())
    expected = net.double().unroll(x)
    torch.testing.assert_close(other.double().unroll(x), expected, rtol=0, atol=1e-6)
    assert other.get_states().keys() == net.get_states().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_inputs_dtype_comes_back_and_states_are_promoted(
    name: str, small: Make, dtype: torch.dtype
) -> None:
    layer, x = small(name), inputs(20, dtype=dtype)
    y = layer.unroll(x)
    promoted = torch.promote_types(dtype, torch.float32)
    assert y.dtype == dtype
    assert all(state.dtype == promoted for state in layer.get_states().values())
    expected = small(name).double()
    expected.load_state_dict(layer.state_dict())
    tolerance = 1e-6 if dtype == torch.float64 else torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected.unroll(x.double()), rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_in_sixteen_bits_stays_near_float64(
    name: str, small: Make, dtype: torch.dtype
) -> None:
    layer = small(name).to(dtype)
    exact = small(name).double()
    exact.load_state_dict(layer.state_dict())
    x = inputs(5, dtype=dtype)
    y = layer.unroll(x)
    assert y.dtype == dtype
    expected = exact.unroll(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)
    layer.double()
    assert all(state.dtype == torch.float64 for state in layer.get_states().values())
    assert layer(x[0].double()).dtype == torch.float64


def test_training_under_autocast_reaches_every_parameter(name: str, small: Make) -> None:
    layer = small(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.unroll(inputs(dtype=torch.float32)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in layer.parameters())


def _pickled(layer: rnn.Layer) -> Any:
    return pickle.loads(pickle.dumps(layer))


def _saved(layer: rnn.Layer) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled, _saved])
def test_copies_after_a_backward_pass_go_on_alike(
    layer: rnn.Layer, copied: Callable[[Any], Any]
) -> None:
    x = inputs(6)
    layer.unroll(x[:3]).sum().backward()
    twin = copied(layer)
    assert all(not state.requires_grad for state in twin.get_states().values())
    assert torch.equal(twin.unroll(x[3:]), layer.unroll(x[3:]))
    assert repr(twin) == repr(layer)


def test_torch_compile_takes_a_whole_step(layer: rnn.Layer, stepped: Stepped) -> None:
    x = inputs()
    expected = stepped(layer, x)
    states = layer.get_states()
    layer.zero_states()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(torch.stack([compiled(timestep) for timestep in x]), expected)
    for name, state in layer.get_states().items():
        assert torch.equal(state, states[name])


def test_func_grad_is_backward(layer: rnn.Layer) -> None:
    x = inputs()
    parameters = {f"layer.{name}": p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        layer.zero_states()
        value = functional_call(_Unrolled(layer), parameters, x).square().sum()
        layer.zero_states()
        return value

    gradients = grad(loss)(parameters)
    layer.unroll(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(gradients[f"layer.{name}"], p.grad, rtol=1e-12, atol=1e-12)


def test_vmap_over_parameters_is_the_loop(name: str, small: Make) -> None:
    x = inputs()
    layers = [_Unrolled(small(name).double()) for _ in range(3)]
    expected = torch.stack([module(x) for module in layers])
    parameters, buffers = stack_module_state(layers)
    base = _Unrolled(small(name).double())

    def run(parameters: dict[str, Tensor]) -> Any:
        y = functional_call(base, (parameters, buffers), x)
        base.layer.zero_states()
        return y

    y = vmap(run)(parameters)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(y[0], y[1])


@pytest.mark.parametrize("assign", [True, False])
def test_made_on_meta_and_filled_later(name: str, small: Make, assign: bool) -> None:
    filled, x = small(name), inputs(dtype=torch.float32)
    with torch.device("meta"):
        layer = small(name)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert repr(layer) == repr(filled)
    assert layer.unroll(x.to("meta")).shape == (4, 2, 4)
    layer.zero_states()
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(filled.state_dict(), assign=assign)
    assert torch.equal(layer.unroll(x), filled.unroll(x))


WEIGHTS = {"SelectiveSSM": "A_log", "Mamba": "A_log", "S4D": "C", "S5": "C", "LRU": "C_re"}


@pytest.mark.parametrize("how", ["weight_norm", "pruned"])
def test_weights_computed_from_others_are_those_weights(
    name: str, small: Make, stepped: Stepped, how: str
) -> None:
    layer, plain, x = small(name).double(), small(name).double(), inputs()
    plain.load_state_dict(layer.state_dict())
    weight = WEIGHTS.get(name, "weight_hh")
    if how == "pruned":
        prune.l1_unstructured(layer, weight, amount=0.5)
    else:
        parametrizations.weight_norm(layer, weight)
    with torch.no_grad():
        plain.get_parameter(weight).copy_(getattr(layer, weight))
    expected = plain.unroll(x)
    for run in (stepped, lambda layer, x: layer.unroll(x)):
        layer.zero_states()
        layer.zero_grad()
        y = run(layer, x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_an_empty_batch_passes(layer: rnn.Layer) -> None:
    assert layer.unroll(inputs(batch=0)).shape == (4, 0, 4)
    layer.zero_states()
    assert layer.unroll(inputs()).abs().sum() > 0


# ---------------------------------------------------------------------- messages

BAD = [
    ("in_features", 0, ValueError),
    ("in_features", 2.0, TypeError),
    ("in_features", True, TypeError),
    ("out_features", -1, ValueError),
    ("out_features", "4", TypeError),
    ("dim", 1.5, TypeError),
    ("dim", None, TypeError),
]
BAD_SSM = [
    ("state_size", 0, ValueError),
    ("state_size", 1.0, TypeError),
    ("dt_rank", 0, ValueError),
    ("dt_rank", "auto", TypeError),
]


def _refused(kind: type[rnn.Layer], argument: str, value: Any, error: type[Exception]) -> None:
    arguments = {"in_features": 3, "out_features": 4, argument: value}
    with pytest.raises(error) as caught:
        kind(**arguments)
    low = "" if argument == "dim" else " of at least 1"
    assert str(caught.value) == (
        f"{kind.__name__}: {argument} must be an integer{low}, got {value!r}"
    )


@pytest.mark.parametrize("kind", rnn.LAYERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("argument", "value", "error"), BAD)
def test_bad_arguments_are_named(
    kind: type[rnn.Layer], argument: str, value: Any, error: type[Exception]
) -> None:
    _refused(kind, argument, value, error)


@pytest.mark.parametrize(("argument", "value", "error"), BAD_SSM)
def test_bad_arguments_of_the_ssm_are_named(
    argument: str, value: Any, error: type[Exception]
) -> None:
    _refused(rnn.SelectiveSSM, argument, value, error)


@pytest.mark.parametrize("kind", rnn.LAYERS, ids=lambda kind: kind.__name__)
def test_each_has_a_constructor_of_its_own(kind: type[rnn.Layer]) -> None:
    signature = inspect.signature(kind)
    assert [*signature.parameters][:2] == ["in_features", "out_features"]
    assert signature.parameters["dim"].default == -1
    assert all(f"{name}: " in str(kind.__doc__) for name in signature.parameters)
    made = re.escape(f"{kind.__name__}.__init__() ")
    with pytest.raises(TypeError, match=f"^{made}got an unexpected keyword argument 'hidden'"):
        kind(3, 4, hidden=5)
    with pytest.raises(TypeError, match=f"^{made}missing 1 .*'out_features'$"):
        kind(3)


def test_bad_inputs_are_refused_and_leave_the_states_alone(layer: rnn.Layer) -> None:
    layer(inputs()[0])
    before = layer.get_states()
    with pytest.raises(TypeError, match=r"must be a floating-point tensor, got torch\.int64"):
        layer(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(tt.StateError, match=r"has 5 neurons at dim=-1, the layer has 3"):
        layer(torch.ones(2, 5, dtype=torch.float64))
    with pytest.raises(tt.StateError, match=r"standing state h(_re)? is \[2, .*zero_states\(\)"):
        layer(torch.ones(7, 3, dtype=torch.float64))
    assert all(layer.get_states()[name] is state for name, state in before.items())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (rnn.SimpleRNN(3, 4), "SimpleRNN(3, 4, dim=-1)"),
        (rnn.LSTM(3, 4, dim=1), "LSTM(3, 4, dim=1)"),
        (rnn.GRU(3, 4, -2), "GRU(3, 4, dim=-2)"),
        (rnn.SelectiveSSM(128, 64, 32), "SelectiveSSM(128, 64, 32, dt_rank=8, dim=-1)"),
        (rnn.S4D(8, 6, 4), "S4D(8, 6, d_state=4, discretization='zoh', dim=-1)"),
        (rnn.S5(8, 6, 4, 2), "S5(8, 6, d_state=4, blocks=2, discretization='zoh', dim=-1)"),
        (rnn.LRU(8, 6, 4, dim=1), "LRU(8, 6, d_state=4, dim=1)"),
        (rnn.Mamba(32, 6, 4), "Mamba(32, 6, d_state=4, d_conv=4, expand=2, dt_rank=2, dim=-1)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repr(layer: rnn.Layer, text: str) -> None:
    assert repr(layer) == text
