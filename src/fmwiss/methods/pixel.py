"""What methods share that learn new classes from masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmwiss.config import Config, PixelConfig
from fmwiss.data.batches import Batch
from fmwiss.losses.pixel_cross_entropy import IGNORED
from fmwiss.methods.base import Method
from fmwiss.methods.guidance import check_stride, resize_logits, thin
from fmwiss.models import Segmenter


class PixelMethod(Method):
    """A method whose batches have the step's masks: new classes, everything else background, void 255.

    One that has to look at the step's photographs before it learns is a :class:`Surveying`, too, and one that leaves
    something for later steps a :class:`Carrying`.

    Args:
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; here it is only counted.
        options: of the method.
        freeze_batch_norm: keep the student's batch norm statistics.
    """

    supervision = "pixel"
    joint: ClassVar[bool] = False
    """Whether it gets a new student, all photographs so far, and the masks of all classes so far."""
    replays: ClassVar[bool] = False
    """Whether batches hold photographs of old classes from elsewhere, too."""

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        check_stride(options.loss_stride, config.data.crop_size)

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: PixelConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, freeze_batch_norm)
        self.stride = options.loss_stride
        self.n_old = len(old_model.class_names)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """At the losses' resolution, the masks with ``IGNORED`` where a pixel does not count, and which are valid.

        Shapes: int64 and bool ``(B, H, W)``; void pixels are valid.
        """
        if batch.mask is None:
            raise ValueError("this method learns from masks, and the batch has none")
        labels, valid = thin(batch.mask, self.stride), thin(batch.valid, self.stride)
        return labels.masked_fill(~valid, IGNORED), valid

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        """By the names that losses on pixels have in these methods."""
        labels, valid = self.labels(batch)
        labelled, pixels = (labels != IGNORED).sum(), valid.sum()
        over_labelled = ("ce", "unbiased_ce", "pseudo_ce", "bce")
        over_all = ("distillation", "unbiased_distillation")
        return {**dict.fromkeys(over_labelled, labelled), **dict.fromkeys(over_all, pixels)}


class Surveying(ABC):
    """A method that looks at all of the step's photographs once before it learns."""

    @abstractmethod
    def survey(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """What it has to find out of the step's photographs; kept in the step's folder."""

    @abstractmethod
    def use_survey(self, found: Mapping[str, Tensor]) -> None:
        """Take what :meth:`survey` gave, in this process or in an earlier one."""


class Carrying(ABC):
    """A method of which a step leaves something for later ones beside its model."""

    @classmethod
    @abstractmethod
    def carried_from_base(cls, model: Segmenter, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """:meth:`carried` of step 0, whose method is another one: of its finished model and photographs with masks."""

    @abstractmethod
    def carried(self) -> dict[str, Tensor]:
        """What later steps must be told of this one beside its model; kept in the step's folder if there are any."""

    @abstractmethod
    def use_carried(self, steps: Sequence[Mapping[str, Tensor]], more_follow: bool) -> None:
        """Take what every step before this one left, step 0 first; ``more_follow``: so must this one."""


class DistillingMethod(PixelMethod):
    """One that keeps the old model, frozen.

    Args:
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; frozen here.
        options: of the method.
        freeze_batch_norm: keep the student's batch norm statistics.
    """

    frozen = ("old_model",)

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: PixelConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.old_model = old_model.requires_grad_(False)

    def of_both(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits ``(B, |Y_t|, H, W)`` and the old model's ``(B, |Y_{t-1}|, H, W)`` as :func:`resized`."""
        with torch.no_grad():
            old = resized(self.old_model(images), labels)
        return resized(self.student(images), labels), old


def resized(logits: Tensor, labels: Tensor) -> Tensor:
    """``(B, C, h, w)`` logits at the resolution of ``(B, H, W)`` labels, in at least single precision."""
    size = (labels.shape[-2], labels.shape[-1])
    return resize_logits(logits, size).to(torch.promote_types(logits.dtype, torch.float32))


def at_features(labels: Tensor, features: Tensor) -> Tensor:
    """Square ``(B, S, S)`` labels at the places of ``(B, D, h, h)`` features, taken at the cells' centres."""
    return thin(labels, labels.shape[-1] / features.shape[-1])[..., : features.shape[-2], : features.shape[-1]]
