"""The plug-in teacher (paper, section 3.3)."""

from __future__ import annotations

from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from torch import Tensor, nn


class Teacher(nn.Module):
    """ASPP on the student's encoder features and a classifier over all seen classes; dropped after training.

    It has no dropout: what it says is the target of the student in the same iteration.

    Args:
        in_channels: channels of the encoder's features.
        n_labels: labels seen so far, the background included (|Y_t|).
        channels: channels of the features that the contrastive loss compares.
        atrous_rates: dilations of the ASPP.
    """

    def __init__(self, in_channels: int, n_labels: int, channels: int, atrous_rates: tuple[int, ...]) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, channels, atrous_rates, separable=False, dropout=0.0)
        self.classifier = nn.Conv2d(channels, n_labels, kernel_size=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, E, h, w)`` encoder features to logits ``(B, n_labels, h, w)`` and features ``(B, channels, h, w)``."""
        attended = self.aspp(features)
        return self.classifier(attended), attended
