"""Zip archives, as ``torch.save`` writes, that end with the SHA-256 of all they hold.

The seal is the archive's comment: other readers of such archives do not mind it.
"""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

_LENGTH = 64
_AT_ONCE = 2**20


def seal(archive: BinaryIO) -> None:
    """Append the digest of an archive without a comment, in place."""
    # an archive ends with the length of its comment, and the comment
    archive.seek(-2, io.SEEK_END)
    archive.write(_LENGTH.to_bytes(2, "little"))
    digest = _digest(archive, archive.tell())
    archive.seek(0, io.SEEK_END)
    archive.write(digest)


def intact(archive: BinaryIO) -> bool:
    """Whether it ends with the digest of what stands before."""
    length = archive.seek(0, io.SEEK_END) - _LENGTH
    if length < 0:
        return False
    archive.seek(length)
    said = archive.read()
    return said == _digest(archive, length)


def _digest(archive: BinaryIO, length: int) -> bytes:
    digest = hashlib.sha256()
    archive.seek(0)
    while length:
        piece = archive.read(min(length, _AT_ONCE))
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest().encode()
