"""MiB: modelling the background (Cermelli et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from fmwiss.config import MiBConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import UnbiasedCrossEntropyLoss, UnbiasedDistillationLoss
from fmwiss.methods.pixel import DistillingMethod
from fmwiss.models import Segmenter


class MiB(DistillingMethod):
    """Unbiased cross-entropy and unbiased distillation; new classifiers start from the background's weights.

    The latter is ``segmenter.classifier_init: background``. Arguments as of
    :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: MiBConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = UnbiasedCrossEntropyLoss(self.n_old)
        self.distillation = UnbiasedDistillationLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, valid = self.labels(batch)
        logits, old = self.of_both(batch.image, labels)
        return {
            "unbiased_ce": self.cross_entropy(logits, labels),
            "unbiased_distillation": self.options.distillation * self.distillation(logits, old, valid),
        }
