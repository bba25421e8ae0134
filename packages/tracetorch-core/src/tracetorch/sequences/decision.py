"""Whether a model's timesteps may run at once: decided once for a kind of sequence, then known.

A kind is: training or not, gradients or not, the number of dimensions and the type. A model that
was not found foldable is asked once more with its next sequence: it may have made for good what it
goes by from then on. What is known of a model is kept on it, as its ``tt``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch import mode
from tracetorch.modules import Bookkeeping
from tracetorch.numbering import number, numbered
from tracetorch.reasons import Reason, Unfoldable, Unfolded
from tracetorch.recomputation import restored
from tracetorch.sequences.fold import in_use
from tracetorch.sequences.glance import Glance
from tracetorch.sequences.trial import tried

_log = logging.getLogger("tracetorch")

Kind = tuple[bool, bool, int, torch.dtype]


class Verdict(NamedTuple):
    """What was decided of a kind.

    Attributes:
        why: why it is stepped; None where it is folded.
        final: it is not asked again.
    """

    why: Reason | None
    final: bool


class Decisions(Bookkeeping):
    """What is known of how one model's sequences run.

    Attributes:
        verdicts: by kind.
        glance: its modules at a glance; None where it has to be taken anew.
        having: which thread is in a call of it, if any; and in how many, one in another.
        number: by which a compiled graph asks for it.
        last: why the last sequence was stepped; None where it was folded.
    """

    def __init__(self, number: str = "") -> None:
        self.last: Reason | None = None
        self.verdicts: dict[Kind, Verdict] = {}
        self.glance: Glance | None = None
        self.having: int
        self.depth = 0
        self.number = number
        self._told: set[object] = set()

    def renewed(self) -> Decisions:
        """A copy of the model is another one."""
        return Decisions()

    def __reduce__(self) -> tuple[type[Decisions], tuple[()]]:
        return Decisions, ()

    def alone(self, model: nn.Module) -> Alone:
        """Within it, this thread has the model.

        Raises:
            RuntimeError: another thread has it, as it is entered.
        """
        return Alone(self, model)

    def tell(self, model: nn.Module, why: Reason) -> None:
        """In the log, once."""
        message = f"{type(model).__name__} is stepped: {why}"
        once = why.why if why.passing else message
        if once not in self._told and not torch.compiler.is_compiling():
            self._told.add(once)
            _log.info("%s", message)


class Alone:
    """A model in the hands of one thread, for a ``with``."""

    __slots__ = "_decisions", "_model"

    def __init__(self, decisions: Decisions, model: nn.Module) -> None:
        self._decisions, self._model = decisions, model

    def __enter__(self) -> None:
        me = threading.get_ident()
        # one operation, which no other thread can come between
        if vars(self._decisions).setdefault("having", me) != me:
            raise RuntimeError(in_use(self._model))
        self._decisions.depth += 1

    def __exit__(self, *_: object) -> None:
        self._decisions.depth -= 1
        if not self._decisions.depth:
            vars(self._decisions).pop("having", None)


def kind_of(model: nn.Module, x: Tensor) -> Kind:
    """Of which kind a sequence is for a model."""
    return model.training, torch.is_grad_enabled(), x.ndim, x.dtype


def seen(model: Any) -> Glance:
    """The model at a glance, as it is now."""
    decisions: Decisions = model.tt
    if decisions.glance is None or not decisions.glance.holds():
        decisions.glance = Glance(model)
    return decisions.glance


def decided(model: Any, x: Tensor) -> Reason | None:
    """Why this sequence ``[T, B, …]`` is to be stepped; None: it is to be folded."""
    decisions: Decisions = model.tt
    kind = kind_of(model, x)
    known = decisions.verdicts.get(kind)
    if torch.compiler.is_compiling() and torch.compiler.is_dynamo_compiling():
        if known is None:
            steps = decided_unseen(decisions.number, tuple(x.shape), x.dtype)
            return Reason(Unfolded.BEFORE) if steps else None
        return known.why
    if mode.recording():
        return Reason(Unfolded.RECORDED)  # at each of its runs
    if known is not None and (known.final or restored()):
        return known.why
    if not (mode.ordinary() and x.numel()):  # there are no values that could be compared
        return Reason(Unfolded.ALIKE) if known is None else known.why
    why: Reason | None = None
    try:
        tried(model, x)
    except Unfoldable as unfoldable:
        why = unfoldable.reason
    return conclude(model, kind, why)


def conclude(model: Any, kind: Kind, why: Reason | None) -> Reason | None:
    """Keep what was found of a kind, unless it was found of one sequence alone."""
    decisions: Decisions = model.tt
    if why is None:
        decisions.verdicts[kind] = Verdict(None, final=True)
        return None
    if not why.passing:
        asked = kind in decisions.verdicts
        decisions.verdicts[kind] = Verdict(why, final=asked)
    decisions.tell(model, why)
    return why


def decided_unseen(number: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether it steps, within ``torch.compile``: on random numbers, asked in constants."""
    model: Any = numbered(number)
    generator = torch.Generator().manual_seed(0)
    sizes = (min(shape[0], 3), *shape[1:])
    if dtype.is_floating_point:
        x = torch.rand(sizes, generator=generator).to(dtype)
    else:
        x = torch.randint(0, 2, sizes, generator=generator).to(dtype)
    device = next(iter(model.parameters()), x).device
    x = x.to(device).requires_grad_(dtype.is_floating_point)
    with _set_aside():
        if not x.numel():
            return True
        try:
            tried(model, x)
        except Unfoldable as unfoldable:  # not kept: the graph holds for what is known now
            model.tt.tell(model, unfoldable.reason)
            return True
    return False


@contextlib.contextmanager
def _set_aside() -> Iterator[None]:
    """What runs while torch.compile compiles, but not in what it compiles."""
    compiling = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = compiling


decided_unseen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def numbered_decisions(model: nn.Module) -> Decisions:
    """What is known of a model that nothing is known of."""
    return Decisions(number(model, _itself))


def _itself(model: Any) -> Any:
    return model
