"""Incremental learning techniques for semantic segmentation (Michieli and Zanuttigh, ICCV workshops 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import ILTConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import DistillationLoss, PixelCrossEntropyLoss
from fmwiss.losses.distillation import single
from fmwiss.methods.pixel import DistillingMethod, resized
from fmwiss.models import Segmenter


class ILT(DistillingMethod):
    """LwF, and the mean squared error between the encoders' last features.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: ILTConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = PixelCrossEntropyLoss()
        self.distillation = DistillationLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        with torch.no_grad():
            old_features = self.old_model.encode(batch.image)
            old = resized(self.old_model.decode(old_features)[0], labels)
        features = self.student.encode(batch.image)
        logits = resized(self.student.decode(features)[0], labels)
        difference = F.mse_loss(single(features), single(old_features))
        return {
            "ce": self.cross_entropy(logits, labels),
            "distillation": self.options.distillation * self.distillation(logits, old, valid),
            "features": self.options.feature_distillation * difference,
        }
