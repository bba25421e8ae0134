"""C++ source → loaded library, compiled once per machine and kept on disk.

The cache folder is ``$TRACETORCH_CACHE_DIR``, else ``tracetorch`` in the user's cache folder. An
entry's name covers source, compiler, flags and CPU; its last bytes are a SHA-256 of the rest, so
that a truncated or damaged one is rebuilt, never loaded. Entries are written under another name
and moved into place, so any number of processes may start at once. A folder or entry that others
can write to is not used. Knows no kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from tracetorch.engine.launch import BuildError

_log = logging.getLogger("tracetorch")

COMPILERS = ("g++", "clang++", "c++")
_FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fopenmp-simd", "-fno-math-errno",
    # comparisons and rounding stay as eager has them: no fused multiply-add, no reassociation
    "-fno-trapping-math", "-ffp-contract=off",
)  # fmt: skip
# what a CPU that the compiler does not know yet counts as may prefer vectors of half the length
_X86 = ("-march=native", "-mprefer-vector-width=512")
_NATIVE = {"x86_64": _X86, "AMD64": _X86}
_SEAL = b"tracetorch-kernel"

_loaded: dict[str, ctypes.CDLL] = {}


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: ``$CXX`` if it is set, else the first that is found."""
    chosen = os.environ.get("CXX")
    candidates = (chosen,) if chosen else COMPILERS
    return next((found for name in candidates if (found := shutil.which(name))), None)


def flags() -> tuple[str, ...]:
    """What the compiler is called with."""
    return (*_FLAGS, *_NATIVE.get(platform.machine(), ("-mcpu=native",)))


def library(source: str) -> ctypes.CDLL:
    """The loaded library of a source: from this process, from the cache, or compiled now.

    Raises:
        BuildError: it cannot be compiled or loaded here.
    """
    key = _key(source)
    if key not in _loaded:
        _loaded[key] = _from_cache(key, source)
    return _loaded[key]


def entry_point(source: str) -> Callable[..., None]:
    """``run(pointers, sizes, threads)`` of a source's library.

    Raises:
        BuildError: it cannot be compiled or loaded here.
    """
    run = library(source).run
    run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    run.restype = None
    return run


def _key(source: str) -> str:
    identity = "\0".join([source, _compiler_identity(), *flags(), _cpu()])
    return hashlib.sha256(identity.encode()).hexdigest()[:40]


@functools.cache
def _compiler_identity() -> str:
    found = compiler()
    if found is None:
        raise BuildError(f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH")
    path = Path(found).resolve()
    about = path.stat()
    return f"{path} {about.st_size} {about.st_mtime_ns}"


@functools.cache
def _cpu() -> str:
    """What ``-march=native`` depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kept = ("model", "cpu family", "flags", "Features", "CPU implementer", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


def _from_cache(key: str, source: str) -> ctypes.CDLL:
    with contextlib.suppress(OSError):
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = folder / f"{key}.so"
        if _private(folder) and not _sealed(entry):
            _compile(source, entry)
        if _private(folder) and _sealed(entry):
            return ctypes.CDLL(str(entry))
        _log.info("tracetorch: the kernel cache %s is open to others and is not used", folder)
    # nowhere to keep it: for this process alone
    with tempfile.TemporaryDirectory(prefix="tracetorch-") as folder_name:
        try:
            entry = Path(folder_name) / f"{key}.so"
            _compile(source, entry)
            return ctypes.CDLL(str(entry))
        except OSError as error:
            raise BuildError(f"a kernel could not be written or loaded: {error}") from error


def cache_folder() -> Path:
    """Where kernels are kept."""
    chosen = os.environ.get("TRACETORCH_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tracetorch"
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tracetorch"


def _private(path: Path) -> bool:
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _sealed(entry: Path) -> bool:
    """Whether an entry is whole: ends in the digest of what comes before."""
    try:
        if not _private(entry):
            return False
        data = entry.read_bytes()
    except FileNotFoundError:
        return False
    size = len(_SEAL) + 32
    return data[-size:] == _SEAL + hashlib.sha256(data[:-size]).digest()


def _compile(source: str, entry: Path) -> None:
    temporary = entry.with_name(f".{entry.stem}.{uuid.uuid4().hex}.so")
    try:
        command = [compiler() or "", *flags(), "-x", "c++", "-", "-o", str(temporary)]
        done = subprocess.run(  # noqa: S603 - the compiler found above
            command, input=source, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"{command[0]} refused a kernel: {done.stderr.strip()[:2000]}")
        data = temporary.read_bytes()
        temporary.write_bytes(data + _SEAL + hashlib.sha256(data).digest())
        os.chmod(temporary, 0o700)
        os.replace(temporary, entry)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
