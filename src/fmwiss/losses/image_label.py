"""Learning where a class is from whether it is there (Araslanov and Roth, CVPR 2020; WILSON, CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ImageLabelLoss(nn.Module):
    """Multi-label soft-margin loss on a pooled score for every class.

    A class's score is its normalised global weighted pooling ``sum_i m_i z_i / (1 + sum_i m_i)`` plus the focal penalty
    ``(1 - mean(m)) ** p log(lambda + mean(m))``, with ``z`` the scores of the pixels and ``m`` their softmax over all
    labels. The penalty is what makes a class that is there cover more than its most telling part.

    Args:
        focal_lambda: lambda, which bounds the penalty by log(lambda).
        focal_p: p.

    Shapes:
        scores ``(B, |Y_t|, H, W)``; present ``(B, n)`` in {0, 1}, about the last n labels; valid ``(B, 1, H, W)`` bool;
        counted ``(B, n)`` bool, False where it is not known whether the class is there. Returns a scalar, the mean over
        counted photographs and classes; 0 when none is.

    Example:
        >>> loss = ImageLabelLoss()
        >>> scores = torch.tensor([-9.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        >>> valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        >>> loss(scores, torch.ones(1, 1), valid) < loss(scores, torch.zeros(1, 1), valid)
        tensor(True)
    """

    def __init__(self, focal_lambda: float = 0.01, focal_p: float = 3.0) -> None:
        super().__init__()
        self.focal_lambda = focal_lambda
        self.focal_p = focal_p

    def forward(self, scores: Tensor, present: Tensor, valid: Tensor, counted: Tensor | None = None) -> Tensor:
        pooled = self.pool(scores, valid)[:, -present.shape[1] :]
        weight = torch.ones_like(pooled) if counted is None else counted.to(pooled.dtype)
        total = F.binary_cross_entropy_with_logits(pooled, present.to(pooled.dtype), weight, reduction="sum")
        return total / weight.sum().clamp(min=1)

    def pool(self, scores: Tensor, valid: Tensor) -> Tensor:
        """The pooled score of every label, ``(B, |Y_t|)``."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).flatten(2)
        where = valid.flatten(2).to(scores.dtype)
        masks = scores.softmax(dim=1) * where
        mass = masks.sum(dim=2)
        size = mass / where.sum(dim=2).clamp(min=1)
        penalty = (1 - size) ** self.focal_p * torch.log(self.focal_lambda + size)
        return (scores * masks).sum(dim=2) / (1 + mass) + penalty
