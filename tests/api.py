"""All that is public, a line for each name and member: what users' code may rely on.

    uv run python tests/api.py        # writes tests/data/api.txt

Which names are public is what the reference has (``docs/_ext/pages/public.py``). What they are
called with is read off the sources, so it is the same under every Python and torch.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "data" / "api.txt"
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from pages import public  # noqa: E402

# methods that are called by syntax
SYNTAX = {f"__{name}__" for name in ("call", "contains", "getitem", "iter", "len", "setitem")}

Kind = griffe.ParameterKind


def lines() -> list[str]:
    """``name: what it is``, sorted."""
    tree = _sources()
    names = public.names()
    objects = {n: _object(tree, n.full) for n in names if n.kind != "alias"}
    classes = {found.path for found in objects.values() if found.is_class}
    said = [f"{name.full}: is {name.target}" for name in names if name.kind == "alias"]
    for name, found in objects.items():
        bases = " and ".join(_bases(found, classes))
        said.append(f"{name.full}: {name.kind}{_called(found)}{bases and ' of '}{bases}")
        said += [f"{name.full}.{member}" for member in _members(found, classes)]
    return sorted([*said, *(f"{module}: module" for module in public.modules())])


def differences(old: Iterable[str], new: Iterable[str]) -> dict[str, list[str]]:
    """What is removed, changed and added, by name; empty where nothing is."""
    before, after = (dict(line.split(": ", 1) for line in part) for part in (old, new))
    found = {
        "removed": [name for name in before if name not in after],
        "changed": [
            f"{name}: {before[name]} → {after[name]}"
            for name in before
            if name in after and before[name] != after[name]
        ],
        "added": [name for name in after if name not in before],
    }
    return {what: names for what, names in found.items() if names}


def _sources() -> griffe.Object:
    """The four packages as the one that they are when installed."""
    with tempfile.TemporaryDirectory() as folder:
        for source in ROOT.glob("packages/tracetorch-*/src"):
            shutil.copytree(source, folder, dirs_exist_ok=True)
        loaded = griffe.load(public.ROOT, search_paths=[folder], resolve_aliases=True)
    return _itself(loaded)


def _itself(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def _object(tree: griffe.Object, full: str) -> griffe.Object:
    return _itself(tree[full.removeprefix(f"{public.ROOT}.")])


def _called(found: griffe.Object) -> str:
    """Arguments of a class or function; nothing of data."""
    if isinstance(found, griffe.Class):
        is_tuple = any(str(base) == "NamedTuple" for base in found.bases)
        return f"({_fields(found) if is_tuple else _made(found)})"
    return f"({_listed(found.parameters)})" if isinstance(found, griffe.Function) else ""


def _bases(found: griffe.Object, classes: set[str]) -> Iterator[str]:
    """Of a class, those that are public or somebody else's; for others, theirs."""
    if not isinstance(found, griffe.Class):
        return
    ours = {base.name: _itself(base) for base in found.resolved_bases}
    for base in (str(each).partition("[")[0] for each in found.bases):
        if base in ours and ours[base].path not in classes:
            yield from _bases(ours[base], classes)
        else:
            yield base


def _fields(found: griffe.Class) -> str:
    fields = [each for each in found.attributes.values() if "property" not in each.labels]
    return ", ".join(f"{each.name}={each.value}" if each.value else each.name for each in fields)


def _made(found: griffe.Class) -> str:
    init = found.all_members.get("__init__")
    of = None if init is None else _itself(init)
    return _listed(list(of.parameters)[1:]) if isinstance(of, griffe.Function) else ""


def _listed(parameters: Iterable[griffe.Parameter]) -> str:
    """As in a ``def``, without types."""
    said: list[str] = []
    star = False
    for parameter in parameters:
        if parameter.kind is Kind.keyword_only and not star:
            said.append("*")
        star |= parameter.kind in (Kind.keyword_only, Kind.var_positional)
        stars = {Kind.var_positional: "*", Kind.var_keyword: "**"}.get(parameter.kind, "")
        default = "" if stars or parameter.default is None else f"={parameter.default}"
        said.append(f"{stars}{parameter.name}{default}")
        if parameter.kind is Kind.positional_only:
            said = [*(one for one in said if one != "/"), "/"]
    return ", ".join(said)


def _members(found: griffe.Object, classes: set[str]) -> Iterator[str]:
    """Of a class, its own and those of bases that are not public."""
    if not isinstance(found, griffe.Class):
        return
    bases = [base for base in found.mro() if base.path in classes]
    elsewhere = {one.path for base in bases for one in [base, *base.mro()]}
    for name, alias in found.all_members.items():
        member = _itself(alias)
        is_public = name in SYNTAX or not name.startswith("_")
        if is_public and member.parent is not None and member.parent.path not in elsewhere:
            yield f"{name}: {_member(member)}"


def _member(member: griffe.Object) -> str:
    if not isinstance(member, griffe.Function):
        return "property" if "property" in member.labels else "attribute"
    bound = member.labels & {"classmethod", "staticmethod"}
    first = 0 if "staticmethod" in bound else 1
    return f"{''.join(bound) or 'method'}({_listed(list(member.parameters)[first:])})"


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n", encoding="utf-8")
