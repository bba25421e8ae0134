"""Sequences larger than memory: pieces from a file are the whole, and little of it is resident."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

WORKER = Path(__file__).parent / "workers" / "streamed.py"
SAMPLES, STEPS = 8, 65_000  # 67 MB; a piece is 2 MB, and does not divide it


@pytest.mark.skipif(sys.platform != "linux", reason="resident peaks are measured on Linux")
def test_pieces_from_files_are_the_whole_and_little_is_resident(tmp_path: Path) -> None:
    stream = torch.rand(STEPS, SAMPLES, 32, generator=torch.Generator().manual_seed(0))
    files = [tmp_path / "stream.f32", tmp_path / "stream.safetensors"]
    stream.numpy().tofile(files[0])
    save_file({"other": torch.zeros(3), "x": stream}, files[1])
    command = [sys.executable, WORKER, *files, str(SAMPLES)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert said.returncode == 0, said.stderr
    worker = runpy.run_path(str(WORKER))
    whole = worker["found"](worker["Net"](), iter([stream]))
    came: dict[str, Any] = json.loads(said.stdout)
    assert [*came] == ["memmap", "safetensors"]
    for how, of in came.items():
        assert of["states"] == whole["states"], how
        assert of["total"] == pytest.approx(whole["total"], rel=1e-12), how
        assert of["grown"] < stream.nbytes / 3, how
