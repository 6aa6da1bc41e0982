"""Learning without forgetting (Li and Hoiem, ECCV 2016), for segmentation as in MiB's comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from fmwiss.config import ILTConfig, LwFConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import DistillationLoss, PixelCrossEntropyLoss
from fmwiss.methods.pixel import DistillingMethod
from fmwiss.models import Segmenter


class LwF(DistillingMethod):
    """Cross-entropy on the step's labels, and distillation of the old model's softmax over the old labels.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    options: LwFConfig | ILTConfig

    def __init__(
        self,
        student: Segmenter,
        old_model: Segmenter,
        options: LwFConfig | ILTConfig,
        freeze_batch_norm: bool = False,
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = PixelCrossEntropyLoss()
        self.distillation = DistillationLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        return self.terms(labels, valid, *self.of_both(batch.image, labels))

    def terms(self, labels: Tensor, valid: Tensor, logits: Tensor, old: Tensor) -> dict[str, Tensor]:
        """The two losses of logits, the student's and the old model's, at the resolution of ``(B, H, W)`` labels."""
        return {
            "ce": self.cross_entropy(logits, labels),
            "distillation": self.options.distillation * self.distillation(logits, old, valid),
        }
