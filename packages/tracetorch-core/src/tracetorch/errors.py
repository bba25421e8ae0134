"""What can go wrong, said with its place, what came, what fits and the remedy.

Knows nothing of layers beyond the object it is handed to name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


class LayerError(ValueError):
    """An error that belongs to one layer; a model that finds the layer inside it adds its name.

    Attributes:
        layer: the layer object concerned.
        name: its qualified name in the model, once a model has said it.
    """

    def __init__(self, layer: object, message: str) -> None:
        super().__init__(message)
        self.layer = layer
        self.message = message
        self.name: str | None = None

    def __str__(self) -> str:
        place = f"layer {self.name!r}, " if self.name else ""
        return f"{place}{_shown(self.layer)}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), _shown(self.layer), self.message, self.name)


Method = TypeVar("Method", bound=Callable[..., Any])


def located(method: Method) -> Method:
    """A model's method, in whose errors its layers have their qualified names.

    To an error of torch's about types it adds which of them met, and the remedy.
    """

    @functools.wraps(method)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except LayerError as error:
            for name, layer in self.named_layers():
                if layer is error.layer:
                    error.name = name
            raise
        except RuntimeError as error:
            if type(error) is RuntimeError and "type" in str(error).lower():
                _add_types(error, self, [*args, *kwargs.values()])
            raise

    return named  # type: ignore[return-value]


def _add_types(error: RuntimeError, model: nn.Module, given: list[object]) -> None:
    """Where the dtype of what a model is given is another than the one of its parameters."""
    came = [x.dtype for x in given if isinstance(x, Tensor) and x.is_floating_point()]
    own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(own) != 1 or not came or came[0] in own:
        return
    (fits,) = own
    said = (
        f"the input is {came[0]} and the parameters are {fits}: give it x.to({fits}), or take "
        f"model.to({came[0]})"
    )
    # an unroll has it from a call of the same model
    if said not in str(error):
        error.args = (f"{error}\n{said}",)


def _shown(layer: object) -> str:
    """One line: a whole model's ``repr`` would bury the message."""
    text = repr(layer)
    return type(layer).__name__ if "\n" in text else text


class StateError(LayerError):
    """A state, or what should become one, does not fit its layer or its input."""


class RecordError(LayerError):
    """What was to be recorded of a layer cannot be, or is too much."""


class FoldError(RuntimeError):
    """A model's timesteps were to run at once and cannot, or have changed something by it."""


class StateFileError(ValueError):
    """A state file is unreadable, damaged or not what it claims to be."""


class CheckpointError(ValueError):
    """A checkpoint is unreadable, damaged, or of another run than it is loaded into."""


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of somebody else's."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def not_dense(x: object) -> str:
    """What holds numbers otherwise than a dense tensor does, with the remedy; empty for others."""
    if torch.compiler.is_compiling():
        return ""
    if isinstance(x, nn.utils.rnn.PackedSequence):
        return "a PackedSequence; torch.nn.utils.rnn.pad_packed_sequence gives x and lengths"
    if not isinstance(x, Tensor):
        return ""
    if x.is_nested:
        return (
            "a nested one; torch.nn.utils.rnn.pad_sequence(x.unbind()) is [T, B, …], and "
            "torch.tensor([len(one) for one in x.unbind()]) its lengths"
        )
    return "" if x.layout is torch.strided else f"one of {x.layout}; x.to_dense() is a dense one"


def check_dense(must: str, x: object) -> None:
    """TypeError where ``x`` is a tensor that is not dense, or a packed sequence.

    Args:
        must: what must be what, the beginning of the message: ``"x must be a tensor [T, B, …]"``.
        x: what was given.
    """
    if why := not_dense(x):
        raise TypeError(f"{must}, got {why}")


class _Described:
    """Stands for a layer in an error that crossed a process boundary."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _rebuild(kind: type[LayerError], text: str, message: str, name: str | None) -> LayerError:
    error = kind(_Described(text), message)
    error.name = name
    return error
