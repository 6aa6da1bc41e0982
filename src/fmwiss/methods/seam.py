"""SEAM (Wang et al., CVPR 2020): class activation maps that scaling leaves alone, refined by pixel correlation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import OfflineConfig
from fmwiss.data.batches import Batch
from fmwiss.losses.equivariance import (
    SMALLEST,
    cross_refinement_loss,
    dark_loss,
    equivariance_loss,
    normalised,
    only_largest,
    with_background,
)
from fmwiss.methods.guidance import thin
from fmwiss.methods.offline import Locator, Offline, masked_mean, pointwise
from fmwiss.models import Segmenter

SMALL_VIEW = 0.3
"""Size of the second view, as a share of the first one's."""

DROPOUT = 0.5
LOW_CHANNELS, MIDDLE_CHANNELS, EMBEDDING = 64, 128, 192
INITIAL_GAIN = 4.0


class SEAMLocator(Locator):
    """A shared network on two sizes of a photograph.

    Each view gives class activation maps and, through the pixel correlation module, refined ones. Losses: tags, the
    views' maps equal after scaling (L_ER), and each view's refined maps equal to the other's maps (L_ECR).
    """

    def __init__(self, segmenter: Segmenter, n_new: int, options: OfflineConfig) -> None:
        super().__init__(segmenter, n_new, options)
        low, middle, last = segmenter.encoder.feature_info.channels()[-3:]
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = pointwise(last, n_new)
        self.low = nn.Conv2d(low, LOW_CHANNELS, kernel_size=1, bias=False)
        self.middle = nn.Conv2d(middle, MIDDLE_CHANNELS, kernel_size=1, bias=False)
        self.embedding = nn.Conv2d(3 + LOW_CHANNELS + MIDDLE_CHANNELS, EMBEDDING, kernel_size=1, bias=False)
        nn.init.kaiming_normal_(self.low.weight)
        nn.init.kaiming_normal_(self.middle.weight)
        nn.init.xavier_uniform_(self.embedding.weight, gain=INITIAL_GAIN)

    def extra_heads(self) -> list[nn.Module]:
        return [self.classifier, self.low, self.middle, self.embedding]

    def maps(self, images: Tensor) -> Tensor:
        return self.views(images)[1][:, 1:]

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class activation maps ``(B, |C_t|, h, w)`` and refined maps, background first, ``(B, 1 + |C_t|, h, w)``."""
        low, middle, last = self.student.encode_stages(images)[-3:]
        scores = self.classifier(self.dropout(last))
        with torch.no_grad():
            positive = scores.float().relu()
            largest = positive.amax(dim=(2, 3), keepdim=True) + SMALLEST
            own = only_largest(with_background((positive - SMALLEST).relu() / largest))
        size = scores.shape[-2:]
        parts = [images, self.low(low.detach()).relu(), self.middle(middle.detach()).relu()]
        resized = [F.interpolate(part, size=size, mode="bilinear", align_corners=False) for part in parts]
        return scores, correlate(own, self.embedding(torch.cat(resized, dim=1)))

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.tags is not None
        tags = batch.tags
        small = F.interpolate(batch.image, scale_factor=SMALL_VIEW, mode="bilinear", align_corners=False)
        grid = small.shape[-2:]
        tagged = tags[:, :, None, None].to(batch.image.dtype)
        labelled = torch.cat([torch.ones_like(tagged[:, :1]), tagged], dim=1)
        inside = F.interpolate(batch.valid[:, None].to(batch.image.dtype), size=grid, mode="nearest")

        own, refined, pooled, dark = [], [], [], []
        for images in (batch.image, small):
            scores, better = self.views(images)
            valid = thin(batch.valid, batch.image.shape[-1] / scores.shape[-1])[:, None]
            pooled.append(self.tag_loss(masked_mean(scores.float(), valid), tags))
            maps, better = (
                F.interpolate(part.float(), size=grid, mode="bilinear", align_corners=False) * inside
                for part in (scores, better)
            )
            dark.append(dark_loss(better[:, 1:] * tagged))
            own.append(normalised(maps) * tagged)
            refined.append(normalised(better) * labelled)
        complete = [with_background(maps) for maps in own]
        return {
            "tags": (pooled[0] + pooled[1]) / 2,
            "dark": (dark[0] + dark[1]) / 2,
            "er": equivariance_loss(own[0], own[1]),
            "ecr": cross_refinement_loss(refined[0], complete[1]) + cross_refinement_loss(refined[1], complete[0]),
        }


class SEAM(Offline):
    """Hard masks from SEAM's refined maps, learnt by the student with WILSON's segmentation loss."""

    locator_class = SEAMLocator


def correlate(maps: Tensor, embedding: Tensor) -> Tensor:
    """The pixel correlation module: every place takes the maps of the places that it is like.

    Likeness is the positive part of the embeddings' cosine, divided by its sum over the places taken from.

    Args:
        maps: ``(B, C, h, w)``.
        embedding: ``(B, D, h, w)``.
    """
    unit = F.normalize(embedding.float().flatten(2), dim=1)
    likeness = (unit.transpose(1, 2) @ unit).relu()
    likeness = likeness / (likeness.sum(dim=1, keepdim=True) + SMALLEST)
    return (maps.flatten(2) @ likeness).view_as(maps)
