"""Pixel-wise binary cross-entropy with soft targets (paper, equations 6, 8 and 11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PixelBCELoss(nn.Module):
    """Binary cross-entropy of every class on its own, averaged over classes and counted pixels.

    Equations 6, 8 and 11 differ only in classes and targets. With ``reduction="sum-classes"`` the classes are summed
    and only pixels averaged, as in WILSON's published base step.

    Args:
        reduction: ``mean`` (1 / (|C| |I|) as printed) or ``sum-classes``.

    Shapes:
        logits ``(B, C, H, W)``; target the same, in [0, 1]; weight broadcastable to it, in [0, 1], 0 where a pixel
        does not count. Returns a scalar, of at least single precision; 0 when nothing counts.

    Example:
        >>> loss = PixelBCELoss()
        >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(0.6931)
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum-classes"):
            raise ValueError(f"reduction must be 'mean' or 'sum-classes', not {reduction!r}")
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        # half precision can neither hold these sums nor tell them apart
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits, target, weight = logits.to(dtype), target.to(dtype), weight.to(dtype)
        total = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        # the number of counted (pixel, class) pairs, without expanding the weight
        counted = weight.sum() * (logits.numel() / weight.numel())
        mean = total / counted.clamp(min=torch.finfo(dtype).eps)
        return mean * logits.shape[1] if self.reduction == "sum-classes" else mean
