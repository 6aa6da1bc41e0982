"""Progress with time left, on standard error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

LINE_EVERY = 10.0  # seconds between lines where standard error is no terminal
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # of several processes the first reports


def track(
    iterable: Iterable[T], description: str | Callable[[], str], total: int | None = None, completed: int = 0
) -> Generator[T, None, None]:
    """Yields the items and shows how many are done and how long the rest will take.

    Args:
        iterable: what is worked through.
        description: the text before the bar; a function is asked again with every item (for a running loss).
        total: number of items, those completed before included; by default ``completed`` plus the iterable's length.
        completed: items that an earlier process has done already.

    On a terminal it is a bar. Elsewhere (a log file, CI) it is one line every ten seconds, and none for work that
    takes less. Of several processes only the first shows anything. Standard output stays free for results.
    """
    if any(os.environ.get(variable, "0") != "0" for variable in _RANKS):
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = completed + len(iterable)
    describe = description if callable(description) else lambda: description
    console = Console(stderr=True)
    lines = _bar if console.is_terminal else _lines
    yield from lines(iterable, describe, total, completed, console)


_open_bars: list[Progress] = []  # a bar inside a bar (validation while training) joins its display


def _bar(
    iterable: Iterable[T], describe: Callable[[], str], total: int | None, completed: int, console: Console
) -> Iterator[T]:
    outermost = not _open_bars
    progress = _new_display(console) if outermost else _open_bars[0]
    if outermost:
        _open_bars.append(progress)
        progress.start()
    task = progress.add_task(describe(), total=total, completed=completed)
    try:
        for item in iterable:
            yield item
            progress.update(task, advance=1, description=describe())
    finally:
        if outermost:
            progress.stop()
            _open_bars.clear()
        else:
            progress.remove_task(task)


def _new_display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _lines(
    iterable: Iterable[T], describe: Callable[[], str], total: int | None, completed: int, console: Console
) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            text = f"{describe()}: {completed + done}"
            if total is not None:
                seconds = round((now - start) / done * max(total - completed - done, 0))
                text += f"/{total}, {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
