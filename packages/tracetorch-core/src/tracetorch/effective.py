"""Raw parameters as they are stored, and the effective values that a timestep computes with.

Knows modules and specifications, no layer. Effective values that nobody differentiates are
computed once for the very bits of the raw ones: whatever gives a parameter new values (an
optimizer, ``load_state_dict``, ``.data``, another tensor in its place) makes new ones by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.modules import parts
from tracetorch.parameters import ParameterSpec, to_raw

# of more elements it takes longer to see that they are the same than to compute with them
_MANY = 1 << 14


def raw_of(module: nn.Module, spec: ParameterSpec) -> Tensor:
    """What is stored, or what ``parametrize`` and ``prune`` of torch have put in its place."""
    raw: Tensor | None = module._parameters.get(spec.raw_name)
    if raw is None:
        raw = module._buffers.get(spec.raw_name)
    if raw is None:
        raw = getattr(module, spec.raw_name)
    if raw is None:
        raise AttributeError(f"{type(module).__name__}: {spec.raw_name} was set to None")
    return raw


class _Known(NamedTuple):
    """An effective value, and the raw one it was computed from."""

    raw: Tensor
    address: int
    bits: NDArray[np.uint8]
    before: bytes
    value: Tensor

    def lasts(self) -> bool:
        """Whether the raw value is, bit for bit, what it was."""
        return self.raw.data_ptr() == self.address and self.bits.tobytes() == self.before


class Constants:
    """Effective values by name that were computed without gradients."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def of(self, spec: ParameterSpec, raw: Tensor) -> Tensor:
        """The effective value of a raw one that nobody differentiates."""
        known = self._known.get(spec.name)
        if known is None or known.raw is not raw or not known.lasts():
            known = self._known[spec.name] = _computed(spec, raw)
        return known.value


class _Unknown(NamedTuple):
    """Stands where values cannot be compared, or not in time."""

    value: Tensor
    raw: None = None


def _computed(spec: ParameterSpec, raw: Tensor) -> Any:
    with torch.inference_mode(False), torch.no_grad():
        value = spec.constraint.forward(raw.detach())
    comparable = type(raw) in mode.PLAIN and raw.device.type == "cpu" and raw.is_contiguous()
    if not comparable or raw.numel() > _MANY or raw.layout is not torch.strided:
        return _Unknown(value)
    bits = raw.detach().as_strided((raw.numel(),), (1,)).view(torch.uint8).numpy()
    return _Known(raw, raw.data_ptr(), bits, bits.tobytes(), value)


def effective(
    module: nn.Module, specs: Iterable[ParameterSpec], constants: Constants, compiled: bool
) -> list[Tensor]:
    """The values that a timestep computes with; ``compiled``: no gradient is to reach the raw."""
    found, learns = [], torch.is_grad_enabled() and not compiled
    known = not torch.compiler.is_compiling() and mode.undisturbed()
    for spec in specs:
        raw = raw_of(module, spec)
        if spec.plain:
            found.append(raw.detach() if compiled else raw)
        elif known and not (learns and raw.requires_grad):
            found.append(constants.of(spec, raw))
        else:
            found.append(spec.constraint.forward(raw.detach() if compiled else raw))
    return found


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The promoted dtype of all its parameters and buffers; None where there are none."""
    dtype = None
    tensors = [*module._parameters.values(), *module._buffers.values()]
    if parametrized := module._modules.get("parametrizations"):
        # as they are stored: to compute what torch.nn.utils.parametrize does may change them
        for held in parametrized.children():
            tensors += [*held._parameters.values(), *held._buffers.values()]
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point() and tensor.dtype is not dtype:
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    return dtype


def promoted(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The type that states have for an input of this one."""
    own = dtype_of(module)
    return dtype if own is None or own is dtype else torch.promote_types(dtype, own)


def weights_of(module: nn.Module, declared: Mapping[str, ParameterSpec]) -> dict[str, Tensor]:
    """Its parameters and buffers, and those of its modules, that were not declared."""
    held = sum([len(part._parameters) + len(part._buffers) for part in parts(module)])
    if held == len(declared):
        return {}  # as for most layers, at every timestep
    raw = {spec.raw_name for spec in declared.values()}
    named: Iterable[tuple[str, Tensor]] = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor for name, tensor in named if name not in raw}


def assign(module: nn.Module, spec: ParameterSpec, value: float | Tensor) -> None:
    """Give a parameter another effective value, in place.

    Raises:
        TypeError: the value is of the wrong kind.
        ValueError: it lies outside the constraint's domain or has another shape.
        RuntimeError: the raw value is computed, by what cannot be undone.
    """
    raw = raw_of(module, spec)
    new = to_raw(type(module).__name__, spec.name, value, spec.constraint, like=raw)
    if new.ndim and new.shape != raw.shape:
        raise ValueError(
            f"{module!r}: {spec.name} has shape {list(raw.shape)}, cannot assign shape "
            f"{list(new.shape)}"
        )
    if spec.raw_name in module._parameters or spec.raw_name in module._buffers:
        with torch.no_grad():
            raw.copy_(new)
    else:
        _assign_computed(module, spec, new.expand(raw.shape).clone(), value)


def _assign_computed(
    module: nn.Module, spec: ParameterSpec, raw: Tensor, value: float | Tensor
) -> None:
    """Where the raw value is computed from another tensor: through its setter."""
    refused = f"{module!r}: cannot assign {value!r} to {spec.name}: {spec.raw_name} is computed"
    if spec.raw_name in vars(module):
        raise RuntimeError(
            f"{refused} anew at every call; assign what it is computed from, or remove that "
            f"first, as with torch.nn.utils.prune.remove(layer, {spec.raw_name!r})"
        )
    try:
        setattr(module, spec.raw_name, raw)
    except RuntimeError as error:
        raise RuntimeError(
            f"{refused} by a parametrization; assign what it is computed from, or give that a "
            f"right_inverse ({error})"
        ) from error


def brief(value: Tensor) -> str:
    """A number where all are equal to 4 digits, else the range."""
    if value.numel() == 0 or value.device.type == "meta":
        return "…"
    low, high = (f"{end.item():.4g}" for end in value.detach().float().aminmax())
    return low if low == high else f"{low}…{high}"
