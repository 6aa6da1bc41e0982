"""From dense features to a score per class (eq. 3), and MaskCLIP's two ways to clean it. Tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 100.0
"""CLIP's learnt logit scale, at which MaskCLIP turns cosines into probabilities."""


def class_scores(features: Tensor, rows: Tensor, owner: Tensor, n_classes: int) -> Tensor:
    """Product with the class's best row (eq. 3).

    Args:
        features: ``(B, D, h, w)``; L2-normalised over D for cosines (eq. 1).
        rows: ``(R, D)``, L2-normalised.
        owner: ``(R,)`` int64 in ``[0, n_classes)``; every class owns at least one row.
        n_classes: C.

    Returns:
        ``(B, C, h, w)``, in [-1, 1] for normalised features.
    """
    products = torch.einsum("bdhw,rd->brhw", features, rows)
    index = owner.to(features.device)[None, :, None, None].expand_as(products)
    scores = products.new_full((len(products), n_classes, *products.shape[2:]), -torch.inf)
    return scores.scatter_reduce(1, index, products, "amax")


def compete(scores: Tensor, n_classes: int) -> Tensor:
    """Let the channels behind the first ``n_classes`` claim places as background.

    Args:
        scores: ``(B, C + K, h, w)``: C classes, then K background names.
        n_classes: C.

    Returns:
        ``(B, C, h, w)``: where a background name beats every class, a class gets its lowest score in the image.
    """
    classes, background = scores[:, :n_classes], scores[:, n_classes:]
    claimed = background.amax(1, keepdim=True) > classes.amax(1, keepdim=True)
    return torch.where(claimed, classes.amin((2, 3), keepdim=True), classes)


def denoise_prompts(scores: Tensor) -> Tensor:
    """MaskCLIP's prompt denoising: a class that is nowhere the best of all is not in the image.

    Args:
        scores: ``(B, C, h, w)``.

    Returns:
        ``(B, C, h, w)``: the maps of such classes are -1, the lowest cosine, everywhere.
    """
    best = F.one_hot(scores.argmax(1), scores.shape[1]).amax((1, 2)).bool()  # (B, C)
    return torch.where(best[:, :, None, None], scores, -1.0)


def smooth_by_keys(scores: Tensor, keys: Tensor) -> Tensor:
    """MaskCLIP's key smoothing: every place takes the class probabilities of the places with similar keys.

    Args:
        scores: ``(B, C, h, w)`` cosines.
        keys: ``(B, D, h, w)``, the last attention's keys.

    Returns:
        ``(B, C, h, w)`` in [0, 1]: probabilities over C, averaged with the keys' (positive) cosines as weights.
    """
    probabilities = (TEMPERATURE * scores).softmax(1).flatten(2)
    keys = F.normalize(keys.flatten(2), dim=1)
    weights = torch.einsum("bdm,bdn->bmn", keys, keys).clamp(min=0)
    weights = weights / weights.sum(2, keepdim=True)
    return torch.einsum("bmn,bcn->bcm", weights, probabilities).view_as(scores)
