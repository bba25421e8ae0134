"""A model's ``forward`` held to the loop: over some timesteps at once, and one after the other.

The layers compute in the loop alone; over all timesteps at once they repeat what they put out
there, and where that tells samples apart by nothing (silence), some neurons are made to fire. So
every part between them is compared by itself, what it makes of the same values, and how these are
differentiated: no decision of a neuron hides or exaggerates a difference.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten

from tracetorch import generators
from tracetorch.calls import peculiar
from tracetorch.choice import EAGER, choosing
from tracetorch.layer import Layer
from tracetorch.looks import Blind, BlindBelow, Looked
from tracetorch.modules import gathers, hooked
from tracetorch.passage import Passage, Timesteps
from tracetorch.reasons import Unfoldable, Unfolded, Unfused
from tracetorch.sequences.fold import refuse_flat
from tracetorch.sequences.twin import ALONE, Twin
from tracetorch.walk import named_layers

# what of a layer hinders a model too
LIKEWISE: dict[Unfused | Unfolded, Unfolded] = {
    Unfused.HOOKS: Unfolded.HOOKS,
    Unfused.OWN: Unfolded.OWN,
}
# timesteps and samples of a trial; in which order samples of the sequence are taken for them: what
# rises or falls with time does not come in its order, or, of one sample, not in that of both ways
_STEPS, _BATCH = 3, 2
_ORDER = (3, 0, 5, 1, 4, 2)


def tried(model: nn.Module, x: Tensor) -> None:
    """Hold a model to the loop, on a copy, over a few samples of a sequence ``[T, B, …]``.

    Raises:
        Unfoldable: all timesteps at once are, or may be, another thing; the reason says why.
    """
    refuse_flat(x)
    for module in model.modules():
        if not isinstance(module, Layer) and hooked(module) and not gathers(module):
            raise Unfoldable(Unfolded.HOOKS, type(module).__name__)
    for _, layer in named_layers(model):
        if why := peculiar(layer):
            raise Unfoldable(LIKEWISE[why.why], *why.names)
    with ALONE:
        _try(model, x)


def _try(model: nn.Module, x: Tensor) -> None:
    sample = _sample(x)
    twin = Twin(model)
    try:
        _compare(twin, sample, x.device)
    finally:
        twin.release()


def _compare(twin: Twin, sample: Tensor, device: torch.device) -> None:
    """Both ways on the copy, which is to change nothing but its layers' states.

    Raises:
        Unfoldable: they differ, or it does.
    """
    layers = [layer for _, layer in named_layers(twin.model)]
    trial = _Trial(twin, layers, sample)
    with (
        generators.left_alone([device]),
        saved_tensors_hooks(_itself, _itself),
        choosing(EAGER),
    ):
        try:
            for part in trial.parts():
                twin.run(part)
                twin.changes()
        finally:
            # of weights rounded in here (torch 2.6 would go on with them)
            torch.clear_autocast_cache()
    if changed := [*twin.changes(), *sorted(trial.moved)]:
        raise Unfoldable(Unfolded.CHANGES, ", ".join(changed))
    if trial.why is not None:
        raise trial.why


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _sample(x: Tensor) -> Tensor:
    """A few samples of a sequence, no two alike: ``[T, B, …]``."""
    steps, batch = _STEPS, min(x.shape[1], _BATCH)
    flat = x.detach().flatten(0, 1)
    places = torch.linspace(0, len(flat) - 1, steps * batch).long().tolist()
    order = [places[at] for at in _ORDER if at < len(places)]
    found = flat[torch.tensor(order, device=x.device)].clone()
    if _alike(found):
        if not x.is_floating_point():
            raise Unfoldable(Unfolded.ALIKE)
        noise = torch.rand(found.shape, generator=torch.Generator().manual_seed(0))
        found = found + (noise / 2).to(found)
    found = found.reshape(steps, batch, *x.shape[2:])
    return found.requires_grad_(x.requires_grad and torch.is_grad_enabled())


def _alike(samples: Tensor) -> bool:
    """Whether any two of these are the same; of integers, whether all are."""
    rows = samples.reshape(len(samples), -1)
    if not samples.is_floating_point():
        return bool((rows == rows[0]).all())
    same = (rows[:, None] == rows[None]).all(-1)
    return int(same.sum()) > len(rows)


class _Trial:
    """Both ways of going through a sample.

    Attributes:
        why: what speaks against folding, if anything does.
        moved: generators of random numbers that were drawn from, besides torch's.
    """

    def __init__(self, twin: Twin, layers: Sequence[Layer], x: Tensor) -> None:
        self._twin, self._layers, self._x = twin, layers, x
        self._training = twin.model.training
        self.why: Unfoldable | None = None
        self.moved: set[str] = set()

    def parts(self) -> Iterator[Callable[[], None]]:
        """The loop, then both ways of all timesteps at once, each to be run on its own.

        In evaluation; of a model in training also there, but for what torch does otherwise then.
        """
        for training in (False, True) if self._training else (False,):
            loop = _Loop(self._x)
            # what sorts its samples leaves those that rise with time as they are, but not back
            both = [_Once(loop, back) for back in (False, True)]
            for way in ([loop], both):
                yield functools.partial(self._go, way, training)
                if self.why is not None:
                    return

    def _go(self, ways: Sequence[_Loop | _Once], training: bool) -> None:
        with generators.watched() as moved:
            try:
                self._hold(ways, training)
            except Unfoldable as why:
                self.why = why
        self.moved.update(name for name in moved if not name.endswith("torch"))

    def _hold(self, ways: Sequence[_Loop | _Once], training: bool) -> None:
        for layer in self._layers:
            layer.tt.states = dict.fromkeys(layer.tt.states)
        for module in self._twin.modules:
            # batch statistics and masks of torch's modules differ by design
            settled = type(module).__module__.startswith("torch.nn")
            module.training = training and not settled
        flags = [module.training for module in self._twin.modules]
        with generators.watched() as moved:
            for way in ways:
                with _through(self._layers, way):
                    way.run(self._twin.model)
        if [module.training for module in self._twin.modules] != flags:
            raise Unfoldable(Unfolded.CHANGES, "training of its modules")
        if not self._x.is_inference() and self._x._version:
            raise Unfoldable(Unfolded.INPUT)
        if not (training and moved):  # masks that forward itself draws
            for once in (way for way in ways if isinstance(way, _Once)):
                once.compare()


@contextlib.contextmanager
def _through(layers: Sequence[Layer], passage: Passage) -> Iterator[None]:
    for layer in layers:
        layer.tt.passage = passage
    try:
        with Timesteps(under_way=True):
            yield
    finally:
        for layer in layers:
            layer.tt.passage = None


class _Watching(Passage):
    """Looks at every call of a layer, and for looks at values between them."""

    transparent = False

    def __init__(self) -> None:
        self._blind = Blind()

    def look_out(self, model: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What the model returns; Unfoldable where it looks at values."""
        try:
            with self._blind, BlindBelow(self._blind):
                return model(x)
        except Looked as looked:
            raise Unfoldable(Unfolded.LOOKS, looked) from None

    def unroll(self, layer: Any, x: Tensor, resets: Tensor | None) -> Tensor:
        raise Unfoldable(Unfolded.WITHIN, type(layer).__name__)

    def refuse_states(self, layer: Any) -> None:
        raise Unfoldable(Unfolded.STATES, type(layer).__name__)


class _Loop(_Watching):
    """The timesteps one after another.

    Attributes:
        x: the sample.
        given: of each layer, its inputs.
        put: and its outputs, cut from what they were computed from.
        ends: the outputs of all timesteps, flattened.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x
        self.given: dict[Any, list[Tensor]] = {}
        self.put: dict[Any, list[Tensor]] = {}
        self.ends: list[list[Any]] = []
        self.nesting: Any = None
        self._done = 0
        self._generator = torch.Generator().manual_seed(0)

    def run(self, model: Callable[[Tensor], Any]) -> None:
        """Go through the sample."""
        for timestep in self.x:
            try:
                outputs = self.look_out(model, timestep)
            except Exception as error:  # whatever it is, the loop itself will show it
                raise Unfoldable(Unfolded.RAISES, type(error).__name__, error) from None
            leaves, self.nesting = tree_flatten(outputs)
            if not all(isinstance(leaf, Tensor) for leaf in leaves):
                raise Unfoldable(Unfolded.OUTPUTS)
            self.ends.append(leaves)
            self._done += 1
            for layer, calls in self.given.items():
                if len(calls) < self._done:
                    raise Unfoldable(Unfolded.SOMETIMES, type(layer).__name__)

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """The timestep, its input and output written down."""
        given = self.given.setdefault(layer, [])
        if len(given) > self._done:
            raise Unfoldable(Unfolded.TWICE, type(layer).__name__)
        if len(given) < self._done:
            raise Unfoldable(Unfolded.SOMETIMES, type(layer).__name__)
        given.append(x)
        layer.tt.passage = None
        try:
            with Timesteps(under_way=False), self._blind.closed(), torch.no_grad():
                y = self._told_apart(layer(x), self.put.setdefault(layer, []))
        finally:
            layer.tt.passage = self
        y = y.detach().requires_grad_(torch.is_grad_enabled())
        self.put[layer].append(y)
        return y

    def _told_apart(self, y: Tensor, before: list[Tensor]) -> Tensor:
        if not _alike(torch.cat([*before, y])):
            return y
        # in each timestep more of them, so that their mean is another
        some = 1 + y.numel() * (1 + self._done) // (_STEPS + 2)
        changed = torch.randperm(y.numel(), generator=self._generator).to(y.device) < some
        return torch.where(changed.view(y.shape), (y == 0).to(y.dtype), y)


class _Once(_Watching):
    """All timesteps at once, in time or back, with what the layers put out in the loop."""

    def __init__(self, loop: _Loop, back: bool) -> None:
        super().__init__()
        self._loop, self._back = loop, back
        self._given: dict[Any, Tensor] = {}
        self._put: dict[Any, Tensor] = {}
        self._ends: list[Any] = []
        self._x = self._turned(loop.x).detach().requires_grad_(loop.x.requires_grad)

    def run(self, model: Callable[[Tensor], Any]) -> None:
        """Go through the sample."""
        try:
            outputs = self.look_out(model, self._x.flatten(0, 1))
        except Exception as error:
            raise Unfoldable(Unfolded.FAILS, type(error).__name__, error) from None
        self._ends, nesting = tree_flatten(outputs)
        if nesting != self._loop.nesting:
            raise Unfoldable(Unfolded.OUTPUTS)

    def call(self, layer: Any, x: Tensor) -> Tensor:
        """What the layer put out in the loop."""
        name = type(layer).__name__
        if layer in self._given:
            raise Unfoldable(Unfolded.TWICE, name)
        if layer not in self._loop.given:
            raise Unfoldable(Unfolded.SOMETIMES, name)
        self._apart(x)
        self._given[layer] = x
        y = self._turned(torch.stack(self._loop.put[layer])).detach().flatten(0, 1)
        self._put[layer] = y.requires_grad_(torch.is_grad_enabled())
        return self._put[layer]

    def _turned(self, timesteps: Tensor) -> Tensor:
        return timesteps.flip(0) if self._back else timesteps

    def _apart(self, x: Any) -> Tensor:
        steps, batch = self._x.shape[:2]
        if not isinstance(x, Tensor) or x.shape[:1] != (steps * batch,):
            got = list(x.shape) if isinstance(x, Tensor) else repr(x)
            raise Unfoldable(Unfolded.BATCH, got, f"{steps}·{batch}")
        return x.reshape(steps, batch, *x.shape[1:])

    def compare(self) -> None:
        """Unfoldable unless it is what the loop made, and differentiated alike."""
        loop = self._loop
        if loop.given.keys() != self._given.keys():
            missed = next(layer for layer in loop.given if layer not in self._given)
            raise Unfoldable(Unfolded.SOMETIMES, type(missed).__name__)
        pairs = [
            (f"the input of a {type(layer).__name__}", torch.stack(given), self._given[layer])
            for layer, given in loop.given.items()
        ]
        for timesteps_, end in zip(zip(*loop.ends, strict=True), self._ends, strict=True):
            if len({leaf.shape for leaf in timesteps_}) > 1:
                raise Unfoldable(Unfolded.DIFFERS, "the output")
            pairs.append(("the output", torch.stack(timesteps_), end))
        for what, expected, got in pairs:
            if not _close(self._apart(got), self._turned(expected)):
                raise Unfoldable(Unfolded.DIFFERS, what)
        if torch.is_grad_enabled():
            self._compare_gradients(pairs)

    def _compare_gradients(self, pairs: Sequence[tuple[str, Tensor, Tensor]]) -> None:
        loop = self._loop
        generator = torch.Generator().manual_seed(0)
        one, other, seeds = [], [], []
        for what, expected, got in pairs:
            if expected.requires_grad != got.requires_grad:
                raise Unfoldable(Unfolded.DIFFERS, f"the gradient of {what}")
            if expected.requires_grad:
                seed = torch.randn(expected.shape, generator=generator).to(expected)
                one.append(expected)
                other.append(got)
                seeds.append(seed)
        begun = [[loop.x], *loop.put.values()]
        leaves = [leaf for group in begun for leaf in group if leaf.requires_grad]
        found = [leaf for leaf in (self._x, *self._put.values()) if leaf.requires_grad]
        if not one or not leaves:
            return
        loops = iter(_gradients(one, leaves, seeds))
        turned = [self._turned(seed).flatten(0, 1) for seed in seeds]
        wholes = iter(_gradients(other, found, turned))
        for group, leaf in zip(begun, (self._x, *self._put.values()), strict=True):
            if not leaf.requires_grad:
                continue
            own = [next(loops) for _ in group]
            whole = own[0] if len(group) == 1 and group[0] is loop.x else torch.stack(own)
            if not _close(next(wholes).reshape(whole.shape), self._turned(whole)):
                raise Unfoldable(Unfolded.DIFFERS, "the gradient of what its layers put out")


def _gradients(ends: list[Tensor], leaves: list[Tensor], seeds: list[Tensor]) -> Sequence[Tensor]:
    # cotangents given to torch.autograd.grad would bring in a symbolic algebra system, for seconds
    parts = [(end * seed).sum() for end, seed in zip(ends, seeds, strict=True)]
    loss = functools.reduce(torch.add, parts)
    # the loop is compared twice
    found = torch.autograd.grad([loss], leaves, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(found, leaves, strict=True)
    ]


def _close(got: Tensor, expected: Tensor) -> bool:
    """Whether the difference is one of rounding."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if not got.is_floating_point() and not got.is_complex():
        return torch.equal(got, expected)
    eps = torch.finfo(got.dtype).eps
    device = got.device.type
    if torch.is_autocast_enabled(device):
        eps = max(eps, torch.finfo(torch.get_autocast_dtype(device)).eps)
    elif device == "cuda" and got.dtype == torch.float32:
        eps = 2**-10  # of TF32
    one, other = got.detach(), expected.detach()
    largest = other.abs().nan_to_num(0, 0, 0).amax() if other.numel() else 0
    allowed = 4 * eps**0.75 * max(float(largest), 1e-30)
    return torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True)
