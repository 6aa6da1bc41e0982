"""ImageLabelLoss against loops over photographs, classes and pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import ImageLabelLoss


def slow_pool(scores: Tensor, valid: Tensor, b: int, c: int, focal_lambda: float, focal_p: float) -> float:
    """Normalised global weighted pooling and focal penalty of one photograph and label."""
    weighted, mass, count = 0.0, 0.0, 0
    for y, x in itertools.product(*map(range, scores.shape[-2:])):
        if not valid[b, 0, y, x]:
            continue
        pixel = scores[b, :, y, x].double().tolist()
        m = math.exp(pixel[c]) / sum(map(math.exp, pixel))
        weighted, mass, count = weighted + m * pixel[c], mass + m, count + 1
    size = mass / count
    return weighted / (1 + mass) + (1 - size) ** focal_p * math.log(focal_lambda + size)


@pytest.mark.parametrize(("focal_lambda", "focal_p"), [(0.01, 3.0), (0.2, 1.0)])
@pytest.mark.parametrize("some_unknown", [False, True])
def test_agrees_with_loops(focal_lambda: float, focal_p: float, some_unknown: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(3, 5, 4, 6, generator=generator)
    valid = torch.rand(3, 1, 4, 6, generator=generator) < 0.8
    present = (torch.rand(3, 2, generator=generator) < 0.5).float()
    counted = present > 0
    assert 0 < counted.sum() < counted.numel()
    terms = []
    for b, j in itertools.product(range(3), range(2)):
        if some_unknown and not counted[b, j]:
            continue
        p = 1 / (1 + math.exp(-slow_pool(scores, valid, b, 3 + j, focal_lambda, focal_p)))
        terms.append(-math.log(p if present[b, j] else 1 - p))
    loss = ImageLabelLoss(focal_lambda, focal_p)(scores, present, valid, counted if some_unknown else None)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_pooled_scores_by_hand() -> None:
    # two pixels, softmax (1/2, 1/2) and (3/4, 1/4) over two labels
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]).view(1, 2, 1, 2)
    pooled = ImageLabelLoss().pool(scores, torch.ones(1, 1, 1, 2, dtype=torch.bool))
    first = 0.75 * math.log(3) / 2.25 + 0.375**3 * math.log(0.01 + 0.625)
    second = 0.625**3 * math.log(0.01 + 0.375)
    torch.testing.assert_close(pooled, torch.tensor([[first, second]]))


def test_the_penalty_wants_a_class_to_cover_ground() -> None:
    small, large = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    small[0, 1], large[0, 1] = -4.0, -4.0
    small[0, 1, 0, 0] = 4.0
    large[0, 1, :2] = 4.0
    loss, valid = ImageLabelLoss(), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert loss(large, torch.ones(1, 1), valid) < loss(small, torch.ones(1, 1), valid)


def test_what_lies_beyond_the_photograph_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, 3, 4, 4, generator=generator)
    valid = torch.rand(2, 1, 4, 4, generator=generator) < 0.5
    other = torch.where(valid, scores, 7.0).requires_grad_()
    present = torch.tensor([[1.0], [0.0]])
    loss = ImageLabelLoss()(other, present, valid)
    assert loss.item() == pytest.approx(ImageLabelLoss()(scores, present, valid).item(), rel=1e-6)
    loss.backward()
    assert other.grad is not None and other.grad[~valid.expand_as(other)].eq(0).all()


@pytest.mark.parametrize("nothing", ["counted", "valid"])
def test_nothing_that_counts(nothing: str) -> None:
    scores = torch.zeros(1, 3, 2, 2, requires_grad=True)
    valid = torch.full((1, 1, 2, 2), nothing != "valid")
    counted = torch.full((1, 1), nothing != "counted")
    loss = ImageLabelLoss()(scores, torch.ones(1, 1), valid, counted)
    loss.backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all() and torch.isfinite(loss)
    if nothing == "counted":
        assert loss.item() == 0


def test_half_precision_is_summed_in_single() -> None:
    scores = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    valid, present = torch.ones(1, 1, 64, 64, dtype=torch.bool), torch.ones(1, 2)
    half = ImageLabelLoss()(scores.bfloat16(), present, valid)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(ImageLabelLoss()(scores, present, valid).item(), rel=1e-2)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.double, requires_grad=True)
    valid = torch.rand(2, 1, 3, 3, generator=generator) < 0.8
    present = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert torch.autograd.gradcheck(lambda z: ImageLabelLoss()(z, present, valid), (scores,))
