"""LwF-MC: learning without forgetting in iCaRL's form (Rebuffi et al., CVPR 2017), as in MiB's comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from fmwiss.config import LwFMCConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import BinaryDistillationLoss, PixelBCELoss
from fmwiss.losses.pixel_cross_entropy import IGNORED
from fmwiss.methods.pixel import DistillingMethod
from fmwiss.models import Segmenter


class LwFMC(DistillingMethod):
    """Binary cross-entropy of all labels, and of the old ones with the old model's sigmoids as targets.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: LwFMCConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.bce = PixelBCELoss(reduction="sum-classes")
        self.distillation = BinaryDistillationLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        logits, old = self.of_both(batch.image, labels)
        counted = (labels != IGNORED)[:, None]
        target = torch.zeros_like(logits).scatter_(1, labels[:, None].where(counted, 0), 1.0)
        weight = self.options.distillation * self.n_old
        return {
            "bce": self.bce(logits, target, counted),
            "distillation": weight * self.distillation(logits, old, valid),
        }
