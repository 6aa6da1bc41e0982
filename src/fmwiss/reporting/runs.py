"""Reading finished runs: what a report needs of a run's folder, and nothing of its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fmwiss.config import Config, load_config
from fmwiss.errors import UserError
from fmwiss.reporting.records import (
    CONFUSION,
    ENVIRONMENT,
    EVALUATION,
    GALLERY,
    GALLERY_INDEX,
    LOCATOR,
    METRICS,
    Confusion,
    Environment,
    Figures,
    Gallery,
)
from fmwiss.run_folders import finished_steps, without_steps

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Step:
    """A finished step; what it did not leave (as runs of earlier versions) is None."""

    number: int
    folder: Path
    classes: tuple[tuple[str, ...], ...]
    """Names by step, up to and including this one, without the background."""
    figures: Figures | None
    confusion: Confusion | None
    environment: Environment | None
    gallery: Gallery | None
    log: list[dict[str, Any]] = field(repr=False)
    """The records of ``metrics.jsonl``."""

    @property
    def new_classes(self) -> tuple[str, ...]:
        """The classes that this step learnt."""
        return self.classes[-1]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every label's name, background first."""
        return ("background", *(name for step in self.classes for name in step))


@dataclass(frozen=True)
class Run:
    """A run with its finished steps, in order."""

    name: str
    """Short, and unlike the other runs' of the report."""
    folder: Path
    config: Config
    config_text: str
    steps: tuple[Step, ...]

    @property
    def last(self) -> Step:
        """The last finished step."""
        return self.steps[-1]

    def step(self, number: int) -> Step | None:
        """A step by its number, if it is finished."""
        return next((step for step in self.steps if step.number == number), None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of a report.

    Raises:
        UserError: one is no run, has no finished step or is given twice, or a file in it cannot be read.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UserError(f"{folder}: is given more than once; name every run once.")
    return [_read_run(folder, name) for folder, name in zip(folders, _short_names(resolved), strict=True)]


def check_finished(folder: Path) -> None:
    """Raise UserError where a step is begun and not finished, or none is."""
    finished = _finished(folder)
    for step in sorted(folder.glob("step*")):
        begun = (step / METRICS).is_file() or any(step.glob("state/*")) or any(step.glob(f"{LOCATOR}/*"))
        if begun and step.name[4:].isdigit() and int(step.name[4:]) not in finished:
            raise UserError(
                f"{folder}: step {step.name[4:]} is begun and not finished; the same `fmwiss train` command finishes "
                "it and writes the report."
            )
    if not finished:
        raise without_steps(folder)


def _finished(folder: Path) -> list[int]:
    """The finished steps of what must be a run."""
    numbers = finished_steps(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: holds no config.yaml; give the folder that `fmwiss train --out` wrote.")
    return numbers


def _read_run(folder: Path, name: str) -> Run:
    numbers = _finished(folder)
    if not numbers:
        raise without_steps(folder)
    path = folder / "config.yaml"
    config = load_config(path)
    steps = tuple(read_step(folder, number) for number in numbers)
    return Run(name, folder, config, path.read_text(encoding="utf-8"), steps)


def read_step(run: Path, number: int) -> Step:
    """Read a finished step.

    Raises:
        UserError: a file in it cannot be read.
    """
    folder = run / f"step{number}"
    description = _json(folder / "model.json")
    try:
        classes = tuple(tuple(str(name) for name in step) for step in description["steps"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'model.json'}: is not a model description of fmwiss ({error}).") from error
    if not classes:
        raise UserError(f"{folder / 'model.json'}: is not a model description of fmwiss (it has no classes).")
    return Step(
        number,
        folder,
        classes,
        _record(folder / EVALUATION, Figures),
        _record(folder / CONFUSION, Confusion),
        _record(folder / ENVIRONMENT, Environment),
        _record(folder / GALLERY / GALLERY_INDEX, Gallery),
        _read_log(folder / METRICS),
    )


def _record(path: Path, kind: type[R]) -> R | None:
    if not path.is_file():
        return None
    try:
        return kind.model_validate(_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{path}: is not what fmwiss writes there ({where}: {first['msg']}); remove it or train the "
                        "step again.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); remove it or train the step again.") from error


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, up to a line that is none (as a kill may have left)."""
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if isinstance(record, dict):
                records.append(record)
    return records


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of the path before them as it takes to tell them apart."""
    names = []
    for folder in folders:
        parts = [part for part in folder.parts if part != folder.anchor]
        for length in range(1, len(parts) + 1):
            name = "/".join(parts[-length:])
            if sum(name == "/".join(other.parts[-length:]) for other in folders) == 1:
                break
        names.append(name if parts else str(folder))
    return names
