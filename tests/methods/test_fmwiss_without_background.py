"""FMWISS on a model without a background: targets worked by hand, on one pixel."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmwiss.config import FMWISSConfig
from fmwiss.methods import FMWISS
from fmwiss.methods.guidance import Guidance
from fmwiss.models import Segmenter
from fmwiss.models.foreign import open_foreign
from foreign_models import save_smp


@pytest.fixture(scope="module")
def step0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_smp(folder / "smp", "FPN", labels=("road", "person", "car"))
    open_foreign(folder / "smp").save(folder / "step0")
    return folder / "step0"


def build(step0: Path, **options: object) -> FMWISS:
    student, old = Segmenter.load(step0), Segmenter.load(step0)
    student.add_step(("forklift", "crane"), "background")
    return FMWISS(student, old, FMWISSConfig.model_validate({"alpha": 0.5, "beta": 0.9, **options}))


def one_pixel(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def guidance(pseudo: tuple[float, float] = (1.0, 0.0), tags: tuple[bool, bool] = (True, False)) -> Guidance:
    return Guidance(
        valid=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        pseudo=one_pixel(list(pseudo)),
        tags=torch.tensor(tags).view(1, 2, 1, 1),
        pasted=torch.zeros(1, 1, 1, 1, dtype=torch.long),
    )


# teacher: background, road, person, car, forklift, crane
TEACHER = [0.5, 0.1, 0.2, 0.3, 0.8, 0.4]
OLD = [1e-13, 0.05, 0.15, 0.8]


@pytest.mark.parametrize("untagged_absent", [True, False])
def test_old_classes_leave_room_for_the_new_ones_score(step0: Path, untagged_absent: bool) -> None:
    method = build(step0, untagged_absent=untagged_absent)
    target = method.student_target(guidance(), one_pixel([logit(p) for p in TEACHER]), one_pixel(OLD)).flatten()
    # 0.9 old + 0.1 teacher: road 0.055, person 0.155, car 0.75; the teacher's 0.8 of a forklift leaves 0.2
    assert target[:4].tolist() == pytest.approx([0.0, 0.055, 0.155, 0.2], abs=1e-6)
    # a forklift is the largest: 0.5 + 0.5 * 0.8; a crane is not tagged: absent, or 0.5 * 0.4
    assert target[4:].tolist() == pytest.approx([0.9, 0.0 if untagged_absent else 0.2], abs=1e-6)


def test_an_untagged_class_that_is_absent_takes_no_room(step0: Path) -> None:
    teacher = one_pixel([logit(p) for p in [0.5, 0.1, 0.2, 0.3, 0.1, 0.9]])
    for absent, car in ((True, 0.75), (False, 0.1)):
        target = build(step0, untagged_absent=absent).student_target(guidance(), teacher, one_pixel(OLD)).flatten()
        assert target[3].item() == pytest.approx(car, abs=1e-6)


def test_the_teacher_learns_no_old_class_where_a_pseudo_mask_is(step0: Path) -> None:
    method = build(step0)
    assert method.old_target(guidance(), one_pixel(OLD)).flatten().tolist() == [0, 0, 0, 0]
    elsewhere = method.old_target(guidance(pseudo=(0.0, 0.0)), one_pixel(OLD)).flatten()
    assert elsewhere.tolist() == pytest.approx(OLD)
