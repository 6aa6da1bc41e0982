"""What commands share: words and tables for the terminal, and values of options that several have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fmwiss.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


def say(text: str) -> None:
    """To standard error: standard output is for results."""
    print(text, file=sys.stderr)


def print_table(title: str, table: Table) -> None:
    """A table of results under its title."""
    from rich.console import Console

    print(title)
    console = Console()
    # where the terminal is too narrow it shall wrap lines: rich would cut figures off
    wide = console.measure(table, options=console.options.update(width=1000)).maximum
    console.width = max(console.width, wide)
    console.print(table)


def is_first_process() -> bool:
    """Whether this is the one of several processes that speaks."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def number_of_processes(text: str) -> str | int:
    """The value of ``--devices``; UserError if it is none."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"--devices {text}: must be auto or a number of processes from 1")
    return int(text)


def known_precision(text: str) -> str:
    """The value of ``--precision``; UserError if it is none."""
    known = ("32-true", "16-mixed", "bf16-mixed", "64-true")
    if text not in known:
        raise UserError(f"--precision {text}: must be one of {', '.join(known)}")
    return text
