"""IncrementalClassifier: MiB's initialisation worked out by hand, and what growing must leave as it was."""

from __future__ import annotations

import math

import pytest
import torch

from fmwiss.models import IncrementalClassifier


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier() -> IncrementalClassifier:
    torch.manual_seed(0)
    return IncrementalClassifier(6, [4])


def test_outputs_of_all_steps_stand_side_by_side(features: torch.Tensor) -> None:
    torch.manual_seed(0)
    classifier = IncrementalClassifier(6, [4, 1, 2])
    assert classifier.n_outputs == 7
    logits = classifier(features)
    assert logits.shape == (2, 7, 3, 4)
    weight = torch.cat([step.weight for step in classifier.steps])[:, :, 0, 0]
    bias = torch.cat([step.bias for step in classifier.steps])
    pixel = weight @ features[1, :, 2, 3] + bias
    torch.testing.assert_close(logits[1, :, 2, 3], pixel)


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_background_init_shares_the_backgrounds_softmax_mass_evenly(
    classifier: IncrementalClassifier, features: torch.Tensor, n_classes: int
) -> None:
    before = classifier(features).softmax(dim=1)
    classifier.add_step(n_classes, "background")
    after = classifier(features).softmax(dim=1)
    shares = torch.cat([after[:, :1], after[:, 4:]], dim=1)
    torch.testing.assert_close(shares.sum(dim=1), before[:, 0])
    torch.testing.assert_close(shares, (before[:, :1] / (n_classes + 1)).expand_as(shares))
    torch.testing.assert_close(after[:, 1:4], before[:, 1:4])


def test_background_init_by_hand() -> None:
    classifier = IncrementalClassifier(1, [2])
    with torch.no_grad():
        classifier.steps[0].weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
        classifier.steps[0].bias.copy_(torch.tensor([0.5, 3.0]))
    classifier.add_step(2, "background")
    logits = classifier(torch.tensor(10.0).view(1, 1, 1, 1)).flatten().tolist()
    assert logits == pytest.approx([20.5 - math.log(3), -7.0, 20.5 - math.log(3), 20.5 - math.log(3)])


def test_background_init_after_a_later_step_takes_the_background_not_the_last_classes(
    classifier: IncrementalClassifier,
) -> None:
    classifier.add_step(2, "plain")
    classifier.add_step(1, "background")
    torch.testing.assert_close(classifier.steps[2].weight[0], classifier.steps[0].weight[0])
    assert classifier.n_outputs == 7


def test_plain_init_keeps_the_old_logits_and_draws_new_weights(
    classifier: IncrementalClassifier, features: torch.Tensor
) -> None:
    before = classifier(features)
    classifier.add_step(3, "plain")
    after = classifier(features)
    assert after[:, :4].equal(before)
    assert after[:, 4:].std() > 0
    assert not torch.allclose(classifier.steps[1].weight[0], classifier.steps[0].weight[0])


@pytest.mark.parametrize("init", ["background", "plain"])
def test_new_weights_are_parameters_of_their_own(classifier: IncrementalClassifier, init: str) -> None:
    classifier.add_step(2, init)  # type: ignore[arg-type]
    old = classifier.steps[0].weight.detach().clone()
    with torch.no_grad():
        classifier.steps[1].weight.add_(1)
    assert classifier.steps[0].weight.equal(old)
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert len(list(classifier.parameters())) == 4


def test_a_class_that_starts_rare_has_its_prior_everywhere(classifier: IncrementalClassifier) -> None:
    background, learnt = classifier.steps[0].bias[0].item(), classifier.steps[0].weight.clone()
    classifier.start_rare(0.02)
    probabilities = classifier(torch.zeros(1, 6, 1, 1)).sigmoid().flatten()
    assert probabilities[1:].tolist() == pytest.approx([0.02] * 3)
    assert classifier.steps[0].bias[0].item() == background and classifier.steps[0].weight.equal(learnt)
    classifier.add_step(2, "plain", prior=0.1)
    assert classifier(torch.zeros(1, 6, 1, 1)).sigmoid().flatten()[4:].tolist() == pytest.approx([0.1] * 2)
    before = classifier.steps[0].bias[0].item()
    classifier.add_step(2, "background", prior=0.1)  # MiB's start has its own bias
    assert classifier.steps[2].bias.tolist() == pytest.approx([before - math.log(3)] * 2)
