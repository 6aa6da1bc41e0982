"""SS's locator: gate, cue injection and losses against loops and numbers worked by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import Config, SSConfig
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.methods import SS
from fmwiss.methods.ss import GlobalCueInjection, SSLocator, StochasticGate
from fmwiss.models import Architecture, Segmenter
from fmwiss.pamr import pixel_affinity, refine_masks

N_NEW = 2


def make_locator(epoch: int = 5, **options: Any) -> SSLocator:
    torch.manual_seed(0)
    segmenter = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane",),), None))
    for _ in range(3):
        segmenter(torch.rand(2, 3, 64, 64))
    locator = SSLocator(segmenter, N_NEW, SSConfig(**options))
    with torch.no_grad():
        locator.head[4].weight.mul_(20)
    locator.start_epoch(epoch)
    return locator


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[:, :, 48:] = False
    image = F.interpolate(torch.rand(2, 3, 4, 4, generator=generator), size=(64, 64), mode="bilinear")
    return Batch(("a", "b"), image, valid, tags=torch.tensor([[True, True], [True, False]]))


# ------------------------------------------------------------------------------------------------------------ the parts


def test_the_gate_keeps_the_deep_features_expected() -> None:
    gate = StochasticGate(0.3)
    deep, shallow = torch.tensor([[2.0, -1.0]]).expand(20000, 2), torch.tensor([[0.5, 3.0]]).expand(20000, 2)
    torch.manual_seed(0)
    mixed = gate(deep, shallow)
    torch.testing.assert_close(mixed.mean(dim=0), deep[0], atol=0.1, rtol=0)
    chosen = mixed == shallow
    torch.testing.assert_close(chosen.float().mean(dim=0), torch.full((2,), 0.3), atol=0.02, rtol=0)
    others = (deep - 0.3 * shallow) / 0.7
    torch.testing.assert_close(mixed[~chosen], others[~chosen])
    torch.testing.assert_close(gate.eval()(deep, shallow), 0.7 * deep + 0.3 * shallow)
    assert StochasticGate(0.0)(deep, shallow).equal(deep)


def test_cue_injection_by_hand() -> None:
    torch.manual_seed(0)
    inject = GlobalCueInjection(deep=3, shallow=4, channels=2).eval()
    shallow, deep = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        result = inject(shallow, deep)
        eps = 1e-5
        attributes = F.conv2d(deep, inject.attributes[0].weight) / math.sqrt(1 + eps)
        normal = F.conv2d(shallow, inject.normalise[0].weight) / math.sqrt(1 + eps)
        for b in range(2):
            largest = [max(0.0, float(attributes[b, c].max())) for c in range(4)]
            changed = torch.stack([(normal[b, c] * (largest[c] + 1) + largest[2 + c]).clamp(min=0) for c in range(2)])
            mixed = F.conv2d(changed[None], inject.mix[0].weight) / math.sqrt(1 + eps)
            torch.testing.assert_close(result[b], mixed[0].clamp(min=0), atol=1e-5, rtol=1e-4)


def test_scores(batch: Batch) -> None:
    scores = make_locator().scores(batch.image)
    assert scores.shape == (2, 1 + N_NEW, 8, 8)  # at the resolution of the shallow features
    assert scores[:, 0].eq(1).all()


# ----------------------------------------------------------------------------------------------------------- the losses


def slow_labels(locator: SSLocator, masks: Tensor, batch: Batch, b: int) -> dict[tuple[int, int], int]:
    """Pixel by pixel, from the softmax ``(1 + |C_t|, h, w)`` of one photograph."""
    assert batch.tags is not None
    dilations = locator.options.pamr_dilations
    small = F.interpolate(batch.image, size=masks.shape[-2:], mode="bilinear")[b : b + 1]
    refined = refine_masks(masks[None], pixel_affinity(small, dilations), dilations, locator.options.pamr_iterations)
    large = F.interpolate(refined, size=(64, 64), mode="bilinear")[0].double()
    shown = [0, *(1 + j for j in range(N_NEW) if batch.tags[b, j])]
    inside = batch.valid[b]
    limits = {c: max(0.2, (0.6 if c else 0.7) * float(large[c][inside].max())) for c in shown}
    labels = {}
    for y, x in itertools.product(range(64), range(64)):
        claims = [c for c in shown if inside[y, x] and float(large[c, y, x]) > limits[c]]
        if len(claims) == 1:
            labels[y, x] = claims[0]
    return labels


@pytest.mark.parametrize("iterations", [10, 0])
def test_losses(iterations: int, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    locator = make_locator(pamr_iterations=iterations)
    coarse = 6 * torch.rand(2, 1 + N_NEW, 3, 3, generator=torch.Generator().manual_seed(1))
    scores = F.interpolate(coarse, size=(8, 8), mode="bilinear")
    monkeypatch.setattr(locator, "scores", lambda images: scores)
    large = F.interpolate(scores, size=(64, 64), mode="bilinear").double()
    assert batch.tags is not None
    total, complete = 0.0, 0
    for b in range(2):
        labels = slow_labels(locator, scores[b].softmax(dim=0), batch, b)
        if set(labels.values()) != {0, *(1 + j for j in range(N_NEW) if batch.tags[b, j])}:
            continue
        complete += 1
        counts = {c: sum(label == c for label in labels.values()) for c in set(labels.values())}
        for (y, x), label in labels.items():
            weight = (len(labels) - counts[label]) / (1 + len(labels))
            probability = large[b, :, y, x].softmax(dim=0)[label]
            total -= weight * math.log(float(probability)) / int(batch.valid[b].sum()) / 2
    assert complete > 0 and total > 0
    losses = locator.training_step(batch, torch.Generator())
    assert set(losses) == {"image_label", "self_supervision"}
    assert losses["self_supervision"].item() == pytest.approx(total, rel=1e-3)
    expected = 0.0
    masks = scores.softmax(dim=1)[..., :6].flatten(2).double()  # the columns in the photograph
    values = scores[..., :6].flatten(2).double()
    for b, j in itertools.product(range(2), range(N_NEW)):
        m, z = masks[b, 1 + j], values[b, 1 + j]
        pooled = float((m * z).sum() / (1 + m.sum()) + (1 - m.mean()) ** 3 * torch.log(0.01 + m.mean()))
        p = 1 / (1 + math.exp(-pooled))
        expected -= math.log(p if batch.tags[b, j] else 1 - p) / 4
    assert losses["image_label"].item() == pytest.approx(expected, rel=1e-3)


def test_at_first_there_is_no_self_supervision(batch: Batch) -> None:
    assert set(make_locator(epoch=4).training_step(batch, torch.Generator())) == {"image_label"}


def test_everything_learns_but_the_base(batch: Batch) -> None:
    locator = make_locator()
    torch.stack(list(locator.training_step(batch, torch.Generator()).values())).sum().backward()
    for name, p in locator.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    heads = {id(p) for head in locator.extra_heads() for p in head.parameters()}
    assert heads == {id(p) for name, p in locator.named_parameters() if not name.startswith("student.")}


def test_learning_goes_down(batch: Batch) -> None:
    locator = make_locator(epoch=0)
    optimizer = torch.optim.SGD(locator.parameter_groups(1e-3, 10.0))
    totals = []
    for _ in range(10):
        total = locator.training_step(batch, torch.Generator())["image_label"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-3:]) < sum(totals[:3])


# ------------------------------------------------------------------------------------------------------------ the masks


def test_the_background_counts_to_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    locator = make_locator().eval()
    # .7 ** 3 = .343; .8 ** 3 = .512; the second class is not tagged
    maps = torch.tensor([[0.7, 0.8, 0.6], [0.35, 0.35, 0.2], [0.9, 0.9, 0.9]]).view(1, 3, 1, 3)
    monkeypatch.setattr(locator, "maps", lambda images: maps.expand(len(images), -1, -1, -1))
    options = {"scales": (1.0,), "flip": False}
    locator.options = locator.options.model_copy(update=options)
    labels = locator.labels(torch.zeros(1, 3, 4, 12), [0])
    assert labels.tolist() == [[1, 0, 0]]
    assert locator.labels(torch.zeros(1, 3, 4, 12), [0, 1]).tolist() == [[2, 2, 2]]


def test_maps_are_a_distribution(batch: Batch) -> None:
    with torch.no_grad():
        maps = make_locator().eval().maps(batch.image)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 8, 8))


def test_no_epochs_for_the_self_supervision_are_refused() -> None:
    config = Config.model_validate({"method": {"name": "ss", "locator": {"epochs": 5}}})
    with pytest.raises(UserError, match=r"pretraining_epochs = 5 leaves none of method.locator.epochs = 5"):
        SS.check(config.method, config)
