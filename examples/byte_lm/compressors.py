"""What general compressors need for a text, in bits per byte: the text alone, and primed.

Knows texts as bytes. A primed compressor has seen the text that a model learned from, as far as it
looks back: zlib takes its last 32 KiB as a dictionary; of lzma it is what the held-out text adds to
the size when it comes behind the other. bz2 has no such way: it sorts blocks by themselves.
"""

from __future__ import annotations

import bz2
import lzma
import zlib

ZLIB_WINDOW = 2**15
LOOKS_BACK = 2**24  # bytes, of lzma; its own window at the highest level is 64 MiB


def alone(text: bytes) -> dict[str, float]:
    """Bits per byte of the text by itself, each at its highest level."""
    sizes = {"zlib": len(_zlib(text)), "bz2": len(_bz2(text)), "lzma": len(_lzma(text))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def primed(text: bytes, before: bytes) -> dict[str, float]:
    """Bits per byte of the text by one that knows what came before."""
    ahead = before[-LOOKS_BACK:]
    sizes = {
        "zlib": len(_zlib(text, before[-ZLIB_WINDOW:])),
        "lzma": len(_lzma(ahead + text)) - len(_lzma(ahead)),
    }
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def _zlib(text: bytes, dictionary: bytes = b"") -> bytes:
    level, window, memory = 9, 15, 9
    kind = zlib.compressobj(
        level, zlib.DEFLATED, window, memory, zlib.Z_DEFAULT_STRATEGY, dictionary
    )
    return kind.compress(text) + kind.flush()


def _bz2(text: bytes) -> bytes:
    return bz2.compress(text, 9)


def _lzma(text: bytes) -> bytes:
    return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
