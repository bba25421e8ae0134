"""Another target language is a renderer, a launcher and a row: here NumPy, held to the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor
from tracetorch.engine.aside import RESETS
from tracetorch.engine.graph import CONST, INPUT, Node, ordered
from tracetorch.engine.kernel import Kernel
from tracetorch.engine.launch import BuildError, Launch
from tracetorch.engine.targets import TARGETS, Target

# the column of a table of operations
NUMPY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "rsub": "{1} - {0}",
    "neg": "-{0}",
    "gt": "{0} > {1}",
    "to_float": "np.where({0}, real(1), real(0))",
    "where": "np.where({0}, {1}, {2})",
    "nan_or_zero": "np.where({0} == {0}, real(0), {0})",
    "sigmoid": "1 / (1 + np.exp(-{0}))",
    "sigmoid_backward": "{0} * (1 - {1}) * {1}",
    "tanh": "np.tanh({0})",
    "tanh_backward": "{0} * (1 - {1} * {1})",
}


def render(kernel: Kernel) -> str:
    """A function of one timestep for each direction that the kernel goes."""
    traced, kind = kernel.traced, "float64" if kernel.real == torch.float64 else "float32"
    text = f"import numpy as np\nreal = np.{kind}\n{_function('forward', traced.forward)}"
    return text + (_function("backward", traced.backward) if kernel.backward else "")


def _function(name: str, outputs: Any) -> str:
    names: dict[Node, str] = {}
    lines = [f"def {name}(given):"]
    for node in ordered(outputs.values()):
        if node.op == INPUT:
            text = f"given[{node.label!r}]"
        elif node.op == CONST:
            text = f"real({node.label})"
        elif node.op in NUMPY:
            text = NUMPY[node.op].format(*(names[arg] for arg in node.args))
        else:
            raise BuildError(f"the toy target has no {node.op}")
        names[node] = f"v{len(names)}"
        lines.append(f"    {names[node]} = {text}")
    found = ", ".join(f"{label!r}: {names[node]}" for label, node in outputs.items())
    return "\n".join([*lines, f"    return {{{found}}}", ""])


LAUNCHED: list[bool] = []


def launcher(kernel: Kernel) -> Launch:
    names: dict[str, Any] = {}
    exec(render(kernel), names)

    def launch(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
        LAUNCHED.append(kernel.backward)
        found = zip(kernel.pointers, tensors, strict=True)
        at = {label: None if t is None else t.detach().numpy() for label, t in found}
        (_backward if kernel.backward else _forward)(kernel, names, at, sizes)

    return launch


def _forward(kernel: Kernel, code: Any, at: Any, sizes: Sequence[int]) -> None:
    steps, lanes = sizes[:2]
    fixed, states = _parameters(kernel, at, sizes), _states(kernel, at, lanes, "{}")
    x, y = (at[label].reshape(steps, lanes) for label in ("x", "y"))
    for t in range(steps):
        states = {name: _restarted(at, sizes, t, state) for name, state in states.items()}
        for name in kernel.remembered:
            if t % kernel.period == 0 and at[f"kept {name}"] is not None:
                at[f"kept {name}"].reshape(-1, lanes)[t // kernel.period] = states[name]
        new = code["forward"]({**fixed, **states, "x": x[t]})
        y[t] = new["y"]
        states = {name: new[f"new {name}"] for name in states}
        for name in kernel.recorded:
            at[f"every {name}"].reshape(steps, lanes)[t] = states[name]
    for name, state in states.items():
        at[f"new {name}"].reshape(lanes)[:] = state


def _backward(kernel: Kernel, code: Any, at: Any, sizes: Sequence[int]) -> None:
    steps, lanes, neurons, inner, *ranks, _ = sizes
    fixed, grads = _parameters(kernel, at, sizes), _states(kernel, at, lanes, "grad new {}")
    x, kept = at["x"].reshape(steps, lanes), kernel.remembered
    none = np.zeros((steps, lanes), x.dtype)
    grad_y = none if at["grad y"] is None else at["grad y"].reshape(steps, lanes)
    sums = {name: np.zeros(lanes, x.dtype) for name in kernel.traced.parameters}
    for first in reversed(range(0, steps, kernel.period)):
        begun = {n: at[f"kept {n}"].reshape(-1, lanes)[first // kernel.period] for n in kept}
        idle = {n: np.zeros(lanes, x.dtype) for n in kernel.traced.states if n not in kept}
        past, span = [{**idle, **begun}], range(first, min(first + kernel.period, steps))
        for t in span[:-1]:
            new = code["forward"]({**fixed, **past[-1], "x": x[t]})
            then = {name: new[f"new {name}"] for name in kernel.traced.states}
            past.append({n: _restarted(at, sizes, t + 1, state) for n, state in then.items()})
        for t, old in zip(reversed(span), reversed(past), strict=True):
            for name in kernel.recorded:
                if at[f"grad every {name}"] is not None:
                    grads[name] = grads[name] + at[f"grad every {name}"].reshape(steps, lanes)[t]
            given = {f"grad new {name}": grad for name, grad in grads.items()}
            found = code["backward"]({**fixed, **old, **given, "x": x[t], "grad y": grad_y[t]})
            grads = {name: found.get(f"grad {name}", none[0]) for name in grads}
            grads = {name: _restarted(at, sizes, t, grad) for name, grad in grads.items()}
            if "grad x" in kernel.wanted:
                at["grad x"].reshape(steps, lanes)[t] = found["grad x"]
            for name in sums:
                sums[name] = sums[name] + found.get(f"grad {name}", 0)
    for name, grad in grads.items():
        if f"grad {name}" in kernel.wanted:
            at[f"grad {name}"].reshape(lanes)[:] = grad
    for label in kernel.summed:
        name = label.removeprefix("grad ")
        rank = ranks[kernel.traced.parameters.index(name)]
        apart = sums[name].reshape(-1, neurons, inner).sum((0, 2))
        at[label].reshape(-1)[:] = apart if rank else apart.sum()


def _states(kernel: Kernel, at: Any, lanes: int, label: str) -> dict[str, Any]:
    kind = np.float64 if kernel.real == torch.float64 else np.float32
    found = {name: at[label.format(name)] for name in kernel.traced.states}
    return {n: np.zeros(lanes, kind) if s is None else s.reshape(lanes) for n, s in found.items()}


def _restarted(at: Any, sizes: Sequence[int], t: int, values: Any) -> Any:
    """Zeros in the lanes of samples that restart before a timestep."""
    if at[RESETS] is None:
        return values
    flags = np.repeat(at[RESETS].reshape(sizes[0], -1)[t], sizes[-1])
    return np.where(flags != 0, 0, values).astype(values.dtype)


def _parameters(kernel: Kernel, at: Any, sizes: Sequence[int]) -> dict[str, Any]:
    _, lanes, neurons, inner, *ranks, _ = sizes
    neuron = np.arange(lanes) // inner % neurons
    names = zip(kernel.traced.parameters, ranks, strict=True)
    return {name: at[name].reshape(-1)[neuron * rank] for name, rank in names}


def _no_scan(*_: object) -> NoReturn:
    raise BuildError("the toy target has no scans")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    row = Target(
        "numpy", (), render, _no_scan, launcher, _no_scan, _no_scan, lambda: None,
        also=lambda: ("cpu",),
    )  # fmt: skip
    monkeypatch.setitem(TARGETS, "numpy", row)
    LAUNCHED.clear()
    with tt.backends.use("numpy"):
        yield


class Gated(tt.Layer):
    """Two states of which each goes into the other, a scalar parameter, and neurons in between."""

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "gate")
        self.add_parameter("beta", torch.linspace(0.2, 0.9, num_neurons))
        self.add_parameter("gain", 0.7, rank=0)

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[dict[str, Tensor], Tensor]:
        gate = torch.sigmoid(p.gain * states.mem - x)
        mem = p.beta * states.mem + states.gate * x
        return {"mem": mem, "gate": gate}, torch.tanh(mem) * gate


LAYERS: dict[str, Callable[[int, int], tt.Layer]] = {
    "Trace": lambda n, dim: tt.testing.Trace(n, dim=dim),
    "AdaptiveLIF": lambda n, dim: tt.testing.AdaptiveLIF(n, dim=dim),
    "Gated": Gated,
}


@pytest.mark.parametrize("steps", [1, 5, 70])
@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("name", LAYERS)
def test_another_target_computes_the_steps_and_their_gradients(
    name: str, dim: int, steps: int
) -> None:
    found = []
    for backend in ("numpy", "eager"):
        layer = LAYERS[name](3, dim).double()
        x = torch.randn(steps, 2, 3, 3, generator=torch.Generator().manual_seed(1)).double()
        x.requires_grad_()
        with tt.backends.use(backend):
            layer.unroll(x[:2].detach())  # to begin with something
            layer.detach_states()
            y = layer.unroll(x)
        states = layer.get_states()
        (y.square().sum() + sum(state.sin().sum() for state in states.values())).backward()
        grads = {name: p.grad for name, p in layer.named_parameters()}
        found.append({"y": y, "grad x": x.grad, **states, **grads})
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert LAUNCHED == [False, False, True]


@pytest.mark.parametrize("name", LAYERS)
def test_another_target_passes_conformance(name: str) -> None:
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tt.testing.check_layer(lambda: LAYERS[name](3, -1).double(), x)
    assert {True, False} <= {*LAUNCHED}


def test_another_target_is_named_where_backends_are() -> None:
    assert tt.backends.status()["numpy"] == "ready"
    assert tt.backends.chosen() == "numpy"
    source = tt.testing.Trace(3).kernel_source(backend="numpy")
    assert "def forward(given):" in source


class Waving(tt.testing.Trace):
    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return super().step(states, torch.sin(x), p)


def test_what_another_target_lacks_is_an_error_that_says_so() -> None:
    with pytest.raises(tt.BackendError, match=r"Waving.*'numpy'.*the toy target has no sin"):
        Waving(3).unroll(torch.randn(4, 2, 3))
