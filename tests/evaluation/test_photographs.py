"""Figures of single photographs: against loops over pixels, under a later step's classes, and through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.evaluation import evaluate
from fmwiss.evaluation.photographs import PhotographCounts
from fmwiss.models import Architecture, Segmenter

STEPS = (("aeroplane", "sofa"), ("sheep",), ("boat",))
NAMES = ("background", "aeroplane", "sofa", "sheep")
IDENTITY = {"split": "val", "image": "whole"}


def table(step: int) -> Tensor:
    return Protocol(STEPS).label_table(step, VOC_CLASSES)


def counted(mask: list[list[int]], predicted: list[list[int]]) -> PhotographCounts:
    counts = PhotographCounts(IDENTITY)
    counts("x", torch.tensor(mask, dtype=torch.uint8), torch.tensor(predicted))
    return counts


def test_by_hand() -> None:
    """VOC's ids: aeroplane 1, sheep 17, sofa 18, cat 8 (never learnt), 255 void."""
    counts = counted([[1, 1, 1, 18], [0, 0, 8, 255]], [[1, 1, 0, 3], [0, 2, 0, 1]])
    figures = counts.figures("x", table(1), NAMES)
    # background: truth 3 pixels (one of them cat), predicted 3, common 2; aeroplane 2 of 3; sheep in no truth
    assert figures.iou == pytest.approx({"background": 50.0, "aeroplane": 100 * 2 / 3, "sofa": 0.0, "sheep": 0.0})
    assert figures.truth == {"background", "aeroplane", "sofa"}
    assert figures.miou == pytest.approx((50 + 200 / 3 + 0) / 3)
    assert counts.entries["x"].tolist() == [[0, 0, 1], [0, 2, 1], [1, 0, 1], [1, 1, 2], [8, 0, 1], [18, 3, 1]]


def test_an_earlier_models_prediction_is_judged_by_the_classes_of_a_later_step() -> None:
    counts = counted([[17, 17, 1, 0]], [[0, 0, 1, 0]])  # a model that knows no sheep
    before = counts.figures("x", table(0), ("background", "aeroplane", "sofa"))
    after = counts.figures("x", table(1), NAMES)
    assert before.miou == 100.0 and before.truth == {"background", "aeroplane"}
    assert after.iou == pytest.approx({"background": 100 / 3, "aeroplane": 100.0, "sheep": 0.0})
    assert after.miou == pytest.approx((100 / 3 + 100 + 0) / 3)


def test_a_photograph_of_void_alone_has_no_mean() -> None:
    figures = counted([[255, 255]], [[0, 1]]).figures("x", table(0), NAMES[:3])
    assert (figures.miou, figures.iou, figures.truth) == (None, {}, frozenset())


# ------------------------------------------------------------------------------------------------------- in evaluation


@pytest.fixture(scope="module")
def source(tiny_voc: Path) -> VOCSource:
    return VOCSource(tiny_voc)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, STEPS[:2], None))
    with torch.no_grad():
        model.classifier.steps[0].bias.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("image", ["whole", "center-crop"])
def test_counts_of_an_evaluation_add_up_to_its_confusion(source: VOCSource, model: Segmenter, image: str) -> None:
    ids, counts = source.ids("val"), PhotographCounts(IDENTITY)
    figures = evaluate(model, source, ids, Protocol(STEPS), image=image, crop_size=64, batch_size=3, observe=counts)  # type: ignore[arg-type]
    assert sorted(counts.entries) == sorted(ids) and counts.has(ids) and not counts.has([*ids, "other"])
    total = np.zeros((4, 4), dtype=int)
    for image_id in ids:
        for truth, predicted, pixels in counts.entries[image_id].tolist():
            total[table(1)[truth], predicted] += pixels
    assert figures.confusion == tuple(map(tuple, total.tolist()))


def test_each_photograph_is_shown_once_as_it_was_compared(source: VOCSource, model: Segmenter) -> None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(image_id: str, mask: Tensor, predicted: Tensor) -> None:
        assert image_id not in seen
        seen[image_id] = mask, predicted

    evaluate(model, source, source.ids("val"), Protocol(STEPS), batch_size=3, observe=observe)
    assert sorted(seen) == sorted(source.ids("val"))
    for image_id, (mask, predicted) in seen.items():
        assert mask.equal(torch.from_numpy(np.array(Image.open(source.mask_path(image_id)))))
        assert predicted.equal(model.predict(source.read_image(image_id)).long())


# ------------------------------------------------------------------------------------------------------------- the file


def test_a_round_trip_keeps_everything(source: VOCSource, model: Segmenter, tmp_path: Path) -> None:
    counts = PhotographCounts(IDENTITY)
    evaluate(model, source, source.ids("val"), Protocol(STEPS), observe=counts)
    path = tmp_path / "new" / "photographs.safetensors"
    counts.save(path)
    loaded = PhotographCounts.load(path, IDENTITY)
    assert loaded is not None and list(loaded.entries) == list(counts.entries)
    assert all(loaded.entries[i].equal(counts.entries[i]) for i in counts.entries)
    assert path.stat().st_size < 8000
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_used_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "photographs.safetensors"
    assert PhotographCounts.load(path, IDENTITY) is None
    counted([[1, 0]], [[1, 1]]).save(path)
    assert PhotographCounts.load(path, IDENTITY) is not None
    assert PhotographCounts.load(path, {**IDENTITY, "split": "dev"}) is None
    path.write_bytes(path.read_bytes()[:-3])
    assert PhotographCounts.load(path, IDENTITY) is None


def test_no_photograph_at_all(tmp_path: Path) -> None:
    path = tmp_path / "photographs.safetensors"
    PhotographCounts(IDENTITY).save(path)
    loaded = PhotographCounts.load(path, IDENTITY)
    assert loaded is not None and loaded.entries == {}
