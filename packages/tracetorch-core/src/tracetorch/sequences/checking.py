"""Holds a model's unrolled sequence to its stepped one, layer by layer, with all gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from tracetorch import generators
from tracetorch.errors import check_dense
from tracetorch.layer import Layer
from tracetorch.recorder import OUTPUT, record
from tracetorch.sequences.decision import decided
from tracetorch.sequences.twin import ALONE, Twin
from tracetorch.sequences.unrolling import looped
from tracetorch.walk import Boundary, named_layers

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
        for name, layer in named_layers(model):
            if name in stepped:
                what = f"the output of layer {name!r}, {layer!r}"
                compare(what, unrolled[name], stepped[name])
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
    check_dense("check_unroll: x must be a tensor [T, B, …]", x)
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 2:
        got = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"check_unroll: x must be [T, B, …] with T of at least 2, got {got}")


def _observed(
    model: nn.Module, x: Tensor, training: bool, run: Callable[[Any, Tensor], Any]
) -> tuple[Found, Found]:
    """What each layer put out, outputs, final states and gradients, of a copy of the model."""
    twin = Twin(model)
    copy: Any = twin.model
    twin.train(training)
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    outputs: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    names = {name: f"{name}.{OUTPUT}" for name, _ in named_layers(copy)}

    def observe() -> None:
        with torch.enable_grad(), record(copy, *names.values()) as recorded:
            leaves, _ = tree_flatten_with_path(run(copy, x))
        outputs.update({name: recorded[key] for name, key in names.items() if key in recorded})
        found.update({f"the output{keystr(path)}": leaf for path, leaf in leaves})
        found.update({f"the final state {n}": s for n, s in copy.get_states().items()})
        found.update(_gradients(copy, x, [*found.values()]))

    with generators.left_alone([x.device]):
        twin.run(observe)
    twin.release()
    return outputs, {what: value.detach() for what, value in found.items()}


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
