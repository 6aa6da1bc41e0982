"""Class activation maps against a loop over places; a locator that has learnt finds what it learnt."""

from __future__ import annotations

import math

import pytest
import torch

from fmwiss.config import CAMConfig
from fmwiss.data.batches import Batch
from fmwiss.methods.cam import CAMLocator
from fmwiss.models import Architecture, Segmenter


@pytest.fixture
def locator() -> CAMLocator:
    torch.manual_seed(0)
    segmenter = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane",),), None))
    for _ in range(3):
        segmenter(torch.rand(2, 3, 64, 64))
    locator = CAMLocator(segmenter, 2, CAMConfig())
    locator.start_epoch(0)
    return locator


def halves(n: int, generator: torch.Generator) -> Batch:
    """Pictures whose left or right half is red (class 0) or green (class 1); the other half is noise."""
    image = torch.rand(n, 3, 64, 64, generator=generator) * 0.3
    tags = torch.zeros(n, 2, dtype=torch.bool)
    for b in range(n):
        label, left = b % 2, b // 2 % 2
        tags[b, label] = True
        image[b, label, :, left * 32 : left * 32 + 32] += 0.7
    return Batch(tuple(map(str, range(n))), image, torch.ones(n, 64, 64, dtype=torch.bool), tags=tags)


def test_loss_agrees_with_a_loop_over_places(locator: CAMLocator) -> None:
    batch = halves(4, torch.Generator().manual_seed(0))
    batch.valid[:, :, 32:] = False
    assert batch.tags is not None
    with torch.no_grad():
        features = locator.student.encode(batch.image).double()
        weight = locator.classifier.weight[:, :, 0, 0].double()
    terms = []
    for b in range(4):
        for j in range(2):
            places = [float(weight[j] @ features[b, :, y, x]) for y in range(4) for x in range(2)]
            p = 1 / (1 + math.exp(-sum(places) / len(places)))
            terms.append(-math.log(p if batch.tags[b, j] else 1 - p))
    losses = locator.training_step(batch, torch.Generator())
    assert list(losses) == ["tags"]
    assert losses["tags"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_maps_are_the_classifiers_positive_scores(locator: CAMLocator) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps, features = locator.maps(images), locator.student.encode(images)
        expected = torch.einsum("jc,bcyx->bjyx", locator.classifier.weight[:, :, 0, 0], features).clamp(min=0)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)
    assert maps.min() == 0


def test_a_trained_locator_finds_its_classes(locator: CAMLocator) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(locator.parameter_groups(0.02, 10.0))
    for _ in range(100):
        loss = locator.training_step(halves(8, generator), generator)["tags"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    locator.eval()
    batch = halves(4, generator)
    for b in (0, 2):  # red; that it is not red tells enough of the other class, anywhere
        found = (locator.labels(batch.image[b : b + 1], [0]) == 1).float()
        columns = found.shape[1] // 2
        halves_found = found[:, :columns].mean(), found[:, columns:].mean()
        assert halves_found[b // 2] > halves_found[1 - b // 2] + 0.5
