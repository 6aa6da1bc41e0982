"""MiB's two losses: against loops over pixels, by hand, and their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import DistillationLoss, PixelCrossEntropyLoss, UnbiasedCrossEntropyLoss, UnbiasedDistillationLoss
from fmwiss.losses.pixel_cross_entropy import IGNORED

N_OLD, N_ALL = 3, 5


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, N_ALL, 3, 4, generator=generator, dtype=torch.float64)
    old = 2 * torch.randn(2, N_OLD, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 4, IGNORED])[torch.randint(4, (2, 3, 4), generator=generator)]
    return logits, old, labels, torch.rand(2, 3, 4, generator=generator) < 0.7


def softmax(scores: list[float]) -> list[float]:
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


PLACES = list(itertools.product(range(2), range(3), range(4)))


def test_cross_entropy_agrees_with_a_loop() -> None:
    logits, _, labels, _ = example()
    terms = []
    for b, y, x in PLACES:
        p, label = softmax(logits[b, :, y, x].tolist()), int(labels[b, y, x])
        if label != IGNORED:
            terms.append(-math.log(sum(p[:N_OLD]) if label == 0 else p[label]))
    assert UnbiasedCrossEntropyLoss(N_OLD)(logits, labels).item() == pytest.approx(sum(terms) / len(terms))


def test_distillation_agrees_with_a_loop() -> None:
    logits, old, _, counted = example()
    terms = []
    for b, y, x in PLACES:
        if counted[b, y, x]:
            p, q = softmax(logits[b, :, y, x].tolist()), softmax(old[b, :, y, x].tolist())
            matched = [p[0] + sum(p[N_OLD:]), *p[1:N_OLD]]
            terms.append(sum(-a * math.log(m) for a, m in zip(q, matched, strict=True)) / N_OLD)
    assert UnbiasedDistillationLoss()(logits, old, counted).item() == pytest.approx(sum(terms) / len(terms))


def test_by_hand() -> None:
    """One pixel: background 1/8, two old classes 1/4 each, a new one 3/8; for the old model 1/2, 1/4, 1/4."""
    logits = torch.tensor([1 / 8, 1 / 4, 1 / 4, 3 / 8]).log().view(1, 4, 1, 1)
    old = torch.tensor([1 / 2, 1 / 4, 1 / 4]).log().view(1, 3, 1, 1)
    cross_entropy = UnbiasedCrossEntropyLoss(3)
    assert cross_entropy(logits, torch.tensor([[[0]]])).item() == pytest.approx(-math.log(5 / 8))
    assert cross_entropy(logits, torch.tensor([[[3]]])).item() == pytest.approx(-math.log(3 / 8))
    assert cross_entropy(logits, torch.tensor([[[2]]])).item() == pytest.approx(-math.log(5 / 8))  # an old class
    loss = UnbiasedDistillationLoss()(logits, old, torch.ones(1, 1, 1, dtype=torch.bool))
    # the background's half is matched by 1/8 + 3/8
    assert loss.item() == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(4)) / 3)


def test_a_model_that_explains_the_background_costs_nothing_more() -> None:
    """Moving probability from the background to an old class, or in distillation to a new one, changes nothing."""
    p = torch.tensor([0.5, 0.2, 0.3]).log().view(1, 3, 1, 1)
    moved = torch.tensor([0.1, 0.6, 0.3]).log().view(1, 3, 1, 1)
    background = torch.zeros(1, 1, 1, dtype=torch.long)
    assert UnbiasedCrossEntropyLoss(2)(p, background).item() == pytest.approx(
        UnbiasedCrossEntropyLoss(2)(moved, background).item()
    )
    assert PixelCrossEntropyLoss()(p, background) < PixelCrossEntropyLoss()(moved, background)
    old, here = p[:, :2], torch.ones(1, 1, 1, dtype=torch.bool)
    moved = torch.tensor([0.1, 0.2, 0.7]).log().view(1, 3, 1, 1)
    assert UnbiasedDistillationLoss()(p, old, here).item() == pytest.approx(
        UnbiasedDistillationLoss()(moved, old, here).item()
    )
    assert DistillationLoss()(p, old, here) < DistillationLoss()(moved, old, here)


def test_nothing_costs_nothing() -> None:
    logits, old, labels, counted = example()
    assert UnbiasedCrossEntropyLoss(N_OLD)(logits, torch.full_like(labels, IGNORED)).item() == 0
    assert UnbiasedDistillationLoss()(logits, old, torch.zeros_like(counted)).item() == 0


def test_gradients() -> None:
    logits, old, labels, counted = example()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: UnbiasedCrossEntropyLoss(N_OLD)(x, labels), logits)
    assert torch.autograd.gradcheck(lambda x: UnbiasedDistillationLoss()(x, old, counted), logits)
