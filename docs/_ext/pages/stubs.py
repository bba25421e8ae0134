"""The sources of the reference: a page for every module and every layer, each from a template."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import jinja2

from pages import diagrams, docstrings, figures, public

DIRECTIVES = {"class": "autoclass", "exception": "autoexception", "function": "autofunction"}
FAMILIES = {"snn": "The 32 leaky integrators", "rnn": "Recurrent layers and state spaces"}
INTRODUCTIONS = {
    "snn": "A name reads itself. **D**: dual polarity, a trace for what is positive and one for "
    "what is negative. **S**: a synaptic trace before the membrane. **R**: a trace of the layer's "
    "own output, fed back. **LI**: leaky integrator, which emits its membrane; **EMA**: weighed as "
    "a moving average; **B**, **T**, **TS**: binary, ternary, scaled ternary spikes.",
    "rnn": "torch's three cells, one timestep at a time or by torch's own kernels for sequences, "
    "and state spaces, whose timesteps are linear in the state.",
}


def is_layer(name: public.Name) -> bool:
    """Whether the name has a page of its own."""
    return any(name.value is kind for family in FAMILIES for kind in public.layers(family))


def sentence(text: str) -> str:
    """The first sentence of a docstring, in one line."""
    first = " ".join(text.strip().split("\n\n")[0].split())
    return docstrings.escaped(first.partition(". ")[0].rstrip(".:") + ".")


def pages(templates: Path) -> dict[str, str]:
    """The text of each page by the name of its file."""
    environment = jinja2.Environment(  # noqa: S701 - reStructuredText, and nobody's input
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = {}
    for module in public.modules():
        template = environment.get_template("module.rst.jinja")
        found[f"{module}.rst"] = template.render(_module(module))
    for family, title in FAMILIES.items():
        kinds = public.layers(family)
        template = environment.get_template("family.rst.jinja")
        found[f"{family}-layers.rst"] = template.render(
            title=title,
            introduction=INTRODUCTIONS[family],
            module=f"{public.ROOT}.{family}",
            rows=[_row(kind) for kind in kinds],
        )
        template = environment.get_template("layer.rst.jinja")
        for kind in kinds:
            found[f"{family}.{kind.__name__}.rst"] = template.render(_layer(family, kind))
    return found


def _row(kind: type[Any]) -> tuple[str, str]:
    return kind.__name__, sentence(kind.__doc__ or "")


def _module(module: str) -> dict[str, Any]:
    names = [name for name in public.names() if name.module == module]
    return {
        "module": module,
        "names": [name for name in names if not is_layer(name)],
        "sentences": {name.name: sentence(public.described(name)) for name in names},
        "texts": {name.name: _indented(public.described(name)) for name in names},
        "values": {name.name: _value(name) for name in names if name.kind == "data"},
        "directives": DIRECTIVES,
        "family": module.rpartition(".")[2] if module.rpartition(".")[2] in FAMILIES else "",
        "doc": sentence(inspect.getdoc(importlib.import_module(module)) or ""),
    }


def _layer(family: str, kind: type[Any]) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "module": f"{public.ROOT}.{family}",
        "diagram": diagrams.diagram(kind),
        "made": figures.made(kind),
        "head": docstrings.head(inspect.getdoc(kind) or ""),
    }


def _value(name: public.Name) -> str:
    text = repr(name.value)
    return text if len(text) <= 100 else ""


def _indented(text: str) -> str:
    return text.replace("\n", "\n   ")
