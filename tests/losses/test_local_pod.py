"""Local POD: against loops over windows, by hand, and its gradient."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from fmwiss.losses import LocalPODLoss
from fmwiss.losses.local_pod import Normalisation, local_pod, merge_new


def example(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 2, 3, size, size, generator=generator, dtype=torch.float64)
    return new, old


def slow_pod(maps: Tensor, windows: tuple[int, ...]) -> list[float]:
    """Of one photograph's ``(C, S, S)`` maps; S is a multiple of every window's side."""
    values, size = [], maps.shape[-1]
    for side in windows:
        k = size // side
        for i in range(side):
            for j in range(side):
                for c in range(len(maps)):
                    for row in range(i * k, (i + 1) * k):
                        values.append(sum(float(maps[c, row, x]) for x in range(j * k, (j + 1) * k)) / k)
                for c in range(len(maps)):
                    for x in range(j * k, (j + 1) * k):
                        values.append(sum(float(maps[c, row, x]) for row in range(i * k, (i + 1) * k)) / k)
    return values


@pytest.mark.parametrize("normalisation", get_args(Normalisation))
def test_it_agrees_with_loops_over_windows(normalisation: Normalisation) -> None:
    new, old = example()
    distances = []
    for b in range(2):
        first, second = (slow_pod(maps[b] ** 2, (1, 2, 4)) for maps in (new, old))
        if normalisation == "mean":
            squares = [float(value) ** 2 for value in old[b].flatten()]
            mean = sum(squares) / len(squares)
            first, second = [v / mean for v in first], [v / mean for v in second]
        if normalisation == "length":
            lengths = [math.sqrt(sum(value * value for value in values)) for values in (first, second)]
            first, second = [v / lengths[0] for v in first], [v / lengths[1] for v in second]
        distances.append(math.sqrt(sum((a - c) ** 2 for a, c in zip(first, second, strict=True))))
    assert LocalPODLoss((1, 2, 4), normalisation)(new, old).item() == pytest.approx(sum(distances) / 2)


def test_by_hand() -> None:
    """One window over 1 2 / 3 4: means of the rows, then of the columns; four windows: every place twice."""
    maps = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert local_pod(maps, (1,)).tolist() == [[1.5, 3.5, 2.0, 3.0]]
    assert local_pod(maps, (2,)).tolist() == [[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]]
    # squares 1 4 / 9 16 against nothing: rows 2.5, 12.5, columns 5, 10
    loss = LocalPODLoss((1,), "none")(maps, torch.zeros_like(maps))
    assert loss.item() == pytest.approx(math.sqrt(2.5**2 + 12.5**2 + 5**2 + 10**2))
    # against ones, whose mean square is 1, and against twos, where it is 4: 1.5, 11.5, 4, 9 and (-1.5, 8.5, 1, 6) / 4
    ones = LocalPODLoss((1,))(maps, torch.ones_like(maps))
    assert ones.item() == pytest.approx(math.sqrt(1.5**2 + 11.5**2 + 16 + 81))
    twos = LocalPODLoss((1,))(maps, torch.full_like(maps, 2.0))
    assert twos.item() == pytest.approx(math.sqrt(1.5**2 + 8.5**2 + 1 + 36) / 4)


def test_by_the_mean_square_no_scale_counts() -> None:
    new, old = example()
    loss = LocalPODLoss()
    assert loss(1000 * new, 1000 * old).item() == pytest.approx(loss(new, old).item())
    assert loss(torch.zeros_like(new), torch.zeros_like(old)).item() == 0.0


def test_maps_that_cannot_be_cut_evenly_lose_nothing() -> None:
    maps = torch.zeros(1, 1, 6, 6)
    maps[..., 5, 5] = 1.0
    assert local_pod(maps, (4,)).max() > 0
    assert local_pod(torch.ones(1, 1, 2, 3), (4,)).shape == (1, 12)  # as many windows as places


def test_the_same_maps_cost_nothing_and_have_a_gradient() -> None:
    new, _ = example()
    learning = new.clone().requires_grad_()
    loss = LocalPODLoss()(learning, new)
    loss.backward()
    assert loss.item() == 0 and learning.grad is not None and learning.grad.isfinite().all()


def test_new_logits_count_as_background() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    assert merge_new(logits, 2).flatten().tolist() == [8.0, 2.0]


@pytest.mark.parametrize("normalisation", get_args(Normalisation))
def test_gradient(normalisation: Normalisation) -> None:
    new, old = example(4)
    assert torch.autograd.gradcheck(lambda x: LocalPODLoss((1, 2), normalisation)(x, old), new.requires_grad_())
