"""Consistency of class maps under scaling (SEAM; Wang et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-5
HARD_SHARE = 0.2
"""Share of the entries, the worst ones, that the cross refinement loss looks at."""

LOW_SHARE = 0.25
"""Share of the places, the darkest ones, that :func:`dark_loss` looks at."""


def normalised(maps: Tensor) -> Tensor:
    """``(B, C, h, w)`` maps, positive part, scaled to [0, 1] by each map's own smallest and largest value."""
    positive = maps.relu()
    low, high = positive.amin(dim=(2, 3), keepdim=True), positive.amax(dim=(2, 3), keepdim=True)
    return (positive - low - SMALLEST).relu() / (high - low + SMALLEST)


def with_background(maps: Tensor) -> Tensor:
    """``(B, C, h, w)`` maps in [0, 1] behind a background map, one minus the largest: ``(B, 1 + C, h, w)``."""
    return torch.cat([1 - maps.amax(dim=1, keepdim=True), maps], dim=1)


def only_largest(maps: Tensor) -> Tensor:
    """``(B, 1 + C, h, w)`` maps in which of the classes, at every place, all but the largest are 0."""
    classes = maps[:, 1:]
    return torch.cat([maps[:, :1], classes * (classes == classes.amax(dim=1, keepdim=True))], dim=1)


def equivariance_loss(first: Tensor, second: Tensor) -> Tensor:
    """L_ER: mean absolute difference of the maps of two views, ``(B, C, h, w)`` in [0, 1]."""
    return (first - second).abs().mean()


def cross_refinement_loss(refined: Tensor, other: Tensor) -> Tensor:
    """L_ECR of one view: its refined maps against the other view's own ones, at the places where they differ most.

    Args:
        refined: ``(B, 1 + C, h, w)``, background first.
        other: the same of the other view, without gradient.
    """
    difference = (only_largest(other.detach()) - refined).abs().flatten(1)
    return difference.topk(max(1, int(HARD_SHARE * difference.shape[1])), dim=1).values.mean()


def dark_loss(maps: Tensor) -> Tensor:
    """Mean over the darkest quarter of the places of the largest class there, of ``(B, C, h, w)`` maps.

    It keeps the refined maps from lighting up all over.
    """
    largest = maps.amax(dim=1).flatten(1)
    return largest.topk(max(1, int(LOW_SHARE * largest.shape[1])), dim=1, largest=False).values.relu().mean()
