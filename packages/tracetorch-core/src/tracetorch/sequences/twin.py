"""A copy of a model to try things out on, in copies of what its code refers to.

Whatever the copy does, it does to copies; :meth:`Twin.changes` tells what these have become.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tracetorch.reasons import Unfoldable, Unfolded
from tracetorch.sequences.copying import (
    ATOMIC,
    CACHED,
    REFERENCES,
    Copier,
    Pair,
    attribute,
    attributes_of,
    plainly_made,
    reduced,
)
from tracetorch.sequences.surroundings import GONE, Site, surroundings

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# what leads to something else, which is looked at itself
_LEADING = (
    *REFERENCES, types.MethodType, types.BuiltinFunctionType, functools.partial, CACHED,
    types.MappingProxyType,
)  # fmt: skip
# temporaries in temporaries
_DEEPEST = 20


# globals are the process's: who exchanges them, or looks for them, does so alone
ALONE = threading.RLock()


class Twin:
    """See the module; to be made, run and asked for changes within :data:`ALONE`.

    Args:
        model: what to copy.

    Raises:
        Unfoldable: something cannot be copied; the reason names it.

    Attributes:
        model: the copy.
        modules: all copies of modules, however they are held.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copier = Copier()
        try:
            self.model: nn.Module = self._copier.copied(model, type(model).__name__)
            self._sites = surroundings(self._copier)
        except BaseException:
            self._copier.release()
            raise
        self.modules = self._copier.modules
        self._training = [module.training for module in self.modules]
        self._found: set[str] = set()

    def run(self, what: Callable[[], None]) -> None:
        """Run something with the copy; what it does to the surroundings is done to copies."""
        context, environment = contextvars.copy_context(), dict(os.environ)
        put: list[Site] = []
        try:
            for site in self._sites:
                self._put(site)
                put.append(site)
            context.run(what)
        finally:
            for site in reversed(put):
                changed = site.changed()
                if changed:
                    self._found.add(site.place.name)
                if changed or site.copy is not site.original:
                    site.place.put(site.original)
            if dict(os.environ) != environment:
                self._found.add("the environment")
                os.environ.clear()
                os.environ.update(environment)
        for variable in context:
            if variable.get(GONE) is not context[variable]:
                self._found.add(f"the context variable {variable.name}")

    def _put(self, site: Site) -> None:
        if site.copy is not site.original:
            try:
                site.place.put(site.copy)
            except Exception:  # of a class that nobody may write to
                raise Unfoldable(Unfolded.UNCOPIED, site.place.name) from None

    def train(self, training: bool) -> None:
        """All copies of modules in training or evaluation."""
        for module in self.modules:
            module.training = training

    def release(self) -> None:
        """Done with it: the model has its memory for itself again."""
        del self.model
        self._copier.release()

    def changes(self) -> list[str]:
        """Names of what the copy was seen to have changed, now or whenever this was asked before.

        What goes round is as it was after some number of runs: ask after each. Not the statistics
        that torch's own normalizations write: those of a batch are theirs.
        """
        for module, training in zip(self.modules, self._training, strict=True):
            module.training = training
        pairs = self._copier.pairs
        norms = [pair.original for pair in pairs if isinstance(pair.original, _NormBase)]
        own = {id(norm._buffers.get(name)) for norm in norms for name in _STATISTICS}
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for pair in pairs:
                if id(pair.original) not in own and pair.original is not pair.copy:
                    self._found.update(self._differing(pair))
        return sorted(self._found)

    def _differing(self, pair: Pair) -> Iterator[str]:
        """What of a thing is not in its copy."""
        name, one, other = pair
        try:
            if isinstance(one, Tensor):
                same = _same_tensor(one, other) and self._match(vars(one), vars(other))
                if not same or (one.is_leaf and not self._match(one.grad, other.grad)):
                    yield name
            elif not isinstance(one, _LEADING):
                yield from self._differing_parts(name, one, other)
        except Exception:  # of a user's class, which does not want to be read any more
            yield name

    def _differing_parts(self, name: str, one: Any, other: Any) -> Iterator[str]:
        held, now = attributes_of(one), attributes_of(other)
        if isinstance(one, torch.jit.ScriptModule):  # whose attributes are made when they are asked
            held, now = one.state_dict(), other.state_dict()
        if isinstance(one, dict) and name.endswith("."):  # the parameters, … of a module
            held, now = one, other
        for key in {**held, **now}:
            ours = key == "tt" and isinstance(one, nn.Module)
            if not ours and not self._match(held.get(key, GONE), now.get(key, GONE)):
                yield f"{name}{key}" if held is one else attribute(one, key)
        if isinstance(one, nn.Module) or held is one:
            return
        if isinstance(one, (set, frozenset)):
            expected = {self._copier.of(item, item) for item in one}
            same = len(one) == len(other) and expected == {*other}
        elif isinstance(one, np.ndarray):
            same = _same_array(one, other)
        else:
            same = self._match_parts(reduced(one), reduced(other), not plainly_made(type(one)))
        if not same:
            yield name

    def _match_parts(self, one: Any, other: Any, states: bool) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return bool(one == other)
        return (
            self._match(one[1], other[1])
            and (not states or self._match(one[2], other[2]))
            and all(self._match([*(one[at] or ())], [*(other[at] or ())]) for at in (3, 4))
        )

    def _match(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether something is the copy of something, or the same once more."""
        copy = self._copier.of(one, GONE)
        if other is one or other is copy:
            return True
        if copy is not GONE or type(one) is not type(other) or depth > _DEEPEST:
            return False
        if isinstance(one, ATOMIC):
            return bool(one == other) or one != one
        if isinstance(one, weakref.ref):  # made anew, as torch's recurrent modules do
            return self._match(one(), other(), depth + 1)
        if isinstance(one, (tuple, list)):
            return len(one) == len(other) and all(
                self._match(a, b, depth + 1) for a, b in zip(one, other, strict=True)
            )
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(
                self._match(item, other[key], depth + 1) for key, item in one.items()
            )
        if isinstance(one, np.ndarray):
            return _same_array(one, other)
        return isinstance(one, Tensor) and _same_tensor(one, other)


def _same_array(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether values are the same, NaN included, and what torch is to do with them."""
    if (one.shape, one.dtype, one.requires_grad) != (other.shape, other.dtype, other.requires_grad):
        return False
    if one.is_meta or one.layout is not torch.strided or one.is_quantized:
        return True
    address: Any = torch._C._data_address  # type: ignore[attr-defined]
    if address(one) == address(other):  # nobody has written
        return True
    return torch.equal(one, other) or bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )
