"""Single-stage segmentation from image labels (Araslanov and Roth, CVPR 2020), as a locator."""

from __future__ import annotations

from typing import Any

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import Config, SSConfig
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.losses import BalancedCrossEntropyLoss, ImageLabelLoss, confident_labels
from fmwiss.methods.guidance import BACKGROUND, thin
from fmwiss.methods.offline import Locator, Offline
from fmwiss.models import Segmenter
from fmwiss.pamr import pixel_affinity, refine_masks

CHANNELS, SKIP_CHANNELS = 256, 48
BACKGROUND_SCORE = 1.0
"""The background's score at every place; it is not learnt."""

BACKGROUND_CUTOFF, CLASS_CUTOFF, LOWEST_CUTOFF = 0.7, 0.6, 0.2


class SSLocator(Locator):
    """A segmentation network that learns from tags, through pooled masks, and from its own refined masks.

    Deep features (ASPP) are brought to the resolution of shallow ones; global cue injection tells the shallow ones what
    the deep ones see; the stochastic gate mixes both.
    """

    maps_background = True
    options: SSConfig

    def __init__(self, segmenter: Segmenter, n_new: int, options: SSConfig) -> None:
        super().__init__(segmenter, n_new, options)
        shallow, _, deep = segmenter.encoder.feature_info.channels()[-3:]
        rates = segmenter.architecture.atrous_rates
        self.aspp = ASPP(deep, CHANNELS, rates, separable=False, dropout=0.0)
        self.skip = _layer(shallow, SKIP_CHANNELS, 1)
        self.merge = _layer(CHANNELS + SKIP_CHANNELS, CHANNELS, 3)
        self.inject = GlobalCueInjection(CHANNELS, shallow, CHANNELS)
        self.gate = StochasticGate(options.gate)
        self.head = nn.Sequential(
            _layer(CHANNELS, CHANNELS, 3),
            nn.Dropout(0.5),
            _layer(CHANNELS, CHANNELS, 3),
            nn.Dropout(0.1),
            nn.Conv2d(CHANNELS, n_new, kernel_size=1),
        )
        self.image_label = ImageLabelLoss()
        self.self_supervision = BalancedCrossEntropyLoss()

    def extra_heads(self) -> list[nn.Module]:
        return [self.aspp, self.skip, self.merge, self.inject, self.head]

    def scores(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images to scores ``(B, 1 + |C_t|, h, w)``, the background's constant one first."""
        shallow, _, last = self.student.encode_stages(images)[-3:]
        deep = F.interpolate(self.aspp(last), size=shallow.shape[-2:], mode="bilinear", align_corners=False)
        deep = self.merge(torch.cat([deep, self.skip(shallow)], dim=1))
        classes = self.head(self.gate(deep, self.inject(shallow, deep)))
        return torch.cat([torch.full_like(classes[:, :1], BACKGROUND_SCORE), classes], dim=1)

    def maps(self, images: Tensor) -> Tensor:
        return self.scores(images).float().softmax(dim=1)

    def compare(self, maps: Tensor) -> tuple[Tensor, Tensor | float]:
        return maps[1:], maps[BACKGROUND] ** self.options.background_power

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.tags is not None
        tags = batch.tags
        scores = self.scores(batch.image)
        valid = thin(batch.valid, batch.image.shape[-1] / scores.shape[-1])[:, None]
        counted = None if self.options.untagged_absent else tags
        losses = {"image_label": self.image_label(scores, tags, valid, counted)}
        if self.epoch < self.options.pretraining_epochs:
            return losses
        present = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)
        labels = self.pseudo_labels(scores.detach().float().softmax(dim=1) * present[:, :, None, None], batch)
        large = F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        losses["self_supervision"] = self.self_supervision(large, labels, present, batch.valid)
        return losses

    def pseudo_labels(self, masks: Tensor, batch: Batch) -> Tensor:
        """Confident labels at the crop's resolution, int64 ``(B, S, S)``, from masks refined by PAMR at their own."""
        options = self.options
        if options.pamr_iterations > 0:
            small = F.interpolate(batch.image.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
            affinity = pixel_affinity(small, options.pamr_dilations)
            masks = refine_masks(masks, affinity, options.pamr_dilations, options.pamr_iterations)
        masks = F.interpolate(masks, size=batch.image.shape[-2:], mode="bilinear", align_corners=False)
        cutoffs = masks.new_full(masks.shape[1:2], CLASS_CUTOFF)
        cutoffs[BACKGROUND] = BACKGROUND_CUTOFF
        return confident_labels(masks, batch.valid, cutoffs, LOWEST_CUTOFF)


class SS(Offline):
    """Hard masks from a single-stage network, learnt by the student with WILSON's segmentation loss."""

    locator_class = SSLocator

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        super().check(options, config)
        if options.pretraining_epochs >= options.locator.epochs:
            raise UserError(
                f"method.pretraining_epochs = {options.pretraining_epochs} leaves none of method.locator.epochs = "
                f"{options.locator.epochs} to the self-supervision; give fewer."
            )


class GlobalCueInjection(nn.Module):
    """Shallow features, normalised, take scale and shift of every channel from the largest deep features.

    Args:
        deep: channels of the deep features.
        shallow: channels of the shallow features.
        channels: of the result.
    """

    def __init__(self, deep: int, shallow: int, channels: int) -> None:
        super().__init__()
        self.attributes = _layer(deep, 2 * channels, 1)
        self.normalise = nn.Sequential(
            _convolution(shallow, channels, 1), nn.BatchNorm2d(channels, affine=False)
        )
        self.mix = _layer(channels, channels, 1)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """``(B, shallow, h, w)`` and ``(B, deep, h', w')`` features to ``(B, channels, h, w)``."""
        scale, shift = self.attributes(deep).amax(dim=(2, 3), keepdim=True).chunk(2, dim=1)
        return self.mix((self.normalise(shallow) * (scale + 1) + shift).relu())


class StochasticGate(nn.Module):
    """Mixes deep and shallow features: at random in training, so that their expected value is the deep ones.

    Args:
        rate: psi; every entry is the shallow one with this probability, and a corrected deep one otherwise.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Features of one shape to features of that shape."""
        if not self.training:
            return (1 - self.rate) * deep + self.rate * shallow
        corrected = (deep - self.rate * shallow) / max(1 - self.rate, 1e-8)
        return torch.where(torch.rand_like(deep) < self.rate, shallow, corrected)


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return convolution


def _layer(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    convolution = _convolution(in_channels, out_channels, kernel_size)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
