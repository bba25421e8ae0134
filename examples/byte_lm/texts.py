"""Text as bytes: what is learned from, what is held out, and streams that run through it.

Knows no model. The text by default is Python's own: the topics of ``help()`` and the sources of the
standard library that runs the script; another version of Python has another text.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# of the standard library, besides its modules that are in no package
PACKAGES = (
    *("asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib"),
    *("json", "logging", "multiprocessing", "re", "sqlite3", "tomllib", "unittest", "urllib"),
    *("wsgiref", "xml", "xmlrpc", "zoneinfo"),
)
ONE_IN = 20  # texts are held out whole, one in so many, by their name
LONGEST_HELD_OUT = 2**20  # bytes of a text that is given
LONG = 40  # bytes of a paragraph that is no chance agreement


class Corpus(NamedTuple):
    """Two texts, uint8 ``[N]`` each; nothing of the second is in what is learned from."""

    train: Tensor
    held_out: Tensor

    def signature(self) -> str:
        """What tells it from other texts: its lengths and a checksum of what is held out."""
        checksum = zlib.crc32(self.held_out.numpy().tobytes())
        return f"{len(self.train)} + {len(self.held_out)} bytes, {checksum:08x}"


def corpus(data: Path | None) -> Corpus:
    """Python's own text, or that of a file or of the files in a folder.

    A file is mapped into memory, not read; of a folder, the files are read in the order of their
    paths. The last twentieth is held out, at most ``LONGEST_HELD_OUT`` bytes.

    Raises:
        ValueError: there is no text in it.
        OSError: a file cannot be read.
    """
    if data is None:
        return _pythons_own()
    whole = _mapped(data) if data.is_file() else _joined(data)
    if len(whole) < 2:
        raise ValueError(f"{data} holds no text: {len(whole)} bytes")
    cut = len(whole) - max(1, min(len(whole) // ONE_IN, LONGEST_HELD_OUT))
    return Corpus(whole[:cut], whole[cut:])


def _mapped(file: Path) -> Tensor:
    if not file.stat().st_size:
        return torch.empty(0, dtype=torch.uint8)
    # copy on write: torch warns of what cannot be written to
    return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c"))


def _joined(folder: Path) -> Tensor:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return as_bytes(b"".join(file.read_bytes() for file in files))


def as_bytes(text: bytes) -> Tensor:
    """``uint8 [N]``."""
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


# ------------------------------------------------------------------ Python's own


def _pythons_own() -> Corpus:
    train, held_out = split([*_topics(), *_sources()])
    return Corpus(as_bytes(train), as_bytes(held_out))


def _topics() -> Iterator[tuple[str, bytes]]:
    for name in sorted(topics):
        yield name, topics[name].encode()


def _sources() -> Iterator[tuple[str, bytes]]:
    library = Path(sysconfig.get_path("stdlib"))
    files = [*library.glob("*.py"), *(f for name in PACKAGES for f in (library / name).rglob("*"))]
    for file in sorted(files):
        name = file.relative_to(library)
        made = name.name.startswith("_sysconfigdata")
        if file.suffix == ".py" and not made and not {"test", "tests"} & {*name.parts}:
            yield name.as_posix(), file.read_bytes()


def split(texts: list[tuple[str, bytes]]) -> tuple[bytes, bytes]:
    """What is learned from and what is held out of texts with names.

    Which ones are held out goes by their names alone. A paragraph that stands in these, indented
    or broken into lines in whatever way, is taken out of the others.
    """
    held_out = [text for name, text in texts if not zlib.crc32(name.encode()) % ONE_IN]
    others = [text for name, text in texts if zlib.crc32(name.encode()) % ONE_IN]
    known = {_words(paragraph) for text in held_out for paragraph in text.split(b"\n\n")}
    kept = [
        b"\n\n".join(p for p in text.split(b"\n\n") if len(w := _words(p)) < LONG or w not in known)
        for text in others
    ]
    return b"\n".join(kept), b"\n".join(held_out)


def _words(paragraph: bytes) -> bytes:
    return b" ".join(paragraph.split())


# ------------------------------------------------------------------ streams


class Window(NamedTuple):
    """The next timesteps of every stream.

    Attributes:
        read: bytes ``[T, B]``, integers.
        next: the byte after each, ``[T, B]``.
        fresh: which streams begin here, having come to the end of the text: ``[B]``.
    """

    read: Tensor
    next: Tensor
    fresh: Tensor


class Streams:
    """Streams through a text, each going on where its last window ended.

    They begin at equal distances, from a place that is drawn, and pass through all of the text;
    at its end a stream goes on at its beginning.

    Args:
        text: uint8 ``[N]``.
        count: B, of streams.
        timesteps: T, of a window.
        seed: of the place.

    Raises:
        ValueError: the text is too short for a window of each stream.
    """

    def __init__(self, text: Tensor, count: int, timesteps: int, seed: int) -> None:
        self.windows = (len(text) - 1) // timesteps
        if self.windows < count:
            raise ValueError(
                f"the text to learn from has {len(text)} bytes; {count} streams of {timesteps} "
                f"timesteps need {count * timesteps + 1}"
            )
        self.text, self.timesteps = text, timesteps
        drawn = torch.randint(self.windows, (), generator=torch.Generator().manual_seed(seed))
        self.begins = drawn + torch.arange(count) * self.windows // count

    def window(self, number: int) -> Window:
        """The window of this number, from 0; a function of it alone."""
        places = (self.begins + number) % self.windows
        bytes_ = self.text[places * self.timesteps + torch.arange(self.timesteps + 1)[:, None]]
        return Window(bytes_[:-1].long(), bytes_[1:].long(), places == 0)
