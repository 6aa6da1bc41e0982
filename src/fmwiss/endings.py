"""How processes end, and that those end which have nobody left to work for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

LOOK_EVERY = 0.2
"""Seconds between looks at another process."""


def how_it_ended(code: int) -> str:
    """A process's exit code, negative for a signal, in words that follow "it"."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def end_when(wait: Callable[[], object], last_words: str | None = None) -> None:
    """End this process with exit code 1 when ``wait``, called in a thread, returns.

    Args:
        wait: returns when the one that this process works for is no more.
        last_words: a sentence for standard error.
    """

    def watch() -> None:
        wait()
        if last_words is not None:
            print(f"fmwiss: {last_words}.", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait_for_another_parent() -> None:
    """Return when the process that has started this one is no more."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)


def whose(sentence: str) -> str:
    """A sentence about what went wrong, with the process in front if it is not the first of several."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):  # of all nodes as far as a launcher tells
        if name in os.environ:
            rank = os.environ[name]
            return sentence if rank == "0" else f"process {rank} of the run: {sentence}"
    return sentence
