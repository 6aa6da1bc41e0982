"""EPS's locator: its two losses, its maps, and that saliency tells it where the object ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fmwiss.config import EPSConfig
from fmwiss.data.batches import Batch
from fmwiss.losses import SaliencyLoss
from fmwiss.methods.eps import EPSLocator
from fmwiss.models import Architecture, Segmenter


@pytest.fixture
def locator() -> EPSLocator:
    torch.manual_seed(0)
    segmenter = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane",),), None))
    for _ in range(3):
        segmenter(torch.rand(2, 3, 64, 64))
    locator = EPSLocator(segmenter, 2, EPSConfig(tau=0.3, lam=0.6))
    locator.start_epoch(0)
    return locator


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[:, :, 48:] = False
    coarse = torch.randint(0, 256, (2, 1, 4, 4), generator=generator, dtype=torch.uint8)
    saliency = F.interpolate(coarse.float(), size=(64, 64))[:, 0].to(torch.uint8)
    image = torch.rand(2, 3, 64, 64, generator=generator)
    return Batch(("a", "b"), image, valid, tags=torch.tensor([[True, True], [True, False]]), saliency=saliency)


def test_losses(locator: EPSLocator, batch: Batch) -> None:
    assert batch.tags is not None and batch.saliency is not None
    losses = locator.training_step(batch, torch.Generator())
    assert set(losses) == {"tags", "saliency"}
    with torch.no_grad():
        scores = locator.classifier(locator.student.encode(batch.image))
    pooled = scores[:, 1:, :, :3].mean(dim=(2, 3))  # the columns in the photograph
    expected = F.binary_cross_entropy_with_logits(pooled, batch.tags.float())
    assert losses["tags"].item() == pytest.approx(expected.item(), rel=1e-4)
    cells = batch.saliency[:, 8::16, 8::16].float() / 255
    agreement = SaliencyLoss(0.3, 0.6)(scores, cells, batch.tags, batch.valid[:, None, 8::16, 8::16])
    assert losses["saliency"].item() == pytest.approx(agreement.item(), rel=1e-4)


def test_maps_leave_the_background_out(locator: EPSLocator, batch: Batch) -> None:
    with torch.no_grad():
        maps = locator.maps(batch.image)
        everything = locator.classifier(locator.student.encode(batch.image)).softmax(dim=1)
    torch.testing.assert_close(maps, everything[:, 1:])


def test_everything_learns_but_the_base(locator: EPSLocator, batch: Batch) -> None:
    torch.stack(list(locator.training_step(batch, torch.Generator()).values())).sum().backward()
    for name, p in locator.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_the_maps_come_to_explain_the_saliency(locator: EPSLocator, batch: Batch) -> None:
    optimizer = torch.optim.Adam(locator.parameter_groups(1e-3, 10.0))
    values = []
    for _ in range(20):
        losses = locator.training_step(batch, torch.Generator())
        optimizer.zero_grad()
        (losses["tags"] + losses["saliency"]).backward()
        optimizer.step()
        values.append(losses["saliency"].item())
    assert values[-1] < 0.7 * values[0]


def test_a_batch_without_saliency_is_refused(locator: EPSLocator, batch: Batch) -> None:
    with pytest.raises(ValueError, match="saliency"):
        locator.training_step(replace(batch, saliency=None), torch.Generator())
