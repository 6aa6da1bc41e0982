"""The model that is extended: a run of ours, or a model of another library."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fmwiss.config import Config, load_config
from fmwiss.data.extension import label_table
from fmwiss.data.memory import MemoryBank
from fmwiss.data.source import Source
from fmwiss.data.voc import VOID
from fmwiss.errors import UserError
from fmwiss.models import Segmenter
from fmwiss.models.adapted import AdaptedSegmenter
from fmwiss.models.foreign import fetch, is_foreign, open_foreign
from fmwiss.names import joined
from fmwiss.reporting.progress import track
from fmwiss.run_folders import finished_step, finished_steps, last_step
from fmwiss.training.run import BANK

REPLAY_SIZE = 50
"""Instances kept per old class where they come from ``--replay``."""

_KEPT = ("model.json", "model.safetensors", BANK, "evaluation.json", "confusion.json", "environment.json",
         "metrics.jsonl", "gallery", "tensorboard")


@dataclass(frozen=True)
class Base:
    """What is extended.

    Attributes:
        given: as the user names it.
        model: in evaluation mode, on the CPU.
        run: the run that it is a step of; None: it is another library's.
        step: which step of the run, or of the new run, it is.
        config: the run's configuration.
    """

    given: str
    model: Segmenter
    run: Path | None
    step: int
    config: Config | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it knows."""
        return self.model.class_names[1:]

    @property
    def bank(self) -> Path | None:
        """The memory of old classes beside it, if there is one."""
        path = None if self.run is None else self.run / f"step{self.step}" / BANK
        return path if path is not None and path.is_file() else None


def open_base(
    name: str,
    step: int | None = None,
    labels: Sequence[str] | None = None,
    background: str | None = None,
    trained_with: Literal["softmax", "sigmoid"] | None = None,
) -> Base:
    """The model that a user names.

    Args:
        name: a run's folder, a folder that ``save_pretrained`` wrote, or a Hugging Face hub's id.
        step: of a run; None: its last finished one.
        labels: of another library's model, as for :func:`~fmwiss.models.foreign.open_foreign`, like the next two.
        background: the name of its background, or ``none``.
        trained_with: ``softmax`` or ``sigmoid``.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"{name} is a file; give the folder of a run, or one that save_pretrained wrote")
    if folder.is_dir() and not is_foreign(folder):
        return _open_run(folder, step, [labels, background, trained_with])
    if step is not None and not folder.is_dir():
        raise UserError(f"there is no run {name}; give the folder of one, or leave --step out")
    if step is not None:
        raise UserError(f"--step is about the steps of a run, and {name} is another library's model; leave it out")
    model = open_foreign(folder if folder.is_dir() else fetch(name), labels, background, trained_with)
    return Base(name, model, None, 0, None)


def _open_run(folder: Path, step: int | None, foreign_options: list[Any]) -> Base:
    if (folder / "model.json").is_file() and folder.name.startswith("step") and folder.name[4:].isdigit():
        if step is not None and step != int(folder.name[4:]):
            raise UserError(f"--step {step}: {folder} is another step already; give one of both")
        folder, step = folder.resolve().parent, int(folder.name[4:])
    if (folder / "model.json").is_file() and not any(folder.glob("step*")) and not folder.name.startswith("step"):
        raise UserError(f"{folder}: is a model that was saved from a run; extend the run, which has all of its steps")
    if not any(folder.glob("step*")):
        there = f"no step of a run and no {'config.json'}"
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin", ".ckpt"))
        more = f" ({pickled[0]} is pickled; save the model with save_pretrained)" if pickled else ""
        raise UserError(f"{folder}: holds {there}; give a run, or a folder that save_pretrained wrote{more}")
    if any(option is not None for option in foreign_options):
        raise UserError(
            f"--labels, --background and --trained-with are about models of other libraries, and {folder} is a run of "
            "fmwiss, which knows its own; leave them out"
        )
    number = last_step(folder) if step is None else finished_step(folder, step)
    missing = [t for t in range(number) if t not in finished_steps(folder)]
    if missing:
        raise UserError(f"{folder}: step {missing[0]} is missing there; a run has all steps before its last")
    config = load_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    return Base(str(folder), Segmenter.load(folder / f"step{number}"), folder, number, config)


def check_new_classes(names: Sequence[str], base: Base) -> tuple[str, ...]:
    """The new classes, if they are new.

    Raises:
        UserError: there are none, one is named twice, is known already or cannot be a name, or they are too many.
    """
    new = tuple(name.strip() for name in names if name.strip())
    if not new:
        raise UserError('--classes names no class; give names with commas between them, as in "forklift,pallet jack"')
    known = {joined(name): name for name in base.classes}
    for place, name in enumerate(new):
        if not joined(name) or joined(name) == "background":
            raise UserError(f"--classes: '{name}' cannot be the name of a new class; name what the tags name")
        if joined(name) in known:
            raise UserError(f"--classes: {base.given} knows '{known[joined(name)]}' already; name new classes only")
        if joined(name) in map(joined, new[:place]):
            raise UserError(f"--classes names '{name}' twice; name every class once")
    if len(base.classes) + len(new) >= VOID:
        raise UserError(f"--classes: {len(new)} more than {len(base.classes)} classes do not fit into masks of 8 bits")
    return new


def put_base(base: Base, out: Path, resize: int | None, atrous_rates: tuple[int, ...]) -> None:
    """Write the base's steps into a new run, each whole or not at all; what is there stays.

    Args:
        base: what is extended; of a run all steps up to it are copied.
        out: the new run.
        resize: working size of another library's model.
        atrous_rates: of what learns beside it.
    """
    for t in range(base.step + 1):
        final = out / f"step{t}"
        if (final / "model.json").is_file():
            continue
        temporary = out / f".step{t}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            if base.run is None:
                model = base.model
                model.architecture = replace(model.architecture, resize=resize, atrous_rates=atrous_rates)
                model.save(temporary)
            else:
                _copy_step(base.run / f"step{t}", temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _copy_step(step: Path, target: Path) -> None:
    for name in _KEPT:
        there = step / name
        if there.is_dir():
            shutil.copytree(there, target / name)
        elif there.is_file():
            shutil.copy2(there, target / name)


def build_replay(
    source: Source, ids: Sequence[str], classes: Sequence[str], min_area: float, seed: int
) -> MemoryBank:
    """A memory of old classes from photographs with masks, in place of the one that another library's model lacks.

    Args:
        source: the photographs.
        ids: which ones.
        classes: the model's, of the labels 1, 2, ...
        min_area: smallest share of its photograph that an instance may cover.
        seed: of the draw.

    Raises:
        UserError: none of the classes is in the masks.
    """
    known = [name for name in classes if joined(name) in map(joined, source.mask_classes)]
    table = label_table(source.mask_classes, classes, has_background=True)
    if known:
        bank = MemoryBank.build(source, ids, table, classes, REPLAY_SIZE, min_area, seed, track)
        if bank.classes:
            return bank
    raise UserError(
        f"--replay {source.root}: its masks show none of the model's classes ({', '.join(classes[:8])}"
        f"{', ...' if len(classes) > 8 else ''}); name them alike in classes.txt"
    )


def put_replay(bank: MemoryBank, out: Path, step: int) -> None:
    """Write a memory into the step that the extension starts from."""
    path = out / f"step{step}" / BANK
    path.parent.mkdir(parents=True, exist_ok=True)
    bank.save(path)


def has_adapter(model: Segmenter) -> bool:
    """Whether a model comes from another library."""
    return isinstance(model, AdaptedSegmenter)


