"""Dense contrastive loss between pixels (paper, equation 7)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEGATIVE_ONLY = -1
"""Label of a point that is a negative of every other and never an anchor or a positive."""

NOT_DRAWN = -2
"""Label of a place that :func:`sample_points` never draws."""


class DenseContrastiveLoss(nn.Module):
    """InfoNCE between sampled pixels: pixels of one class attract, pixels of other classes repel.

    For an anchor ``i`` with positives ``P_i`` (the other points of its class) and negatives ``N_i`` equation 7 is the
    mean over ``q+`` of ``log(1 + exp(logsumexp(i . q- / tau) - i . q+ / tau))``; the loss is its mean over the anchors
    that have both. Features are L2-normalised here.

    Args:
        tau: temperature.

    Shapes:
        features ``(n, D)``, labels ``(n,)`` integer, ``NEGATIVE_ONLY`` for points that are only negatives. Returns a
        scalar; 0 when no point has both a positive and a negative.

    Example:
        >>> loss = DenseContrastiveLoss(tau=0.1)
        >>> loss(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1])) < 1e-3
        tensor(True)
    """

    def __init__(self, tau: float = 0.1) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        points = F.normalize(features, dim=1)
        similarity = points @ points.T / self.tau
        same = labels[:, None] == labels[None, :]
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive = same & ~itself & (labels != NEGATIVE_ONLY)[:, None]
        negatives = similarity.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
        # a row without a negative is -inf: its terms are log(1 + 0) = 0, and it is no anchor
        anchor = positive.any(dim=1) & torch.isfinite(negatives[:, 0])
        if not anchor.any():
            return features.sum() * 0.0
        positive, negatives, similarity = positive[anchor], negatives[anchor], similarity[anchor]
        terms = F.softplus(negatives - similarity).masked_fill(~positive, 0.0)
        return (terms.sum(dim=1) / positive.sum(dim=1)).mean()


def sample_points(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw at most ``n`` places of every label at random, without replacement.

    Args:
        labels: integer tensor of any shape; places of ``NOT_DRAWN`` are left out.
        n: points per label.
        generator: source of the draws, on the CPU.

    Returns:
        Flat indices into ``labels``, grouped by label in ascending order.
    """
    flat = labels.flatten()
    order = torch.randperm(len(flat), generator=generator).to(labels.device)
    shuffled = flat[order]
    present = [value for value in torch.unique(flat).tolist() if value != NOT_DRAWN]
    chosen = [order[(shuffled == value).nonzero()[:n, 0]] for value in present]
    return torch.cat(chosen) if chosen else order[:0]


class Lots(NamedTuple):
    """Places drawn by lot, by label: the n that had the lowest ones, in ascending order."""

    places: Tensor
    """Flat indices, int64 ``(n_classes + 1, n)``, -1 where a label has no more places."""
    lots: Tensor
    """Theirs, infinite there."""


def lowest_lots(labels: Tensor, lots: Tensor, n_classes: int, n: int) -> Lots:
    """Of every class the ``n`` places with the lowest lots, and in the last row as many of ``NEGATIVE_ONLY``.

    The lowest of several parts' lowest are the lowest of all, so that places can be drawn part by part.

    Args:
        labels: integer ``(m,)``; places of ``NOT_DRAWN`` are left out.
        lots: of the places, different floats ``(m,)``.
        n_classes: labels that there are from 0 on.
        n: places per label.
    """
    rows = torch.tensor([*range(n_classes), NEGATIVE_ONLY], device=labels.device)
    own = lots.masked_fill(labels != rows[:, None], torch.inf)
    drawn, places = own.topk(min(n, len(lots)), dim=1, largest=False)
    lacking = n - drawn.shape[1]
    drawn = F.pad(drawn, (0, lacking), value=torch.inf)
    places = F.pad(places, (0, lacking), value=-1)
    return Lots(places.masked_fill(drawn.isinf(), -1), drawn)
