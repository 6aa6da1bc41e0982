"""Folders that hold models: which steps of a run are finished, and which folders other files must not go into."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from fmwiss.errors import UserError

_STEP = re.compile(r"step(\d+)")


def finished_steps(run: Path) -> list[int]:
    """The numbers of the steps whose model is written, in order."""
    if not run.is_dir():
        raise UserError(f"{run}: there is no such run; give the folder that `fmwiss train --out` wrote.")
    return sorted(int(p.parent.name[4:]) for p in run.glob("step*/model.json") if p.parent.name[4:].isdigit())


def last_step(run: Path) -> int:
    """The last finished step of a run."""
    steps = finished_steps(run)
    if not steps:
        raise without_steps(run)
    return steps[-1]


def finished_step(run: Path, step: int) -> int:
    """``step`` itself, when the run has finished it."""
    steps = finished_steps(run)
    if not steps:
        raise without_steps(run)
    if step not in steps:
        raise UserError(f"{run}: step {step} is not finished there; finished steps: {steps or 'none'}.")
    return step


def without_steps(run: Path) -> UserError:
    """What is wrong with a folder without a finished step, which need not be a run's."""
    if (run / "config.yaml").is_file() or any(run.glob("step*")):
        return UserError(f"{run}: holds no finished step; `fmwiss train` with the same --out goes on where it was.")
    if (run / "model.json").is_file():
        return UserError(f"{run}: is a saved model and no run; give the folder that `fmwiss train --out` wrote.")
    if _is_of_another_library(run / "config.json"):
        return UserError(
            f"{run}: holds no finished step and no model.json, its config.json is another library's; `fmwiss extend` "
            "takes such a model."
        )
    return UserError(
        f"{run}: is no run and no saved model, it holds no finished step and no model.json; give the folder that "
        "`fmwiss train --out` or save_pretrained wrote."
    )


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


def _is_of_another_library(file: Path) -> bool:
    """Whether a ``config.json`` describes a model that can be extended, by what such have and ours has not."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and ("_model_class" in settings or "model_type" in settings)
