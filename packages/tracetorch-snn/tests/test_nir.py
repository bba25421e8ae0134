"""NIR: graphs as models and models as graphs, held to recordings and to a reference in NumPy."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch import snn

nir = pytest.importorskip("nir", reason="needs the extra: pip install tracetorch-snn[nir]")

from tracetorch.snn.nir import (  # noqa: E402
    PRESETS,
    Discretisation,
    GraphModel,
    Neuron,
    NIRError,
    from_nir,
    to_nir,
)
from tracetorch.snn.nir.modules import Affine, Last, Scale, SumPool2d, Threshold  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
F64 = torch.float64
DT = 1e-4


def shared(name: str) -> Path:
    """A recorded file; skips where the folder is missing."""
    folders = [ROOT.parent / "shared", Path(os.environ.get("TRACETORCH_SHARED", "/nowhere"))]
    for folder in folders:
        path = folder / "oracles" / "nir" / name
        if path.exists():
            return path
    pytest.skip(f"no {name}: neither ../shared nor TRACETORCH_SHARED has the recordings")


# --------------------------------------------------------------------------------- the reference


class Reference:
    """A graph in NumPy and float64: the rules of the README of the recordings, written once more.

    Nodes are computed in the given order; an edge from a later one, or from itself, is of the
    timestep before.
    """

    def __init__(self, graph: Any, order: list[str], how: Discretisation, dt: float) -> None:
        self.graph, self.order, self.how, self.dt = graph, order, how, dt
        self.last: dict[str, Any] = {}
        self.states: dict[str, dict[str, Any]] = {}

    def run(self, x: Any) -> Any:
        return np.stack([self.timestep(row) for row in np.asarray(x, np.float64)])

    def timestep(self, x: Any) -> Any:
        values: dict[str, Any] = {}
        for name in self.order:
            node, kind = self.graph.nodes[name], type(self.graph.nodes[name]).__name__
            if kind == "Input":
                values[name] = x
                continue
            reads = [a for a, b in self.graph.edges if b == name]
            inputs = [values[a] if a in values else self.last.get(a) for a in reads]
            total = sum(one for one in inputs if one is not None)
            values[name] = total if kind == "Output" else getattr(self, kind)(name, node, total)
        self.last = values
        return values[self.order[-1]]

    def Linear(self, name: str, node: Any, x: Any) -> Any:
        del name
        if np.ndim(x) == 0:  # nothing has come round yet
            x = np.zeros((1, node.weight.shape[1]))
        return x @ node.weight.astype(np.float64).T

    def Affine(self, name: str, node: Any, x: Any) -> Any:
        return self.Linear(name, node, x) + node.bias

    def Conv2d(self, name: str, node: Any, x: Any) -> Any:
        del name
        weight, bias = (
            torch.as_tensor(np.asarray(w, np.float64)) for w in (node.weight, node.bias)
        )
        sizes = [tuple(int(n) for n in size) for size in (node.stride, node.padding, node.dilation)]
        return F.conv2d(torch.as_tensor(x), weight, bias, *sizes, int(node.groups)).numpy()

    def SumPool2d(self, name: str, node: Any, x: Any) -> Any:
        del name
        height, width = (int(n) for n in node.kernel_size)
        folded = x.reshape(*x.shape[:2], x.shape[2] // height, height, x.shape[3] // width, width)
        return folded.sum((3, 5))

    def Flatten(self, name: str, node: Any, x: Any) -> Any:
        del name, node
        return x.reshape(len(x), -1)

    def Scale(self, name: str, node: Any, x: Any) -> Any:
        del name
        return x * node.scale

    def Delay(self, name: str, node: Any, x: Any) -> Any:
        x = np.zeros((1, len(node.delay))) if np.ndim(x) == 0 else x
        past = self.states.setdefault(name, {"past": []})["past"]
        past.append(x)
        back = round(float(node.delay[0]) / self.dt)
        return past[-1 - back] if back < len(past) else np.zeros_like(x)

    def _decay(self, tau: Any) -> Any:
        return 1 - self.dt / tau if self.how.decay == "euler" else np.exp(-self.dt / tau)

    def _gain(self, tau: Any) -> Any:
        return self.dt / tau if self.how.gain == "euler" else 1 - np.exp(-self.dt / tau)

    def _fired(self, state: dict[str, Any], node: Any) -> Any:
        def reset(v: Any, s: Any) -> Any:
            return (
                v - s * node.v_threshold
                if self.how.reset == "subtract"
                else np.where(s > 0, node.v_reset, v)
            )

        if self.how.delayed:
            state["v"] = reset(state["v"], state.get("s", np.zeros_like(state["v"])))
        above = state["v"] - node.v_threshold
        s = ((above >= 0) if self.how.at_threshold else (above > 0)).astype(np.float64)
        state["s"] = s
        if not self.how.delayed:
            state["v"] = reset(state["v"], s)
        return s

    def _membrane(self, name: str, x: Any, node: Any, tau: Any) -> dict[str, Any]:
        state = self.states.setdefault(name, {"v": 0.0})
        k = self._gain(tau)
        state["v"] = self._decay(tau) * state["v"] + k * (node.r * x + node.v_leak)
        return state

    def _current(self, name: str, x: Any, node: Any) -> Any:
        state = self.states.setdefault(name, {"v": 0.0})
        before = state.get("i", np.zeros_like(x))
        state["i"] = self._decay(node.tau_syn) * before + self._gain(node.tau_syn) * node.w_in * x
        return state["i"] if self.how.order == "synapse" else before

    def LI(self, name: str, node: Any, x: Any) -> Any:
        return self._membrane(name, x, node, node.tau)["v"]

    def LIF(self, name: str, node: Any, x: Any) -> Any:
        return self._fired(self._membrane(name, x, node, node.tau), node)

    def CubaLI(self, name: str, node: Any, x: Any) -> Any:
        return self._membrane(name, self._current(name, x, node), node, node.tau_mem)["v"]

    def CubaLIF(self, name: str, node: Any, x: Any) -> Any:
        current = self._current(name, x, node)
        return self._fired(self._membrane(name, current, node, node.tau_mem), node)

    def I(self, name: str, node: Any, x: Any) -> Any:  # noqa: E743
        state = self.states.setdefault(name, {"v": 0.0})
        state["v"] = state["v"] + (1.0 if self.how.integral == "timestep" else self.dt) * node.r * x
        return state["v"]

    def IF(self, name: str, node: Any, x: Any) -> Any:
        self.I(name, node, x)
        return self._fired(self.states[name], node)


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=F64) < rate).to(F64)


def stepped(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(row) for row in x])


def unrolled(model: tt.Model, x: Tensor) -> Tensor:
    model.zero_states()
    with torch.no_grad():
        found: Tensor = model.unroll(x)
    return found


def same(graph: Any, other: Any) -> None:
    """Every node with every value, and every edge."""
    assert sorted(graph.nodes) == sorted(other.nodes)
    assert graph.edges == other.edges
    for name in graph.nodes:
        ours, theirs = graph.nodes[name].to_dict(), other.nodes[name].to_dict()
        assert ours.keys() == theirs.keys()
        for field in ours:
            assert np.array_equal(ours[field], theirs[field]), f"{name}.{field}"


def values(kind: str, shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Random arrays for a neuron's node."""
    rng = np.random.default_rng(seed)
    low_high = {
        "tau": (3 * DT, 30 * DT),
        "tau_mem": (3 * DT, 30 * DT),
        "tau_syn": (2 * DT, 10 * DT),
        "r": (0.5, 5.0),
        "v_leak": (-0.1, 0.1),
        "v_threshold": (0.1, 0.4),
        "v_reset": (-0.1, 0.05),
        "w_in": (0.5, 3.0),
    }
    names = {
        "I": ("r",),
        "IF": ("r", "v_threshold", "v_reset"),
        "LI": ("tau", "r", "v_leak"),
        "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
        "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
        "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    }
    return {name: rng.uniform(*low_high[name], shape) for name in names[kind]}


KINDS = ("I", "IF", "LI", "LIF", "CubaLI", "CubaLIF")


def neuron(kind: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    return getattr(nir, kind)(**values(kind, shape, seed))


def line(*nodes: Any, shape: tuple[int, ...], out: tuple[int, ...] | None = None) -> Any:
    """Nodes one after the other, named a, b, c …; not checked by nir."""
    names = [chr(ord("a") + at) for at in range(len(nodes))]
    put = {"input": nir.Input({"input": np.array(shape)}), **dict(zip(names, nodes, strict=True))}
    put["output"] = nir.Output({"output": np.array(shape if out is None else out)})
    order = list(put)
    return nir.NIRGraph(put, list(pairwise(order)), type_check=False)


# --------------------------------------------------------------------------------- an extra


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_snn_imports_no_nir() -> None:
    run(
        "import sys, tracetorch.snn\n"
        "assert not {'nir', 'h5py', 'tracetorch.snn.nir'} & set(sys.modules)"
    )


def test_without_nir_the_extra_is_named() -> None:
    run(
        "import sys; sys.modules['nir'] = None\n"
        "try:\n    import tracetorch.snn.nir\n"
        "except ImportError as error:\n"
        "    assert 'pip install tracetorch-snn[nir]' in str(error), error\n"
        "else:\n    raise SystemExit('imported')"
    )


# --------------------------------------------------------------------------------- recordings

RECORDED = {
    "norse": (1.0, [460, 510, 710, 760]),
    "snntorch": (25.0, [460, 510, 710, 760]),
    "nengo": (10.0, [460, 510, 710, 760]),
    "rockpool": (1.0, [450, 500, 710, 760]),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("simulator", RECORDED)
def test_a_recording_is_reproduced_row_by_row(simulator: str, dtype: torch.dtype) -> None:
    rows = np.loadtxt(shared(f"lif_{simulator}.csv"), delimiter=",")
    scale, at = RECORDED[simulator]
    model = from_nir(shared("lif_norse.nir"), simulator, dtype=dtype)
    x = torch.as_tensor(rows[:, 0], dtype=dtype).reshape(-1, 1, 1)
    found, membrane = [], []
    for row in x:
        found.append(model(row).item())
        membrane.append(model.get_states()["node_1.mem"].item())
    assert np.flatnonzero(rows[:, 2]).tolist() == at
    assert np.flatnonzero(found).tolist() == at
    np.testing.assert_allclose(membrane, rows[:, 1] / scale, atol=2e-7)
    assert unrolled(model, x).flatten().tolist() == found


def test_another_simulators_preset_gives_other_spikes() -> None:
    rows = np.loadtxt(shared("lif_rockpool.csv"), delimiter=",")
    model = from_nir(shared("lif_norse.nir"), "norse", dtype=F64)
    found = unrolled(model, torch.as_tensor(rows[:, 0]).reshape(-1, 1, 1)).flatten().numpy()
    assert (found != (rows[:, 2] > 0)).any()


def test_the_malformed_recording_is_refused_by_name() -> None:
    with pytest.raises(NIRError, match=r"Output 'output': .*\[1, 1, 1\].*'1_LIFNeuronTorch'"):
        from_nir(shared("lif_rockpool.nir"), "rockpool")


@pytest.mark.parametrize("simulator", RECORDED)
@pytest.mark.parametrize(
    ("name", "reset"),
    [("braille_noDelay_bias_zero", "value"), ("braille_noDelay_noBias_subtract", "subtract")],
)
def test_the_braille_graphs_spike_as_their_numbers_say(
    simulator: str, name: str, reset: Any
) -> None:
    graph = nir.read(shared(f"{name}.nir"))
    model = from_nir(graph, simulator, reset=reset, dtype=F64)
    assert list(model.ways) == ["lif1.lif"]
    assert isinstance(model.lif1_lif.feedback, nn.Linear)
    x = spikes(256, 3, 12, rate=0.2)
    order = ["input", "fc1", "lif1.w_rec", "lif1.lif", "fc2", "lif2", "output"]
    expected = Reference(graph, order, model.how, DT).run(x)
    found = unrolled(model, x)
    assert found.shape == (256, 3, 7)
    assert 0.01 < float(found.mean()) < 0.9
    np.testing.assert_array_equal(found.numpy(), expected)
    model.zero_states()
    assert torch.equal(stepped(model, x), found)


def test_the_convolutional_graph_spikes_as_its_numbers_say() -> None:
    graph = nir.read(shared("cnn_sinabs.nir"))
    model = from_nir(graph, "snntorch", reset="subtract", dtype=F64)
    x = spikes(30, 2, 2, 34, 34, rate=0.1)
    order = ["input", *map(str, range(13)), "output"]
    expected = Reference(graph, order, model.how, DT).run(x)
    found = unrolled(model, x)
    assert found.shape == (30, 2, 10)
    assert float(found.mean()) > 0.01
    np.testing.assert_array_equal(found.numpy(), expected)
    assert model.get_states()["node_1.mem"].shape == (2, 16, 16, 16)


@pytest.mark.parametrize(
    "name",
    ["lif_norse", "braille_noDelay_bias_zero", "braille_noDelay_noBias_subtract", "cnn_sinabs"],
)
def test_a_recorded_graph_comes_back_with_every_value(name: str, tmp_path: Path) -> None:
    graph = nir.read(shared(f"{name}.nir"))
    model = from_nir(graph, "nengo")
    again = to_nir(model)
    same(graph, again)
    nir.write(tmp_path / "again.nir", again)
    same(again, to_nir(from_nir(tmp_path / "again.nir")))


# --------------------------------------------------------------------------------- nodes

MANNERS = {
    **PRESETS,
    "delayed": Discretisation("euler", "euler", "subtract", delayed=True),
    "delayed to a value": Discretisation("exponential", "exponential", "value", delayed=True),
    "membrane first": Discretisation(order="membrane"),
    "seconds": Discretisation(integral="seconds"),
    "at the threshold": Discretisation(at_threshold=True),
}


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_neuron_is_what_its_equations_say(kind: str, manner: str) -> None:
    how = MANNERS[manner]
    node = neuron(kind, (5,))
    if how.integral == "seconds" and kind in ("I", "IF"):
        node.r = node.r / DT
    graph = line(node, shape=(5,))
    x = 2 * torch.rand(60, 2, 5, dtype=F64, generator=torch.Generator().manual_seed(1)) - 0.5
    expected = Reference(graph, list(graph.nodes), how, DT).run(x)
    model = from_nir(graph, how, dtype=F64)
    np.testing.assert_allclose(unrolled(model, x), expected, atol=1e-12)
    assert np.unique(expected).size > 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_number_serves_all_neurons(kind: str) -> None:
    one = neuron(kind, ())
    full = type(one)(
        **{k: np.broadcast_to(v, (2, 3, 4)).copy() for k, v in values(kind, ()).items()}
    )
    x = torch.rand(20, 2, 2, 3, 4, dtype=F64)
    found = [
        unrolled(from_nir(line(n, shape=(2, 3, 4)), "norse", dtype=F64), x) for n in (one, full)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_values_for_each_pixel_and_for_each_channel(kind: str) -> None:
    shape = (3, 4, 2)
    each = values(kind, shape)
    channels = {k: np.broadcast_to(v[:, :1, :1], shape).copy() for k, v in each.items()}
    x = torch.rand(30, 2, *shape, dtype=F64)
    for given_, inner in ((each, (2, 24)), (channels, (2, *shape))):
        graph = line(getattr(nir, kind)(**given_), shape=shape)
        model = from_nir(graph, "norse", dtype=F64)
        expected = Reference(graph, list(graph.nodes), model.how, DT).run(x)
        np.testing.assert_allclose(unrolled(model, x), expected, atol=1e-12)
        assert {tuple(state.shape) for state in model.get_states().values()} == {inner}
        same(graph, to_nir(model))


def test_pools_scales_thresholds_and_matrices_of_more_dimensions() -> None:
    rng = np.random.default_rng(0)
    weight, bias, scale = (
        rng.normal(size=(2, 5, 4)),
        rng.normal(size=(2, 5)),
        rng.normal(size=(2, 5)),
    )
    graph = line(
        nir.Affine(weight, bias),
        nir.Scale(scale),
        nir.Threshold(np.array(0.1)),
        shape=(2, 4),
        out=(2, 5),
    )
    x = torch.rand(3, 2, 4, dtype=F64)
    model = from_nir(graph, "norse", dtype=F64)
    product = np.einsum("noi,bni->bno", weight, x.numpy()) + bias
    np.testing.assert_array_equal(model(x).detach().numpy(), (product * scale > 0.1).astype(float))
    assert [type(model.get_submodule(name)) for name in "abc"] == [Affine, Scale, Threshold]
    pools = {
        "SumPool2d": lambda x: F.avg_pool2d(x, (2, 3), (1, 2), (1, 0)) * 6,
        "AvgPool2d": lambda x: F.avg_pool2d(x, (2, 3), (1, 2), (1, 0)),
    }
    for kind, expected in pools.items():
        node = getattr(nir, kind)(np.array([2, 3]), np.array([1, 2]), np.array([1, 0]))
        image = torch.rand(2, 3, 5, 7, dtype=F64)
        found = from_nir(line(node, shape=(3, 5, 7), out=(3, 6, 3)), "norse", dtype=F64)(image)
        torch.testing.assert_close(found, expected(image))


def test_convolutions_of_every_argument() -> None:
    rng = np.random.default_rng(0)
    wide = nir.Conv2d(
        None, rng.normal(size=(4, 1, 3, 5)), (2, 1), (1, 2), (1, 2), 2, rng.normal(size=4)
    )
    x = torch.rand(2, 2, 9, 11, dtype=F64)
    expected = F.conv2d(
        x, torch.as_tensor(wide.weight), torch.as_tensor(wide.bias), (2, 1), (1, 2), (1, 2), 2
    )
    model = from_nir(
        line(wide, shape=(2, 9, 11), out=tuple(expected.shape[1:])), "norse", dtype=F64
    )
    assert torch.equal(model(x), expected)
    long = nir.Conv1d(9, rng.normal(size=(3, 2, 3)), 1, "same", 2, 1, np.zeros(3))
    model = from_nir(line(long, shape=(2, 9), out=(3, 9)), "norse", dtype=F64)
    expected = F.conv1d(x[:, :, :, 0], torch.as_tensor(long.weight), None, 1, "same", 2)
    assert torch.equal(model(x[:, :, :, 0]), expected)


def test_a_delay_is_in_seconds() -> None:
    graph = line(nir.Delay(np.array([0.0, 3 * DT, 1.5 * DT])), shape=(3,))
    x = torch.eye(6, dtype=F64)[:, :1].repeat(1, 3).unsqueeze(1)
    found = unrolled(from_nir(graph, "norse", dtype=F64), x)[:, 0].T
    assert found.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0.5, 0.5, 0, 0, 0],
    ]


def test_a_flatten_counts_dimensions_without_the_batch() -> None:
    shape = (2, 3, 4)
    for start, end, out in ((0, -1, (24,)), (1, -1, (2, 12)), (0, 1, (6, 4)), (-2, -1, (2, 12))):
        node = nir.Flatten({"input": None}, start, end)
        model = from_nir(line(node, shape=shape, out=out), "norse")
        assert model(torch.rand(5, *shape)).shape == (5, *out)


# --------------------------------------------------------------------------------- timesteps


def test_dt_is_what_is_given_else_what_the_graph_says_else_a_tenth_of_a_millisecond() -> None:
    graph = line(neuron("LIF", (2,)), shape=(2,))
    assert from_nir(graph, "norse").dt == DT
    graph.nodes["a"].metadata = {"dt": np.float64(5e-5)}
    assert from_nir(graph, "norse").dt == 5e-5
    graph.metadata = {"dt": np.array([2e-5])}
    model = from_nir(graph, "norse", dtype=F64)
    assert model.dt == 2e-5
    np.testing.assert_allclose(model.a.beta, 1 - 2e-5 / graph.nodes["a"].tau)
    assert from_nir(graph, "norse", dt=1e-5).dt == 1e-5


@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timestep_is_above_zero(dt: float) -> None:
    with pytest.raises(ValueError, match="dt must be above 0"):
        from_nir(line(neuron("LIF", (2,)), shape=(2,)), "norse", dt=dt)


def test_a_preset_must_be_chosen_and_be_there() -> None:
    graph = line(neuron("LIF", (2,)), shape=(2,))
    with pytest.raises(ValueError, match=r"preset must say as which simulator.*'nengo'"):
        from_nir(graph)
    with pytest.raises(ValueError, match=r"preset must be one of.*got 'Norse'"):
        from_nir(graph, "Norse")
    with pytest.raises(ValueError, match=r"decay must be one of.*got 'exact'"):
        Discretisation(decay="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delayed must be one of"):
        Discretisation(delayed=1)  # type: ignore[arg-type]


def test_eulers_decay_has_a_shortest_time_constant() -> None:
    graph = line(nir.LI(*(np.full(1, v) for v in (5e-5, 1.0, 0.0))), shape=(1,))
    with pytest.raises(NIRError, match="LI 'a': tau is 5e-05 s, shorter than the timestep"):
        from_nir(graph, "norse")
    assert from_nir(graph, "nengo").a.beta.item() == pytest.approx(np.exp(-2))


# --------------------------------------------------------------------------------- loops


def loop(*between: tuple[str, Any], kind: str = "CubaLIF", size: int = 4) -> Any:
    """input → cell → output, with nodes from the cell back to it."""
    nodes = {
        "input": nir.Input({"input": np.array([size])}),
        "cell": neuron(kind, (size,)),
        "output": nir.Output({"output": np.array([size])}),
        **dict(between),
    }
    way = ["cell", *(name for name, _ in between), "cell"]
    edges = [("input", "cell"), ("cell", "output"), *pairwise(way)]
    return nir.NIRGraph(nodes, edges, type_check=False)


def weight(out: int = 4, size: int = 4, seed: int = 0) -> Any:
    return nir.Linear(np.random.default_rng(seed).normal(size=(out, size)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_through_weights_is_a_feedback(kind: str) -> None:
    graph = loop(
        ("one", weight(3, 4)),
        ("scale", nir.Scale(np.full(3, 0.1))),
        ("two", weight(4, 3)),
        kind=kind,
    )
    model = from_nir(graph, "norse", dtype=F64)
    x = torch.rand(40, 2, 4, dtype=F64)
    order = ["input", "one", "scale", "two", "cell", "output"]
    expected = Reference(graph, order, model.how, DT).run(x)
    np.testing.assert_allclose(unrolled(model, x), expected, rtol=1e-9)
    assert [step.name for step in model.steps] == ["cell"]
    assert len(model.cell.feedback) == 3
    same(graph, to_nir(model))


def test_an_affine_on_the_way_back_counts_from_the_first_timestep() -> None:
    affine = nir.Affine(weight().weight, np.full(4, 0.7))
    graph = loop(("back", affine), kind="IF")
    model = from_nir(graph, "norse", dtype=F64)
    found = model(torch.zeros(1, 4, dtype=F64))
    assert torch.equal(
        found,
        torch.as_tensor(
            (graph.nodes["cell"].r * 0.7 > graph.nodes["cell"].v_threshold) * 1.0
        ).reshape(1, 4),
    )


def test_a_loop_over_two_neurons_is_cut_where_it_comes_back() -> None:
    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "a": neuron("LIF", (4,)),
        "down": weight(3, 4, 1),
        "b": neuron("CubaLIF", (3,), 2),
        "up": weight(4, 3, 3),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [
        ("input", "a"),
        ("a", "down"),
        ("down", "b"),
        ("b", "up"),
        ("up", "a"),
        ("b", "output"),
    ]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    model = from_nir(graph, "rockpool", dtype=F64)
    x = 3 * torch.rand(50, 2, 4, dtype=F64)
    expected = Reference(graph, ["input", "up", "a", "down", "b", "output"], model.how, DT).run(x)
    found = unrolled(model, x)
    np.testing.assert_array_equal(found, expected)
    assert isinstance(model.b_before, Last)
    assert "b_before = self.b_before.value(input)" in model.source
    model.zero_states()
    assert torch.equal(stepped(model, x), found)
    assert "b_before.last" in model.get_states()
    same(graph, to_nir(model))


def test_what_leads_out_of_a_loop_is_not_late() -> None:
    graph = loop(("back", weight()), kind="LIF")
    graph.nodes["more"] = nir.Output({"output": np.array([4])})
    graph.edges.append(("back", "more"))
    model = from_nir(graph, "norse", dtype=F64)
    x = 3 * torch.rand(30, 2, 4, dtype=F64)
    for row in x:
        spikes_, led = model(row)
        torch.testing.assert_close(led, spikes_ @ torch.as_tensor(graph.nodes["back"].weight).T)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_delay_on_the_way_back_takes_the_loops_timestep(steps: int) -> None:
    graph = loop(("late", nir.Delay(np.full(4, steps * DT))), ("back", weight()))
    model = from_nir(graph, "norse", dtype=F64)
    rest = loop(("late", nir.Delay(np.full(4, (steps - 1) * DT))), ("back", weight()))
    x = 3 * torch.rand(40, 2, 4, dtype=F64)
    order = ["input", "late", "back", "cell", "output"]
    np.testing.assert_array_equal(unrolled(model, x), Reference(rest, order, model.how, DT).run(x))
    if steps == 1:
        plain = from_nir(loop(("back", weight())), "norse", dtype=F64)
        assert torch.equal(unrolled(model, x), unrolled(plain, x))
    same(graph, to_nir(model))


def test_a_convolution_comes_back_to_images() -> None:
    shape = (2, 4, 4)
    rng = np.random.default_rng(0)
    for cell in (neuron("LIF", shape), neuron("LIF", ())):
        back = nir.Conv2d((4, 4), rng.normal(size=(2, 2, 3, 3)), 1, 1, 1, 1, np.zeros(2))
        graph = loop(("back", back), size=1)
        graph.nodes |= {"cell": cell, "input": nir.Input({"input": np.array(shape)})}
        graph.nodes["output"] = nir.Output({"output": np.array(shape)})
        model = from_nir(graph, "norse", dtype=F64)
        x = torch.rand(20, 2, *shape, dtype=F64)
        reference = Reference(graph, ["input", "back", "cell", "output"], model.how, DT)
        reference.last = {"cell": np.zeros((2, *shape))}
        np.testing.assert_array_equal(unrolled(model, x), reference.run(x))
        same(graph, to_nir(model))


def test_a_graph_within_a_graph_is_as_if_it_were_not() -> None:
    inner = nir.NIRGraph(
        {
            "in": nir.Input({"input": np.array([4])}),
            "lif": neuron("LIF", (4,)),
            "back": weight(),
            "out": nir.Output({"output": np.array([4])}),
        },
        [("in", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "out")],
        type_check=False,
    )
    graph = line(weight(4, 3), inner, weight(2, 4), shape=(3,), out=(2,))
    flat = nir.NIRGraph(
        {
            "input": graph.nodes["input"],
            "a": graph.nodes["a"],
            "lif": inner.nodes["lif"],
            "back": inner.nodes["back"],
            "c": graph.nodes["c"],
            "output": graph.nodes["output"],
        },
        [
            ("input", "a"),
            ("a", "lif"),
            ("lif", "back"),
            ("back", "lif"),
            ("lif", "c"),
            ("c", "output"),
        ],
        type_check=False,
    )
    x = 3 * torch.rand(30, 2, 3, dtype=F64)
    nested = from_nir(graph, "norse", dtype=F64)
    assert torch.equal(unrolled(nested, x), unrolled(from_nir(flat, "norse", dtype=F64), x))
    assert "b_lif" in nested.source
    inner.nodes["out"] = nir.Output({"output": np.array([5])})
    with pytest.raises(NIRError, match=r"Output 'b.out': has shape \[5\]"):
        from_nir(graph, "norse")


def test_what_is_wrong_two_graphs_deep_is_named_by_its_whole_name() -> None:
    deep = line(neuron("LIF", (2,)), shape=(2,))
    graph = line(line(deep, shape=(2,)), shape=(2,))
    deep.nodes["a"].metadata = {"dt": 5e-5}
    assert from_nir(graph, "norse").dt == 5e-5
    deep.nodes["a"].metadata = {"dt": -1.0}
    with pytest.raises(NIRError, match=r"LIF 'a\.a\.a': the metadata's dt .* got -1\.0"):
        from_nir(graph, "norse")
    deep.metadata = {"dt": "soon"}
    with pytest.raises(NIRError, match=r"NIRGraph 'a\.a': the metadata's dt .* got 'soon'"):
        from_nir(graph, "norse")


# --------------------------------------------------------------------------------- malformed


def _drop(edge: tuple[str, str]) -> Callable[[Any], None]:
    return lambda graph: graph.edges.remove(edge)


def _set(node: str, field: str, value: Any) -> Callable[[Any], None]:
    return lambda graph: setattr(graph.nodes[node], field, value)


def _put(name: str, node: Any, *edges: tuple[str, str]) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph.nodes[name] = node
        graph.edges.extend(edges)

    return change


def _both(*changes: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for one in changes:
            one(graph)

    return change


def _square_loop(graph: Any) -> None:
    _put("w", weight(3, 3), ("a", "w"), ("w", "a"))(graph)
    _set("a", "weight", np.eye(3))(graph)
    _set("input", "input_type", {"input": np.array([3])})(graph)


class Foreign(nir.NIRNode):
    def __init__(self) -> None:
        self.input_type = self.output_type = {"input": np.array([3])}
        self.metadata = {}


MALFORMED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an edge from nowhere": (
        lambda g: g.edges.append(("ghost", "b")),
        "'ghost' → 'b': there is no",
    ),
    "an edge to nowhere": (lambda g: g.edges.append(("b", "ghost")), "'b' → 'ghost': there is no"),
    "an edge twice": (lambda g: g.edges.append(("a", "b")), "'a' → 'b' is there twice"),
    "no output": (lambda g: g.nodes.pop("output") and g.edges.pop(), "no Output"),
    "no input": (lambda g: g.nodes.pop("input") and g.edges.pop(0), "no Input"),
    "nothing leads to it": (
        _drop(("input", "a")),
        "Linear 'a': is led to by no edge|Input 'input'",
    ),
    "it leads to nothing": (_put("dead", weight(2, 3), ("b", "dead")), "'dead': leads to nothing"),
    "an output that leads on": (lambda g: g.edges.append(("output", "b")), "'output': leads to"),
    "an input that is led to": (lambda g: g.edges.append(("b", "input")), "'input': is led to by"),
    "an unknown kind": (_put("b", Foreign()), "'b' is of unknown kind 'Foreign'"),
    "a loop without a neuron": (_square_loop, "loop a → w → a has no neuron"),
    "an island": (
        _both(_put("i", neuron("LIF", (3,)), ("i", "j")), _put("j", weight(3, 3), ("j", "i"))),
        r"no path from an Input leads to \['i', 'j'\]",
    ),
    "a weight that does not fit": (
        _set("a", "weight", np.ones((3, 7))),
        r"'a': its input has shape \[7\]",
    ),
    "neurons that do not fit": (_put("b", neuron("LIF", (5,))), r"'b': its input has shape \[5\]"),
    "an output that does not fit": (
        _set("output", "input_type", {"input": np.array([9])}),
        r"'output': .*\[9\]",
    ),
    "another edge that does not fit": (
        lambda g: g.edges.append(("input", "b")),
        r"'input' → 'b': Input 'input' puts out shape \[4\]",
    ),
    "a bias that does not fit": (
        lambda g: g.nodes.update(a=nir.Affine(np.ones((3, 4)), np.ones(2))),
        r"Affine 'a': bias must have shape \[3\]",
    ),
    "a time constant of zero": (_set("b", "tau", np.zeros(3)), "LIF 'b': tau must be above 0"),
    "a value that is none": (
        _set("b", "r", np.array([1, np.nan, 1])),
        "LIF 'b': r must be finite, got nan",
    ),
    "a negative delay": (
        _put("d", nir.Delay(np.full(3, -DT)), ("a", "d"), ("d", "b")),
        "Delay 'd': delay must be finite and not below",
    ),
    "a kernel larger than its image": (
        lambda g: g.nodes.update(a=nir.Conv1d(None, np.ones((3, 4, 3)), 1, 0, 1, 1, np.ones(3))),
        "Conv1d 'a': its input must have 2 dimensions",
    ),
    "a timestep of no length": (
        lambda g: setattr(g, "metadata", {"dt": np.zeros(1)}),
        "the graph: the metadata's dt must be seconds above 0",
    ),
    "several timesteps": (
        _set("b", "metadata", {"dt": np.array([1e-3, 2e-3])}),
        "LIF 'b': the metadata's dt must be seconds above 0",
    ),
    "a timestep of nothing": (
        _set("b", "metadata", {"dt": np.empty(0)}),
        "LIF 'b': the metadata's dt must be seconds above 0",
    ),
    "metadata that are none": (
        _set("a", "metadata", "dt"),
        "Linear 'a': metadata must be a dict, got 'dt'",
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_graph_fails_by_name(fault: str) -> None:
    change, message = MALFORMED[fault]
    graph = line(weight(3, 4), neuron("LIF", (3,)), shape=(4,), out=(3,))
    from_nir(graph, "norse")
    change(graph)
    with pytest.raises(NIRError, match=message):
        from_nir(graph, "norse")


@pytest.mark.parametrize("value", ["sideways", np.nan, np.array([1, 2]), 3])
def test_a_graph_that_says_no_discretisation_is_told_so(value: Any) -> None:
    graph = to_nir(nn.Sequential(snn.LIB(3)), (3,))
    assert from_nir(graph).how == PRESETS["tracetorch"]
    graph.metadata["decay"] = value
    with pytest.raises(NIRError, match=r"the graph's metadata: .*decay must be one of"):
        from_nir(graph)
    assert from_nir(graph, "norse").how == PRESETS["norse"]


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a NIRGraph or a path"):
        from_nir(3, "norse")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_nir(tmp_path / "none.nir", "norse")
    (tmp_path / "text.nir").write_text("no graph")
    with pytest.raises(NIRError, match=r"text.nir is no NIR file"):
        from_nir(tmp_path / "text.nir", "norse")
    nir.write(tmp_path / "node.nir", weight())
    with pytest.raises(NIRError, match=r"node.nir holds no NIRGraph"):
        from_nir(str(tmp_path / "node.nir"), "norse")


def test_a_files_faults_are_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "graph.nir"

    def refused(change: Callable[[Any], Any], message: str) -> None:
        nir.write(path, line(weight(3, 4), neuron("LIF", (3,)), shape=(4,), out=(3,)))
        with h5py.File(path, "a") as file:
            change(file["node"])
        with pytest.raises(NIRError, match=message):
            from_nir(path, "norse")

    def kind(node: Any) -> None:
        del node["nodes/b/type"]
        node["nodes/b/type"] = "Izhikevich"

    refused(kind, "node 'b' is of unknown kind 'Izhikevich'")
    refused(lambda node: node.pop("nodes/b/tau"), "LIF 'b': .*tau")
    refused(lambda node: node.pop("nodes/b/type"), "'b' is of unknown kind None")
    refused(lambda node: node.pop("nodes"), "the graph has no nodes")
    refused(lambda node: node.pop("edges"), "the graph has no edges")
    refused(lambda node: node.pop("nodes/output"), "there is no node 'output'")

    def shape(node: Any) -> None:
        del node["nodes/b/tau"]
        node["nodes/b/tau"] = np.ones(7)

    refused(shape, "LIF 'b': All parameters must have the same shape")

    def name(node: Any) -> None:
        del node["edges"]
        node["edges"] = [[b"\xac", b"b"]]

    refused(name, "'\ufffd' → 'b': there is no")


def test_a_damaged_file_is_an_error_of_ours_or_none(tmp_path: Path) -> None:
    path = tmp_path / "graph.nir"
    nir.write(path, line(weight(3, 4), neuron("LIF", (3,)), shape=(4,), out=(3,)))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for attempt in range(60):
        damaged = bytearray(whole)
        if attempt % 3 == 0:
            damaged = damaged[: int(rng.integers(len(whole)))]
        else:
            for at in rng.integers(len(whole), size=20):
                damaged[at] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(NIRError):
            from_nir(path, "norse")


# --------------------------------------------------------------------------------- models to graphs

EXPORTED = ("LI", "LIEMA", "LIB", "SLI", "SLIEMA", "SLIB", "RLIB", "SRLIB")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", EXPORTED)
def test_each_layer_that_nir_has_comes_back_the_same(
    name: str, rank: int, build: Callable[..., snn.Layer]
) -> None:
    layer = build(getattr(snn, name), 4, rank=rank)
    graph = to_nir(layer, (4,))
    model = from_nir(graph, dtype=F64)
    x = 2 * torch.rand(50, 3, 4, dtype=F64) - 0.3
    torch.testing.assert_close(unrolled(model, x), stepped(layer, x), rtol=1e-9, atol=1e-12)
    same(graph, to_nir(model))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_graph_for_a_simulator_runs_as_the_model_did(preset: str) -> None:
    reset = snn.resets.subtract() if PRESETS[preset].reset == "subtract" else snn.resets.to(-0.2)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 8),
        snn.LIB(8, torch.rand(8), 0.5, reset=reset),
        snn.SLIB(8, reset=reset),
        snn.LI(8),
    ).double()
    x = 2 * torch.rand(60, 3, 5, dtype=F64)
    model = from_nir(to_nir(net, (5,), preset, dt=1e-3), preset, dtype=F64)
    assert model.dt == 1e-3
    torch.testing.assert_close(unrolled(model, x), stepped(net, x))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (snn.DLI(3), "decay apart"),
        (snn.DLIB(3), "decay apart"),
        (snn.LIT(3), "two signs, or a scale"),
        (snn.LITS(3), "two signs, or a scale"),
        (snn.LIB(3, refractory=2), "refractory"),
        (snn.LIB(3, adaptation=snn.Adaptation()), "adapts"),
        (snn.LIB(3, graded=True), "graded"),
        (snn.LIB(3, reset=snn.resets.never()), "never"),
        (snn.LIB(3, quant_fn=snn.quantizers.bernoulli()), "not 1 above the threshold"),
        (snn.LIB(3, spike_fn=torch.sigmoid), "not 1 above the threshold"),
        (snn.LIB(3, feedback=nn.Identity()), "without a weight"),
        (snn.LIB(3, feedback=nn.Tanh()), "its feedback has a Tanh, for which there is no node"),
        (nn.BatchNorm1d(3), "fold it into the weights"),
        (nn.ReLU(), "no node for ReLU"),
        (tt.testing.Trace(3), "no node for Trace"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, nn.Module) else "",
)
def test_what_nir_cannot_express_is_named(layer: nn.Module, reason: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), layer)
    with pytest.raises(NIRError, match=f"layer '1', {type(layer).__name__}: .*{reason}"):
        to_nir(net, (3,))


def test_resets_must_be_those_of_the_preset() -> None:
    mixed = nn.Sequential(snn.LIB(3), snn.LIB(3, reset=snn.resets.to(0.0)))
    with pytest.raises(
        NIRError, match=r"layer '1'.*to a value, that of layer '0' is by subtraction"
    ):
        to_nir(mixed, (3,))
    with pytest.raises(
        NIRError, match=r"layer '0'.*by subtraction, that of preset 'norse' is to a"
    ):
        to_nir(snn.LIB(3), (3,), "norse")
    delayed = snn.LIB(3, reset=snn.resets.subtract(delayed=True))
    assert from_nir(to_nir(delayed, (3,))).how.delayed


class Branches(tt.Model):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.fire = snn.LIB(2, 0.8, 0.3, dim=-3)
        self.skip = nn.Conv2d(1, 2, 1, bias=False)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AvgPool2d(2)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.out = snn.LI(3, 0.7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        images = self.pool(self.drop(self.fire(self.conv(x)) + self.skip(x)))
        flat = torch.flatten(images, 1)
        summed = self.heads[0](flat).add(self.heads[1](images.flatten(1)))
        return self.out(summed), flat


def test_branches_and_sums_become_edges() -> None:
    torch.manual_seed(0)
    net = Branches().double()
    graph = to_nir(net, (1, 4, 4))
    assert {a for a, b in graph.edges if b == "pool"} == {"fire", "skip"}
    assert {a for a, b in graph.edges if b == "out"} == {"heads.0", "heads.1"}
    model = from_nir(graph, dtype=F64)
    net.eval()
    for row in torch.rand(20, 2, 1, 4, 4, dtype=F64):
        for ours, theirs in zip(model(row), net(row), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert not net.training
    same(graph, to_nir(model))


def test_exporting_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snn.LIB(4))
    before = [net(torch.rand(2, 3)) for _ in range(2)]
    state = net[1].mem.clone()
    to_nir(net, torch.rand(5, 3))
    assert before
    assert net.training
    assert torch.equal(net[1].mem, state)


def test_what_a_forward_does_besides_is_named() -> None:
    def model(forward: Callable[[Any, Tensor], Any]) -> nn.Module:
        kind = type("Odd", (tt.Model,), {"forward": forward})
        odd: nn.Module = kind()
        odd.fire = snn.LIB(3)
        odd.lin = nn.Linear(3, 3)
        return odd

    faults: Mapping[str, Callable[[Any, Tensor], Any]] = {
        "calls relu": lambda self, x: torch.relu(self.fire(x)),
        "calls Tensor.tanh": lambda self, x: self.fire(x).tanh(),
        "calls mul": lambda self, x: self.fire(x) * 2,
        "adds something": lambda self, x: self.fire(x) + 1,
        "adds 'fire' to itself": lambda self, x: (lambda y: y + y)(self.fire(x)),
        "called twice": lambda self, x: self.fire(self.fire(x)),
        "cannot be traced": lambda self, x: self.fire(x) if x.sum() > 0 else x,
        "reads the tensor": lambda self, x: self.fire(x + self.lin.bias),
    }
    for message, forward in faults.items():
        with pytest.raises(NIRError, match=message):
            to_nir(model(forward), (3,))
    with pytest.raises(NIRError, match=r"a timestep of shape .* fails"):
        to_nir(nn.Linear(3, 2), (4,))
    with pytest.raises(TypeError, match="a timestep"):
        to_nir(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="dt must be above 0"):
        to_nir(nn.Linear(3, 2), (3,), dt=0.0)


def test_weights_of_a_stateless_module_called_twice_are_there_twice() -> None:
    class Twice(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.a, self.b = snn.LI(3), snn.LI(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.lin(self.a(self.lin(x))))

    net = Twice()
    graph = to_nir(net, (3,))
    assert {"lin", "lin_2"} <= set(graph.nodes)
    x = torch.rand(10, 2, 3)
    torch.testing.assert_close(unrolled(from_nir(graph), x), stepped(net, x))


# --------------------------------------------------------------------------------- there and back


@st.composite
def sequentials(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Random Sequential models over vectors or images, and their input's shape."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    subtract = draw(st.booleans())
    reset = snn.resets.subtract() if subtract else snn.resets.to(draw(st.sampled_from([0.0, -0.1])))
    parts: list[nn.Module] = []
    channels, size = draw(st.integers(1, 3)), draw(st.integers(4, 6))
    images = draw(st.booleans())
    shape: tuple[int, ...] = (channels, size, size) if images else (channels,)
    start = shape

    def cell(n: int, dim: int) -> nn.Module:
        kind = draw(st.sampled_from(["LI", "LIEMA", "LIB", "SLI", "SLIB", "RLIB", "SRLIB"]))
        rank = draw(st.integers(0, 1))
        values_ = {
            name: 0.05 + 0.9 * torch.rand((n,) if rank else ())
            for name in ("alpha", "beta", "gamma")
        }
        cls = getattr(snn, kind)
        given_: dict[str, Any] = {k: v for k, v in values_.items() if k in cls.parameter_names()}
        if cls.firing is not None:
            given_ |= {"threshold": 0.1 + torch.rand(n), "reset": reset}
            if cls.recurrence:
                given_["rec_weight"] = torch.randn(n)
            if dim == -1 and draw(st.booleans()):
                given_["feedback"] = nn.Linear(n, n, bias=draw(st.booleans()))
        made: nn.Module = cls(n, dim=dim, **given_)
        return made

    if images:
        for _ in range(draw(st.integers(0, 2))):
            out = draw(st.integers(1, 3))
            parts += [
                nn.Conv2d(shape[0], out, 3, padding=1, bias=draw(st.booleans())),
                cell(out, -3),
            ]
            shape = (out, *shape[1:])
        if draw(st.booleans()):
            parts.append(draw(st.sampled_from([nn.AvgPool2d(2), SumPool2d((2, 2))])))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        parts.append(nn.Flatten())
        shape = (int(np.prod(shape)),)
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(1, 5))
        parts += [nn.Linear(shape[0], out, bias=draw(st.booleans())), cell(out, -1)]
        if draw(st.booleans()):
            parts.append(snn.Delay(out, draw(st.sampled_from([1.0, 2.0, 0.5]))))
        shape = (out,)
    return nn.Sequential(*parts), start


@settings(max_examples=30, deadline=None)
@given(sequentials(), st.sampled_from([1e-4, 1e-3, 0.37]))
def test_a_random_model_comes_back_with_every_weight_and_every_spike(
    made: tuple[nn.Sequential, tuple[int, ...]], dt: float
) -> None:
    net, shape = made
    graph = to_nir(net, shape, dt=dt)
    model = from_nir(graph)
    assert model.dt == dt
    again = to_nir(model)
    same(graph, again)
    same(again, to_nir(from_nir(again)))
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            assert np.array_equal(graph.nodes[name].weight, module.weight.detach().numpy())
    x = 2 * torch.rand(25, 2, *shape)
    expected = stepped(net, x)
    with tt.backends.use("eager"):
        found = unrolled(model, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_file_keeps_every_value_and_the_discretisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4), snn.SLIB(4, torch.rand(4), torch.rand(4), feedback=nn.Linear(4, 4))
    )
    for preset in (None, "rockpool", Discretisation("exponential", "exponential", "subtract")):
        graph = to_nir(net, (3,), preset, dt=2e-4)
        nir.write(tmp_path / "net.nir", graph)
        model = from_nir(tmp_path / "net.nir")
        same(graph, to_nir(model))
        assert model.dt == 2e-4
        assert model.how == (
            PRESETS["tracetorch"] if preset is None else PRESETS.get(str(preset), preset)
        )
        x = 3 * torch.rand(30, 2, 3)
        torch.testing.assert_close(unrolled(model, x), stepped(net, x))
        net[1].zero_states()


def test_the_package_itself_takes_our_graphs(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        snn.LIB(2, dim=-3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
        snn.RLIB(3),
    )
    graph = to_nir(net, (1, 6, 6))
    graph.infer_types()
    assert graph.check_types()
    nir.write(tmp_path / "net.nir", graph)
    same(graph, nir.read(tmp_path / "net.nir"))


def test_a_trained_graph_is_exported_as_it_is_now() -> None:
    graph = line(weight(3, 4), neuron("LIF", (3,)), weight(2, 3, 1), shape=(4,), out=(2,))
    model = from_nir(graph, "norse")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.unroll(3 * torch.rand(30, 2, 4)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    again = to_nir(model)
    assert np.array_equal(again.nodes["a"].weight, model.a.weight.detach().numpy())
    assert not np.allclose(again.nodes["a"].weight, graph.nodes["a"].weight)
    assert np.array_equal(again.nodes["b"].tau, graph.nodes["b"].tau)


def test_neurons_that_were_changed_are_exported_as_they_are_now() -> None:
    for kind in KINDS:
        graph = line(neuron(kind, (3,)), shape=(3,))
        model = from_nir(graph, "nengo", dtype=F64)
        model.a.gain = 2 * model.a.gain
        again = to_nir(model).nodes["a"]
        np.testing.assert_allclose(again.r, 2 * graph.nodes["a"].r)
        for name, value in values(kind, (3,)).items():
            if name != "r":
                np.testing.assert_allclose(getattr(again, name), value, rtol=1e-12, atol=1e-15)


def test_images_with_a_convolution_on_the_way_back_and_an_adaptive_pool() -> None:
    torch.manual_seed(0)
    back = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        snn.SLIB(
            2, torch.rand(2), 0.8, 0.2, dim=-3, feedback=nn.Sequential(back, nn.Conv2d(2, 2, 1))
        ),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AvgPool2d((3, 2), divisor_override=1),
        nn.Flatten(),
    )
    x = torch.rand(20, 3, 1, 6, 6)
    graph = to_nir(net, x[0])
    assert graph.nodes["2"].kernel_size.tolist() == [2, 3]
    assert type(graph.nodes["3"]).__name__ == "SumPool2d"
    model = from_nir(graph)
    torch.testing.assert_close(unrolled(model, x), stepped(net, x))
    same(graph, to_nir(model))
    with pytest.raises(NIRError, match=r"its windows differ: \[6, 6\] is no multiple of \[4, 4\]"):
        to_nir(nn.AdaptiveAvgPool2d(4), (1, 6, 6))


def test_spikes_do_not_need_r() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), snn.LIB(8, torch.rand(8), 0.5), snn.SLIB(8), snn.LI(8))
    x = 2 * torch.rand(60, 3, 5)
    graph = to_nir(net, (5,), unit_r=True)
    plain = to_nir(net, (5,))
    assert [np.unique(graph.nodes[name].r).tolist() for name in "12"] == [[1.0], [1.0]]
    ratio = plain.nodes["1"].r / graph.nodes["1"].r
    np.testing.assert_allclose(graph.nodes["1"].v_threshold, plain.nodes["1"].v_threshold / ratio)
    assert np.array_equal(graph.nodes["3"].r, plain.nodes["3"].r)
    torch.testing.assert_close(unrolled(from_nir(graph), x), stepped(net, x))
    same(graph, to_nir(from_nir(plain), unit_r=True))
    flipped = line(neuron("IF", (3,)), shape=(3,))
    flipped.nodes["a"].r[1] = -1.0
    with pytest.raises(NIRError, match="IF 'a': unit_r needs an r above 0"):
        to_nir(from_nir(flipped, "norse"), unit_r=True)


def test_a_neuron_may_lead_to_itself() -> None:
    graph = loop(kind="LIF")
    model = from_nir(graph, "norse", dtype=F64)
    x = torch.rand(30, 2, 4, dtype=F64)
    expected = Reference(graph, ["input", "cell", "output"], model.how, DT).run(x)
    np.testing.assert_array_equal(unrolled(model, x), expected)
    same(graph, to_nir(model))


def test_two_ways_back_are_added_up() -> None:
    graph = loop(("one", weight()), kind="LIF")
    graph.nodes["two"] = weight(seed=1)
    graph.edges += [("cell", "two"), ("two", "cell")]
    model = from_nir(graph, "norse", dtype=F64)
    x = 2 * torch.rand(30, 2, 4, dtype=F64)
    expected = Reference(graph, ["input", "one", "two", "cell", "output"], model.how, DT).run(x)
    np.testing.assert_array_equal(unrolled(model, x), expected)
    same(graph, to_nir(model))


def test_a_graph_can_be_written_for_another_simulator() -> None:
    graph = loop(("back", weight()), kind="CubaLIF")
    model = from_nir(graph, "norse", dtype=F64)
    other = to_nir(model, preset="nengo", dt=1e-3)
    assert not np.allclose(other.nodes["cell"].tau_mem, graph.nodes["cell"].tau_mem)
    x = 3 * torch.rand(40, 2, 4, dtype=F64)
    assert torch.equal(unrolled(from_nir(other, dtype=F64), x), unrolled(model, x))
    with pytest.raises(NIRError, match="layer 'cell', Neuron: its reset is to a value"):
        to_nir(model, preset="rockpool")
    with pytest.raises(NIRError, match="order='synapse', the discretisation order='membrane'"):
        to_nir(model, preset=Discretisation(order="membrane"))


# --------------------------------------------------------------------------------- being a model


@pytest.mark.parametrize("kind", KINDS)
def test_a_neuron_keeps_the_contract_of_a_layer(kind: str) -> None:
    how = Discretisation(delayed=kind == "LIF")

    def make() -> Neuron:
        found = from_nir(line(neuron(kind, (3,)), shape=(3,)), how, dtype=F64).a
        assert isinstance(found, Neuron)
        return found

    tt.testing.check_layer(make, torch.randn(6, 2, 3, dtype=F64))


def test_what_closes_a_loop_is_a_layer() -> None:
    for holds in (
        tt.testing.step_equals_unroll,
        tt.testing.samples_are_independent,
        tt.testing.states_round_trip,
        tt.testing.zeroing_restarts,
        tt.testing.masks_restart_samples,
        tt.testing.dim_is_a_layout,
    ):
        holds(lambda: Last((3,)), torch.randn(6, 2, 3, dtype=F64))


def test_a_model_of_a_graph_can_be_copied_moved_and_looked_at() -> None:
    graph = loop(("late", nir.Delay(np.full(4, 2 * DT))), ("back", weight()))
    model = from_nir(graph, "norse")
    x = 3 * torch.rand(20, 2, 4)
    expected = unrolled(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin, GraphModel)
        assert torch.equal(unrolled(twin, x), expected)
        same(graph, to_nir(twin))
    model.TTcompile()
    assert torch.equal(unrolled(model, x), expected)
    model.zero_states()
    assert model.double()(x[0].double()).dtype == F64
    assert "Discretisation(decay='euler'" in repr(model)
    with pytest.raises(TypeError, match=r"inputs .'input'. are needed, got 2 tensors"):
        model(x[0], x[0])


def test_names_become_attributes_of_their_own() -> None:
    names = ["class", "a.b", "a_b", "1", "forward", "steps", "ü"]
    nodes = {name: weight(2, 2, at) for at, name in enumerate(names)}
    put = {"input": nir.Input({"input": np.array([2])}), **nodes}
    put["output"] = nir.Output({"output": np.array([2])})
    order = list(put)
    graph = nir.NIRGraph(put, list(pairwise(order)), type_check=False)
    model = from_nir(graph, "norse", dtype=F64)
    x = torch.rand(3, 2, dtype=F64)
    expected = x
    for node in nodes.values():
        expected = expected @ torch.as_tensor(node.weight).T
    torch.testing.assert_close(model(x), expected)
    assert sorted(model.names.values()) == sorted(put)
    compile(model.source, "source", "exec")
    same(graph, to_nir(model))


def test_inputs_and_outputs_may_be_several() -> None:
    nodes = {
        "left": nir.Input({"input": np.array([2])}),
        "right": nir.Input({"input": np.array([2])}),
        "lif": neuron("LIF", (2,)),
        "sum": nir.Output({"output": np.array([2])}),
        "spikes": nir.Output({"output": np.array([2])}),
    }
    edges = [
        ("left", "lif"),
        ("right", "lif"),
        ("lif", "spikes"),
        ("left", "sum"),
        ("right", "sum"),
    ]
    model = from_nir(nir.NIRGraph(nodes, edges, type_check=False), "norse")
    left, right = torch.rand(3, 2), torch.rand(3, 2)
    summed, fired = model(left, right)
    assert torch.equal(summed, left + right)
    assert fired.shape == (3, 2)


def test_the_surrogate_is_chosen_and_shapes_gradients_alone() -> None:
    graph = line(
        weight(3, 4), neuron("LIF", (3,)), nir.Threshold(np.full(3, 0.5)), shape=(4,), out=(3,)
    )
    x = 3 * torch.rand(20, 2, 4)
    one, other = (
        from_nir(graph, "norse", spike_fn=lambda slope=slope: snn.surrogates.atan(slope))
        for slope in (2.0, 9.0)
    )
    assert torch.equal(unrolled(one, x), unrolled(other, x))
    one.zero_states()
    one.unroll(x).sum().backward()
    other.zero_states()
    other.unroll(x).sum().backward()
    assert not torch.equal(one.a.weight.grad, other.a.weight.grad)
    with pytest.raises(TypeError, match=r"maker of snn.surrogates"):
        from_nir(graph, "norse", spike_fn=nn.ReLU)


def test_a_reset_may_be_another_than_the_presets() -> None:
    graph = line(neuron("LIF", (2,)), shape=(2,))
    assert from_nir(graph, "norse", reset="subtract").how == replace(
        PRESETS["norse"], reset="subtract"
    )
    with pytest.raises(ValueError, match="reset must be one of"):
        from_nir(graph, "norse", reset="zero")  # type: ignore[arg-type]
