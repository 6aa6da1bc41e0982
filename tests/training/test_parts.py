"""A batch in parts: weighted losses and gradients add up to those of the whole batch."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric

from fmwiss.config import FMWISSConfig
from fmwiss.data.batches import Batch
from fmwiss.methods import FMWISS, Method
from fmwiss.processes import ALONE
from fmwiss.training.parts import accumulate_gradients, part_weights
from two_processes import GATHERED, INEXACT, LOCATORS, SECTIONS, gradients, make_batch, method_of


def step(method: Method, batch: Batch) -> dict[str, float]:
    losses = method.training_step(batch, torch.Generator().manual_seed(0))
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.mark.parametrize("absent", [True, False], ids=["untagged absent", "untagged unknown"])
@pytest.mark.parametrize("name", [*SECTIONS, *LOCATORS])
def test_the_parts_of_a_loss_make_up_the_whole(name: str, absent: bool) -> None:
    options = {} if absent else {"untagged_absent": False}
    if not absent and "untagged_absent" not in SECTIONS[name.partition(" ")[0]].model_fields:
        pytest.skip("knows no tags")
    method, batch = method_of(name, **options), make_batch(5)
    whole, parts = step(method, batch), batch.parts(2)
    assert [len(part.ids) for part in parts] == [3, 2] and parts[1].ids[0] == batch.ids[1]
    weights = part_weights(method, parts, ALONE)
    total = dict.fromkeys(whole, 0.0)
    for part, weight in zip(parts, weights, strict=True):
        for loss, value in step(method, part).items():
            total[loss] += value * float(weight.get(loss, weight["photographs"])) / 2
    exact = whole.keys() - INEXACT.get(name, set())
    assert exact or name.startswith("eps")
    for loss in exact:
        assert total[loss] == pytest.approx(whole[loss], rel=1e-5), loss


@pytest.mark.parametrize("n_parts", [2, 3])
@pytest.mark.parametrize("name", ["supervised", "fmwiss"])
def test_the_accumulated_gradient_is_that_of_the_large_batch(name: str, n_parts: int) -> None:
    """Of FMWISS without eq. 7, whose points are each part's own."""
    found = []
    for n in (1, n_parts):
        fabric = Fabric(accelerator="cpu", devices=1)
        method = method_of(name, **(GATHERED if name == "fmwiss" else {}))
        if isinstance(method, FMWISS):
            method.options = method.options.model_copy(update={"lambda_dcl": 0.0})
        module = fabric.setup(method)
        method.eval()
        losses = accumulate_gradients(fabric, module, method, make_batch(7), n, torch.Generator())
        found.append((losses, {k: p.grad for k, p in method.named_parameters() if p.grad is not None}))
    (losses, whole), (accumulated, parts) = found
    assert losses.keys() == accumulated.keys() and whole.keys() == parts.keys() and len(whole) > 20
    for loss, value in losses.items():
        torch.testing.assert_close(accumulated[loss], value, rtol=1e-5, atol=1e-7)
    for parameter, gradient in whole.items():
        largest = float(gradient.abs().max())
        assert float((parts[parameter] - gradient).abs().max()) <= 1e-5 * max(1.0, largest), parameter


def test_nothing_to_count_weighs_nothing() -> None:
    batch = make_batch(4)
    batch.valid[:2] = False
    first, second = part_weights(method_of("finetuning"), [batch.parts(2)[0], batch.parts(2)[1]], ALONE)
    assert float(first["all_bce"] + second["all_bce"]) == pytest.approx(2)
    batch.valid[:] = False
    assert {float(w["all_bce"]) for w in part_weights(method_of("finetuning"), batch.parts(2), ALONE)} == {0.0}


def test_points_by_lot_do_not_depend_on_the_order_of_the_photographs() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    assert gradients(fabric, "fmwiss", 1)
    method = method_of("fmwiss", gather_points=True, points_per_class=3)
    batch = make_batch(5)
    order = [3, 0, 4, 1, 2]
    turned = batch._with_tensors(lambda tensor: tensor[order])
    turned = Batch(**{**vars(turned), "ids": tuple(batch.ids[i] for i in order)})
    losses = step(method, batch)
    assert step(method, turned)["new_dcl"] == pytest.approx(losses["new_dcl"], rel=1e-5)
    method.seed = 1
    assert step(method, batch)["new_dcl"] != pytest.approx(losses["new_dcl"], rel=1e-5)
    method.seed = 0
    method.epoch += 1
    assert step(method, batch)["new_dcl"] != pytest.approx(losses["new_dcl"], rel=1e-5)
    assert FMWISSConfig().gather_points is False
