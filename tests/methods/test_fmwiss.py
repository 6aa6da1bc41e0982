"""FMWISS against the paper's equations 6-12, one pixel and class after the other, under every reading."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import FMWISSConfig
from fmwiss.data.batches import Batch
from fmwiss.losses.dense_contrastive import NEGATIVE_ONLY
from fmwiss.methods import FMWISS
from fmwiss.methods.guidance import Guidance
from fmwiss.models import Architecture, Segmenter

N_OLD, N_NEW = 3, 2
"""|Y_{t-1}|: background, aeroplane, bicycle; |C_t|: sheep, sofa."""

READINGS: dict[str, tuple[Any, ...]] = {
    "hard_classes": ("all", "tagged"),
    "teacher_background": ("old-model", "complement"),
    "student_background": ("printed", "minimum", "lowered"),
    "untagged_absent": (True, False),
    "pasted_others": ("zero", "old-model"),
    "pasted_student": ("override", "printed"),
    "encoder_gradient": (False, True),
    "loss_stride": (1, 2, 4),
}


def combinations(*names: str) -> list[dict[str, Any]]:
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(READINGS[n] for n in names))]


def each_alone() -> list[dict[str, Any]]:
    """Every value of every reading with the rest at their defaults, but coarse losses, for the loops' sake."""
    return [{"loss_stride": 4, name: value} for name, values in READINGS.items() for value in values]


# ------------------------------------------------------------------------------------------------------- what is taught


# M_refine by image and class on a 4 x 4 grid; the classes overlap in the first image
SHEEP_0, SOFA_0 = ("11..", "11..", "11..", "...."), ("..1.", "..1.", ".11.", ".11.")
SHEEP_1, NONE = (".111", "111.", "..11", "...."), ("....", "....", "....", "....")


def make_batch(size: int = 32, seed: int = 0) -> Batch:
    """Three images: sheep and sofa under a pasted aeroplane, sheep under a pasted bicycle, no tag at all."""
    generator = torch.Generator().manual_seed(seed)
    grids = ((SHEEP_0, SOFA_0), (SHEEP_1, NONE), (NONE, NONE))
    blocks = torch.tensor([[[[cell == "1" for cell in row] for row in grid] for grid in pair] for pair in grids])
    pasted = torch.zeros(3, size, size, dtype=torch.long)
    pasted[0, size // 4 : size // 2, : size // 2] = 1
    pasted[1, size // 2 :, size // 4 : size // 2] = 2
    pseudo = F.interpolate(blocks.float(), size=(size, size)).bool() & (pasted == 0)[:, None]
    valid = torch.ones(3, size, size, dtype=torch.bool)
    valid[:, :, -size // 8 :] = False
    return Batch(
        ids=("a", "b", "c"),
        image=torch.rand(3, 3, size, size, generator=generator),
        valid=valid,
        pseudo=pseudo,
        tags=torch.tensor([[True, True], [True, False], [False, False]]),
        pasted=pasted,
    )


def thinned(maps: Tensor, stride: int) -> Any:
    """Nested lists of the pixel at the centre of every ``stride x stride`` cell."""
    side = maps.shape[-1]
    centres = [min(int((cell + 0.5) * stride), side - 1) for cell in range(math.ceil(side / stride))]
    rows = [maps[..., y, :] for y in centres]
    columns = [torch.stack([row[..., x] for x in centres], dim=-1) for row in rows]
    return torch.stack(columns, dim=-2).tolist()


# ---------------------------------------------------------------------------------------- the equations, pixel by pixel


class Slow:
    """Equations 6, 8, 9, 10 and 11 in plain Python numbers.

    ``old`` are the old model's and ``teacher`` and ``student`` the others' sigmoid outputs, ``scores`` the teacher's
    logits, all ``[image][class][y][x]`` at the losses' resolution.
    """

    def __init__(self, batch: Batch, options: FMWISSConfig, old: Tensor, teacher: Tensor) -> None:
        assert batch.pseudo is not None and batch.tags is not None and batch.pasted is not None
        self.options = options
        stride = options.loss_stride
        self.valid = thinned(batch.valid, stride)
        self.m_refine = thinned(batch.pseudo, stride)
        self.pasted = thinned(batch.pasted, stride)
        self.tags = batch.tags.tolist()
        self.old = old.double().tolist()
        self.scores = teacher.double().tolist()
        self.teacher = teacher.double().sigmoid().tolist()
        self.shape = (len(self.tags), *old.shape[-2:])

    def pixels(self) -> list[tuple[int, int, int]]:
        """Pixels that count: those of the photograph."""
        return [(b, y, x) for b, y, x in itertools.product(*map(range, self.shape)) if self.valid[b][y][x]]

    def tagged(self, b: int, c: int) -> bool:
        return c < N_OLD or self.tags[b][c - N_OLD]

    def old_target(self, b: int, c: int, y: int, x: int) -> float:
        """Equations 8 and 9."""
        instance = self.pasted[b][y][x]
        if instance:
            if c == instance:
                return 1.0
            return 0.0 if self.options.pasted_others == "zero" else self.old[b][c][y][x]
        under_mask = any(self.m_refine[b][j][y][x] for j in range(N_NEW))
        if c == 0 and under_mask and self.options.teacher_background == "complement":
            return 0.0
        return self.old[b][c][y][x]

    def student_target(self, b: int, c: int, y: int, x: int) -> float:
        """Equation 10."""
        options, instance = self.options, self.pasted[b][y][x]
        if instance and options.pasted_student == "override":
            return float(c == instance)
        if c >= N_OLD:
            return self.new_target(b, c, y, x)
        old, teacher = self.old[b][c][y][x], self.teacher[b][c][y][x]
        mean = options.beta * old + (1 - options.beta) * teacher
        if c == 0 and options.student_background == "minimum":
            return min(old, teacher)
        if c == 0 and options.student_background == "lowered":
            largest = max(self.claim(b, n, y, x) for n in range(N_OLD, N_OLD + N_NEW))
            return min(mean, 1 - largest)
        return mean

    def claim(self, b: int, c: int, y: int, x: int) -> float:
        """What a new class leaves the background; of one that may be there without a tag, what the teacher sees."""
        if self.options.untagged_absent or self.tagged(b, c):
            return self.new_target(b, c, y, x)
        return self.teacher[b][c][y][x]

    def new_target(self, b: int, c: int, y: int, x: int) -> float:
        options = self.options
        if options.untagged_absent and not self.tagged(b, c):
            return 0.0
        rivals = [r for r in range(N_OLD + N_NEW) if options.hard_classes == "all" or self.tagged(b, r)]
        winner = max(rivals, key=lambda r: self.scores[b][r][y][x])
        return options.alpha * (winner == c) + (1 - options.alpha) * self.teacher[b][c][y][x]

    def new_bce(self) -> float:
        """Equation 6."""
        terms = []
        for (b, y, x), j in itertools.product(self.pixels(), range(N_NEW)):
            known = self.options.untagged_absent or self.tags[b][j] or self.pasted[b][y][x] > 0
            if known:
                terms.append(cross_entropy(self.teacher[b][N_OLD + j][y][x], float(self.m_refine[b][j][y][x])))
        return sum(terms) / len(terms)

    def old_bce(self) -> float:
        """Equation 8."""
        return self._bce(self.teacher, self.old_target, N_OLD)

    def all_bce(self, student: Tensor) -> float:
        """Equation 11."""
        return self._bce(student.double().sigmoid().tolist(), self.student_target, N_OLD + N_NEW, self.taught)

    def taught(self, b: int, c: int, y: int, x: int) -> bool:
        """Whether the student learns anything of the class there."""
        if self.options.untagged_absent or c < N_OLD or self.tagged(b, c):
            return True
        return self.options.pasted_student == "override" and self.pasted[b][y][x] > 0

    def _bce(
        self, outputs: Any, target: Callable[[int, int, int, int], float], n_classes: int,
        counts: Callable[[int, int, int, int], bool] = lambda *place: True,
    ) -> float:
        terms = [
            cross_entropy(outputs[b][c][y][x], target(b, c, y, x))
            for (b, y, x), c in itertools.product(self.pixels(), range(n_classes)) if counts(b, c, y, x)
        ]
        return sum(terms) / len(terms)


def cross_entropy(p: float, q: float) -> float:
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def slow_dcl(points: list[list[float]], labels: list[int], tau: float) -> float:
    """Equation 7, averaged over the points that have positives and negatives."""
    unit = [[v / max(math.sqrt(sum(u * u for u in p)), 1e-12) for v in p] for p in points]
    terms = []
    for i, label in enumerate(labels):
        similarity = [math.exp(sum(a * b for a, b in zip(unit[i], other, strict=True)) / tau) for other in unit]
        positives = [s for j, s in enumerate(similarity) if j != i and labels[j] == label]
        negatives = sum(s for j, s in enumerate(similarity) if labels[j] != label)
        if label != NEGATIVE_ONLY and positives and negatives:
            terms.append(sum(-math.log(s / (s + negatives)) for s in positives) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


def slow_points(batch: Batch, features: Tensor) -> tuple[list[list[float]], list[int]]:
    """Every place of exactly one pseudo class; where only one class has any, all others as its negatives."""
    assert batch.pseudo is not None
    stride = batch.image.shape[-1] // features.shape[-1]
    pseudo, valid = thinned(batch.pseudo, stride), thinned(batch.valid, stride)
    single, empty = [], []
    for b, y, x in itertools.product(range(len(features)), *map(range, features.shape[-2:])):
        classes = [j for j in range(N_NEW) if pseudo[b][j][y][x]]
        if valid[b][y][x] and len(classes) == 1:
            single.append(((b, y, x), classes[0]))
        elif valid[b][y][x] and not classes:
            empty.append(((b, y, x), NEGATIVE_ONLY))
    chosen = single + empty if len({label for _, label in single}) == 1 else single
    return [features[b, :, y, x].tolist() for (b, y, x), _ in chosen], [label for _, label in chosen]


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def old_model() -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane", "bicycle"),), None))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
        model.classifier.steps[0].weight.mul_(5)
    return model


@pytest.fixture
def build(old_model: Segmenter) -> Callable[..., FMWISS]:
    def build(freeze_batch_norm: bool = False, **options: Any) -> FMWISS:
        torch.manual_seed(1)
        student, old = copy.deepcopy(old_model), copy.deepcopy(old_model)
        student.add_step(("sheep", "sofa"), "plain")
        method = FMWISS(student, old, FMWISSConfig(**options), freeze_batch_norm)
        method.start_epoch(method.warmup_epochs)  # the first epoch in which everything learns
        return method

    return build


def outputs(method: FMWISS, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old model's sigmoid, teacher's logits and features and student's logits, at the losses' resolution."""
    size = [math.ceil(batch.image.shape[-1] / method.options.loss_stride)] * 2

    def up(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    with torch.no_grad():
        old = method.old_model(batch.image)
        features = method.student.encode(batch.image)
        teacher, attended = method.teacher(features)
        student = method.student.decode(features)[0]
    return up(old).sigmoid(), up(teacher), attended, up(student)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --------------------------------------------------------------------------------------------- equations, one at a time


@pytest.fixture(scope="module")
def tensors() -> tuple[Batch, Tensor, Tensor]:
    """An 8 x 8 batch, an old model's sigmoid outputs and a teacher's logits."""
    random = torch.Generator().manual_seed(7)
    old = torch.rand(3, N_OLD, 8, 8, generator=random)
    teacher = 2 * torch.randn(3, N_OLD + N_NEW, 8, 8, generator=random)
    return make_batch(8), old, teacher


@pytest.fixture(scope="module")
def plain(old_model: Segmenter) -> FMWISS:
    student = copy.deepcopy(old_model)
    student.add_step(("sheep", "sofa"), "plain")
    return FMWISS(student, copy.deepcopy(old_model), FMWISSConfig())


def with_options(method: FMWISS, **options: Any) -> FMWISS:
    method.options = FMWISSConfig(**options)
    return method


@pytest.mark.parametrize("reading", combinations("teacher_background", "pasted_others"), ids=str)
def test_eq_8_and_9_target_of_the_teacher(
    plain: FMWISS, tensors: tuple[Batch, Tensor, Tensor], reading: dict[str, Any]
) -> None:
    batch, old, teacher = tensors
    method = with_options(plain, **reading)
    before = old.clone()
    target = method.old_target(Guidance.of(batch, 1), old)
    slow = Slow(batch, method.options, old, teacher)
    expected = torch.empty_like(old)
    for b, c, y, x in itertools.product(*map(range, old.shape)):
        expected[b, c, y, x] = slow.old_target(b, c, y, x)
    torch.testing.assert_close(target, expected)
    assert old.equal(before)


@pytest.mark.parametrize(
    "reading",
    combinations("hard_classes", "student_background", "untagged_absent", "pasted_student"),
    ids=lambda reading: "-".join(map(str, reading.values())),
)
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.9), (0.2, 0.6)])
def test_eq_10_target_of_the_student(
    plain: FMWISS, tensors: tuple[Batch, Tensor, Tensor], reading: dict[str, Any], alpha: float, beta: float
) -> None:
    batch, old, teacher = tensors
    method = with_options(plain, alpha=alpha, beta=beta, **reading)
    before = old.clone(), teacher.clone()
    target = method.student_target(Guidance.of(batch, 1), teacher, old)
    slow = Slow(batch, method.options, old, teacher)
    expected = torch.empty_like(teacher)
    for b, c, y, x in itertools.product(*map(range, teacher.shape)):
        expected[b, c, y, x] = slow.student_target(b, c, y, x)
    torch.testing.assert_close(target, expected)
    assert target.min() >= 0
    assert target.max() <= 1
    assert old.equal(before[0])
    assert teacher.equal(before[1])


def test_eq_10_by_hand(plain: FMWISS) -> None:
    """One pixel of a sheep, alpha = .5, beta = .9: the teacher sees sheep (.8) best, background .6; old: .9, 0, .2."""
    letter = {"student_background": "printed", "hard_classes": "all"}
    method = with_options(plain, **letter)
    truth = Guidance(
        valid=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        pseudo=torch.tensor([1.0, 0.0]).view(1, 2, 1, 1),
        tags=torch.tensor([True, False]).view(1, 2, 1, 1),
        pasted=torch.zeros(1, 1, 1, 1, dtype=torch.long),
    )
    teacher = torch.tensor([0.6, 0.1, 0.3, 0.8, 0.7]).logit().view(1, 5, 1, 1)
    old = torch.tensor([0.9, 0.0, 0.2]).view(1, 3, 1, 1)
    target = method.student_target(truth, teacher, old).flatten().tolist()
    # sheep: .5 * 1 + .5 * .8; sofa is not tagged
    assert target == pytest.approx([0.87, 0.01, 0.21, 0.9, 0.0], abs=1e-6)
    lowered = with_options(plain, student_background="lowered").student_target(truth, teacher, old).flatten().tolist()
    assert lowered == pytest.approx([0.1, 0.01, 0.21, 0.9, 0.0], abs=1e-6)
    minimum = with_options(plain, student_background="minimum").student_target(truth, teacher, old).flatten().tolist()
    assert minimum == pytest.approx([0.6, 0.01, 0.21, 0.9, 0.0], abs=1e-6)
    method = with_options(plain, **letter, untagged_absent=False)
    open_tags = method.student_target(truth, teacher, old).flatten().tolist()
    assert open_tags == pytest.approx([0.87, 0.01, 0.21, 0.9, 0.35], abs=1e-6)


@pytest.mark.parametrize("reading", combinations("untagged_absent", "teacher_background", "pasted_others"), ids=str)
def test_eq_6_and_8_losses_of_the_teacher(
    plain: FMWISS, tensors: tuple[Batch, Tensor, Tensor], reading: dict[str, Any]
) -> None:
    batch, old, teacher = tensors
    method = with_options(plain, **reading)
    losses = method.teacher_losses(Guidance.of(batch, 1), teacher, old)
    slow = Slow(batch, method.options, old, teacher)
    assert losses.keys() == {"new_bce", "old_bce"}
    assert losses["new_bce"].item() == pytest.approx(slow.new_bce(), rel=1e-5)
    assert losses["old_bce"].item() == pytest.approx(slow.old_bce(), rel=1e-5)


# ------------------------------------------------------------------------------------------------- the contrastive loss


@pytest.fixture
def drawn(plain: FMWISS, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The points and labels that :meth:`FMWISS.contrastive_loss` hands to equation 7."""
    calls: list[tuple[Tensor, Tensor]] = []
    compute = plain.dcl.forward

    def record(points: Tensor, labels: Tensor) -> Tensor:
        calls.append((points, labels))
        return compute(points, labels)

    monkeypatch.setattr(plain.dcl, "forward", record)
    return calls


def contrastive_case(name: str) -> Batch:
    batch = make_batch(32)
    assert batch.pseudo is not None
    pseudo = batch.pseudo.clone()
    if name == "one class":
        pseudo[:, 1] = False
    elif name == "overlapping only":
        pseudo[:] = pseudo.any(dim=1, keepdim=True)
    elif name == "class-less":
        pseudo[:] = False
    return replace(batch, pseudo=pseudo)


@pytest.mark.parametrize("case", ["two classes", "one class", "overlapping only", "class-less"])
@pytest.mark.parametrize("cells", [4, 8, 32])
def test_eq_7_over_all_pixels_of_one_class(plain: FMWISS, case: str, cells: int) -> None:
    method = with_options(plain, points_per_class=10_000)
    batch = contrastive_case(case)
    features = torch.randn(3, 6, cells, cells, generator=torch.Generator().manual_seed(2))
    loss = method.contrastive_loss(Guidance.of(batch, 32 / cells), features, generator())
    points, labels = slow_points(batch, features)
    if cells < 32:
        assert loss.item() == pytest.approx(slow_dcl(points, labels, method.options.tau), rel=1e-4, abs=1e-6)
    assert (loss.item() > 0) == (case in ("two classes", "one class"))


@pytest.mark.parametrize("case", ["two classes", "one class"])
def test_points_drawn_for_eq_7(plain: FMWISS, drawn: list[tuple[Tensor, Tensor]], case: str) -> None:
    method, batch = with_options(plain, points_per_class=10), contrastive_case(case)
    features = torch.randn(3, 6, 16, 16, generator=torch.Generator().manual_seed(2))
    method.contrastive_loss(Guidance.of(batch, 2), features, generator())
    points, labels = drawn[0]
    eligible = dict(zip(map(tuple, slow_points(batch, features)[0]), slow_points(batch, features)[1], strict=True))
    assert [eligible[tuple(point)] for point in points.tolist()] == labels.tolist()
    counts = {label: labels.tolist().count(label) for label in labels.tolist()}
    assert counts == ({0: 10, 1: 10} if case == "two classes" else {0: 10, NEGATIVE_ONLY: 10})
    method.contrastive_loss(Guidance.of(batch, 2), features, generator())
    method.contrastive_loss(Guidance.of(batch, 2), features, torch.Generator().manual_seed(5))
    assert drawn[1][0].equal(points)
    assert not drawn[2][0].equal(points)


def test_a_step_with_a_single_new_class_contrasts_it_with_the_rest(old_model: Segmenter) -> None:
    student = copy.deepcopy(old_model)
    student.add_step(("sheep",), "plain")
    method = FMWISS(student, copy.deepcopy(old_model), FMWISSConfig(warmup_epochs=0))
    method.start_epoch(0)
    batch = make_batch(64)
    assert batch.pseudo is not None and batch.tags is not None
    batch = replace(batch, pseudo=batch.pseudo[:, :1], tags=batch.tags[:, :1])
    losses = method.training_step(batch, generator())
    assert losses["new_dcl"].item() > 0
    assert all(loss.isfinite() for loss in losses.values())


# ------------------------------------------------------------------------------------------------------ a training step


@pytest.mark.parametrize("reading", each_alone(), ids=str)
def test_training_step_is_equations_6_to_12(build: Callable[..., FMWISS], reading: dict[str, Any]) -> None:
    method = build(points_per_class=10_000, tau=0.3, lambda_dcl=0.25, **reading)
    batch = make_batch(64)
    old, teacher, attended, student = outputs(method, batch)
    losses = method.training_step(batch, generator())
    slow = Slow(batch, method.options, old, teacher)
    points, labels = slow_points(batch, attended)
    expected = {
        "new_bce": slow.new_bce(),
        "old_bce": slow.old_bce(),
        "new_dcl": 0.25 * slow_dcl(points, labels, 0.3),
        "all_bce": slow.all_bce(student),
    }
    assert expected["new_dcl"] > 0.01
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_eq_12_the_losses_sum_to_the_objective(build: Callable[..., FMWISS]) -> None:
    batch = make_batch(64)
    sums = {}
    for weight in (0.1, 0.7, 0.0):
        losses = build(lambda_dcl=weight).training_step(batch, generator())
        assert ("new_dcl" in losses) == (weight > 0)
        sums[weight] = sum(loss.item() for loss in losses.values())
    contrastive = (sums[0.1] - sums[0.0]) / 0.1
    assert contrastive > 0.1
    assert sums[0.7] == pytest.approx(sums[0.0] + 0.7 * contrastive, rel=1e-4)


@pytest.mark.parametrize("stage", ["warm-up", "main"])
def test_a_batch_without_pasted_or_pseudo_pixels(build: Callable[..., FMWISS], stage: str) -> None:
    method = build()
    method.start_epoch(0 if stage == "warm-up" else method.warmup_epochs)
    batch = make_batch(32)
    assert batch.pseudo is not None and batch.tags is not None
    empty = replace(batch, pseudo=torch.zeros_like(batch.pseudo), tags=torch.zeros_like(batch.tags), pasted=None)
    losses = method.training_step(empty, generator())
    torch.stack(list(losses.values())).sum().backward()
    assert losses["new_dcl"].item() == 0
    assert losses["new_bce"].item() > 0
    for parameter in method.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("hard_classes", ["all", "tagged"])
def test_a_batch_without_tags_where_untagged_classes_may_be_present(
    build: Callable[..., FMWISS], hard_classes: str
) -> None:
    method = build(untagged_absent=False, hard_classes=hard_classes)
    batch = make_batch(32)
    assert batch.pseudo is not None and batch.tags is not None
    empty = replace(batch, pseudo=torch.zeros_like(batch.pseudo), tags=torch.zeros_like(batch.tags), pasted=None)
    losses = method.training_step(empty, generator())
    assert losses["new_bce"].item() == 0  # nothing is known about the new classes
    assert losses["all_bce"].item() > 0


@pytest.mark.parametrize("untagged_absent", [True, False])
def test_of_a_class_that_may_be_there_without_a_tag_the_student_learns_nothing(
    build: Callable[..., FMWISS], untagged_absent: bool
) -> None:
    method = build(untagged_absent=untagged_absent)
    batch = make_batch(32)
    assert batch.tags is not None
    last = torch.tensor([True, False]).expand_as(batch.tags)  # no sofa is tagged
    losses = method.training_step(replace(batch, tags=last, pasted=None), generator())
    losses["all_bce"].backward()
    gradient = method.student.classifier.steps[-1].bias.grad
    assert gradient is not None and gradient[0] != 0
    assert (gradient[1] == 0) == (not untagged_absent)


def test_nothing_of_a_crop_is_photograph(build: Callable[..., FMWISS]) -> None:
    batch = make_batch(32)
    losses = build().training_step(replace(batch, valid=torch.zeros_like(batch.valid)), generator())
    assert [loss.item() for loss in losses.values()] == [0, 0, 0, 0]


def test_padding_changes_no_loss(plain: FMWISS, tensors: tuple[Batch, Tensor, Tensor]) -> None:
    batch, old, teacher = tensors
    method = with_options(plain)
    changed = replace(batch, pasted=torch.where(batch.valid, batch.pasted, 2))  # type: ignore[arg-type]
    outside = ~batch.valid[:, None]
    first = method.teacher_losses(Guidance.of(batch, 1), teacher, old)
    second = method.teacher_losses(
        Guidance.of(changed, 1), teacher.masked_fill(outside, 9.0), old.masked_fill(outside, 0.3)
    )
    assert {k: v.item() for k, v in first.items()} == pytest.approx({k: v.item() for k, v in second.items()})


def test_a_batch_without_pseudo_masks_is_refused(build: Callable[..., FMWISS]) -> None:
    with pytest.raises(ValueError, match="pseudo masks"):
        build().training_step(replace(make_batch(), pseudo=None), generator())


# ------------------------------------------------------------------------------------------------------ who learns what


def backward(losses: dict[str, Tensor], *names: str) -> None:
    torch.stack([losses[name] for name in names or losses]).sum().backward()


def touched(module: torch.nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def part(name: str) -> str:
    return name.removeprefix("student.").split(".")[0]


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


def optimize(method: FMWISS, batch: Batch, iterations: int) -> None:
    groups = method.parameter_groups(0.01, 10.0)
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)  # type: ignore[arg-type]
    for _ in range(iterations):
        losses = method.training_step(batch, generator())
        optimizer.zero_grad()
        backward(losses)
        optimizer.step()


def test_warm_up_trains_the_teacher_alone(build: Callable[..., FMWISS]) -> None:
    method = build(warmup_epochs=5, encoder_gradient=True)
    before, batch = snapshot(method), make_batch(64)
    for epoch in range(5):
        method.start_epoch(epoch)
        assert method.warming_up
        assert not method.student.training
        assert method.teacher.training
        losses = method.training_step(batch, generator())
        assert losses.keys() == {"new_bce", "old_bce", "new_dcl"}
        backward(losses)
        assert {part(name) for name in touched(method)} == {"teacher"}
        method.zero_grad(set_to_none=True)
        optimize(method, batch, 2)
    teacher = {name for name, _ in method.teacher.named_parameters(prefix="teacher")}
    assert {part(name) for name in changed(method, before)} == {"teacher"}
    assert teacher <= changed(method, before)
    method.start_epoch(5)
    assert not method.warming_up
    assert method.student.training


def test_warm_up_features_are_those_that_the_main_phase_starts_from(build: Callable[..., FMWISS]) -> None:
    """The old model's encoder is taken for the student's, which has not moved and is in evaluation mode."""
    method = build(freeze_batch_norm=True)
    batch = make_batch(64)
    main = method.training_step(batch, generator())
    method.start_epoch(0)
    warm = method.training_step(batch, generator())
    for name in ("new_bce", "old_bce", "new_dcl"):
        assert warm[name].item() == pytest.approx(main[name].item(), rel=1e-5)


def test_without_warm_up_the_student_learns_at_once(build: Callable[..., FMWISS]) -> None:
    method = build(warmup_epochs=0)
    method.start_epoch(0)
    assert not method.warming_up
    assert "all_bce" in method.training_step(make_batch(), generator())


@pytest.mark.parametrize("encoder_gradient", [False, True])
def test_gradients_of_the_teachers_losses(build: Callable[..., FMWISS], encoder_gradient: bool) -> None:
    method = build(encoder_gradient=encoder_gradient)
    for name in ("new_bce", "old_bce", "new_dcl"):
        method.zero_grad(set_to_none=True)
        backward(method.training_step(make_batch(64), generator()), name)
        expected = {"teacher", "encoder"} if encoder_gradient else {"teacher"}
        assert {part(parameter) for parameter in touched(method)} == expected


@pytest.mark.parametrize("encoder_gradient", [False, True])
def test_gradients_of_the_students_loss_do_not_reach_the_teacher(
    build: Callable[..., FMWISS], encoder_gradient: bool
) -> None:
    method = build(encoder_gradient=encoder_gradient)
    backward(method.training_step(make_batch(64), generator()), "all_bce")
    assert {part(parameter) for parameter in touched(method)} == {"encoder", "decoder", "classifier"}
    assert {name for name in touched(method.student.classifier)} == {
        f"steps.{t}.{kind}" for t in (0, 1) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_the_old_model_never_changes(build: Callable[..., FMWISS], warmup_epochs: int) -> None:
    method = build(warmup_epochs=warmup_epochs)
    before = snapshot(method.old_model)
    for epoch in range(2):
        method.start_epoch(epoch)
        assert not any(module.training for module in method.old_model.modules())
        optimize(method, make_batch(32, seed=epoch), 2)
        method.eval()
        method.train()
    assert not changed(method.old_model, before)
    assert not any(p.requires_grad or p.grad is not None for p in method.old_model.parameters())


def test_frozen_batch_norm_keeps_the_students_statistics(build: Callable[..., FMWISS]) -> None:
    for freeze in (False, True):
        method = build(freeze_batch_norm=freeze)
        before = snapshot(method.student)
        optimize(method, make_batch(), 1)
        statistics = {name for name in changed(method.student, before) if "running" in name}
        assert bool(statistics) == (not freeze)
        assert any("encoder" in name for name in changed(method.student, before))


def test_parameter_groups_hold_everything_that_learns_once(build: Callable[..., FMWISS]) -> None:
    method = build()
    groups = method.parameter_groups(1e-3, 10.0)
    assert [group["lr"] for group in groups] == [1e-3, 1e-2]
    encoder, heads = ([id(p) for p in group["params"]] for group in groups)  # type: ignore[attr-defined]
    assert encoder == [id(p) for p in method.student.encoder.parameters()]
    expected = [method.student.decoder, method.student.classifier, method.teacher]
    assert sorted(heads) == sorted(id(p) for module in expected for p in module.parameters())
    frozen = {id(p) for p in method.old_model.parameters()}
    assert set(encoder + heads) == {id(p) for p in method.parameters()} - frozen


def test_learnt_state_is_everything_but_the_old_model(build: Callable[..., FMWISS]) -> None:
    method, other = build(), build()
    optimize(method, make_batch(), 2)
    state = {name: value.clone() for name, value in method.learnt_state().items()}
    assert {name.split(".")[0] for name in state} == {"student", "teacher"}
    other.load_learnt_state(state)
    assert not changed(other, snapshot(method))
    with pytest.raises(RuntimeError):
        other.load_learnt_state({**state, "teacher.unknown": torch.zeros(1)})


def test_forward_is_training_step_for_the_fields_of_a_batch(build: Callable[..., FMWISS]) -> None:
    batch = make_batch()
    assert build()(vars(batch), generator()) == build().training_step(batch, generator())


# ------------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8, 16])
def test_guidance_takes_the_pixel_at_every_cells_centre(stride: int) -> None:
    batch = make_batch(16)
    assert batch.pseudo is not None and batch.tags is not None and batch.pasted is not None
    truth = Guidance.of(batch, stride)
    n = math.ceil(16 / stride)
    assert truth.valid.shape == truth.pasted.shape == (3, 1, n, n)
    assert truth.pseudo.shape == (3, N_NEW, n, n)
    assert truth.valid[:, 0].tolist() == thinned(batch.valid, stride)
    assert truth.pseudo.bool().tolist() == thinned(batch.pseudo, stride)
    assert truth.pasted[:, 0].tolist() == thinned(batch.pasted, stride)
    assert truth.tags.tolist() == batch.tags[:, :, None, None].tolist()
    assert truth.pseudo.dtype == torch.float32


def test_guidance_at_the_resolution_of_features() -> None:
    """A crop of 70 pixels has 5 features a side at stride 16: cells of 14 pixels."""
    pseudo = torch.zeros(1, 1, 70, 70, dtype=torch.bool)
    pseudo[..., 7, 63] = True  # the centre of the first cell down and the last across
    batch = Batch(
        ("a",),
        torch.rand(1, 3, 70, 70),
        torch.ones(1, 70, 70, dtype=torch.bool),
        pseudo=pseudo,
        tags=torch.ones(1, 1, dtype=torch.bool),
    )
    truth = Guidance.of(batch, 70 / 5)
    assert truth.pseudo.nonzero().tolist() == [[0, 0, 0, 4]]
    assert not truth.pasted.any()


def test_the_teacher_can_start_with_rare_classes(build: Callable[..., FMWISS]) -> None:
    method = build()
    background = method.teacher.classifier.bias[0].item()
    method.start_rare(0.02)
    bias = method.teacher.classifier.bias
    assert bias[1:].sigmoid().tolist() == pytest.approx([0.02] * (len(bias) - 1)) and bias[0].item() == background
