"""SaliencyLoss against a loop over photographs, classes and pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import SaliencyLoss


def slow_loss(scores: Tensor, saliency: Tensor, tags: Tensor, valid: Tensor, tau: float, lam: float) -> float:
    terms = []
    for b in range(len(scores)):
        pixels = [p for p in itertools.product(*map(range, saliency.shape[-2:])) if valid[b, 0][p]]
        masks = {}
        for p in pixels:
            exponentials = [math.exp(float(score)) for score in scores[b, :, p[0], p[1]]]
            masks[p] = [e / sum(exponentials) for e in exponentials]
        agrees = {}
        for c in range(1, scores.shape[1]):
            claimed = [p for p in pixels if masks[p][c] > 0.5]
            salient = [p for p in claimed if saliency[b][p] > 0.5]
            agrees[c] = len(salient) / (len(claimed) + 1e-4) > tau
        for p in pixels:
            foreground = sum(masks[p][c] for c in agrees if tags[b, c - 1] and agrees[c])
            background = masks[p][0] + sum(masks[p][c] for c in agrees if tags[b, c - 1] and not agrees[c])
            terms.append((lam * foreground + (1 - lam) * (1 - background) - float(saliency[b][p])) ** 2)
    return sum(terms) / len(terms)


def example(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(3, 4, 5, 6, generator=generator)
    saliency = torch.rand(3, 5, 6, generator=generator).square()
    tags = torch.tensor([[True, True, False], [False, True, True], [True, False, False]])
    return scores, saliency, tags, torch.rand(3, 1, 5, 6, generator=generator) < 0.8


@pytest.mark.parametrize(("tau", "lam"), [(0.4, 0.5), (0.1, 0.8)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_a_loop_over_pixels(seed: int, tau: float, lam: float) -> None:
    values = example(seed)
    assert SaliencyLoss(tau, lam)(*values).item() == pytest.approx(slow_loss(*values, tau, lam), rel=1e-4)


def test_a_class_beside_the_salient_thing_is_background() -> None:
    scores = torch.full((1, 3, 2, 2), -9.0)
    scores[0, 1, 0], scores[0, 2, 1] = 9.0, 9.0  # the first class above, the second below
    saliency = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    valid, loss = torch.ones(1, 1, 2, 2, dtype=torch.bool), SaliencyLoss()
    assert loss(scores, saliency, torch.tensor([[True, True]]), valid) < 1e-6
    assert loss(scores, 1 - saliency, torch.tensor([[True, True]]), valid) < 1e-6
    # untagged, it is neither: half of the foreground is missing
    assert loss(scores, saliency, torch.tensor([[False, True]]), valid).item() == pytest.approx(0.125, abs=1e-4)


def test_nothing_that_counts() -> None:
    scores, saliency, tags, valid = example(0)
    assert SaliencyLoss()(scores, saliency, tags, torch.zeros_like(valid)).item() == 0


def test_gradients() -> None:
    scores, saliency, tags, valid = example(0)
    scores = scores[:, :, :3, :3].double().requires_grad_()
    rest = (saliency[:, :3, :3].double(), tags, valid[:, :, :3, :3])
    assert torch.autograd.gradcheck(lambda z: SaliencyLoss()(z, *rest), (scores,))
