"""Plain fine-tuning on pseudo masks: the control that every method against forgetting is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import Config, FineTuningConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import PixelBCELoss
from fmwiss.methods.base import Method
from fmwiss.methods.guidance import check_stride, thin
from fmwiss.models import Segmenter

IGNORED = -1
"""Label of pixels that do not count."""


class FineTuning(Method):
    """The student learns hard labels from M_refine: new classes where their masks are, background everywhere else.

    There is no old model, no teacher and no memory, so what the base classes knew is overwritten by "background".

    Args:
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; not used, and not kept.
        options: which loss.
        freeze_batch_norm: keep the student's batch norm statistics.
    """

    supervision = "image"
    takes_negatives = True

    @classmethod
    def learns_from_pseudo_masks(cls, options: Any) -> bool:
        return True

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        check_stride(options.loss_stride, config.data.crop_size)

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: FineTuningConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, freeze_batch_norm)
        self.options = options
        self.bce = PixelBCELoss()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.pseudo is None:
            raise ValueError("fine-tuning learns from pseudo masks, and the batch has none")
        logits = self.student(batch.image)
        first_new = logits.shape[1] - batch.pseudo.shape[1]
        labels = thin(hard_labels(batch.pseudo, first_new), self.options.loss_stride)
        valid = thin(batch.valid, self.options.loss_stride)
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        if self.options.loss == "cross-entropy":
            # a sum over what counts, as a mean of nothing would be no number
            total = F.cross_entropy(
                logits.float(), labels.masked_fill(~valid, IGNORED), ignore_index=IGNORED, reduction="sum"
            )
            return {"all_ce": total / valid.sum().clamp(min=1)}
        target = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
        return {"all_bce": self.bce(logits, target, valid[:, None])}

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        pixels = thin(batch.valid, self.options.loss_stride).sum()
        return {"all_bce": pixels, "all_ce": pixels}


def hard_labels(pseudo: Tensor, first_new: int) -> Tensor:
    """One label a pixel from masks that may overlap: the class with the smaller mask in the crop has the pixel.

    A small object in front of a large one is lost otherwise. Of equally large masks the class that comes first in the
    protocol wins.

    Args:
        pseudo: M_refine, bool ``(B, |C_t|, S, S)``.
        first_new: the model's label of the first new class.

    Returns:
        int64 ``(B, S, S)``, 0 (background) where there is no mask.
    """
    area = pseudo.sum(dim=(2, 3), keepdim=True)
    nowhere = pseudo.shape[-2] * pseudo.shape[-1] + 1
    # argmin does not say which of equal entries it takes: the class's place breaks ties
    place = torch.arange(pseudo.shape[1], device=pseudo.device)[:, None, None]
    rank = torch.where(pseudo, area, nowhere) * pseudo.shape[1] + place
    return torch.where(pseudo.any(dim=1), rank.argmin(dim=1) + first_new, 0)
