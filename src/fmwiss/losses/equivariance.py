"""Consistency of class maps under scaling (SEAM; Wang et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-5
HARD_SHARE = 0.2
"""Share of the entries, the worst ones, that the cross refinement loss looks at."""

LOW_SHARE = 0.25
"""Share of the places, the darkest ones, that :func:`dark_loss` looks at."""


def normalised(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Maps, positive part, scaled to [0, 1] by each map's own smallest and largest value.

    Args:
        maps: ``(B, C, h, w)``.
        inside: ``(B, 1, h, w)`` bool, the places that count; the others become 0.
    """
    positive = maps.relu()
    if inside is None:
        inside = torch.ones_like(maps[:, :1], dtype=torch.bool)
    low = positive.masked_fill(~inside, torch.inf).amin(dim=(2, 3), keepdim=True)
    positive = positive.masked_fill(~inside, 0)
    high = positive.amax(dim=(2, 3), keepdim=True)
    low = torch.minimum(low, high)  # nothing is inside: both are 0
    return ((positive - low - SMALLEST).relu() / (high - low + SMALLEST)).masked_fill(~inside, 0)


def with_background(maps: Tensor) -> Tensor:
    """``(B, C, h, w)`` maps in [0, 1] behind a background map, one minus the largest: ``(B, 1 + C, h, w)``."""
    return torch.cat([1 - maps.amax(dim=1, keepdim=True), maps], dim=1)


def only_largest(maps: Tensor) -> Tensor:
    """``(B, 1 + C, h, w)`` maps in which of the classes, at every place, all but the largest are 0."""
    classes = maps[:, 1:]
    return torch.cat([maps[:, :1], classes * (classes == classes.amax(dim=1, keepdim=True))], dim=1)


def equivariance_loss(first: Tensor, second: Tensor, inside: Tensor) -> Tensor:
    """L_ER: mean absolute difference of the maps of two views.

    Args:
        first: ``(B, C, h, w)`` in [0, 1].
        second: the same of the other view.
        inside: ``(B, 1, h, w)`` bool, the places that count.
    """
    difference = (first - second).abs().mean(dim=1, keepdim=True)
    return (difference * inside).sum() / inside.sum().clamp(min=1)


def cross_refinement_loss(refined: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    """L_ECR of one view: its refined maps against the other view's own ones, at the places where they differ most.

    Args:
        refined: ``(B, 1 + C, h, w)``, background first.
        other: the same of the other view, without gradient.
        inside: ``(B, 1, h, w)`` bool, the places that count.
    """
    difference = (only_largest(other.detach()) - refined).abs()
    return _mean_of_lowest(-difference, inside.expand_as(difference), HARD_SHARE).neg()


def dark_loss(maps: Tensor, inside: Tensor) -> Tensor:
    """Mean over the darkest quarter of the places of the largest class there.

    It keeps the refined maps from lighting up all over.

    Args:
        maps: ``(B, C, h, w)``.
        inside: ``(B, 1, h, w)`` bool, the places that count.
    """
    return _mean_of_lowest(maps.amax(dim=1, keepdim=True).relu(), inside, LOW_SHARE)


def _mean_of_lowest(values: Tensor, counts: Tensor, share: float) -> Tensor:
    """Mean over photographs of the mean of the lowest share of each one's values that count, of at least one.

    Args:
        values: ``(B, ...)``.
        counts: of the same shape, bool.
        share: in (0, 1].
    """
    values, counts = values.flatten(1), counts.flatten(1)
    taken = (counts.sum(dim=1) * share).long().clamp(min=1)
    largest = max(1, int(share * values.shape[1]))
    lowest = values.masked_fill(~counts, torch.inf).topk(largest, dim=1, largest=False).values
    used = (torch.arange(largest, device=values.device) < taken[:, None]) & lowest.isfinite()
    return (lowest.where(used, 0).sum(dim=1) / used.sum(dim=1).clamp(min=1)).mean()
