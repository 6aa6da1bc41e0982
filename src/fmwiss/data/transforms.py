"""From a photograph with its masks to one training crop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

PADDING_GREY = 0.5


class JointTransform:
    """Random scale, random crop and random flip of an image and whatever masks belong to it.

    The crop is a square window of the photograph, as large as ``crop_size`` pixels are at the drawn scale. So the
    image is resized once, straight to the final scale, and only where it is needed; and everything that covers the
    same field of view follows exactly, a full-size mask as well as one on a coarse grid.

    Args:
        crop_size: S, side of the crop in pixels.
        resize: working size: length in pixels of the photograph's shorter side before the random scale; None keeps
            its own.
        scale: range of the random scale.
        flip: probability of a horizontal flip.
    """

    def __init__(self, crop_size: int, resize: int | None, scale: tuple[float, float], flip: float) -> None:
        self.crop_size = crop_size
        self.resize = resize
        self.scale = scale
        self.flip = flip

    def __call__(
        self, image: Tensor, masks: Mapping[str, Tensor], fill: Mapping[str, int], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Draw one crop.

        Args:
            image: uint8 RGB ``(3, H, W)``.
            masks: by name, uint8 or bool ``(h, w)`` or ``(C, h, w)``; each covers the whole photograph, on any grid.
            fill: by the same names, the value of pixels beyond the photograph.
            generator: the only source of randomness; four numbers are drawn whatever the options.

        Returns:
            The crop as float RGB in [0, 1], ``(3, S, S)`` (grey beyond the photograph); the masks' crops
            ``(S, S)`` or ``(C, S, S)``, nearest neighbour; and bool ``(S, S)``, False beyond the photograph.
        """
        size = self.crop_size
        height, width = image.shape[-2:]
        draws = torch.rand(4, generator=generator).tolist()
        factor = self.scale[0] + draws[0] * (self.scale[1] - self.scale[0])
        if self.resize is not None:
            factor *= self.resize / min(height, width)
        side = max(1, round(size / factor))
        rows = _Span(draws[1], height, side, size)
        columns = _Span(draws[2], width, side, size)
        flipped = draws[3] < self.flip

        pixels = F.resized_crop(
            image, rows.start, columns.start, rows.length, columns.length, [rows.out_length, columns.out_length]
        )
        if flipped:
            pixels = F.horizontal_flip(pixels)
        crop = torch.full((3, size, size), PADDING_GREY)
        crop[:, rows.target, columns.target] = F.to_dtype(pixels, torch.float32, scale=True)
        valid = torch.zeros((size, size), dtype=torch.bool)
        valid[rows.target, columns.target] = True

        cropped = {}
        for name, mask in masks.items():
            # v2's nearest neighbour of a mask is off by half a pixel against its image, and knows no coarse grid.
            row_index = rows.nearest(mask.shape[-2])
            column_index = columns.nearest(mask.shape[-1])
            if flipped:
                column_index = column_index.flip(0)
            inside = mask.index_select(-2, row_index).index_select(-1, column_index)
            out = torch.full((*mask.shape[:-2], size, size), fill[name], dtype=mask.dtype)
            out[..., rows.target, columns.target] = inside
            cropped[name] = out
        return crop, cropped, valid


class _Span:
    """One axis of a crop: the window ``[start, start + length)`` of the photograph and where it lands in the crop."""

    def __init__(self, draw: float, extent: int, side: int, size: int) -> None:
        # A window larger than the photograph is placed around it, at random like a smaller one in it.
        slack = extent - side
        begin = min(0, slack) + min(int(draw * (abs(slack) + 1)), abs(slack))
        self.extent = extent
        self.start = max(begin, 0)
        self.length = min(begin + side, extent) - self.start
        first = round((self.start - begin) * size / side)
        self.out_length = min(max(1, round(self.length * size / side)), size)
        first = min(first, size - self.out_length)
        self.target = slice(first, first + self.out_length)

    def nearest(self, cells: int) -> Tensor:
        """For every pixel of the crop inside the photograph, the cell at its centre in a grid of ``cells`` cells."""
        centres = (torch.arange(self.out_length, dtype=torch.float64) + 0.5) / self.out_length
        places = (self.start + centres * self.length) * (cells / self.extent)
        return places.long().clamp(max=cells - 1)


def working_size(height: int, width: int, resize: int | None) -> tuple[int, int]:
    """Height and width with the shorter side scaled to ``resize`` pixels; None keeps both."""
    if resize is None:
        return height, width
    shorter = min(height, width)
    return round(height * resize / shorter), round(width * resize / shorter)
