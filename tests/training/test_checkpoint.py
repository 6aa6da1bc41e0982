"""Checkpoints: a round trip is exact, and what is broken or foreign is refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins import MixedPrecision, Precision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fmwiss.config import OptimizationConfig
from fmwiss.errors import UserError
from fmwiss.methods import Method
from fmwiss.training import checkpoint
from fmwiss.training.checkpoint import load_checkpoint, save_checkpoint
from fmwiss.training.loop import build_optimizer


class Linear(Method):
    """The smallest thing that learns: a layer, a batch norm and a layer whose turn never comes."""

    supervision = "pixel"

    def __init__(self, width: int = 3) -> None:
        super().__init__(student=nn.Identity())  # type: ignore[arg-type]
        self.first = nn.Conv2d(2, width, 1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm2d(width)
        self.idle = nn.Linear(2, 2)

    def training_step(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": self.norm(self.first(torch.rand(4, 2, 3, 3, generator=generator))).square().sum()}


def optimizer_of(method: Method, kind: str = "sgd") -> torch.optim.Optimizer:
    options = OptimizationConfig.model_validate({"optimizer": kind, "weight_decay": 1e-2})
    return build_optimizer(options, [{"params": list(method.parameters()), "lr": 0.1}])


def learn(method: Linear, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for iteration in range(first, last):
        optimizer.zero_grad()
        method.training_step(None, torch.Generator().manual_seed(iteration))["loss"].backward()
        optimizer.step()


def new(width: int = 3, kind: str = "sgd") -> tuple[Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    method = Linear(width)
    return method, optimizer_of(method, kind)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_resumed_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    straight, optimizer = new(kind=kind)
    learn(straight, optimizer, 0, 5)
    learn(straight, optimizer, 5, 9)

    method, optimizer = new(kind=kind)
    learn(method, optimizer, 0, 5)
    save_checkpoint(tmp_path / "state", 5, method, optimizer, seconds=7.5)
    torch.manual_seed(99)
    resumed = Linear()
    optimizer = optimizer_of(resumed, kind)
    assert load_checkpoint(tmp_path / "state", resumed, optimizer) == (5, 7.5)
    assert resumed.first.weight.is_contiguous(memory_format=torch.channels_last)
    learn(resumed, optimizer, 5, 9)
    for name, value in straight.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


def test_no_checkpoint(tmp_path: Path) -> None:
    method, optimizer = new()
    assert load_checkpoint(tmp_path / "state", method, optimizer)[0] == 0
    (tmp_path / "state").mkdir()
    assert load_checkpoint(tmp_path / "state", method, optimizer)[0] == 0


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    method, optimizer = new()
    learn(method, optimizer, 0, 1)
    state = tmp_path / "state"
    for iteration in (2, 9, 10, 100):
        save_checkpoint(state, iteration, method, optimizer)
        assert os.listdir(state) == [f"{iteration:08d}"]
        assert load_checkpoint(state, method, optimizer)[0] == iteration


def test_leftovers_of_a_killed_process_are_passed_over_and_swept_up(tmp_path: Path) -> None:
    method, optimizer = new()
    state = tmp_path / "state"
    save_checkpoint(state, 3, method, optimizer)
    (state / ".00000005.123.tmp").mkdir()
    (state / ".00000005.123.tmp" / "state.safetensors").write_bytes(b"half")
    (state / "00000002").mkdir()  # the kill came while it was being removed
    assert load_checkpoint(state, method, optimizer)[0] == 3
    save_checkpoint(state, 4, method, optimizer)
    assert os.listdir(state) == ["00000004"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, optimizer = new()
    state = tmp_path / "state"
    save_checkpoint(state, 3, method, optimizer)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(state, 4, method, optimizer)
    assert os.listdir(state) == ["00000003"]
    assert load_checkpoint(state, method, optimizer)[0] == 3


def refusal(state: Path, width: int = 3) -> str:
    method, optimizer = new(width)
    with pytest.raises(UserError) as caught:
        load_checkpoint(state, method, optimizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "progress", "progress missing", "tensors missing"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    method, optimizer = new()
    learn(method, optimizer, 0, 1)
    state = tmp_path / "state"
    save_checkpoint(state, 7, method, optimizer)
    tensors, progress = state / "00000007" / "state.safetensors", state / "00000007" / "progress.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "emptied":
        tensors.write_bytes(b"")
    elif damage == "progress":
        progress.write_text("{")
    elif damage == "progress missing":
        progress.unlink()
    else:
        save_file({k: v for k, v in load_file(tensors).items() if "norm.weight" not in k}, tensors)
    assert "00000007" in refusal(state)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    method, optimizer = new(width=4)
    save_checkpoint(tmp_path / "state", 7, method, optimizer)
    assert "does not fit" in refusal(tmp_path / "state", width=3)


def test_the_loss_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    """That of a CPU, which Fabric would not use."""

    def mixed(scale: float) -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    method, optimizer = new()
    save_checkpoint(tmp_path, 3, method, optimizer, precision=mixed(1024.0))
    resumed = mixed(2.0)
    assert load_checkpoint(tmp_path, method, optimizer, resumed) == (3, 0.0)
    assert resumed.state_dict()["scale"] == 1024.0
    save_checkpoint(tmp_path, 4, method, optimizer, precision=Precision())
    assert "scaler" not in (tmp_path / "00000004/progress.json").read_text()
    assert load_checkpoint(tmp_path, method, optimizer, Precision()) == (4, 0.0)
