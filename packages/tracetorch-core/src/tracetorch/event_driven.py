"""A model's linear modules, event-driven while it is compiled for inference: which, and when.

Their weights are laid out input after input, in their own tensors, and their calls within the
model's go by events where few inputs are not zero. Between its calls nothing is on the modules.
"""

from __future__ import annotations

import types
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.choice import AUTO, BackendError, chosen
from tracetorch.engine import events
from tracetorch.engine.launch import BuildError
from tracetorch.modules import Bookkeeping
from tracetorch.walk import named_layers

_FORWARD, _OF_MODEL, _BACKEND = "forward", "_events", "cpp"
_NOTHING = nullcontext()
# a module's attributes, and the method that is put among them
_Place = tuple[dict[str, Any], types.MethodType]


def begin(model: nn.Module) -> None:
    """Lay out the weights of all its linear modules that may go by events.

    Raises:
        BackendError: there is no kernel for it here; nothing has changed.
    """
    try:
        events.prepare()
    except BuildError as error:
        raise BackendError(
            f"{type(model).__name__}.TTcompile: events=True needs the backend {_BACKEND!r}: "
            f"{error}; leave it out"
        ) from error
    found = _candidates(model)
    try:
        vars(model).setdefault(_OF_MODEL, EventDriven()).include(found)
    except BaseException:  # no memory for one of them
        end(model)
        raise


def end(model: nn.Module) -> None:
    """Lay the weights out as they were."""
    driven = vars(model).pop(_OF_MODEL, None)
    if driven is not None:
        driven.release()


def within(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, the model's linear modules may go by events."""
    found: AbstractContextManager[None] = vars(model).get(_OF_MODEL, _NOTHING)
    return found


def modules_of(model: nn.Module) -> list[nn.Linear]:
    """Those of a model that may."""
    driven: EventDriven | None = vars(model).get(_OF_MODEL)
    return [] if driven is None else driven.modules


class EventDriven(Bookkeeping):
    """The linear modules of one model that may go by events; within a ``with``, they do.

    Attributes:
        modules: those whose weights lie input after input.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Linear] = []
        self._begin()

    def _begin(self) -> None:
        self._depth = 0
        self._methods: list[_Place] = []
        self._put: list[_Place] = []

    def renewed(self) -> EventDriven:
        """None of a copy that is only tried out."""
        return EventDriven()

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def include(self, modules: list[nn.Linear]) -> None:
        """Lay out the weights of these."""
        known = {id(module) for module in self.modules}
        for module in modules:
            if id(module) not in known:
                self.modules.append(module)
                _lay(module.weight, by_inputs=True)

    def release(self) -> None:
        """Lay the weights out as they were, output after output."""
        while self.modules:
            weight = self.modules.pop()._parameters.get("weight")
            if weight is not None and _by_inputs(weight):
                _lay(weight, by_inputs=False)

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        if len(self._methods) != len(self.modules):  # the same ones each time: nothing has changed
            self._methods = [(vars(m), types.MethodType(forward, m)) for m in self.modules]
        self._put = [place for place in self._methods if _FORWARD not in place[0]]
        for held, method in self._put:
            held[_FORWARD] = method

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        while not self._depth and self._put:
            held, method = self._put.pop()
            if held.get(_FORWARD) is method:
                del held[_FORWARD]


def forward(self: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002 - the name it is called by
    """In the place of ``nn.Linear.forward``: by events where that may be, and there are few."""
    if not torch.compiler.is_compiling():
        operands = _operands(self, input)
        found = None if operands is None else events.linear(input, *operands)
        if found is not None:
            return found
    kind: Any = type(self)
    y: Tensor = kind.forward(self, input)
    return y


def goes_by_events(module: nn.Linear, x: Tensor) -> bool:
    """Whether one of ``EventDriven.modules`` does with this input."""
    operands = _operands(module, x)
    if operands is None:
        return False
    inputs = x.shape[-1]
    return int(x.count_nonzero()) <= events.most(x.numel() // inputs, inputs)


def _operands(module: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias, where the product with this input is one for the kernel."""
    held = module._parameters
    weight, bias = held.get("weight"), held.get("bias", _MISSING)
    if weight is None or type(module) is not nn.Linear or not _fits(x, weight, bias):
        return None
    return weight, bias


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the product is one for the kernel, however many events there are."""
    plain, kind = mode.PLAIN, weight.dtype
    if not (
        mode.unwatched()  # or else not even sizes are numbers
        and type(x) in plain
        and type(weight) in plain
        and x.dtype is kind
        and kind in events.ENTRIES
        and x.layout is _STRIDED
        and weight.layout is _STRIDED
        and x.is_cpu
        and weight.is_cpu
        and x.is_contiguous()
    ):
        return False
    outputs, inputs = weight.shape
    if not (
        weight.stride() == (1, outputs)
        and x.numel()
        and x.ndim
        and x.shape[-1] == inputs
        and (bias is None or _ordinary(bias, kind, outputs))
    ):
        return False
    return not (
        (torch.is_grad_enabled() and _differentiated(x, weight, bias))
        or x.is_neg()
        or mode.is_wrapped(x)
        or torch.is_autocast_enabled("cpu")
        or chosen() not in _CHOICES
    )


def _ordinary(bias: Tensor, dtype: torch.dtype, outputs: int) -> bool:
    return (
        type(bias) in mode.PLAIN
        and bias.shape == (outputs,)
        and bias.dtype is dtype
        and bias.is_cpu
        and bias.is_contiguous()
    )


def _differentiated(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


# stands for a bias that is computed, or was deleted
_MISSING = torch.empty(0, device="meta")
_STRIDED = torch.strided
_CHOICES = (AUTO, _BACKEND)


def _by_inputs(weight: Tensor) -> bool:
    """Whether it lies in memory input after input."""
    return _plain(weight) and weight.stride() == (1, weight.shape[0])


def _plain(weight: Tensor) -> bool:
    return weight.is_cpu and weight.layout is torch.strided and weight.dtype in events.ENTRIES


def _lay(weight: Tensor, *, by_inputs: bool) -> None:
    """The same values in the same tensor, in another order in memory."""
    with torch.inference_mode(False), torch.no_grad():
        values = weight.detach()
        weight.data = values.t().contiguous().t() if by_inputs else values.contiguous()


def _candidates(model: nn.Module) -> list[nn.Linear]:
    """Linear modules that are large enough, and whose weights nothing else in the model reads."""
    layers = {id(part) for _, layer in named_layers(model) for part in layer.modules()}
    modules = [*model.modules()]
    linear = [m for m in modules if type(m) is nn.Linear and id(m) not in layers]
    tensors = [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and tensor.layout is torch.strided and not tensor.is_meta
    ]
    readers = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    return [m for m in linear if _movable(m._parameters.get("weight"), readers)]


def _movable(weight: Tensor | None, readers: Counter[int]) -> bool:
    if type(weight) not in mode.PLAIN or weight is None or not _plain(weight):
        return False
    storage, (outputs, inputs) = weight.untyped_storage(), weight.shape
    return (
        outputs >= events.NARROWEST
        and inputs * outputs >= events.SMALLEST
        and weight.is_contiguous()
        and not (weight.is_neg() or weight.is_inference())
        and not weight.is_shared()  # type: ignore[no-untyped-call]
        and storage.nbytes() == weight.nbytes
        and readers[storage.data_ptr()] == 1
    )
