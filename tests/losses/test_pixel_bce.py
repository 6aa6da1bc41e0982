"""PixelBCELoss against loops over pixels and hand-worked numbers (paper, equations 6, 8 and 11)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import PixelBCELoss


def slow_bce(logits: Tensor, target: Tensor, weight: Tensor, reduction: str) -> float:
    """The equations as printed, one pixel and class after the other."""
    b, c, h, w = logits.shape
    weight = weight.double().expand(b, c, h, w)
    total, counted = 0.0, 0.0
    for i in range(b):
        for j in range(c):
            for y in range(h):
                for x in range(w):
                    p = 1 / (1 + math.exp(-float(logits[i, j, y, x])))
                    q = float(target[i, j, y, x])
                    total -= float(weight[i, j, y, x]) * (q * math.log(p) + (1 - q) * math.log(1 - p))
                    counted += float(weight[i, j, y, x])
    mean = total / counted if counted else 0.0
    return mean * c if reduction == "sum-classes" else mean


@pytest.mark.parametrize("reduction", ["mean", "sum-classes"])
@pytest.mark.parametrize("weight_shape", [(2, 1, 4, 5), (2, 3, 4, 5), (1, 1, 1, 1), (2, 3, 1, 1)])
def test_agrees_with_a_loop_over_pixels_and_classes(reduction: str, weight_shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.rand(2, 3, 4, 5, generator=generator)
    weight = torch.rand(weight_shape, generator=generator) < 0.7
    weight.flatten()[0] = True
    loss = PixelBCELoss(reduction)(logits, target, weight)
    assert loss.item() == pytest.approx(slow_bce(logits, target, weight, reduction), rel=1e-5)


def test_hand_worked_numbers() -> None:
    # p = 1/2 and 3/4; targets 1 and 0: -(log 1/2 + log 1/4) / 2 = 1.5 log 2
    logits = torch.tensor([0.0, math.log(3.0)]).view(1, 2, 1, 1)
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert float(PixelBCELoss()(logits, target, torch.ones(1, 1, 1, 1))) == pytest.approx(1.5 * math.log(2))
    assert float(PixelBCELoss("sum-classes")(logits, target, torch.ones(1, 1, 1, 1))) == pytest.approx(3 * math.log(2))


def test_soft_targets_are_best_met_at_their_own_value() -> None:
    target = torch.tensor([0.2, 0.9]).view(1, 2, 1, 1)
    logits = torch.logit(target).requires_grad_()
    PixelBCELoss()(logits, target, torch.ones(1, 1, 1, 1)).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)


def test_pixels_that_do_not_count_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)
    weight = torch.rand(2, 1, 4, 4, generator=generator) < 0.5
    other = torch.where(weight, logits, 50.0).requires_grad_()
    loss = PixelBCELoss()(other, target, weight)
    torch.testing.assert_close(loss, PixelBCELoss()(logits, target, weight))
    loss.backward()
    assert other.grad is not None
    assert not other.grad[~weight.expand_as(other)].any()


def test_nothing_counts() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = PixelBCELoss()(logits, torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_weights_below_one_are_a_weighted_mean() -> None:
    logits, target = torch.zeros(1, 1, 1, 2), torch.tensor([1.0, 1.0]).view(1, 1, 1, 2)
    weight = torch.tensor([0.2, 0.1]).view(1, 1, 1, 2)
    assert float(PixelBCELoss()(logits, target, weight)) == pytest.approx(math.log(2))


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([-1e4, 1e4]).view(1, 1, 1, 2).requires_grad_()
    loss = PixelBCELoss()(logits, torch.tensor([1.0, 1.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_many_pixels_exactly(dtype: torch.dtype) -> None:
    # 300 x 300 pixels are more than float16 can count (65 504) or bfloat16 can tell apart
    logits = torch.zeros(1, 1, 300, 300, dtype=dtype)
    weight = torch.ones(1, 1, 300, 300, dtype=torch.bool)
    loss = PixelBCELoss()(logits, torch.zeros_like(logits), weight)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-3)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 1, 2, 2, generator=generator) < 0.7
    for reduction in ("mean", "sum-classes"):
        assert torch.autograd.gradcheck(PixelBCELoss(reduction), (logits, target, weight))


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="sum-classes"):
        PixelBCELoss("sum")
