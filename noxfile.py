"""Every check of the repository as a nox session; `nox` alone runs what CI runs.

Work on one package in isolation: `nox -s "tests(package='snn')"`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import date
from pathlib import Path

import nox

ROOT = Path(__file__).parent
NEEDS = {"core": [], "snn": ["core"], "rnn": ["core"], "plot": ["core"]}
# what tests of a package's extras import
EXTRAS = {"snn": ["nir>=1.0.8"]}
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
# torch to install, and the first Python it has no wheels for
TORCHES = {"oldest": ("torch==2.6.*", (3, 14)), "newest": ("torch", None)}
# what the oldest torch's Triton imports and does not ask for
MISSING = {"oldest": ["setuptools"], "newest": []}
# whose neurons docs/neurons-of-peers.md is about, and what importing them takes
PEERS = [
    "norse==1.1.0",
    "rockpool==3.1.0",
    "sinabs==3.1.3",
    "snntorch==1.0.0",
    "spikingjelly==2.0.0",
]
PEERS_IMPORT = ["h5py", "loguru", "nir", "nirtorch", "pbr", "scipy"]

# processes that tests start import torch twice as fast where its bytecode is kept
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "tests", "tests_all", "docs", "site", "floors", "build"]


def wheels(session: nox.Session, packages: list[str]) -> list[str]:
    """Build the wheels of these packages into the session's own folder."""
    out = Path(session.create_tmp()) / "wheels"
    for old in out.glob("*.whl"):
        old.unlink()
    for package in packages:
        name = f"tracetorch-{package}"
        session.run_install(
            "uv", "build", "-q", "--wheel", "--package", name, "-o", str(out), external=True
        )
    return sorted(map(str, out.glob("*.whl")))


def install_package(session: nox.Session, package: str, *more: str) -> None:
    """The package and its siblings as wheels, with their dependencies and the test tools."""
    built = wheels(session, [*NEEDS[package], package])
    tools = ("pytest", "pytest-xdist", "hypothesis", *EXTRAS.get(package, []))
    session.install(*built, *more, *tools)


def sync(session: nox.Session, *options: str) -> None:
    """The whole workspace in the session's environment."""
    session.run_install(
        "uv",
        "sync",
        "-q",
        *options,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )


def pytest(session: nox.Session, *arguments: str) -> None:
    """A process for each core, of one thread: those of several would wait on one another.

    Each begins with a half of the tests, so that neighbours share what they have made.
    """
    options = ("-n", "auto", "--dist", "worksteal")
    session.run("pytest", *options, *arguments, env={"OMP_NUM_THREADS": "1"})


@nox.session
@nox.parametrize("package", list(NEEDS), ids=[f"package='{name}'" for name in NEEDS])
def tests(session: nox.Session, package: str) -> None:
    """One package's own tests, with only that package and its dependencies installed."""
    install_package(session, package)
    pytest(session, f"packages/tracetorch-{package}/tests", *session.posargs)


@nox.session
def tests_all(session: nox.Session) -> None:
    """What crosses packages, with everything installed; `-- packages tests`: every test."""
    sync(session)
    pytest(session, *(session.posargs or ["tests"]))


@nox.session
def peers(session: nox.Session) -> None:
    """docs/neurons-of-peers.md and the port of docs/coming-from.md, beside the libraries named."""
    sync(session)
    session.install("--no-deps", *PEERS)
    session.install(*PEERS_IMPORT)
    names = ", ".join(requirement.partition("==")[0] for requirement in PEERS)
    session.run("python", "-W", "ignore", "-c", f"import {names}")  # the tests would be skipped
    pytest(session, "tests/peers", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Random programs and faults until the time is over: `-- --minutes 60 --seed 0`."""
    sync(session)
    session.run("python", "tests/soak", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches of core under its own tests; fails under 95 %."""
    sync(session)
    session.install("coverage>=7.10")
    settings = "packages/tracetorch-core/coverage.ini"
    data = str(Path(session.create_tmp()).resolve() / "data")
    env = {"OMP_NUM_THREADS": "1", "COVERAGE_FILE": data, "COVERAGE_RCFILE": settings}
    session.run("coverage", "erase", env=env)
    tests = ("-m", "pytest", "-q", "-n", "auto", "packages/tracetorch-core/tests")
    session.run("coverage", "run", *tests, *session.posargs, env=env)
    session.run("coverage", "combine", "-q", env=env)
    session.run("coverage", "report", "--fail-under=95", env=env)


@nox.session
def mutants(session: nox.Session) -> None:
    """Small changes of the source, a sample: `-- --count 100 --seed 0`."""
    sync(session)
    session.run("python", "tests/soak/mutants.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def cuda(session: nox.Session) -> None:
    """The tests marked `cuda`, where there is a GPU."""
    sync(session)
    probe = "import torch; print(torch.cuda.is_available())"
    found = session.run("python", "-c", probe, silent=True) or ""
    if found.strip().splitlines()[-1:] != ["True"]:
        session.skip("no NVIDIA GPU that torch can use on this machine")
    session.run("pytest", "-m", "cuda", "packages", "tests")


@nox.session(python=PYTHONS)
@nox.parametrize("package", list(NEEDS), ids=[f"package='{name}'" for name in NEEDS])
@nox.parametrize("torch", list(TORCHES), ids=[f"torch='{name}'" for name in TORCHES])
def matrix(session: nox.Session, torch: str, package: str) -> None:
    """Python × oldest and newest torch; missing interpreters and impossible pairs are skipped."""
    requirement, too_new = TORCHES[torch]
    version = tuple(map(int, str(session.python).split(".")))
    if too_new and version >= too_new:
        session.skip(f"{requirement} has no wheels for Python {session.python}")
    install_package(session, package, requirement, *MISSING[torch])
    pytest(session, f"packages/tracetorch-{package}/tests", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install("ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy (strict) and pyright on the installed packages, as a user's checker sees them."""
    # uv would take a wheel it built of the same version before
    sync(session, "--no-editable", *(f"--reinstall-package=tracetorch-{name}" for name in NEEDS))
    session.run("mypy", "--package=tracetorch")
    tmp = Path(session.create_tmp()).resolve()
    find = "import tracetorch; print(tracetorch.__path__[0])"
    installed = str(session.run("python", "-c", find, silent=True)).strip()
    # pyright ignores absolute paths, and folders with a dot unless told
    settings = {"include": [os.path.relpath(installed, tmp)], "exclude": []}
    (tmp / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    session.run("pyright", "-p", str(tmp), "--pythonpath", f"{session.bin}/python")


@nox.session
def docs(session: nox.Session) -> None:
    """Every example in docstrings, README and docs."""
    sync(session)
    pytest(
        session,
        "--doctest-modules",
        "--doctest-glob=*.md",
        "README.md",
        "docs",
        *(f"packages/tracetorch-{name}/src" for name in NEEDS),
    )


@nox.session
def site(session: nox.Session) -> None:
    """The documentation as HTML in docs/_build/html, warnings as errors; then what was built."""
    sync(session, "--group", "docs")
    out = "docs/_build"
    session.run("sphinx-build", "-M", "clean", "docs", out, silent=True)
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-n", "docs", f"{out}/html")
    session.run("pytest", "tests/test_site.py", env={"TRACETORCH_SITE": f"{out}/html"})


@nox.session
def floors(session: nox.Session) -> None:
    """The benchmarks' short form: fails where a ratio falls under a generous floor."""
    sync(session)
    session.run("python", "-m", "benchmarks", "--short")


def distributions(session: nox.Session, out: Path) -> list[Path]:
    """Wheels and sdists of all five into an empty folder, checked for the package index."""
    session.install("twine")
    for old in out.glob("*"):
        old.unlink()
    session.run_install(
        "uv", "build", "-q", "--all-packages", "-o", str(out), external=True, silent=True
    )
    built = sorted(out.glob("tracetorch*"))
    session.run("twine", "check", "--strict", *map(str, built))
    return built


@nox.session
def build(session: nox.Session) -> None:
    """Wheels and sdists of all five distributions, checked for the package index."""
    distributions(session, Path(session.create_tmp()) / "dist")


@nox.session
def release(session: nox.Session) -> None:
    """All that goes out, into dist/: five wheels and sdists, what they need, their checksums.

    Each wheel is installed alone, with nothing but what it asks for, and imported; then `tests` run
    every package's tests on its wheel, and `tests_all` looks into the archives.
    """
    out = ROOT / "dist"
    built = distributions(session, out)
    if len(built) != 10:
        session.error(f"five wheels and five sdists were to be built, found {built}")
    for package in [*NEEDS, ""]:
        name = f"tracetorch-{package}".rstrip("-")
        venv = Path(session.create_tmp()) / name
        session.run_install("uv", "venv", "-q", "--clear", str(venv), external=True)
        python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        wheel = next(out.glob(f"{name.replace('-', '_')}-*.whl"))
        options = ("--find-links", str(out), "--python", str(python))
        session.run_install("uv", "pip", "install", "-q", *options, str(wheel), external=True)
        imported = f"tracetorch.{package}" if package not in ("core", "") else "tracetorch"
        session.run(str(python), "-c", f"import {imported}", external=True)
    bill = session.run(
        "uv", "export", "-q", "--format", "cyclonedx1.5", "--all-packages", "--no-dev",
        external=True, silent=True,
    )  # fmt: skip
    (out / "sbom.cdx.json").write_text(str(bill), encoding="utf-8")
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in built]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    for package in NEEDS:
        session.notify(f"tests(package='{package}')")
    session.notify("tests_all", posargs=["tests/test_packaging.py"])


@nox.session(venv_backend="none")
def bump(session: nox.Session) -> None:
    """`nox -s bump -- 1.1.0`: write the one version into all places that carry it, dated."""
    if len(session.posargs) != 1:
        session.error("give the new version: nox -s bump -- X.Y.Z")
    new = session.posargs[0]
    for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        text = file.read_text(encoding="utf-8")
        text = re.sub(r'(?m)^version = ".*"$', f'version = "{new}"', text)
        text = re.sub(r'"(tracetorch-\w+)==[^"]*"', rf'"\1=={new}"', text)
        file.write_text(text, encoding="utf-8")
    citation = ROOT / "CITATION.cff"
    text = re.sub(r"(?m)^version: .*$", f"version: {new}", citation.read_text(encoding="utf-8"))
    citation.write_text(text, encoding="utf-8")
    changelog = ROOT / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^## Unreleased.*$", f"## {new} – {date.today()}", text)
    changelog.write_text(text, encoding="utf-8")
