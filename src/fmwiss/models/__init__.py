"""Segmenter, incremental classifier, and what teaches beside them: FMWISS's teacher, WILSON's localizer,
RECALL's helper."""

from fmwiss.models.classifier import IncrementalClassifier
from fmwiss.models.helper import HelperDecoder
from fmwiss.models.localizer import Localizer
from fmwiss.models.segmenter import (
    Architecture,
    Segmenter,
    load_segmenter,
)
from fmwiss.models.teacher import Teacher

__all__ = [
    "Architecture",
    "HelperDecoder",
    "IncrementalClassifier",
    "Localizer",
    "Segmenter",
    "Teacher",
    "load_segmenter",
]
