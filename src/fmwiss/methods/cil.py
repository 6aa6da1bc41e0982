"""CIL: class-incremental learning re-using neither old data nor old labels (Klingner et al., ITSC 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from fmwiss.config import CILConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import EntropyWeightedDistillationLoss, PixelCrossEntropyLoss
from fmwiss.losses.pixel_cross_entropy import IGNORED
from fmwiss.methods.guidance import BACKGROUND
from fmwiss.methods.pixel import DistillingMethod
from fmwiss.models import Segmenter


class CIL(DistillingMethod):
    """Cross-entropy where the step labels a new class, distillation everywhere else in the photograph.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: CILConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = PixelCrossEntropyLoss()
        self.distillation = EntropyWeightedDistillationLoss(options.entropy_weight)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        logits, old = self.of_both(batch.image, labels)
        unlabelled = _unlabelled(labels)
        return {
            "new_ce": self.cross_entropy(logits, labels.masked_fill(unlabelled, IGNORED)),
            "distillation": self.options.distillation * self.distillation(logits, old, unlabelled & valid),
        }

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        unlabelled = _unlabelled(labels)
        return {"new_ce": (~unlabelled).sum(), "distillation": (unlabelled & valid).sum()}


def _unlabelled(labels: Tensor) -> Tensor:
    return (labels == BACKGROUND) | (labels == IGNORED)
