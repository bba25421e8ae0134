"""What measured: processor, compiler, versions, commit, load."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import tracetorch as tt

from benchmarks.harness import Data
from benchmarks.legacy import ROOT
from benchmarks.peers import DISTRIBUTIONS
from benchmarks.tables import table

VECTOR_UNITS = ("avx512f", "avx2", "neon", "asimd")


def describe() -> Data:
    """All of it, by what it is."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "load average at the start": load(),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "compiler": _first_line("g++", "--version") or _first_line("clang++", "--version"),
        "commit": commit(),
        "backends": ", ".join(f"{name}: {state}" for name, state in tt.backends.status().items()),
        "tracetorch": str(tt.__version__),
        "torch": torch.__version__,
        **{name: found for name in DISTRIBUTIONS if (found := installed(name))},
    }


def processor() -> str:
    """Its name and widest vector unit."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", fields.get("Features", ""))
    widest = [unit for unit in VECTOR_UNITS if unit in flags.split()]
    return f"{name}, {widest[0]}" if widest else name


def load() -> float:
    """How many processes wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """The short hash, with a + where files differ from it."""
    found = _first_line("git", "rev-parse", "--short", "HEAD")
    return f"{found}+" if found and _first_line("git", "status", "--porcelain", "-uno") else found


def installed(distribution: str) -> str | None:
    """Its version; None where it is not there."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _first_line(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return ""
    command = [path, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()


def render(data: Data) -> str:
    """As a table."""
    return table(["machine and versions", ""], data.items())
