"""Writing files so that a kill at any moment leaves the old file or the new one, never a half."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def _umask() -> int:
    """The process's mask of file permissions, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    The folder is made where it is missing. When ``write`` fails (a full disk), the temporary file is removed and the
    error goes on, about ``path`` where it was about the temporary file; what stood at ``path`` before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes its files readable for their owner alone
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) == str(temporary):
            error.filename = str(path)
            del error.filename2  # of a rename, which then is from the path to itself
        raise
