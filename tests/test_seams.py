"""What other packages use of core is public; a layer's own way through sequences is one method."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
import tracetorch.engine
from torch import Tensor

PACKAGES = Path(__file__).parents[1] / "packages"
SOURCES = [
    path
    for name in ("snn", "rnn", "plot")
    for path in sorted((PACKAGES / f"tracetorch-{name}" / "src").rglob("*.py"))
]


def of_core(module: str) -> bool:
    root, *rest = module.split(".")
    return root == "tracetorch" and rest[:1] not in (["snn"], ["rnn"], ["plot"])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_other_packages_use_what_is_public_of_core(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and of_core(node.module or ""):
            names = [alias.name for alias in node.names]
            taken |= {alias.asname or alias.name for alias in node.names}
            whole = [*(node.module or "").split("."), *names]
            if node.module == "tracetorch.engine":
                assert set(names) <= {*tracetorch.engine.__all__}
            else:
                assert "engine" not in whole
        elif isinstance(node, ast.Import):
            whole = [part for alias in node.names for part in alias.name.split(".")]
            taken |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            assert "engine" not in whole
        else:
            continue
        assert not [part for part in whole if part.startswith("_") and part != "__future__"]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        if node.attr.startswith("_"):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            assert not isinstance(owner, ast.Name) or owner.id not in taken, node.attr
            assert not hasattr(tt.Layer(1), node.attr), node.attr


# ---------------------------------------------------------------------- a way of one's own


ASKED: list[tuple[int, ...]] = []


@pytest.fixture(autouse=True)
def _nothing_asked_yet() -> None:
    ASKED.clear()


class Integrator(tt.Layer):
    """A membrane that never leaks: over a sequence, a sum."""

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem")
        self.add_parameter("gain", torch.linspace(0.5, 2.0, num_neurons))

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        mem = states.mem + p.gain * x
        return {"mem": mem}, mem

    def sequence(
        self, states: Any, x: Tensor, p: Any
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        ASKED.append(tuple(x.shape))
        mem = states.mem + (p.gain * x).cumsum(0)
        return {"mem": mem[-1]}, mem


def sample(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def through(layer: Any, x: Tensor, unroll: bool) -> dict[str, Tensor]:
    """Outputs, final state and gradients of two sequences, the second from the first's state."""
    x = x.clone().requires_grad_()
    parts = x.chunk(2)
    if unroll:
        y = torch.cat([layer.unroll(part) for part in parts])
    else:
        y = torch.stack([layer(x_t) for x_t in x])
    (y.square().sum() + layer.mem.sum()).backward()
    return {"y": y, "mem": layer.mem, "grad x": x.grad, "grad gain": layer.raw_gain.grad}


@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_sequences_go_a_way_of_the_layers_own_and_timesteps_do_not(dim: int) -> None:
    x = sample(6, 3, 3, 3)
    one, other = Integrator(3, dim).double(), Integrator(3, dim).double()
    torch.testing.assert_close(through(one, x, True), through(other, x, False))
    assert ASKED == [(3, 3, 3, 3)] * 2  # neurons last, and only where sequences are


def test_it_is_gone_within_a_folded_model_too() -> None:
    class Net(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.sum = torch.nn.Linear(3, 3), Integrator(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.sum(self.linear(x))
            return y

    net, x = Net().double(), sample(5, 2, 3)
    y = net.unroll(x, fold=True)
    assert ASKED == [(5, 2, 3)]
    net.zero_states()
    torch.testing.assert_close(y, torch.stack([net(x_t) for x_t in x]))
    assert tt.check_unroll(net, x) is None


def test_a_subclass_with_another_step_does_not_use_the_sequence_of_its_base() -> None:
    class Doubled(Integrator):
        def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
            return super().step(states, 2 * x, p)

    layer, x = Doubled(3).double(), sample(5, 2, 3)
    y = layer.unroll(x)
    assert ASKED == []
    layer.zero_states()
    torch.testing.assert_close(y, torch.stack([layer(x_t) for x_t in x]))
    with tt.backends.use("cpp"), pytest.raises(tt.BackendError, match="Doubled has its own step"):
        layer.unroll(x)


def test_none_is_stepped_and_eager_does_not_ask() -> None:
    class Refusing(Integrator):
        def sequence(self, states: Any, x: Tensor, p: Any) -> None:
            ASKED.append(tuple(x.shape))

    x, expected = sample(5, 2, 3), Integrator(3).double()
    layer = Refusing(3).double()
    torch.testing.assert_close(layer.unroll(x), expected.unroll(x))
    assert ASKED == [(5, 2, 3)] * 2
    torch.testing.assert_close(layer.mem, expected.mem)
    with tt.backends.use("eager"):
        layer.unroll(x)
    assert len(ASKED) == 2


WRONG: dict[str, Any] = {
    "names": (lambda y: ({"men": y[-1]}, y), r"must return the states \['mem'\], got \['men'\]"),
    "state": (lambda y: ({"mem": y}, y), r"must return mem in its own shape \[2, 3\]"),
    "outputs": (lambda y: ({"mem": y[-1]}, y[-1]), r"must return outputs \[T, …, size\]"),
    "steps": (lambda y: ({"mem": y[-1]}, y[1:]), r"must return outputs \[T, …, size\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sequence_that_is_none_is_an_error_and_changes_nothing(name: str) -> None:
    made, says = WRONG[name]

    class Broken(Integrator):
        def sequence(self, states: Any, x: Tensor, p: Any) -> Any:
            return made(states.mem + x.cumsum(0))

    layer = Broken(3).double()
    layer(sample(2, 3))
    before = layer.mem
    with pytest.raises(tt.StateError, match=rf"^Broken\(.*sequence {says}"):
        layer.unroll(sample(5, 2, 3))
    assert layer.mem is before
