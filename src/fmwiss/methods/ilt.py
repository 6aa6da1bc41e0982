"""Incremental learning techniques for semantic segmentation (Michieli and Zanuttigh, ICCV workshops 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import ILTConfig
from fmwiss.data.batches import Batch
from fmwiss.losses.distillation import single
from fmwiss.methods.lwf import LwF
from fmwiss.methods.pixel import resized


class ILT(LwF):
    """LwF, and the mean squared error between the encoders' last features.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    options: ILTConfig

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        with torch.no_grad():
            old_features = self.old_model.encode(batch.image)
            old = resized(self.old_model.decode(old_features)[0], labels)
        features = self.student.encode(batch.image)
        logits = resized(self.student.decode(features)[0], labels)
        difference = F.mse_loss(single(features), single(old_features))
        return {
            **self.terms(labels, valid, logits, old),
            "features": self.options.feature_distillation * difference,
        }
