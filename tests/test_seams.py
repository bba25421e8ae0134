"""Where packages meet: what snn, rnn and plot use of core, and a layer's own ``sequence``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import engine

# ---------------------------------------------------------------------- names of core

PACKAGES = Path(__file__).parents[1] / "packages"
SOURCES = {
    str(path.relative_to(PACKAGES)): ast.parse(path.read_text(encoding="utf-8"))
    for name in ("snn", "rnn", "plot")
    for path in sorted((PACKAGES / f"tracetorch-{name}" / "src").rglob("*.py*"))
    if path.suffix in (".py", ".pyi")
}
OWN = ("tracetorch.snn", "tracetorch.rnn", "tracetorch.plot")


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name (``""`` for the module itself) of all that is imported, anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def of_core(module: str) -> bool:
    root = module.partition(".")[0]
    return root == "tracetorch" and not module.startswith(OWN)


def defined(tree: ast.AST) -> set[str]:
    """Private names that a file makes itself: functions, classes, attributes, variables."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in found if private(name)}


CORE = PACKAGES / "tracetorch-core" / "src" / "tracetorch"
PRIVATE_IN_CORE = set().union(
    *(defined(ast.parse(path.read_text(encoding="utf-8"))) for path in CORE.rglob("*.py"))
)


def test_all_sources_are_read() -> None:
    assert {path.partition("/")[0] for path in SOURCES} == {
        "tracetorch-snn", "tracetorch-rnn", "tracetorch-plot",
    }  # fmt: skip
    assert len(SOURCES) > 12
    assert "_effective" in PRIVATE_IN_CORE
    assert sum(of_core(module) for tree in SOURCES.values() for module, _ in imported(tree)) > 10


@pytest.mark.parametrize("path", SOURCES)
def test_no_private_name_of_core_is_imported(path: str) -> None:
    for module, name in imported(SOURCES[path]):
        if of_core(module):
            parts = [*module.split("."), name]
            assert not any(map(private, parts)), f"{path} imports {name} of {module}"


@pytest.mark.parametrize("path", SOURCES)
def test_no_private_attribute_of_core_is_used(path: str) -> None:
    own = defined(SOURCES[path])
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "setattr", "hasattr", "delattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            name = str(node.args[1].value)
        else:
            continue
        if private(name) and name in PRIVATE_IN_CORE:
            assert name in own, f"{path}:{node.lineno} uses {name}"


@pytest.mark.parametrize("path", SOURCES)
def test_of_the_engine_there_is_what_it_exports(path: str) -> None:
    for module, name in imported(SOURCES[path]):
        assert not module.startswith("tracetorch.engine."), f"{path} imports {module}"
        if module == "tracetorch.engine":
            assert name in engine.__all__, f"{path} imports {name!r} of the engine"
        assert (module, name) != ("tracetorch", "engine"), f"{path} imports all of the engine"
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(".engine"):
            assert node.attr in engine.__all__, f"{path}:{node.lineno}"


# ---------------------------------------------------------------------- a sequence of one's own

CALLED: list[tuple[int, ...]] = []


class Integrator(tt.Layer):
    """Adds its input up: a whole sequence at once is a cumulative sum."""

    def __init__(self, num_neurons: int, gain: float = 0.5, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "last")
        self.add_parameter("gain", gain, constraint=tt.constraints.softplus)

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = states.mem + p.gain * x
        return {"mem": mem, "last": x}, mem - states.last

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        CALLED.append(tuple(x.shape))
        mem = states.mem + (p.gain * x).cumsum(0)
        late = torch.cat([states.last[None], x[:-1]])
        return {"mem": mem[-1], "last": x[-1]}, mem - late


class Net(tt.Model):
    def __init__(self, layer: tt.Layer) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.layer = nn.Linear(4, 3), layer
        self.last = tt.testing.Trace(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.layer(self.linear(x))))
        return y


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLED.clear()


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model(timestep) for timestep in x])


def measured(model: Any, x: Tensor, run: Callable[[Any, Tensor], Tensor]) -> dict[str, Tensor]:
    """Outputs, final states and gradients, from whatever states there are."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = run(model, x)
    states = model.get_states()
    (y.sin().sum() + sum(state.square().sum() for state in states.values())).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"y": y, "grad x": x.grad, **states, **grads}


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=name)


def unrolled(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.unroll(x)
    return y


@pytest.mark.parametrize(
    ("shape", "dim", "seen"),
    [
        ((5, 2, 3), -1, (5, 2, 3)),
        ((5, 3), -1, (5, 3)),
        ((5, 2, 3, 4), 1, (5, 2, 4, 3)),
        ((5, 3, 2), 0, (5, 2, 3)),
        ((1, 2, 3), -1, (1, 2, 3)),
    ],
)
def test_a_sequence_goes_through_it_with_neurons_last(
    shape: tuple[int, ...], dim: int, seen: tuple[int, ...]
) -> None:
    layer, reference = (Integrator(3, dim=dim).double() for _ in range(2))
    for seed in (1, 2):  # the second goes on from the states of the first
        got = measured(layer, inputs(*shape, seed=seed), unrolled)
        same(got, measured(reference, inputs(*shape, seed=seed), looped))
        for each in (layer, reference):
            each.detach_states()
    assert [seen, seen] == CALLED


def test_it_keeps_the_contract_of_every_layer() -> None:
    tt.testing.check_layer(lambda: Integrator(3).double(), inputs(6, 2, 3), smooth=True)
    assert CALLED


@pytest.mark.parametrize("fold", [None, True])
def test_within_a_folded_model_it_has_all_timesteps(fold: bool | None) -> None:
    model, reference = (Net(Integrator(3)).double() for _ in range(2))
    got = measured(model, inputs(5, 2, 4), lambda m, x: m.unroll(x, fold=fold))
    assert CALLED == [(5, 2, 3)]
    same(got, measured(reference, inputs(5, 2, 4), looped))
    assert len(CALLED) == 1
    assert tt.check_unroll(model, inputs(5, 2, 4)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 2},
        {"chunk_size": 2, "recompute": True},
        {"fold": False},
        {"time_dim": 1},
    ],
    ids=str,
)
def test_ways_of_unrolling_a_model_with_it_are_the_loop(options: dict[str, Any]) -> None:
    model, reference = (Net(Integrator(3)).double() for _ in range(2))
    dim = options.get("time_dim", 0)

    def run(model: Any, x: Tensor) -> Tensor:
        y: Tensor = model.unroll(x.movedim(0, dim), **options).movedim(dim, 0)
        return y

    same(measured(model, inputs(5, 2, 4), run), measured(reference, inputs(5, 2, 4), looped))
    assert bool(CALLED) == ("fold" not in options)


def test_a_sample_that_ends_keeps_its_state() -> None:
    model, x = Net(Integrator(3)).double(), inputs(5, 2, 4)
    y = model.unroll(x, lengths=torch.tensor([5, 2]))
    alone = Net(Integrator(3)).double()
    torch.testing.assert_close(y[:2, 1:], looped(alone, x[:2, 1:]))
    assert not y[2:, 1].any()
    torch.testing.assert_close(model.layer.mem[1:], alone.layer.mem)


def _hooked(layer: Integrator) -> None:
    layer.register_forward_hook(lambda *call: None)


def _hooked_inside(layer: Integrator) -> None:
    layer.gate = nn.Identity()
    layer.gate.register_forward_hook(lambda *call: None)


def _forward(layer: Integrator) -> None:
    plain = layer.forward
    layer.forward = lambda x: plain(x)  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [_hooked, _hooked_inside, _forward])
def test_where_every_timestep_counts_it_is_not_asked(change: Callable[[Any], None]) -> None:
    layer = Integrator(3).double()
    change(layer)
    same(
        measured(layer, inputs(5, 2, 3), unrolled),
        measured(Integrator(3).double(), inputs(5, 2, 3), looped),
    )
    assert CALLED == []


def test_where_steps_are_chosen_it_is_not_asked() -> None:
    with tt.backends.use("eager"):
        Integrator(3).unroll(torch.ones(5, 2, 3))
    torch.func.vmap(Integrator(3).unroll)(torch.ones(4, 5, 2, 3))
    assert CALLED == []


# ---------------------------------------------------------------------- subclasses


class Doubling(Integrator):
    """Another step: its base's sequence is another layer's."""

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = super().step(states, x, p)
        return new, 2 * y


class Negating(Integrator):
    """Both anew."""

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = super().step(states, x, p)
        return new, -y

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = super().sequence(states, x, p)
        return new, -y


class Otherwise(Integrator):
    """Another sequence of the same steps."""

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        CALLED.append((0,))
        return super().sequence(states, x, p)


class Named(Integrator):
    """Nothing of either."""


class Halving(Doubling):
    """A sequence again, on top of a step without one."""

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        new, y = Integrator.sequence(self, states, x, p)
        return new, 2 * y


class Mixed(tt.testing.Trace):
    """A step that comes from a class beside the one with a sequence."""

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        CALLED.append(tuple(x.shape))
        return None


class Declining(Integrator):
    """Takes short sequences alone."""

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        found = super().sequence(states, x, p)
        return found if len(x) < 4 else None


@pytest.mark.parametrize(
    ("kind", "calls"),
    [(Doubling, 0), (Negating, 1), (Otherwise, 2), (Named, 1), (Halving, 1), (Mixed, 1)],
)
def test_a_sequence_belongs_to_the_step_that_it_was_written_for(
    kind: type[tt.Layer], calls: int
) -> None:
    layer, reference = kind(3).double(), kind(3).double()
    got = measured(layer, inputs(5, 2, 3), unrolled)
    assert len(CALLED) == calls
    same(got, measured(reference, inputs(5, 2, 3), looped))


def test_it_may_leave_a_sequence_to_the_steps() -> None:
    layer, reference = Declining(3).double(), Declining(3).double()
    for steps in (3, 5):
        x = inputs(steps, 2, 3, seed=steps)
        for each in (layer, reference):
            each.detach_states()
        same(measured(layer, x, unrolled), measured(reference, x, looped))
    assert CALLED == [(3, 2, 3), (5, 2, 3)]


# ---------------------------------------------------------------------- what it returns


class Returning(tt.Layer):
    """Its sequence returns what it is told to."""

    def __init__(self, found: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(3)
        self.add_state("mem")
        self.found = found

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return {"mem": x}, x

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        return self.found(x[-1], x)


WRONG: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "no states": (lambda mem, y: ({}, y), r"states \['mem'\], got \[\]"),
    "another state": (lambda mem, y: ({"men": mem}, y), r"states \['mem'\], got \['men'\]"),
    "one too many": (lambda mem, y: ({"mem": mem, "a": y}, y), r"got \['a', 'mem'\]"),
    "all timesteps": (
        lambda mem, y: ({"mem": y}, y),
        r"mem in its own shape \[2, 3\].*\[5, 2, 3\]",
    ),
    "another size": (lambda mem, y: ({"mem": mem[..., :1]}, y), r"mem in its own shape \[2, 3\]"),
    "no time": (lambda mem, y: ({"mem": mem}, y[-1]), r"outputs \[T, …, size\].*got \[2, 3\]"),
    "less time": (lambda mem, y: ({"mem": mem}, y[1:]), r"outputs \[T, …, size\].*got \[4, 2, 3\]"),
    "other samples": (lambda mem, y: ({"mem": mem}, y[:, :1]), r"outputs .*got \[5, 1, 3\]"),
    "no output": (lambda mem, y: {"mem": mem}, "sequence must return"),
    "the other way round": (lambda mem, y: (y, {"mem": mem}), "sequence must return"),
    "a list": (lambda mem, y: ({"mem": mem}, [*y]), "sequence must return"),
    "no tensor": (lambda mem, y: ({"mem": None}, y), "sequence must return"),
    "a number": (lambda mem, y: 1.0, "sequence must return"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a model"])
def test_what_is_no_sequence_is_an_error_that_names_it(name: str, inside: bool) -> None:
    found, says = WRONG[name]
    layer = Returning(found)
    layer(torch.ones(2, 3))
    run: Any = layer.unroll
    before = layer.get_states()
    if inside:
        model = Net(layer)
        run = lambda x: model.unroll(torch.ones(5, 2, 4))  # noqa: E731
    place = "^layer 'layer', " if inside else "^"
    with pytest.raises(tt.StateError, match=rf"{place}Returning\(3, dim=-1\): .*{says}"):
        run(torch.ones(5, 2, 3))
    assert layer.mem is before["mem"]


def test_an_error_in_it_leaves_the_states() -> None:
    def fails(mem: Tensor, y: Tensor) -> Any:
        raise ArithmeticError("of its own")

    layer = Returning(fails)
    layer(torch.ones(2, 3))
    before = layer.mem
    with pytest.raises(ArithmeticError, match="of its own"):
        layer.unroll(torch.ones(5, 2, 3))
    assert layer.mem is before


@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_it_returns_may_be_parts_of_one_another(requires_grad: bool) -> None:
    """The input itself, and views of it: who writes into one of them changes no other."""
    layer, x = Returning(lambda mem, y: ({"mem": mem}, y)), torch.randn(5, 2, 3)
    mine = x.clone().requires_grad_(requires_grad)
    y = layer.unroll(mine)
    with torch.no_grad():
        y.fill_(7)
        assert torch.equal(mine, x)
        assert torch.equal(layer.mem, x[-1])
        mine.fill_(8)
        assert torch.equal(layer.mem, x[-1])
        assert torch.equal(y, torch.full_like(y, 7))


def test_a_state_that_is_a_part_of_the_output_is_kept_apart() -> None:
    class Summing(Integrator):
        """As in the documentation: the last output is the state."""

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            mem = states.mem + p.gain * x
            return {"mem": mem, "last": x}, mem

        def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
            mem = states.mem + (p.gain * x).cumsum(0)
            return {"mem": mem[-1], "last": x[-1]}, mem

    for layer in (Integrator(3), Summing(3)):
        x = torch.randn(5, 2, 3)
        with torch.no_grad():
            y = layer.unroll(x)
            before = {name: state.clone() for name, state in layer.get_states().items()}
            y.fill_(7)
            x.fill_(8)
        for name, state in layer.get_states().items():
            assert torch.equal(state, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_the_states_type_and_gives_the_inputs(dtype: torch.dtype) -> None:
    layer, seen = Integrator(3), []

    class Typed(Integrator):
        def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
            seen.extend([x.dtype, states.mem.dtype, p.gain.dtype])
            return super().sequence(states, x, p)

    typed, x = Typed(3), inputs(5, 2, 3).to(dtype)
    y = typed.unroll(x)
    assert seen == [torch.float32] * 3
    assert y.dtype == dtype
    torch.testing.assert_close(y, looped(layer, x))
    torch.testing.assert_close(typed.mem, layer.mem)


def test_random_numbers_of_a_layer_with_it_go_on() -> None:
    class Noisy(Integrator):
        """Draws in its steps; has a way of its own where it need not draw."""

        def __init__(self) -> None:
            super().__init__(3)
            self.uniform = tt.Random()

        def step(self, states: Any, x: Tensor, p: Any) -> Any:
            new, y = super().step(states, x, p)
            return new, y + self.uniform(x)

        def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
            return super().sequence(states, x, p) if len(x) < 4 else None

    layer, x = Noisy().double(), inputs(5, 2, 3)
    layer(x[0])
    seed, count = layer.random.tolist()
    layer.unroll(x[:3])  # by its own way: the timesteps count
    assert layer.random.tolist() == [seed, count + 3]
    other = Noisy().double()
    other.set_states(layer.get_states())
    torch.testing.assert_close(layer.unroll(x), looped(other, x))


def test_constants_of_a_compiled_layer_reach_it() -> None:
    layer, x = Integrator(3).double(), inputs(5, 2, 3).requires_grad_()
    y = layer.unroll(x)
    layer.zero_states()
    layer.TTcompile()
    torch.testing.assert_close(layer.unroll(x), y)
    layer.unroll(x).sum().backward()
    assert layer.raw_gain.grad is None
    assert x.grad is not None


# ---------------------------------------------------------------------- what it must not do


class Writing(Integrator):
    """Computes in place."""

    def __init__(self, where: str) -> None:
        super().__init__(3)
        self.where = where

    def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
        found = super().sequence(states, x, p)
        (x if self.where == "x" else states.mem).add_(1.0)
        return found


@pytest.mark.parametrize("where", ["x", "mem"])
@torch.no_grad()
def test_it_must_not_write_into_what_it_was_given(where: str) -> None:
    layer = Writing(where)
    layer(torch.ones(2, 3))
    with pytest.raises(tt.StateError, match=rf"sequence writes into {where} in place; it must"):
        layer.unroll(torch.ones(5, 2, 3))


def test_where_it_does_not_serve_the_kernel_of_the_step_does() -> None:
    for layer, x in (
        (Doubling(3), inputs(5, 2, 3)),
        (Declining(3), inputs(5, 2, 3)),
    ):
        found = measured(layer.double(), x, unrolled)
        layer.zero_states()
        same(found, measured(layer, x, looped))
        assert tt.backends.status(layer) == {"": "ready"}
        with tt.backends.use("cpp"):
            layer.zero_states()
            layer.unroll(x)
    layer = Integrator(3)
    with tt.record(layer, "mem") as rec, tt.backends.use("cpp"):
        layer.unroll(torch.ones(4, 2, 3))
    reference = Integrator(3)
    mems = [(reference(torch.ones(2, 3)), reference.mem)[1] for _ in range(4)]
    assert torch.equal(rec["mem"], torch.stack(mems).detach())
