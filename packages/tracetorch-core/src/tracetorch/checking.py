"""Holds a model's unrolled sequence to its stepped one, layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracetorch.keeping import buffers_kept
from tracetorch.layer import Layer
from tracetorch.model import Model

Outputs = dict[str, list[Tensor]]


def check_unroll(model: Model, x: Tensor, *, rtol: float = 1e-5, atol: float = 1e-6) -> str | None:
    """Compare a model's unrolled sequence with calling it timestep by timestep.

    What folding time into the batch cannot carry is not always noticed by ``unroll``: batch
    statistics in training, dropout masks, samples that are mixed. Here it shows. States, buffers
    and random numbers are afterwards as they were.

    Args:
        model: any model.
        x: a sample sequence ``[T, B, …]``, of at least 2 timesteps.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        None where the sequence ran at once; else why ``unroll`` steps this model.

    Raises:
        AssertionError: they differ; the message names the first layer that does, in the order of
            the forward pass, or else the output or final state.

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
    _observed(model, lambda: _leaf_of(model.unroll(x[:2])))  # decides whether to fold
    stepped, one = _observed(model, lambda: torch.stack([*map(_leaf(model), x)]))
    unrolled, other = _observed(model, lambda: _leaf_of(model.unroll(x)))
    layers = dict(model.named_layers())
    for name, outputs in stepped.items():
        expected, got = torch.cat(outputs), torch.cat(unrolled.get(name, []) or outputs[:0])
        what = f"the output of layer {name!r}, {layers[name]!r}"
        _compare(what, got.reshape(expected.shape), expected, rtol, atol)
    for what, value in one.items():
        _compare(what, other[what], value, rtol, atol)
    return model._stepped.get((model.training, x.ndim))


def _leaf(model: Model) -> Callable[[Tensor], Tensor]:
    return lambda timestep: _leaf_of(model(timestep))


def _leaf_of(output: Any) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in tree_leaves(output)], -1)


def _observed(model: Model, run: Callable[[], Tensor]) -> tuple[Outputs, Mapping[str, Tensor]]:
    """What each layer put out, and the output and final states of it all; nothing else stays."""
    states = model._standing()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(),
            buffers_kept(model),
            _recorded(model) as outputs,
        ):
            found = {"the output": run().flatten()}
        finals = {f"the final state {name}": s for name, s in model.get_states().items()}
        return outputs, found | finals
    finally:
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

    return forward


def _compare(what: str, got: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(
        got, expected, rtol=rtol, atol=atol, equal_nan=True,
        msg=lambda text: f"{what} differs between unrolled and stepped\n{text}",
    )  # fmt: skip
