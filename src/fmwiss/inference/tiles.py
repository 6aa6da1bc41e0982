"""Photographs too large for one pass: windows that overlap, logits blended where they do, memory that stays small.

Nothing here holds logits of a whole photograph: windows are worked through from top to bottom, and rows that no later
window touches are handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT = 32
"""Windows begin at multiples of it, so that cells of logits of any usual output stride fall upon each other."""

Rows = tuple[int, Tensor]
"""First row, and ``(labels, rows, W)`` from there on."""
Band = tuple[int, Tensor]
"""Height of the whole, and the next rows of it, ``(labels, rows, w)``, from the top."""


def windows(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Cut one axis into windows ``[start, stop)``.

    Args:
        length: in pixels.
        tile: longest window, a multiple of :data:`ALIGNMENT`.
        overlap: of neighbours, at least; a multiple of :data:`ALIGNMENT` below ``tile``.

    Returns:
        One window where the axis fits into one; otherwise windows evenly spread that begin at multiples of
        :data:`ALIGNMENT`, all of length ``tile`` but the last, which is up to ``ALIGNMENT - 1`` pixels shorter.
    """
    if length <= tile:
        return [(0, length)]
    last = -(-(length - tile) // ALIGNMENT) * ALIGNMENT
    steps = -(-last // (tile - overlap))
    starts = [i * last // steps // ALIGNMENT * ALIGNMENT for i in range(steps + 1)]
    return [(start, min(start + tile, length)) for start in starts]


def blended_rows(
    logits_of: Callable[[Tensor], Tensor],
    crop: Callable[[int, int, int, int], Tensor],
    size: tuple[int, int],
    tile: int,
    overlap: int,
    batch_size: int,
) -> Iterator[Band]:
    """Logits of a photograph window by window.

    Where windows overlap, the mean is taken with weights that fall linearly to the border of each.

    Args:
        logits_of: ``(B, 3, h, w)`` images to float logits ``(B, labels, ceil(h / k), ceil(w / k))``, where the stride k
            divides :data:`ALIGNMENT`; others are resized to the nearest such stride.
        crop: top, bottom, left, right to the image ``(1, 3, bottom - top, right - left)`` there.
        size: height and width of the photograph in pixels.
        tile: side of the windows, see :func:`windows`.
        overlap: of the windows, see :func:`windows`.
        batch_size: windows of one shape that go through the model at once.

    Yields:
        Bands ``(labels, rows, ceil(width / k))`` of the whole, which has ``ceil(height / k)`` rows.
    """
    rows, columns = windows(size[0], tile, overlap), windows(size[1], tile, overlap)
    carried: tuple[Tensor, Tensor] | None = None
    stride = 0
    for number, (top, bottom) in enumerate(rows):
        total: Tensor | None = None
        for group in _equal_widths(columns, batch_size):
            images = torch.cat([crop(top, bottom, left, right) for left, right in group])
            logits = logits_of(images)
            stride = stride or _stride(images, logits)
            height, width = _cells(bottom - top, stride), _cells(images.shape[-1], stride)
            if logits.shape[-2:] != (height, width):
                logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
            if total is None:
                total = logits.new_zeros(logits.shape[1], height, _cells(size[1], stride))
                weights = logits.new_zeros(height, total.shape[2])
            vertical = _ramps(height, overlap // stride, top > 0, bottom < size[0], logits)
            for (left, right), window in zip(group, logits, strict=True):
                horizontal = _ramps(width, overlap // stride, left > 0, right < size[1], logits)
                weight = vertical[:, None] * horizontal
                place = slice(left // stride, left // stride + width)
                total[..., place] += window * weight
                weights[:, place] += weight
        assert total is not None  # there is at least one window
        if carried is not None:
            total[:, : carried[0].shape[1]] += carried[0]
            weights[: carried[1].shape[0]] += carried[1]
        finished = total.shape[1] if number + 1 == len(rows) else (rows[number + 1][0] - top) // stride
        yield _cells(size[0], stride), total[:, :finished] / weights[:finished]
        carried = total[:, finished:], weights[finished:]


def resized_rows(bands: Iterable[Band], size: tuple[int, int], values: int) -> Iterator[Rows]:
    """Resize logits bilinearly, as :func:`torch.nn.functional.interpolate` without aligned corners, rows at a time.

    Args:
        bands: of the logits.
        size: height and width to resize to.
        values: how many numbers may be yielded at once, at least; one row is yielded in any case.
    """
    first = done = 0  # row of the logits with which what is kept begins; rows of the result that are out
    kept: Tensor | None = None
    for height, band in bands:
        if kept is None:
            sources = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5).clamp_(min=0)
            above = sources.long().clamp_(max=height - 1)
            below = (above + 1).clamp_(max=height - 1)
            shares = (sources - above).float()
        kept = band if kept is None else torch.cat([kept, band], dim=1)
        ready = int(torch.searchsorted(below, first + kept.shape[1]))
        block = max(1, values // (kept.shape[0] * size[1]))
        while done < ready:
            rows = slice(done, min(done + block, ready))
            upper = kept[:, (above[rows] - first).to(kept.device)]
            lower = kept[:, (below[rows] - first).to(kept.device)]
            mixed = torch.lerp(upper, lower, shares[rows].to(kept)[:, None])
            target = (mixed.shape[1], size[1])
            yield done, F.interpolate(mixed[None], size=target, mode="bilinear", align_corners=False)[0]
            done = rows.stop
        if done < size[0]:
            needed = min(int(above[done]), first + kept.shape[1])
            kept, first = kept[:, needed - first :], needed


def _equal_widths(columns: list[tuple[int, int]], batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """The windows in order, in groups of one width (the last one may be narrower)."""
    group: list[tuple[int, int]] = []
    for window in columns:
        if group and (len(group) == batch_size or group[0][1] - group[0][0] != window[1] - window[0]):
            yield group
            group = []
        group.append(window)
    yield group


def _stride(images: Tensor, logits: Tensor) -> int:
    """Pixels per cell of logits: the largest power of two up to :data:`ALIGNMENT` that loses none of them."""
    pixels = max(images.shape[-2] / logits.shape[-2], images.shape[-1] / logits.shape[-1])
    stride = 1
    while 2 * stride <= min(ALIGNMENT, pixels + 0.5):
        stride *= 2
    return stride


def _cells(pixels: int, stride: int) -> int:
    return -(-pixels // stride)


def _ramps(cells: int, overlap: int, before: bool, after: bool, like: Tensor) -> Tensor:
    """Weights along one axis of a window that has neighbours before or after it."""
    weights = torch.ones(cells, device=like.device, dtype=like.dtype)
    ramp = (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / max(overlap, 1)
    if before:
        weights = torch.minimum(weights, ramp)
    if after:
        weights = torch.minimum(weights, ramp.flip(0))
    return weights
