"""Co-segmentation beyond the paper against slow, obvious second implementations and hand-worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.cosegmentation_plus import merge_views, patch_affinity, propagate


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
