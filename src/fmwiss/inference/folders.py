"""Folders that hold models, in which nothing else is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

_STEP = re.compile(r"step(\d+)")


def step_of_run(folder: Path) -> int | None:
    """The number of the step whose folder it is; None where it is no step's, or the run has no ``config.yaml``."""
    folder = Path(os.path.abspath(folder))  # a step may be a link to another run's
    number = _STEP.fullmatch(folder.name)
    return int(number[1]) if number and (folder.parent / "config.yaml").is_file() else None


def holds_model(folder: Path) -> bool:
    """Whether it is a saved model's folder, a run's with a finished step, or that of a run's step, finished or not."""
    if (folder / "model.json").is_file() or step_of_run(folder) is not None:
        return True
    return any(_STEP.fullmatch(path.parent.name) for path in folder.glob("step*/model.json"))
