"""Supervised: the base step's loss against a loop over pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fmwiss.config import Config
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.methods import Supervised, check_methods
from fmwiss.models import Architecture, Segmenter


@pytest.fixture
def method() -> Supervised:
    torch.manual_seed(0)
    student = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane", "bicycle"),), None))
    method = Supervised(student)
    method.start_epoch(0)
    return method


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (2, 32, 32), generator=generator)
    mask[mask == 3] = 255
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[:, :, 28:] = False
    mask[0, :, 30] = 1  # a label on padding does not count either
    return Batch(("a", "b"), torch.rand(2, 3, 32, 32, generator=generator), valid, mask=mask)


def test_loss_is_summed_over_classes_and_averaged_over_known_pixels(method: Supervised, batch: Batch) -> None:
    assert batch.mask is not None
    with torch.no_grad():
        logits = F.interpolate(method.student(batch.image), size=(32, 32), mode="bilinear")
    p = logits.double().sigmoid().tolist()
    total, pixels = 0.0, 0
    for b, y, x in itertools.product(range(2), range(32), range(32)):
        label = int(batch.mask[b, y, x])
        if label == 255 or not batch.valid[b, y, x]:
            continue
        pixels += 1
        for c in range(3):
            total -= math.log(p[b][c][y][x] if c == label else 1 - p[b][c][y][x])
    losses = method.training_step(batch, torch.Generator())
    assert losses.keys() == {"base_bce"}
    assert losses["base_bce"].item() == pytest.approx(total / pixels, rel=1e-5)


def test_a_stride_counts_the_pixels_at_the_cells_centres(method: Supervised, batch: Batch) -> None:
    assert batch.mask is not None
    coarse = Supervised(method.student, loss_stride=2)
    coarse.start_epoch(0)
    with torch.no_grad():
        p = F.interpolate(method.student(batch.image), size=(16, 16), mode="bilinear").double().sigmoid().tolist()
    total, pixels = 0.0, 0
    for b, y, x in itertools.product(range(2), range(16), range(16)):
        label = int(batch.mask[b, 2 * y + 1, 2 * x + 1])
        if label == 255 or not batch.valid[b, 2 * y + 1, 2 * x + 1]:
            continue
        pixels += 1
        for c in range(3):
            total -= math.log(p[b][c][y][x] if c == label else 1 - p[b][c][y][x])
    loss = coarse.training_step(batch, torch.Generator())["base_bce"]
    assert loss.item() == pytest.approx(total / pixels, rel=1e-5)


def test_a_stride_has_to_divide_the_crop() -> None:
    config = Config.model_validate({"data": {"crop_size": 96}, "training": {"step0": {"loss_stride": 5}}})
    with pytest.raises(UserError, match=r"training\.step0\.loss_stride = 5 .*96"):
        check_methods(config)


def test_everything_learns(method: Supervised, batch: Batch) -> None:
    method.training_step(batch, torch.Generator())["base_bce"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert method.warmup_epochs == 0
    assert method.supervision == "pixel"


def test_only_void(method: Supervised, batch: Batch) -> None:
    void = Batch(batch.ids, batch.image, batch.valid, mask=torch.full((2, 32, 32), 255))
    assert method.training_step(void, torch.Generator())["base_bce"].item() == 0


def test_a_batch_without_masks_is_refused(method: Supervised, batch: Batch) -> None:
    with pytest.raises(ValueError, match="masks"):
        method.training_step(Batch(batch.ids, batch.image, batch.valid), torch.Generator())


def test_learnt_state_round_trip(method: Supervised, batch: Batch) -> None:
    other = Supervised(Segmenter(method.student.architecture))
    other.load_learnt_state(method.learnt_state())
    first = method.training_step(batch, torch.Generator())["base_bce"]
    other.start_epoch(0)
    assert other.training_step(batch, torch.Generator())["base_bce"].item() == first.item()
