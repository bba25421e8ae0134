"""Links of the pages to files of the repository: those that are pages here too are led to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# a file of the repository that a page of the site includes → that page
PAGES = {
    "benchmarks/results/benchmarks.md": "benchmarks",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "packages/tracetorch-plot/README.md": "figures",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+?\.md)(#[^)\s]*)?\)")


def rewritten(text: str, page: str, docs: Path) -> str:
    """The text of a page, with its links to such files led to their pages."""
    included = {name: source for source, name in PAGES.items()}
    root = docs.parent
    here = (root / included.get(page, f"docs/{page}.md")).parent

    def lead(match: re.Match[str]) -> str:
        target = (here / match[1]).resolve()
        name = target.relative_to(root).as_posix() if target.is_relative_to(root) else ""
        if name.startswith("docs/") and page in included:
            return f"](/{name.removeprefix('docs/')}{match[2] or ''})"
        return f"](/{PAGES[name]}.md{match[2] or ''})" if name in PAGES else match[0]

    return _LINK.sub(lead, text)


def read(app: Sphinx, page: str, content: list[str]) -> None:
    """A page as it is written."""
    content[0] = rewritten(content[0], page, Path(app.srcdir).resolve())


def included(app: Sphinx, path: Path, page: str, content: list[str]) -> None:
    """A file that a page includes."""
    read(app, page, content)
