"""What the C library keeps of memory that nobody uses any more."""

from __future__ import annotations

import ctypes
import os
import platform

_ARENA_MAX, _TRIM_THRESHOLD = -8, -1
_TRIM_BYTES = 100_000
"""What lies free at the end of the heap beyond so much goes back to the system."""


def keep_little() -> None:
    """Let threads share one heap, and give back what they free, for commands that run over many photographs.

    glibc gives threads heaps of their own. Each of them keeps its largest extent, and these grow the longer a command
    runs: docs/results/scale.md has figures. To be called before there are threads. Where there is no glibc, or its
    variables (``MALLOC_ARENA_MAX``, ``MALLOC_TRIM_THRESHOLD_``) say something else, nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for variable, parameter, value in (
        ("MALLOC_ARENA_MAX", _ARENA_MAX, 1), ("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, _TRIM_BYTES),
    ):
        if variable not in os.environ:
            library.mallopt(parameter, value)
