"""What exporters make of ``tt.functional(model)``: the same outputs over time, states carried."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch import rnn, snn

BATCH = torch.export.Dim("batch", min=1, max=1024)
TIME = torch.export.Dim("time", min=1, max=100_000)
States = dict[str, Tensor]
Step = Callable[[States, Tensor], tuple[Tensor, States]]
Program = tuple[tt.Functional, Any]


class Pair(tt.Model):
    """Layers in a row, and their copies with constants for parameters."""

    def __init__(self, *layers: tt.Layer) -> None:
        super().__init__()
        self.project = nn.Linear(3, layers[0].num_neurons)
        self.learning = nn.Sequential(*layers)
        self.compiled = copy.deepcopy(self.learning)
        for layer in self.compiled:
            layer.TTcompile()

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return torch.cat([self.learning(x), self.compiled(x)], -1)


def several() -> Pair:
    """Spikes of both signs, all traces, gates and scans."""
    return Pair(
        rnn.LSTM(4, 4),
        snn.DSRLITS(4, pos_beta=0.8, neg_threshold=0.3),
        rnn.SelectiveSSM(4, 4, state_size=3),
        snn.LIB(4, beta=0.8, threshold=0.1),
        snn.LI(4),
    )


def inputs(steps: int, batch: int) -> Tensor:
    return 1.5 * torch.randn(steps, batch, 3, generator=torch.Generator().manual_seed(1))


def exported(step: nn.Module, states: States, x: Tensor, time: bool = False) -> Any:
    """Of a timestep ``[B, …]``, or a sequence ``[T, B, …]``, of any size."""
    sizes = {0: TIME, 1: BATCH} if time else {0: BATCH}
    shapes = {"states": {name: {0: BATCH} for name in states}, "x": sizes}
    return torch.export.export(step, (states, x), dynamic_shapes=shapes)


def program_of(model: tt.Model) -> tuple[tt.Functional, Any]:
    """A timestep as a function, and its program."""
    step, x = tt.functional(model.eval()), inputs(1, 2)[0]
    return step, exported(step, step.initial_states(x), x)


def hold(step: tt.Functional, run: Step, x: Tensor) -> None:
    """The same outputs and states at every timestep, each going on from its own states."""
    expected = found = step.initial_states(x[0])
    outputs = []
    with torch.no_grad(), tt.backends.use("eager"):
        for timestep in x:
            y, expected = step(expected, timestep)
            z, found = run(found, timestep)
            assert list(found) == list(expected)
            torch.testing.assert_close((z, found), (y, expected), rtol=1e-5, atol=1e-5)
            outputs.append(y)
    assert torch.stack(outputs).std(0).max() > 0  # it does something


@pytest.fixture(scope="module")
def timestep() -> Program:
    """The function of one, and its program."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return program_of(several())


# ------------------------------------------------------------------ torch.compile, torch.export


def test_a_function_in_one_graph(timestep: Program) -> None:
    step, _ = timestep
    hold(step, torch.compile(step, backend="aot_eager", fullgraph=True), inputs(6, 5))


def test_a_timestep_of_each_layer_is_a_program(name: str, build: Callable[..., tt.Layer]) -> None:
    step, program = program_of(Pair(build(name)))
    kinds = {getattr(n.target, "namespace", None) for n in program.graph.nodes if n.op != "output"}
    assert kinds <= {"aten", None}
    hold(step, program.module(), inputs(6, 5))


def test_random_numbers_and_their_seed_are_states_as_any() -> None:
    class Noisy(tt.Layer):
        def __init__(self) -> None:
            super().__init__(3)
            self.add_state("mem")
            self.uniform = tt.Random()

        def step(self, states: Any, x: Tensor, p: Any) -> tuple[States, Tensor]:
            mem = 0.5 * states.mem + self.uniform(x) * x
            return {"mem": mem}, mem

    step, x = tt.functional(Noisy()), inputs(6, 5)
    states = step.initial_states(x[0, :2])
    shapes = {"states": {"random": {}, "mem": {0: BATCH}}, "x": {0: BATCH}}
    program = torch.export.export(step, (states, x[0, :2]), dynamic_shapes=shapes)
    found = expected = step.initial_states(x[0])
    for timestep in x:
        y, expected = step(expected, timestep)
        z, found = program.module()(found, timestep)
        torch.testing.assert_close((z, found), (y, expected))
    assert int(found["random"][1]) == 6


LOADED = """
import sys, torch
sys.modules["tracetorch"] = None
step, whole = (torch.export.load(path).module() for path in sys.argv[1:3])
x, states, before = torch.load(sys.argv[3])
with torch.no_grad():
    found, outputs = whole(before, x), []
    for timestep in x:
        y, states = step(states, timestep)
        outputs.append(y)
torch.save([(torch.stack(outputs), states), found], sys.argv[4])
"""


class Scanned(nn.Module):
    """A whole sequence ``[T, B, …]`` through the program of a timestep."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.step = program.module()

    def forward(self, states: States, x: Tensor) -> tuple[Tensor, States]:
        from torch._higher_order_ops.scan import scan

        states, y = scan(lambda states, x: self.step(states, x)[::-1], states, x)
        return y, states


@pytest.fixture(scope="module")
def sequence() -> Program:
    """The function of a timestep, and the program of sequences of any length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        step, program = program_of(Pair(snn.SLIB(4, 0.4, 0.8, 0.1), snn.LI(4)))
    x = inputs(3, 2)
    return step, exported(Scanned(program), step.initial_states(x[0]), x, time=True)


def test_programs_load_where_there_is_only_torch(
    timestep: Program, sequence: Program, tmp_path: Path
) -> None:
    paths = [str(tmp_path / name) for name in ("step.pt2", "whole.pt2", "given.pt", "found.pt")]
    x, expected = inputs(7, 5), []
    states = [step.initial_states(x[0]) for step, _ in (timestep, sequence)]
    for (step, program), begun, path in zip((timestep, sequence), states, paths, strict=False):
        torch.export.save(program, path)
        with torch.no_grad():
            expected.append(step.unroll(begun, x))
    torch.save((x, *states), paths[2])
    subprocess.run([sys.executable, "-c", LOADED, *paths], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(paths[3]), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ ONNX


def session(program: Any, path: Path) -> Step:
    """What onnxruntime computes."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="it runs what is exported to ONNX")
    pytest.importorskip("onnxscript", reason="torch exports to ONNX by it")
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    loaded = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in loaded.get_inputs()]

    def run(states: States, x: Tensor) -> tuple[Tensor, States]:
        given = [tensor.numpy() for tensor in (*states.values(), x)]
        y, *new = map(torch.from_numpy, loaded.run(None, dict(zip(names, given, strict=True))))
        return y, dict(zip(states, new, strict=True))

    return run


def test_a_hundred_timesteps_in_onnxruntime(timestep: Program, tmp_path: Path) -> None:
    step, program = timestep
    hold(step, session(program, tmp_path / "step.onnx"), inputs(100, 5))


def test_a_sequence_in_onnxruntime(sequence: Program, tmp_path: Path) -> None:
    step, program = sequence
    run, x = session(program, tmp_path / "whole.onnx"), inputs(100, 3)
    states = step.initial_states(x[0])
    with torch.no_grad():
        expected = step.unroll(states, x)
    torch.testing.assert_close(run(states, x), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ AOTInductor


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles with g++")
def test_a_timestep_compiled_ahead_of_time(tmp_path: Path) -> None:
    step, program = program_of(Pair(snn.LIB(4, beta=0.8, threshold=0.1), rnn.GRU(4, 4)))
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "step.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    hold(step, torch._inductor.aoti_load_package(path), inputs(20, 5))
