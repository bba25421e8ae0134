"""Nodes of NIR that torch has no module for; stateless but for :class:`Last`. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from tracetorch import Layer
from tracetorch.snn.quantizers import carrying, nothing


class Scale(nn.Module):
    """y = scale · x.

    Args:
        scale: of a timestep's shape without the batch, or ``[]``.

    Example:
        >>> import torch
        >>> Scale(torch.tensor([1.0, 2.0]))(torch.ones(1, 2))
        tensor([[1., 2.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, …]`` → the same shape."""
        return x * self.scale

    def extra_repr(self) -> str:
        """The shape of the scale."""
        return str(tuple(self.scale.shape))


class Affine(nn.Module):
    """y = W·x + b in the last dimension, with a matrix for each of those before it.

    Args:
        weight: ``[…, out, in]``.
        bias: ``[…, out]``, or None.

    Example:
        >>> import torch
        >>> Affine(torch.ones(2, 1, 3), None)(torch.ones(4, 2, 3)).shape
        torch.Size([4, 2, 1])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, …, in]`` → ``[B, …, out]``."""
        y: Tensor = (self.weight @ x.unsqueeze(-1)).squeeze(-1)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """The shape of the weight, and whether there is a bias."""
        return f"{tuple(self.weight.shape)}, bias={self.bias is not None}"


class SumPool2d(nn.Module):
    """The sum of each window of an image.

    Args:
        kernel_size: height and width of a window.
        stride: from one window to the next.
        padding: zeros on either side.

    Example:
        >>> import torch
        >>> SumPool2d((2, 2), (2, 2), (0, 0))(torch.ones(1, 1, 4, 2)).tolist()
        [[[[4.0], [4.0]]]]
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] | None = None,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, H', W']``."""
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, divisor_override=1)

    def extra_repr(self) -> str:
        """Kernel, stride, padding."""
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class Threshold(nn.Module):
    """1 where x is above the threshold, else 0; with a surrogate's gradient.

    Args:
        threshold: of a timestep's shape without the batch, or ``[]``.
        spike_fn: the surrogate.
        at_threshold: 1 where it is exactly there, too.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> threshold = Threshold(torch.tensor(1.0), snn.surrogates.sigmoid())
        >>> threshold(torch.tensor([0.5, 1.5])).tolist()
        [0.0, 1.0]
    """

    def __init__(self, threshold: Tensor, spike_fn: nn.Module, at_threshold: bool = False) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold)
        self.spike_fn, self.at_threshold = spike_fn, at_threshold

    def forward(self, x: Tensor) -> Tensor:
        """``[B, …]`` → the same shape."""
        u = x - self.threshold
        distance = u.detach()
        fired = distance >= 0 if self.at_threshold else distance > 0
        return carrying(fired.to(u.dtype) + nothing(distance), self.spike_fn(u))

    def extra_repr(self) -> str:
        """The shape of the threshold."""
        return str(tuple(self.threshold.shape))


class Flat(nn.Module):
    """A layer of flat neurons over inputs of any shape, where each has values of its own.

    Args:
        layer: with as many neurons as the input has elements without the batch, in ``dim`` -1.
        ndim: dimensions of the input without the batch.

    Example:
        >>> import torch
        >>> from tracetorch import snn
        >>> Flat(snn.LI(6, 0.5), 2)(torch.ones(4, 2, 3)).shape
        torch.Size([4, 2, 3])
    """

    def __init__(self, layer: Layer, ndim: int) -> None:
        super().__init__()
        self.layer, self.ndim = layer, ndim

    def forward(self, x: Tensor) -> Tensor:
        """``[B, …]`` → the same shape."""
        y: Tensor = self.layer(x.flatten(-self.ndim))
        return y.view(x.shape)


class Last(Layer):
    """Puts out the input of the timestep before, and keeps this one's; zeros before there was any.

    It closes a loop: :meth:`value` is read before a timestep's input is there.

    Args:
        shape: of a timestep's input, without the batch.

    Example:
        >>> import torch
        >>> last = Last((2,))
        >>> x = torch.ones(1, 2)
        >>> last.value(x).tolist(), last(x).tolist(), last.value(x).tolist()
        ([[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]])
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape[0], -len(shape))
        self.shape = shape
        self.add_state("last")

    def step(self, states: Any, x: Tensor, p: Any) -> tuple[Mapping[str, Tensor], Tensor]:
        """One timestep."""
        del p
        return {"last": x}, states.last

    def value(self, like: Tensor) -> Tensor:
        """What is kept; zeros for as many samples as ``like`` has, ``[B, …]``, where nothing is."""
        kept: Tensor | None = self.last
        return like.new_zeros(len(like), *self.shape) if kept is None else kept
