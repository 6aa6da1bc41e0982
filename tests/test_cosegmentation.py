"""Equations 3-5 against slow, obvious second implementations and hand-worked numbers."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.cosegmentation import draw_seeds, fuse, initial_masks, scale_scores, score_maps, seed_masks


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(n)]


def random_attention(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).mul(2).softmax(-1)


class TestScoreMaps:
    def test_is_the_largest_cosine_over_the_rows_of_a_class(self) -> None:
        rng = torch.Generator().manual_seed(0)
        features = F.normalize(torch.randn(2, 5, 3, 4, generator=rng), dim=1)
        rows = F.normalize(torch.randn(6, 5, generator=rng), dim=1)
        owner = [2, 0, 2, 1, 0, 2]
        scores = score_maps(features, rows, torch.tensor(owner), 3)
        assert scores.shape == (2, 3, 3, 4)
        for b in range(2):
            for c in range(3):
                for y in range(3):
                    for x in range(4):
                        products = [
                            sum(float(features[b, d, y, x] * rows[r, d]) for d in range(5))
                            for r in range(6)
                            if owner[r] == c
                        ]
                        assert scores[b, c, y, x] == pytest.approx(max(products), abs=1e-6)


class TestInitialMasks:
    def test_scaling_is_per_photograph_and_class(self) -> None:
        scores = torch.tensor([[[[0.0, 1.0, 4.0]], [[5.0, 7.0, 6.0]]], [[[-3.0, -1.0, -2.0]], [[2.0, 2.0, 2.0]]]])
        expected = torch.tensor([[[[0, 0.25, 1]], [[0, 1, 0.5]]], [[[0, 1, 0.5]], [[0, 0, 0]]]])
        assert torch.equal(scale_scores(scores, (1, 3)), expected)
        assert torch.equal(initial_masks(scores, (1, 3)), expected > 0.5)
        assert initial_masks(scores, (1, 3), 0.2).sum((2, 3)).tolist() == [[2, 2], [2, 0]]

    def test_resizes_bilinearly_before_scaling(self) -> None:
        scores = torch.rand(1, 1, 3, 2, generator=torch.Generator().manual_seed(1))
        resized = torch.empty(6, 8)
        for y in range(6):
            for x in range(8):
                sy = min(max((y + 0.5) * 3 / 6 - 0.5, 0), 2)
                sx = min(max((x + 0.5) * 2 / 8 - 0.5, 0), 1)
                y0, x0 = min(math.floor(sy), 1), 0
                fy, fx = sy - y0, sx - x0
                top = (1 - fx) * scores[0, 0, y0, x0] + fx * scores[0, 0, y0, x0 + 1]
                bottom = (1 - fx) * scores[0, 0, y0 + 1, x0] + fx * scores[0, 0, y0 + 1, x0 + 1]
                resized[y, x] = (1 - fy) * top + fy * bottom
        expected = (resized - resized.min()) / (resized.max() - resized.min())
        assert torch.allclose(scale_scores(scores, (6, 8))[0, 0], expected, atol=1e-6)

    def test_a_map_of_one_place_says_nothing(self) -> None:
        assert not initial_masks(torch.full((1, 1, 1, 1), 0.9), (4, 4)).any()


class TestDrawSeeds:
    def test_draws_distinct_foreground_locations(self) -> None:
        foreground = torch.rand(20, 60, generator=torch.Generator().manual_seed(0)) > 0.6
        points, drawn = draw_seeds(foreground, 9, generators(20))
        assert points.shape == drawn.shape == (20, 9)
        assert drawn.all()
        assert foreground.gather(1, points).all()
        assert all(len(set(row)) == 9 for row in points.tolist())

    def test_few_locations_are_all_drawn_and_none_gives_none(self) -> None:
        foreground = torch.zeros(3, 20, dtype=torch.bool)
        foreground[0, [3, 7, 19]] = True
        foreground[2, :9] = True
        points, drawn = draw_seeds(foreground, 9, generators(3))
        assert drawn.sum(1).tolist() == [3, 0, 9]
        assert sorted(points[0][drawn[0]].tolist()) == [3, 7, 19]
        assert sorted(points[2].tolist()) == list(range(9))

    def test_more_seeds_than_locations(self) -> None:
        points, drawn = draw_seeds(torch.ones(1, 4, dtype=torch.bool), 9, generators(1))
        assert sorted(points[0].tolist()) == [0, 1, 2, 3]
        assert drawn.all()

    def test_is_uniform(self) -> None:
        foreground = torch.zeros(1, 30, dtype=torch.bool)
        foreground[0, 10:22] = True
        counts = torch.zeros(30)
        for seed in range(1500):
            points, _ = draw_seeds(foreground, 3, generators(1, seed))
            counts[points[0]] += 1
        expected = 1500 * 3 / 12
        # 11 degrees of freedom, variance of a count reduced by drawing without replacement: 31.3 is chi^2's 99.9 %.
        assert ((counts[10:22] - expected) ** 2 / expected).sum() < 31.3
        assert counts[10:22].sum() == 4500

    def test_depends_on_a_masks_own_generator_only(self) -> None:
        foreground = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) > 0.3
        together, _ = draw_seeds(foreground, 4, generators(5))
        alone, _ = draw_seeds(foreground[3:4], 4, generators(5)[3:4])
        assert torch.equal(together[3:4], alone)
        assert not torch.equal(together, draw_seeds(foreground, 4, generators(5, seed=1))[0])

    def test_no_masks(self) -> None:
        points, drawn = draw_seeds(torch.zeros(0, 12, dtype=torch.bool), 9, [])
        assert points.shape == drawn.shape == (0, 9)

    def test_wants_a_generator_a_mask(self) -> None:
        with pytest.raises(ValueError, match="2 masks need 2 generators, not 1"):
            draw_seeds(torch.ones(2, 3, dtype=torch.bool), 1, generators(1))


def slow_percentile(values: list[float], k: float) -> float:
    ordered = sorted(values)
    place = (len(ordered) - 1) * k / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def slow_seed_mask(rows: list[list[float]], k: float, binarize: str) -> list[bool]:
    """Equation 4 of one class, location by location."""
    if not rows:
        return []
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    if binarize == "percentile":
        threshold = slow_percentile(mean, k)
        return [value > threshold for value in mean]
    kept, mass = set(), 0.0
    for location in sorted(range(len(mean)), key=lambda i: -mean[i]):
        if mass >= (1 - k / 100) * sum(mean):
            break
        kept.add(location)
        mass += mean[location]
    return [location in kept for location in range(len(mean))]


class TestSeedMasks:
    @pytest.mark.parametrize("binarize", ["percentile", "mass"])
    @pytest.mark.parametrize("k", [60.0, 70.0, 90.0, 99.5])
    def test_agrees_with_the_slow_one(self, binarize: str, k: float) -> None:
        attention = random_attention(4, 9, 54)
        drawn = torch.arange(9) < torch.tensor([9, 1, 4, 7])[:, None]
        masks = seed_masks(attention.unflatten(2, (6, 9)), drawn, (6, 9), k, binarize)  # type: ignore[arg-type]
        for m in range(4):
            expected = slow_seed_mask(attention[m][drawn[m]].double().tolist(), k, binarize)
            assert masks[m].flatten().tolist() == expected

    def test_by_hand(self) -> None:
        # Mean of the two seeds: 1 3 5 7 9 2 4 6 8 10. The 70th percentile is 7.3, so 9, 8 and 10 stay.
        seeds = torch.tensor([[[[0.0, 2, 4, 6, 8], [1, 3, 5, 7, 9]], [[2, 4, 6, 8, 10], [3, 5, 7, 9, 11]]]])
        drawn = torch.ones(1, 2, dtype=torch.bool)
        assert seed_masks(seeds, drawn, (2, 5), 70)[0].nonzero().tolist() == [[0, 4], [1, 3], [1, 4]]
        # 30 % of 55 is 16.5: 10 does not hold it, 10 + 9 does.
        assert seed_masks(seeds, drawn, (2, 5), 70, "mass")[0].nonzero().tolist() == [[0, 4], [1, 4]]

    def test_resizes_the_mean_before_it_is_cut(self) -> None:
        # Mean 1 and 5; resized to 1 2 4 5, whose 70th percentile is 4.1 and whose half is held by 5 and 4.
        seeds = torch.tensor([[[[0.0, 6.0]], [[2.0, 4.0]]]])
        drawn = torch.ones(1, 2, dtype=torch.bool)
        assert seed_masks(seeds, drawn, (1, 4), 70).tolist() == [[[False, False, False, True]]]
        assert seed_masks(seeds, drawn, (1, 4), 50, "mass").tolist() == [[[False, False, True, True]]]

    def test_a_larger_k_keeps_less(self) -> None:
        attention = random_attention(1, 9, 1000).unflatten(2, (20, 50))
        drawn = torch.ones(1, 9, dtype=torch.bool)
        assert [int(seed_masks(attention, drawn, (20, 50), k).sum()) for k in (60, 70, 90)] == [400, 300, 100]

    def test_what_was_not_drawn_does_not_count(self) -> None:
        attention = random_attention(1, 4, 20).unflatten(2, (4, 5))
        drawn = torch.tensor([[True, False, True, False]])
        spoilt = attention.masked_fill(~drawn[..., None, None], math.nan)
        assert torch.equal(seed_masks(spoilt, drawn, (4, 5)), seed_masks(attention[:, ::2], drawn[:, ::2], (4, 5)))

    @pytest.mark.parametrize("binarize", ["percentile", "mass"])
    def test_is_empty_only_without_seeds(self, binarize: str) -> None:
        one = torch.ones(1, 1, dtype=torch.bool)
        for attention in (torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 7), 0.1), torch.zeros(1, 1, 7, 1)):
            _, _, height, width = attention.shape
            for size in ((height, width), (2 * height, 2 * width)):
                assert seed_masks(attention, one, size, 70, binarize).any()  # type: ignore[arg-type]
                assert not seed_masks(attention, ~one, size, 70, binarize).any()  # type: ignore[arg-type]

    def test_no_masks(self) -> None:
        assert seed_masks(torch.zeros(0, 9, 2, 3), torch.zeros(0, 9).bool(), (4, 6)).shape == (0, 4, 6)


class TestFuse:
    def test_all_kinds(self) -> None:
        init = torch.tensor([True, True, False, False])
        seeds = torch.tensor([True, False, True, False])
        assert fuse(init, seeds).tolist() == [True, True, True, False]
        assert fuse(init, seeds, "intersection").tolist() == [True, False, False, False]
        assert fuse(init, seeds, "none").tolist() == [True, True, False, False]


def test_equations_3_to_5_batched_agree_with_one_class_at_a_time() -> None:
    rng = torch.Generator().manual_seed(5)
    batch, n_classes, grid, n, k = 3, 4, (6, 5), 5, 70.0
    length = grid[0] * grid[1]
    scores = torch.rand(batch, n_classes, *grid, generator=rng)
    attention = random_attention(batch, length, length)

    init = initial_masks(scores, grid)
    flat = init.flatten(0, 1).flatten(1)
    points, drawn = draw_seeds(flat, n, generators(batch * n_classes))
    photograph = torch.arange(batch).repeat_interleave(n_classes)
    seeds = seed_masks(attention[photograph[:, None], points].unflatten(2, grid), drawn, grid, k)
    refined = fuse(init, seeds.view_as(init))

    for b in range(batch):
        for c in range(n_classes):
            values = scores[b, c].flatten().tolist()
            middle = (min(values) + max(values)) / 2
            foreground = [value > middle for value in values]
            lots = torch.rand(length, generator=generators(batch * n_classes)[b * n_classes + c]).tolist()
            candidates = [location for location in range(length) if foreground[location]]
            chosen = sorted(candidates, key=lambda location: -lots[location])[:n]
            random.shuffle(chosen)  # the order of seeds is of no account
            kept = slow_seed_mask([attention[b, location].double().tolist() for location in chosen], k, "percentile")
            assert refined[b, c].flatten().tolist() == [a or s for a, s in zip(foreground, kept, strict=True)]
