"""Losses that know that the background holds other classes than before (MiB; Cermelli et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmwiss.losses.distillation import counted_mean, single
from fmwiss.losses.pixel_cross_entropy import IGNORED, mean_nll


class UnbiasedCrossEntropyLoss(nn.Module):
    """Cross-entropy in which background may be any old class (its section 3.2).

    The step's masks call old classes background, so background's probability is that of the background or of any old
    class: ``p~^b = sum_{k in Y_{t-1}} p^k``; that of a new class is its own.

    Args:
        n_old: number of the old model's labels, |Y_{t-1}|, the background included.

    Shapes:
        logits ``(B, |Y_t|, H, W)``; labels ``(B, H, W)`` integer, those of old classes count as background, ``IGNORED``
        where a pixel does not count. Returns a scalar, of at least single precision; 0 when nothing counts.

    Example:
        >>> loss = UnbiasedCrossEntropyLoss(n_old=3)
        >>> loss(torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))
        tensor(0.2877)
    """

    def __init__(self, n_old: int) -> None:
        super().__init__()
        self.n_old = n_old

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = single(logits).log_softmax(dim=1)
        background = log_p[:, : self.n_old].logsumexp(dim=1, keepdim=True)
        merged = torch.cat([background, log_p[:, self.n_old :]], dim=1)
        # labels of new classes move next to the background's
        moved = torch.where(labels == IGNORED, labels, (labels - self.n_old + 1).clamp(min=0))
        return mean_nll(merged, moved)


class UnbiasedDistillationLoss(nn.Module):
    """Distillation in which the old background may be any new class (its section 3.2).

    The old model calls new classes background, so its background's probability is matched by that of the background or
    of any new class: with q the old model's softmax and p the new one's over all labels, ``p^^b = p^b + sum_{k in C_t}
    p^k``, ``p^^c = p^c`` for old classes, the mean over counted pixels and old labels of ``-q^c log p^^c``.

    Shapes:
        as in :class:`DistillationLoss`.

    Example:
        >>> loss = UnbiasedDistillationLoss()
        >>> loss(torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
        tensor(0.4185)
    """

    def forward(self, logits: Tensor, old: Tensor, counted: Tensor) -> Tensor:
        log_p, q = single(logits).log_softmax(dim=1), single(old).softmax(dim=1)
        n_old = q.shape[1]
        background = torch.cat([log_p[:, :1], log_p[:, n_old:]], dim=1).logsumexp(dim=1, keepdim=True)
        terms = q * torch.cat([background, log_p[:, 1:n_old]], dim=1)
        return counted_mean(-terms.mean(dim=1), counted)
