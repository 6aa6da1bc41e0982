"""SparsityLoss: against a loop over places, by hand, and its gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import SparsityLoss


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, 4, generator=generator, dtype=torch.float64) + 1
    return features, torch.tensor([0, 3, 255])[torch.randint(3, (2, 3, 4), generator=generator)]


def test_it_agrees_with_a_loop_over_places() -> None:
    features, labels = example()
    at = [place for place in itertools.product(range(2), range(3), range(4)) if labels[place] != 255]
    positive = {(b, y, x): [max(0.0, v) for v in features[b, :, y, x].tolist()] for b, y, x in at}
    terms = []
    for place, values in positive.items():
        largest = max(max(other) for where, other in positive.items() if labels[where] == labels[place])
        normalised = [value / largest for value in values]
        terms.append(sum(map(math.exp, normalised)) / sum(normalised))
    assert SparsityLoss()(features, labels).item() == pytest.approx(sum(terms) / len(terms))


def test_by_hand() -> None:
    """Two places of one class: (4, 0) and (2, 2), of which 4 is the largest; a place of another class is its own."""
    features = torch.tensor([[4.0, 2.0, 7.0], [0.0, 2.0, -5.0]]).view(1, 2, 1, 3)
    sparse, spread = (math.e + 1) / 1, 2 * math.exp(0.5) / 1
    loss = SparsityLoss()(features, torch.tensor([[[0, 0, 1]]]))
    assert loss.item() == pytest.approx((sparse + spread + sparse) / 3)


def test_silent_places_cost_a_bounded_sum_and_nothing_costs_nothing() -> None:
    features = -torch.ones(1, 3, 1, 2, requires_grad=True)
    loss = SparsityLoss()(features, torch.zeros(1, 1, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(3 / 0.01)
    assert SparsityLoss()(features, torch.full((1, 1, 2), 255)).item() == 0


def test_gradient() -> None:
    features, labels = example()
    assert torch.autograd.gradcheck(lambda x: SparsityLoss()(x, labels), features.requires_grad_())
