"""Puts the reference together while Sphinx builds: its pages, figures, docstrings and links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.display import status_iterator

from pages import docstrings, figures, introduction, outside, public, stubs

_LOG = logging.getLogger(__name__)


def write_reference(app: Sphinx) -> None:
    """Write what is new among the pages of the reference, take away what is gone, draw figures."""
    reference = Path(app.srcdir) / "reference"
    out = reference / "generated"
    (out / "figures").mkdir(parents=True, exist_ok=True)
    pages = stubs.pages(reference / "templates")
    for name, text in pages.items():
        path = out / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for old in set(out.glob("*.rst")) - {out / name for name in pages}:
        old.unlink()
    kinds = [kind for family in stubs.FAMILIES for kind in public.layers(family)]
    shown = status_iterator(kinds, "drawing layers... ", "purple", len(kinds), 0, _name)
    for kind in shown:
        figures.draw(kind, out / "figures" / f"{kind.__name__}.svg")
    introduction.draw(out / "figures")


def trim(app: Sphinx, doctree: nodes.document) -> None:
    """Take the blank line that ends an example for doctest out of what is shown."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.rawsource.rstrip()
            block.children = [nodes.Text(block.rawsource)]


def _name(kind: type[Any]) -> str:
    return kind.__name__


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything; docstrings are prepared before napoleon reads them."""
    app.connect("builder-inited", write_reference)
    app.connect("doctree-read", trim)
    app.connect("source-read", outside.read)
    app.connect("include-read", outside.included)
    app.connect("autodoc-process-docstring", docstrings.prepare, priority=400)
    app.connect("autodoc-skip-member", docstrings.skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
