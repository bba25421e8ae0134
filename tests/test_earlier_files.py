"""Files of states and checkpoints that earlier versions wrote are read: ``tests/data``."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracetorch as tt
from tracetorch import checkpoints, state_files
from tracetorch.generators import left_alone

DATA = Path(__file__).parent / "data"
STATES = sorted(path for path in DATA.glob("states-*.*") if path.suffix != ".npz")
CHECKPOINTS = sorted(DATA.glob("checkpoint-*.pt"))

# made elsewhere, where sums are rounded differently
ROUNDED = {"rtol": 1e-4, "atol": 1e-5}


def _write() -> Any:
    """The module that wrote them."""
    spec = importlib.util.spec_from_file_location("write", DATA / "write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write = _write()


def expected(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.name)
def test_states_are_read_bit_for_bit(path: Path) -> None:
    net = write.Net()
    net.unused(torch.ones(3, 2))
    assert net.load_states(path) == ([], [])
    found, wanted = net.get_states(), expected(path)
    assert found.keys() == wanted.keys()
    assert len(wanted) > 15
    for name, state in found.items():
        assert state.dtype == wanted[name].dtype, name
        assert torch.equal(state, wanted[name]), name
    assert net.unused.mem is None


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.name)
def test_damage_in_them_is_found(path: Path, tmp_path: Path) -> None:
    largest = max(expected(path).values(), key=torch.Tensor.numel).numpy().tobytes()
    whole, broken, net = path.read_bytes(), tmp_path / path.name, write.Net()
    for cut in (len(whole) - 1, len(whole) // 2):
        broken.write_bytes(whole[:cut])
        with pytest.raises(tt.StateFileError, match="truncated, damaged"):
            net.load_states(broken)
    assert whole.count(largest) == 1
    broken.write_bytes(whole.replace(largest, bytes(len(largest))))
    with pytest.raises(tt.StateFileError, match="damaged"):
        net.load_states(broken)
    assert net.get_states() == {}


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_a_run_goes_on_as_it_did_then(path: Path) -> None:
    run, wanted = write.Run(), expected(path)
    parts = {"optimizer": run.optimizer, "generator": run.generator, "settings": {"lr": 0.05}}
    with left_alone(), tt.backends.use("eager"):
        rest = tt.load_checkpoint(path, run.net, **parts)
        assert rest.keys() == {"losses", "step"}
        assert rest["step"] == 2
        run.losses = rest["losses"]
        outputs = run.advance()
        drawn = [*torch.rand(2).tolist(), random.random(), np.random.rand()]
    weights = torch.cat([weight.detach().flatten() for weight in run.net.weights()])
    assert drawn == wanted["drawn"].tolist()
    assert wanted["outputs"].abs().max() > 1e-3
    torch.testing.assert_close(outputs, wanted["outputs"], **ROUNDED)
    torch.testing.assert_close(torch.tensor(run.losses).double(), wanted["losses"], **ROUNDED)
    torch.testing.assert_close(weights, wanted["weights"], **ROUNDED)


def test_each_format_that_is_written_has_a_file_here() -> None:
    held = {path: path.read_bytes() for path in (*STATES, *CHECKPOINTS)}
    for format_, files in ((state_files.FORMAT, STATES), (checkpoints.FORMAT, CHECKPOINTS)):
        assert any(format_.encode() in held[path] for path in files), f"none of {format_}"
