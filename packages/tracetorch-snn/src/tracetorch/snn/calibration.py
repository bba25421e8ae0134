"""Scales incoming weights, layer by layer, until each spiking layer's rate lies in a band.

Everything is tried on a copy of the model; only what came of it, whole, is written to the model's
own parameters. Which weights feed a layer is ``incoming``'s to say, how a factor is found
``bisection``'s, and how the copy is run ``rehearsal``'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tracetorch.parameters import checked_integer
from tracetorch.snn.bisection import Search
from tracetorch.snn.layer import LeakyIntegrator
from tracetorch.snn.masks import check_within
from tracetorch.snn.quantizers import Probabilistic
from tracetorch.snn.rehearsal import Rate, Rehearsal


class Calibrated(NamedTuple):
    """What was done for one layer.

    Attributes:
        layer: its qualified name.
        before: its mean rate, spikes per neuron and timestep; None where it emits none.
        after: the same with the weights as they are now.
        factor: what its incoming weights were multiplied with.
        ok: whether the rate lies in the band, or there is none to lie in it.
        why: what could not be done, or was not needed; empty where it was done.
        weights: qualified names of the parameters that were multiplied.

    Example:
        >>> row = Calibrated("lif", 0.0, 0.12, 4.0, True, "", ("linear.weight",))
        >>> row.ok, row.factor
        (True, 4.0)
    """

    layer: str
    before: float | None
    after: float | None
    factor: float
    ok: bool
    why: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Calibration:
    """The report of :func:`calibrate`; ``str()`` is a table.

    Attributes:
        rows: one for each layer, in order of execution.
        band: the rate that was asked for.
        passes: how many sequences were run.

    Example:
        >>> row = Calibrated("lif", 0.0, 0.12, 4.0, True, "", ("linear.weight",))
        >>> print(Calibration((row,), band=(0.05, 0.2), passes=6))
        layer  before  after   factor  ok
        lif    0.0000  0.1200  4       yes
        band 0.05…0.2, 6 passes
    """

    rows: tuple[Calibrated, ...]
    band: tuple[float, float]
    passes: int

    @property
    def ok(self) -> bool:
        """Whether every layer that emits spikes is in the band."""
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        shown: list[tuple[str, ...]] = [("layer", "before", "after", "factor", "ok", "")]
        for row in self.rows:
            rates = ["-" if rate is None else f"{rate:.4f}" for rate in (row.before, row.after)]
            shown.append(
                (row.layer, *rates, f"{row.factor:.4g}", "yes" if row.ok else "NO", row.why)
            )
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in shown]
        low, high = self.band
        return "\n".join([*lines, f"band {low:g}…{high:g}, {self.passes} passes"])


def calibrate(
    model: nn.Module,
    x: Tensor,
    rate: tuple[float, float] = (0.05, 0.2),
    *,
    lengths: Tensor | None = None,
    limits: tuple[float, float] = (1e-3, 1e3),
    passes: int = 40,
) -> Calibration:
    """Scale the incoming weights of every spiking layer until its mean rate lies in the band.

    Layers are taken in the order in which a timestep calls them, so that each is scaled on the
    spikes that it will get. A layer's incoming weights are found from what is computed: from its
    input backwards, on every way, the nearest operation with weights before the next spiking layer
    (parameters of two or more dimensions outside of tt layers, and the gains of normalisations).
    Biases are left alone. All weights of a layer get one factor, which is first doubled or halved,
    then bisected on a logarithmic scale; that the rate rises with it is tried first, not assumed.

    Rates are those of the mode (training or evaluation) that the model is in. A layer emits
    spikes if it is one of this package's that fires and does not emit probabilities, or any other
    tt layer whose outputs over ``x`` are all −1, 0 or 1; a spike is an output other than 0.

    The model is not run itself but a copy of it, from fresh states and with the same random
    numbers in every pass: states, buffers, modes and generators stay as they are.

    Args:
        model: takes one timestep; a ``tt.Model``, or any module with tt layers in it.
        x: a typical sequence ``[T, B, …]``.
        rate: the band, lower and upper end, spikes per neuron and timestep, within 0…1.
        lengths: integers ``[B]`` in 0…T: only timesteps before them count; None for all.
        limits: the smallest and the largest factor that is tried, around 1.
        passes: at most so many passes per layer, besides three for the whole.

    Returns:
        What was done and what could not be: see :class:`Calibrated`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the model has no tt layer. Whatever is
            raised, the model has not changed.

    Example:
        >>> import torch, tracetorch as tt
        >>> from tracetorch import snn
        >>> seed = torch.manual_seed(0)
        >>> linear = torch.nn.Linear(20, 50, bias=False)
        >>> net = torch.nn.Sequential(linear, snn.LIB(50), snn.LI(50))
        >>> x = 0.1 * torch.rand(25, 8, 20)
        >>> report = snn.init.calibrate(net, x, rate=(0.05, 0.2))
        >>> [(row.layer, row.before, row.ok, row.why) for row in report.rows]
        [('1', 0.0, True, ''), ('2', None, True, 'emits no spikes')]

    Source: the idea of scaling layer by layer on data is that of Mishkin and Matas, All you need
    is a good init, arXiv 1511.06422 (LSUV), with the rate in place of the variance.
    """
    low, high = _checked_pair("rate", rate, 0.0, 1.0, "two rates in 0…1, the lower one first")
    ends = _checked_pair("limits", limits, 0.0, math.inf, "two positive factors around 1")
    if not 0 < ends[0] <= 1 <= ends[1] < math.inf:
        raise ValueError(f"limits must be two positive factors around 1, got {limits!r}")
    passes = checked_integer("calibrate", "passes", passes, low=1)
    with torch.inference_mode(False):
        run = Rehearsal(model, x, lengths)
        work = _Calibrating(model, run, Search((low, high), ends, passes))
        rows = work.rows()
        work.write(rows)
    return Calibration(rows, (low, high), work.copy.passes)


def _checked_pair(
    name: str, pair: object, low: float, high: float, what: str
) -> tuple[float, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be {what}, got {pair!r}")
    for value in pair:
        check_within(name, value, low, high, what)
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must be {what}, got {pair!r}")
    return float(pair[0]), float(pair[1])


@dataclass
class _Done:
    """What was done for one layer: see :class:`Calibrated`."""

    factor: float
    why: str
    weights: tuple[str, ...] = ()


class _Calibrating:
    """A model's copy, scaled layer by layer."""

    def __init__(self, model: nn.Module, copy: Rehearsal, search: Search) -> None:
        self._own = dict(model.named_parameters())
        self.copy, self._search = copy, search
        self._parameters = dict(copy.model.named_parameters())
        self._names = {id(p): name for name, p in self._parameters.items()}
        self._order = list(self._parameters)
        self._taken: dict[str, str] = {}

    def rows(self) -> tuple[Calibrated, ...]:
        """Scales the copy, and says what came of it."""
        before = self.copy.run()
        spiking = [name for name, rate in before.items() if self._fires(name, rate)]
        weights = self.copy.weights(spiking)
        done = {name: self._scaled(name, weights[name]) for name in spiking}
        after = self.copy.run()
        idle = [name for name in self.copy.layers if name not in before]
        return (
            *(self._row(name, before[name], after[name], done.get(name)) for name in before),
            *(Calibrated(name, None, None, 1.0, True, "is not called", ()) for name in idle),
        )

    def write(self, rows: Sequence[Calibrated]) -> None:
        """What was scaled, into the model's own parameters."""
        with torch.no_grad():
            for name in [name for row in rows for name in row.weights]:
                self._own[name].copy_(self._parameters[name])

    def _fires(self, name: str, rate: Rate) -> bool:
        layer = self.copy.layers[name]
        if isinstance(layer, LeakyIntegrator):
            return layer.firing is not None and not isinstance(layer.quant_fn, Probabilistic)
        return rate.three_valued

    def _scaled(self, name: str, weights: list[nn.Parameter]) -> _Done:
        """Scales what feeds one layer."""
        feeding = sorted((self._names[id(weight)] for weight in weights), key=self._order.index)
        shared = [self._taken[weight] for weight in feeding if weight in self._taken]
        fresh = [weight for weight in feeding if weight not in self._taken]
        own = [weight for weight in fresh if self._own[weight].requires_grad]
        self._taken.update(dict.fromkeys(fresh, name))
        now = self.copy.run(until=name)[name].value
        if self._search.miss(now) == 0:
            return _Done(1.0, "")
        if not own:
            return _Done(1.0, _nothing_to_scale(feeding, shared))
        bases = {weight: self._parameters[weight].detach().clone() for weight in own}

        def scale(factor: float) -> None:
            with torch.no_grad():
                for weight, base in bases.items():
                    self._parameters[weight].copy_(base * factor)

        def measure(factor: float) -> float:
            scale(factor)
            return self.copy.run(until=name)[name].value

        found = self._search.run(measure, now)
        scale(found.factor)
        return _Done(found.factor, found.why, tuple(own) if found.factor != 1 else ())

    def _row(self, name: str, before: Rate, after: Rate, done: _Done | None) -> Calibrated:
        if done is None:
            return Calibrated(name, None, None, 1.0, True, "emits no spikes", ())
        ok = self._search.miss(after.value) == 0
        why = done.why or ("" if ok else "left the band when later layers were scaled")
        return Calibrated(name, before.value, after.value, done.factor, ok, why, done.weights)


def _nothing_to_scale(feeding: list[str], shared: list[str]) -> str:
    if shared:
        return f"its weights were scaled for {shared[0]!r} already"
    return "its weights do not learn" if feeding else "no weight lies before it"
