"""The localizer of WILSON (Cermelli et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01


class Localizer(nn.Module):
    """Three convolutions from the encoder's features to a score for every label; dropped after training.

    Args:
        in_channels: channels of the encoder's features.
        n_labels: labels seen so far, the background included (|Y_t|).
        channels: of the two hidden layers.
    """

    def __init__(self, in_channels: int, n_labels: int, channels: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.Conv2d(channels, n_labels, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(B, E, h, w)`` features to scores ``(B, n_labels, h, w)``, to go through a softmax."""
        return self.head(self.reduce(features))

    def scores_and_targets(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores to learn from, and those with the batch norm's running statistics, without gradient, to teach with.

        The first convolution, which costs most, is computed once for both.
        """
        reduced = self.reduce(features)
        training = self.head.training
        with torch.no_grad():
            steady = self.head.eval()(reduced)
        return self.head.train(training)(reduced), steady
