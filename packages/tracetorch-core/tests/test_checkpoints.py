"""Checkpoints: a run goes on bit for bit, or nothing has changed and the file says why not."""

from __future__ import annotations

import copy
import errno
import io
import os
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tracetorch import seals
from tracetorch.generators import everywhere
from tracetorch.testing import Trace


class Noisy(tt.Layer):
    """Draws numbers of its own."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.add_state("mem")
        self.add_parameter("beta", 0.9, constraint=tt.constraints.sigmoid)
        self.uniform = tt.Random()

    def step(self, states, x, p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        mem = p.beta * states.mem + x + self.uniform(x)
        return {"mem": mem}, mem


class Net(tt.Model):
    """Batch statistics, dropout, a layer that torch sees and one in a plain list."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3))
        self.noisy = Noisy(width)
        self.hidden = [Trace(width)]
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.hidden[0](self.noisy(self.into(x))))
        return y


class Run:
    """All kinds of parts that a run may have."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = Net(width)
        parameters = [*self.net.parameters(), *self.net.hidden[0].parameters()]
        self.optimizer = torch.optim.Adam(parameters, 0.05)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=20)
        self.average = AveragedModel(self.net)
        self.generator = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []

    @property
    def objects(self) -> dict[str, Any]:
        names = ("optimizer", "schedule", "average", "generator")
        return {name: getattr(self, name) for name in names}

    def advance(self) -> None:
        """A step on a piece of an endless stream: states are carried over."""
        x = torch.rand(5, 2, 3, generator=self.generator) + random.random()
        loss = (self.net.unroll(x) - float(np.random.rand())).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.net)
        self.net.detach_states()
        self.losses.append(loss.item())

    def everything(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "weights": self.net.state_dict(),
                "hidden": self.net.hidden[0].state_dict(),
                "states": self.net.get_states(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "average": self.average.state_dict(),
                "generator": self.generator.get_state(),
                "everywhere": everywhere(),
            }
        )

    def save(self, file: Path) -> None:
        tt.save_checkpoint(file, self.net, **self.objects, losses=self.losses, settings={"seed": 0})

    def load(self, file: Path, **parts: Any) -> dict[str, Any]:
        return tt.load_checkpoint(file, self.net, **{**self.objects, **parts})


def begun(steps: int) -> Run:
    random.seed(0)
    np.random.seed(0)
    run = Run()
    for _ in range(steps):
        run.advance()
    return run


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.pt"


# ------------------------------------------------------------------ going on


def test_a_run_that_is_gone_on_with_is_the_run_that_never_stopped(file: Path) -> None:
    whole = begun(8)
    end = whole.everything()
    begun(3).save(file)
    random.seed(5)
    np.random.seed(5)
    other = Run(seed=7)
    other.advance()
    position = other.load(file, settings={"seed": 0})
    assert position == {"losses": whole.losses[:3]}
    other.losses = position["losses"]
    for _ in range(5):
        other.advance()
    assert other.losses == whole.losses
    assert same(other.everything(), end)


def test_saving_changes_nothing_and_keeps_the_graph(file: Path) -> None:
    run = begun(2)
    y = run.net.unroll(torch.rand(3, 2, 3))
    states, graph = run.net.get_states(), run.net.noisy.mem.grad_fn
    places, weights = everywhere(), copy.deepcopy(run.net.state_dict())
    run.save(file)
    assert graph is not None
    assert run.net.noisy.mem.grad_fn is graph
    assert same(
        (run.net.get_states(), everywhere(), run.net.state_dict()), (states, places, weights)
    )
    y.sum().backward()


def test_states_that_were_not_made_yet_are_not_made_by_it(file: Path) -> None:
    begun(0).save(file)
    run = begun(2)
    run.load(file)
    assert run.net.get_states() == {}


def test_the_global_generators_are_left_where_they_are_on_request(file: Path) -> None:
    begun(2).save(file)
    run = begun(0)
    before = everywhere()
    tt.load_checkpoint(file, run.net, generators=False, **run.objects)
    assert same(everywhere(), before)


def test_what_a_state_is_a_part_of_is_not_saved(file: Path) -> None:
    layer = Trace(2)
    layer.set_states({"mem": torch.zeros(100_000, 2)[:3]})
    tt.save_checkpoint(file, layer)
    assert file.stat().st_size < 50_000


def test_wrapped_compiled_and_plain_modules_read_one_another(file: Path) -> None:
    net = begun(2).net
    states = net.get_states()
    wrapped: tuple[Callable[[nn.Module], Any], ...] = (
        lambda module: module,
        nn.DataParallel,
        lambda module: torch.compile(module, backend="eager"),
        lambda module: torch.compile(nn.DataParallel(module), backend="eager"),
    )
    for one in wrapped:
        tt.save_checkpoint(file, one(net))
        for other in wrapped:
            fresh = Net()
            tt.load_checkpoint(file, other(fresh))
            assert same(fresh.state_dict(), net.state_dict())
            assert same(fresh.get_states(), states)


def test_a_compiled_model_is_loaded_into_one_that_learns(file: Path) -> None:
    net = begun(2).net
    net.TTcompile()
    tt.save_checkpoint(file, net)
    fresh = Net()
    fresh.TTcompile()
    tt.load_checkpoint(file, fresh)
    x = torch.rand(4, 2, 3)
    assert torch.equal(fresh.eval().unroll(x), net.eval().unroll(x))


VALUES: dict[str, Any] = {
    "numbers": [1, 2.5, True, None, 1j],
    "text": {"a": "b", 3: b"bytes"},
    "tensors": (torch.arange(3), torch.tensor(float("nan"))),
    "kinds": [torch.float16, torch.device("cpu"), torch.Size([2, 3])],
}


def test_values_come_back_as_they_were(file: Path) -> None:
    tt.save_checkpoint(file, nn.Linear(1, 1), **VALUES)
    found = tt.load_checkpoint(file, nn.Linear(1, 1))
    assert found.keys() == VALUES.keys()
    assert repr(found) == repr(VALUES)
    assert repr(tt.checkpoint_values(file)) == repr(VALUES)


def test_values_are_read_without_a_model_and_change_nothing(file: Path) -> None:
    run = begun(3)
    run.save(file)
    content, before = file.read_bytes(), everywhere()
    assert tt.checkpoint_values(file) == {"settings": {"seed": 0}, "losses": run.losses}
    assert same(everywhere(), before)
    assert file.read_bytes() == content


# ------------------------------------------------------------------ what does not fit


def _narrow(run: Run) -> None:
    run.net = Net(5)


def _other_groups(run: Run) -> None:
    run.optimizer = torch.optim.Adam([{"params": [p]} for p in run.net.parameters()], 0.1)


def _fewer_layers(run: Run) -> None:
    run.net.hidden = []


def _more_layers(run: Run) -> None:
    run.net.hidden.append(Trace(4))


def _other_states(run: Run) -> None:
    run.net.noisy = nn.Identity()  # type: ignore[assignment]


class Refusing:
    """An object of the user's that fails at the last."""

    def state_dict(self) -> dict[str, int]:
        return {"place": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["place"] != 3:
            raise KeyError("place")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_narrow, r"does not fit model, Net: RuntimeError: Error\(s\) in loading state_dict"),
        (_other_groups, "does not fit optimizer, Adam: ValueError: .*parameter group"),
        (_fewer_layers, r"does not fit model, Net: ValueError: holds the layers outside .*hidden"),
        (_more_layers, r"does not fit model, Net: ValueError: holds the layers outside .*hidden"),
        (_other_states, "does not fit model, Net: ValueError: holds the layers"),
    ],
)
def test_a_run_of_another_kind_is_named_and_nothing_has_changed(
    file: Path, change: Callable[[Run], None], says: str
) -> None:
    begun(3).save(file)
    run = begun(1)
    change(run)
    before = run.everything() if run.net.hidden else copy.deepcopy(run.net.state_dict())
    with pytest.raises(tt.CheckpointError, match=f"{re.escape(str(file))} {says}"):
        run.load(file)
    after = run.everything() if run.net.hidden else run.net.state_dict()
    assert same(after, before)


def test_what_was_loaded_before_the_one_that_fails_is_put_back(file: Path) -> None:
    class Late(Refusing):
        def state_dict(self) -> dict[str, int]:
            return {"place": 4}

    saved = begun(3)
    tt.save_checkpoint(file, saved.net, **saved.objects, late=Late())
    run = begun(1)
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match="does not fit late, Refusing: KeyError: 'place'"):
        run.load(file, late=Refusing())
    assert same(run.everything(), before)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"settings": {"seed": 1}}, "is of another run: its seed is 0, not 1"),
        ({"settings": {"seed": 0.0}}, "is of another run: its seed is 0, not 0.0"),
        ({"settings": {"speed": 1}}, "is of another run: its settings is {'seed': 0}, not"),
        ({"losses": [1.0]}, "is of another run: its losses is "),
        ({"epoch": 1}, r"holds no epoch, but \['losses', 'settings'\]"),
        ({"scaler": Refusing()}, "holds the objects .*: it is of another program, or"),
        ({"generator": 3}, "holds the objects"),
    ],
)
def test_other_values_and_objects_are_named_and_nothing_has_changed(
    file: Path, parts: dict[str, Any], says: str
) -> None:
    begun(3).save(file)
    run = begun(1)
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match=f"{re.escape(str(file))} {says}"):
        run.load(file, **parts)
    assert same(run.everything(), before)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"file": Path("x")}, "file is .*, a (Posix|Windows)Path; a checkpoint holds"),
        ({"curve": {"loss": [0.5, np.float32(1)]}}, r"curve.loss\[1\] is .*, a float32;"),
        ({"settings": {(1, Path("x")): 2}}, r"a key of settings\[1\] is .*Path"),
        ({"function": len}, "function is .*, a builtin_function_or_method"),
    ],
)
def test_what_could_not_be_read_back_is_refused_by_its_place(
    file: Path, parts: dict[str, Any], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        tt.save_checkpoint(file, nn.Linear(1, 1), **parts)
    assert list(file.parent.iterdir()) == []


# ------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "run.pt"
    begun(2).save(file)
    return file.read_bytes()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_told_and_changes_nothing(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "run.pt"
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        file.write_bytes(whole[:place])
    else:
        flipped = data.draw(st.integers(1, 255))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :])
    run = Run()
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match="truncated, damaged or"):
        run.load(file)
    with pytest.raises(tt.CheckpointError, match="truncated, damaged or"):
        tt.checkpoint_values(file)
    assert same(run.everything(), before)


def sealed(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    seals.seal(buffer)
    return buffer.getvalue()


class Harmful:
    """What a file must not be able to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("HARMED", "yes")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not end with the SHA-256"),
        (pickle.dumps({"format": "tracetorch-checkpoint-1"}), "does not end with the SHA-256"),
        (
            sealed({"format": "tracetorch-checkpoint-2", "version": "3.4.5"}),
            "was written by traceTorch 3.4.5 in the format 'tracetorch-checkpoint-2', and "
            f"traceTorch {re.escape(tt.__version__)} reads up to 'tracetorch-checkpoint-1'; "
            "install that version or a later one: pip install --upgrade tracetorch",
        ),
        (sealed({"format": "tracetorch-checkpoint-0"}), "has the format 'tracetorch-checkpoint-0'"),
        (sealed([1, 2]), "has the format None"),
        (sealed({"format": "tracetorch-checkpoint-1", "x": Harmful()}), "cannot be read: Unpickl"),
    ],
)
def test_another_file_is_told(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    for read in (
        lambda: tt.load_checkpoint(file, nn.Linear(1, 1)),
        lambda: tt.checkpoint_values(file),
    ):
        with pytest.raises(tt.CheckpointError, match=f"{re.escape(str(file))} .*{says}"):
            read()


@pytest.mark.parametrize("part", ["objects", "values", "generators"])
def test_a_sealed_file_without_a_part_changes_nothing(file: Path, part: str) -> None:
    begun(2).save(file)
    content = torch.load(file, weights_only=True)
    file.write_bytes(sealed({**content, part: [1]}))
    run = Run()
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match=f"holds no {part}"):
        run.load(file)
    assert same(run.everything(), before)


def test_weights_that_torch_does_not_write_are_named_and_nothing_has_changed(file: Path) -> None:
    run = begun(2)
    with torch.inference_mode():
        run.net.hidden.append(late := Trace(3))
    run.save(file)
    run.optimizer.param_groups[0]["lr"] = 0.7
    before = run.everything()
    says = r"into model: .* of Trace was made under torch.inference_mode"
    with pytest.raises(tt.CheckpointError, match=says):
        run.load(file)
    assert same(run.everything(), before)
    tt.save_checkpoint(file, late)
    with torch.inference_mode():
        weight = next(late.parameters())
        saved = weight.clone()
        weight.zero_()
        tt.load_checkpoint(file, late)
        assert torch.equal(weight, saved)


def test_a_sealed_file_without_layers_changes_nothing(file: Path) -> None:
    begun(2).save(file)
    content = torch.load(file, weights_only=True)
    objects = {**content["objects"], "model": torch.zeros(3)}
    file.write_bytes(sealed({**content, "objects": objects}))
    run = Run()
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match=r"does not fit model, .*holds Tensor where"):
        run.load(file)
    assert same(run.everything(), before)


@pytest.mark.parametrize("part", ["objects", "values"])
def test_a_sealed_file_with_names_of_other_kinds_changes_nothing(file: Path, part: str) -> None:
    begun(2).save(file)
    content = torch.load(file, weights_only=True)
    kept = {7 if name in ("model", "settings") else name: v for name, v in content[part].items()}
    file.write_bytes(sealed({**content, part: kept}))
    run = Run()
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match=r"holds .*7, "):
        run.load(file, settings={"seed": 0})
    assert same(run.everything(), before)


@pytest.mark.parametrize("name", ["torch", "python", "numpy"])
def test_generators_that_cannot_be_put_back_change_nothing(file: Path, name: str) -> None:
    begun(2).save(file)
    content = torch.load(file, weights_only=True)
    file.write_bytes(sealed({**content, "generators": {**content["generators"], name: ()}}))
    run = Run()
    before = run.everything()
    with pytest.raises(tt.CheckpointError, match="does not fit the generators here"):
        run.load(file)
    assert same(run.everything(), before)


def test_a_file_of_states_alone_is_told(file: Path) -> None:
    net = begun(1).net
    net.save_states(file)
    with pytest.raises(tt.CheckpointError, match=r"states alone are for load_states\(\)"):
        tt.load_checkpoint(file, net)


def test_no_file_and_no_folder_are_named(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        tt.load_checkpoint(file, nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        tt.checkpoint_values(file)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tt.save_checkpoint(file / "deeper" / "run.pt", nn.Linear(1, 1))


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    run = begun(1)
    run.save(file)
    old = file.read_bytes()
    run.advance()
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, _raising(error))
        with pytest.raises(type(error)):
            run.save(file)
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == old


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_disk_that_is_really_full_leaves_the_old_file(file: Path) -> None:
    import resource

    tt.save_checkpoint(file, nn.Linear(1, 1))
    old = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            tt.save_checkpoint(file, nn.Linear(300, 300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == old
