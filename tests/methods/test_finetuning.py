"""FineTuning: hard labels and both losses against loops over pixels; what is left out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import FineTuningConfig
from fmwiss.data.batches import Batch
from fmwiss.methods import FineTuning, Method, build_method
from fmwiss.methods.finetuning import hard_labels
from fmwiss.models import Architecture, Segmenter

N_OLD, N_NEW, SIZE = 3, 3, 32


def make_method(**options: Any) -> Method:
    torch.manual_seed(0)
    steps = (("aeroplane", "bicycle"), ("sheep", "sofa", "train"))
    student = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, steps, None))
    old_model = Segmenter(replace(student.architecture, steps=steps[:1]))
    method = build_method(FineTuningConfig(**options), student, old_model)
    method.start_epoch(0)
    return method


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    pseudo = F.interpolate(torch.rand(2, N_NEW, 8, 8, generator=generator), size=(SIZE, SIZE)) > 0.6
    pseudo[1, 1] = False
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, -5:] = False
    return Batch(
        ids=("a", "b"),
        image=torch.rand(2, 3, SIZE, SIZE, generator=generator),
        valid=valid,
        pseudo=pseudo,
        tags=pseudo.any(dim=(2, 3)),
    )


def slow_labels(pseudo: Tensor) -> Tensor:
    """Pixel by pixel: of the masks that cover it, the smallest; of equally large ones the first."""
    labels = torch.zeros(len(pseudo), *pseudo.shape[-2:], dtype=torch.long)
    for b, y, x in itertools.product(range(len(pseudo)), *map(range, pseudo.shape[-2:])):
        covering = [(int(pseudo[b, j].sum()), j) for j in range(pseudo.shape[1]) if pseudo[b, j, y, x]]
        if covering:
            labels[b, y, x] = N_OLD + min(covering)[1]
    return labels


def test_hard_labels_agree_with_a_loop_over_pixels(batch: Batch) -> None:
    assert batch.pseudo is not None
    assert (batch.pseudo.sum(dim=1) > 1).any()  # the masks overlap
    assert hard_labels(batch.pseudo, N_OLD).equal(slow_labels(batch.pseudo))


def test_hard_labels_by_hand() -> None:
    large, small, equal = "1111/1110/0000/0000", "0011/0000/0000/0000", "1001/0000/0000/0000"
    masks = [[[cell == "1" for cell in row] for row in mask.split("/")] for mask in (large, small, equal)]
    labels = hard_labels(torch.tensor([masks]), 5)
    assert labels.tolist() == [[[7, 5, 6, 6], [5, 5, 5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]
    assert hard_labels(torch.zeros(1, 2, 3, 3, dtype=torch.bool), 5).eq(0).all()


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("loss", ["bce", "cross-entropy"])
def test_loss_agrees_with_a_loop_over_pixels(loss: str, stride: int, batch: Batch) -> None:
    assert batch.pseudo is not None
    method = make_method(loss=loss, loss_stride=stride)
    cells = SIZE // stride
    with torch.no_grad():
        logits = F.interpolate(method.student(batch.image), size=(cells, cells), mode="bilinear").double()
    labels = slow_labels(batch.pseudo)
    total, pixels = 0.0, 0
    for b, y, x in itertools.product(range(2), range(cells), range(cells)):
        row, column = (int((place + 0.5) * stride) for place in (y, x))
        if not batch.valid[b, row, column]:
            continue
        pixels += 1
        label = int(labels[b, row, column])
        scores = logits[b, :, y, x].tolist()
        if loss == "cross-entropy":
            total -= math.log(math.exp(scores[label]) / sum(map(math.exp, scores)))
        else:
            p = [1 / (1 + math.exp(-score)) for score in scores]
            terms = [math.log(p[c] if c == label else 1 - p[c]) for c in range(N_OLD + N_NEW)]
            total -= sum(terms) / len(terms)
    losses = method.training_step(batch, torch.Generator())
    assert list(losses) == ["all_bce" if loss == "bce" else "all_ce"]
    assert next(iter(losses.values())).item() == pytest.approx(total / pixels, rel=1e-5)


@pytest.mark.parametrize("loss", ["bce", "cross-entropy"])
def test_everything_learns_and_nothing_else_is_kept(loss: str, batch: Batch) -> None:
    method = make_method(loss=loss)
    sum(method.training_step(batch, torch.Generator()).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in method.parameters())
    assert all(name.startswith("student.") for name in method.learnt_state())
    assert (method.warmup_epochs, method.pastes_instances) == (0, False)
    assert FineTuning.learns_from_pseudo_masks(method.options)


@pytest.mark.parametrize("loss", ["bce", "cross-entropy"])
def test_a_batch_of_padding_alone_costs_nothing(loss: str, batch: Batch) -> None:
    nothing = replace(batch, valid=torch.zeros_like(batch.valid))
    losses = make_method(loss=loss).training_step(nothing, torch.Generator())
    assert [value.item() for value in losses.values()] == [0.0]


def test_a_batch_without_pseudo_masks_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="pseudo masks"):
        make_method().training_step(replace(batch, pseudo=None), torch.Generator())


def test_the_loss_falls(batch: Batch) -> None:
    method = make_method()
    assert isinstance(method, FineTuning)
    optimizer = torch.optim.SGD(method.parameter_groups(0.05, 10.0))
    before = method.training_step(batch, torch.Generator())["all_bce"]
    before.backward()
    optimizer.step()
    assert method.training_step(batch, torch.Generator())["all_bce"] < before
