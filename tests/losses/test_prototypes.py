"""SDR's losses on where classes' features lie: against loops over places, by hand, and their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import AttractionLoss, PrototypeMatchingLoss, RepulsionLoss
from fmwiss.losses.prototypes import NO_CLASS, class_sums

N, D = 5, 3


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class 0 is nowhere, class 4 has no prototype."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, D, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, 2, 3, 4, NO_CLASS])[torch.randint(5, (2, 3, 4), generator=generator)]
    prototypes = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return features, labels, prototypes, torch.tensor([True, True, True, True, False])


def places(features: Tensor, labels: Tensor, label: int) -> list[list[float]]:
    at = itertools.product(range(2), range(3), range(4))
    return [features[b, :, y, x].tolist() for b, y, x in at if labels[b, y, x] == label]


def mean_of(vectors: list[list[float]]) -> list[float]:
    return [sum(vector[d] for vector in vectors) / len(vectors) for d in range(D)]


def squared_error(first: list[float], second: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / D


def test_they_agree_with_loops_over_places() -> None:
    features, labels, prototypes, known = example()
    matching, attraction = [], []
    for label in (1, 2, 3):
        found = places(features, labels, label)
        matching.append(squared_error(mean_of(found), prototypes[label].tolist()))
        attraction.append(sum(squared_error(one, prototypes[label].tolist()) for one in found) / len(found))
    assert PrototypeMatchingLoss()(features, labels, prototypes, known).item() == pytest.approx(sum(matching) / 3)
    assert AttractionLoss()(features, labels, prototypes, known).item() == pytest.approx(sum(attraction) / 3)
    means = [mean_of(places(features, labels, label)) for label in (1, 2, 3, 4)]
    inverse = [1 / math.dist(a, b) for a, b in itertools.permutations(means, 2)]
    assert RepulsionLoss()(features, labels, N).item() == pytest.approx(sum(inverse) / len(inverse))


def test_by_hand() -> None:
    """Two places of class 1 at 1 and 3, one of class 2 at 10; prototypes 0 and 7."""
    features, labels = torch.tensor([1.0, 3.0, 10.0, 99.0]).view(1, 1, 1, 4), torch.tensor([[[1, 1, 2, NO_CLASS]]])
    prototypes, known = torch.tensor([[50.0], [0.0], [7.0]]), torch.tensor([True, True, True])
    assert PrototypeMatchingLoss()(features, labels, prototypes, known).item() == pytest.approx((4 + 9) / 2)
    assert AttractionLoss()(features, labels, prototypes, known).item() == pytest.approx(((1 + 9) / 2 + 9) / 2)
    assert RepulsionLoss()(features, labels, 3).item() == pytest.approx(1 / 8)
    sums, counts = class_sums(features, labels, 3)
    assert (sums.flatten().tolist(), counts.tolist()) == ([0.0, 4.0, 10.0], [0, 2, 1])


def test_without_classes_or_prototypes_there_is_no_loss() -> None:
    features, labels, prototypes, known = example()
    nowhere = torch.full_like(labels, NO_CLASS)
    learning = features.clone().requires_grad_()
    total = (
        PrototypeMatchingLoss()(learning, nowhere, prototypes, known)
        + AttractionLoss()(learning, labels, prototypes, torch.zeros_like(known))
        + RepulsionLoss()(learning, torch.where(labels == 1, labels, nowhere), N)
    )
    total.backward()
    assert total.item() == 0 and learning.grad is not None and learning.grad.eq(0).all()


def test_means_at_one_place_repel_boundedly() -> None:
    features = torch.ones(1, 2, 1, 2, requires_grad=True)
    loss = RepulsionLoss()(features, torch.tensor([[[0, 1]]]), 2)
    loss.backward()
    assert loss.item() == pytest.approx(1000) and features.grad is not None and features.grad.isfinite().all()


def test_gradients() -> None:
    features, labels, prototypes, known = example()
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PrototypeMatchingLoss()(x, labels, prototypes, known), features)
    assert torch.autograd.gradcheck(lambda x: AttractionLoss()(x, labels, prototypes, known), features)
    assert torch.autograd.gradcheck(lambda x: RepulsionLoss()(x, labels, N), features)
