"""Co-segmentation beyond the paper against slow, obvious second implementations and hand-worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import PlusConfig
from fmwiss.cosegmentation_plus import (
    merge_views,
    patch_affinity,
    plus_maps,
    presence,
    propagate,
    refine,
    shares,
    with_background,
)
from fmwiss.pamr import pixel_affinity, refine_masks


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestMergeViews:
    def test_by_hand(self) -> None:
        plain, mirror = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[7.0, 5.0]]]])
        assert merge_views([plain, mirror], [False, True], (1, 2)).tolist() == [[[[3.0, 5.0]]]]
        # 1 3 in the middle of four places of half the width: 1, 1.5, 2.5, 3
        assert merge_views([plain], [False], (1, 4)).tolist() == [[[[1.0, 1.5, 2.5, 3.0]]]]

    def test_vectors_count_by_direction(self) -> None:
        views = [torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[10.0]], [[0.0]]]])]
        merged = merge_views(views, [False, False], (1, 1), normalise=True).flatten()
        length = math.hypot(0.8, 0.4)  # of the mean of (.6, .8) and (1, 0)
        torch.testing.assert_close(merged, torch.tensor([0.8 / length, 0.4 / length]))

    def test_a_mirrored_view_of_a_mirrored_photograph_is_the_view(self) -> None:
        maps = random(2, 3, 4, 5)
        assert torch.equal(merge_views([maps.flip(-1)], [True], (4, 5)), maps)


def slow_affinity(features: list[list[float]], tau: float) -> list[list[float]]:
    """Of patches given as vectors of length 1."""
    rows = []
    for one in features:
        weights = [math.exp(sum(a * b for a, b in zip(one, other, strict=True)) / tau) for other in features]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


def patches_of(features: Tensor) -> list[list[float]]:
    """One photograph's ``(D, gh, gw)`` as a list of patches, row by row."""
    return [features[:, y, x].tolist() for y in range(features.shape[1]) for x in range(features.shape[2])]


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_propagation_agrees_with_a_loop_over_patches(tau: float) -> None:
    features = F.normalize(random(2, 5, 3, 4) - 0.5, dim=1).double()
    maps = random(2, 3, 3, 4, seed=1).double()
    propagated = propagate(maps, patch_affinity(features, tau))
    for b in range(2):
        rows = slow_affinity(patches_of(features[b]), tau)
        for c in range(3):
            values = maps[b, c].flatten().tolist()
            expected = [sum(w * v for w, v in zip(row, values, strict=True)) for row in rows]
            torch.testing.assert_close(propagated[b, c].flatten(), torch.tensor(expected).double())


def test_affinity_is_a_distribution_that_sharpens_with_falling_temperature() -> None:
    features = F.normalize(random(1, 6, 3, 4) - 0.5, dim=1)
    affinities = [patch_affinity(features, tau) for tau in (1.0, 0.1, 0.01)]
    for affinity in affinities:
        torch.testing.assert_close(affinity.sum(-1), torch.ones(1, 12))
    diagonals = [float(affinity.diagonal(dim1=1, dim2=2).mean()) for affinity in affinities]
    assert diagonals == sorted(diagonals) and diagonals[-1] > 0.99


def test_the_background_is_where_no_class_is() -> None:
    scaled = torch.tensor([[[[0.0, 0.5, 1.0]], [[0.25, 0.2, 0.3]]]])
    together = with_background(scaled, 2.0)
    assert torch.equal(together[:, :2], scaled)
    assert together[0, 2, 0].tolist() == [0.5625, 0.25, 0.0]


def test_presence_by_hand() -> None:
    sure, unsure = [[[0.1, 0.2]], [[0.4, -1.0]], [[-0.5, -0.1]]], [[[-0.1, -0.2]], [[-3.0, 0.0]], [[0.0, -1.0]]]
    scores = torch.tensor([sure, unsure])
    assert presence(scores, 2.0).flatten(1).tolist() == [[0.25, 1.0, 0.0], [1.0, 1.0, 1.0]]
    torch.testing.assert_close(presence(scores, 0.5)[0, 0].item(), math.sqrt(0.5))


def test_presence_without_a_background_is_refused() -> None:
    with pytest.raises(ValidationError, match="presence weighs classes that compete with a background"):
        PlusConfig(background=None, presence=1.0)


def test_shares_by_hand() -> None:
    maps = torch.tensor([[[[0.2, 0.0]], [[0.6, 0.0]]]])
    torch.testing.assert_close(shares(maps), torch.tensor([[[[0.25, 0.0]], [[0.75, 0.0]]]]))


class TestRefine:
    options = PlusConfig(pamr_iterations=3, pamr_dilations=(1, 2))

    def test_is_pamr_of_the_enlarged_maps_in_the_photographs_colours(self) -> None:
        maps, images = random(2, 3, 4, 5), random(2, 3, 32, 40, seed=1)
        refined = refine(maps, images, (8, 10), self.options)
        large = F.interpolate(maps, (8, 10), mode="bilinear")
        colours = F.interpolate(images, (8, 10), mode="bilinear", antialias=True)
        expected = refine_masks(large, pixel_affinity(colours, (1, 2)), (1, 2), 3)
        torch.testing.assert_close(refined, expected)
        plain = refine(maps, images, (8, 10), PlusConfig(pamr_iterations=0))
        assert torch.equal(plain, large)

    def test_boundaries_move_to_edges_in_the_photograph(self) -> None:
        image = torch.zeros(1, 3, 16, 16)
        image[..., 10:] = 1.0
        maps = torch.zeros(1, 1, 2, 2)
        maps[..., 1] = 1.0  # half of the map: enlarged, the boundary is at 8
        options = PlusConfig(pamr_iterations=20, pamr_dilations=(1, 2, 4))
        mask = refine(maps, image, (16, 16), options) > 0.5
        assert mask[..., 10:].all() and not mask[..., :10].any()


def minmax(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


@pytest.mark.parametrize(
    ("background", "rounds", "gamma"),
    [(None, 1, 0.0), (None, 2, 0.0), (1.0, 1, 0.0), (3.0, 2, 0.0), (1.0, 1, 1.0), (3.0, 2, 0.5)],
)
def test_maps_agree_with_a_loop_over_patches(background: float | None, rounds: int, gamma: float) -> None:
    """Stage by stage, photograph by photograph."""
    options = PlusConfig(
        background=background, rounds=rounds, presence=gamma, temperature=0.2, resolution=2, pamr_iterations=0
    )
    scores, features = random(2, 3, 3, 4, seed=2) * 5, F.normalize(random(2, 6, 3, 4, seed=3) - 0.5, dim=1)
    maps = plus_maps(scores.double(), features.double(), random(2, 3, 42, 56), options)
    for b in range(2):
        scaled = [minmax(scores[b, c].double().flatten().tolist()) for c in range(3)]
        torch.testing.assert_close(maps.scores[b].flatten(1), torch.tensor(scaled).double())
        largest = [max(scores[b, c].double().flatten().tolist()) for c in range(3)]
        competitors = [
            [value * (top / max(largest)) ** gamma for value in one] for one, top in zip(scaled, largest, strict=True)
        ]
        if background is not None:
            competitors.append([(1 - max(column)) ** background for column in zip(*competitors, strict=True)])
        rows = slow_affinity(patches_of(features[b].double()), 0.2)
        for _ in range(rounds):
            competitors = [
                [sum(w * v for w, v in zip(row, values, strict=True)) for row in rows] for values in competitors
            ]
            if background is not None:
                totals = [sum(column) for column in zip(*competitors, strict=True)]
                competitors = [[v / t for v, t in zip(one, totals, strict=True)] for one in competitors]
        expected = torch.tensor([minmax(values) for values in competitors[:3]]).double()
        torch.testing.assert_close(maps.propagated[b].flatten(1), expected)
        enlarged = F.interpolate(expected.view(1, 3, 3, 4), (6, 8), mode="bilinear")
        torch.testing.assert_close(maps.refined[b], enlarged[0])


def test_photographs_do_not_see_each_other() -> None:
    scores, features = random(3, 2, 4, 5), F.normalize(random(3, 6, 4, 5, seed=1) - 0.5, dim=1)
    images = random(3, 3, 28, 35, seed=2)
    together = plus_maps(scores, features, images, PlusConfig())
    for b in range(3):
        alone = plus_maps(scores[b : b + 1], features[b : b + 1], images[b : b + 1], PlusConfig())
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[b])


def test_a_map_that_says_nothing_stays_empty() -> None:
    features = F.normalize(random(1, 6, 4, 5) - 0.5, dim=1)
    scores = torch.stack([torch.full((4, 5), 0.3), random(4, 5, seed=1)])[None]
    for maps in plus_maps(scores, features, random(1, 3, 28, 35), PlusConfig(background=None)):
        assert not maps[:, 0].any() and maps[:, 1].max() > 0.5
    for maps in plus_maps(scores[:, :1], features, random(1, 3, 28, 35), PlusConfig()):
        assert torch.isfinite(maps).all() and not maps.any()
