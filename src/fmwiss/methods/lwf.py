"""Learning without forgetting (Li and Hoiem, ECCV 2016), for segmentation as in MiB's comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from fmwiss.config import LwFConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import DistillationLoss, PixelCrossEntropyLoss
from fmwiss.methods.pixel import DistillingMethod, resized
from fmwiss.models import Segmenter


class LwF(DistillingMethod):
    """Cross-entropy on the step's labels, and distillation of the old model's softmax over the old labels.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: LwFConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = PixelCrossEntropyLoss()
        self.distillation = DistillationLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        with torch.no_grad():
            old = resized(self.old_model(batch.image), labels)
        logits = resized(self.student(batch.image), labels)
        return {
            "ce": self.cross_entropy(logits, labels),
            "distillation": self.options.distillation * self.distillation(logits, old, valid),
        }
