"""PLOP: learning without forgetting for continual semantic segmentation (Douillard et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fmwiss.config import PLOPConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import LocalPODLoss, PixelCrossEntropyLoss
from fmwiss.losses.local_pod import merge_new
from fmwiss.losses.pixel_cross_entropy import IGNORED
from fmwiss.methods.guidance import BACKGROUND
from fmwiss.methods.pixel import DistillingMethod, Surveying, resized
from fmwiss.models import Segmenter

BINS = 1000
"""Of the histograms by which medians are found: memory does not grow with the photographs."""

PUBLISHED = 0.005
"""Half a bin of the published code's histograms: its thresholds are not below (docs/methods/plop.md has the unit)."""


class PLOP(DistillingMethod, Surveying):
    """Distillation of pooled features at every stage, and pseudo labels of the old classes where the old model is sure.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    thresholds: Tensor
    """Of the old labels, ``(|Y_{t-1}|,)``: the old model's entropy must be below, as a share of the largest."""

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: PLOPConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = PixelCrossEntropyLoss()
        n_seen = len(student.class_names)
        self.pod = LocalPODLoss(options.pod_windows, options.pod_normalisation)
        # logits have a scale of their own, that of the softmax
        by_length = options.pod_normalisation == "length"
        self.pod_logits = LocalPODLoss(options.pod_windows, "length" if by_length else "none")
        lowest = options.lowest_threshold
        self.lowest_threshold = published_threshold(self.n_old, n_seen) if lowest is None else lowest
        self.schedule = math.sqrt(n_seen / (n_seen - self.n_old))
        """Old classes weigh more the more of them there are: the root of all labels over new ones."""
        self.register_buffer("thresholds", torch.zeros(self.n_old))

    @torch.no_grad()
    def survey(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The medians of the old model's entropy over the background pixels that it gives to each old label."""
        histograms = torch.zeros(self.n_old * BINS, dtype=torch.long, device=self.thresholds.device)
        for batch in batches:
            labels, _ = self.labels(batch)
            entropy, predicted = sureness(resized(self.old_model(batch.image), labels))
            background = labels == BACKGROUND
            bins = (entropy[background] * BINS).long().clamp(0, BINS - 1)
            histograms += (predicted[background] * BINS + bins).bincount(minlength=len(histograms))
        medians = histogram_medians(histograms.view(self.n_old, BINS))
        return {"thresholds": medians.clamp(min=self.lowest_threshold)}

    def use_survey(self, found: Mapping[str, Tensor]) -> None:
        self.thresholds.copy_(found["thresholds"])

    def pseudo_labels(self, labels: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """The step's labels, in whose background the old model has put its own where it is sure.

        Args:
            labels: ``(B, H, W)``, 0 background.
            old: the old model's logits, ``(B, |Y_{t-1}|, H, W)``.

        Returns:
            labels ``(B, H, W)``, ``IGNORED`` where the old model is not sure, and the share of each photograph's
            background that is kept ``(B,)``; 1 where it has no background.
        """
        entropy, predicted = sureness(old)
        background = labels == BACKGROUND
        kept = background & (entropy < self.thresholds[predicted])
        counts, all_of_it = kept.sum(dim=(1, 2)), background.sum(dim=(1, 2))
        share = torch.where(all_of_it > 0, counts / all_of_it.clamp(min=1), 1.0)
        return torch.where(background, predicted.where(kept, IGNORED), labels), share

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        labels, _ = self.labels(batch)
        with torch.no_grad():
            old_stages = self.old_model.encode_stages(batch.image)
            old_logits, old_decoded = self.old_model.decode(old_stages[-1])
            pseudo, share = self.pseudo_labels(labels, resized(old_logits, labels))
        stages = self.student.encode_stages(batch.image)
        logits, decoded = self.student.decode(stages[-1])
        if self.options.pod_decoder:
            stages, old_stages = [*stages, decoded], [*old_stages, old_decoded]

        # the mean over the pixels that have a label, pseudo labels that were not kept among them
        counted = (labels != IGNORED).sum().clamp(min=1)
        kept = (pseudo != IGNORED).sum()
        mean_of_kept = self.cross_entropy(resized(logits, labels), pseudo, share[:, None, None])
        layers = len(stages) + 1
        pod = torch.stack([self.pod(new, old) for new, old in zip(stages, old_stages, strict=True)]).sum()
        pod_logits = self.pod_logits(merge_new(logits, self.n_old), old_logits)
        return {
            "pseudo_ce": mean_of_kept * (kept / counted),
            "pod": self.options.pod * self.schedule / layers * pod,
            "pod_logits": self.options.pod_logits * self.schedule / layers * pod_logits,
        }


def published_threshold(n_old: int, n_seen: int) -> float:
    """What the published code's lowest threshold comes to as a share of the largest entropy, at most 1.

    Args:
        n_old: labels of the old model, the background among them.
        n_seen: labels of the student, the background among them.
    """
    return min(1.0, PUBLISHED * n_old * math.log(n_seen))


def sureness(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy of the softmax of ``(B, C, H, W)`` logits as a share of the largest, log C, and the likeliest label.

    Both ``(B, H, W)``, the first in [0, 1].
    """
    log_p = logits.log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1) / math.log(logits.shape[1])
    return entropy, logits.argmax(dim=1)


def histogram_medians(histograms: Tensor) -> Tensor:
    """The medians of values in [0, 1] by their ``(n, bins)`` histograms, linear within a bin; 0 where all are empty."""
    bins = histograms.shape[1]
    totals = histograms.cumsum(dim=1)
    half = totals[:, -1:] / 2
    place = (totals < half).sum(dim=1, keepdim=True).clamp(max=bins - 1)
    inside = histograms.gather(1, place)
    before = totals.gather(1, place) - inside
    medians = (place + (half - before) / inside.clamp(min=1)) / bins
    return torch.where(totals[:, -1] > 0, medians[:, 0], 0.0).float()
