"""Formats of files by name, ``tracetorch-<kind>-<number>``: what to do about one that is not read.

A file says its format and the version that wrote it where every later format says them too.
Knows nothing of what else is in a file.
"""

from __future__ import annotations

import re
from importlib import metadata

_NAME = re.compile(r"(tracetorch-[a-z]+)-(\d+)")


def version() -> str:
    """Of this library, as files say it."""
    return metadata.version("tracetorch-core")


def refusal(said: object, known: str, writer: object) -> str | None:
    """What is wrong with a file and what to do, to be said after its path; None if it is read.

    Args:
        said: the format that the file says it is of.
        known: the last one of its kind that this version reads.
        writer: version of the library that wrote the file, as the file says.
    """
    if said == known:
        return None
    theirs, own = (_NAME.fullmatch(str(name)) for name in (said, known))
    if theirs and own and theirs[1] == own[1] and int(theirs[2]) > int(own[2]):
        return (
            f"was written by traceTorch {writer} in the format {said!r}, and traceTorch "
            f"{version()} reads up to {known!r}; install that version or a later one: "
            f"pip install --upgrade tracetorch, or those parts of it that you have"
        )
    return f"has the format {said!r}, this version reads {known!r}"
