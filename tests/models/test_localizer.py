"""Localizer: its layers, and the scores that it teaches with."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from fmwiss.models import Localizer


def test_three_convolutions() -> None:
    torch.manual_seed(0)
    localizer = Localizer(12, 7, channels=8)
    kernels = [tuple(m.weight.shape) for m in localizer.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(8, 12, 3, 3), (8, 8, 3, 3), (7, 8, 1, 1)]
    features = torch.randn(2, 12, 5, 5)
    hidden = features
    first, second = localizer.head[0], localizer.head[3]
    for convolution, norm in ((localizer.reduce, first), (localizer.head[2], second)):
        hidden = convolution(hidden)
        mean, variance = hidden.mean(dim=(0, 2, 3), keepdim=True), hidden.var(dim=(0, 2, 3), keepdim=True, correction=0)
        hidden = F.leaky_relu((hidden - mean) / (variance + norm.eps).sqrt(), 0.01)
    torch.testing.assert_close(localizer(features), localizer.head[5](hidden))


def test_the_teaching_scores_are_those_of_evaluation() -> None:
    torch.manual_seed(0)
    localizer = Localizer(6, 4, channels=8)
    for _ in range(3):
        localizer(torch.randn(4, 6, 5, 5))
    other, steady_only = copy.deepcopy(localizer), copy.deepcopy(localizer).eval()
    features = torch.randn(4, 6, 5, 5, requires_grad=True)
    scores, steady = localizer.scores_and_targets(features)
    torch.testing.assert_close(scores, other(features))
    torch.testing.assert_close(steady, steady_only(features))
    assert scores.requires_grad and not steady.requires_grad
    # the running statistics took the batch in once, after it had been taught with
    assert all(value.equal(other.state_dict()[name]) for name, value in localizer.state_dict().items())
    assert all(module.training for module in localizer.modules())
    scores.sum().backward()
    assert features.grad is not None and all(p.grad is not None for p in localizer.parameters())
