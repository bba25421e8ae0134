"""What the documentation says is true: equations are run, signatures and the stub compared."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tracetorch import snn
from tracetorch.snn import stub

Array = NDArray[np.float64]
EVERY = pytest.mark.parametrize("cls", snn.LAYERS)
SYMBOLS = {"alpha": "α", "beta": "β", "gamma": "γ", "threshold": "θ", "scale": "a", "weight": "w"}
PREFIX = {"⁺": "pos_", "⁻": "neg_"}
RANGES = {"scale": "any finite number", "weight": "any finite number", "threshold": "in (0, ∞)"}


# ------------------------------------------------------------------ equations


class Names(dict[str, Any]):
    """Values by symbol; ``u⁺`` and ``u⁻`` are the halves of ``u`` unless they have their own."""

    def __missing__(self, name: str) -> Array:
        half, _, whole = name.partition("_")
        if half not in ("pos", "neg"):
            raise KeyError(name)
        u: Array = self[whole]
        return np.where(u >= 0 if half == "pos" else u < 0, u, 0.0)


def python(symbols: str) -> str:
    """Symbols of an equation as a Python expression: ``w⁺·r⁺`` → ``pos_w*pos_r``."""
    signed = re.sub(r"(\w+)([⁺⁻])", lambda m: f"{PREFIX[m[2]]}{m[1]}", symbols)
    return signed.replace("·", "*").replace("−", "-")


def equations(cls: type[snn.Layer]) -> list[tuple[str, str, str]]:
    """The docstring's equations in order: target, arrow, Python expression."""
    block = re.search(
        r"Equations of one timestep, per neuron::\n\n((?: +\S.*\n)+)", cls.__doc__ or ""
    )
    assert block
    lines = [line.strip() for line in block[1].splitlines()]
    signed = [line.replace("±", s) for line in lines for s in ("⁺⁻" if "±" in line else "⁺")]
    found = [re.split(r" (←|=) ", part) for line in signed for part in line.split(", ")]
    return [(python(target), arrow, python(value)) for target, arrow, value in found]


def run(cls: type[snn.Layer], names: Names) -> Array:
    """One timestep, in place; a reset of a dual membrane is taken half from either half."""
    for target, arrow, value in equations(cls):
        before = names.get(target)
        names[target] = eval(value, {}, names)
        if (target, arrow) == ("mem", "←") and "pos_mem" in names:
            for half in ("pos_mem", "neg_mem"):
                names[half] = names[half] - (before - names["mem"]) / 2
    out: Array = names["out"]
    return out


@EVERY
def test_the_equations_of_the_docstring_are_what_is_computed(
    cls: type[snn.Layer], build: Callable[..., snn.Layer], anatomy: Callable[..., Any]
) -> None:
    layer, a = build(cls, 4), anatomy(cls)
    names = Names({state: np.zeros((3, 4)) for state in a.states})
    names["f"] = lambda u: 1 / (1 + np.exp(-4 * u))
    names["q"] = lambda p: (p > 0.5).astype(np.float64)
    for name in a.parameters:
        sign = name[:4] if name.startswith(("pos_", "neg_")) else ""
        names[sign + SYMBOLS[name.split("_")[-1]]] = getattr(layer, name).detach().numpy()
    for x in np.random.default_rng(2).normal(0, 0.7, (60, 3, 4)):
        names["x"] = x
        out = run(cls, names)
        y = layer(torch.tensor(x))
        np.testing.assert_allclose(y.detach(), out, rtol=1e-12, atol=1e-12)
        for name, state in layer.get_states().items():
            np.testing.assert_allclose(
                state.detach(), names[name], rtol=1e-12, atol=1e-12, err_msg=name
            )


# ------------------------------------------------------------------ help


@EVERY
def test_help_says_equations_states_parameters_and_ranges(
    cls: type[snn.Layer], anatomy: Callable[..., Any]
) -> None:
    text, a = pydoc.render_doc(cls, renderer=pydoc.plaintext), anatomy(cls)
    said = " ".join(re.sub(r"(?m)^ \|", " ", text).split())
    for part in ("Equations of one timestep", "Raises: TypeError", "Example: >>> import torch"):
        assert part in said
    states = re.search(r"States: (.*?), each of the input's shape", said)
    assert states
    assert set(re.findall(r"\w+", states[1])) == a.states
    for name in a.parameters:
        bare = name.split("_")[-1]
        sign = {"pos_": "⁺", "neg_": "⁻"}.get(name[:4], "")
        meant = rf" {name}: {SYMBOLS[bare]}{sign}, [^:]*{re.escape(RANGES.get(bare, 'in (0, 1)'))};"
        assert re.search(meant, said), meant
        assert f"``{name}_rank``" in said
        assert f"``learn_{name}``" in said
    assert ("spike_fn: " in said) == ("quant_fn: " in said) == a.fires


# ------------------------------------------------------------------ stub


def test_the_stub_is_what_its_generator_writes() -> None:
    assert stub.PATH.read_text(encoding="utf-8") == stub.render()
    assert stub.main(["--check"]) == 0


def test_a_stale_stub_is_found_and_rewritten(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "layers.pyi"
    stale.write_text(stub.render().replace("dim: int = -1", "dim: int = 0", 1), encoding="utf-8")
    monkeypatch.setattr(stub, "PATH", stale)
    assert stub.main(["--check"]) == 1
    assert stub.main([]) == 0
    assert stub.main(["--check"]) == 0


@pytest.fixture(scope="module")
def stubbed() -> dict[str, ast.ClassDef]:
    tree = ast.parse(stub.PATH.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_stub_has_the_thirty_two(stubbed: dict[str, ast.ClassDef]) -> None:
    public = [name for name in stubbed if not name.startswith("_")]
    assert public == [cls.__name__ for cls in snn.LAYERS]


def _annotation(value: object) -> str:
    text = value.__name__ if isinstance(value, type) else str(value)
    return text.replace("torch.Tensor", "Tensor").replace("NoneType", "None")


@EVERY
def test_the_stubs_constructor_is_the_signature(
    cls: type[snn.Layer], stubbed: dict[str, ast.ClassDef]
) -> None:
    (init,) = (n for n in stubbed[cls.__name__].body if isinstance(n, ast.FunctionDef))
    own, *arguments = [*init.args.args, *init.args.kwonlyargs]
    given = [*init.args.defaults, *init.args.kw_defaults]
    defaults = [ast.literal_eval(default) for default in given if default is not None]
    signature = inspect.signature(cls).parameters
    assert own.arg == "self"
    assert [a.arg for a in arguments] == list(signature)
    assert defaults == [p.default for p in signature.values()][1:]
    for argument, parameter in zip(arguments, signature.values(), strict=True):
        assert argument.annotation is not None
        written = ast.unparse(argument.annotation)
        if argument.arg in ("spike_fn", "quant_fn"):
            assert written == "Elementwise | None"
            assert parameter.annotation == snn.layer.Elementwise | None
        elif argument.arg in snn.layer.PIECES:
            whole = _annotation(parameter.annotation)
            assert re.sub(r"[\w.]+\.", "", whole) == re.sub(r"[\w.]+\.", "", written)
        else:
            assert written == _annotation(parameter.annotation)


@EVERY
def test_the_stubs_attributes_are_the_layers(
    cls: type[snn.Layer], stubbed: dict[str, ast.ClassDef], anatomy: Callable[..., Any]
) -> None:
    fields: dict[str, set[str]] = {}
    for node in stubbed[cls.__name__].body:
        if isinstance(node, ast.AnnAssign):
            fields.setdefault(ast.unparse(node.annotation), set()).add(ast.unparse(node.target))
    layer, a = cls(2), anatomy(cls)
    assert fields.pop("_Effective") == set(a.parameters)
    assert fields.pop("_State") == a.states
    assert fields.pop("Tensor") == {f"raw_{name}" for name in a.parameters}
    assert fields == ({"Elementwise": {"spike_fn", "quant_fn"}} if a.fires else {})
    assert all(isinstance(getattr(layer, f"raw_{name}"), torch.Tensor) for name in a.parameters)
