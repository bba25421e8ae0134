"""Files that are the old ones or the new ones, whatever happens. Knows nothing of their content.

What is written lies beside its target until it is whole, locked by who writes it. The system takes
the lock away with the process, whatever ended that, and the next one to write the same target
removes what was left.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_HOST, _LENGTH = 8, 32  # digits of the host, and of the host and a random number
# seconds without a write from which the file of another host is left: some file systems do not
# show one host the locks of another
_DAY = 86_400


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, to be written; takes the place of ``path`` once it is whole, or leaves no trace.

    What processes of this host that were killed have left of earlier attempts is removed before;
    of other hosts, what has not been written to for a day. On Windows it stays.

    Raises:
        FileNotFoundError: there is no folder for it.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    with contextlib.suppress(OSError):
        _remove_left(path)
    temporary = path.with_name(f".{path.name}.{_host()}{uuid.uuid4().hex[_HOST:]}.tmp")
    try:
        with contextlib.ExitStack() as held:
            with open(temporary, "x+b") as file:
                _hold(file, held)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def replaced(path: Path, data: bytes) -> None:
    """Put bytes in a file's place, whole or not at all."""
    with replacing(path) as file:
        file.write(data)


@functools.cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:_HOST]


def _hold(file: BinaryIO, held: contextlib.ExitStack) -> None:
    """Lock a file until ``held`` ends, also when it is closed; where there are no locks, do not."""
    with contextlib.suppress(OSError):
        _lock(file)
        held.callback(os.close, os.dup(file.fileno()))


def _lock(file: BinaryIO) -> None:
    """OSError where somebody else has locked it, and where there are no locks."""
    if sys.platform == "win32":
        raise OSError("Windows replaces no file that is open")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_left(path: Path) -> None:
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{{_LENGTH}}})\.tmp")
    for other in path.parent.iterdir():
        if found := name.fullmatch(other.name):
            with contextlib.suppress(OSError):  # locked, gone, or somebody else's
                _remove_unless_written(other, found[1].startswith(_host()))


def _remove_unless_written(path: Path, of_this_host: bool) -> None:
    with open(path, "r+b") as file:
        about = os.fstat(file.fileno())
        old = time.time() - about.st_mtime > _DAY
        # an empty one may be about to be locked
        if old or (of_this_host and about.st_size):
            _lock(file)
            path.unlink()
