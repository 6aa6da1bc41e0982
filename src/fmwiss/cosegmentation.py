"""Foundation-model-based co-segmentation: tensors in, masks out (FMWISS, section 3.2, equations 1-5).

A vision-language model says *what* is where, coarsely: its pixel-text scores, above a threshold, are the initial mask
(eq. 3). A self-supervised model knows *which locations belong together*: the mean attention of a few seed points of the
initial mask, cut at a percentile, is the seeds' mask (eq. 4). The refined mask is their union (eq. 5).

Everything here is batched, takes and gives plain tensors, and draws random numbers only from generators that it is
handed. Masks are per class and may overlap. ``(B, C, h, w)`` are photographs, classes and the vision-language model's
grid; ``gh, gw`` is the self-supervised model's patch grid, ``L = gh * gw`` its locations in row-major order; ``M``
counts masks, in whatever way photographs and classes are flattened into it. One photograph with C tagged classes::

    grid = (gh, gw)
    scores = score_maps(features, rows, owner, n_classes)                    # eq. 3, (1, C, h, w)
    init = initial_masks(scores, grid)[0]                                    # (C, gh, gw)
    points, drawn = draw_seeds(init.flatten(1), 9, generators)               # (C, 9)
    seeds = seed_masks(attention[points].unflatten(2, grid), drawn, grid)    # eq. 4, attention (L, L)
    refined = fuse(init, seeds)                                              # eq. 5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.foundation.scores import class_scores as score_maps

Binarize = Literal["percentile", "mass"]
Fusion = Literal["none", "intersection", "union"]

__all__ = [
    "cut_levels",
    "draw_seeds",
    "fuse",
    "initial_masks",
    "mean_of_seeds",
    "scale_scores",
    "score_maps",
    "seed_masks",
]


def scale_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores on another grid, min-max scaled per photograph and class.

    Args:
        scores: ``(B, C, h, w)`` floats.
        size: ``(gh, gw)``, the grid to resize to (bilinearly).

    Returns:
        ``(B, C, gh, gw)`` in [0, 1]; all 0 where a map is constant and so says nothing about where its class is.
    """
    scores = _resized(scores, size)
    low = scores.amin((-2, -1), keepdim=True)
    spread = scores.amax((-2, -1), keepdim=True) - low
    return torch.where(spread > 0, (scores - low) / spread, 0.0)


def initial_masks(scores: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Binarised M_init: the locations whose min-max scaled score is above the threshold.

    Args:
        scores: ``(B, C, h, w)`` from :func:`score_maps`.
        size: ``(gh, gw)``, the self-supervised model's patch grid.
        threshold: in [0, 1); a map that is not constant then always has foreground.

    Returns:
        ``(B, C, gh, gw)`` bool.
    """
    return scale_scores(scores, size) > threshold


def draw_seeds(foreground: Tensor, n: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Random seed points of each mask: ``n`` of its foreground locations, without replacement.

    A mask with fewer than ``n`` foreground locations gives all of them.

    Args:
        foreground: ``(M, L)`` bool.
        n: N of eq. 4.
        generators: M generators on the CPU, one a mask; each gives L numbers, whatever the mask looks like.

    Returns:
        points: ``(M, min(n, L))`` int64, locations in ``[0, L)``.
        drawn: ``(M, min(n, L))`` bool, False where a mask had no location left (its point is then to be ignored).
    """
    m, length = foreground.shape
    if len(generators) != m:
        raise ValueError(f"{m} masks need {m} generators, not {len(generators)}")
    if m == 0:
        empty = torch.zeros(0, min(n, length), dtype=torch.long, device=foreground.device)
        return empty, empty.bool()
    # The n largest of independent uniform numbers are a uniform draw without replacement; background is below them all.
    lots = torch.stack([torch.rand(length, generator=g) for g in generators]).to(foreground.device)
    drawn, points = lots.masked_fill(~foreground, -1.0).topk(min(n, length), dim=1)
    return points, drawn >= 0


def seed_masks(
    attention: Tensor,
    drawn: Tensor,
    size: tuple[int, int],
    k: float = 70.0,
    binarize: Binarize = "percentile",
) -> Tensor:
    """M_seeds (eq. 4): the seed points' mean attention, binarised.

    Args:
        attention: ``(M, N, gh, gw)``, the head-averaged attention that each seed point pays to every location, not
            negative.
        drawn: ``(M, N)`` bool, which of the seed points count.
        size: ``(H, W)`` of the masks, to which the mean attention is resized (bilinearly) before it is binarised.
        k: K in (0, 100). ``percentile`` keeps the locations above the K-th percentile of the mean attention, that is
            the (100 - K) % most attended ones; Table 13 fixes this direction (K = 90 keeps "too little"), against the
            wording of section 3.2.
        binarize: ``mass`` keeps the fewest locations that hold (100 - K) % of the attention instead.

    Returns:
        ``(M, H, W)`` bool. The most attended location is always kept, so that a mask is empty only if none of its seed
        points counts.
    """
    if not len(attention):
        return torch.zeros(0, *size, dtype=torch.bool, device=attention.device)
    mean = mean_of_seeds(attention, drawn, size).flatten(1)
    if binarize == "percentile":
        kept = mean > torch.quantile(mean, k / 100, dim=1, keepdim=True)
    else:
        ordered, order = mean.sort(dim=1, descending=True)
        before = ordered.cumsum(1) - ordered
        wanted = (1 - k / 100) * ordered.sum(1, keepdim=True)
        kept = torch.zeros_like(mean, dtype=torch.bool).scatter(1, order, before < wanted)
    kept = kept | (mean == mean.amax(1, keepdim=True))
    return (kept & drawn.any(1, keepdim=True)).unflatten(1, size)


def mean_of_seeds(attention: Tensor, drawn: Tensor, size: tuple[int, int]) -> Tensor:
    """The seed points' mean attention on the masks' grid, ``(M, H, W)``; arguments as of :func:`seed_masks`, M > 0."""
    # A seed point that does not count may hold anything, even infinities, so it is masked and not multiplied by 0.
    total = attention.masked_fill(~drawn[..., None, None], 0.0).sum(1)
    return _resized((total / drawn.sum(1).clamp(min=1)[:, None, None])[None], size)[0]


def cut_levels(mean: Tensor, binarize: Binarize = "percentile") -> Tensor:
    """Up to which K a location is kept by :func:`seed_masks`: it is in the mask exactly where its level is above K.

    Args:
        mean: ``(M, H, W)`` from :func:`mean_of_seeds`.
        binarize: as there.

    Returns:
        ``(M, H, W)`` float64 in [0, 101]; the most attended location, which is always kept, has 101.
    """
    flat = mean.flatten(1)
    ordered, order = flat.sort(dim=1, descending=binarize == "mass")
    if binarize == "percentile":
        # The K-th percentile reaches a value at the first of its places in ascending order.
        first = torch.searchsorted(ordered.contiguous(), flat.contiguous())
        levels = 100 * first.double() / max(1, flat.shape[1] - 1)
    else:
        before = (ordered.cumsum(1) - ordered).double()
        share = 100 * (1 - before / ordered.sum(1, keepdim=True).double().clamp(min=1e-30))
        levels = torch.zeros_like(share).scatter(1, order, share)
    return levels.masked_fill(flat == flat.amax(1, keepdim=True), 101.0).unflatten(1, mean.shape[1:])


def fuse(init: Tensor, seeds: Tensor, fusion: Fusion = "union") -> Tensor:
    """M_refine (eq. 5) from two bool masks of one shape; ``none`` keeps M_init alone (a control)."""
    if fusion == "none":
        return init
    return init & seeds if fusion == "intersection" else init | seeds


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, C, h, w)`` -> ``(B, C, *size)``, bilinearly."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
