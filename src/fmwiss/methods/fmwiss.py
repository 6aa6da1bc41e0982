"""FMWISS (Yu et al., CVPR 2023), section 3.3 to 3.5: teacher, copy-paste targets, overall objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmwiss.config import Config, FMWISSConfig
from fmwiss.data.batches import Batch
from fmwiss.data.randomness import keyed_generator
from fmwiss.losses import DenseContrastiveLoss, PixelBCELoss, lowest_lots, sample_points
from fmwiss.losses.dense_contrastive import NEGATIVE_ONLY, NOT_DRAWN
from fmwiss.methods.base import Method
from fmwiss.methods.guidance import BACKGROUND, Guidance, check_stride, resize_logits
from fmwiss.models import Segmenter, Teacher
from fmwiss.models.classifier import start_rare
from fmwiss.processes import Processes


class FMWISS(Method):
    """Learn new classes from pseudo masks, without forgetting, as the paper describes it.

    The teacher learns the new classes from the pseudo masks M_refine (eq. 6, 7) and the old ones from the old model
    and the pasted instances (eq. 8, 9); the student learns from teacher and old model (eq. 10, 11); eq. 12 sums up.
    During the first ``warmup_epochs`` only the teacher learns.

    Args:
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; frozen here.
        options: constants and readings.
        freeze_batch_norm: keep the student's batch norm statistics.
    """

    supervision = "image"
    pastes_instances = True
    takes_negatives = True
    frozen = ("old_model",)

    @classmethod
    def learns_from_pseudo_masks(cls, options: Any) -> bool:
        return True

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        check_stride(options.loss_stride, config.data.crop_size)

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: FMWISSConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, freeze_batch_norm)
        self.options = options
        self.warmup_epochs = options.warmup_epochs
        self.old_model = old_model.requires_grad_(False)
        self.n_old = len(old_model.class_names)
        self.n_new = len(student.class_names) - self.n_old
        architecture = student.architecture
        self.teacher = Teacher(
            student.encoder_channels,
            len(student.class_names),
            architecture.decoder_channels,
            architecture.atrous_rates,
        ).to(memory_format=torch.channels_last)
        self.bce = PixelBCELoss()
        self.dcl = DenseContrastiveLoss(options.tau)

    def start_rare(self, prior: float) -> None:
        start_rare(self.teacher.classifier, prior, first=1)

    @property
    def warming_up(self) -> bool:
        """Whether this epoch trains the teacher alone."""
        return self.epoch < self.warmup_epochs

    def extra_heads(self) -> list[nn.Module]:
        return [self.teacher]

    def train(self, mode: bool = True) -> FMWISS:
        super().train(mode)
        if mode and self.warming_up:
            self.student.eval()
        return self

    @torch.inference_mode()
    def probability_maps(self, images: Tensor) -> Tensor:
        return self.teacher(self.student.encode(images))[0].sigmoid()

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        truth = Guidance.of(batch, self.options.loss_stride)
        size = (truth.valid.shape[-2], truth.valid.shape[-1])
        if self.warming_up:
            # the student's encoder has not moved yet: its features are the old model's
            with torch.inference_mode():
                frozen = self.old_model.encode_stages(batch.image)
                old_logits = self.old_model.decode_stages(frozen)[0]
            features = self.old_model.features_beside(frozen).clone()
        else:
            with torch.inference_mode():
                old_logits = self.old_model(batch.image)
            stages = self.student.encode_stages(batch.image)
            features = self.student.features_beside(stages)
        old = resize_logits(old_logits, size).sigmoid()
        teacher_logits, teacher_features = self.teacher(
            features if self.options.encoder_gradient else features.detach()
        )
        logits = resize_logits(teacher_logits, size)
        losses = self.teacher_losses(truth, logits, old)
        if self.options.lambda_dcl > 0:
            contrastive = Guidance.of(batch, batch.image.shape[-1] / teacher_features.shape[-1])
            if self.options.gather_points:
                dcl = self.gathered_contrastive_loss(contrastive, teacher_features, batch.ids)
            else:
                dcl = self.contrastive_loss(contrastive, teacher_features, generator)
            losses["new_dcl"] = self.options.lambda_dcl * dcl
        if not self.warming_up:
            student_logits = resize_logits(self.student.decode_stages(stages)[0], size)
            target = self.student_target(truth, logits.detach(), old)
            losses["all_bce"] = self.bce(student_logits, target, self._counted_of_all(truth))
        return losses

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        truth = Guidance.of(batch, self.options.loss_stride)
        pixels = truth.valid.sum()
        counts = {
            "new_bce": self._counted(truth).sum(), "old_bce": pixels, "all_bce": self._counted_of_all(truth).sum()
        }
        if self.options.gather_points:  # every process has the whole loss
            counts["new_dcl"] = torch.ones_like(pixels)
        return counts

    def _counted(self, truth: Guidance) -> Tensor:
        """Where new classes count, ``(B, 1 or |C_t|, H, W)``."""
        if self.options.untagged_absent:
            return truth.valid
        return truth.valid & (truth.tags | (truth.pasted > 0))

    def _counted_of_all(self, truth: Guidance) -> Tensor:
        """Where the student's labels count, ``(B, 1 or |Y_t|, H, W)``: without a tag nothing is learnt of new ones."""
        if self.options.untagged_absent:
            return truth.valid
        new = self._counted(truth) if self.options.pasted_student == "override" else truth.valid & truth.tags
        return torch.cat([truth.valid.expand(-1, self.n_old, -1, -1), new], dim=1)

    def teacher_losses(self, truth: Guidance, logits: Tensor, old: Tensor) -> dict[str, Tensor]:
        """L_new_BCE (eq. 6) and L_old_BCE (eq. 8).

        Args:
            truth: what supervises, at the losses' resolution.
            logits: the teacher's, ``(B, |Y_t|, H, W)``.
            old: the old model's sigmoid outputs, ``(B, |Y_{t-1}|, H, W)``.
        """
        return {
            "new_bce": self.bce(logits[:, self.n_old :], truth.pseudo, self._counted(truth)),
            "old_bce": self.bce(logits[:, : self.n_old], self.old_target(truth, old), truth.valid),
        }

    def contrastive_loss(self, truth: Guidance, features: Tensor, generator: torch.Generator) -> Tensor:
        """L_new_DCL (eq. 7) on pixels of exactly one pseudo class, ``points_per_class`` of each.

        Where the mini-batch holds a single new class, places without a new class stand in as its negatives.

        Args:
            truth: what supervises, at the features' resolution.
            features: the teacher's, ``(B, D, h, w)``.
            generator: source of the draws.
        """
        labels = _point_labels(truth)
        if (torch.unique(labels) >= 0).sum() != 1:
            labels = labels.masked_fill(labels == NEGATIVE_ONLY, NOT_DRAWN)
        flat = labels.flatten()
        places = sample_points(flat, self.options.points_per_class, generator)
        points = features.permute(0, 2, 3, 1).flatten(0, 2)[places]
        return self.dcl(points, flat[places])

    def gathered_contrastive_loss(self, truth: Guidance, features: Tensor, ids: Sequence[str]) -> Tensor:
        """:meth:`contrastive_loss` of all processes' mini-batches together, which every process computes alike.

        Every place draws a lot, keyed by seed, photograph and epoch; the ``points_per_class`` lowest of each class are
        its points, however the photographs are spread over processes.

        Args:
            truth: what supervises, at the features' resolution.
            features: the teacher's, ``(B, D, h, w)``.
            ids: of the B photographs.
        """
        flat = _point_labels(truth).flatten()
        lots = torch.cat(
            [
                torch.rand(
                    math.prod(features.shape[-2:]),
                    generator=keyed_generator(self.seed, "contrastive points", image_id, self.epoch),
                    dtype=torch.float64,
                )
                for image_id in ids
            ]
        ).to(flat.device)
        drawn = lowest_lots(flat, lots, self.n_new, self.options.points_per_class)
        places = drawn.places.clamp(min=0)
        processes = Processes.of_this_job()
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        points = processes.stack(features.permute(0, 2, 3, 1).flatten(0, 2)[places.flatten()])
        # by class the points of all processes side by side
        gathered = processes.stack(drawn.lots).transpose(0, 1).flatten(1)
        points = points.unflatten(1, places.shape).transpose(0, 1).flatten(1, 2)
        order = gathered.argsort(dim=1)[:, : self.options.points_per_class]
        kept = gathered.gather(1, order).isfinite()
        if kept[:-1].any(dim=1).sum() != 1:
            kept[-1] = False
        rows = torch.arange(self.n_new + 1, device=flat.device)
        labels = torch.where(rows < self.n_new, rows, NEGATIVE_ONLY)[:, None].expand_as(order)
        return self.dcl(points[rows[:, None], order][kept], labels[kept])

    def old_target(self, truth: Guidance, old: Tensor) -> Tensor:
        """g(f_{t-1}(x)) of eq. 8 with eq. 9's values on pasted pixels, ``(B, |Y_{t-1}|, H, W)``."""
        target = old.clone()
        if not self.student.has_background:
            # what is new was one of the old classes to the old model
            target.masked_fill_((truth.pseudo.amax(dim=1) > 0)[:, None], 0.0)
        elif self.options.teacher_background == "complement":
            target[:, BACKGROUND].masked_fill_(truth.pseudo.amax(dim=1) > 0, 0.0)
        if self.options.pasted_others == "zero":
            target.masked_fill_(truth.pasted > 0, 0.0)
        return _set_pasted(target, truth.pasted)

    def student_target(self, truth: Guidance, logits: Tensor, old: Tensor) -> Tensor:
        """q of eq. 10 under the configured readings, ``(B, |Y_t|, H, W)`` in [0, 1].

        Shapes as in :meth:`teacher_losses`.
        """
        options, n_old = self.options, self.n_old
        teacher = logits.sigmoid().to(old.dtype)
        scores = logits
        if options.hard_classes == "tagged":
            scores = torch.cat([logits[:, :n_old], logits[:, n_old:].masked_fill(~truth.tags, -torch.inf)], dim=1)
        labels = torch.arange(n_old, logits.shape[1], device=logits.device)[:, None, None]
        hard = scores.argmax(dim=1, keepdim=True) == labels
        new = options.alpha * hard + (1 - options.alpha) * teacher[:, n_old:]
        if options.untagged_absent:
            new = new * truth.tags
        target = torch.cat([teacher[:, :n_old].lerp(old, options.beta), new], dim=1)
        if not self.student.has_background:
            claimed = teacher[:, n_old:] * truth.tags if options.untagged_absent else teacher[:, n_old:]
            target[:, :n_old] = target[:, :n_old].minimum(1 - claimed.amax(dim=1, keepdim=True))
            target[:, BACKGROUND] = 0.0
        elif options.student_background == "minimum":
            target[:, BACKGROUND] = teacher[:, BACKGROUND].minimum(old[:, BACKGROUND])
        elif options.student_background == "lowered":
            claimed = new if options.untagged_absent else torch.where(truth.tags, new, teacher[:, n_old:])
            target[:, BACKGROUND] = target[:, BACKGROUND].minimum(1 - claimed.amax(dim=1))
        if options.pasted_student == "override":
            target = _set_pasted(target.masked_fill_(truth.pasted > 0, 0.0), truth.pasted)
        return target


def _point_labels(truth: Guidance) -> Tensor:
    """What eq. 7 may compare: the class where there is exactly one, ``NEGATIVE_ONLY`` where none is, ``(B, 1, H, W)``.

    Other places are ``NOT_DRAWN``.
    """
    classes_per_place = truth.pseudo.sum(dim=1, keepdim=True)
    labels = truth.pseudo.argmax(dim=1, keepdim=True)
    labels = labels.masked_fill(classes_per_place == 0, NEGATIVE_ONLY)
    return labels.masked_fill((classes_per_place > 1) | ~truth.valid, NOT_DRAWN)


def _set_pasted(target: Tensor, pasted: Tensor) -> Tensor:
    """``target`` ``(B, C, H, W)``, changed in place: 1 at the pasted instance's own label."""
    kept = target.gather(1, pasted)
    return target.scatter_(1, pasted, kept.masked_fill_(pasted > 0, 1.0))
