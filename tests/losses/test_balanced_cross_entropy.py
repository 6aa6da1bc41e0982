"""BalancedCrossEntropyLoss and confident_labels against loops over pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import BalancedCrossEntropyLoss, confident_labels
from fmwiss.losses.balanced_cross_entropy import UNSURE


def slow_loss(logits: Tensor, labels: Tensor, expected: Tensor, valid: Tensor) -> float:
    total = 0.0
    for b in range(len(logits)):
        pixels = [(y, x) for y, x in itertools.product(*map(range, labels.shape[-2:])) if valid[b, y, x]]
        known = {p: int(labels[b][p]) for p in pixels if labels[b][p] != UNSURE}
        present = set(known.values())
        if present != {c for c in range(logits.shape[1]) if expected[b, c]}:
            continue
        loss = 0.0
        for (y, x), label in known.items():
            scores = logits[b, :, y, x].double().tolist()
            weight = sum(other != label for other in known.values()) / (1 + len(known))
            loss -= weight * math.log(math.exp(scores[label]) / sum(map(math.exp, scores)))
        total += loss / len(pixels)
    return total / len(logits)


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, 4, 5, 6, generator=generator)
    labels = torch.randint(-1, 3, (4, 5, 6), generator=generator)
    labels[1][labels[1] == 2] = UNSURE
    valid = torch.rand(4, 5, 6, generator=generator) < 0.8
    # as it is; one class less than expected; complete without class 2; one more than expected
    expected = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0]]).bool()
    expected[1, 2] = seed == 1
    return logits, labels, expected, valid


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_loop_over_pixels(seed: int) -> None:
    logits, labels, expected, valid = example(seed)
    loss = BalancedCrossEntropyLoss()(logits, labels, expected, valid)
    assert loss.item() == pytest.approx(slow_loss(logits, labels, expected, valid), rel=1e-5)
    assert loss > 0


def test_a_photograph_counts_only_with_exactly_the_expected_classes() -> None:
    logits, labels, expected, valid = example()
    logits.requires_grad_()
    BalancedCrossEntropyLoss()(logits, labels, expected, valid).backward()
    assert logits.grad is not None
    assert [bool(g.any()) for g in logits.grad] == [True, True, True, False]


def test_pixels_that_do_not_count_change_nothing() -> None:
    logits, labels, expected, valid = example()
    elsewhere = labels.masked_fill(~valid, 3)  # a class that is not expected, beyond the photograph
    loss = BalancedCrossEntropyLoss()
    assert loss(logits, elsewhere, expected, valid).equal(loss(logits, labels, expected, valid))
    nothing = loss(logits, labels, expected, torch.zeros_like(valid))
    assert nothing.item() == 0


def test_gradients() -> None:
    logits, labels, expected, valid = example()
    small = logits[:, :, :3, :3].double().requires_grad_()
    labels, valid = labels[:, :3, :3], torch.ones(4, 3, 3, dtype=torch.bool)
    assert BalancedCrossEntropyLoss()(small, labels, expected, valid) > 0
    assert torch.autograd.gradcheck(lambda z: BalancedCrossEntropyLoss()(z, labels, expected, valid), (small,))


def slow_labels(masks: Tensor, valid: Tensor, cutoffs: list[float], lowest: float) -> Tensor:
    labels = torch.full(valid.shape, UNSURE)
    for b in range(len(masks)):
        pixels = [(y, x) for y, x in itertools.product(*map(range, valid.shape[-2:])) if valid[b, y, x]]
        limits = [max(lowest, cutoffs[c] * max(float(masks[b, c][p]) for p in pixels)) for c in range(len(cutoffs))]
        for p in pixels:
            claims = [c for c, limit in enumerate(limits) if float(masks[b, c][p]) > limit]
            if len(claims) == 1:
                labels[b][p] = claims[0]
    return labels


def test_confident_labels_agree_with_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(3)
    masks = (2 * torch.randn(3, 3, 8, 8, generator=generator)).softmax(dim=1).double()
    masks[1, 2] = 0  # a class without a tag
    masks[2, 1] *= 0.2  # one that is nowhere sure
    valid = torch.rand(3, 8, 8, generator=generator) < 0.8
    cutoffs = [0.7, 0.6, 0.6]
    labels = confident_labels(masks, valid, torch.tensor(cutoffs).double(), 0.2)
    assert labels.equal(slow_labels(masks, valid, cutoffs, 0.2))
    assert set(labels.unique().tolist()) == {UNSURE, 0, 1, 2}
    assert not (labels[1] == 2).any() and not (labels[2] == 1).any()


def test_several_claims_are_none() -> None:
    masks = torch.tensor([0.9, 0.5, 0.1, 0.1, 0.5, 0.9]).view(1, 2, 1, 3)
    labels = confident_labels(masks, torch.ones(1, 1, 3, dtype=torch.bool), torch.tensor([0.5, 0.5]), 0.2)
    assert labels.tolist() == [[[0, UNSURE, 1]]]
    assert confident_labels(masks, torch.zeros(1, 1, 3, dtype=torch.bool), torch.ones(2), 0.2).eq(UNSURE).all()
