"""SDR: repulsion-attraction of sparse and disentangled representations (Michieli and Zanuttigh, CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fmwiss.config import SDRConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import (
    AttractionLoss,
    PrototypeMatchingLoss,
    RepulsionLoss,
    SparsityLoss,
    UnbiasedCrossEntropyLoss,
    UnbiasedDistillationLoss,
)
from fmwiss.losses.pixel_cross_entropy import IGNORED
from fmwiss.losses.prototypes import NO_CLASS, class_sums
from fmwiss.methods.guidance import BACKGROUND
from fmwiss.methods.pixel import Carrying, DistillingMethod, at_features, resized
from fmwiss.models import Segmenter
from fmwiss.processes import Processes


class SDR(DistillingMethod, Carrying):
    """MiB's two losses, and four on the encoder's features: where classes' features lie, and how sparse they are.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    prototypes: Tensor
    """Running means of the features at the places of every label, ``(|Y_t|, D)``; the background has none."""
    counts: Tensor
    """Of how many places they are the means, ``(|Y_t|,)``."""

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: SDRConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        self.cross_entropy = UnbiasedCrossEntropyLoss(self.n_old)
        self.distillation = UnbiasedDistillationLoss()
        self.matching = PrototypeMatchingLoss()
        self.attraction = AttractionLoss()
        self.repulsion = RepulsionLoss()
        self.sparsity = SparsityLoss()
        n = len(student.class_names)
        self.register_buffer("prototypes", torch.zeros(n, student.encoder_channels))
        self.register_buffer("counts", torch.zeros(n, dtype=torch.float64))

    @classmethod
    @torch.no_grad()
    def carried_from_base(cls, model: Segmenter, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The means over all places of step 0's photographs, of its finished model's features."""
        n = len(model.class_names)
        total = torch.zeros(n, model.encoder_channels, dtype=torch.float64, device=model.mean.device)
        counts = torch.zeros(n, dtype=torch.float64, device=model.mean.device)
        for batch in batches:
            assert batch.mask is not None
            features = model.encode(batch.image)
            sums, there = class_sums(features, foreground(at_features(batch.mask, features)), n)
            total += sums
            counts += there
        return {"prototypes": (total / counts.clamp(min=1)[:, None]).float(), "counts": counts}

    def carried(self) -> dict[str, Tensor]:
        return {"prototypes": self.prototypes, "counts": self.counts}

    def use_carried(self, steps: Sequence[Mapping[str, Tensor]], more_follow: bool) -> None:
        self.prototypes[: self.n_old] = steps[-1]["prototypes"]
        self.counts[: self.n_old] = steps[-1]["counts"]

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        options = self.options
        labels, valid = self.labels(batch)
        with torch.no_grad():
            old_logits = self.old_model(batch.image)
            old = resized(old_logits, labels)
        features = self.student.encode(batch.image)
        logits = resized(self.student.decode(features)[0], labels)

        assert batch.mask is not None
        mask = at_features(batch.mask.masked_fill(~batch.valid, IGNORED), features)
        new_classes = foreground(mask)
        with torch.no_grad():
            self._update(features.detach(), new_classes)
            predicted = at_features(old_logits.argmax(dim=1), features)
            old_classes = foreground(predicted).masked_fill(mask != BACKGROUND, NO_CLASS)
        known = self.counts > 0
        every_class = torch.where(mask == BACKGROUND, old_classes, new_classes)
        return {
            "unbiased_ce": self.cross_entropy(logits, labels),
            "unbiased_distillation": options.distillation * self.distillation(logits, old, valid),
            "prototype_matching": options.prototype_matching
            * self.matching(features, old_classes, self.prototypes, known),
            "attraction": options.attraction * self.attraction(features, new_classes, self.prototypes, known),
            "repulsion": options.repulsion * self.repulsion(features, every_class, len(self.prototypes)),
            "sparsity": options.sparsity * self.sparsity(features, mask),
        }

    def _update(self, features: Tensor, labels: Tensor) -> None:
        """Let the prototypes be the means over the places seen so far and these ones, of all processes."""
        sums, there = class_sums(features, labels, len(self.prototypes))
        processes = Processes.of_this_job()
        sums, counts = processes.add_up(sums), processes.add_up(there.to(self.counts.dtype))
        total = self.counts + counts
        weighted = self.prototypes * self.counts[:, None] + sums
        self.prototypes.copy_(torch.where(total[:, None] > 0, weighted / total.clamp(min=1)[:, None], self.prototypes))
        self.counts.copy_(total)


def foreground(labels: Tensor) -> Tensor:
    """Labels without the background, which is no class: it may hold any."""
    return labels.masked_fill(labels == BACKGROUND, NO_CLASS)
