"""Loop: two epochs on generated photographs, what it logs, and what stays the same however it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from fmwiss.config import OptimizationConfig
from fmwiss.data.batches import Batch
from fmwiss.data.datasets import MaskDataset
from fmwiss.data.protocols import Protocol
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.methods import Method, Supervised
from fmwiss.models import Architecture, Segmenter
from fmwiss.training.loop import Loop, build_optimizer

STEPS = (("aeroplane", "bicycle", "bird", "boat", "sheep", "sofa"),)
OPTIONS = OptimizationConfig(epochs=2, batch_size=5, learning_rate=0.02, head_rate=5.0)


@pytest.fixture(scope="module")
def dataset(tiny_voc: Path) -> MaskDataset:
    source = VOCSource(tiny_voc)
    table = Protocol(STEPS).label_table(0, source.class_names)
    return MaskDataset(source, source.ids("train_aug"), table, JointTransform(48, 48, (0.75, 1.25), 0.5), seed=0)


@pytest.fixture
def method() -> Supervised:
    torch.manual_seed(0)
    return Supervised(Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.5, STEPS, 48)))


def make_loop(folder: Path, **changes: Any) -> Loop:
    values: dict[str, Any] = {
        "fabric": Fabric(accelerator="cpu", devices=1),
        "options": OPTIONS,
        "folder": folder,
        "seed": 0,
        "step": 0,
        "workers": 0,
        "checkpoint_every": 2,
    }
    return Loop(**{**values, **changes})


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(method: Method) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(value.equal(second[name]) for name, value in first.items())


def test_two_epochs(method: Supervised, dataset: MaskDataset, tmp_path: Path) -> None:
    before = weights(method)
    make_loop(tmp_path).run(method, dataset, len(dataset))
    lines = records(tmp_path)
    # 16 photographs in batches of 5: three iterations an epoch, one photograph dropped
    assert lines[0] == {"iteration": 0, "images": 16, "iterations": 6, "per_epoch": 3}
    assert [(line["iteration"], line["epoch"]) for line in lines[1:]] == [(3, 1.0), (6, 2.0)]
    rates = [line["learning_rate"] for line in lines[1:]]
    assert rates == pytest.approx([0.02 * (1 - i / 6) ** 0.9 for i in (2, 5)])  # of the iteration just done
    assert all(set(line["losses"]) == {"base_bce"} for line in lines[1:])
    assert lines[2]["losses"]["base_bce"] < lines[1]["losses"]["base_bce"]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000006"]
    assert list((tmp_path / "tensorboard").iterdir())
    assert not any(value.equal(before[f"student.{name}"]) for name, value in method.student.named_parameters())


def test_a_finished_step_is_not_trained_again(method: Supervised, dataset: MaskDataset, tmp_path: Path) -> None:
    make_loop(tmp_path).run(method, dataset, len(dataset))
    trained, log = weights(method), (tmp_path / "metrics.jsonl").read_text()
    make_loop(tmp_path).run(method, dataset, len(dataset))
    assert same(trained, weights(method))
    assert (tmp_path / "metrics.jsonl").read_text() == log


def test_how_it_is_run_does_not_change_the_weights(dataset: MaskDataset, tmp_path: Path, method: Supervised) -> None:
    start = weights(method)
    make_loop(tmp_path / "a").run(method, dataset, len(dataset))
    expected = weights(method)

    def validate() -> dict[str, Any]:
        torch.rand(3)  # a validation that draws, and leaves the model in another mode
        method.eval()
        return {"miou": {"all": 12.5, "new": None}}

    method.load_state_dict(start)
    torch.manual_seed(123)
    changes: dict[str, Any] = {"workers": 1, "checkpoint_every": 1000, "validate_every": 1, "validate": validate}
    make_loop(tmp_path / "b", **changes).run(method, dataset, len(dataset))
    assert same(expected, weights(method))
    validations = [line for line in records(tmp_path / "b") if "validation" in line]
    # the last epoch's validation is the step's evaluation
    assert validations == [{"iteration": 3, "epoch": 1, "validation": {"miou": {"all": 12.5, "new": None}}}]


class Fault(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
def test_an_interrupted_run_ends_with_the_same_weights(
    dataset: MaskDataset, tmp_path: Path, method: Supervised, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = weights(method)
    make_loop(tmp_path / "straight").run(method, dataset, len(dataset))
    expected = weights(method)
    method.load_state_dict(start)
    compute, seen = method.training_step, 0

    def failing(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal seen
        seen += 1
        if seen == at + 1:
            raise Fault
        return compute(batch, generator)

    monkeypatch.setattr(method, "training_step", failing)
    with pytest.raises(Fault):
        make_loop(tmp_path / "run").run(method, dataset, len(dataset))
    monkeypatch.undo()
    method.load_state_dict(start)  # the checkpoint alone says how far it had come
    for progress in (tmp_path / "run/state").glob("*/progress.json"):
        progress.write_text(json.dumps({**json.loads(progress.read_text()), "seconds": 1000.0}))
    seconds = make_loop(tmp_path / "run").run(method, dataset, len(dataset))
    assert (seconds > 1000) == (at >= 2)  # from the first checkpoint on, earlier processes' time counts
    assert same(expected, weights(method))
    straight, resumed = records(tmp_path / "straight"), records(tmp_path / "run")
    for line in straight + resumed:
        line.pop("seconds_per_iteration", None)
    assert straight == resumed


def test_a_log_cut_short_by_a_kill_is_mended(method: Supervised, dataset: MaskDataset, tmp_path: Path) -> None:
    make_loop(tmp_path, options=OPTIONS).run(method, dataset, len(dataset))
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"iteration": 7, "losses": {"base_bce": 0.1}}\n{"iteration": 8, "los')
    make_loop(tmp_path).run(method, dataset, len(dataset))
    assert log.read_text() == whole


def test_gradient_clipping(method: Supervised, dataset: MaskDataset, tmp_path: Path) -> None:
    """With a norm of at most 1e-6 the weights stay where they are, up to their decay."""
    before = weights(method)
    options = OPTIONS.model_copy(update={"weight_decay": 0.0})
    make_loop(tmp_path, options=options, gradient_clip=1e-6).run(method, dataset, len(dataset))
    for name, parameter in method.named_parameters():
        assert (parameter.detach() - before[name]).abs().max() < 1e-5


def test_frozen_batch_norm_stays_frozen_after_a_validation(
    method: Supervised, dataset: MaskDataset, tmp_path: Path
) -> None:
    method.freeze_batch_norm = True
    before = weights(method)

    def validate() -> dict[str, Any]:
        method.student.train()
        return {}

    make_loop(tmp_path, validate=validate, validate_every=1).run(method, dataset, len(dataset))
    changed = {name for name, value in method.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert not any("running" in name for name in changed)


def test_mixed_precision_reaches_the_method(
    method: Supervised, dataset: MaskDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = []
    encode = method.student.encode

    def record(images: Tensor) -> Tensor:
        features = encode(images)
        dtypes.append(features.dtype)
        return features

    monkeypatch.setattr(method.student, "encode", record)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    make_loop(tmp_path, fabric=fabric).run(method, dataset, len(dataset))
    assert set(dtypes) == {torch.bfloat16}
    assert all(value.isfinite().all() for value in method.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())


@pytest.mark.parametrize(("batch_size", "images"), [(1, 16), (5, 1)])
def test_a_single_photograph_at_a_time_is_refused(
    method: Supervised, dataset: MaskDataset, tmp_path: Path, batch_size: int, images: int
) -> None:
    options = OPTIONS.model_copy(update={"batch_size": batch_size})
    with pytest.raises(UserError, match="batch norm"):
        make_loop(tmp_path, options=options).run(method, dataset, images)


@pytest.mark.parametrize(("kind", "nesterov"), [("sgd", False), ("sgd", True), ("adamw", False)])
def test_optimizers_update_as_written_by_hand(kind: str, nesterov: bool) -> None:
    """Of two layers in one group the second gets its first gradient later, as the student after the warm-up."""
    values = {"optimizer": kind, "nesterov": nesterov, "momentum": 0.8, "weight_decay": 0.1}
    options = OptimizationConfig.model_validate(values)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]  # type: ignore[call-overload]
    optimizer = build_optimizer(options, [{"params": [layer.weight for layer in layers], "lr": 0.05}])
    weights = [layer.weight.detach().double() for layer in layers]
    moments = [[torch.zeros_like(weight), torch.zeros_like(weight)] for weight in weights]
    for iteration in range(1, 6):
        optimizer.zero_grad()
        images = torch.rand(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
        turns = [iteration, iteration - 2]
        for layer, turn in zip(layers, turns, strict=True):
            if turn > 0:
                layer(images).square().mean().backward()
        for number, (layer, turn) in enumerate(zip(layers, turns, strict=True)):
            if turn <= 0:
                continue
            assert layer.weight.grad is not None
            gradient, weight, (first, second) = layer.weight.grad.double(), weights[number], moments[number]
            if kind == "sgd":
                decayed = gradient + 0.1 * weight
                first = (0.8 if turn > 1 else 0) * first + decayed
                weights[number] = weight - 0.05 * (decayed + 0.8 * first if nesterov else first)
            else:
                first, second = 0.8 * first + 0.2 * gradient, 0.999 * second + 0.001 * gradient.square()
                spread = (second / (1 - 0.999**turn)).sqrt() + 1e-8
                weights[number] = weight * (1 - 0.05 * 0.1) - 0.05 * first / (1 - 0.8**turn) / spread
            moments[number] = [first, second]
        optimizer.step()
        for layer, weight in zip(layers, weights, strict=True):
            torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-4, atol=1e-6)
