"""What stands out in a photograph, from a self-supervised ViT (TokenCut; Wang et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.foundation.interfaces import SelfSupervisedModel

ALIKE = 0.2
"""Cosine above which two patches are joined."""

APART = 1e-5
"""Weight of an edge between patches that are not joined: the graph stays connected."""


class NormalizedCut:
    """A :class:`~fmwiss.foundation.SaliencyModel`: foreground is one side of the patches' normalised cut.

    Patches are joined where their features' cosine is above ``ALIKE``. The second smallest solution of
    ``(D - W) y = lambda D y`` cuts the graph W at its mean; the side that holds fewer of the photograph's four corners
    is the foreground, the smaller one if both hold two.

    On 57 photographs of voc-mini's dev DINOv2's small model gives an IoU of 56 per cent with the union of all classes;
    the soft solution in place of the cut is no better, and further from the masks (mean absolute error .28, not .20).

    Args:
        model: gives the patches' features.
    """

    def __init__(self, model: SelfSupervisedModel) -> None:
        self.model = model
        self.stride = model.patch_size

    @torch.inference_mode()
    def saliency(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images in [0, 1] to ``(B, gh, gw)`` in {0, 1}."""
        features = F.normalize(self.model.patch_features(images).flatten(2).cpu().double(), dim=1)
        grid = (round(images.shape[-2] / self.stride), round(images.shape[-1] / self.stride))
        return torch.stack([_foreground(one.unflatten(1, grid)) for one in features]).to(images)


def _foreground(features: Tensor) -> Tensor:
    """One photograph's unit features ``(D, gh, gw)`` to bool ``(gh, gw)``."""
    points = features.flatten(1)
    weight = torch.where(points.T @ points > ALIKE, 1.0, APART).to(points.dtype)
    scale = weight.sum(dim=1).rsqrt()
    laplacian = torch.eye(len(scale), dtype=weight.dtype, device=weight.device) - scale[:, None] * weight * scale
    second = torch.linalg.eigh(laplacian).eigenvectors[:, min(1, len(scale) - 1)] * scale
    side = (second > second.mean()).view(features.shape[1:])
    corners = int(side[0, 0]) + int(side[0, -1]) + int(side[-1, 0]) + int(side[-1, -1])
    reverse = corners > 2 or (corners == 2 and bool(side.double().mean() > 0.5))
    return ~side if reverse else side
