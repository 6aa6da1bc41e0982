"""What every frozen model does with an image before its first layer, and to itself before its first image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Normalize(nn.Module):
    """``(image - mean) / std`` per channel; images ``(B, 3, H, W)`` in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def nearest_multiple(size: int, multiple: int) -> int:
    """The multiple nearest to a size, at least one of it: 100, 14 -> 98; 3, 14 -> 14."""
    return max(1, round(size / multiple)) * multiple


def fit(images: Tensor, multiple: int) -> Tensor:
    """Scale images to the nearest multiple of the grid's stride, so that the grid covers them to the edge.

    Cropping or padding would shift the grid against the image; the scaling is below half a place. Images that fit are
    returned as they are.
    """
    height, width = images.shape[-2:]
    size = (nearest_multiple(height, multiple), nearest_multiple(width, multiple))
    if size == (height, width):
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def frozen(module: ModuleT, device: torch.device | str) -> ModuleT:
    """The module for inference only: evaluation mode, no gradients, channels last, on the device."""
    module.eval().requires_grad_(False)
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
