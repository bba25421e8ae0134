"""The kernel cache: found again, safe with many processes; damaged entries are never loaded."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from tracetorch.engine import build

# one layer through the engine in a fresh process; says which files it compiled, and the answer
RUN = """
import logging, os, subprocess, sys, tempfile
os.environ.update(environment)
tempfile.tempdir = None
sys.stdout = sys.stderr = open(said, "w")
import torch, tracetorch as tt
from tracetorch import testing
from tracetorch.engine.serving import programs
logging.basicConfig(level=logging.INFO, format="LOG %(message)s", stream=sys.stdout)
plain = subprocess.run
def counted(*args, **kwargs):
    print("COMPILED")
    return plain(*args, **kwargs)
subprocess.run = counted
layer = testing.Trace(3)
with torch.no_grad():
    y = layer.unroll(torch.ones(4, 2, 3))
expected = [1.0, 1.8, 2.44, 2.952]
assert torch.allclose(y[:, 0, 0], torch.tensor(expected)), y
print("BACKEND", bool(programs(layer.tt.findings)))
print("STATUS", tt.backends.status()["cpp"])
"""

# a process forked from one that has imported the library, and nothing else, is as fresh as any
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    PROCESSES.set_forkserver_preload(["tracetorch.testing"])


def start(cache: Path, said: Path, **environment: str) -> BaseProcess:
    environment = {"TRACETORCH_CACHE_DIR": str(cache), **environment}
    names = {"environment": environment, "said": str(said)}
    process = PROCESSES.Process(target=exec, args=(RUN, names))
    process.start()
    return process


def end(process: BaseProcess, said: Path) -> str:
    process.join()
    text = said.read_text()
    assert process.exitcode == 0, text
    return text


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``run(cache, **environment)``: what such a process says."""
    said = tmp_path_factory.mktemp("said") / "text"
    return lambda cache, **environment: end(start(cache, said, **environment), said)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def test_a_kernel_is_compiled_once_and_found_again(run: Callable[..., str], cache: Path) -> None:
    assert run(cache).count("COMPILED") == 1
    before = {path: path.read_bytes() for path in entries(cache)}
    assert len(before) == 1
    assert "COMPILED" not in run(cache)
    assert {path: path.read_bytes() for path in entries(cache)} == before
    assert list(cache.iterdir()) == entries(cache)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "a bit flipped", "another file"])
def test_a_damaged_entry_is_rebuilt(run: Callable[..., str], cache: Path, damage: str) -> None:
    run(cache)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    flipped = bytes([*whole[:200], whole[200] ^ 1, *whole[201:]])
    entry.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "emptied": b"",
            "a bit flipped": flipped,
            "another file": b"#!/bin/sh\n" * 500,
        }[damage]
    )
    assert run(cache).count("COMPILED") == 1
    assert len(entry.read_bytes()) == len(whole)
    assert "COMPILED" not in run(cache)


def test_a_folder_that_others_can_write_to_is_not_used(
    run: Callable[..., str], cache: Path
) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    said = run(cache)
    assert "BACKEND True" in said
    assert f"LOG tracetorch: the kernel cache {cache} is open to others and is not used" in said
    assert list(cache.iterdir()) == []


def test_an_entry_that_others_can_write_to_is_not_loaded(
    run: Callable[..., str], cache: Path
) -> None:
    run(cache)
    (entry,) = entries(cache)
    entry.chmod(0o777)
    assert run(cache).count("COMPILED") == 1
    assert not entry.stat().st_mode & 0o022


def test_a_folder_that_cannot_be_written_does_not_stop_the_kernel(
    run: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "BACKEND True" in run(tmp_path / "file" / "kernels")


def test_a_full_disk_leaves_the_layer_stepping(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(Path("/dev/full/kernels"), TMPDIR="/nowhere", TEMP="/nowhere", TMP="/nowhere")
    assert "BACKEND" in said
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_layer_steps_and_says_so_once(
    run: Callable[..., str], cache: Path, tmp_path: Path
) -> None:
    said = run(cache, PATH=str(tmp_path), CXX="")
    assert "BACKEND False" in said
    assert said.count("LOG Trace runs step by step: no kernel can be made here: no C++") == 1
    assert "STATUS no C++ compiler: none of g++, clang++, c++ is on PATH" in said


def test_a_compiler_that_fails_leaves_the_layer_stepping(
    run: Callable[..., str], cache: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such instruction' >&2; exit 1\n")
    broken.chmod(0o700)
    said = run(cache, CXX=str(broken))
    assert "BACKEND False" in said
    assert f"{broken} refused a kernel: no such instruction" in said
    assert entries(cache) == []


def test_another_compiler_has_entries_of_its_own(
    run: Callable[..., str], cache: Path, tmp_path: Path
) -> None:
    run(cache)
    other = tmp_path / "other-g++"
    other.write_text('#!/bin/sh\nexec g++ "$@"\n')
    other.chmod(0o700)
    assert run(cache, CXX=str(other)).count("COMPILED") == 1
    assert len(entries(cache)) == 2


def test_an_entry_for_other_flags_or_another_cpu_is_not_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACETORCH_CACHE_DIR", str(cache))
    source = 'extern "C" int made() { return __OPTIMIZE__ + 1; }'
    portable = tuple(flag for flag in build.flags() if not flag.startswith(("-m", "-O")))
    changes: list[tuple[str, Any]] = [
        ("flags", build.flags),
        ("flags", lambda: (*portable, "-O2", "-D__OPTIMIZE__=6")),
        ("_cpu", lambda: "a processor of another kind"),
    ]
    made = []
    for count, (name, value) in enumerate(changes, 1):
        with monkeypatch.context() as changed:
            changed.setattr(build, name, value)
            changed.setattr(build, "_loaded", {})
            made.append(build.library(source).made())
        assert len(entries(cache)) == count
    assert made == [2, 7, 2]


def test_sixteen_processes_at_once_all_get_it_right(cache: Path, tmp_path: Path) -> None:
    places = [tmp_path / str(number) for number in range(16)]
    started = [start(cache, said) for said in places]
    for process, said in zip(started, places, strict=True):
        assert "BACKEND True" in end(process, said)
    assert len(entries(cache)) == 1
    assert list(cache.iterdir()) == entries(cache)
