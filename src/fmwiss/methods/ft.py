"""FT: fine-tuning on the step's masks, the papers' lower bound."""

from __future__ import annotations

import torch
from torch import Tensor

from fmwiss.config import PixelConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import PixelCrossEntropyLoss
from fmwiss.methods.pixel import PixelMethod, resized
from fmwiss.models import Segmenter


class FT(PixelMethod):
    """The student learns the step's labels by cross-entropy; old classes are background in them, and are forgotten.

    Arguments as of :class:`~fmwiss.methods.pixel.PixelMethod`.
    """

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: PixelConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.cross_entropy = PixelCrossEntropyLoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, _ = self.labels(batch)
        return {"ce": self.cross_entropy(resized(self.student(batch.image), labels), labels)}
