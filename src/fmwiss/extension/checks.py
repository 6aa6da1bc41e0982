"""What an extension can know before anything is tried out: whether its folders can be made, and the machine fits."""

from __future__ import annotations

import os
from pathlib import Path

from fmwiss.config import TrainingConfig
from fmwiss.data.extension import is_voc
from fmwiss.errors import UserError
from fmwiss.training.launch import build_fabric, check_hardware


def check_folder(option: str, folder: Path) -> None:
    """Raise UserError where a folder cannot be made, or written to.

    Args:
        option: the command line's, for messages.
        folder: which may be there.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        where = f"{option} {folder}" if place == folder else f"{option} {folder}: {place}"
        raise UserError(f"{where} is a file where a folder is needed; give another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {place} cannot be written to; give another, or change its permissions")


def check_outside(out: Path, images: Path) -> None:
    """Raise UserError where a run would lie among its photographs, as which its pictures would count later.

    Args:
        out: the run.
        images: the photographs, or a folder with them in ``images`` or, of VOC's layout, in ``JPEGImages``.
    """
    own = images / ("JPEGImages" if is_voc(images) else "images")
    folder = own if own.is_dir() else images  # beside its own folder nothing counts as a photograph
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--out {out} lies among the photographs of {folder}, as which the run's pictures would count; give a "
            "folder beside it"
        )


def check_machine(devices: str | int, precision: str, training: TrainingConfig) -> None:
    """Raise UserError where the machine cannot do what is asked for, or has more processes than a batch feeds.

    Args:
        devices: as of :func:`~fmwiss.training.launch.build_fabric`.
        precision: as there.
        training: of the experiment.
    """
    fabric = build_fabric(devices, precision)
    check_hardware(fabric, training)
    steps = training.steps
    least = 2 * fabric.world_size * steps.accumulate
    if steps.batch_size < least:
        parts = f" and {steps.accumulate} parts" if steps.accumulate > 1 else ""
        raise UserError(
            f"a batch would have {steps.batch_size} photograph(s), and {fabric.world_size} process(es){parts} need at "
            f"least {least} for the decoder's batch norm; raise --batch-size, or data.fraction if it is below 1, or "
            "tag more photographs"
        )
