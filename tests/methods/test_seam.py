"""SEAM's locator: pixel correlation against a loop over pairs of places, its views and its losses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fmwiss.config import SEAMConfig
from fmwiss.data.batches import Batch
from fmwiss.losses.equivariance import cross_refinement_loss, dark_loss, equivariance_loss, normalised, with_background
from fmwiss.methods.seam import SEAMLocator, correlate
from fmwiss.models import Architecture, Segmenter

N_NEW = 3


@pytest.fixture
def locator() -> SEAMLocator:
    torch.manual_seed(0)
    segmenter = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane",),), None))
    for _ in range(3):
        segmenter(torch.rand(2, 3, 64, 64))
    locator = SEAMLocator(segmenter, N_NEW, SEAMConfig())
    locator.start_epoch(0)
    locator.dropout.eval()
    return locator


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2, 96, 96, dtype=torch.bool)
    valid[:, :, 64:] = False
    image = F.interpolate(torch.rand(2, 3, 6, 6, generator=generator), size=(96, 96), mode="bilinear")
    return Batch(("a", "b"), image, valid, tags=torch.tensor([[True, False, True], [False, True, False]]))


def test_correlation_agrees_with_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, embedding = torch.rand(2, 3, 2, 3, generator=generator), torch.randn(2, 4, 2, 3, generator=generator)
    inside = torch.ones(2, 1, 2, 3, dtype=torch.bool)
    inside[1, 0, 0, 2] = False
    result = correlate(maps, embedding, inside)
    places = list(itertools.product(range(2), range(3)))
    for b in range(2):
        for y, x in places:
            here = embedding[b, :, y, x]
            likeness = [
                max(0.0, float(F.cosine_similarity(here, embedding[b, :, j, i], dim=0))) * bool(inside[b, 0, j, i])
                for j, i in places
            ]
            for c in range(3):
                mean = sum(a * float(maps[b, c, j, i]) for a, (j, i) in zip(likeness, places, strict=True))
                assert result[b, c, y, x].item() == pytest.approx(mean / sum(likeness), rel=1e-3)


def test_views(locator: SEAMLocator, batch: Batch) -> None:
    """The module's input by hand: positive scores by their largest, only the largest class, the background behind."""
    with torch.no_grad():
        scores, refined, inside = locator.views(batch.image)
        low, middle, last = locator.student.encode_stages(batch.image)[-3:]
        torch.testing.assert_close(scores, F.conv2d(last, locator.classifier.weight))
        own = torch.zeros(2, 1 + N_NEW, *scores.shape[-2:])
        for b, y, x in itertools.product(range(2), *map(range, scores.shape[-2:])):
            shares = [max(0.0, float(scores[b, c, y, x])) / (float(scores[b, c].max()) + 1e-5) for c in range(N_NEW)]
            shares = [share if scores[b, c].max() > 0 else 0.0 for c, share in enumerate(shares)]
            best = max(range(N_NEW), key=lambda c: shares[c])
            own[b, 0, y, x] = 1 - shares[best]
            own[b, 1 + best, y, x] = shares[best]
        size = scores.shape[-2:]
        low = F.conv2d(low, locator.low.weight).relu()
        middle = F.conv2d(middle, locator.middle.weight).relu()
        small = F.interpolate(batch.image, size=size, mode="bilinear")
        low, middle = (F.interpolate(part, size=size, mode="bilinear") for part in (low, middle))
        embedding = F.conv2d(torch.cat([small, low, middle], dim=1), locator.embedding.weight)
        torch.testing.assert_close(refined, correlate(own, embedding, inside), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(locator.maps(batch.image), refined[:, 1:])
    assert refined.min() >= 0 and inside.all()


def test_losses(locator: SEAMLocator, batch: Batch) -> None:
    losses = locator.training_step(batch, torch.Generator())
    assert set(losses) == {"tags", "dark", "er", "ecr"}
    assert batch.tags is not None
    small = F.interpolate(batch.image, scale_factor=0.3, mode="bilinear")
    size = small.shape[-2:]
    assert size == (28, 28)
    inside = torch.zeros(2, 1, 28, 28, dtype=torch.bool)
    inside[..., : round(28 * 64 / 96)] = True
    tagged = batch.tags[:, :, None, None].float()
    labelled = torch.cat([torch.ones(2, 1, 1, 1), tagged], dim=1)
    own, refined, tag_terms = [], [], []
    with torch.no_grad():
        for images in (batch.image, small):
            scores, better, counts = locator.views(images, batch.valid)
            columns = math.ceil(scores.shape[-1] * 2 / 3 - 0.5)  # those whose centre is in the photograph
            for b, j in itertools.product(range(2), range(N_NEW)):
                p = float(scores[b, j, :, :columns].mean().sigmoid())
                tag_terms.append(-math.log(p if batch.tags[b, j] else 1 - p))
            assert counts.sum() == 2 * columns * counts.shape[-1]
            own.append(normalised(F.interpolate(scores, size=size, mode="bilinear"), inside) * tagged)
            refined.append(F.interpolate(better, size=size, mode="bilinear"))
    dark = [dark_loss(maps[:, 1:] * tagged, inside) for maps in refined]
    refined = [normalised(maps, inside) * labelled for maps in refined]
    assert losses["tags"].item() == pytest.approx(sum(tag_terms) / len(tag_terms), rel=1e-3)
    assert losses["dark"].item() == pytest.approx(float(dark[0] + dark[1]) / 2, rel=1e-3, abs=1e-6)
    assert losses["er"].item() == pytest.approx(float(equivariance_loss(*own, inside)), rel=1e-3)
    crossed = [cross_refinement_loss(refined[i], with_background(own[1 - i]), inside) for i in (0, 1)]
    assert losses["ecr"].item() == pytest.approx(float(crossed[0] + crossed[1]), rel=1e-3)


def test_masks_are_cut_from_maps_without_their_floor(
    locator: SEAMLocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refined maps are means over many places, so that they are large everywhere."""
    maps = torch.full((1, N_NEW, 4, 4), 0.8)
    maps[:, 1, :2] = 1.0
    monkeypatch.setattr(locator, "maps", lambda images: maps.expand(len(images), -1, -1, -1))
    mask = locator.labels(torch.rand(1, 3, 64, 64), [1])
    assert (mask[:6] == 2).all() and (mask[10:] == 0).all()


def test_everything_learns_but_the_base(locator: SEAMLocator, batch: Batch) -> None:
    torch.stack(list(locator.training_step(batch, torch.Generator()).values())).sum().backward()
    for name, p in locator.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    heads = {id(p) for head in locator.extra_heads() for p in head.parameters()}
    assert heads == {id(p) for name, p in locator.named_parameters() if not name.startswith("student.")}


def test_learning_goes_down(locator: SEAMLocator, batch: Batch) -> None:
    optimizer = torch.optim.SGD(locator.parameter_groups(1e-3, 10.0))
    totals = []
    for _ in range(8):
        total = torch.stack(list(locator.training_step(batch, torch.Generator()).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


def test_half_precision(locator: SEAMLocator, batch: Batch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = locator.training_step(batch, torch.Generator())
    assert all(torch.isfinite(value) for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
