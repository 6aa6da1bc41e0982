"""From a confusion matrix to the paper's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split, in per cent.

    ``old`` is the mean IoU over the base classes, ``new`` over all classes learnt after step 0 (None at step 0),
    ``all`` over every seen class and the background: the columns "1-15", "16-20" and "All" of Tables 1 and 2. A class
    without a pixel in truth and prediction has IoU None and is left out of the means.
    """

    step: int
    images: int
    old: float | None
    new: float | None
    all: float | None
    pixel_accuracy: float | None
    iou: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]
    """Pixels by truth (rows) and prediction (columns), in the order of ``iou``."""

    @classmethod
    def from_confusion(cls, confusion: Tensor, steps: Sequence[Sequence[str]], images: int) -> Evaluation:
        """Figures of a confusion matrix.

        Args:
            confusion: ``(labels, labels)`` integer counts, truth in rows, background first.
            steps: class names learnt at every step, without the background.
            images: how many photographs it counts.
        """
        counts = confusion.to(torch.float64)
        intersection = counts.diag()
        union = counts.sum(dim=0) + counts.sum(dim=1) - intersection
        values = [100 * float(i / u) if u > 0 else None for i, u in zip(intersection, union, strict=True)]
        n_old = 1 + len(steps[0])
        total = float(counts.sum())
        names = ["background", *(name for step in steps for name in step)]
        return cls(
            step=len(steps) - 1,
            images=images,
            old=_mean(values[1:n_old]),
            new=_mean(values[n_old:]) if len(steps) > 1 else None,
            all=_mean(values),
            pixel_accuracy=100 * float(intersection.sum()) / total if total else None,
            iou=dict(zip(names, values, strict=True)),
            confusion=tuple(tuple(row) for row in confusion.long().tolist()),
        )

    def as_dict(self) -> dict[str, Any]:
        """The object that ``fmwiss evaluate --json`` prints."""
        return {
            "step": self.step,
            "images": self.images,
            "miou": {"old": self.old, "new": self.new, "all": self.all},
            "pixel_accuracy": self.pixel_accuracy,
            "iou": self.iou,
        }


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
