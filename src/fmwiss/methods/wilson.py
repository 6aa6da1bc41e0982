"""WILSON (Cermelli et al., CVPR 2022): a localizer, learnt from tags and the old model, teaches the student online."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import Config, WILSONConfig
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.losses import BalancedCrossEntropyLoss, ImageLabelLoss, PixelBCELoss, confident_labels
from fmwiss.methods.base import Method
from fmwiss.methods.guidance import BACKGROUND, hard_target, known_classes, thin
from fmwiss.models import Localizer, Segmenter
from fmwiss.pamr import pixel_affinity, refine_masks


class WILSON(Method):
    """Learn new classes from tags alone, without forgetting.

    The localizer scores the encoder's features for all of Y_t. It learns the new classes from tags (l_CLS), the old
    ones and the background from the old model (l_LOC), and, after ``localizer_epochs``, from its own confident places
    (l_SS). From then on the student learns from old model and localizer (l_SEG). The encoder's features are held to the
    old model's all the time (l_FD). Everything is computed at the resolution of the features.

    With ``pseudo_labels: pseudo-masks`` there is no localizer: the student learns from the batch's masks and the old
    model from the first epoch on, beside l_FD (paper of FMWISS, Table 9).

    Args:
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; frozen here.
        options: constants and readings.
        freeze_batch_norm: keep the student's batch norm statistics; the localizer's follow the batches all the same.
    """

    supervision = "image"
    frozen = ("old_model",)

    @classmethod
    def learns_from_pseudo_masks(cls, options: Any) -> bool:
        return bool(options.pseudo_labels == "pseudo-masks")

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        if options.pseudo_labels == "localizer" and options.localizer_epochs >= config.training.steps.epochs:
            raise UserError(
                f"method.localizer_epochs = {options.localizer_epochs} leaves none of training.steps.epochs = "
                f"{config.training.steps.epochs} to the student; give fewer."
            )

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: WILSONConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, freeze_batch_norm)
        self.options = options
        self.old_model = old_model.requires_grad_(False)
        self.n_old = len(old_model.class_names)
        self.localizer: Localizer | None = None
        if options.pseudo_labels == "localizer":
            localizer = Localizer(student.encoder_channels, len(student.class_names))
            self.localizer = localizer.to(memory_format=torch.channels_last)
        self.image_label = ImageLabelLoss(options.focal_lambda, options.focal_p)
        self.prior = PixelBCELoss()
        self.self_supervision = BalancedCrossEntropyLoss()
        self.segmentation = PixelBCELoss(options.segmentation_reduction)

    @property
    def localizing_alone(self) -> bool:
        """Whether the student's decoder and classifiers wait for the localizer in this epoch."""
        return self.localizer is not None and self.epoch < self.options.localizer_epochs

    def extra_heads(self) -> list[nn.Module]:
        return [] if self.localizer is None else [self.localizer]

    @torch.inference_mode()
    def probability_maps(self, images: Tensor) -> Tensor | None:
        return None if self.localizer is None else self.localizer(self.student.encode(images)).softmax(dim=1)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.tags is None:
            raise ValueError("WILSON learns from tags, and the batch has none")
        options, tags = self.options, batch.tags
        with torch.inference_mode():
            old_features = self.old_model.encode(batch.image)
            old_logits = self.old_model.decode(old_features)[0]
        old = old_logits.float().sigmoid()  # a copy outside inference mode, which a loss may keep
        features = self.student.encode(batch.image)
        valid = thin(batch.valid, batch.image.shape[-1] / features.shape[-1])[:, None]

        if self.localizer is None:
            if batch.pseudo is None:
                raise ValueError("method.pseudo_labels: pseudo-masks learns from pseudo masks, and the batch has none")
            pseudo = thin(batch.pseudo, batch.image.shape[-1] / features.shape[-1])
            counted = valid if options.untagged_absent else valid & known_classes(tags, self.n_old)
            logits = self.student.decode(features)[0]
            return {
                **self.distillation(features, old_features, valid),
                "all_bce": self.segmentation(logits, hard_target(pseudo, old), counted),
            }
        localizing = features if options.encoder_gradient else features.detach()
        if self.localizing_alone:
            scores = self.localizer(localizing)
        else:
            scores, steady = self.localizer.scores_and_targets(localizing)
        counted_tags = None if options.untagged_absent else tags
        losses = {
            "image_label": self.image_label(scores, tags, valid, counted_tags),
            "prior": self.prior(scores[:, : self.n_old], old, valid),
            **self.distillation(features, old_features, valid),
        }
        if self.localizing_alone:
            return losses
        masks = self.masks(steady)
        losses["self_supervision"] = self.self_supervision(
            scores, self.pseudo_labels(masks, batch.image, tags, valid), self.expected(tags), valid[:, 0]
        )
        target, whole = self.target(masks, old, tags, valid)
        losses["all_bce"] = self.segmentation(self.student.decode(features)[0], target, valid & whole[:, :, None, None])
        return losses

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        """Of the student's loss with a localizer it is not known before it is computed which photographs count."""
        assert batch.tags is not None
        options = self.options
        valid = thin(batch.valid, self.student.architecture.output_stride)[:, None]
        counts = {"prior": valid.sum(), "features": valid.sum()}
        if self.localizer is None:
            counted = valid if options.untagged_absent else valid & known_classes(batch.tags, self.n_old)
            counts["all_bce"] = counted.sum()
        elif not options.untagged_absent:
            counts["image_label"] = batch.tags.sum()
        return counts

    def distillation(self, features: Tensor, old_features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """l_FD: squared distance of the student's and the old model's ``(B, D, h, w)`` features, mean where valid."""
        weight = self.options.feature_distillation
        if weight == 0:
            return {}
        distance = F.mse_loss(features.float(), old_features.clone().float(), reduction="none")
        return {"features": weight * (distance * valid).sum() / (valid.sum().clamp(min=1) * features.shape[1])}

    def masks(self, scores: Tensor) -> Tensor:
        """m: the localizer's softmax over all of Y_t, ``(B, |Y_t|, h, w)``."""
        return scores.float().softmax(dim=1)

    def expected(self, tags: Tensor) -> Tensor:
        """The labels that pseudo labels have to consist of, bool ``(B, |Y_t|)``: background and tagged new classes."""
        expected = torch.cat([tags.new_zeros(len(tags), self.n_old), tags], dim=1)
        expected[:, BACKGROUND] = True
        return expected

    def pseudo_labels(self, masks: Tensor, images: Tensor, tags: Tensor, valid: Tensor) -> Tensor:
        """Confident labels, int64 ``(B, h, w)``, for background and tagged new classes, from masks refined by PAMR.

        Args:
            masks: m, ``(B, |Y_t|, h, w)``.
            images: in [0, 1], ``(B, 3, H, W)``.
            tags: bool ``(B, |C_t|)``.
            valid: bool ``(B, 1, h, w)``.
        """
        options = self.options
        shown = torch.cat([masks[:, :1], masks[:, self.n_old :] * tags[:, :, None, None]], dim=1)
        if options.pamr_iterations > 0:
            small = F.interpolate(images.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
            affinity = pixel_affinity(small, options.pamr_dilations)
            shown = refine_masks(shown, affinity, options.pamr_dilations, options.pamr_iterations)
        cutoffs = shown.new_full(shown.shape[1:2], options.class_cutoff)
        cutoffs[BACKGROUND] = options.background_cutoff
        labels = confident_labels(shown, valid[:, 0], cutoffs, options.lowest_cutoff)
        return torch.where(labels > BACKGROUND, labels + self.n_old - 1, labels)

    def target(self, masks: Tensor, old: Tensor, tags: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """q, the student's target: old classes from the old model, new ones hard and soft from the localizer.

        Shapes as in :meth:`pseudo_labels`; ``old`` are the old model's sigmoid outputs, ``(B, |Y_{t-1}|, h, w)``.

        Returns:
            q, ``(B, |Y_t|, h, w)`` in [0, 1], and bool ``(B, 1)``, whether the photograph's labels are of exactly its
            tagged new classes, so that it counts.
        """
        options, n_old = self.options, self.n_old
        tagged = tags[:, :, None, None]
        rivals = masks.masked_fill(~torch.cat([tags.new_ones(len(tags), n_old), tags], dim=1)[:, :, None, None], -1.0)
        if options.hard_classes == "new":
            rivals[:, BACKGROUND + 1 : n_old] = -1.0
        hard = rivals == rivals.amax(dim=1, keepdim=True)
        soft = masks[:, n_old:] * tagged if options.untagged_absent else masks[:, n_old:]
        new = options.alpha * hard[:, n_old:] + (1 - options.alpha) * soft
        background = options.alpha * hard[:, BACKGROUND] + (1 - options.alpha) * masks[:, BACKGROUND]
        target = torch.cat([old, new], dim=1)
        target[:, BACKGROUND] = target[:, BACKGROUND].minimum(background)
        if options.gate == "soft":
            return target, tags.new_ones(len(tags), 1)
        found = (hard[:, n_old:] & valid).any(dim=(2, 3))
        return target, (found == tags).all(dim=1, keepdim=True)
