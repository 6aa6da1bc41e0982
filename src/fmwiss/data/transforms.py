"""From a photograph with its masks to one training crop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

PADDING_GREY = 0.5

Crop = Literal["window", "resized"]

TRIES = 10
"""Rectangles that are drawn before a resized crop takes the middle of the photograph."""

RATIOS = (3 / 4, 4 / 3)
"""Width over height of a resized crop's rectangle: the range of RandomResizedCrop in torchvision and in WILSON."""


class JointTransform:
    """Random scale, random crop and random flip of an image and whatever masks belong to it.

    The crop is a square window of the photograph, as large as ``crop_size`` pixels are at the drawn scale; or, if it
    is ``"resized"``, a rectangle within the photograph that is stretched to a square (:func:`draw_rectangle`). So the
    image is resized once, straight to the final scale, and only where it is needed; and everything that covers the
    same field of view follows exactly, a full-size mask as well as one on a coarse grid.

    Args:
        crop_size: S, side of the crop in pixels.
        resize: working size: length in pixels of the photograph's shorter side before the random scale; None keeps
            its own. A resized crop does not depend on it.
        scale: range of the random scale of the photograph's sides; of a resized crop the range of the rectangle's area
            over the photograph's.
        flip: probability of a horizontal flip.
        crop: "window" or "resized".
    """

    def __init__(
        self, crop_size: int, resize: int | None, scale: tuple[float, float], flip: float, crop: Crop = "window"
    ) -> None:
        self.crop_size = crop_size
        self.resize = resize
        self.scale = scale
        self.flip = flip
        self.crop = crop

    def __call__(
        self, image: Tensor, masks: Mapping[str, Tensor], fill: Mapping[str, int], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Draw one crop.

        Args:
            image: uint8 RGB ``(3, H, W)``.
            masks: by name, uint8 or bool ``(h, w)`` or ``(C, h, w)``; each covers the whole photograph, on any grid.
            fill: by the same names, the value of pixels beyond the photograph.
            generator: the only source of randomness.

        Returns:
            The crop as float RGB in [0, 1], ``(3, S, S)`` (grey beyond the photograph); the masks' crops
            ``(S, S)`` or ``(C, S, S)``, nearest neighbour; and bool ``(S, S)``, False beyond the photograph.
        """
        size = self.crop_size
        height, width = image.shape[-2:]
        rows, columns = (self._resized if self.crop == "resized" else self._window)(height, width, generator)
        flipped = float(torch.rand((), generator=generator)) < self.flip

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

    def _window(self, height: int, width: int, generator: torch.Generator) -> tuple[_Span, _Span]:
        draws = torch.rand(3, generator=generator).tolist()
        factor = self.scale[0] + draws[0] * (self.scale[1] - self.scale[0])
        if self.resize is not None:
            factor *= self.resize / min(height, width)
        side = max(1, round(self.crop_size / factor))
        return _Span.placed(draws[1], height, side, self.crop_size), _Span.placed(draws[2], width, side, self.crop_size)

    def _resized(self, height: int, width: int, generator: torch.Generator) -> tuple[_Span, _Span]:
        top, left, rows, columns = draw_rectangle(height, width, self.scale, generator)
        whole = slice(0, self.crop_size)
        return _Span(height, top, rows, whole), _Span(width, left, columns, whole)


def draw_rectangle(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A random rectangle of a photograph, as torchvision's RandomResizedCrop and WILSON's code draw it.

    Its area is a share of the photograph's, uniform in ``scale``, and its width over its height is log-uniform in
    :data:`RATIOS`. One that does not fit is drawn anew; after ten it is the largest one in the middle whose ratio is in
    the range. A share above 1 never fits: it is a chance to see as much as possible.

    Returns:
        Its first row, first column, height and width in pixels.
    """
    low, high = map(math.log, RATIOS)
    for _ in range(TRIES):
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (scale[0] + draws[0] * (scale[1] - scale[0]))
        ratio = math.exp(low + draws[1] * (high - low))
        columns, rows = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if columns <= width and rows <= height:
            return int(draws[2] * (height - rows + 1)), int(draws[3] * (width - columns + 1)), rows, columns
    rows = min(height, round(width / RATIOS[0]))
    columns = min(width, round(height * RATIOS[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


class _Span(NamedTuple):
    """One axis of a crop: the window ``[start, start + length)`` of the photograph and where it lands in the crop."""

    extent: int
    start: int
    length: int
    target: slice

    @property
    def out_length(self) -> int:
        """Pixels of the crop that show the photograph."""
        return int(self.target.stop - self.target.start)

    @classmethod
    def placed(cls, draw: float, extent: int, side: int, size: int) -> _Span:
        """A window of ``side`` pixels that becomes ``size``.

        One that is larger than the photograph is placed around it, at random like a smaller one in it.
        """
        slack = extent - side
        begin = min(0, slack) + min(int(draw * (abs(slack) + 1)), abs(slack))
        start = max(begin, 0)
        length = min(begin + side, extent) - start
        out_length = min(max(1, round(length * size / side)), size)
        first = min(round((start - begin) * size / side), size - out_length)
        return cls(extent, start, length, slice(first, first + out_length))

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
