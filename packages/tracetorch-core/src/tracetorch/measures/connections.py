"""Which modules connect neurons, and how many connections leave each place of their input.

That number is the gradient of all outputs together, with 1 for every weight that counts and 0 for
the others. So an input is only tallied: how often each of its places was -1 or 1, or anything else
but 0. Knows torch's modules, no layer and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracetorch.measures.counts import Count

Apply = Callable[[Any, Tensor, Tensor, torch.Size], Tensor]


class Kind(NamedTuple):
    """A kind of module.

    Attributes:
        modules: its classes.
        dims: of one sample's input.
        apply: the output for a module, an input, weights, and the shape of a sample's output; None
            for those that add up what is in their windows.
    """

    modules: type[nn.Module] | tuple[type[nn.Module], ...]
    dims: int
    apply: Apply | None


def _linear(module: Any, x: Tensor, weight: Tensor, output: torch.Size) -> Tensor:
    del module, output
    return F.linear(x, weight)


def _convolved(module: Any, x: Tensor, weight: Tensor, output: torch.Size) -> Tensor:
    del output
    # with the module's own padding, whatever its mode
    return module._conv_forward(x, weight, None)  # type: ignore[no-any-return]


def _transposed(module: Any, x: Tensor, weight: Tensor, output: torch.Size) -> Tensor:
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.ndim - 3]
    places = zip(
        output[1:],
        x.shape[2:],
        weight.shape[2:],
        module.stride,
        module.padding,
        module.dilation,
        strict=True,
    )
    # its output_size may have been an argument of the call
    more = [
        out - ((size - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
        for out, size, kernel, stride, pad, dilation in places
    ]
    return convolve(
        x, weight, None, module.stride, module.padding, more, module.groups, module.dilation
    )


POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

KINDS = (
    Kind(nn.Linear, 1, _linear),
    *(
        Kind(kind, dims, _convolved)
        for dims, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=2)
    ),
    *(
        Kind(kind, dims, _transposed)
        for dims, kind in enumerate(
            (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), start=2
        )
    ),
    *(
        Kind(kinds, dims, None)
        for dims, kinds in enumerate(zip(POOLS, ADAPTIVE_POOLS, strict=True), start=2)
    ),
)


def kind_of(module: nn.Module) -> Kind | None:
    """Of which kind a module is, if it connects neurons."""
    return next((kind for kind in KINDS if isinstance(module, kind.modules)), None)


# ---------------------------------------------------------------------- connections


def fan_out(kind: Kind, module: Any, x: torch.Size, y: torch.Size, dense: bool) -> Tensor:
    """How many connections leave each place of a sample's input: integers of its shape.

    Args:
        kind: the module's.
        module: any of that kind.
        x: the shape of a sample's input.
        y: the shape of its output.
        dense: whether weights that are zero count too.
    """
    if kind.apply is None:
        return _windows(module, x, y)
    with torch.inference_mode(False), torch.enable_grad():
        weight = module.weight.detach()
        counts = torch.ones_like(weight, dtype=torch.float64)
        if not dense:
            counts = counts * (weight != 0)
        ones = torch.ones((1, *x), dtype=torch.float64, device=weight.device, requires_grad=True)
        total = kind.apply(module, ones, counts, y).sum()
        (fan,) = torch.autograd.grad(total, ones)
    return fan[0].round().long()


def _windows(module: Any, x: torch.Size, y: torch.Size) -> Tensor:
    """In how many windows of a pool each place of its input is."""
    fan = torch.ones((), dtype=torch.int64)
    for dim, (size, number) in enumerate(zip(x[1:], y[1:], strict=True)):
        starts, stops = _edges(module, dim, size, number)
        place = torch.arange(size)
        inside = (starts[:, None] <= place) & (place < stops[:, None])
        fan = fan[..., None] * inside.sum(0)
    return fan.expand(x)


def _edges(module: Any, dim: int, size: int, number: int) -> tuple[Tensor, Tensor]:
    """Where the windows of a pool begin and end, along one dimension of the input."""
    places = torch.arange(number)
    if isinstance(module, ADAPTIVE_POOLS):
        return places * size // number, -(-(places + 1) * size // number)
    kernel, stride, padding = (
        value if isinstance(value, int) else value[dim]
        for value in (module.kernel_size, module.stride, module.padding)
    )
    starts = places * stride - padding
    return starts, starts + kernel


# ---------------------------------------------------------------------- their use


class Tally:
    """What the inputs of one module were, over all of its calls."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._seen: dict[tuple[torch.Size, torch.Size], list[Any]] = {}

    def look(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """One call of it, with any number of samples.

        Raises:
            TypeError: its input is no positional argument.
        """
        if not inputs:
            raise TypeError(
                f"operations: {module!r} was called with keyword arguments only, and these are not "
                f"seen; call it with its input first"
            )
        x, dims = inputs[0].detach(), self._kind.dims
        samples = x.reshape(-1, *x.shape[x.ndim - dims :])
        seen = self._seen.setdefault(
            (samples.shape[1:], output.shape[output.ndim - dims :]), [0, 0, 0]
        )
        ones = at_one(samples).sum(0)
        for at, more in enumerate((len(samples), ones, (samples != 0).sum(0) - ones)):
            seen[at] = seen[at] + more  # not in place: what there was may be wanted again

    def place(self) -> dict[Any, list[Any]]:
        """What was seen so far."""
        return {shapes: [*seen] for shapes, seen in self._seen.items()}

    def back(self, place: dict[Any, list[Any]]) -> None:
        """That again, and nothing of what came since."""
        self._seen = place

    def count(self, module: nn.Module) -> Count:
        """Of all of its calls."""
        total = Count()
        for (x, y), (samples, ones, others) in self._seen.items():
            dense = fan_out(self._kind, module, x, y, dense=True)
            fan = fan_out(self._kind, module, x, y, dense=False).to(ones.device)
            acs, macs = int((ones * fan).sum()), int((others * fan).sum())
            if self._kind.apply is None:  # whatever they add up
                acs, macs = acs + macs, 0
            total += Count(samples * int(dense.sum()), macs, acs)
        return total


def at_one(x: Tensor) -> Tensor:
    """Where activations are -1 or 1: there, a weight has only to be added."""
    return (x == 1) | (x == -1)
