"""Holds a model's unrolled sequence to its stepped one, layer by layer, with all gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from tracetorch import generators
from tracetorch.layer import Layer
from tracetorch.passage import Passage
from tracetorch.sequences.decision import decided
from tracetorch.sequences.twin import ALONE, Twin
from tracetorch.sequences.unrolling import looped
from tracetorch.walk import Boundary, named_layers

Outputs = dict[str, list[Tensor]]
Found = Mapping[str, Tensor]


def check_unroll(
    model: Boundary, x: Tensor, *, rtol: float = 1e-5, atol: float = 1e-5
) -> str | None:
    """Compare a model's unrolled sequence with calling it timestep by timestep.

    ``unroll`` decides over a few timesteps; here is the whole sequence, outputs, final states and
    gradients, in evaluation and, for a model in training, in training: where batch statistics and
    dropout masks over all timesteps are others. It runs on copies; nothing of it stays.

    Args:
        model: any model; for a layer of your own there is ``tt.testing.check_layer``.
        x: a sample sequence ``[T, B, …]``, of at least 2 timesteps.
        rtol: relative tolerance.
        atol: absolute tolerance, relative to the largest value of a tensor where that is above 1.
            Both are at least 4 units of rounding of the tensor's type.

    Returns:
        None where ``forward`` runs once for the sequence; else why ``unroll`` steps this model. A
        layer in it may step for itself all the same: ``tt.backends.status(model)`` says why.

    Raises:
        TypeError: ``model`` is no ``tt.Model``.
        ValueError: ``x`` is no sequence of at least 2 timesteps.
        AssertionError: they differ; the message names the first layer that does, in the order of
            the forward pass, or else the output, final state or gradient. A difference of little
            more than the tolerance is rounding: ``model.double()`` shows it.

    Example:
        >>> import torch, tracetorch as tt
        >>> from torch import nn
        >>> class Net(tt.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.leak = nn.BatchNorm1d(2), tt.testing.Trace(2)
        ...     def forward(self, x):
        ...         return self.leak(self.norm(x))
        >>> x = torch.randn(5, 4, 2)
        >>> tt.check_unroll(Net().eval(), x)
        >>> try:
        ...     tt.check_unroll(Net().train(), x)  # statistics over T·B are other statistics
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        the output of layer 'leak', Trace(2, beta=0.8, dim=-1) differs between unrolled and stepped
    """
    _check_arguments(model, x)
    why = decided(model, x)
    if why is not None:
        return str(why)
    for training in dict.fromkeys((model.training, False)):
        with ALONE:
            stepped, one = _observed(model, x, training, looped)
            unrolled, other = _observed(
                model, x, training, lambda twin, x: twin.unroll(x, fold=True)
            )
        compare = functools.partial(_compare, rtol=rtol, atol=atol)
        for name, outputs in stepped.items():
            layer = dict(named_layers(model))[name]
            got, expected = _matched(unrolled.get(name, []), outputs)
            compare(f"the output of layer {name!r}, {layer!r}", got, expected)
        for what, value in one.items():
            compare(what, other[what], value)
    return None


def _check_arguments(model: object, x: object) -> None:
    if not isinstance(model, Boundary):
        kind = type(model).__name__
        remedy = "tt.testing.check_layer checks a layer" if isinstance(model, Layer) else ""
        raise TypeError(
            f"check_unroll: model must be a tt.Model, got a {kind}; "
            f"{remedy or 'wrap it in a tt.Model'}"
        )
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 2:
        got = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"check_unroll: x must be [T, B, …] with T of at least 2, got {got}")


def _matched(found: list[Tensor], outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What a layer put out in as many calls, or in one for all timesteps."""
    if len(found) == len(outputs):
        return _flat(found), _flat(outputs)
    got, expected = torch.cat(found or outputs[:0]), torch.stack(outputs)
    return got.reshape(expected.shape) if got.numel() == expected.numel() else got, expected


def _flat(outputs: list[Tensor]) -> Tensor:
    return torch.cat([output.flatten() for output in outputs])


def _observed(
    model: nn.Module, x: Tensor, training: bool, run: Callable[[Any, Tensor], Any]
) -> tuple[Outputs, Found]:
    """What each layer put out, outputs, final states and gradients, of a copy of the model."""
    twin = Twin(model)
    copy: Any = twin.model
    twin.train(training)
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    outputs: Outputs = {}
    found: dict[str, Tensor] = {}

    def observe() -> None:
        with torch.enable_grad(), _recorded(copy, outputs):
            leaves, _ = tree_flatten_with_path(run(copy, x))
        found.update({f"the output{keystr(path)}": leaf for path, leaf in leaves})
        found.update({f"the final state {n}": s for n, s in copy.get_states().items()})
        found.update(_gradients(copy, x, [*found.values()]))

    with generators.left_alone([x.device]):
        twin.run(observe)
    detached = {name: [y.detach() for y in ys] for name, ys in outputs.items()}
    return detached, {what: value.detach() for what, value in found.items()}


def _gradients(model: nn.Module, x: Tensor, ends: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Of a weighted sum of all that came out, for the input and all parameters."""
    generator = torch.Generator().manual_seed(0)
    reached = [end for end in ends if end.requires_grad]
    weights = [torch.randn(end.shape, generator=generator).to(end) for end in reached]
    names = {f"the gradient of {name}": p for name, p in model.named_parameters()}
    sources = {n: t for n, t in {"the gradient of x": x, **names}.items() if t.requires_grad}
    if not reached or not sources:
        return
    found = torch.autograd.grad(reached, [*sources.values()], weights, allow_unused=True)
    for name, gradient, source in zip(sources, found, sources.values(), strict=True):
        yield name, torch.zeros_like(source) if gradient is None else gradient


@contextmanager
def _recorded(model: nn.Module, outputs: Outputs) -> Iterator[None]:
    layers = list(named_layers(model))
    for name, layer in layers:
        layer.tt.passage = _Recording(outputs, name)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.tt.passage = None


class _Recording(Passage):
    """Looks on: what a layer puts out is written down."""

    transparent = True

    def __init__(self, outputs: Outputs, name: str) -> None:
        self._outputs, self._name = outputs, name

    def call(self, layer: Any, x: Tensor) -> Tensor:
        return self._noted(layer, layer, x)

    def unroll(self, layer: Any, x: Tensor) -> Tensor:
        return self._noted(layer, layer.unroll, x)

    def _noted(self, layer: Any, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        layer.tt.passage = None
        try:
            y = compute(x)
        finally:
            layer.tt.passage = self
        self._outputs.setdefault(self._name, []).append(y)
        return y

    def refuse_states(self, layer: Any) -> None:
        """They may be read."""


def _compare(what: str, got: Tensor, expected: Tensor, *, rtol: float, atol: float) -> None:
    if expected.is_floating_point() and expected.numel():
        rounding = 4 * torch.finfo(expected.dtype).eps
        largest = expected.abs().nan_to_num(0, 0, 0).max().item()
        rtol, atol = max(rtol, rounding), max(atol, rounding) * max(largest, 1)
    else:
        rtol = atol = 0
    torch.testing.assert_close(
        got, expected, rtol=rtol, atol=atol, equal_nan=True,
        msg=lambda text: f"{what} differs between unrolled and stepped\n{text}",
    )  # fmt: skip
