"""The public names of the packages, found in the packages. Knows no Sphinx."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

ROOT = "tracetorch"


class Name(NamedTuple):
    """One public name.

    Attributes:
        module: where a user imports it from.
        name: what it is called there.
        kind: class, exception, function, data or alias.
        target: for an alias, the full name of what it stands for.
    """

    module: str
    name: str
    kind: str
    target: str = ""

    @property
    def full(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"

    @property
    def value(self) -> Any:
        """What the name stands for."""
        return _value(self.module, self.name)


@cache
def modules() -> tuple[str, ...]:
    """Every public module: one with an ``__all__``, or listed in that of its package."""
    found = [ROOT]
    for info in pkgutil.walk_packages(importlib.import_module(ROOT).__path__, f"{ROOT}."):
        package, _, name = info.name.rpartition(".")
        parent, module = map(importlib.import_module, (package, info.name))
        is_listed = name in getattr(parent, "__all__", ()) and getattr(parent, name) is module
        if is_listed or hasattr(module, "__all__"):
            found.append(info.name)
    return tuple(found)


@cache
def names() -> tuple[Name, ...]:
    """Every public name of every public module; what is public twice is once an alias."""
    homes = _homes()
    return tuple(_named(module, name, homes) for module in modules() for name in listed(module))


def listed(module: str) -> list[str]:
    """The names of ``__all__`` but modules; without one, what the module itself defines."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return [name for name in found.__all__ if not isinstance(getattr(found, name), ModuleType)]
    return [name for name, value in vars(found).items() if _is_its_own(found, name, value)]


def layers(package: str) -> tuple[type[Any], ...]:
    """The layers of ``tracetorch.snn`` or ``tracetorch.rnn``."""
    found: tuple[type[Any], ...] = importlib.import_module(f"{ROOT}.{package}").LAYERS
    return found


def described(name: Name) -> str:
    """Its docstring; of data, the text that follows its assignment."""
    if name.kind != "data":
        return inspect.getdoc(name.value) or ""
    return _after_assignment(importlib.import_module(name.module), name.name)


def members(name: Name) -> list[tuple[str, Any]]:
    """Public methods and properties that a class of ours defines or inherits from one of ours."""
    found = []
    for key, value in inspect.getmembers(name.value):
        owner = next((base for base in name.value.__mro__ if key in vars(base)), object)
        ours = owner.__module__.startswith(ROOT)
        method = inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, property)
        if ours and method and not key.startswith("_"):
            found.append((key, value))
    return found


def _is_its_own(module: ModuleType, name: str, value: Any) -> bool:
    if name.startswith("_") or isinstance(value, ModuleType):
        return False
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__module__ == module.__name__
    return type(value).__module__ == module.__name__


def _homes() -> dict[int, str]:
    """Where each class and function is documented: first under its own name, then as listed."""
    found: dict[int, str] = {}
    everything = [(module, name) for module in modules() for name in listed(module)]
    everything.sort(key=lambda pair: getattr(_value(*pair), "__name__", None) != pair[1])
    for module, name in everything:
        value = _value(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found.setdefault(id(value), f"{module}.{name}")
    return found


def _value(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _named(module: str, name: str, homes: dict[int, str]) -> Name:
    value = _value(module, name)
    home = homes.get(id(value))
    if home not in (None, f"{module}.{name}"):
        return Name(module, name, "alias", str(home))
    if inspect.isclass(value):
        return Name(module, name, "exception" if issubclass(value, Exception) else "class")
    return Name(module, name, "function" if inspect.isroutine(value) else "data")


def _after_assignment(module: ModuleType, name: str) -> str:
    tree = ast.parse(inspect.getsource(module))
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if name in _assigned(statement) and isinstance(following, ast.Expr):
            text = getattr(following.value, "value", None)
            return inspect.cleandoc(text) if isinstance(text, str) else ""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and name in {a.name for a in statement.names}:
            return _after_assignment(importlib.import_module(str(statement.module)), name)
    return ""


def _assigned(statement: ast.stmt) -> Iterator[str]:
    targets: list[ast.expr] = []
    targets += [statement.target] if isinstance(statement, ast.AnnAssign) else []
    targets += statement.targets if isinstance(statement, ast.Assign) else []
    return (target.id for target in targets if isinstance(target, ast.Name))
