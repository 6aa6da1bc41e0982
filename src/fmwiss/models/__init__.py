"""Segmenter, incremental classifier, and what teaches beside them: FMWISS's teacher and WILSON's localizer."""

from fmwiss.models.classifier import IncrementalClassifier
from fmwiss.models.localizer import Localizer
from fmwiss.models.segmenter import (
    Architecture,
    Segmenter,
    finished_step,
    finished_steps,
    last_step,
    load_segmenter,
)
from fmwiss.models.teacher import Teacher

__all__ = [
    "Architecture",
    "IncrementalClassifier",
    "Localizer",
    "Segmenter",
    "Teacher",
    "finished_step",
    "finished_steps",
    "last_step",
    "load_segmenter",
]
