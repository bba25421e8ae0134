"""Three neurons as a user would write them, through the engine: fused = eager = NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.effective import promoted
from tracetorch.engine.serving import programs

PERIOD = 16  # timesteps between kept states; 32 where two states or fewer are kept


def spike(u: Tensor, slope: float = 4.0) -> Tensor:
    """1 above 0, with the derivative of a sigmoid."""
    p = torch.sigmoid(slope * u)
    return (u > 0).to(u.dtype) + (p - p.detach())


class Adaptive(tt.Layer):
    """A spike raises the threshold, which relaxes."""

    def __init__(self, num_neurons: int, rank: int = 1, dim: int = -1, learn: bool = True) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "raised")
        self.add_parameter("beta", 0.9, rank=rank, constraint=tt.constraints.sigmoid)
        self.add_parameter("rho", 0.8, constraint=tt.constraints.sigmoid, learn=learn)
        self.add_parameter("jump", 0.4, rank=rank, constraint=tt.constraints.softplus)

    def fire(self, u: Tensor) -> Tensor:
        return spike(u)

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        mem = p.beta * states.mem + x
        s = self.fire(mem - 1 - states.raised)
        return {"mem": mem - s, "raised": p.rho * states.raised + p.jump * s}, s


class Refractory(tt.Layer):
    """After a spike the neuron counts down, deaf and silent."""

    def __init__(self, num_neurons: int, rank: int = 1, dim: int = -1, learn: bool = True) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("mem", "left")
        self.add_parameter("beta", 0.8, rank=rank, constraint=tt.constraints.sigmoid)
        self.add_parameter("threshold", 0.7, rank=rank, learn=learn)
        self.pause = 3

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        ready = (states.left <= 0).to(x.dtype)
        mem = p.beta * states.mem + ready * x
        s = ready * spike(mem - p.threshold)
        left = (states.left - 1).clamp(min=0) + self.pause * s.detach()
        return {"mem": mem - s * p.threshold, "left": left}, s


class Izhikevich(tt.Layer):
    """Quadratic membrane (mV) and recovery; half a millisecond a timestep. Izhikevich, 2003."""

    def __init__(self, num_neurons: int, rank: int = 1, dim: int = -1, learn: bool = True) -> None:
        super().__init__(num_neurons, dim)
        self.add_state("v", "u")
        for name, value in (("a", 0.02), ("b", 0.2), ("c", -65.0), ("d", 8.0)):
            self.add_parameter(name, value, rank=rank, learn=learn or name == "c")

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        v, u = states.v, states.u
        v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + 10 * x)
        u = u + 0.5 * p.a * (p.b * v - u)
        s = spike(v - 30, slope=0.1)
        return {"v": v + s * (p.c - v), "u": u + s * p.d}, s


KINDS = {"adaptive": Adaptive, "refractory": Refractory, "Izhikevich": Izhikevich}
every_neuron = pytest.mark.parametrize("kind", KINDS)


def of(kind: str, *args: Any, **options: Any) -> tt.Layer:
    """A neuron in float64, its parameters different for each neuron."""
    torch.manual_seed(2)
    layer = KINDS[kind](*args, **options).double()
    with torch.no_grad():
        for raw in (*layer.parameters(), *layer.buffers()):
            raw.mul_(1 + 0.05 * torch.rand(raw.shape, dtype=raw.dtype))
    return layer


def by_numpy(layer: tt.Layer, x: Tensor) -> tuple[Any, list[Any]]:
    """Outputs and final states of a float64 sequence ``[T, B, N]``, written out again."""
    values = {
        name: getattr(layer, name).detach().numpy() for name in layer.tt.declaration.parameters
    }
    first, second, ys = np.zeros(x.shape[1:]), np.zeros(x.shape[1:]), []
    for x_t in x.detach().numpy():
        if isinstance(layer, Adaptive):
            first = values["beta"] * first + x_t
            s = (first - 1 - second > 0).astype(float)
            first, second = first - s, values["rho"] * second + values["jump"] * s
        elif isinstance(layer, Refractory):
            ready = second <= 0
            first = values["beta"] * first + np.where(ready, x_t, 0.0)
            s = (ready & (first > values["threshold"])).astype(float)
            first = first - s * values["threshold"]
            second = np.maximum(second - 1, 0) + 3 * s
        else:
            first = first + 0.5 * (0.04 * first**2 + 5 * first + 140 - second + 10 * x_t)
            second = second + 0.5 * values["a"] * (values["b"] * first - second)
            s = (first > 30).astype(float)
            first, second = np.where(s > 0, values["c"], first), second + s * values["d"]
        ys.append(s)
    return np.stack(ys), [first, second]


def stepped(layer: Any, x: Tensor) -> Tensor:
    return torch.stack([layer(timestep) for timestep in x])


@contextmanager
def eagerly() -> Iterator[None]:
    with tt.backends.use("eager"):
        yield


def everything(
    layer: tt.Layer,
    x: Tensor,
    backend: str,
    run: Callable[[tt.Layer, Tensor], Tensor] = lambda layer, x: layer.unroll(x),
) -> dict[str, Tensor]:
    """Outputs, final states, and gradients of input, incoming states and parameters."""
    torch.manual_seed(4)
    x = x.detach().requires_grad_()
    dtype = promoted(layer, x.dtype)
    start = {
        name: (torch.rand(x.shape[1:]) * 0.5).to(dtype).requires_grad_() for name in layer.tt.states
    }
    layer.set_states(start)
    with tt.backends.use(backend):
        found = {"y": run(layer, x)}
    found |= {f"final {name}": state for name, state in layer.get_states().items()}
    sources = {"x": x, **start, **{n: p for n, p in layer.named_parameters() if p.requires_grad}}
    loss = torch.stack([(v * torch.randn(v.shape).to(v)).sum().double() for v in found.values()])
    grads = torch.autograd.grad(loss.sum(), [*sources.values()], allow_unused=True)
    found |= {
        f"grad {name}": torch.zeros_like(sources[name]) if g is None else g
        for name, g in zip(sources, grads, strict=True)
    }
    return {name: value.detach() for name, value in found.items()}


def assert_fused_is_eager(layer: tt.Layer, x: Tensor, tolerance: float = 1e-9) -> None:
    got, expected = (everything(layer, x, backend) for backend in ("cpp", "eager"))
    for name, value in expected.items():
        scale = 1 + (value.abs().nan_to_num(posinf=0).max().item() if value.numel() else 0.0)
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance * scale, equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1])
@every_neuron
def test_unrolled_stepped_and_eager_are_the_equations(kind: str, rank: int) -> None:
    layer, x = of(kind, 7, rank), 2 * torch.rand(90, 3, 7, dtype=torch.float64)
    spikes, finals = by_numpy(layer, x)
    assert 0.01 < spikes.mean() < 0.9
    for backend, run in (("cpp", layer.unroll), ("auto", lambda x: stepped(layer, x)),
                         ("eager", lambda x: stepped(layer, x))):  # fmt: skip
        layer.zero_states()
        with tt.backends.use(backend):
            y = run(x)
        np.testing.assert_array_equal(y.detach().numpy(), spikes)
        for state, final in zip(layer.get_states().values(), finals, strict=True):
            np.testing.assert_allclose(state.detach().numpy(), final, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, PERIOD - 1, PERIOD, PERIOD + 1, 2 * PERIOD + 1])
@every_neuron
def test_gradients_at_every_length(kind: str, steps: int) -> None:
    assert_fused_is_eager(of(kind, 5), 2 * torch.rand(steps, 2, 5, dtype=torch.float64))


@every_neuron
def test_gradients_over_a_thousand_timesteps(kind: str) -> None:
    assert_fused_is_eager(of(kind, 3), 2 * torch.rand(1000, 1, 3, dtype=torch.float64), 1e-7)


@pytest.mark.parametrize("neurons", [1, 15, 16, 17, 63, 64, 65, 1025])
def test_sizes_around_vectors_and_blocks(neurons: int) -> None:
    x = 2 * torch.rand(20, 3, neurons, dtype=torch.float64)
    assert_fused_is_eager(of("refractory", neurons), x)


@pytest.mark.parametrize(("stored", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)])
@every_neuron
def test_shorter_types(kind: str, stored: torch.dtype, tolerance: float) -> None:
    layer = of(kind, 6).float()
    assert_fused_is_eager(layer, (2 * torch.rand(25, 3, 6)).to(stored), tolerance)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("shape", "dim"), [((4,), 0), ((4, 3), 0), ((2, 4, 3), 1), ((2, 3, 4), -1)]
)
def test_neurons_anywhere(shape: tuple[int, ...], dim: int, rank: int) -> None:
    x = 2 * torch.rand(20, *shape, dtype=torch.float64)
    assert_fused_is_eager(of("adaptive", 4, rank, dim), x)


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, -x], -1)[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "every other value": _strided,
    "time last in memory": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "one sample for all": lambda x: x[:, :1].expand(-1, 3, -1),
    "no sample": lambda x: x[:, :0],
    "a negative that is not written out": lambda x: torch.complex(x, -x).conj().imag,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_in_memory(layout: str) -> None:
    x = LAYOUTS[layout](2 * torch.rand(20, 3, 5, dtype=torch.float64))
    assert not x.is_contiguous() or x.numel() == 0
    assert_fused_is_eager(of("adaptive", 5), x)


@every_neuron
def test_what_is_not_learned_gets_no_gradient_and_costs_none(kind: str) -> None:
    layer, x = of(kind, 5, learn=False), 2 * torch.rand(20, 2, 5, dtype=torch.float64)
    assert_fused_is_eager(layer, x)
    frozen = {
        f"grad {spec.name}"
        for spec in layer.tt.declaration.parameters.values()
        if spec.raw_name in layer._buffers
    }
    plans = [by.plan for by in programs(layer.tt.findings)]
    assert frozen
    assert plans
    assert all(frozen.isdisjoint(plan.wanted) for plan in plans)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every_neuron
def test_nan_and_infinity_pass_as_in_eager(kind: str, value: float) -> None:
    layer, x = of(kind, 5), 2 * torch.rand(12, 3, 5, dtype=torch.float64)
    x[4, 1, 2] = value
    answers = []
    for backend in ("cpp", "eager"):
        layer.zero_states()
        with tt.backends.use(backend), torch.no_grad():
            answers.append([layer.unroll(x), *layer.get_states().values()])
    torch.testing.assert_close(*answers, rtol=1e-9, atol=1e-9, equal_nan=True)


class Smooth(Adaptive):
    def fire(self, u: Tensor) -> Tensor:
        return torch.sigmoid(2 * u)


@pytest.mark.parametrize("steps", [1, PERIOD + 2])
def test_gradients_are_those_of_finite_differences(steps: int) -> None:
    layer = Smooth(2).double()

    def run(x: Tensor, mem: Tensor, raised: Tensor, *raw: Tensor) -> tuple[Tensor, ...]:
        layer.set_states({"mem": mem, "raised": raised})
        weights = dict(zip((name for name, _ in layer.named_parameters()), raw, strict=True))
        with tt.backends.use("cpp"):
            y = torch.func.functional_call(
                Unrolled(layer), {f"layer.{n}": w for n, w in weights.items()}, x
            )
        return (y, *layer.get_states().values())

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    raw = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (leaf(steps, 1, 2), leaf(1, 2), leaf(1, 2), *raw))


class Unrolled(nn.Module):
    def __init__(self, layer: tt.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.unroll(x)


# ------------------------------------------------------------------ in a model


class Net(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.mix, self.neuron, self.out = nn.Linear(4, 8), Refractory(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.neuron(self.mix(x)))


def weighted(y: Tensor, model: tt.Model) -> list[Tensor]:
    """A loss of outputs and final states, differentiated."""
    torch.manual_seed(8)
    ends = [y, *model.get_states().values()]
    loss = torch.stack([(e.float() * torch.randn(e.shape)).sum() for e in ends if e.requires_grad])
    return [
        y,
        *model.get_states().values(),
        *torch.autograd.grad(loss.sum(), [*model.parameters()]),
    ]


def loop(model: Net, x: Tensor, lengths: Sequence[int], every: int | None) -> Tensor:
    """Timestep by timestep and sample by sample, each with states of its own."""
    outputs = torch.zeros(*x.shape[:2], 2, dtype=x.dtype)
    finals: list[dict[str, Tensor]] = []
    for sample, length in enumerate(lengths):
        model.zero_states()
        ys = []
        for t in range(length):
            if every and t and t % every == 0:
                model.detach_states()
            ys.append(model(x[t, sample : sample + 1]))
        column = torch.cat([*ys, outputs[length:, sample]])
        outputs = torch.cat([outputs[:, :sample], column[:, None], outputs[:, sample + 1 :]], 1)
        finals.append(model.get_states())
    model.set_states({name: torch.cat([f[name] for f in finals]) for name in finals[0]})
    return outputs


@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 7}, {"detach_every": 5}, {"detach_every": 10, "chunk_size": 4}]
)
@pytest.mark.parametrize("lengths", [None, (23, 9, 16)])
def test_options_of_a_sequence_are_the_loop_written_out(
    options: dict[str, int], lengths: tuple[int, ...] | None
) -> None:
    model, x = Net().double(), 2 * torch.randn(23, 3, 4, dtype=torch.float64)
    with tt.backends.use("cpp"):
        ends = None if lengths is None else torch.tensor(lengths)
        got = weighted(model.unroll(x, lengths=ends, **options), model)
    with eagerly():
        y = loop(model, x, lengths or (23,) * 3, options.get("detach_every"))
        expected = weighted(y, model)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, check_dtype=False)


def test_autocast_is_the_stepped_loops() -> None:
    model, x = Net(), torch.randn(20, 3, 4)
    found = []
    for backend, run in (("cpp", model.unroll), ("eager", lambda x: stepped(model, x))):
        model.zero_states()
        with tt.backends.use(backend), torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(x)
        assert y.dtype == torch.bfloat16
        found.append(weighted(y, model))
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


def test_without_gradients_nothing_is_kept_for_them() -> None:
    layer, x = of("adaptive", 64), torch.rand(200, 8, 64, dtype=torch.float64)
    with torch.no_grad():
        y = layer.unroll(x)
    assert not y.requires_grad
    (by,) = programs(layer.tt.findings)
    assert by.plan.wanted == ()
    assert len(by.plan.outputs(x, [*layer.get_states().values()], False)) == 3
