"""Self-supervision of soft masks by their own confident places (Araslanov and Roth, CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNSURE = -1
"""Label of a pixel that no class or several claim."""


class BalancedCrossEntropyLoss(nn.Module):
    """Cross-entropy in which a class counts the more in a photograph the fewer pixels it has there.

    A pixel of class c weighs ``(N - N_c) / (1 + N)``, with N the photograph's labelled pixels and N_c those of class c,
    and a photograph's loss is the mean over all its valid pixels, unsure ones as 0. A photograph whose labels are not
    those of exactly the expected classes has no loss, but counts in the mean over the photographs.

    Shapes:
        logits ``(B, C, H, W)``; labels ``(B, H, W)`` integer, ``UNSURE`` for pixels without one; expected ``(B, C)``
        bool, the classes that the labels have to consist of; valid ``(B, H, W)`` bool. Returns a scalar.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, UNSURE]]])
        >>> loss = BalancedCrossEntropyLoss()
        >>> logits, expected = torch.zeros(1, 2, 1, 4), torch.ones(1, 2, dtype=torch.bool)
        >>> loss(logits, labels, expected, labels > -2)  # (2 * 1/4 + 1 * 2/4) log(2) / 4
        tensor(0.1733)
    """

    def forward(self, logits: Tensor, labels: Tensor, expected: Tensor, valid: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = labels.masked_fill(~valid, UNSURE)
        sure = labels != UNSURE
        places = labels.clamp(min=0).flatten(1)
        count = logits.new_zeros(logits.shape[:2]).scatter_add_(1, places, sure.flatten(1).to(logits.dtype))
        total = count.sum(dim=1, keepdim=True)
        weight = ((total - count) / (1 + total)).gather(1, places).view_as(labels)
        loss = F.cross_entropy(logits, labels, ignore_index=UNSURE, reduction="none") * weight
        mean = loss.sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)
        complete = ((count > 0) == expected).all(dim=1)
        return (mean * complete).mean()


def confident_labels(masks: Tensor, valid: Tensor, cutoffs: Tensor, lowest: float) -> Tensor:
    """A label for every pixel that one class claims, and only one.

    A class claims the pixels above its cutoff times its largest value in the photograph, and above ``lowest``.

    Args:
        masks: soft masks, ``(B, C, H, W)`` in [0, 1].
        valid: bool ``(B, H, W)``; nothing is claimed elsewhere.
        cutoffs: of the classes, ``(C,)`` in [0, 1].
        lowest: in [0, 1].

    Returns:
        int64 ``(B, H, W)``, ``UNSURE`` where no class or several claim the pixel.
    """
    masks = masks * valid[:, None]
    largest = masks.amax(dim=(2, 3), keepdim=True)
    claimed = masks > (largest * cutoffs[:, None, None]).clamp(min=lowest)
    labels = claimed.to(torch.uint8).argmax(dim=1)
    return labels.masked_fill((claimed.sum(dim=1) != 1) | ~valid, UNSURE)
