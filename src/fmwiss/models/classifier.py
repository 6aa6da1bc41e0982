"""A pixel classifier that grows by one 1x1 convolution per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class IncrementalClassifier(nn.Module):
    """One 1x1 convolution per learning step; their outputs stand side by side.

    Args:
        in_channels: channels of the features.
        outputs: number of outputs of every step; the first counts the background.
    """

    def __init__(self, in_channels: int, outputs: Sequence[int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.steps = nn.ModuleList(nn.Conv2d(in_channels, n, kernel_size=1) for n in outputs)

    @property
    def n_outputs(self) -> int:
        """Outputs over all steps, the background included."""
        return sum(step.out_channels for step in self._convolutions())

    def add_step(
        self, n_classes: int, init: Literal["background", "plain"], prior: float | None = None
    ) -> None:
        """Append a convolution for ``n_classes`` new classes.

        ``background`` follows MiB (Cermelli et al., CVPR 2020, section 3.3): the new rows take the background's
        weights, and the background's bias less ``log(n_classes + 1)`` is given to them and to the background itself,
        so that under a softmax the background's old probability is shared evenly. ``plain`` keeps the layer's own
        random initialisation, but for the biases where a ``prior`` is given (see :func:`start_rare`).
        """
        background = self._convolutions()[0]
        new = nn.Conv2d(self.in_channels, n_classes, kernel_size=1)
        if init == "background":
            assert background.bias is not None and new.bias is not None
            with torch.no_grad():
                share = background.bias[0] - torch.log(torch.tensor(float(n_classes + 1)))
                new.weight.copy_(background.weight[:1].expand_as(new.weight))
                new.bias.fill_(share)
                background.bias[0] = share
        elif prior is not None:
            start_rare(new, prior)
        self.steps.append(new.to(background.weight.device))

    def start_rare(self, prior: float) -> None:
        """:func:`start_rare` for the classes of step 0; the background keeps its bias."""
        start_rare(self._convolutions()[0], prior, first=1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` features to ``(B, n_outputs, h, w)`` logits."""
        return torch.cat([step(features) for step in self.steps], dim=1)

    def _convolutions(self) -> list[nn.Conv2d]:
        return [step for step in self.steps if isinstance(step, nn.Conv2d)]


def start_rare(layer: nn.Conv2d, prior: float, first: int = 0) -> None:
    """Let a layer say at first, everywhere, that its classes are rare (Lin et al., ICCV 2017, section 4.1).

    With a binary cross-entropy and Adam a bias needs thousands of iterations to come from 0 to where most pixels, which
    are of other classes, want it.

    Args:
        layer: gives logits.
        prior: the probability to begin with, in (0, 1).
        first: the first output to change; the background before it keeps its bias.
    """
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias[first:] = math.log(prior / (1 - prior))
