"""Step 0: learning the base classes from masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.data.batches import Batch
from fmwiss.data.voc import VOID
from fmwiss.losses import PixelBCELoss
from fmwiss.methods.base import Method
from fmwiss.models import Segmenter


class Supervised(Method):
    """Per-class binary cross-entropy against the masks, void left out: the base step of WILSON and FMWISS."""

    supervision = "pixel"

    def __init__(self, student: Segmenter, freeze_batch_norm: bool = False) -> None:
        super().__init__(student, freeze_batch_norm)
        self.bce = PixelBCELoss(reduction="sum-classes")

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.mask is None:
            raise ValueError("Supervised learns from masks, and the batch has none")
        logits = F.interpolate(
            self.student(batch.image), size=batch.mask.shape[-2:], mode="bilinear", align_corners=False
        )
        counted = (batch.mask != VOID) & batch.valid
        labels = batch.mask.where(counted, 0)[:, None]
        target = torch.zeros_like(logits).scatter_(1, labels, 1.0)
        return {"base_bce": self.bce(logits, target, counted[:, None])}
