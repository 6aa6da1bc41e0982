"""DenseContrastiveLoss against loops over pairs of points (paper, equation 7), and the drawing of points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmwiss.losses import DenseContrastiveLoss, lowest_lots, sample_points
from fmwiss.losses.dense_contrastive import NEGATIVE_ONLY, NOT_DRAWN


def slow_dcl(features: Tensor, labels: Tensor, tau: float) -> float:
    """Equation 7 as printed for every anchor with a positive and a negative, and the mean over these anchors."""
    points = [[float(v) for v in row] for row in features]
    points = [[v / math.sqrt(sum(u * u for u in p)) for v in p] for p in points]
    n = len(points)

    def affinity(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(points[i], points[j], strict=True)) / tau)

    anchors = []
    for i in range(n):
        if labels[i] == NEGATIVE_ONLY:
            continue
        positives = [j for j in range(n) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(n) if labels[j] != labels[i]]
        if not positives or not negatives:
            continue
        repelled = sum(affinity(i, j) for j in negatives)
        terms = [-math.log(affinity(i, j) / (affinity(i, j) + repelled)) for j in positives]
        anchors.append(sum(terms) / len(terms))
    return sum(anchors) / len(anchors) if anchors else 0.0


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(
    "labels",
    [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 1, 2, 2],  # one class has a single point: no anchor, but a negative
        [3, 3, 3, NEGATIVE_ONLY, NEGATIVE_ONLY, NEGATIVE_ONLY],
        [0, 0, 1, 1, NEGATIVE_ONLY, NEGATIVE_ONLY],
    ],
)
def test_agrees_with_a_loop_over_pairs(tau: float, labels: list[int]) -> None:
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[0.1], [1], [2], [3], [9], [5]]
    )
    loss = DenseContrastiveLoss(tau)(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(slow_dcl(features, torch.tensor(labels), tau), rel=1e-5)


def test_hand_worked_numbers() -> None:
    # Two equal points of class 0 and one orthogonal point of class 1, tau = 1: each of the two anchors has
    # -log(e / (e + 1)); the point of class 1 has no positive and is no anchor.
    features = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    loss = DenseContrastiveLoss(tau=1.0)(features, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_positives_of_unequal_number_are_averaged_by_anchor() -> None:
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    loss = DenseContrastiveLoss(0.3)(features, labels)
    assert loss.item() == pytest.approx(slow_dcl(features, labels, 0.3), rel=1e-5)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 0, 0, 0], id="no negatives"),
        pytest.param([0, 1, 2, 3], id="no positives"),
        pytest.param([NEGATIVE_ONLY] * 4, id="only negatives"),
        pytest.param([0, NEGATIVE_ONLY, NEGATIVE_ONLY, 1], id="negative-only points are no positives of each other"),
        pytest.param([], id="no points"),
        pytest.param([0], id="one point"),
    ],
)
def test_zero_with_zero_gradient_where_there_is_no_anchor(labels: list[int]) -> None:
    features = torch.randn(len(labels), 3, requires_grad=True)
    loss = DenseContrastiveLoss()(features, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_order_and_length_of_points_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(9, 4, generator=generator), torch.tensor([0, 1, 2] * 3)
    loss = DenseContrastiveLoss()
    order = torch.randperm(9, generator=generator)
    scaled = features * torch.rand(9, 1, generator=generator).add(0.1)
    torch.testing.assert_close(loss(features, labels), loss(scaled[order], labels[order]))


def test_descending_pulls_a_class_together_and_pushes_classes_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(8, 4, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1] * 4)
    optimizer = torch.optim.SGD([features], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        DenseContrastiveLoss()(features, labels).backward()
        optimizer.step()
    points = torch.nn.functional.normalize(features.detach(), dim=1)
    similarity, same = points @ points.T, labels[:, None] == labels
    assert similarity[same].min() > similarity[~same].max() + 0.3


def test_similar_points_at_a_small_tau_stay_finite() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = DenseContrastiveLoss(tau=1e-3)(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-3)
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 0, NEGATIVE_ONLY, NEGATIVE_ONLY]])
def test_gradcheck(labels: list[int]) -> None:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DenseContrastiveLoss(0.5), (features, torch.tensor(labels)))


# ------------------------------------------------------------------------------------------------------ sample_points


def test_points_have_the_labels_they_were_drawn_for() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-2, 4, (3, 1, 10, 10), generator=generator)
    places = sample_points(labels, 7, generator)
    drawn = labels.flatten()[places]
    assert drawn.tolist() == [label for label in (NEGATIVE_ONLY, 0, 1, 2, 3) for _ in range(7)]
    assert len(places.unique()) == len(places)


def test_a_label_with_fewer_places_gives_all_of_them() -> None:
    labels = torch.tensor([0, 5, NOT_DRAWN, 5, 0, 5, 0, 0])
    places = sample_points(labels, 4, torch.Generator().manual_seed(0))
    assert sorted(places[:4].tolist()) == [0, 4, 6, 7]
    assert sorted(places[4:].tolist()) == [1, 3, 5]


def test_nothing_to_draw_from() -> None:
    assert sample_points(torch.full((4, 4), NOT_DRAWN), 3, torch.Generator()).shape == (0,)
    assert sample_points(torch.empty(0, dtype=torch.long), 3, torch.Generator()).shape == (0,)


def test_draws_are_uniform_and_keyed_by_the_generator() -> None:
    labels = torch.zeros(20, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(20)
    for _ in range(2000):
        counts[sample_points(labels, 5, generator)] += 1
    # 500 expected a place, standard deviation sqrt(2000 / 4 * 3 / 4) = 19
    assert (counts - 500).abs().max() < 5 * 19.4
    first = sample_points(labels, 5, torch.Generator().manual_seed(9))
    assert first.equal(sample_points(labels, 5, torch.Generator().manual_seed(9)))
    assert not first.equal(sample_points(labels, 5, torch.Generator().manual_seed(10)))


def test_the_lowest_lots_are_drawn_and_those_of_parts_are_those_of_all() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-2, 4, (90,), generator=generator)
    lots = torch.rand(90, generator=generator, dtype=torch.float64)
    drawn = lowest_lots(labels, lots, n_classes=5, n=12)  # class 4 is nowhere
    for row, label in enumerate([0, 1, 2, 3, 4, NEGATIVE_ONLY]):
        expected = sorted((lot, i) for i, lot in enumerate(lots.tolist()) if labels[i] == label)[:12]
        found = [place for place in drawn.places[row].tolist() if place >= 0]
        assert found == [place for _, place in expected]
        assert drawn.lots[row, : len(found)].tolist() == [lot for lot, _ in expected]
        assert drawn.lots[row, len(found) :].isinf().all() and (drawn.places[row, len(found) :] == -1).all()
    parts = torch.cat([lowest_lots(labels[i::3], lots[i::3], 5, 12).lots for i in range(3)], dim=1)
    assert parts.sort(dim=1).values[:, :12].equal(drawn.lots)
    few = lowest_lots(labels[:4], lots[:4], 5, 12)
    assert few.places.shape == few.lots.shape == (6, 12)
