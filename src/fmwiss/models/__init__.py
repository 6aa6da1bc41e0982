"""Segmenter, incremental classifier and teacher."""

from fmwiss.models.classifier import IncrementalClassifier
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
    "Segmenter",
    "Teacher",
    "finished_step",
    "finished_steps",
    "last_step",
    "load_segmenter",
]
