"""What offline methods share: a locator learns from tags and makes hard masks once, then the student learns them.

So WILSON's paper compares with CAM, SEAM, SS and EPS: each makes pseudo masks of the step's photographs, and the
student learns them with WILSON's segmentation loss.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import ActivationMapConfig, Config, OfflineConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import PixelBCELoss
from fmwiss.methods.base import Method
from fmwiss.methods.guidance import BACKGROUND, check_stride, hard_target, known_classes, resize_logits, thin
from fmwiss.models import Segmenter

MASK_STRIDE = 4
"""Pixels of the photograph, at its working size, per place of a mask in each direction."""


class Locator(Method):
    """A network on the old model's encoder that learns from tags where the new classes are.

    Args:
        segmenter: a copy of the old model, of which the encoder is used.
        n_new: number of new classes, |C_t|.
        options: of the method that it belongs to.
    """

    supervision = "image"
    learns_from_saliency: ClassVar[bool] = False
    """Whether batches must have saliency maps."""
    maps_background: ClassVar[bool] = False
    """Whether :meth:`maps` has the background, too, first."""

    def __init__(self, segmenter: Segmenter, n_new: int, options: OfflineConfig) -> None:
        super().__init__(segmenter, options.locator.freeze_batch_norm)
        self.n_new = n_new
        self.options = options
        segmenter.requires_grad_(False)
        segmenter.encoder.requires_grad_(options.encoder == "trained")

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """How much each new class is where: ``(B, 3, H, W)`` images in [0, 1] to ``(B, n, h, w)``, not negative.

        n is |C_t|, or one more with the background first where :attr:`maps_background`.
        """

    def compare(self, maps: Tensor) -> tuple[Tensor, Tensor | float]:
        """Scores of the tagged classes ``(C, gh, gw)`` and of the background, ``(gh, gw)`` or a constant.

        Args:
            maps: mean over scales and mirror images, ``(C, gh, gw)``, behind the background's where there is one.
        """
        assert isinstance(self.options, ActivationMapConfig)
        return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-5), self.options.background_score

    def train(self, mode: bool = True) -> Locator:
        super().train(mode)
        if self.options.encoder == "frozen":
            self.student.eval()
        return self

    def parameter_groups(self, learning_rate: float, head_rate: float) -> list[dict[str, object]]:
        encoder = [p for p in self.student.encoder.parameters() if p.requires_grad]
        heads = [p for head in self.extra_heads() for p in head.parameters()]
        groups = [{"params": encoder, "lr": learning_rate}, {"params": heads, "lr": learning_rate * head_rate}]
        return [group for group in groups if group["params"]]

    def tag_loss(self, pooled: Tensor, tags: Tensor) -> Tensor:
        """Multi-label soft margin between pooled scores and tags, both ``(B, |C_t|)``."""
        weight = torch.ones_like(pooled) if self.options.untagged_absent else tags.to(pooled.dtype)
        total = F.binary_cross_entropy_with_logits(pooled, tags.to(pooled.dtype), weight, reduction="sum")
        return total / weight.sum().clamp(min=1)

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        if self.options.untagged_absent:
            return {}
        assert batch.tags is not None
        return dict.fromkeys(("tags", "image_label"), batch.tags.sum())

    @torch.inference_mode()
    def labels(self, image: Tensor, tagged: Sequence[int]) -> Tensor:
        """Hard pseudo mask of one photograph.

        The mean of its maps at every scale, and of its mirror images', decides by :meth:`compare`.

        Args:
            image: ``(1, 3, H, W)`` in [0, 1], at the working size.
            tagged: the new classes in it, from 0.

        Returns:
            uint8 ``(ceil(H / 4), ceil(W / 4))``, 0 for the background, else 1 + the class.
        """
        height, width = image.shape[-2:]
        grid = (-(-height // MASK_STRIDE), -(-width // MASK_STRIDE))
        first = int(self.maps_background)
        shown = [*range(first), *(first + label for label in tagged)]
        total = image.new_zeros((len(shown), *grid))
        for scale in self.options.scales:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            scaled = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
            views = torch.cat([scaled, scaled.flip(-1)]) if self.options.flip else scaled
            maps = self.maps(views)[:, shown].float()
            if self.options.flip:
                maps = torch.cat([maps[:1], maps[1:].flip(-1)])
            total += F.interpolate(maps, size=grid, mode="bilinear", align_corners=False).mean(dim=0)
        scores, background = self.compare(total / len(self.options.scales))
        best, place = scores.max(dim=0)
        labels = torch.tensor([label + 1 for label in tagged], dtype=torch.uint8, device=image.device)[place]
        return labels.masked_fill_(best <= background, BACKGROUND)


class Offline(Method):
    """The student learns hard masks of the new classes from the locator and the old classes from the old model.

    With ``h^c`` the masks, ``f_{t-1}`` the old model and ``g`` the logistic function, the target is ``h^c`` for new
    classes, ``g(f_{t-1}(x))^c`` for old ones, and the smaller of ``1 - max_c h^c`` and the old model's for the
    background: WILSON's with ``alpha`` = 1 and the masks in place of its localizer.

    Args:
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; frozen here.
        options: of the locator and of the student's loss.
        freeze_batch_norm: keep the student's batch norm statistics.
    """

    supervision = "image"
    frozen = ("old_model",)
    locator_class: ClassVar[type[Locator]]

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        check_stride(options.loss_stride, config.data.crop_size)

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: OfflineConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, freeze_batch_norm)
        self.options = options
        self.old_model = old_model.requires_grad_(False)
        self.n_old = len(old_model.class_names)
        self.bce = PixelBCELoss(options.segmentation_reduction)

    def locator(self) -> Locator:
        n_new = len(self.student.class_names) - self.n_old
        return self.locator_class(copy.deepcopy(self.old_model), n_new, self.options)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.pseudo is None or batch.tags is None:
            raise ValueError("this method learns from its locator's masks and tags, and the batch has none")
        valid, counted = self._counted(batch, batch.tags)
        pseudo = thin(batch.pseudo, self.options.loss_stride)
        size = (valid.shape[-2], valid.shape[-1])
        with torch.inference_mode():
            old_logits = self.old_model(batch.image)
        old = resize_logits(old_logits, size).float().sigmoid()
        logits = resize_logits(self.student(batch.image), size)
        return {"all_bce": self.bce(logits, hard_target(pseudo, old), counted)}

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.tags is not None
        return {"all_bce": self._counted(batch, batch.tags)[1].sum()}

    def _counted(self, batch: Batch, tags: Tensor) -> tuple[Tensor, Tensor]:
        """Which pixels are valid, ``(B, 1, H, W)``, and which count for which class, ``(B, 1 or |Y_t|, H, W)``."""
        valid = thin(batch.valid, self.options.loss_stride)[:, None]
        counted = valid if self.options.untagged_absent else valid & known_classes(tags, self.n_old)
        if self.options.student_gate == "exact":
            assert batch.pseudo is not None
            found = (thin(batch.pseudo, self.options.loss_stride) & valid).any(dim=(2, 3))
            counted = counted & (found == tags).all(dim=1)[:, None, None, None]
        return valid, counted


def masked_mean(maps: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``(B, C, h, w)`` maps over the places where ``(B, 1, h, w)`` is True, ``(B, C)``."""
    where = valid.to(maps.dtype)
    return (maps * where).sum(dim=(2, 3)) / where.sum(dim=(2, 3)).clamp(min=1)


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution without bias, Xavier's initialisation, as class activation maps have it."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return convolution
