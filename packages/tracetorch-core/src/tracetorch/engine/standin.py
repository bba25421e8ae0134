"""Stands in for a module while its step is traced, or replayed as it was when it was.

Whatever the step reads of it is noted, and handed out again at a replay; parameters are samples,
random numbers come from a stream, modules are stood in for themselves. Writes are refused as they
happen, and so is what could change without being noticed: lists, dictionaries, arrays, objects.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.engine.reads import GONE, Attributes, Reads, foreign_code, plain
from tracetorch.modules import HOOKS, hooked
from tracetorch.randomness import Random, Stream
from tracetorch.reasons import Refused, Unfused
from tracetorch.written import cells_of, names_of, settled, unwrapped, written

_DATA = (property, types.MemberDescriptorType, types.GetSetDescriptorType)


class Scene:
    """A module and those in it, stood in for.

    Attributes:
        reads: what of them, and of the code that ran, was read.
        given: tensors that stand for weights, by the weight's name; to be set before a run.
        stream: where random numbers come from; likewise.
        refused: what was refused, which the step may have handled.
    """

    def __init__(self, root: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.reads = Reads()
        self.given: Mapping[str, Tensor] = {}
        self.stream: Stream | None = None
        self.refused: Refused | None = None
        self._weights = {id(tensor): name for name, tensor in weights.items()}
        self._alive: list[Any] = [*weights.values()]
        self._standins: dict[int, Standin] = {}
        self._classes: dict[type, Mapping[str, Any]] = {}
        self._examined: set[int] = set()
        self.root = self.standin(root)

    def refuse(self, why: Unfused, *names: object) -> Refused:
        """What to raise; it holds whatever becomes of it."""
        self.refused = Refused(why, *names)
        return self.refused

    def standin(self, module: nn.Module) -> Standin:
        """What stands in for a module."""
        if id(module) not in self._standins:
            if isinstance(module, torch.jit.ScriptModule):
                raise self.refuse(Unfused.UNSEEN, f"a scripted {type(module).__name__}", "")
            self._alive.append(module)
            self._standins[id(module)] = Standin(_Inside(self, module))
        return self._standins[id(module)]

    def forget(self) -> None:
        """Let go of the modules themselves: what was read is enough for a replay."""
        for standin in self._standins.values():
            _inside(standin).module = None
        self._alive.clear()
        # the places lead to the module's states, and these, by the graph, to who holds the scene
        self.reads = Reads()

    # ------------------------------------------------------------------ values

    def shown(self, value: Any, name: str) -> Any:
        """What the step gets to see where it reads this."""
        if isinstance(value, nn.Module):
            return self.standin(value)
        if isinstance(value, Tensor):
            label = self._weights.get(id(value))
            return value if label is None else self.given[label]
        if plain(value) or foreign_code(value):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value, name)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(self.shown(value.__func__, name), self.standin(value.__self__))
        if isinstance(value, type):
            self._examine_class(value, name)
            return value
        if isinstance(value, tuple) and type(value) is tuple:
            return tuple([self.shown(item, name) for item in value])
        if isinstance(value, functools.partial):
            self.shown(value.func, name)
            for item in (*value.args, *value.keywords.values()):
                self.shown(item, name)
            return value
        if isinstance(value, types.ModuleType):
            return value
        if isinstance(value, types.MappingProxyType):
            self.reads.note_size(value)
            for key, item in value.items():
                self._note(value, key, item)
                self.shown(item, f"{name}[{key!r}]")
            return value
        raise self.refuse(Unfused.MUTABLE, name, type(value).__name__)

    def _function(self, function: types.FunctionType, name: str) -> types.FunctionType:
        """The function; where it closes over modules, one that closes over their stand-ins."""
        self._examine(function, name)
        if settled(function.__module__):
            return function
        cells = dict(cells_of(function))
        held = {n: c.cell_contents for n, c in cells.items()}
        if not any(isinstance(v, (nn.Module, types.MethodType)) for v in held.values()):
            return function
        closure = tuple(
            types.CellType(self.shown(held[n], f"{name}: {n}")) if n in held else cell
            for n, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            )
        )
        other = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            closure,
        )
        other.__kwdefaults__ = function.__kwdefaults__
        return other

    # ------------------------------------------------------------------ code

    def _examine(self, function: types.FunctionType, name: str) -> None:
        """Note what a user's function reads: what it closes over, its defaults, its globals."""
        if id(function) in self._examined or settled(function.__module__):
            return
        self._examined.add(id(function))
        self._alive.append(function)
        names, known = names_of(function), function.__globals__
        if names.written:
            raise self.refuse(Unfused.WRITES, ", ".join(sorted(names.written)))
        if "__class__" in names.mentioned:
            raise self.refuse(Unfused.UNSEEN, "self.__class__", "; read it of self")
        for variable, cell in cells_of(function):
            self._note(Attributes(cell), "cell_contents", cell.cell_contents)
            self._examine_value(cell.cell_contents, variable, names.mentioned)
        for attribute in ("__defaults__", "__kwdefaults__"):
            held = getattr(function, attribute)
            self._note(Attributes(function), attribute, held)
            for value in held.values() if isinstance(held, dict) else held or ():
                self.shown(value, f"a default of {function.__name__}")
        for attribute, value in vars(function).items():
            if attribute != "__wrapped__":
                self._note(vars(function), attribute, value)
                self.shown(value, f"{function.__name__}.{attribute}")
        for variable in sorted(names.read & known.keys()):
            self._note(known, variable, known[variable])
            self._examine_value(known[variable], variable, names.mentioned)

    def _examine_value(self, value: Any, name: str, mentioned: frozenset[str]) -> None:
        """A global or outer variable, with what of it is mentioned, if it is a namespace."""
        value = unwrapped(value)
        if isinstance(value, types.ModuleType):
            if settled(value.__name__):
                return
            held: Mapping[str, Any] = vars(value)
            for attribute in sorted(mentioned & held.keys()):
                self._note(held, attribute, held[attribute])
                self._examine_value(held[attribute], f"{name}.{attribute}", mentioned)
        elif isinstance(value, type):
            self._examine_class(value, name)
            for base in written(value):
                for attribute in sorted(mentioned & vars(base).keys()):
                    if not attribute.startswith("__"):
                        self._note(self._vars(base), attribute, vars(base)[attribute])
                        self._examine_value(vars(base)[attribute], f"{name}.{attribute}", mentioned)
        elif not isinstance(value, nn.Module):
            self.shown(value, name)

    def _examine_class(self, kind: type, name: str) -> None:
        """Functions of a user's class: some may run that nothing mentions."""
        if id(kind) in self._examined:
            return
        self._examined.add(id(kind))
        for base in written(kind):
            for attribute, value in vars(base).items():
                function = unwrapped(value)
                if isinstance(function, types.FunctionType):
                    self._note(self._vars(base), attribute, value)
                    self._examine(function, f"{name}.{attribute}")

    def _note(self, held: Any, name: str, value: Any) -> None:
        self.reads.note(held, name, value)

    def _vars(self, kind: type) -> Mapping[str, Any]:
        """A class's dictionary, in one object each time."""
        return self._classes.setdefault(kind, vars(kind))

    # ------------------------------------------------------------------ attributes of modules

    def found(self, module: nn.Module, name: str) -> Any:
        """What a module has under a name, noted; an ``_Instead`` where it is computed.

        Raises:
            AttributeError: there is nothing.
        """
        held, kind = vars(module), type(module)
        for own in written(kind):  # what is added to it may hide what was read
            self.reads.note_size(self._vars(own))
        self.reads.note_size(held)
        base: type | None = next((base for base in kind.__mro__ if name in vars(base)), None)
        of_class = GONE if base is None else vars(base)[name]
        if base is not None and not settled(base.__module__):
            self._note(self._vars(base), name, of_class)
            self._examine_inherited(kind, base, name)
        if isinstance(of_class, _DATA):
            return self._described(module, name, of_class)
        if name in held:
            self._note(held, name, held[name])
            return held[name]
        if of_class is not GONE:
            return _Of(of_class)
        for store in ("_parameters", "_buffers", "_modules"):
            if name in (inner := held.get(store, {})):
                self._note(inner, name, inner[name])
                return inner[name]
        return self._missing(module, name)

    def _missing(self, module: nn.Module, name: str) -> Any:
        """What only a layer has, or nothing."""
        record = vars(module).get("tt")
        if record is not None and name in record.states:
            raise self.refuse(Unfused.STATES, name)
        if record is not None and name in record.declaration.parameters:
            raise self.refuse(
                Unfused.UNSEEN, f"self.{name}", f"; its value in a timestep is p.{name}"
            )
        self._note(vars(module), name, GONE)
        raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")

    def _examine_inherited(self, kind: type, base: type, name: str) -> None:
        """What ``super()`` may lead to."""
        for other in kind.__mro__[kind.__mro__.index(base) + 1 :]:
            if name in vars(other) and not settled(other.__module__):
                self._note(self._vars(other), name, vars(other)[name])
                function = unwrapped(vars(other)[name])
                if isinstance(function, types.FunctionType):
                    self._examine(function, f"{other.__name__}.{name}")

    def _described(self, module: nn.Module, name: str, of_class: Any) -> Any:
        if isinstance(of_class, property):
            return _Of(of_class)
        value = getattr(module, name)
        self._note(Attributes(module), name, value)
        return value


class _Of:
    """An attribute that a class, not the module itself, has."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def bound(self, scene: Scene, standin: Standin, name: str) -> Any:
        """As an attribute of the module."""
        value = self.value
        if isinstance(value, property):
            scene.shown(value.fget, name)
            return value.fget(standin) if value.fget else None
        if isinstance(value, functools.cached_property):
            return scene.shown(value.func, name)(standin)
        if isinstance(value, types.FunctionType):
            return types.MethodType(scene.shown(value, name), standin)
        if isinstance(value, staticmethod):
            return scene.shown(value.__func__, name)
        if isinstance(value, classmethod) or hasattr(type(value), "__get__"):
            if isinstance(value, type) or foreign_code(value):
                return scene.shown(value, name)
            raise scene.refuse(Unfused.UNSEEN, f"{name}, a {type(value).__name__}", "")
        return scene.shown(value, name)


class _Inside:
    """What a stand-in keeps, where no attribute of the module can be in the way."""

    def __init__(self, scene: Scene, module: nn.Module) -> None:
        self.scene, self.kind = scene, type(module)
        self.module: nn.Module | None = module
        self.seen: dict[str, Any] = {}
        self.called = False

    def read(self, standin: Standin, name: str) -> Any:
        """An attribute, as it was when it was read first."""
        scene, path = self.scene, f"{self.kind.__name__}.{name}"
        if name == "tt":
            raise scene.refuse(Unfused.STANDING)
        if name == "__dict__":
            raise scene.refuse(Unfused.UNSEEN, f"{path}", "")
        if name not in self.seen:
            if self.module is None:
                raise AttributeError(f"{self.kind.__name__!r} object has no attribute {name!r}")
            self.seen[name] = scene.found(self.module, name)
        value = self.seen[name]
        if name in ("_modules", "_parameters", "_buffers"):
            return {key: scene.shown(item, f"{path}.{key}") for key, item in value.items()}
        return (
            value.bound(scene, standin, path)
            if isinstance(value, _Of)
            else scene.shown(value, path)
        )

    def call(self, standin: Standin, args: Any, kwargs: Any) -> Any:
        """What calling the module returns."""
        scene = self.scene
        if not self.called and self.module is not None:
            self.called = True
            for hooks in HOOKS:
                scene.reads.note_size(vars(self.module)[hooks])
            if hooked(self.module):
                raise scene.refuse(Unfused.HOOKS, f"its {self.kind.__name__}")
        if issubclass(self.kind, Random) and scene.stream is not None:
            return scene.stream.draw(*args, **kwargs)
        own = self.kind.__call__ is not nn.Module.__call__
        return self.read(standin, "__call__" if own else "forward")(*args, **kwargs)


def _inside(standin: Standin) -> _Inside:
    inside: _Inside = object.__getattribute__(standin, "inside")
    return inside


class _Kind(type):
    """The class of stand-ins, which a step that asks for ``type(self)`` gets to see."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # asked by Python's own tools
            raise AttributeError(name)
        raise Refused(Unfused.UNSEEN, f"type(self).{name}", f"; read it as self.{name}")

    def __setattr__(cls, name: str, value: Any) -> None:
        raise Refused(Unfused.WRITES, f"type(self).{name}")


class Standin(metaclass=_Kind):
    """See the module; for ``isinstance`` and ``super()`` it is what it stands in for."""

    __slots__ = ("inside",)

    def __init__(self, inside: _Inside) -> None:
        object.__setattr__(self, "inside", inside)

    def __getattribute__(self, name: str) -> Any:
        inside = _inside(self)
        return inside.kind if name == "__class__" else inside.read(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inside = _inside(self)
        raise inside.scene.refuse(Unfused.WRITES, f"{inside.kind.__name__}.{name}")

    def __delattr__(self, name: str) -> None:
        inside = _inside(self)
        raise inside.scene.refuse(Unfused.WRITES, f"{inside.kind.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module, called."""
        return _inside(self).call(self, args, kwargs)

    def __iter__(self) -> Iterator[Any]:
        found: Iterator[Any] = _inside(self).read(self, "__iter__")()
        return found

    def __len__(self) -> int:
        return int(_inside(self).read(self, "__len__")())

    def __bool__(self) -> bool:
        return len(self) > 0 if "__len__" in dir(_inside(self).kind) else True

    def __getitem__(self, key: Any) -> Any:
        return _inside(self).read(self, "__getitem__")(key)

    def __contains__(self, key: Any) -> bool:
        return bool(_inside(self).read(self, "__contains__")(key))

    def __repr__(self) -> str:
        inside = _inside(self)
        return inside.kind.__name__ if inside.module is None else repr(inside.module)
