"""Windows, blending and resizing band by band, against whole images."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.inference.tiles import ALIGNMENT, blended_rows, resized_rows, windows


@pytest.mark.parametrize("length", [1, 31, 64, 65, 96, 97, 128, 129, 1000, 1024, 1025])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 32), (128, 32), (128, 96), (256, 64)])
def test_windows_cover_an_axis_and_overlap(length: int, tile: int, overlap: int) -> None:
    found = windows(length, tile, overlap)
    assert found[0][0] == 0 and found[-1][1] == length
    for (start, stop), (following, _) in itertools.pairwise(found):
        assert start < following and stop - following >= overlap and stop - start == tile
        assert following % ALIGNMENT == 0
    assert tile - ALIGNMENT < found[-1][1] - found[-1][0] <= tile or len(found) == 1
    assert len(found) <= max(1, 1 + -(-length // (tile - overlap)))  # no more than it takes


def local_logits(stride: int, labels: int = 3):
    """A network that sees nothing beyond a cell: windows cannot make a difference."""
    weight = torch.randn(labels, 3, 1, 1, generator=torch.Generator().manual_seed(1))

    def logits(images: Tensor) -> Tensor:
        return F.avg_pool2d(F.conv2d(images, weight), stride, ceil_mode=True, count_include_pad=False)

    return logits


def tiled(logits_of, image: Tensor, tile: int, overlap: int, batch_size: int = 2) -> tuple[int, Tensor]:
    def crop(top: int, bottom: int, left: int, right: int) -> Tensor:
        return image[:, :, top:bottom, left:right]

    bands = list(blended_rows(logits_of, crop, tuple(image.shape[-2:]), tile, overlap, batch_size))
    assert {height for height, _ in bands} == {sum(band.shape[1] for _, band in bands)}
    return bands[0][0], torch.cat([band for _, band in bands], dim=1)


@pytest.mark.parametrize("stride", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("size", [(64, 64), (200, 331), (65, 500), (40, 300), (257, 17)])
@pytest.mark.parametrize("overlap", [0, 32])
def test_a_network_without_surroundings_gives_what_it_gives_whole(
    stride: int, size: tuple[int, int], overlap: int
) -> None:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    logits_of = local_logits(stride)
    _, blended = tiled(logits_of, image, 64, overlap)
    torch.testing.assert_close(blended, logits_of(image)[0])


def test_where_windows_overlap_weights_fall_linearly_to_their_borders() -> None:
    number = itertools.count()

    def logits_of(images: Tensor) -> Tensor:  # every window says its number everywhere
        return torch.stack([torch.full((1, 1, images.shape[-1] // 8), float(next(number))) for _ in images])

    _, blended = tiled(logits_of, torch.zeros(1, 3, 8, 96), 64, 32, batch_size=3)
    # windows [0, 64) and [32, 96), cells of 8 pixels: the second one's weight in cells 4 to 7 rises from 1/8 to 7/8
    assert blended[0, 0].tolist() == [0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]


def test_the_interior_is_that_of_the_whole_where_the_overlap_exceeds_what_the_network_sees() -> None:
    kernel = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))

    def logits_of(images: Tensor) -> Tensor:
        return F.conv2d(images, kernel, padding=4)

    image = torch.rand(1, 3, 150, 170, generator=torch.Generator().manual_seed(0))
    _, blended = tiled(logits_of, image, 96, 64)
    whole = logits_of(image)[0]
    # inside the first window, and further from its border than the network sees, only the blend's other windows err
    torch.testing.assert_close(blended[:, :28, :28], whole[:, :28, :28])
    assert (blended - whole).abs().mean() < 0.1 * whole.std()


@pytest.mark.parametrize("height", [1, 2, 7, 33])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 20), (100, 64)])
@pytest.mark.parametrize("values", [1, 200, 10**6])
def test_resizing_by_bands_is_resizing(height: int, size: tuple[int, int], values: int) -> None:
    logits = torch.randn(3, height, 6, generator=torch.Generator().manual_seed(0))
    cuts = [0, *sorted({height // 3, height // 2}), height]
    bands = [(height, logits[:, a:b]) for a, b in itertools.pairwise(cuts) if b > a]
    rows = list(resized_rows(bands, size, values))
    assert [first for first, _ in rows] == list(itertools.accumulate((r.shape[1] for _, r in rows[:-1]), initial=0))
    assert all(r.numel() <= max(values, 3 * size[1]) for _, r in rows)
    whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([r for _, r in rows], dim=1), whole)
