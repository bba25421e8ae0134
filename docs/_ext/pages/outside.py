"""Links of the pages to files of the repository: those that are pages here too are led to them.

What a page includes has links of its own, from where it lies; to other files they are downloads.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.M)
_LINK = re.compile(r"(?<!!)(\[[^\[\]]*\])\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


@cache
def pages(docs: Path) -> dict[Path, str]:
    """Files of the repository that pages include, each with that page."""
    found = {}
    for path in docs.rglob("*.md"):
        page = path.relative_to(docs).with_suffix("").as_posix()
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            found[(path.parent / name).resolve()] = page
    return found


def rewritten(text: str, page: str, docs: Path) -> str:
    """The text of a page, or of what it includes, with the links that lead out of it led back."""
    homes = pages(docs)
    sources = [source for source, home in homes.items() if home == page]
    here = (sources[0] if sources else docs / page).parent

    def lead(match: re.Match[str]) -> str:
        words, name, anchor = match[1], match[2], match[3] or ""
        target = (here / name).resolve()
        if target in homes:
            return f"{words}(/{homes[target]}.md{anchor})"
        if not sources or not target.exists():
            return match[0]
        if target.is_relative_to(docs):
            return f"{words}(/{target.relative_to(docs).as_posix()}{anchor})"
        return f"{words}({os.path.relpath(target, (docs / page).parent)}{anchor})"

    return _LINK.sub(lead, text)


def read(app: Sphinx, page: str, content: list[str]) -> None:
    """A page as it is written."""
    content[0] = rewritten(content[0], page, Path(app.srcdir).resolve())


def included(app: Sphinx, path: Path, page: str, content: list[str]) -> None:
    """A file that a page includes; MyST says of the page only the last part of its name."""
    read(app, app.env.docname, content)
