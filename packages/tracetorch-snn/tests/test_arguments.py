"""Constructors: their order and defaults, and how every bad argument is refused."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tracetorch import snn

NAMES = [
    "LI", "DLI", "SLI", "DSLI",
    "LIEMA", "DLIEMA", "SLIEMA", "DSLIEMA",
    "LIB", "DLIB", "SLIB", "RLIB", "DSLIB", "DRLIB", "SRLIB", "DSRLIB",
    "LIT", "DLIT", "SLIT", "RLIT", "DSLIT", "DRLIT", "SRLIT", "DSRLIT",
    "LITS", "DLITS", "SLITS", "RLITS", "DSLITS", "DRLITS", "SRLITS", "DSRLITS",
]  # fmt: skip
EVERY = pytest.mark.parametrize("cls", snn.LAYERS)
Kind = type[ValueError] | type[TypeError]

# bad values by kind of parameter: the value, and what the message says of the allowed range
OUTSIDE: dict[str, tuple[str, list[float]]] = {
    "decay": ("(0, 1)", [1.2, 0.0, 1.0, 0.999999999, 1e-60, -0.1, math.nan, math.inf]),
    "threshold": ("(0, ∞)", [-1.0, 0.0, -0.0, math.nan, math.inf]),
    "free": ("finite", [math.nan, math.inf, -math.inf]),
}


def kind_of(name: str) -> str:
    last = name.split("_")[-1]
    return {"threshold": "threshold", "scale": "free", "weight": "free"}.get(last, "decay")


def refused(
    error: Kind, says: list[str], call: Callable[..., object], *args: object, **kwargs: object
) -> None:
    """The call fails with exactly this error, and its message holds all of ``says``."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert caught.type is error, caught.type
    for part in says:
        assert part in str(caught.value)


# ------------------------------------------------------------------ what is accepted


def test_layers_are_the_thirty_two() -> None:
    assert sorted(cls.__name__ for cls in snn.LAYERS) == sorted(NAMES)
    assert len(NAMES) == 32
    assert all(getattr(snn, cls.__name__) is cls for cls in snn.LAYERS)
    assert set(NAMES) <= set(snn.__all__)


@EVERY
def test_signature_follows_the_name(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    a = anatomy(cls)
    expected: list[tuple[str, object]] = [("num_neurons", inspect.Parameter.empty)]
    expected += a.parameters.items()
    expected += [("dim", -1)]
    expected += [(f"{name}_rank", 1) for name in a.parameters]
    expected += [(f"learn_{name}", True) for name in a.parameters]
    expected += [("spike_fn", None), ("quant_fn", None)] if a.fires else []
    pieces = {"reset": None, "refractory": 0, "adaptation": None, "graded": False, "feedback": None}
    got = inspect.signature(cls).parameters.values()
    by_place = [p for p in got if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    by_name = [p for p in got if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in by_place] == expected
    assert {p.name: p.default for p in by_name} == (pieces if a.fires else {})
    assert len(got) == len(by_place) + len(by_name)
    assert all(p.annotation is not inspect.Parameter.empty for p in got)


@EVERY
def test_defaults_are_effective_values(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    layer = cls(3)
    for name, default in anatomy(cls).parameters.items():
        assert getattr(layer, name).tolist() == pytest.approx([default] * 3, abs=1e-6), name
    assert layer.get_states() == {}
    assert all(getattr(layer, state) is None for state in anatomy(cls).states)


@EVERY
def test_positions_ranks_and_learnability(
    cls: type[snn.Layer], anatomy: Callable[..., Any]
) -> None:
    """Values by position; ranks and learnability alternate, and a tensor's own rank wins."""
    names = list(anatomy(cls).parameters)
    values = [0.3 + 0.05 * at for at in range(len(names))]
    switches: dict[str, object] = {f"{name}_rank": at % 2 for at, name in enumerate(names)}
    switches |= {f"learn_{name}": at % 3 == 0 for at, name in enumerate(names)}
    layer = cls(3, *values, -2, **switches)
    assert layer.dim == -2
    assert layer.state_dict().keys() == {f"raw_{name}" for name in names}
    assert {key for key, _ in layer.named_parameters()} == {
        f"raw_{name}" for at, name in enumerate(names) if at % 3 == 0
    }
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        effective = getattr(layer, name)
        assert effective.shape == ((3,) if at % 2 else ())
        assert effective.flatten().tolist() == pytest.approx([value] * effective.numel(), abs=1e-6)
    flipped = [
        torch.full((), value) if at % 2 else torch.full((3,), value)
        for at, value in enumerate(values)
    ]
    layer = cls(3, *flipped, **switches)
    for at, name in enumerate(names):
        assert getattr(layer, name).shape == (() if at % 2 else (3,))


def test_the_typical_calls() -> None:
    layer = snn.LIB(16, 0.8, 1.5, dim=-3)
    assert (layer.num_neurons, layer.dim) == (16, -3)
    assert layer.beta.tolist() == pytest.approx([0.8] * 16)
    assert layer.threshold.tolist() == pytest.approx([1.5] * 16)
    recurrent = snn.RLIB(16, 0.8, 0.7, 1.5)
    for name, value in {"beta": 0.8, "gamma": 0.7, "threshold": 1.5, "rec_weight": 0.0}.items():
        assert getattr(recurrent, name).tolist() == pytest.approx([value] * 16), name


@settings(deadline=None, derandomize=True)
@given(
    decay=st.floats(1e-6, 1 - 1e-6),
    threshold=st.floats(1e-6, 1e6),
    scale=st.floats(-1e6, 1e6, allow_subnormal=False),
)
def test_any_value_of_the_range_reads_back(decay: float, threshold: float, scale: float) -> None:
    layer = snn.SLITS(2, decay, decay, threshold, threshold, scale, -scale)
    for name, value in {
        "alpha": decay,
        "beta": decay,
        "pos_threshold": threshold,
        "neg_threshold": threshold,
        "pos_scale": scale,
        "neg_scale": -scale,
    }.items():
        assert getattr(layer, name).tolist() == pytest.approx([value] * 2, rel=1e-5, abs=1e-7)
        setattr(layer, name, torch.tensor(value).item())
        assert getattr(layer, name).tolist() == pytest.approx([value] * 2, rel=1e-5, abs=1e-7)


# ------------------------------------------------------------------ what is refused


@EVERY
def test_values_outside_the_range(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    for name in anatomy(cls).parameters:
        allowed, bad_values = OUTSIDE[kind_of(name)]
        for bad in bad_values:
            refused(ValueError, [name, repr(bad), allowed], cls, 3, **{name: bad})
            one_bad = torch.tensor([0.5, 0.5, bad])
            refused(ValueError, [name, repr(one_bad), allowed], cls, 3, **{name: one_bad})


@EVERY
def test_values_that_are_no_numbers(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    bad_values = ["0.5", None, True, [0.5, 0.5, 0.5], 0.5 + 0j]
    bad_values += [torch.tensor([1, 1, 1]), torch.tensor(True), torch.tensor(0.5 + 0j)]
    for name in anatomy(cls).parameters:
        for bad in bad_values:
            says = [name, repr(bad), "floating-point tensor"]
            refused(TypeError, says, cls, 3, **{name: bad})


@EVERY
def test_tensors_of_the_wrong_shape(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    for name in anatomy(cls).parameters:
        for shape in ([4], [1], [0], [3, 1], [1, 3], [3, 3]):
            bad = torch.full(shape, 0.5)
            says = [name, str(shape), "shape []", "shape [3]"]
            refused(ValueError, says, cls, 3, **{name: bad})


@EVERY
def test_ranks_and_switches(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    cases: list[tuple[str, object, Kind, str]] = []
    cases += [("{}_rank", bad, ValueError, "0 (one scalar") for bad in (3, 2, -1)]
    cases += [("{}_rank", bad, TypeError, "0 (one scalar") for bad in (1.0, True, "1", None)]
    cases += [("learn_{}", bad, TypeError, "True or False") for bad in (1, 0, "yes", None)]
    for name in anatomy(cls).parameters:
        for pattern, bad, error, allowed in cases:
            argument = pattern.format(name)
            refused(error, [argument, repr(bad), allowed], cls, 3, **{argument: bad})


@pytest.mark.parametrize(
    ("argument", "bad", "error", "allowed"),
    [
        ("num_neurons", 0, ValueError, "at least 1"),
        ("num_neurons", -1, ValueError, "at least 1"),
        ("num_neurons", 2.5, TypeError, "integer"),
        ("num_neurons", 3.0, TypeError, "integer"),
        ("num_neurons", True, TypeError, "integer"),
        ("num_neurons", "3", TypeError, "integer"),
        ("num_neurons", None, TypeError, "integer"),
        ("dim", 1.5, TypeError, "integer"),
        ("dim", True, TypeError, "integer"),
        ("dim", None, TypeError, "integer"),
    ],
)
@EVERY
def test_sizes_and_dimensions(
    cls: type[snn.Layer], argument: str, bad: object, error: Kind, allowed: str
) -> None:
    says = [argument, repr(bad), allowed, cls.__name__]
    refused(error, says, cls, **{"num_neurons": 3, argument: bad})


@EVERY
def test_arguments_of_other_layers(cls: type[snn.Layer], anatomy: Callable[..., Any]) -> None:
    everything = set().union(*(anatomy(other).parameters for other in snn.LAYERS))
    own = set(anatomy(cls).parameters)
    for name in {"decay", "leak", *(everything - own)}:
        refused(TypeError, [f"'{name}'", *own], cls, 3, **{name: 0.5})
    refused(TypeError, ["num_neurons"], cls)
    refused(TypeError, ["num_neurons"], cls, 3, 0.5, num_neurons=3)
    refused(TypeError, ["positional"], cls, 3, *[0.5] * 100)


@EVERY
def test_inputs_that_do_not_fit_change_nothing(
    cls: type[snn.Layer], build: Callable[..., snn.Layer]
) -> None:
    layer = build(cls, 3, dim=-2, dtype=torch.float32)
    layer(torch.ones(2, 3, 2))
    before = layer.get_states()
    typed: list[tuple[object, str]] = [
        (torch.ones(2, 3, 2, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 3, 2, dtype=torch.bool), "torch.bool"),
        (torch.ones(2, 3, 2, dtype=torch.complex64), "torch.complex64"),
        ([[1.0]], "a list; convert it with torch.as_tensor(x)"),
        (None, "None"),
    ]
    for bad, shown in typed:
        with pytest.raises(TypeError) as error:
            layer(bad)
        for part in ("input x", shown, "floating-point", cls.__name__):
            assert part in str(error.value)
    shaped: list[tuple[list[int], tuple[str, ...]]] = [
        ([2, 4, 2], ("4", "dim=-2", "has 3")),  # wrong size at dim
        ([2, 2, 3], ("2", "dim=-2", "has 3")),  # neurons somewhere else
        ([2, 1, 2], ("1", "dim=-2", "has 3")),  # would broadcast
        ([3], ("dim=-2",)),  # too few dimensions
        ([], ("dim=-2",)),
        ([5, 3, 2], ("zero_states()", "[2, 3, 2]")),  # another batch than the standing state's
        ([3, 2], ("zero_states()", "[2, 3, 2]")),
    ]
    for shape, says in shaped:
        with pytest.raises(ValueError, match=re.escape(str(shape))) as raised:
            layer(torch.ones(shape))
        for part in (*says, cls.__name__):
            assert part in str(raised.value)
    after = layer.get_states()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], state) for name, state in before.items())


@EVERY
def test_assignments_outside_the_range_change_nothing(
    cls: type[snn.Layer], anatomy: Callable[..., Any]
) -> None:
    layer = cls(3)
    for name, default in anatomy(cls).parameters.items():
        allowed, bad_values = OUTSIDE[kind_of(name)]
        for bad in bad_values:
            refused(ValueError, [name, repr(bad), allowed], setattr, layer, name, bad)
        with pytest.raises(ValueError, match=name) as error:
            setattr(layer, name, torch.full((4,), 0.5))
        assert "[4]" in str(error.value)
        with pytest.raises(TypeError, match=name):
            setattr(layer, name, "0.5")
        assert getattr(layer, name).tolist() == pytest.approx([default] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("argument", "factory", "made"),
    [
        ("spike_fn", snn.surrogates.atan, "surrogates.atan"),
        ("spike_fn", snn.surrogates.sigmoid, "surrogates.sigmoid"),
        ("quant_fn", snn.quantizers.bernoulli, "quantizers.bernoulli"),
    ],
)
def test_a_factory_instead_of_what_it_makes(argument: str, factory: object, made: str) -> None:
    says = f"LIB: {argument} must be what {made} makes: {argument}={made}()"
    with pytest.raises(TypeError, match=f"^{re.escape(says)}$"):
        snn.LIB(3, **{argument: factory})
    layer = snn.LIB(3, **{argument: factory()})  # type: ignore[operator]
    assert getattr(layer, argument) is not None
