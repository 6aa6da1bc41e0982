"""PixelCrossEntropyLoss: against a loop over pixels, by hand, and its gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import PixelCrossEntropyLoss
from fmwiss.losses.pixel_cross_entropy import IGNORED


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (2, 3, 5), generator=generator)
    labels[0, 0] = IGNORED
    return logits, labels, torch.rand(2, 1, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_it_agrees_with_a_loop_over_pixels(weighted: bool) -> None:
    logits, labels, weight = example()
    total, pixels = 0.0, 0
    for b, y, x in itertools.product(range(2), range(3), range(5)):
        label = int(labels[b, y, x])
        if label == IGNORED:
            continue
        scores = logits[b, :, y, x].tolist()
        term = -math.log(math.exp(scores[label]) / sum(map(math.exp, scores)))
        total += term * (float(weight[b]) if weighted else 1)
        pixels += 1
    loss = PixelCrossEntropyLoss()(logits, labels, weight if weighted else None)
    assert loss.item() == pytest.approx(total / pixels)


def test_by_hand() -> None:
    """Odds of 3 : 1 for the right label in one pixel, for the wrong one in the other; a third is void."""
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [5.0, -5.0]]).T.view(1, 2, 1, 3)
    loss = PixelCrossEntropyLoss()(logits, torch.tensor([[[0, 1, IGNORED]]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_nothing_costs_nothing_and_its_gradient_is_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = PixelCrossEntropyLoss()(logits, torch.full((1, 2, 2), IGNORED))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.eq(0).all()


def test_half_precision_is_summed_in_single() -> None:
    logits, labels, _ = example()
    loss = PixelCrossEntropyLoss()(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(PixelCrossEntropyLoss()(logits.bfloat16().double(), labels).item(), rel=1e-5)


def test_gradient() -> None:
    logits, labels, weight = example()
    assert torch.autograd.gradcheck(lambda x: PixelCrossEntropyLoss()(x, labels, weight), logits.requires_grad_())
