"""SEAM's losses against loops over photographs, classes and places."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fmwiss.losses.equivariance import (
    cross_refinement_loss,
    dark_loss,
    equivariance_loss,
    normalised,
    only_largest,
    with_background,
)

WHOLE = torch.ones(2, 1, 4, 5, dtype=torch.bool)


def example(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, 4, 5, generator=generator), torch.rand(2, channels, 4, 5, generator=generator)


def test_normalised_maps_go_from_0_to_1() -> None:
    maps = torch.tensor([[-1.0, 0.0, 1.0, 3.0], [0.5, 1.0, 1.5, 2.5], [0.0, 0.0, 0.0, 0.0]]).view(1, 3, 1, 4)
    expected = torch.tensor([[0, 0, 1 / 3, 1], [0, 0.25, 0.5, 1], [0, 0, 0, 0]]).view(1, 3, 1, 4)
    torch.testing.assert_close(normalised(maps), expected, atol=1e-4, rtol=0)
    inside = torch.tensor([False, True, True, False]).view(1, 1, 1, 4)
    expected = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).view(1, 3, 1, 4)
    torch.testing.assert_close(normalised(maps, inside), expected.float(), atol=1e-4, rtol=0)


def test_background_and_largest_by_hand() -> None:
    maps = torch.tensor([[0.2, 0.9], [0.5, 0.1]]).view(1, 2, 1, 2)
    whole = with_background(maps)
    torch.testing.assert_close(whole, torch.tensor([[0.5, 0.1], [0.2, 0.9], [0.5, 0.1]]).view(1, 3, 1, 2))
    largest = torch.tensor([[0.5, 0.1], [0.0, 0.9], [0.5, 0.0]]).view(1, 3, 1, 2)
    torch.testing.assert_close(only_largest(whole), largest)


def test_equivariance_loss_is_the_mean_distance() -> None:
    first, second = example()
    terms = [abs(float(a) - float(b)) for a, b in zip(first.flatten(), second.flatten(), strict=True)]
    assert equivariance_loss(first, second, WHOLE).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_cross_refinement_looks_at_the_worst_fifth() -> None:
    refined, other = example(4)
    worst = []
    for b in range(2):
        distances = []
        for c, y, x in itertools.product(range(4), range(4), range(5)):
            value = float(other[b, c, y, x])
            if c > 0 and value < max(float(other[b, k, y, x]) for k in range(1, 4)):
                value = 0.0
            distances.append(abs(value - float(refined[b, c, y, x])))
        worst += sorted(distances)[-16:]  # a fifth of 80
    assert cross_refinement_loss(refined, other, WHOLE).item() == pytest.approx(sum(worst) / len(worst), rel=1e-5)


def test_cross_refinement_teaches_the_refined_maps_alone() -> None:
    refined, other = (maps.requires_grad_() for maps in example(4))
    cross_refinement_loss(refined, other, WHOLE).backward()
    assert refined.grad is not None and refined.grad.any() and other.grad is None


def test_dark_loss_looks_at_the_darkest_quarter() -> None:
    maps, _ = example()
    darkest = []
    for b in range(2):
        places = [max(float(maps[b, c, y, x]) for c in range(3)) for y, x in itertools.product(range(4), range(5))]
        darkest += sorted(places)[:5]
    assert dark_loss(maps, WHOLE).item() == pytest.approx(sum(darkest) / len(darkest), rel=1e-5)


def test_what_lies_outside_does_not_count() -> None:
    """A photograph with padding gives what it gives without; whatever stands in the padding."""
    refined, other = example(4)
    wide = torch.zeros(2, 1, 4, 9, dtype=torch.bool)
    wide[..., :5] = True
    for value in (0.0, 1.0):
        padded = [torch.cat([maps, torch.full((2, 4, 4, 4), value)], dim=3) for maps in (refined, other)]
        torch.testing.assert_close(equivariance_loss(*padded, wide), equivariance_loss(refined, other, WHOLE))
        torch.testing.assert_close(cross_refinement_loss(*padded, wide), cross_refinement_loss(refined, other, WHOLE))
        torch.testing.assert_close(dark_loss(padded[0], wide), dark_loss(refined, WHOLE))
        torch.testing.assert_close(normalised(padded[0], wide)[..., :5], normalised(refined))


def test_gradients() -> None:
    first, second = (maps[:1, :, :2, :2].double().requires_grad_() for maps in example())
    inside = WHOLE[:1, :, :2, :2]
    assert torch.autograd.gradcheck(lambda *maps: equivariance_loss(*maps, inside), (first, second))
    assert torch.autograd.gradcheck(lambda maps: cross_refinement_loss(maps, second, inside), (first,))
    assert torch.autograd.gradcheck(lambda maps: dark_loss(maps, inside), (first,))
    assert torch.autograd.gradcheck(normalised, (first,))
