"""The three distillations: against loops over pixels and labels, by hand, and their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fmwiss.losses import BinaryDistillationLoss, DistillationLoss, EntropyWeightedDistillationLoss

N_OLD, N_ALL = 3, 5
LOSSES: dict[str, nn.Module] = {
    "softmax": DistillationLoss(),
    "binary": BinaryDistillationLoss(),
    "entropy": EntropyWeightedDistillationLoss(),
    "less entropy": EntropyWeightedDistillationLoss(0.25),
}


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, N_ALL, 3, 4, generator=generator, dtype=torch.float64)
    old = 2 * torch.randn(2, N_OLD, 3, 4, generator=generator, dtype=torch.float64)
    return logits, old, torch.rand(2, 3, 4, generator=generator) < 0.7


def softmax(scores: list[float]) -> list[float]:
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


def slow(name: str, new: list[float], old: list[float]) -> float:
    """Of one pixel."""
    if name == "softmax":
        return sum(-q * math.log(p) for q, p in zip(softmax(old), softmax(new[:N_OLD]), strict=True)) / N_OLD
    if name == "binary":
        pairs = [(1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))) for a, b in zip(old, new[:N_OLD], strict=True)]
        return sum(-q * math.log(p) - (1 - q) * math.log(1 - p) for q, p in pairs) / N_OLD
    q = softmax(old)
    bits = -sum(value * math.log2(value) for value in q)
    weight = 1 + bits * (0.25 if name == "less entropy" else 1)
    return -weight * sum(a * math.log(b) for a, b in zip(q, softmax(new)[:N_OLD], strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_it_agrees_with_a_loop(name: str) -> None:
    logits, old, counted = example()
    places = [place for place in itertools.product(range(2), range(3), range(4)) if counted[place]]
    terms = [slow(name, logits[b, :, y, x].tolist(), old[b, :, y, x].tolist()) for b, y, x in places]
    assert 0 < len(places) < 24
    assert LOSSES[name](logits, old, counted).item() == pytest.approx(sum(terms) / len(terms))


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_costs_nothing(name: str) -> None:
    logits, old, counted = example()
    assert LOSSES[name](logits, old, torch.zeros_like(counted)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name: str) -> None:
    logits, old, counted = example()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, old, counted), logits.requires_grad_())


def test_by_hand() -> None:
    """One pixel: the old model says 3 : 1, the new one 1 : 1, and as much for a new label."""
    old = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    new, here = torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
    assert LOSSES["softmax"](new, old, here).item() == pytest.approx(math.log(2) / 2)
    assert LOSSES["binary"](new, old, here).item() == pytest.approx(math.log(2))
    bits = 0.75 * math.log2(4 / 3) + 0.25 * 2
    assert LOSSES["entropy"](new, old, here).item() == pytest.approx((1 + bits) * math.log(3), rel=1e-6)


def test_new_labels_have_no_say_in_plain_distillation() -> None:
    logits, old, counted = example()
    other = logits.clone()
    other[:, N_OLD:] += 7
    for name in ("softmax", "binary"):
        assert LOSSES[name](other, old, counted).equal(LOSSES[name](logits, old, counted))
    assert LOSSES["entropy"](other, old, counted) > LOSSES["entropy"](logits, old, counted)
