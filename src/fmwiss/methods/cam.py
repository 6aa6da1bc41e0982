"""Class activation maps (Zhou et al., CVPR 2016) as offline pseudo masks: the plainest of WILSON's comparisons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmwiss.config import OfflineConfig
from fmwiss.data.batches import Batch
from fmwiss.methods.guidance import thin
from fmwiss.methods.offline import Locator, Offline, masked_mean, pointwise
from fmwiss.models import Segmenter


class CAMLocator(Locator):
    """A linear classifier on the encoder's features, whose mean over the places is compared with the tags.

    The mean of the scores is the score of the mean feature, so that the classifier can be asked at every place.
    """

    def __init__(self, segmenter: Segmenter, n_new: int, options: OfflineConfig) -> None:
        super().__init__(segmenter, n_new, options)
        self.classifier = pointwise(segmenter.encoder_channels, n_new)

    def extra_heads(self) -> list[nn.Module]:
        return [self.classifier]

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.tags is not None
        scores = self.classifier(self.student.encode(batch.image))
        valid = thin(batch.valid, batch.image.shape[-1] / scores.shape[-1])[:, None]
        return {"tags": self.tag_loss(masked_mean(scores.float(), valid), batch.tags)}

    def maps(self, images: Tensor) -> Tensor:
        return self.classifier(self.student.encode(images)).relu()


class CAM(Offline):
    """Hard masks from class activation maps, learnt by the student with WILSON's segmentation loss."""

    locator_class = CAMLocator
