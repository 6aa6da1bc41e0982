"""EPS (Lee et al., CVPR 2021): class activation maps that have to explain a saliency map, as a locator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmwiss.config import Config, EPSConfig
from fmwiss.data.batches import Batch
from fmwiss.data.saliency import check_saliency_folder
from fmwiss.losses import SaliencyLoss
from fmwiss.methods.guidance import thin
from fmwiss.methods.offline import Locator, Offline, masked_mean, pointwise
from fmwiss.models import Segmenter


class EPSLocator(Locator):
    """A linear classifier on the encoder's features for the background and every new class.

    The classes' mean scores are compared with the tags, and the softmax of all with the saliency map.
    """

    learns_from_saliency = True
    options: EPSConfig

    def __init__(self, segmenter: Segmenter, n_new: int, options: EPSConfig) -> None:
        super().__init__(segmenter, n_new, options)
        self.classifier = pointwise(segmenter.encoder_channels, 1 + n_new)
        self.agreement = SaliencyLoss(options.tau, options.lam)

    def extra_heads(self) -> list[nn.Module]:
        return [self.classifier]

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.tags is None or batch.saliency is None:
            raise ValueError("EPS learns from tags and saliency maps, and the batch has none")
        scores = self.classifier(self.student.encode(batch.image))
        stride = batch.image.shape[-1] / scores.shape[-1]
        valid = thin(batch.valid, stride)[:, None]
        saliency = thin(batch.saliency, stride).to(torch.float32) / 255
        return {
            "tags": self.tag_loss(masked_mean(scores[:, 1:].float(), valid), batch.tags),
            "saliency": self.agreement(scores, saliency, batch.tags, valid),
        }

    def maps(self, images: Tensor) -> Tensor:
        return self.classifier(self.student.encode(images)).float().softmax(dim=1)[:, 1:]


class EPS(Offline):
    """Hard masks from maps that agree with a saliency map, learnt by the student with WILSON's segmentation loss."""

    locator_class = EPSLocator

    @classmethod
    def check(cls, options: EPSConfig, config: Config) -> None:
        super().check(options, config)
        if options.saliency is not None:
            check_saliency_folder(options.saliency)
