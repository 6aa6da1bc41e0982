"""Scores of softmax- and sigmoid-trained models as logits of single classes."""

from __future__ import annotations

import math

import pytest
import torch

from fmwiss.models.scores import NEVER, class_logits, softmax_logits


def test_sigmoid_of_the_logits_is_the_softmax() -> None:
    scores = torch.randn(2, 7, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6
    logits = softmax_logits(scores)
    assert torch.allclose(logits.sigmoid(), scores.softmax(1), atol=1e-15, rtol=1e-12)
    slow = torch.empty_like(scores)
    for c in range(7):
        others = [k for k in range(7) if k != c]
        slow[:, c] = scores[:, c] - scores[:, others].exp().sum(1).log()
    assert torch.allclose(logits, slow, atol=1e-10)


def test_by_hand() -> None:
    # e^s = 1, 2, 5: softmax 1/8, 1/4, 5/8, odds 1/7, 1/3, 5/3
    logits = softmax_logits(torch.tensor([1.0, 2.0, 5.0]).log().view(1, 3, 1, 1)).flatten()
    assert logits.tolist() == pytest.approx([math.log(1 / 7), math.log(1 / 3), math.log(5 / 3)], abs=1e-6)


def test_a_class_that_is_nearly_sure_keeps_its_logit_and_the_order_stays() -> None:
    scores = torch.tensor([40.0, 0.0, -3.0]).view(1, 3, 1, 1)
    logits = softmax_logits(scores).flatten()
    assert logits[0].item() == pytest.approx(40 - math.log(1 + math.exp(-3)), abs=1e-5)
    assert torch.isfinite(logits).all() and logits.argsort().tolist() == [2, 1, 0]


def test_gradients() -> None:
    scores = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax_logits, (scores,))
    grown = torch.randn(1, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    for trained_with, background in (("softmax", True), ("softmax", False), ("sigmoid", False)):
        assert torch.autograd.gradcheck(
            lambda s, t=trained_with, b=background: class_logits(s, 3, t, b), (grown,)
        )


def test_new_classes_leave_the_old_ones_probabilities_alone() -> None:
    scores = torch.randn(1, 5, 3, 3)
    grown = class_logits(scores, 3, "softmax", background=True)
    assert torch.equal(grown[:, :3], softmax_logits(scores[:, :3]))
    assert torch.allclose(grown[:, 3:], scores[:, 3:] - scores[:, :3].logsumexp(1, keepdim=True))


def test_a_model_without_background_never_predicts_it() -> None:
    scores = torch.full((1, 3, 1, 1), -50.0)
    logits = class_logits(scores, 3, "softmax", background=False)
    assert logits.shape[1] == 4 and logits[0, 0].item() == NEVER and logits.argmax(1).item() != 0
    sigmoid = class_logits(torch.tensor([-2.0, -1.0]).view(1, 2, 1, 1), 1, "sigmoid", background=False).flatten()
    assert sigmoid.tolist() == [1.0, -2.0, -1.0]  # one minus the largest probability
    kept = class_logits(scores, 3, "sigmoid", background=True)
    assert torch.equal(kept, scores)


def test_half_precision_scores_become_single_precision_logits() -> None:
    assert softmax_logits(torch.randn(1, 3, 2, 2).bfloat16()).dtype == torch.float32
