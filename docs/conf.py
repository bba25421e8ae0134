"""How Sphinx builds the site: `uv run nox -s site`. Nothing in the pages asks for the network."""

from __future__ import annotations

import sys
from importlib.metadata import version as distribution_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "traceTorch"
author = "the traceTorch contributors"
release = version = distribution_version("tracetorch-core")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "pages.extension",
    "pages.mathml",
]
exclude_patterns = ["_build", "reference/templates"]
default_role = "py:obj"
highlight_language = "python"
nitpicky = True
# types that are documented elsewhere, and ours that only stand in signatures
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|matplotlib|collections|contextlib|pathlib|os|typing)\..*"),
    ("py:class", r"Tensor|tracetorch\.functional\.Value|tracetorch\.walk\.Boundary"),
    ("py:class", r"tracetorch\.snn\.nir\.model\.Step"),
    ("py:class", r"tracetorch\.(recording\.(Store|Track)|plot\.network\.Summary)"),
    ("py:(class|exc)", r"tracetorch\.engine\.\w+\.\w+|Refused"),
]

myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Class arguments", "params_style")]
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "traceTorch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
