"""Evaluation: figures of hand-made confusion matrices."""

from __future__ import annotations

import json

import pytest
import torch

from fmwiss.evaluation import Evaluation

STEPS = (("aeroplane", "dining table"), ("sheep",))


def test_hand_worked_numbers() -> None:
    confusion = torch.tensor(
        [
            [50, 5, 0, 5],
            [10, 20, 0, 0],
            [0, 0, 4, 4],
            [1, 0, 0, 1],
        ]
    )
    figures = Evaluation.from_confusion(confusion, STEPS, images=7)
    iou = {
        "background": 100 * 50 / (60 + 61 - 50),
        "aeroplane": 100 * 20 / (30 + 25 - 20),
        "dining table": 100 * 4 / (8 + 4 - 4),
        "sheep": 100 * 1 / (2 + 10 - 1),
    }
    assert figures.iou == pytest.approx(iou)
    assert figures.step == 1
    assert figures.images == 7
    assert figures.old == pytest.approx((iou["aeroplane"] + iou["dining table"]) / 2)
    assert figures.new == pytest.approx(iou["sheep"])
    assert figures.all == pytest.approx(sum(iou.values()) / 4)
    assert figures.pixel_accuracy == pytest.approx(75.0)
    assert figures.confusion == tuple(map(tuple, confusion.tolist()))


def test_truth_is_in_rows() -> None:
    # all three pixels are aeroplanes and are taken for background: sheep is nowhere
    confusion = torch.zeros(4, 4, dtype=torch.long)
    confusion[1, 0] = 3
    figures = Evaluation.from_confusion(confusion, STEPS, 1)
    assert figures.iou == {"background": 0.0, "aeroplane": 0.0, "dining table": None, "sheep": None}
    assert figures.pixel_accuracy == 0


def test_absent_classes_are_null_and_left_out_of_means() -> None:
    confusion = torch.zeros(4, 4, dtype=torch.long)
    confusion[0, 0], confusion[1, 1], confusion[0, 1] = 6, 3, 1
    figures = Evaluation.from_confusion(confusion, STEPS, 1)
    assert figures.iou["dining table"] is None
    assert figures.iou["sheep"] is None
    assert figures.old == pytest.approx(75.0)
    assert figures.new is None
    assert figures.all == pytest.approx((100 * 6 / 7 + 75) / 2)


def test_a_class_seen_only_in_the_prediction_counts_as_zero() -> None:
    confusion = torch.zeros(4, 4, dtype=torch.long)
    confusion[0, 0], confusion[0, 3] = 6, 2
    figures = Evaluation.from_confusion(confusion, STEPS, 1)
    assert figures.iou["sheep"] == 0
    assert figures.new == 0
    assert figures.all == pytest.approx((75 + 0) / 2)


def test_new_is_null_at_step_0_and_spans_all_later_steps_after() -> None:
    first = Evaluation.from_confusion(torch.eye(3).long(), STEPS[:1], 1)
    assert (first.step, first.old, first.new, first.all) == (0, 100, None, 100)
    confusion = torch.diag(torch.tensor([1, 1, 1, 1, 1]))
    confusion[3, 4] = 1  # half of the sheep is a cow: sheep 1/2, cow 1/2
    third = Evaluation.from_confusion(confusion, (*STEPS, ("cow",)), 1)
    assert third.step == 2
    assert third.new == pytest.approx(50)
    assert third.old == 100
    assert third.all == pytest.approx(80)


def test_nothing_counted() -> None:
    figures = Evaluation.from_confusion(torch.zeros(4, 4, dtype=torch.long), STEPS, 0)
    assert (figures.old, figures.new, figures.all, figures.pixel_accuracy) == (None, None, None, None)


def test_counts_beyond_single_precision_are_exact() -> None:
    confusion = torch.diag(torch.tensor([2**40 + 1, 3, 1, 1]))
    figures = Evaluation.from_confusion(confusion, STEPS, 1)
    assert figures.confusion[0][0] == 2**40 + 1
    assert figures.iou["background"] == 100


def test_the_object_that_evaluate_prints() -> None:
    figures = Evaluation.from_confusion(torch.diag(torch.tensor([1, 1, 0, 1])), STEPS, 3)
    assert json.loads(json.dumps(figures.as_dict())) == {
        "step": 1,
        "images": 3,
        "miou": {"old": 100.0, "new": 100.0, "all": 100.0},
        "pixel_accuracy": 100.0,
        "iou": {"background": 100.0, "aeroplane": 100.0, "dining table": None, "sheep": 100.0},
    }
