"""SEAM (Wang et al., CVPR 2020): class activation maps that scaling leaves alone, refined by pixel correlation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import ActivationMapConfig, OfflineConfig
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

    def compare(self, maps: Tensor) -> tuple[Tensor, Tensor | float]:
        """As published: refined maps, which are means over many places, are scaled by their smallest value, too."""
        assert isinstance(self.options, ActivationMapConfig)
        return normalised(maps[None])[0], self.options.background_score

    def views(self, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Class activation maps, and what the pixel correlation module makes of them.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1].
            valid: ``(B, S, S)`` bool, the pixels of square crops that are no padding; None: all.

        Returns:
            Maps ``(B, |C_t|, h, w)``, refined maps with the background first, ``(B, 1 + |C_t|, h, w)``, and ``(B, 1, h,
            w)`` bool, where they count.
        """
        low, middle, last = self.student.encode_stages(images)[-3:]
        scores = self.classifier(self.dropout(last))
        if valid is None:
            inside = torch.ones_like(scores[:, :1], dtype=torch.bool)
        else:
            inside = thin(valid, valid.shape[-1] / scores.shape[-1])[:, None]
        with torch.no_grad():
            positive = scores.float().relu() * inside
            largest = positive.amax(dim=(2, 3), keepdim=True) + SMALLEST
            own = only_largest(with_background((positive - SMALLEST).relu() / largest))
        size = scores.shape[-2:]
        parts = [images, self.low(low.detach()).relu(), self.middle(middle.detach()).relu()]
        resized = [F.interpolate(part, size=size, mode="bilinear", align_corners=False) for part in parts]
        return scores, correlate(own, self.embedding(torch.cat(resized, dim=1)), inside), inside

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.tags is not None
        tags = batch.tags
        small = F.interpolate(batch.image, scale_factor=SMALL_VIEW, mode="bilinear", align_corners=False)
        grid = small.shape[-2:]
        tagged = tags[:, :, None, None].to(batch.image.dtype)
        labelled = torch.cat([torch.ones_like(tagged[:, :1]), tagged], dim=1)
        inside = F.interpolate(batch.valid[:, None].to(batch.image.dtype), size=grid, mode="nearest") > 0

        own, refined, pooled, dark = [], [], [], []
        for images in (batch.image, small):
            scores, better, valid = self.views(images, batch.valid)
            pooled.append(self.tag_loss(masked_mean(scores.float(), valid), tags))
            maps, better = (
                F.interpolate(part.float(), size=grid, mode="bilinear", align_corners=False)
                for part in (scores, better)
            )
            dark.append(dark_loss(better[:, 1:] * tagged, inside))
            own.append(normalised(maps, inside) * tagged)
            refined.append(normalised(better, inside) * labelled)
        complete = [with_background(maps) for maps in own]
        return {
            "tags": (pooled[0] + pooled[1]) / 2,
            "dark": (dark[0] + dark[1]) / 2,
            "er": equivariance_loss(own[0], own[1], inside),
            "ecr": cross_refinement_loss(refined[0], complete[1], inside)
            + cross_refinement_loss(refined[1], complete[0], inside),
        }


class SEAM(Offline):
    """Hard masks from SEAM's refined maps, learnt by the student with WILSON's segmentation loss."""

    locator_class = SEAMLocator


def correlate(maps: Tensor, embedding: Tensor, inside: Tensor) -> Tensor:
    """The pixel correlation module: every place takes the maps of the places that it is like.

    Likeness is the positive part of the embeddings' cosine, divided by its sum over the places taken from.

    Args:
        maps: ``(B, C, h, w)``.
        embedding: ``(B, D, h, w)``.
        inside: ``(B, 1, h, w)`` bool, the places that may be taken from.
    """
    unit = F.normalize(embedding.float().flatten(2), dim=1)
    likeness = (unit.transpose(1, 2) @ unit).relu() * inside.flatten(2).transpose(1, 2)
    likeness = likeness / (likeness.sum(dim=1, keepdim=True) + SMALLEST)
    return (maps.flatten(2) @ likeness).view_as(maps)
