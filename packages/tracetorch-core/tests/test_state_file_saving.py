"""Saving a state file: a disk that is full, a process that is killed, a place that is not there."""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tracetorch as tt
from tracetorch import atomic
from tracetorch.testing import Trace


class Holder(tt.Model):
    """Holds layers that the test calls itself."""

    def __init__(self, *held: tt.Layer) -> None:
        super().__init__()
        self.held = held


def stepped() -> Holder:
    model = Holder(Trace(2), Trace(2))
    step(model)
    return model


def step(model: Holder) -> None:
    for layer in model.held:
        layer(torch.ones(3, 2))


class FullDisk:
    """A file that takes half of what is written."""

    def __init__(self, *arguments: Any) -> None:
        self.file = builtins.open(*arguments)  # noqa: SIM115 - closed as it is left

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("where", "name", "how", "kind"),
    [
        (atomic, "open", FullDisk, OSError),
        (os, "fsync", _raising(OSError(errno.EIO, "no")), OSError),
        (os, "fsync", _raising(KeyboardInterrupt()), KeyboardInterrupt),
        (os, "replace", _raising(PermissionError("no")), PermissionError),
        (os, "replace", _raising(KeyboardInterrupt()), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("first", [False, True], ids=["replacing", "first"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, how: Any,
    kind: type[BaseException], first: bool,
) -> None:  # fmt: skip
    model, old = stepped(), b""
    if not first:
        model.save_states(path)
        old = path.read_bytes()
    step(model)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, how, raising=False)
        with pytest.raises(kind):
            model.save_states(path)
    assert list(path.parent.iterdir()) == ([] if first else [path])
    assert first or path.read_bytes() == old
    model.save_states(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    where = path.parent / "missing" / path.name
    with pytest.raises(
        FileNotFoundError, match=f"there is no folder {re.escape(str(where.parent))}"
    ):
        stepped().save_states(where)


def test_a_disk_that_is_really_full(path: Path) -> None:
    import resource

    model = Holder(Trace(2))
    model.held[0](torch.ones(1, 2))
    model.save_states(path)
    old = path.read_bytes()
    model.zero_states()
    model.held[0](torch.ones(20_000, 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            model.save_states(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == old


KILLED = """
    import builtins, json, os, signal, sys
    import torch, tracetorch as tt
    from tracetorch import atomic
    from tracetorch.testing import Trace

    class Net(tt.Model):
        def __init__(self):
            super().__init__()
            self.held = [Trace(2)]

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    class Dying:
        def __init__(self, *arguments):
            self.file = builtins.open(*arguments)
        def __enter__(self):
            return self
        def __exit__(self, *_):
            pass
        def fileno(self):
            return self.file.fileno()
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            die()

    model, said = Net(), {}
    for suffix in (".safetensors", ".pt"):
        for moment in ("open", "fsync", "replace"):
            path = os.path.join(sys.argv[1], moment + suffix)
            model.set_states({"held.0.mem": torch.tensor([[0.5, 2.0]])})
            model.save_states(path)
            model.set_states({"held.0.mem": torch.tensor([[7.0, 7.0]])})
            child = os.fork()
            if child == 0:
                if moment == "open":
                    atomic.open = Dying
                else:
                    setattr(os, moment, die)
                model.save_states(path)
                os._exit(0)
            said[moment + suffix] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    json.dump(said, sys.stdout)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_save_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said) == 6
    assert set(said.values()) == {-signal.SIGKILL}
    assert len([*tmp_path.iterdir()]) == 2 * len(said)  # what was being written is left
    for name in said:
        model = Holder(Trace(2))
        model.load_states(tmp_path / name)
        assert model.held[0].mem.tolist() == [[0.5, 2.0]]
        model.save_states(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == said.keys()


def left(target: Path, digits: str, content: bytes = b"half") -> Path:
    """A file as a process leaves it that is killed while it writes."""
    path = target.with_name(f".{target.name}.{digits:0<32}.tmp")
    path.write_bytes(content)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="locks of files are POSIX")
def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    target, host = tmp_path / "a.pt", atomic._host()
    gone = [left(target, host + "1"), left(target, host + "2")]
    empty = left(target, host + "3", b"")
    elsewhere = left(target, f"{int(host, 16) ^ 1:08x}")
    others = [left(tmp_path / name, host) for name in ("b.pt", "a.pt.pt", "aapt")]
    own = tmp_path / f".a.pt.{host}.tmp"
    own.write_bytes(b"a name that is not quite one")
    with atomic.replacing(target) as file:
        file.write(b"slow")
        file.flush()
        (written,) = {*tmp_path.iterdir()} - {empty, elsewhere, own, *others}
        assert written not in gone
        atomic.replaced(target, b"quick")
        assert {*tmp_path.iterdir()} == {target, written, empty, elsewhere, own, *others}
    assert target.read_bytes() == b"slow"
    os.utime(elsewhere, (0, 0))
    atomic.replaced(target, b"new")
    assert {*tmp_path.iterdir()} == {target, empty, own, *others}
    os.utime(empty, (0, 0))
    atomic.replaced(target, b"new")
    assert {*tmp_path.iterdir()} == {target, own, *others}


@pytest.mark.skipif(sys.platform == "win32", reason="locks of files are POSIX")
def test_without_locks_files_are_saved_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_lock", _raising(OSError(errno.ENOLCK, "no locks")))
    target = tmp_path / "a.pt"
    other = left(target, atomic._host())
    atomic.replaced(target, b"new")
    assert {*tmp_path.iterdir()} == {target, other}
    assert target.read_bytes() == b"new"
