"""State files: what comes back, where, in which dtype; files kept for later versions to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from torch import Tensor, nn
from tracetorch.testing import AdaptiveLIF, StateSpace, Trace

DATA = Path(__file__).parent / "data"


class Net(tt.Model):
    """Two layers in a dict, three states."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {"leak": Trace(2), "lif": AdaptiveLIF(2)}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.held["lif"](self.held["leak"](x))
        return y


class Holder(tt.Model):
    """Holds layers that the test calls itself."""

    def __init__(self, *held: tt.Layer) -> None:
        super().__init__()
        self.held = held


def stepped() -> Net:
    model = Net()
    model(torch.tensor([[0.5, 2.0], [1.5, -1.0], [0.25, 3.0]]))
    return model


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("dim", [-1, -3])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_states_come_back_bit_for_bit(path: Path, dtype: torch.dtype, dim: int) -> None:
    def make() -> Holder:
        return Holder(Trace(2, dim=dim), StateSpace(2, dim=dim), AdaptiveLIF(2, dim=dim)).to(dtype)

    model, again = make(), make()
    x = torch.randn(2, 2, 3, 2, dtype=dtype, requires_grad=True)
    for layer in model.held[:2]:
        layer(x)
    scattered = {n: s.mT.contiguous().mT for n, s in model.get_states().items()}
    model.set_states(scattered, strict=False)
    states = model.get_states()
    assert all(s.requires_grad and not s.is_contiguous() for s in states.values())
    model.save_states(path)
    assert all(state is model.get_states()[name] for name, state in states.items())
    again.held[2](x)
    again.load_states(path)
    assert again.held[2].mem is None
    loaded = again.get_states()
    assert loaded.keys() == states.keys()
    for name, state in loaded.items():
        assert (state.dtype, state.requires_grad) == (dtype, False)
        assert torch.equal(state, states[name])
    for one, other in zip(model.held, again.held, strict=True):
        other.load_state_dict(one.state_dict())
        assert torch.equal(other(x), one(x))


@pytest.mark.parametrize("shape", [(2,), (0, 2), (3, 1, 2), (3, 0, 2), (1, 2)])
def test_shapes_come_back_as_they_were(path: Path, shape: tuple[int, ...]) -> None:
    model, again = Holder(Trace(2), StateSpace(2)), Holder(Trace(2), StateSpace(2))
    x = torch.randn(*shape)
    model.held[0](x), model.held[1](x)
    model.save_states(path)
    again.load_states(path)
    for name, state in model.get_states().items():
        assert torch.equal(again.get_states()[name], state)
        assert again.get_states()[name].shape == state.shape


def test_nothing_created_yet_is_a_file_too(path: Path) -> None:
    Net().save_states(path)
    model = stepped()
    model.load_states(path)
    assert model.get_states() == {}


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 1e-45])
def test_special_numbers_come_back(path: Path, special: float) -> None:
    model = Holder(Trace(2))
    model.held[0].mem = torch.tensor([[special, 1.0]])
    model.save_states(path)
    before = model.held[0].mem.view(torch.int32).tolist()
    model.load_states(path)
    assert model.held[0].mem.view(torch.int32).tolist() == before


def test_names_of_any_script_come_back(path: Path) -> None:
    model = Holder()
    model.held = {"slow trace": Trace(1), "Δt → ∞": Trace(1), 'a."b"\\': Trace(1), "": Trace(1)}
    for value, layer in enumerate(model.held.values()):
        layer.mem = torch.full((1, 1), float(value))
    model.save_states(path)
    model.zero_states()
    model.load_states(path)
    assert [layer.mem.item() for layer in model.held.values()] == [0.0, 1.0, 2.0, 3.0]


def test_a_file_of_other_parameters_dtype_becomes_theirs(path: Path) -> None:
    model = stepped()
    model.save_states(path)
    wider = Net().double()
    wider.load_states(path)
    for name, state in wider.get_states().items():
        assert torch.equal(state, model.get_states()[name].double())
    wider(torch.ones(3, 2, dtype=torch.float64))


class Counter(tt.Layer):
    """A layer without parameters."""

    def __init__(self) -> None:
        super().__init__(1)
        self.add_state("sum")

    def step(self, states: Any, x: Tensor, p: Any) -> Any:
        return {"sum": states.sum + x}, x


def test_without_parameters_the_default_dtype_does_not_matter(path: Path) -> None:
    model = Holder(Counter())
    model.held[0](torch.ones(1, 1))
    model.save_states(path)
    torch.set_default_dtype(torch.float64)
    try:
        model.load_states(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.held[0].sum.dtype == torch.float32
    model.held[0](torch.ones(1, 1))


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_states_go_where_the_layer_is_or_the_caller_says(path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    model = stepped()
    model.save_states(path)
    told, moved = Net(), Net().to(device)
    told.load_states(path, device=device)
    moved.load_states(path)
    for loaded in (told, moved):
        assert {state.device.type for state in loaded.get_states().values()} == {device}
    if device != "meta":
        moved.save_states(path)
        model.load_states(path)
        assert {state.device.type for state in model.get_states().values()} == {"cpu"}
        for name, state in model.get_states().items():
            assert torch.equal(state, moved.get_states()[name].cpu())


@pytest.mark.parametrize("saved_compiled", [False, True])
def test_compiled_and_not_read_each_others_files(path: Path, saved_compiled: bool) -> None:
    writer, reader = stepped(), Net()
    (writer if saved_compiled else reader).TTcompile()
    writer.save_states(path)
    reader.load_states(path)
    x = torch.tensor([[1.0, 0.5], [0.0, 2.0], [3.0, 0.25]])
    for _ in range(3):
        assert torch.equal(reader(x), writer(x))


def test_saving_follows_paths_of_every_kind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stepped()
    monkeypatch.chdir(path.parent)
    model.save_states(path.name)
    model.load_states(path)
    assert path.exists()
    with pytest.raises(FileNotFoundError):
        model.save_states(path.parent / "nowhere" / path.name)
    assert list(path.parent.iterdir()) == [path]


def test_a_model_without_states_has_a_file_too(path: Path) -> None:
    class Stateless(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)

    Stateless().save_states(path)
    Stateless().load_states(path)
    with pytest.raises(tt.StateError, match=r"missing \['held\.leak\.mem'"):
        stepped().load_states(path)


# ---------------------------------------------------------------- files of earlier versions


def of_0_17() -> tuple[Holder, dict[str, Tensor]]:
    """The model and states of ``data/states-0.17.0.dev0.*``.

    Written once by that version: ``model.set_states(states, strict=False)``, ``save_states``.
    """
    model = Holder(Trace(2), Trace(1, beta=0.5, dim=0).double(), StateSpace(1, order=2))
    model.held = [*model.held, {"late": AdaptiveLIF(3)}]
    return model, {
        "held.0.mem": torch.tensor([[0.5, -1.25], [3.0, 0.0]]),
        "held.1.mem": torch.tensor([0.1], dtype=torch.float64),
        "held.2.h": torch.tensor([[[1.5, -0.0625]], [[2.0**-20, 1e20]]]),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_of_0_17_0_dev0_are_read(suffix: str) -> None:
    kept = DATA / f"states-0.17.0.dev0{suffix}"
    model, states = of_0_17()
    model.held[3]["late"](torch.ones(1, 3))
    model.load_states(kept)
    assert b"0.17.0.dev0" in kept.read_bytes()
    assert sorted(model.get_states()) == sorted(states)
    for name, state in model.get_states().items():
        assert state.dtype == states[name].dtype
        assert torch.equal(state, states[name])
    assert model.held[3]["late"].mem is None
