"""Co-segmentation beyond the paper (``fmwiss-plus``): tensors in, maps out.

The paper asks the self-supervised model what a few seed points attend to, and cuts that at a fixed share of the
photograph. Here every patch takes part: the vision-language model's scores flow along the self-supervised model's patch
similarities, in competition with a background, and are then adapted to the photograph's colours. Nothing is drawn at
random, photographs do not see each other, and no constant belongs to a class.

Everything is batched: ``(B, C, gh, gw)`` are photographs, classes and the self-supervised model's patch grid, ``L =
gh * gw`` its patches in row-major order. One batch with C tagged classes::

    scores = merge_views(maps, mirrored, grid)                       # eq. 3, averaged over views
    features = merge_views(patch_features, mirrored, grid, normalise=True)
    maps = plus_maps(scores, features, images, options)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import PlusConfig
from fmwiss.cosegmentation import scale_scores
from fmwiss.pamr import pixel_affinity, refine_masks

__all__ = [
    "PlusMaps",
    "merge_views",
    "patch_affinity",
    "plus_maps",
    "presence",
    "propagate",
    "refine",
    "shares",
    "with_background",
]


class PlusMaps(NamedTuple):
    """The maps of a batch at every stage, in [0, 1].

    Attributes:
        scores: ``(B, C, gh, gw)``, min-max scaled.
        propagated: ``(B, C, gh, gw)``.
        refined: ``(B, C, H, W)``.
    """

    scores: Tensor
    propagated: Tensor
    refined: Tensor


def merge_views(
    maps: Sequence[Tensor], mirrored: Sequence[bool], size: tuple[int, int], normalise: bool = False
) -> Tensor:
    """The mean of what a model gives for several views of the same photographs.

    Args:
        maps: ``(B, K, h, w)`` of each view, with its own ``h, w``.
        mirrored: which views are mirror images; they are turned back.
        size: ``(gh, gw)``, to which all are resized (bilinearly).
        normalise: scale every vector over K to length 1, before the mean and after it.

    Returns:
        ``(B, K, gh, gw)``.
    """
    total = torch.zeros(())
    for view, turned in zip(maps, mirrored, strict=True):
        view = view.float().flip(-1) if turned else view.float()
        view = F.normalize(view, dim=1) if normalise else view
        if view.shape[-2:] != size:
            view = F.interpolate(view, size, mode="bilinear", align_corners=False)
        total = total.to(view.device) + view
    mean = total / len(maps)
    return F.normalize(mean, dim=1) if normalise else mean


def patch_affinity(features: Tensor, temperature: float) -> Tensor:
    """How much a patch takes from each of all patches: a softmax over their cosines.

    Args:
        features: ``(B, D, gh, gw)``, L2-normalised over D.
        temperature: tau; cosines are divided by it.

    Returns:
        ``(B, L, L)``, rows summing to 1.
    """
    patches = features.flatten(2)
    return (patches.mT @ patches / temperature).softmax(-1)


def propagate(maps: Tensor, affinity: Tensor) -> Tensor:
    """Every patch's value becomes the mean of all patches' values, weighted by its affinity to them.

    Args:
        maps: ``(B, K, gh, gw)``.
        affinity: ``(B, L, L)`` from :func:`patch_affinity`.
    """
    return (maps.flatten(2) @ affinity.mT).unflatten(2, maps.shape[-2:])


def with_background(scaled: Tensor, power: float) -> Tensor:
    """The background joins the classes: it is where no class is.

    Args:
        scaled: ``(B, C, gh, gw)`` in [0, 1].
        power: beta of ``(1 - max over classes) ** beta``.

    Returns:
        ``(B, C + 1, gh, gw)``, the background last.
    """
    return torch.cat([scaled, (1 - scaled.amax(1, keepdim=True)) ** power], dim=1)


def presence(scores: Tensor, power: float) -> Tensor:
    """How sure the vision-language model is of a class somewhere in the photograph, beside the surest tagged class.

    Args:
        scores: ``(B, C, gh, gw)``, eq. 3 as it is, not scaled.
        power: gamma of ``(largest score of the class / largest score of all) ** gamma``; below 0 scores count as 0.

    Returns:
        ``(B, C, 1, 1)`` in [0, 1], 1 for the surest class and, where no score is positive, for all.
    """
    largest = scores.amax((2, 3), keepdim=True).clamp(min=0)
    surest = largest.amax(1, keepdim=True)
    return torch.where(surest > 0, largest / surest, 1.0) ** power


def shares(maps: Tensor) -> Tensor:
    """What part each of K competitors has in every place: ``(B, K, h, w)``, not negative, to sums of 1 (or 0)."""
    return maps / maps.sum(1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def refine(maps: Tensor, images: Tensor, size: tuple[int, int], options: PlusConfig) -> Tensor:
    """Maps enlarged and adapted to the photographs' colours by PAMR.

    Args:
        maps: ``(B, C, gh, gw)`` in [0, 1].
        images: ``(B, 3, H', W')`` in [0, 1], any size.
        size: ``(H, W)`` of the result; ``pamr_dilations`` count its places.
        options: ``pamr_iterations`` and ``pamr_dilations``.

    Returns:
        ``(B, C, H, W)`` in [0, 1].
    """
    large = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    if options.pamr_iterations == 0:
        return large
    colours = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    refined = []
    for one, colour in zip(large.split(1), colours.split(1), strict=True):  # 24 neighbours of a photograph at a time
        affinity = pixel_affinity(colour, options.pamr_dilations)
        refined.append(refine_masks(one, affinity, options.pamr_dilations, options.pamr_iterations))
    return torch.cat(refined).clamp(0, 1)


def plus_maps(scores: Tensor, features: Tensor, images: Tensor, options: PlusConfig) -> PlusMaps:
    """From scores to maps, stage by stage.

    Args:
        scores: ``(B, C, gh, gw)``, merged over views.
        features: ``(B, D, gh, gw)``, merged over views, L2-normalised over D.
        images: ``(B, 3, H', W')`` in [0, 1], for their colours.
        options: the constants.
    """
    grid = (scores.shape[-2], scores.shape[-1])
    scaled = scale_scores(scores, grid)
    affinity = patch_affinity(features, options.temperature)
    flowing = scaled * presence(scores, options.presence) if options.presence else scaled
    flowing = flowing if options.background is None else with_background(flowing, options.background)
    for _ in range(options.rounds):
        flowing = propagate(flowing, affinity)
        flowing = flowing if options.background is None else shares(flowing)
    propagated = scale_scores(flowing[:, : scores.shape[1]], grid)
    size = (grid[0] * options.resolution, grid[1] * options.resolution)
    return PlusMaps(scaled, propagated, refine(propagated, images, size, options))
