"""Pixel-wise cross-entropy over the softmax of all labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = 255
"""Label of pixels that do not count: void, and places beyond the photograph."""


class PixelCrossEntropyLoss(nn.Module):
    """Mean over the counted pixels of ``-log p^y``, with p the softmax over the labels.

    Shapes:
        logits ``(B, C, H, W)``; labels ``(B, H, W)`` integer, ``IGNORED`` where a pixel does not count; weight
        broadcastable to them, not negative, None for 1 everywhere. Returns a scalar, of at least single precision: the
        weighted sum over the number of counted pixels, 0 when nothing counts.

    Example:
        >>> loss = PixelCrossEntropyLoss()
        >>> loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
        tensor(1.3863)
    """

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return mean_nll(logits.log_softmax(dim=1), labels, weight)


def mean_nll(log_probabilities: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the counted pixels of ``-log p^y``; shapes as in :class:`PixelCrossEntropyLoss`."""
    terms = F.nll_loss(log_probabilities, labels, ignore_index=IGNORED, reduction="none")
    if weight is not None:
        terms = terms * weight
    # a sum over what counts, as a mean of nothing would be no number
    return terms.sum() / (labels != IGNORED).sum().clamp(min=1)
