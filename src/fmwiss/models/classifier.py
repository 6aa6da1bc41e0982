"""A pixel classifier that grows by one 1x1 convolution per step."""

from __future__ import annotations

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

    def add_step(self, n_classes: int, init: Literal["background", "plain"]) -> None:
        """Append a convolution for ``n_classes`` new classes.

        ``background`` follows MiB (Cermelli et al., CVPR 2020, section 3.3): the new rows take the background's
        weights, and the background's bias less ``log(n_classes + 1)`` is given to them and to the background itself,
        so that under a softmax the background's old probability is shared evenly. ``plain`` keeps the layer's own
        random initialisation.
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
        self.steps.append(new.to(background.weight.device))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` features to ``(B, n_outputs, h, w)`` logits."""
        return torch.cat([step(features) for step in self.steps], dim=1)

    def _convolutions(self) -> list[nn.Conv2d]:
        return [step for step in self.steps if isinstance(step, nn.Conv2d)]
