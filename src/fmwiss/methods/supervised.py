"""Step 0: learning the base classes from masks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fmwiss.config import Config
from fmwiss.data.batches import Batch
from fmwiss.data.voc import VOID
from fmwiss.losses import PixelBCELoss, PixelCrossEntropyLoss
from fmwiss.methods.base import Method
from fmwiss.methods.guidance import check_stride, resize_logits, thin
from fmwiss.models import Segmenter


class Supervised(Method):
    """Per-class binary cross-entropy against the masks, void left out: the base step of WILSON and FMWISS.

    Or cross-entropy over the softmax of all labels, the base step of the methods that learn from masks.

    Args:
        student: the model of step 0.
        freeze_batch_norm: keep the student's batch norm statistics.
        loss_stride: the loss counts every ``loss_stride``-th pixel of the crop, in both directions.
        loss: which of the two.
    """

    supervision = "pixel"

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        check_stride(options.loss_stride, config.data.crop_size, "training.step0.loss_stride")

    def __init__(
        self,
        student: Segmenter,
        freeze_batch_norm: bool = False,
        loss_stride: int = 1,
        loss: Literal["bce", "cross-entropy"] = "bce",
    ) -> None:
        super().__init__(student, freeze_batch_norm)
        self.loss_stride = loss_stride
        self.loss = loss
        self.bce = PixelBCELoss(reduction="sum-classes")
        self.cross_entropy = PixelCrossEntropyLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.mask is None:
            raise ValueError("Supervised learns from masks, and the batch has none")
        mask, counted = self._counted(batch)
        height, width = mask.shape[-2:]
        logits = resize_logits(self.student(batch.image), (height, width))
        if self.loss == "cross-entropy":
            return {"base_ce": self.cross_entropy(logits, mask.masked_fill(~counted, VOID))}
        labels = mask.where(counted, 0)[:, None]
        target = torch.zeros_like(logits).scatter_(1, labels, 1.0)
        return {"base_bce": self.bce(logits, target, counted[:, None])}

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        pixels = self._counted(batch)[1].sum()
        return {"base_bce": pixels, "base_ce": pixels}

    def _counted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The masks at the loss's resolution, and where they count."""
        assert batch.mask is not None
        mask, valid = thin(batch.mask, self.loss_stride), thin(batch.valid, self.loss_stride)
        return mask, (mask != VOID) & valid
