"""Code that looks at a tensor's values, so that what it computes depends on them: noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_LOOKS = frozenset((
    "__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__contains__",
    "__repr__", "__str__", "__format__", "__reduce_ex__", "__dlpack__", "__deepcopy__",
    "item", "tolist", "numpy", "data_ptr", "is_nonzero", "equal", "allclose",
    "nonzero", "argwhere", "unique", "unique_consecutive", "masked_select",
))  # fmt: skip
# operations whose results are as large as values say, or that hand a value to Python
_DEEP = frozenset((
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "_unique",
    "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "masked_select",
    "_assert_async", "_to_sparse", "to_sparse",
))  # fmt: skip
_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


class Looked(Exception):
    """A value was handed to Python; the message is the call."""


class Blind(TorchFunctionMode):
    """Within it, a call that hands a tensor's values to Python raises :class:`Looked`.

    At its end, once more, for code that goes on all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.looked: str | None = None
        self._open = True

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Within it, looks are nobody's business."""
        self._open = False
        try:
            yield
        finally:
            self._open = True

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and self.looked is not None:
            raise Looked(self.looked)

    def refuse(self, name: str) -> None:
        """Raise, now and at the end."""
        if not self._open:
            return
        self.looked = f"Tensor.{name}"
        raise Looked(self.looked)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOOKS or (name == "__getitem__" and _by_values(args[1])):
            self.refuse(name)
        if name == "where" and len(args) == 1 and not kwargs:
            self.refuse(name)
        return func(*args, **(kwargs or {}))


class BlindBelow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The same for looks within torch's own functions, which no function mode sees."""

    def __init__(self, above: Blind) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._above = above

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking would import the compiler

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        by_values = _by_values(args[1]) if name == "index" else not _TAGS.isdisjoint(func.tags)
        if name in _DEEP or by_values:
            self._above.refuse(name)
        return func(*args, **(kwargs or {}))


def _by_values(index: Any) -> bool:
    """Whether an index selects as many items as its values say."""
    if isinstance(index, Tensor):
        return index.dtype in (torch.bool, torch.uint8)
    return isinstance(index, (list, tuple)) and any(map(_by_values, index))
