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


def example(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, 4, 5, generator=generator), torch.rand(2, channels, 4, 5, generator=generator)


def test_normalised_maps_go_from_0_to_1() -> None:
    maps = torch.tensor([[-1.0, 0.0, 1.0, 3.0], [0.5, 1.0, 1.5, 2.5], [0.0, 0.0, 0.0, 0.0]]).view(1, 3, 1, 4)
    expected = torch.tensor([[0, 0, 1 / 3, 1], [0, 0.25, 0.5, 1], [0, 0, 0, 0]]).view(1, 3, 1, 4)
    torch.testing.assert_close(normalised(maps), expected, atol=1e-4, rtol=0)


def test_background_and_largest_by_hand() -> None:
    maps = torch.tensor([[0.2, 0.9], [0.5, 0.1]]).view(1, 2, 1, 2)
    whole = with_background(maps)
    torch.testing.assert_close(whole, torch.tensor([[0.5, 0.1], [0.2, 0.9], [0.5, 0.1]]).view(1, 3, 1, 2))
    largest = torch.tensor([[0.5, 0.1], [0.0, 0.9], [0.5, 0.0]]).view(1, 3, 1, 2)
    torch.testing.assert_close(only_largest(whole), largest)


def test_equivariance_loss_is_the_mean_distance() -> None:
    first, second = example()
    terms = [abs(float(a) - float(b)) for a, b in zip(first.flatten(), second.flatten(), strict=True)]
    assert equivariance_loss(first, second).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


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
    assert cross_refinement_loss(refined, other).item() == pytest.approx(sum(worst) / len(worst), rel=1e-5)


def test_cross_refinement_teaches_the_refined_maps_alone() -> None:
    refined, other = (maps.requires_grad_() for maps in example(4))
    cross_refinement_loss(refined, other).backward()
    assert refined.grad is not None and refined.grad.any() and other.grad is None


def test_dark_loss_looks_at_the_darkest_quarter() -> None:
    maps, _ = example()
    darkest = []
    for b in range(2):
        places = [max(float(maps[b, c, y, x]) for c in range(3)) for y, x in itertools.product(range(4), range(5))]
        darkest += sorted(places)[:5]
    assert dark_loss(maps).item() == pytest.approx(sum(darkest) / len(darkest), rel=1e-5)


def test_gradients() -> None:
    first, second = (maps[:1, :, :2, :2].double().requires_grad_() for maps in example())
    assert torch.autograd.gradcheck(equivariance_loss, (first, second))
    assert torch.autograd.gradcheck(lambda maps: cross_refinement_loss(maps, second), (first,))
    assert torch.autograd.gradcheck(dark_loss, (first,))
    assert torch.autograd.gradcheck(normalised, (first,))
