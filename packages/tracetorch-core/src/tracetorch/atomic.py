"""Files that are the old ones or the new ones, whatever happens. Knows nothing of their content."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def replaced(path: Path, data: bytes) -> None:
    """Put bytes in a file's place, whole or not at all."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
