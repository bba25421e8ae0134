"""Holds a model's unrolled sequence to its stepped one, layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from tracetorch.layer import Layer
from tracetorch.model import Model

Outputs = dict[str, list[Tensor]]


def check_unroll(model: Model, x: Tensor, *, rtol: float = 1e-5, atol: float = 1e-5) -> str | None:
    """Compare a model's unrolled sequence with calling it timestep by timestep.

    What folding time into the batch cannot carry is not always noticed by ``unroll``: batch
    statistics in training, dropout masks, samples that are mixed. Here it may show. States,
    attributes, buffers and random numbers are afterwards as they were.

    Args:
        model: any model; for a layer of your own there is ``tt.testing.check_layer``.
        x: a sample sequence ``[T, B, …]``, of at least 2 timesteps.
        rtol: relative tolerance.
        atol: absolute tolerance, relative to the largest value of a tensor where that is above 1.
            Both are at least 4 units of rounding of the tensor's type.

    Returns:
        None where ``forward`` ran once for the sequence; else why ``unroll`` steps this model. A
        layer in it may step for itself all the same: ``tt.backends`` says why in the log.

    Raises:
        TypeError: ``model`` is no ``tt.Model``.
        ValueError: ``x`` is no sequence of at least 2 timesteps.
        AssertionError: they differ; the message names the first layer that does, in the order of
            the forward pass, or else the output or final state. A difference of little more than
            the tolerance is rounding: ``model.double()`` shows it.

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
    for _ in range(2):  # to be decided whether to fold, for good
        _observed(model, lambda: model.unroll(x[:2].clone()))
    stepped, one = _observed(model, lambda: model._loop(x.clone()))
    unrolled, other = _observed(model, lambda: model.unroll(x.clone()))
    layers = dict(model.named_layers())
    compare = functools.partial(_compare, rtol=rtol, atol=atol)
    for name, outputs in stepped.items():
        found = unrolled.get(name, [])
        if len(found) == len(outputs):
            got, expected = _flat(found), _flat(outputs)
        else:
            got, expected = torch.cat(found or outputs[:0]), torch.stack(outputs)
            if got.numel() == expected.numel():
                got = got.reshape(expected.shape)
        compare(f"the output of layer {name!r}, {layers[name]!r}", got, expected)
    for what, value in one.items():
        compare(what, other[what], value)
    return model._why_stepped(x.ndim, layers.values())


def _check_arguments(model: object, x: object) -> None:
    if not isinstance(model, Model):
        kind = type(model).__name__
        remedy = "tt.testing.check_layer checks a layer" if isinstance(model, Layer) else ""
        raise TypeError(
            f"check_unroll: model must be a tt.Model, got a {kind}; "
            f"{remedy or 'wrap it in a tt.Model'}"
        )
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 2:
        got = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"check_unroll: x must be [T, B, …] with T of at least 2, got {got}")


def _flat(outputs: list[Tensor]) -> Tensor:
    return torch.cat([output.flatten() for output in outputs])


def _observed(model: Model, run: Callable[[], Any]) -> tuple[Outputs, Mapping[str, Tensor]]:
    """What each layer put out, and the outputs and final states of it all; nothing else stays."""
    states = model._standing()
    kept = model._kept(states)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(),
            _recorded(model) as outputs,
        ):
            leaves, _ = tree_flatten_with_path(run())
        found = {f"the output{keystr(path)}": leaf for path, leaf in leaves}
        finals = {f"the final state {name}": s for name, s in model.get_states().items()}
        return outputs, found | finals
    finally:
        kept.restore()
        model._restore(states)


@contextmanager
def _recorded(model: Model) -> Iterator[Outputs]:
    outputs: Outputs = {}
    layers = list(model.named_layers())
    for name, layer in layers:
        layer.forward = _recording(layer, outputs, name)  # type: ignore[method-assign, assignment]
    try:
        yield outputs
    finally:
        for _, layer in layers:
            del layer.__dict__["forward"]


def _recording(layer: Layer, outputs: Outputs, name: str) -> Callable[[Tensor], Tensor]:
    inside = False

    @functools.wraps(layer.forward)
    def forward(x: Tensor) -> Tensor:
        nonlocal inside
        outermost, inside = not inside, True
        try:
            y = type(layer).forward(layer, x)
        finally:
            inside = not outermost
        if outermost:
            outputs.setdefault(name, []).append(y)
        return y

    forward.looks_on = True  # type: ignore[attr-defined]
    return forward


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
