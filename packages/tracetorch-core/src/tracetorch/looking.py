"""Notices code that looks at a tensor's values, so that what it computes depends on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

_LOOKS = frozenset((
    "__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__contains__",
    "item", "tolist", "numpy", "__dlpack__", "data_ptr", "is_nonzero", "equal", "allclose",
))  # fmt: skip


class Looked(Exception):
    """A value was handed to Python; the message is the call."""


class Blind(TorchFunctionMode):
    """Within it, a call that hands a tensor's values to Python raises :class:`Looked`.

    At its end, once more, for code that goes on all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked: str | None = None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and self._looked is not None:
            raise Looked(self._looked)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOOKS:
            self._looked = f"Tensor.{name}"
            raise Looked(self._looked)
        return func(*args, **(kwargs or {}))
