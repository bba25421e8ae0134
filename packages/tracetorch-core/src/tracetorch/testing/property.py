"""What makes a check of a layer a property: a checked sample, a fixed seed, failures with names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from tracetorch.layer import Layer

Make = Callable[[], Layer]
Property = Callable[[Make, Tensor], None]

# what the docstring of every property goes on with
_SAID = """

    Args:
        make: returns a new layer, as for :func:`check_layer`.
        x: a float64 sample sequence ``[T, …]`` of at least 4 timesteps.

    Raises:
        AssertionError: the property does not hold; the message says what differs.
        TypeError: ``x`` is no float64 tensor, or ``make`` returns no layer.
        ValueError: ``x`` is too short.

    Example:
        >>> import torch
        >>> from tracetorch import testing
        >>> testing.{name}(lambda: testing.Trace(3), torch.randn(5, 2, 3).double())
    """


def property_of(check: Property) -> Property:
    """Give the check a checked sample and a fixed seed; its failures name layer and property."""

    @functools.wraps(check)
    def checked(make: Make, x: Tensor) -> None:
        layer = make()
        if not isinstance(layer, Layer):
            raise TypeError(f"make must return a tt.Layer, got {layer!r}")
        if not isinstance(x, Tensor) or x.dtype != torch.float64:
            got = x.dtype if isinstance(x, Tensor) else repr(x)
            raise TypeError(f"x must be a float64 tensor [T, …], got {got}")
        if x.ndim < 2 or len(x) < 4:
            raise ValueError(f"x must be [T, …] with at least 4 timesteps, got {list(x.shape)}")
        broken = f"{layer!r} breaks {check.__name__}"
        try:
            check(_twins(make, layer), x.detach())
        except AssertionError as error:
            raise AssertionError(f"{broken}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{broken}: raised {type(error).__name__}: {error}") from error

    checked.__doc__ = f"{check.__doc__}{_SAID.format(name=check.__name__)}"
    return checked


def _twins(make: Make, original: Layer) -> Make:
    """A factory of layers with the original's parameters, also where ``make`` draws them."""

    def twin() -> Layer:
        layer = make().double()
        layer.load_state_dict(original.state_dict())
        return layer

    return twin
