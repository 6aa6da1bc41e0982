"""What is told about a shared model: ``config.json`` as a typed model, made from a run."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import fmwiss
from fmwiss.data.extension import RECORD as EXTENSION
from fmwiss.data.extension import read_record as read_extension
from fmwiss.errors import UserError
from fmwiss.models import Architecture, Segmenter
from fmwiss.models.adapted import AdaptedArchitecture
from fmwiss.reporting.records import Environment, Figures
from fmwiss.run_folders import finished_steps

RECORD = "config.json"
"""The file's name, by which the hub knows a model."""


_TOLD = ("license", "dataset", "experiment", "foundation_models", "steps", "given_model")
"""What the model itself does not tell."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class StepRecord(BaseModel):
    """A step of the run that the model comes from."""

    model_config = ConfigDict(frozen=True)

    step: int = Field(ge=0)
    classes: list[str]
    """Those that it learnt."""
    figures: Figures | None = None
    environment: Environment | None = None


class ModelRecord(BaseModel):
    """``config.json``: everything on the model's card. What the network is built from stands in ``model.json``."""

    model_config = ConfigDict(frozen=True)

    library_name: Literal["fmwiss"] = "fmwiss"
    format: Literal[1] = 1
    fmwiss: str
    """Version of the library that wrote it."""
    class_names: list[str]
    """Of every label, background first."""
    classes_by_step: list[list[str]]
    network: str
    """Its parts in words."""
    working_size: int | None
    """Shorter side in pixels that photographs are scaled to."""
    has_background: bool = True
    """Whether label 0 is ever predicted."""
    library: str | None = None
    """Another library that the model of step 0 comes from, which was not trained here."""
    given_model: str | None = None
    """What that model was called: a hub's id, or the last part of a folder's path."""
    first_scores: Literal["softmax", "sigmoid"] = "sigmoid"
    """What the classes of step 0 were trained with."""
    license: str | None = None
    dataset: str | None = None
    experiment: dict[str, Any] | None = None
    """The run's configuration; of paths only the last part."""
    foundation_models: list[str] = []
    """Those behind the pseudo masks, by name."""
    steps: list[StepRecord] = []


def record_of(segmenter: Segmenter, origin: tuple[Path, int | None] | None) -> ModelRecord:
    """The record of a model.

    Args:
        segmenter: the model.
        origin: a run and its step; or a folder with a ``config.json`` and None; or None where nothing is known.

    Raises:
        UserError: a file of the run, or ``config.json``, cannot be read.
    """
    known: dict[str, Any] = {}
    if origin is not None:
        folder, step = origin
        if step is not None:
            known = {**_of_run(folder, step), "given_model": _given_model(folder)}
        elif (folder / RECORD).is_file():
            read = read_record(folder / RECORD)
            known = {name: getattr(read, name) for name in _TOLD}
    architecture = segmenter.architecture
    decoder = f"DeepLabV3 decoder, output stride {architecture.output_stride}"
    return ModelRecord(
        fmwiss=fmwiss.__version__,
        # what another library built has its own kind of description, and a decoder of its own
        network=architecture.encoder + (f", {decoder}" if type(architecture) is Architecture else ""),
        class_names=list(segmenter.class_names),
        classes_by_step=[list(classes) for classes in architecture.steps],
        working_size=architecture.resize,
        has_background=segmenter.has_background,
        **_of_another_library(architecture),
        **known,
    )


def _of_another_library(architecture: Architecture) -> dict[str, Any]:
    """What is known about a model of step 0 that was not trained here."""
    if not isinstance(architecture, AdaptedArchitecture):
        return {}
    library = {"smp": "segmentation_models_pytorch", "transformers": "Hugging Face transformers"}[architecture.family]
    return {"library": library, "first_scores": architecture.trained_with}


def read_record(path: Path) -> ModelRecord:
    """Read a ``config.json``, or raise :class:`UserError` where it is not one of fmwiss."""
    try:
        return ModelRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{path}: is no model record of fmwiss ({where}: {first['msg']}).") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from error


def _of_run(run: Path, last: int) -> dict[str, Any]:
    from fmwiss.config import load_config
    from fmwiss.methods import takes_pseudo_masks
    from fmwiss.reporting.runs import read_step

    if not (run / "config.yaml").is_file():
        return {}
    steps = [read_step(run, number) for number in finished_steps(run) if number <= last]
    config = load_config(run / "config.yaml")
    masks = config.cosegmentation
    foundation = takes_pseudo_masks(config.method) and masks.source == "foundation" and last > 0
    vision, attention = masks.vision_language, masks.self_supervised
    return {
        "experiment": _without_places(config.model_dump(mode="json")),
        "foundation_models": [f"{vision.name} {vision.model}", attention.model] if foundation else [],
        "steps": [
            StepRecord(
                step=step.number,
                classes=list(step.new_classes),
                figures=step.figures,
                environment=step.environment,
            )
            for step in steps
        ],
    }


def _given_model(run: Path) -> str | None:
    """What the first of the extensions that led to a run was given; None for a run that extended nothing."""
    given = None
    seen: set[Path] = set()
    while (run / EXTENSION).is_file() and run.resolve() not in seen:  # a folder may have been moved over another
        seen.add(run.resolve())
        given = str(read_extension(run / EXTENSION).get("model", ""))
        run = Path(given)
    if given is None or (_HUB_ID.fullmatch(given) and not run.exists()):
        return given
    return run.resolve().name


def _without_places(value: Any) -> Any:
    """A configuration for others to read: of a path of this machine only its last part is left."""
    if isinstance(value, dict):
        return {name: _without_places(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and not value.startswith("hf-hub:") and ("/" in value or "\\" in value):
        return PureWindowsPath(PurePosixPath(value).name).name
    return value
