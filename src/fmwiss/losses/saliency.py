"""Class maps that add up to a saliency map (EPS; Lee et al., CVPR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST = 1e-4


class SaliencyLoss(nn.Module):
    """Squared distance between a saliency map and the one that the class maps imply.

    With p the softmax over background and classes, the implied map is ``lambda f + (1 - lambda) (1 - b)``: f sums p
    over the tagged classes that agree with the saliency, b over the background and the tagged classes that do not, as
    things beside the salient one. A class agrees when more than ``tau`` of the places where its p rounds to 1 are
    salient.

    Args:
        tau: smallest share of salient places in a class that agrees.
        lam: lambda, foreground against background in the implied map.

    Shapes:
        scores ``(B, 1 + C, H, W)``, background first; saliency ``(B, H, W)`` in [0, 1]; tags ``(B, C)`` bool; valid
        ``(B, 1, H, W)`` bool, False where a pixel does not count. Returns a scalar.

    Example:
        >>> loss = SaliencyLoss()
        >>> scores = torch.tensor([-9.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        >>> valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        >>> loss(scores, torch.ones(1, 4, 4), torch.ones(1, 1, dtype=torch.bool), valid) < 1e-6
        tensor(True)
    """

    def __init__(self, tau: float = 0.4, lam: float = 0.5) -> None:
        super().__init__()
        self.tau = tau
        self.lam = lam

    def forward(self, scores: Tensor, saliency: Tensor, tags: Tensor, valid: Tensor) -> Tensor:
        masks = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=1)
        where = valid.to(masks.dtype)
        claimed = masks[:, 1:].detach().round() * where
        common = (claimed * saliency[:, None].round()).sum(dim=(2, 3))
        agrees = tags & (common / (claimed.sum(dim=(2, 3)) + SMALLEST) > self.tau)
        foreground = (masks[:, 1:] * agrees[:, :, None, None]).sum(dim=1)
        background = masks[:, 0] + (masks[:, 1:] * (tags & ~agrees)[:, :, None, None]).sum(dim=1)
        implied = self.lam * foreground + (1 - self.lam) * (1 - background)
        distance = (implied - saliency.to(masks.dtype)).square() * where[:, 0]
        return distance.sum() / where.sum().clamp(min=1)
