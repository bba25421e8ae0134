"""The five distributions: what their archives hold, their versions, their metadata."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(folder.name.split("-")[1] for folder in ROOT.glob("packages/tracetorch-*"))
SUBPACKAGES = {name: "tracetorch" if name == "core" else f"tracetorch/{name}" for name in NAMES}


def build(source: Path, out: Path, *options: str) -> None:
    command = ["uv", "build", "-q", *options, str(source), "-o", str(out)]
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Distribution → (wheel, sdist)."""
    built = {}
    for folder in sorted((ROOT / "packages").iterdir()):
        if (folder / "pyproject.toml").exists():
            out = tmp_path_factory.mktemp(folder.name)
            build(folder, out)
            built[folder.name] = (next(out.glob("*.whl")), next(out.glob("*.tar.gz")))
    return built


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> dict[str, list[str]]:
    files = wheel_files(wheel)
    text = next(data for name, data in files.items() if name.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(text.decode())
    return {key: message.get_all(key, []) for key in message} | {"README": [message.get_payload()]}


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_a_wheel_holds_its_subpackage_and_nothing_of_anothers(
    artefacts: dict[str, tuple[Path, Path]], name: str
) -> None:
    source = ROOT / "packages" / f"tracetorch-{name}" / "src"
    expected = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    held = {f for f in wheel_files(artefacts[f"tracetorch-{name}"][0]) if ".dist-info/" not in f}
    assert held == expected
    assert f"{SUBPACKAGES[name]}/py.typed" in held
    owned = [other for other in SUBPACKAGES if other not in (name, "core")]
    assert not [f for f in held for other in owned if f.startswith(f"tracetorch/{other}/")]
    assert ("tracetorch/__init__.py" in held) == (name == "core")


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_an_sdist_holds_sources_tests_and_licence(
    artefacts: dict[str, tuple[Path, Path]], name: str
) -> None:
    with tarfile.open(artefacts[f"tracetorch-{name}"][1]) as archive:
        held = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    folder = ROOT / "packages" / f"tracetorch-{name}"
    expected = {"pyproject.toml", "README.md", "LICENSE"} | {
        str(file.relative_to(folder))
        for part in ("src", "tests")
        for file in (folder / part).rglob("*")
        if file.is_file() and not {"__pycache__", ".hypothesis"} & set(file.parts)
    }
    assert held - {"PKG-INFO", ".gitignore"} == expected


def test_a_wheel_from_the_sdist_is_the_wheel_from_the_tree(
    artefacts: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    wheel, sdist = artefacts["tracetorch-snn"]
    build(sdist, tmp_path, "--wheel")
    assert wheel_files(next(tmp_path.glob("*.whl"))) == wheel_files(wheel)


def test_the_meta_package_holds_no_module_and_pins_the_four(
    artefacts: dict[str, tuple[Path, Path]],
) -> None:
    wheel = artefacts["tracetorch"][0]
    assert all(".dist-info/" in name for name in wheel_files(wheel))
    said = metadata(wheel)
    version = said["Version"][0]
    pinned = [f"tracetorch-{name}=={version}" for name in SUBPACKAGES]
    assert sorted(said["Requires-Dist"]) == sorted(pinned)


def test_all_versions_and_pins_are_one(artefacts: dict[str, tuple[Path, Path]]) -> None:
    everything = {name: metadata(wheel) for name, (wheel, _) in artefacts.items()}
    versions = {said["Version"][0] for said in everything.values()}
    pins = {
        requirement.split("==")[1]
        for said in everything.values()
        for requirement in said["Requires-Dist"]
        if requirement.startswith("tracetorch")
    }
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.findall(r"(?m)^version: (.*)$", citation)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"(?m)^## (\d\S*)(?: – .+)?$", changelog)[:1]
    assert versions == pins == set(cited) == set(newest)
    assert len(versions) == 1


def test_each_says_licence_python_and_torch(artefacts: dict[str, tuple[Path, Path]]) -> None:
    for name, (wheel, _) in artefacts.items():
        said = metadata(wheel)
        assert said["License-Expression"] == ["MIT"], name
        assert said["Requires-Python"] == [">=3.10"], name
        assert any(f.endswith("licenses/LICENSE") for f in wheel_files(wheel)), name
        assert said["README"][0].startswith(f"# {name}\n")
        if name != "tracetorch":
            assert "torch>=2.6" in said["Requires-Dist"], name


# imported where it is there: torch brings it, on systems that it is for
OPTIONAL = {"triton"}
# what a subpackage imports that is an extra, and comes with that
EXTRAS = {"tracetorch/snn/nir/": {"nir", "numpy", "h5py"}}


def required(wheel: Path) -> set[str]:
    """The distributions that come with a wheel, without extras."""
    plain = [one for one in metadata(wheel)["Requires-Dist"] if "extra ==" not in one]
    return {re.split(r"[^\w-]", requirement)[0] for requirement in plain}


def imported(wheel: Path) -> set[str]:
    """The distributions of others that a wheel imports anywhere, also within functions."""
    found: set[str] = set()
    for name, data in wheel_files(wheel).items():
        extra = next((EXTRAS[folder] for folder in EXTRAS if name.startswith(folder)), set())
        nodes = list(ast.walk(ast.parse(data))) if name.endswith(".py") else []
        modules = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        found |= {module.partition(".")[0] for module in modules} - extra
    return found - sys.stdlib_module_names - OPTIONAL


def test_each_asks_for_what_it_imports_and_for_nothing_else(
    artefacts: dict[str, tuple[Path, Path]],
) -> None:
    for name in NAMES:
        wheel = artefacts[f"tracetorch-{name}"][0]
        own = set() if name == "core" else {"tracetorch-core"}
        assert required(wheel) == imported(wheel) - {"tracetorch"} | own, name
    assert required(artefacts["tracetorch-core"][0]) == {"torch", "numpy", "safetensors"}
