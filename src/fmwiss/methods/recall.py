"""RECALL: replay-based continual learning from photographs of the web (Maracani et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import Config, RECALLConfig
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.losses import PixelCrossEntropyLoss
from fmwiss.losses.pixel_cross_entropy import IGNORED
from fmwiss.methods.guidance import BACKGROUND
from fmwiss.methods.pixel import Carrying, DistillingMethod, resized
from fmwiss.models import HelperDecoder, Segmenter

LABEL_STRIDE = 2
"""Pixels of a replayed photograph, at its working size, per place of its labels in each direction."""


class RECALL(DistillingMethod, Carrying):
    """Cross-entropy on the step's photographs and on replayed ones, with the old model's labels where there are none.

    The step's background is labelled by the old model ("background inpainting"), replayed photographs of a class by
    the helper of the step that learnt it: that step's decoder and classifier, of its classes alone. The encoder stays
    that of step 0.

    Arguments as of :class:`~fmwiss.methods.pixel.DistillingMethod`.
    """

    replays = True

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        super().check(options, config)
        steps = config.protocol.steps
        if options.encoder == "trained" and not isinstance(steps, str) and len(steps) > 2:
            raise UserError(
                "method.encoder = trained would leave the helpers of earlier steps without the encoder that they were "
                "learnt for; set it to frozen, or give a protocol of two steps."
            )
        if options.replay is None:
            raise UserError(
                "method recall needs photographs of the old classes that are not their training data; give --replay "
                "DIR, or method.replay, a folder with one folder for each class."
            )

    def __init__(
        self, student: Segmenter, old_model: Segmenter, options: RECALLConfig, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(student, old_model, options, freeze_batch_norm)
        self.options = options
        student.encoder.requires_grad_(options.encoder == "trained")
        self.helper: HelperDecoder | None = None
        """Learns the step's own classes; None where no later step will replay them."""
        self.cross_entropy = PixelCrossEntropyLoss()
        self._helpers: list[HelperDecoder] = []

    def train(self, mode: bool = True) -> RECALL:
        super().train(mode)
        if self.options.encoder == "frozen":
            self.student.encoder.eval()
        return self

    def parameter_groups(self, learning_rate: float, head_rate: float) -> list[dict[str, object]]:
        groups = super().parameter_groups(learning_rate, head_rate)
        return groups if self.options.encoder == "trained" else groups[1:]

    def extra_heads(self) -> list[torch.nn.Module]:
        return [] if self.helper is None else [self.helper]

    @classmethod
    def carried_from_base(cls, model: Segmenter, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The helper of step 0's classes is the base model's own decoder."""
        return HelperDecoder.of_base(model).state_dict()

    def carried(self) -> dict[str, Tensor]:
        assert self.helper is not None
        return self.helper.state_dict()

    def use_carried(self, steps: Sequence[Mapping[str, Tensor]], more_follow: bool) -> None:
        if more_follow:
            self.helper = HelperDecoder(self.student, len(self.student.class_names) - self.n_old)
        self._helpers = []
        for classes, state in zip(self.old_model.architecture.steps, steps, strict=True):
            helper = HelperDecoder(self.old_model, len(classes))
            helper.load_state_dict(dict(state))
            self._helpers.append(helper.requires_grad_(False).eval())

    @torch.inference_mode()
    def replay_labels(self, image: Tensor, name: str) -> Tensor:
        """What the helper of the class's step says of a photograph that is replayed for it.

        Args:
            image: ``(1, 3, H, W)`` in [0, 1], at the working size.
            name: the class.

        Returns:
            uint8 ``(ceil(H / 2), ceil(W / 2))``, the model's labels.
        """
        steps = self.old_model.architecture.steps
        step = next(t for t, classes in enumerate(steps) if name in classes)
        before = sum(map(len, steps[:step]))
        logits = self._helpers[step].to(image.device)(self.old_model.encode(image))
        size = (-(-image.shape[-2] // LABEL_STRIDE), -(-image.shape[-1] // LABEL_STRIDE))
        label = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
        return torch.where(label == BACKGROUND, BACKGROUND, label + before).to(torch.uint8)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if batch.replayed is None:
            raise ValueError("RECALL learns from replayed photographs, too, and the batch has none")
        labels, _ = self.labels(batch)
        own = ~batch.replayed
        with torch.no_grad():
            old = resized(self.old_model(batch.image), labels).argmax(dim=1)
            inpainted = torch.where((labels == BACKGROUND) & own[:, None, None], old, labels)
        features = self.student.encode(batch.image)
        logits = resized(self.student.decode(features)[0], labels)

        losses = {"ce": self.cross_entropy(logits, inpainted)}
        if self.helper is not None:
            # of the step's own photographs and classes alone, and without a say in what the encoder learns
            classes = torch.where(labels == IGNORED, labels, (labels - self.n_old + 1).clamp(min=BACKGROUND))[own]
            losses["helper_ce"] = self.cross_entropy(resized(self.helper(features[own].detach()), classes), classes)
        return losses

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.replayed is not None
        labels, _ = self.labels(batch)
        return {"ce": (labels != IGNORED).sum(), "helper_ce": (labels[~batch.replayed] != IGNORED).sum()}
