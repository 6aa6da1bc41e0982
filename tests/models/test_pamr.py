"""Pixel-adaptive mask refinement against a loop over pixels and neighbours."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from torch import Tensor

from fmwiss.models import pixel_affinity, refine_masks


def neighbours(y: int, x: int, h: int, w: int, dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    """The eight around a pixel at every distance, moved back onto the picture."""
    steps = [(dy, dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2) if dy or dx]
    return [
        (min(max(y + d * dy, 0), h - 1), min(max(x + d * dx, 0), w - 1)) for d in dilations for dy, dx in steps
    ]


def slow_affinity(image: Tensor, y: int, x: int, dilations: tuple[int, ...]) -> list[float]:
    """Softmax over the neighbours of one pixel of a ``(K, h, w)`` image."""
    channels, h, w = image.shape
    around = neighbours(y, x, h, w, dilations)
    means = [0.0] * len(around)
    for k in range(channels):
        centre = float(image[k, y, x])
        values = [float(image[k, j, i]) for j, i in around]
        spread = statistics.stdev([*values, *[centre] * len(dilations)])
        for n, value in enumerate(values):
            means[n] -= abs(centre - value) / (1e-8 + 0.1 * spread) / channels
    exponentials = [math.exp(mean - max(means)) for mean in means]
    return [e / sum(exponentials) for e in exponentials]


def slow_refinement(image: Tensor, mask: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    """One image and one mask ``(h, w)``."""
    h, w = mask.shape
    values = mask.double().tolist()
    pixels = list(itertools.product(range(h), range(w)))
    weights = {(y, x): slow_affinity(image, y, x, dilations) for y, x in pixels}
    for _ in range(iterations):
        old, values = values, [[0.0] * w for _ in range(h)]
        for y, x in pixels:
            around = neighbours(y, x, h, w, dilations)
            values[y][x] = sum(a * old[j][i] for a, (j, i) in zip(weights[y, x], around, strict=True))
    return torch.tensor(values)


@pytest.mark.parametrize(("size", "dilations", "iterations"), [((6, 7), (1, 2), 3), ((5, 4), (1, 2, 4, 8, 12), 10)])
def test_agrees_with_a_loop_over_pixels(size: tuple[int, int], dilations: tuple[int, ...], iterations: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator).double()
    masks = torch.rand(2, 3, *size, generator=generator).double()
    refined = refine_masks(masks, pixel_affinity(images, dilations), dilations, iterations)
    for b, c in itertools.product(range(2), range(3)):
        slow = slow_refinement(images[b], masks[b, c], dilations, iterations)
        torch.testing.assert_close(refined[b, c].float(), slow, atol=1e-5, rtol=1e-5)


def test_affinities_are_a_distribution_over_the_neighbours() -> None:
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    affinity = pixel_affinity(images, (1, 3))
    assert affinity.shape == (2, 16, 6, 6)
    torch.testing.assert_close(affinity.sum(dim=1), torch.ones(2, 6, 6))
    # what all channels are multiplied by does not matter
    torch.testing.assert_close(pixel_affinity(images * 255, (1, 3)), affinity)


def test_a_picture_of_one_colour_is_blurred_evenly() -> None:
    affinity = pixel_affinity(torch.full((1, 3, 5, 5), 0.3), (1,))
    torch.testing.assert_close(affinity, torch.full((1, 8, 5, 5), 1 / 8))


def test_masks_do_not_cross_an_edge_in_the_picture() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1.0
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 3, :3] = 1.0
    refined = refine_masks(mask, pixel_affinity(image, (1, 2)), (1, 2), 10)
    assert refined[..., 4:].sum() < 1e-3 * refined[..., :4].sum()


def test_values_stay_in_range_and_nothing_is_done_in_no_iterations() -> None:
    generator = torch.Generator().manual_seed(1)
    images, masks = torch.rand(1, 3, 5, 5, generator=generator), torch.rand(1, 4, 5, 5, generator=generator)
    affinity = pixel_affinity(images, (1, 2))
    refined = refine_masks(masks, affinity, (1, 2), 4)
    assert masks.min() <= refined.min() and refined.max() <= masks.max()
    whole = refine_masks(masks.softmax(dim=1), affinity, (1, 2), 4)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(1, 5, 5))
    assert refine_masks(masks, affinity, (1, 2), 0).equal(masks)
