"""Pixel-adaptive mask refinement (PAMR; Araslanov and Roth, CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BANDWIDTH = 0.1
"""Standard deviations of the neighbourhood that a difference in colour is measured in."""


def pixel_affinity(images: Tensor, dilations: Sequence[int]) -> Tensor:
    """How much a pixel takes from each of its neighbours: a softmax over likeness in colour.

    The neighbours are the eight around a pixel at every dilation, beyond the border its nearest pixel. Their
    difference is ``|I_i - I_j|`` in units of ``BANDWIDTH`` times the standard deviation (unbiased) of all of them and,
    once per dilation, the pixel itself; the mean over channels, negated, goes into the softmax.

    Args:
        images: ``(B, K, h, w)``, K channels of any scale.
        dilations: in pixels.

    Returns:
        ``(B, 8 * len(dilations), h, w)``, summing to 1 over the neighbours, in the order of :func:`_offsets`.
    """
    neighbours = torch.stack(list(_shifted(images, dilations)), dim=2)
    centre = images[:, :, None]
    spread = torch.cat([neighbours, centre.expand(-1, -1, len(dilations), -1, -1)], dim=2).std(dim=2, keepdim=True)
    likeness = -(neighbours - centre).abs() / (BANDWIDTH * spread + 1e-8)
    return likeness.mean(dim=1).softmax(dim=1)


def refine_masks(masks: Tensor, affinity: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """Masks whose every value becomes the affine mean of its neighbours', again and again.

    Channels do not mix, and a value stays within the range of those that it comes from.

    Args:
        masks: ``(B, C, h, w)``.
        affinity: from :func:`pixel_affinity` with the same dilations, ``(B, 8 * len(dilations), h, w)``.
        dilations: in pixels.
        iterations: 0 gives the masks back.
    """
    for _ in range(iterations):
        refined = torch.zeros_like(masks)
        for weight, neighbour in zip(affinity.split(1, dim=1), _shifted(masks, dilations), strict=True):
            refined.addcmul_(weight, neighbour)
        masks = refined
    return masks


def _shifted(maps: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """Views of ``(B, C, h, w)`` maps in which every pixel shows one of its neighbours."""
    reach = max(dilations)
    h, w = maps.shape[-2:]
    padded = F.pad(maps, [reach] * 4, mode="replicate")
    return [
        padded[..., reach + dy : reach + dy + h, reach + dx : reach + dx + w] for dy, dx in _offsets(dilations)
    ]


def _offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns from a pixel to its neighbours."""
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return [(dilation * dy, dilation * dx) for dilation in dilations for dy, dx in around]
