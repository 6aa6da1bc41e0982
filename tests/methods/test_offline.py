"""What offline methods share: the student's target and loss, and hard masks from maps, against loops over pixels."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import CAMConfig
from fmwiss.data.batches import Batch
from fmwiss.methods import CAM, build_method
from fmwiss.methods.offline import Locator, Offline, masked_mean
from fmwiss.models import Architecture, Segmenter

N_OLD, N_NEW, SIZE = 3, 3, 32


def make_method(**options: Any) -> Offline:
    torch.manual_seed(0)
    old_model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane", "bicycle"),), None))
    for _ in range(3):
        old_model(torch.rand(2, 3, 64, 64))  # batch norm statistics
    student = copy.deepcopy(old_model)
    student.add_step(("sheep", "sofa", "train"), "plain")
    method = build_method(CAMConfig(**options), student, old_model)
    assert isinstance(method, CAM)
    method.start_epoch(0)
    return method


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 1, 8, 8), generator=generator)
    labels = F.interpolate(labels.float(), size=(SIZE, SIZE))
    pseudo = labels == torch.arange(1, 4)[:, None, None]
    pseudo[1, 1] = False
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, -5:] = False
    return Batch(
        ids=("a", "b"),
        image=torch.rand(2, 3, SIZE, SIZE, generator=generator),
        valid=valid,
        pseudo=pseudo,
        tags=torch.tensor([[True, True, True], [True, False, True]]),
    )


# ---------------------------------------------------------------------------------------------------------- the student


@pytest.mark.parametrize("untagged_absent", [True, False])
@pytest.mark.parametrize(
    ("stride", "reduction", "gate"), [(1, "sum-classes", "none"), (4, "mean", "none"), (4, "mean", "exact")]
)
def test_loss_agrees_with_a_loop_over_pixels(
    untagged_absent: bool, stride: int, reduction: str, gate: str, batch: Batch
) -> None:
    """The gate leaves the second photograph out, as its first class is tagged and has no mask but beyond it."""
    options = {"loss_stride": stride, "segmentation_reduction": reduction, "untagged_absent": untagged_absent}
    method = make_method(**options, student_gate=gate)
    assert batch.pseudo is not None and batch.tags is not None
    batch.pseudo[1, 0] &= ~batch.valid[1]
    assert batch.pseudo[1, 0].any()
    cells = SIZE // stride
    with torch.no_grad():
        size = (cells, cells)
        q = F.interpolate(method.old_model(batch.image), size=size, mode="bilinear").double().sigmoid().tolist()
        p = F.interpolate(method.student(batch.image), size=size, mode="bilinear").double().sigmoid().tolist()
    terms = []
    for b, y, x, c in itertools.product(range(2), range(cells), range(cells), range(N_OLD + N_NEW)):
        row, column = (int((place + 0.5) * stride) for place in (y, x))
        if not batch.valid[b, row, column] or (gate == "exact" and b == 1):
            continue
        here = [bool(batch.pseudo[b, j, row, column]) for j in range(N_NEW)]
        if c >= N_OLD:
            if not (untagged_absent or batch.tags[b, c - N_OLD]):
                continue
            target = float(here[c - N_OLD])
        else:
            target = min(q[b][c][y][x], float(not any(here))) if c == 0 else q[b][c][y][x]
        terms.append(-target * math.log(p[b][c][y][x]) - (1 - target) * math.log(1 - p[b][c][y][x]))
    classes = 1 if reduction == "mean" else N_OLD + N_NEW
    losses = method.training_step(batch, torch.Generator())
    assert list(losses) == ["all_bce"]
    assert losses["all_bce"].item() == pytest.approx(classes * sum(terms) / len(terms), rel=1e-4)


def test_the_student_learns_and_the_old_model_stays(batch: Batch) -> None:
    method = make_method()
    method.training_step(batch, torch.Generator())["all_bce"].backward()
    assert all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is None for p in method.old_model.parameters())


def test_a_batch_without_masks_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="masks"):
        make_method().training_step(replace(batch, pseudo=None), torch.Generator())


# ---------------------------------------------------------------------------------------------------------- the locator


class Painted(Locator):
    """Its maps are the colours of the picture: class j is where channel j is bright."""

    def maps(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return F.avg_pool2d(images, 2)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        raise AssertionError("nothing here may ask for this")


def painted(**options: Any) -> Painted:
    locator = make_method(**options).locator()
    assert locator is not None
    result = Painted(locator.student, N_NEW, CAMConfig(**options))
    result.seen = []  # type: ignore[attr-defined]
    return result.eval()  # type: ignore[return-value]


def test_masks_are_where_the_maps_are_largest() -> None:
    """By hand: red, green and blue quarters, a dim quarter, and a class that is not asked for."""
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, :32, :32] = 0.5
    image[0, 1, :32, 32:] = 1.0
    image[0, 2, 32:, :32] = 1.0
    image[0, :2, 32:, 32:] = 0.04
    labels = painted(scales=[1.0], flip=False).labels(image, [0, 1])
    assert labels.shape == (16, 16) and labels.dtype == torch.uint8
    quarters = labels.unfold(0, 8, 8).unfold(1, 8, 8)[..., 2:-2, 2:-2]  # away from the edges, where maps are resized
    assert quarters.flatten(2).amin(-1).equal(quarters.flatten(2).amax(-1))
    assert quarters[..., 0, 0].tolist() == [[1, 2], [0, 0]]
    # the largest value of the first class is .5: its share in the dim quarter is .08, the background's score decides
    lower = painted(scales=[1.0], flip=False, background_score=0.05).labels(image, [0, 1])
    assert lower[-4:, -4:].eq(1).all()


def test_scales_and_mirror_images_are_summed() -> None:
    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 5, 6, generator=generator), size=(40, 50), mode="bilinear")
    locator = painted(scales=[0.5, 1.5], flip=True)
    labels = locator.labels(image, [2, 0])
    assert locator.seen == [(2, 3, 20, 25), (2, 3, 60, 75)]  # type: ignore[attr-defined]
    total = torch.zeros(2, 10, 13)
    for size in ((20, 25), (60, 75)):
        scaled = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        for mirrored in (False, True):
            maps = F.avg_pool2d(scaled.flip(-1) if mirrored else scaled, 2)
            maps = maps.flip(-1) if mirrored else maps
            total += F.interpolate(maps, size=(10, 13), mode="bilinear")[0, [2, 0]]
    expected = torch.zeros(10, 13, dtype=torch.uint8)
    for y, x in itertools.product(range(10), range(13)):
        shares = {label: float(total[j, y, x] / total[j].max()) for j, label in ((0, 3), (1, 1))}
        best = max(shares, key=lambda label: shares[label])
        expected[y, x] = best if shares[best] > 0.2 else 0
    assert (labels != expected).float().mean() < 0.02  # but for ties


def test_a_class_that_is_nowhere_has_no_mask() -> None:
    assert painted(scales=[1.0]).labels(torch.zeros(1, 3, 20, 20), [0, 1, 2]).eq(0).all()


def test_the_locator_is_a_copy_of_the_old_model() -> None:
    method = make_method(encoder="trained")
    locator = method.locator()
    assert locator is not None and locator.n_new == N_NEW
    assert not {id(p) for p in locator.parameters()} & {id(p) for p in method.parameters()}
    first, second = locator.student.encoder.state_dict(), method.old_model.encoder.state_dict()
    assert all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.parametrize("encoder", ["frozen", "trained"])
def test_what_the_locator_trains(encoder: str, batch: Batch) -> None:
    locator = make_method(encoder=encoder, locator={"freeze_batch_norm": False}).locator()
    assert locator is not None
    locator.start_epoch(0)
    groups = locator.parameter_groups(1e-3, 10.0)
    assert [group["lr"] for group in groups] == ([1e-2] if encoder == "frozen" else [1e-3, 1e-2])
    grouped = {id(p) for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert grouped == {id(p) for p in locator.parameters() if p.requires_grad}
    norms = [m for m in locator.student.encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert {norm.training for norm in norms} == {encoder == "trained"}
    losses = locator.training_step(batch, torch.Generator())
    torch.stack(list(losses.values())).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in locator.student.encoder.parameters())


def test_tags_that_are_not_known_do_not_count() -> None:
    locator = make_method(untagged_absent=False).locator()
    assert locator is not None
    pooled, tags = torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.tensor([[True, False], [True, False]])
    expected = (math.log(2) + math.log(1 + math.exp(-1))) / 2
    assert locator.tag_loss(pooled, tags).item() == pytest.approx(expected)
    assert locator.tag_loss(pooled, torch.zeros_like(tags)).item() == 0


def test_masked_mean() -> None:
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    valid = torch.tensor([[True, False], [True, True]]).view(1, 1, 2, 2)
    torch.testing.assert_close(masked_mean(maps, valid), torch.tensor([[5 / 3, 17 / 3]]))
    assert masked_mean(maps, torch.zeros_like(valid)).eq(0).all()
