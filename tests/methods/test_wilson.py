"""WILSON against its equations, one photograph, pixel and class after the other, under every reading."""

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

from fmwiss.config import Config, WILSONConfig
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.methods import WILSON, build_method
from fmwiss.models import Architecture, Segmenter
from fmwiss.pamr import pixel_affinity, refine_masks

N_OLD, N_NEW, CELLS = 3, 2, 4
"""|Y_{t-1}|: background, aeroplane, bicycle; |C_t|: sheep, sofa; features of 4 x 4."""

SEED = 27
"""Of weights with which the example shows every case."""

READINGS: dict[str, tuple[Any, ...]] = {
    "alpha": (0.5, 1.0, 0.0),
    "hard_classes": ("new", "tagged"),
    "gate": ("hard", "soft"),
    "segmentation_reduction": ("sum-classes", "mean"),
    "untagged_absent": (True, False),
    "pamr_iterations": (10, 0),
    "feature_distillation": (1.0, 0.5),
    "encoder_gradient": (True, False),
}
EACH_ALONE: list[dict[str, Any]] = [{name: value} for name, values in READINGS.items() for value in values]


def make_method(epoch: int = 5, **options: Any) -> WILSON:
    """A method in the given epoch whose student and localizer have moved away from where they started."""
    torch.manual_seed(SEED)
    old_model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (("aeroplane", "bicycle"),), None))
    for _ in range(3):
        old_model(torch.rand(2, 3, 64, 64))  # batch norm statistics
    student = copy.deepcopy(old_model)
    student.add_step(("sheep", "sofa"), "plain")
    method = build_method(WILSONConfig(**options), student, old_model)
    assert isinstance(method, WILSON)
    with torch.no_grad():
        for p in [*method.student.parameters(), *(p for head in method.extra_heads() for p in head.parameters())]:
            p.add_(0.05 * torch.randn_like(p))
        if method.localizer is not None:
            method.localizer.head[5].weight.mul_(8)
    method.start_epoch(epoch)
    return method


@pytest.fixture
def batch() -> Batch:
    """Both classes, one, the other, and none; a margin that does not count."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(4, 64, 64, dtype=torch.bool)
    valid[:, :, -16:] = False
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    return Batch(
        ids=("a", "b", "c", "d"),
        image=F.interpolate(coarse, size=(64, 64)) * 0.9 + 0.1 * torch.rand(4, 3, 64, 64, generator=generator),
        valid=valid,
        tags=torch.tensor([[True, True], [True, False], [False, True], [False, False]]),
    )


class Slow:
    """Every loss in plain Python numbers, from copies of the models, so that nothing of the method's step is used."""

    def __init__(self, method: WILSON, batch: Batch) -> None:
        assert batch.tags is not None
        self.options = method.options
        method = copy.deepcopy(method)
        with torch.no_grad():
            old_features = method.old_model.encode(batch.image)
            old_logits = method.old_model.decode(old_features)[0]
            features = method.student.encode(batch.image)
            method.localizer.eval()
            steady = method.localizer(features).softmax(dim=1)
            method.localizer.train()
            raw = method.localizer(features)
            student = method.student.decode(features)[0]
        assert raw.shape[-2:] == (CELLS, CELLS)
        self.tags = batch.tags.tolist()
        step = 64 // CELLS
        self.valid = batch.valid[:, step // 2 :: step, step // 2 :: step].tolist()
        self.features, self.old_features = features.double(), old_features.double()
        self.old = old_logits.double().sigmoid().tolist()
        self.raw = raw.double().tolist()
        self.m = steady.double().tolist()
        self.student = student.double().sigmoid().tolist()
        small = F.interpolate(batch.image, size=(CELLS, CELLS), mode="bilinear", align_corners=False)
        affinity = pixel_affinity(small, self.options.pamr_dilations)
        refined = refine_masks(steady, affinity, self.options.pamr_dilations, self.options.pamr_iterations)
        self.refined = refined.double().tolist()

    def cells(self, b: int) -> list[tuple[int, int]]:
        return [(y, x) for y, x in itertools.product(range(CELLS), repeat=2) if self.valid[b][y][x]]

    def image_label(self) -> float:
        terms = []
        for b, j in itertools.product(range(len(self.tags)), range(N_NEW)):
            if not (self.options.untagged_absent or self.tags[b][j]):
                continue
            weighted, mass, cells = 0.0, 0.0, self.cells(b)
            for y, x in cells:
                exponentials = [math.exp(self.raw[b][c][y][x]) for c in range(N_OLD + N_NEW)]
                m = exponentials[N_OLD + j] / sum(exponentials)
                weighted, mass = weighted + m * self.raw[b][N_OLD + j][y][x], mass + m
            size = mass / len(cells)
            score = weighted / (1 + mass) + (1 - size) ** 3 * math.log(0.01 + size)
            p = 1 / (1 + math.exp(-score))
            terms.append(-math.log(p if self.tags[b][j] else 1 - p))
        return sum(terms) / len(terms)

    def prior(self) -> float:
        terms = []
        for b, c in itertools.product(range(len(self.tags)), range(N_OLD)):
            for y, x in self.cells(b):
                terms.append(cross_entropy(1 / (1 + math.exp(-self.raw[b][c][y][x])), self.old[b][c][y][x]))
        return sum(terms) / len(terms)

    def distance(self) -> float:
        terms = [
            (self.features[b, :, y, x] - self.old_features[b, :, y, x]).square().mean().item()
            for b in range(len(self.tags))
            for y, x in self.cells(b)
        ]
        return self.options.feature_distillation * sum(terms) / len(terms)

    def pseudo_labels(self, b: int) -> dict[tuple[int, int], int]:
        """The confident cells of a photograph: background and tagged new classes."""
        shown = [0, *(N_OLD + j for j in range(N_NEW) if self.tags[b][j])]
        mask = self.refined[b]
        limits = {}
        for c in shown:
            largest = max(mask[c][y][x] for y, x in self.cells(b))
            limits[c] = max(0.2, (0.7 if c == 0 else 0.6) * largest)
        labels = {}
        for y, x in self.cells(b):
            claims = [c for c in shown if mask[c][y][x] > limits[c]]
            if len(claims) == 1:
                labels[y, x] = claims[0]
        return labels

    def self_supervision(self) -> float:
        total = 0.0
        for b in range(len(self.tags)):
            labels = self.pseudo_labels(b)
            if set(labels.values()) != {0, *(N_OLD + j for j in range(N_NEW) if self.tags[b][j])}:
                continue
            loss = 0.0
            for (y, x), label in labels.items():
                exponentials = [math.exp(self.raw[b][c][y][x]) for c in range(N_OLD + N_NEW)]
                weight = sum(other != label for other in labels.values()) / (1 + len(labels))
                loss -= weight * math.log(exponentials[label] / sum(exponentials))
            total += loss / len(self.cells(b))
        return total / len(self.tags)

    def hard(self, b: int, y: int, x: int) -> int:
        """The label with the largest mask, among those that compete."""
        rivals = [0, *(N_OLD + j for j in range(N_NEW) if self.tags[b][j])]
        if self.options.hard_classes == "tagged":
            rivals += range(1, N_OLD)
        return max(rivals, key=lambda c: self.m[b][c][y][x])

    def target(self, b: int, c: int, y: int, x: int) -> float:
        alpha = self.options.alpha
        mixed = alpha * (self.hard(b, y, x) == c) + (1 - alpha) * self.m[b][c][y][x]
        if c == 0:
            return min(self.old[b][c][y][x], mixed)
        if c < N_OLD:
            return self.old[b][c][y][x]
        return mixed if self.tags[b][c - N_OLD] or not self.options.untagged_absent else 0.0

    def counts(self, b: int) -> bool:
        found = {self.hard(b, y, x) for y, x in self.cells(b)} & set(range(N_OLD, N_OLD + N_NEW))
        return self.options.gate == "soft" or found == {N_OLD + j for j in range(N_NEW) if self.tags[b][j]}

    def all_bce(self) -> float:
        terms = [
            sum(
                cross_entropy(self.student[b][c][y][x], self.target(b, c, y, x)) for c in range(N_OLD + N_NEW)
            )
            for b in range(len(self.tags))
            if self.counts(b)
            for y, x in self.cells(b)
        ]
        classes = 1 if self.options.segmentation_reduction == "sum-classes" else N_OLD + N_NEW
        return sum(terms) / len(terms) / classes if terms else 0.0


def cross_entropy(p: float, q: float) -> float:
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


@pytest.mark.parametrize("options", EACH_ALONE, ids=str)
def test_losses_agree_with_the_equations(options: dict[str, Any], batch: Batch) -> None:
    method = make_method(**options)
    slow = Slow(method, batch)
    losses = {name: value.item() for name, value in method.training_step(batch, torch.Generator()).items()}
    assert losses.pop("image_label") == pytest.approx(slow.image_label(), rel=1e-4)
    assert losses.pop("prior") == pytest.approx(slow.prior(), rel=1e-4)
    assert losses.pop("features") == pytest.approx(slow.distance(), rel=1e-4)
    assert losses.pop("self_supervision") == pytest.approx(slow.self_supervision(), rel=1e-4)
    assert losses.pop("all_bce") == pytest.approx(slow.all_bce(), rel=1e-4)
    assert not losses


def test_the_example_shows_every_case(batch: Batch) -> None:
    """Photographs that count and that do not, for both gates, and old classes that win over new ones."""
    slow = Slow(make_method(), batch)
    counting = [slow.counts(b) for b in range(4)]
    assert any(counting) and not all(counting)
    assert slow.self_supervision() > 0
    complete = [len({*slow.pseudo_labels(b).values()}) == 1 + sum(slow.tags[b]) for b in range(4)]
    assert any(complete) and not all(complete)
    tagged = Slow(make_method(hard_classes="tagged"), batch)
    pairs = [(slow.hard(b, y, x), tagged.hard(b, y, x)) for b in range(4) for y, x in slow.cells(b)]
    assert any(new >= N_OLD > old > 0 for new, old in pairs)
    lower = [slow.target(b, 0, y, x) < slow.old[b][0][y][x] for b in range(4) for y, x in slow.cells(b)]
    assert any(lower) and not all(lower)


# ------------------------------------------------------------------------------------------------- who learns what when


def gradients(method: WILSON, losses: dict[str, Tensor]) -> set[str]:
    """The parts of the method in which something has a gradient other than 0."""
    method.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    names = [n.split(".") for n, p in method.named_parameters() if p.grad is not None and p.grad.any()]
    return {".".join(parts[:2]) if parts[0] == "student" else parts[0] for parts in names}


def test_at_first_the_localizer_learns_alone(batch: Batch) -> None:
    method = make_method(epoch=4)
    losses = method.training_step(batch, torch.Generator())
    assert set(losses) == {"image_label", "prior", "features"}
    assert gradients(method, losses) == {"localizer", "student.encoder"}
    method.start_epoch(5)
    losses = method.training_step(batch, torch.Generator())
    assert gradients(method, losses) == {"localizer", "student.encoder", "student.decoder", "student.classifier"}


def test_the_student_does_not_teach_the_localizer(batch: Batch) -> None:
    method = make_method()
    losses = method.training_step(batch, torch.Generator())
    assert gradients(method, {"all_bce": losses["all_bce"]}) == {
        "student.encoder",
        "student.decoder",
        "student.classifier",
    }


def test_without_encoder_gradient_the_localizer_learns_by_itself(batch: Batch) -> None:
    method = make_method(encoder_gradient=False)
    losses = method.training_step(batch, torch.Generator())
    del losses["features"], losses["all_bce"]
    assert gradients(method, losses) == {"localizer"}


def test_without_distillation_there_is_no_such_loss(batch: Batch) -> None:
    assert "features" not in make_method(feature_distillation=0.0).training_step(batch, torch.Generator())


def test_the_old_model_stays_as_it_is(batch: Batch) -> None:
    method = make_method()
    before = {name: value.clone() for name, value in method.old_model.state_dict().items()}
    losses = method.training_step(batch, torch.Generator())
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.equal(before[name]) for name, value in method.old_model.state_dict().items())
    assert all(p.grad is None for p in method.old_model.parameters())


def test_padding_does_not_count(batch: Batch) -> None:
    """Where the mask says "beyond the photograph", losses change by nothing but what convolutions see of it."""
    method = make_method(encoder_gradient=False)
    masks = torch.rand(4, N_OLD + N_NEW, CELLS, CELLS).softmax(dim=1)
    old, tags = torch.rand(4, N_OLD, CELLS, CELLS), batch.tags
    assert tags is not None
    valid = torch.ones(4, 1, CELLS, CELLS, dtype=torch.bool)
    valid[..., -1] = False
    other = masks.clone()
    other[..., -1] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])[:, None]
    target, whole = method.target(masks, old, tags, valid)
    again, whole_again = method.target(other, old, tags, valid)
    assert whole.equal(whole_again)
    assert target[..., :-1].equal(again[..., :-1])


@pytest.mark.parametrize("untagged_absent", [True, False])
def test_masks_in_place_of_the_localizer(batch: Batch, untagged_absent: bool) -> None:
    """Table 9: new classes from masks, old ones from the old model, background where neither says otherwise."""
    assert batch.tags is not None
    pseudo = torch.zeros(4, N_NEW, 64, 64, dtype=torch.bool)
    pseudo[0, 0, :40, :20], pseudo[0, 1, 30:, 30:], pseudo[1, 0, 20:, :], pseudo[2, 1, :9, :9] = True, True, True, True
    options: dict[str, Any] = {"pseudo_labels": "pseudo-masks", "untagged_absent": untagged_absent}
    method = make_method(epoch=0, **options)
    losses = method.training_step(replace(batch, pseudo=pseudo), torch.Generator())
    assert method.localizer is None and method.probability_maps(batch.image) is None
    with torch.no_grad():
        old_features = method.old_model.encode(batch.image).double()
        features = method.student.encode(batch.image)
        student = method.student.decode(features)[0].double().sigmoid().tolist()
        old = method.old_model(batch.image).double().sigmoid().tolist()
    total, pairs, distances = 0.0, 0, []
    for b, y, x in itertools.product(range(4), range(CELLS), range(CELLS)):
        if not batch.valid[b, 16 * y + 8, 16 * x + 8]:
            continue
        distances.append((features[b, :, y, x].double() - old_features[b, :, y, x]).square().mean().item())
        masks = pseudo[b, :, 16 * y + 8, 16 * x + 8].tolist()
        for c in range(N_OLD + N_NEW):
            if c >= N_OLD and not untagged_absent and not batch.tags[b, c - N_OLD]:
                continue
            target = float(masks[c - N_OLD]) if c >= N_OLD else old[b][c][y][x]
            total += cross_entropy(student[b][c][y][x], 0.0 if c == 0 and any(masks) else target)
            pairs += 1
    assert losses.keys() == {"features", "all_bce"}
    assert losses["all_bce"].item() == pytest.approx(total / pairs * (N_OLD + N_NEW), rel=1e-4)
    assert losses["features"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert gradients(method, losses) == {"student.encoder", "student.decoder", "student.classifier"}
    assert WILSON.learns_from_pseudo_masks(method.options) and not WILSON.learns_from_pseudo_masks(WILSONConfig())
    with pytest.raises(ValueError, match="pseudo masks"):
        method.training_step(batch, torch.Generator())


def test_learning_goes_down(batch: Batch) -> None:
    method = make_method(gate="soft")
    optimizer = torch.optim.SGD(method.parameter_groups(0.002, 5.0))
    totals = []
    for _ in range(8):
        losses = method.training_step(batch, torch.Generator())
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


def test_half_precision(batch: Batch) -> None:
    method = make_method()
    expected = method.training_step(batch, torch.Generator())
    method = make_method()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method.training_step(batch, torch.Generator())
    assert all(value.dtype == torch.float32 for value in losses.values())
    for name in ("image_label", "prior", "features"):
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=0.1), name
    torch.stack(list(losses.values())).sum().backward()


def test_maps_are_the_localizers_probabilities(batch: Batch) -> None:
    method = make_method().eval()
    maps = method.probability_maps(batch.image)
    assert maps.shape == (4, N_OLD + N_NEW, CELLS, CELLS)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(4, CELLS, CELLS))
    with torch.no_grad():
        torch.testing.assert_close(maps, method.localizer(method.student.encode(batch.image)).softmax(dim=1))


def test_the_checkpoint_has_the_localizer_and_its_statistics() -> None:
    state = make_method().learnt_state()
    names = {name.removeprefix("localizer.") for name in state if name.startswith("localizer.")}
    assert {"reduce.weight", "head.0.running_mean", "head.3.running_var", "head.5.bias"} <= names
    assert not any(name.startswith("old_model.") for name in state)


def test_more_epochs_for_the_localizer_than_there_are_are_refused() -> None:
    config = Config.model_validate({"method": {"name": "wilson"}, "training": {"steps": {"epochs": 5}}})
    with pytest.raises(UserError, match=r"method.localizer_epochs = 5 leaves none of training.steps.epochs = 5"):
        WILSON.check(config.method, config)
    WILSON.check(WILSONConfig(localizer_epochs=4), config)


def test_a_batch_without_tags_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="tags"):
        make_method().training_step(replace(batch, tags=None), torch.Generator())
