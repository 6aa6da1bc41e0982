"""What a new model keeps of an old one's outputs: plain, binary and entropy-weighted distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DistillationLoss(nn.Module):
    """Cross-entropy between the old model's softmax and the new one's over the old labels (Li and Hoiem, ECCV 2016).

    With q the old model's softmax and p that of the new model's first ``|Y_{t-1}|`` logits alone, the mean over counted
    pixels and old labels of ``-q^c log p^c``: the sum over the labels divided by their number, as the weights of the
    published code count on.

    Shapes:
        logits ``(B, |Y_t|, H, W)``; old ``(B, |Y_{t-1}|, H, W)``, the old model's logits; counted ``(B, H, W)`` bool.
        Returns a scalar, of at least single precision; 0 when nothing counts.

    Example:
        >>> loss = DistillationLoss()
        >>> old = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)
        >>> loss(torch.tensor([0.0, 0.0, 9.0]).view(1, 3, 1, 1), old, torch.ones(1, 1, 1, dtype=torch.bool))
        tensor(0.3466)
    """

    def forward(self, logits: Tensor, old: Tensor, counted: Tensor) -> Tensor:
        logits, old = single(logits), single(old)
        terms = old.softmax(dim=1) * logits[:, : old.shape[1]].log_softmax(dim=1)
        return counted_mean(-terms.mean(dim=1), counted)


class BinaryDistillationLoss(nn.Module):
    """Binary cross-entropy of the old labels with the old model's sigmoids as targets (iCaRL; LwF-MC).

    The mean over counted pixels and old labels.

    Shapes:
        as in :class:`DistillationLoss`.

    Example:
        >>> loss = BinaryDistillationLoss()
        >>> loss(torch.zeros(1, 3, 1, 1), torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
        tensor(0.6931)
    """

    def forward(self, logits: Tensor, old: Tensor, counted: Tensor) -> Tensor:
        logits, target = single(logits)[:, : old.shape[1]], single(old).sigmoid()
        terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return counted_mean(terms.mean(dim=1), counted)


class EntropyWeightedDistillationLoss(nn.Module):
    """Distillation in which a pixel weighs the more the less sure the old model is (CIL; Klingner et al., ITSC 2020).

    With q the old model's softmax over ``Y_{t-1}``, p the new model's over all of ``Y_t``, and
    ``w = 1 + entropy_weight * (-sum_c q^c log2 q^c)``, the mean over counted pixels of ``-w sum_c q^c log p^c``, c in
    ``Y_{t-1}``.

    Args:
        entropy_weight: of the entropy in bits.

    Shapes:
        as in :class:`DistillationLoss`.

    Example:
        >>> loss = EntropyWeightedDistillationLoss()
        >>> loss(torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)) / math.log(4)
        tensor(2.)
    """

    def __init__(self, entropy_weight: float = 1.0) -> None:
        super().__init__()
        self.entropy_weight = entropy_weight

    def forward(self, logits: Tensor, old: Tensor, counted: Tensor) -> Tensor:
        log_p, log_q = single(logits).log_softmax(dim=1), single(old).log_softmax(dim=1)
        q = log_q.exp()
        weight = 1 + self.entropy_weight * -(q * log_q).sum(dim=1) / math.log(2)
        return counted_mean(-weight * (q * log_p[:, : q.shape[1]]).sum(dim=1), counted)


def single(values: Tensor) -> Tensor:
    """The values in at least single precision: half of it can neither hold sums over pixels nor tell them apart."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def counted_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of ``(B, H, W)`` values where ``counted``, bool of that shape, is True; 0 where it is nowhere."""
    return (values * counted).sum() / counted.sum().clamp(min=1)
