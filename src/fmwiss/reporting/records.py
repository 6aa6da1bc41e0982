"""What a finished step leaves in its folder for the report: the files' names and their contents as typed models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GALLERY = "gallery"
"""Folder of a step with :data:`GALLERY_INDEX` and the pictures that it names."""
GALLERY_INDEX = "gallery.json"
CONFUSION = "confusion.json"
ENVIRONMENT = "environment.json"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
LOCATOR = "locator"
"""Folder of a step with what a method's locator left, which learns before the student."""

FileName = Annotated[str, Field(pattern=r"^[\w-]+\.(jpg|png)$")]
"""A picture in the gallery's folder, and nowhere else."""
Share = Annotated[float, Field(ge=0.0, le=100.0)]
Chosen = Literal["lost", "gained", "lowest", "highest", "drawn"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figures(_Record):
    """``evaluation.json``: figures of a step's model in per cent, and what the step cost."""

    class Means(_Record):
        """Mean IoU over the base classes, over those learnt since, over all labels."""

        old: float | None
        new: float | None
        all: float | None

    class Further(_Record):
        """Figures on a list of ``data.also``."""

        images: int
        miou: Figures.Means
        pixel_accuracy: float | None
        iou: dict[str, float | None]

    step: int
    images: int
    miou: Means
    pixel_accuracy: float | None
    iou: dict[str, float | None]
    split: str
    training_images: int
    pasted_instances: dict[str, int] = {}
    """How many the memory bank holds of each class that the step pastes."""
    minutes: dict[str, float]
    peak_memory_gib: float
    diagnostic: bool = False
    also: dict[str, Further] = {}
    """By list of photographs."""


class Confusion(_Record):
    """``confusion.json``: pixels by truth (rows) and prediction (columns), in the order of ``names``."""

    names: list[str]
    pixels: list[list[Annotated[int, Field(ge=0)]]]

    @model_validator(mode="after")
    def _square(self) -> Confusion:
        if {len(self.names)} != {len(self.pixels), *map(len, self.pixels)}:
            raise ValueError("pixels must have a row and a column for each of names")
        return self


class Environment(_Record):
    """``environment.json``: what trained the step, as far as it is known."""

    class Machine(_Record):
        """``devices`` has one entry a process; ``cores`` are those that a process may use."""

        system: str
        processor: str
        cores: int
        memory_gib: float | None
        devices: list[str]

    fmwiss: str
    commit: str | None
    """Of the source tree, ``+`` behind it where it had changes; None where fmwiss is installed from a package."""
    versions: dict[str, str]
    machine: Machine
    threads: int
    processes: int
    precision: str
    finished: str
    """Date and time in UTC, ISO 8601."""


class ClassFigures(_Record):
    """IoU of a class on one photograph by the model before the step and by the one after it."""

    before: Share | None
    after: Share | None
    in_truth: bool


class ValidationPhotograph(_Record):
    """A photograph of the validation split: what is there, and what the models say before and after the step."""

    id: str
    chosen: list[Chosen]
    photograph: FileName
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    truth: FileName
    before: FileName | None
    after: FileName
    miou_before: Share | None
    miou_after: Share | None
    iou: dict[str, ClassFigures]


class ProbabilityMap(_Record):
    """What supervised the student: a class's probabilities."""

    picture: FileName
    largest: Annotated[float, Field(ge=0.0, le=1.0)]


class Pasted(_Record):
    """Where an instance of an old class was pasted."""

    name: str
    layer: FileName


class AugmentedSample(_Record):
    """A training crop as the method saw it."""

    epoch: int
    picture: FileName
    masks: dict[str, FileName] = {}
    truth: FileName | None = None
    pasted: Pasted | None = None


class TrainingPhotograph(_Record):
    """A photograph of the step's training list. Its truth is there in step 0 alone."""

    id: str
    tags: list[str]
    photograph: FileName
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    truth: FileName | None = None
    stages: dict[str, dict[str, FileName]] = {}
    """Stage of the pseudo masks, then class."""
    maps: dict[str, ProbabilityMap] = {}
    sample: AugmentedSample | None = None


class Gallery(_Record):
    """``gallery/gallery.json``."""

    class_names: list[str]
    """The model's labels, background first."""
    new_classes: list[str]
    split: str
    compared: int
    """Photographs of the validation split of which those shown were chosen."""
    validation: list[ValidationPhotograph]
    training: list[TrainingPhotograph]

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return self.model_dump(mode="json", exclude_none=False)
