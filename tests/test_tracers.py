"""Tracers, fake tensors and exporters: programs of torch's own operations that say the same.

What once took the process down runs in one of its own, which is this file.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

KINDS: dict[str, Callable[[], tt.Layer]] = {
    "LIB": lambda: snn.LIB(4, beta=0.8, threshold=0.3),
    "SelectiveSSM": lambda: rnn.SelectiveSSM(4, 4, state_size=3),
    "LSTM": lambda: rnn.LSTM(4, 4),
}


class Net(tt.Model):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.layer = nn.Linear(4, 4), KINDS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.linear(x))
        return y


class Sequence(nn.Module):
    """A whole sequence from no state, as a module that exporters can take."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model = Net(kind)

    def forward(self, x: Tensor) -> Tensor:
        self.model.zero_states()
        y: Tensor = self.model.unroll(x)
        return y


class Alone(Sequence):
    """A sequence of the layer alone, which nothing has run before."""

    def forward(self, x: Tensor) -> Tensor:
        self.model.zero_states()
        y: Tensor = self.model.layer.unroll(x)
        return y


class Timestep(Sequence):
    """One timestep, the same way."""

    def forward(self, x: Tensor) -> Tensor:
        self.model.zero_states()
        y: Tensor = self.model(x[0])
        return y


def sequence(seed: int = 1) -> Tensor:
    return torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- in a process of its own

Traced = Callable[[Tensor], Any]


def _jit(module: nn.Module, x: Tensor) -> tuple[Traced, list[Any]]:
    traced = torch.jit.trace(module, x)
    return traced, [node.kind() for node in traced.inlined_graph.nodes()]


def _fake(module: nn.Module, x: Tensor) -> tuple[Traced, list[Any]]:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = module(mode.from_tensor(x))
        assert isinstance(y, FakeTensor)
        shape, dtype, tracked = y.shape, y.dtype, y.requires_grad

    def again(x: Tensor) -> Tensor:
        """There are no values, but all else."""
        module.model.zero_states()
        found: Tensor = module(x)
        assert (found.shape, found.dtype, found.requires_grad) == (shape, dtype, tracked)
        return found

    return again, []


def _fx(mode: str, module: nn.Module, x: Tensor) -> tuple[Traced, list[Any]]:
    from torch.fx.experimental.proxy_tensor import make_fx

    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    held = {name: tensor.detach() for name, tensor in held.items()}

    def run(held: dict[str, Tensor], x: Tensor) -> Any:
        return torch.func.functional_call(module, held, (x,))

    graph = make_fx(run, tracing_mode=mode)(held, x)
    return functools.partial(graph, held), [node.target for node in graph.graph.nodes]


TRACERS: dict[str, Callable[[nn.Module, Tensor], tuple[Traced, list[Any]]]] = {
    "jit": _jit,
    "fake": _fake,
    "real": functools.partial(_fx, "real"),
    "symbolic": functools.partial(_fx, "symbolic"),
}


def held(tracer: str, kind: str) -> str:
    """What is wrong with a traced sequence; nothing, if it is what it should be."""
    module, x, other = Sequence(kind), sequence(), sequence(seed=2)
    expected = [module(x).detach(), module(other).detach()]
    traced, operations = TRACERS[tracer](module, x)
    said = "zero_states()"
    try:  # with what the tracer has left behind
        assert type(module.model(x[0])) is Tensor
    except tt.StateError as error:
        said = str(error)
    assert "zero_states()" in said
    module.model.zero_states()
    for given, y in zip((x, other), expected, strict=True):
        torch.testing.assert_close(traced(given).detach(), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module(given).detach(), y, rtol=0, atol=0)
    own = [str(name) for name in operations if "tracetorch" in str(name)]
    assert not own, own
    for part in (Timestep, Alone):
        y = part(kind)(x).detach()
        traced, operations = TRACERS[tracer](part(kind), x)
        torch.testing.assert_close(traced(x).detach(), y, rtol=1e-5, atol=1e-5)
        own = [str(name) for name in operations if "tracetorch" in str(name)]
        assert not own, own
    return ""


def work() -> None:
    """What is wrong, by tracer and kind of layer: a line of JSON each, as it is found."""
    warnings.simplefilter("ignore")
    for tracer in TRACERS:
        for kind in KINDS:
            try:
                found = held(tracer, kind)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            print(json.dumps([tracer, kind, found]), flush=True)  # noqa: T201


# ---------------------------------------------------------------------- here


@functools.cache
def findings() -> dict[tuple[str, str], str]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(tracer, kind): text for tracer, kind, text in lines}
    died = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    return {(t, k): found.get((t, k), died) for t in TRACERS for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tracer", TRACERS)
def test_what_is_traced_is_what_is_computed(tracer: str, kind: str) -> None:
    assert findings()[tracer, kind] == ""


LOADED = """
import sys, torch
program = torch.export.load(sys.argv[1])
found = program.module()(torch.load(sys.argv[2]))
assert not [name for name in sys.modules if name.partition(".")[0] == "tracetorch"]
torch.save([y.detach() for y in found], sys.argv[3])
"""


class Several(nn.Module):
    """All kinds in one program, whole sequences and single timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Sequence(kind) for kind in KINDS])
        self.steps = nn.ModuleList([Timestep(kind) for kind in KINDS])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.stack([part(x) for part in self.steps])
        return torch.stack([part(x) for part in self.parts]), steps


def test_an_exported_program_loads_where_there_is_only_torch(tmp_path: Path) -> None:
    module, x, other = Several(), sequence(), sequence(seed=2)
    expected = module(other)
    program = torch.export.export(module, (x,))
    own = [str(node.target) for node in program.graph.nodes if "tracetorch" in str(node.target)]
    assert not own
    paths = [str(tmp_path / name) for name in ("program.pt2", "x.pt", "y.pt")]
    torch.export.save(program, paths[0])
    torch.save(other, paths[1])
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *paths], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(paths[2])
    torch.testing.assert_close(found, [y.detach() for y in expected], rtol=1e-5, atol=1e-5)
    again = module(other)  # which was left as it was
    assert all(torch.equal(got, y) for got, y in zip(again, expected, strict=True))


@pytest.mark.parametrize("part", [Sequence, Alone])
@pytest.mark.parametrize("known", [False, True], ids=["fresh", "unrolled"])
@pytest.mark.parametrize("strict", [False, True])
def test_an_export_says_the_same(part: type[Sequence], known: bool, strict: bool) -> None:
    module, x, other = part("LIB"), sequence(), sequence(seed=2)
    if known:
        module(x)
    program = torch.export.export(module, (x,), strict=strict)
    assert not [node for node in program.graph.nodes if "tracetorch" in str(node.target)]
    torch.testing.assert_close(
        program.module()(other).detach(), module(other).detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["LIB", "SelectiveSSM"])
def test_a_program_may_be_exported_for_any_number_of_samples(kind: str) -> None:
    module, x = Sequence(kind), torch.randn(3, 7, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (sequence()[:3],), dynamic_shapes={"x": {1: batch}})
    torch.testing.assert_close(
        program.module()(x).detach(), module(x).detach(), rtol=1e-5, atol=1e-5
    )


def test_a_tracer_that_gives_no_tensors_is_refused_with_what_came() -> None:
    module, x = Sequence("LIB"), sequence()
    expected = module(x)
    with pytest.raises(TypeError, match=r"x must be a tensor \[T, B, …\], got a Proxy"):
        torch.fx.symbolic_trace(module)
    assert torch.equal(module(x), expected)


if __name__ == "__main__":
    work()
