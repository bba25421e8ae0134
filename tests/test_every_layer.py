"""Every layer of the library, and a user's own as its equal: alone, and inside a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from tracetorch import rnn, snn, testing

Build = Callable[..., tt.Layer]
MIXED = ["LIB", "DSRLITS", "LIEMA", "LSTM", "SelectiveSSM", "AdaptiveLIF", "the layer of the docs"]


class Net(tt.Model):
    """A projection, then the layers, one of them where torch itself does not look."""

    def __init__(self, *layers: tt.Layer) -> None:
        super().__init__()
        self.project = nn.Linear(3, 4)
        self.layers = nn.ModuleList(layers[:-1])
        self.hidden = {"last": [layers[-1]]}

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        for layer in (*self.layers, *self.hidden["last"]):
            x = layer(x)
        return x


class Visible(tt.Model):
    """One layer that torch knows of, run over a whole sequence from fresh states."""

    def __init__(self, layer: tt.Layer) -> None:
        super().__init__()
        self.project = nn.Linear(3, 4)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.zero_states()
        y = self.layer.unroll(self.project(x))
        self.zero_states()
        return y


def inputs(steps: int = 6, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return 1.5 * torch.randn(steps, 2, 3, dtype=dtype)


def stepped(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([model(timestep) for timestep in x])


# ------------------------------------------------------------------ alone


def test_the_forty_are_here(build: Build) -> None:
    assert len({*snn.LAYERS, *rnn.LAYERS}) == 40
    for kind in (*snn.LAYERS, *rnn.LAYERS):
        assert type(build(kind.__name__)) is kind


@pytest.mark.parametrize("holds", testing.PROPERTIES, ids=lambda p: p.__name__)
def test_every_property_of_the_contract(name: str, build: Build, holds: testing.Property) -> None:
    holds(lambda: build(name), 1.5 * torch.randn(6, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("name", ["DSRLITS", "LSTM", "SelectiveSSM", "the layer of the docs"])
def test_the_contract_holds_for_images_channels_first(name: str, build: Build) -> None:
    x = 1.5 * torch.randn(6, 2, 4, 3, 2, dtype=torch.float64)
    testing.check_layer(lambda: build(name, dim=-3), x)


@pytest.mark.parametrize("name", ["AdaptiveLIF", "the layer of the docs"])
def test_autocast_leaves_a_users_layer_in_full_precision(name: str, build: Build) -> None:
    layer, project = build(name), nn.Linear(3, 4)
    twin, x = copy.deepcopy(layer), inputs(20, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = project(x)
        y = stepped(layer, rounded)
    assert rounded.dtype == y.dtype == torch.bfloat16
    assert torch.equal(y, stepped(twin, rounded))
    for state, other in zip(layer.get_states().values(), twin.get_states().values(), strict=True):
        assert state.dtype == torch.float32
        assert torch.equal(state, other)


# ------------------------------------------------------------------ compiled for inference


def _train(model: tt.Model, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    model.zero_states()
    optimizer.zero_grad()
    model.unroll(x).square().mean().backward()
    optimizer.step()


def test_an_excursion_into_inference_leaves_no_trace_in_training(name: str, build: Build) -> None:
    """The optimizer, momentum included, goes on as if nothing had happened in between."""
    model = Net(build("LIEMA"), build(name))
    twin, x = copy.deepcopy(model), inputs(dtype=torch.float32)
    pair = []
    for net in (model, twin):
        parameters = [p for _, layer in net.named_layers() for p in layer.parameters()]
        pair.append((net, torch.optim.Adam([*net.project.parameters(), *parameters], lr=0.05)))
    for net, optimizer in pair:
        _train(net, optimizer, x)
        net.zero_states()
    expected = stepped(model, x)
    twin.TTcompile()
    torch.testing.assert_close(stepped(twin, x), expected, rtol=1e-6, atol=1e-6)
    twin.TTdecompile()
    for net, optimizer in pair:
        _train(net, optimizer, x)
    parameters, others = (
        {f"{n}.{key}": p for n, layer in net.named_layers() for key, p in layer.named_parameters()}
        for net in (model, twin)
    )
    assert parameters.keys() == others.keys()
    assert all(torch.equal(others[key], p) for key, p in parameters.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("reader_compiled", [False, True], ids=["into training", "into inference"])
@pytest.mark.parametrize("writer_compiled", [False, True], ids=["from training", "from inference"])
def test_states_are_saved_and_loaded_in_either_form(
    name: str,
    build: Build,
    tmp_path: Path,
    writer_compiled: bool,
    reader_compiled: bool,
    suffix: str,
) -> None:
    writer, x = Net(build("LIB"), build(name)).double(), inputs()
    reader = copy.deepcopy(writer)
    for model, compiles in ((writer, writer_compiled), (reader, reader_compiled)):
        if compiles:
            model.TTcompile()
    stepped(writer, x[:3])
    path = tmp_path / f"states{suffix}"
    writer.save_states(path)
    reader.load_states(path)
    for key, state in writer.get_states().items():
        assert torch.equal(reader.get_states()[key], state)
    rest = stepped(writer, x[3:])
    torch.testing.assert_close(stepped(reader, x[3:]), rest, rtol=1e-12, atol=1e-12)


def test_weights_are_saved_and_loaded_while_compiled(name: str, build: Build) -> None:
    model, other, x = Visible(build(name)), Visible(build(name)), inputs(dtype=torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9).add_(0.01)
    for net in (model, other):
        net.TTcompile()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


# ------------------------------------------------------------------ torch.compile


@pytest.fixture
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("known", [False, True], ids=["fresh", "run before"])
@pytest.mark.parametrize("unrolled", [False, True], ids=["stepping", "unrolling"])
def test_torch_compile_takes_a_model_of_all_kinds_in_one_graph(
    build: Build, unrolled: bool, known: bool
) -> None:
    model = Net(*(build(name) for name in MIXED)).double()
    x, results = inputs(3), []
    if known:
        model.unroll(x)
        model.zero_states()
    for compiles in (False, True):
        net, own = copy.deepcopy(model), x.clone().requires_grad_()
        run: Callable[[Tensor], Tensor] = net.unroll if unrolled else net
        if compiles:
            run = torch.compile(run, fullgraph=True, backend="aot_eager")
        y = run(own) if unrolled else torch.stack([run(timestep) for timestep in own])
        y.square().sum().backward()
        found = {"output": y.detach(), "input": own.grad, **net.get_states()}
        for key, layer in net.named_layers():
            found.update((f"{key}.{p}", value.grad) for p, value in layer.named_parameters())
        results.append(found)
    expected, got = results
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value is not None, key
        torch.testing.assert_close(got[key], value, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("known", [False, True], ids=["fresh", "unrolled before"])
@pytest.mark.parametrize("kind", ["LIB", "DSRLITS", "LI", "AdaptiveLIF"])
def test_a_compiled_sequence_is_one_operation(build: Build, kind: str, known: bool) -> None:
    layer, found = build(kind), []

    def counting(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.append([str(n.target) for n in graph.graph.nodes if "tracetorch" in str(n.target)])
        return graph

    for whole, width in ((Net(layer), 3), (layer, 4)):
        given = torch.randn(40, 2, width)
        layer.zero_states()
        expected = copy.deepcopy(whole).unroll(given)
        if known:
            whole.unroll(given)
            layer.zero_states()
        y = torch.compile(whole.unroll, fullgraph=True, backend=counting)(given)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert [len(names) for names in found] == [1, 1]


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("resets", [False, True], ids=["", "restarted"])
def test_final_states_hold_no_more_memory_than_theirs(
    name: str, build: Build, resets: bool
) -> None:
    layer, x = build(name), torch.randn(300, 2, 4)
    at = torch.zeros(300, 2, dtype=torch.bool)
    at[20] = True
    for grads in (False, True):
        layer.zero_states()
        with torch.set_grad_enabled(grads):
            layer.unroll(x, resets=at if resets else None)
        states = [state.detach() for state in layer.get_states().values()]
        memory = {s.untyped_storage().data_ptr(): s.untyped_storage().nbytes() for s in states}
        assert sum(memory.values()) <= 2 * sum(state.nbytes for state in states) + 64


# ------------------------------------------------------------------ torch.func


def _gradients(model: Visible, x: Tensor) -> dict[str, Tensor]:
    loss = (model(x) - 0.4).square().mean()
    names, values = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


def test_func_grad_and_vmap_over_parameters_are_the_loop(name: str, build: Build) -> None:
    """Gradients of three models at once are those of one after the other."""
    models = [Visible(build(name)).double() for _ in range(3)]
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    x, base = inputs(), copy.deepcopy(models[0])
    parameters, buffers = stack_module_state(models)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return (functional_call(base, (parameters, buffers), x) - 0.4).square().mean()

    together = vmap(grad(loss))(parameters)
    for index, model in enumerate(models):
        own = {key: value[index].detach() for key, value in parameters.items()}
        alone = grad(loss)(own)
        gradients = _gradients(model, x)
        assert all(gradients[f"project.{key}"].any() for key in ("weight", "bias"))
        for key, expected in gradients.items():
            for how, got in (("grad", alone[key]), ("vmap", together[key][index])):
                torch.testing.assert_close(
                    got, expected, rtol=1e-10, atol=1e-12, msg=f"{how} of {key}"
                )


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("whole", [False, True], ids=["timestep", "sequence"])
def test_gradients_per_sample_compile(name: str, build: Build, whole: bool) -> None:
    layer = build(name).double()
    x = torch.randn(5, 3, 2, 4, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        layer.zero_states()
        y = layer.unroll(x) if whole else layer(x[0])
        layer.zero_states()
        return y.square().sum()

    per_sample = vmap(grad(loss), in_dims=1)
    torch._dynamo.reset()
    compiled = torch.compile(per_sample, backend="eager")
    torch.testing.assert_close(compiled(x), per_sample(x), rtol=1e-10, atol=1e-10)
