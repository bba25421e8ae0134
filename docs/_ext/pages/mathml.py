"""Mathematics as MathML, which browsers typeset by themselves: no script, no fonts, no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
# what the converter does not know it hands on as it stands
_LEFT_OVER = re.compile(r"<m[ion]>(\\\w*|&(amp;)?)</m[ion]>")


def mathml(latex: str, display: str, node: nodes.Node | None = None) -> str:
    """MathML of some LaTeX, aligned at ``&`` where it has lines."""
    if display == "block" and (r"\\" in latex or "&" in latex):
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    found = convert(latex, display=display)
    if left := _LEFT_OVER.search(found):
        _LOG.warning("no MathML for %r in %r", left[1], latex, location=node, type="mathml")
    return found


def _inline(visitor: Any, node: nodes.math) -> None:
    visitor.body.append(mathml(node.astext(), "inline", node))
    raise nodes.SkipNode


def _block(visitor: Any, node: nodes.math_block) -> None:
    visitor.body.append(visitor.starttag(node, "div", CLASS="math"))
    visitor.body.append(mathml(node.astext(), "block", node))
    visitor.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Make it the way to write mathematics in HTML."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
