"""The same networks computed in another way: compiled, blocks computed again, statistics of all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fmwiss.config import OptimizationConfig
from fmwiss.data.datasets import MaskDataset
from fmwiss.data.protocols import Protocol
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.methods import FMWISS, Supervised
from fmwiss.models import Architecture, Segmenter
from fmwiss.training import forwards as module
from fmwiss.training.forwards import as_written, forwards, residual_blocks, synchronise_batch_norm
from fmwiss.training.loop import Loop
from two_processes import GATHERED, make_batch, make_segmenter, method_of

STEPS = (("aeroplane", "bicycle", "bird", "boat", "sheep", "sofa"),)


def trained(data: Path, folder: Path, encoder: str = "test_efficientnet", **options: Any) -> dict[str, torch.Tensor]:
    """The weights and statistics after an epoch of step 0."""
    source = VOCSource(data)
    table = Protocol(STEPS).label_table(0, source.class_names)
    dataset = MaskDataset(source, source.ids("train_aug"), table, JointTransform(32, 32, (0.75, 1.25), 0.5), seed=0)
    torch.manual_seed(0)
    method = Supervised(Segmenter(Architecture(encoder, 16, 8, (1, 2, 3), 0.5, STEPS, 32)))
    settings: dict[str, Any] = {"step": 0, "workers": 0, "checkpoint_every": 100, "seed": 0}
    Loop(
        fabric=Fabric(accelerator="cpu", devices=1),
        options=OptimizationConfig(epochs=1, batch_size=8, learning_rate=0.02),
        folder=folder,
        **settings,
        **options,
    ).run(method, dataset, len(dataset))
    assert not any("forward" in vars(m) for m in method.modules())  # nothing stays behind
    return method.state_dict()


def test_checkpointed_training_is_the_same_bit_for_bit(tiny_voc: Path, tmp_path: Path) -> None:
    """Statistics of batch norm among the weights: a block that is computed twice is seen once."""
    plain = trained(tiny_voc, tmp_path / "plain")
    again = trained(tiny_voc, tmp_path / "again", activation_checkpointing=True)
    assert [name for name in plain if not plain[name].equal(again[name])] == []


def test_blocks_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = method_of("supervised"), make_batch(3)
    method.start_epoch(0)
    counted = [0]
    blocks = list(residual_blocks(method.student.encoder))
    assert len(blocks) > 3 and all(sum(isinstance(m, nn.Conv2d) for m in block.modules()) > 1 for block in blocks)
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    inner = next(m for m in blocks[-1].modules() if isinstance(m, nn.Conv2d))
    calls = [0]
    inner.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    with forwards(method, compiled=False, checkpointed=True):
        sum(method.training_step(batch, torch.Generator()).values()).backward()  # type: ignore[union-attr]
        assert counted == [len(blocks)] and calls == [2]
        with torch.no_grad():
            method.training_step(batch, torch.Generator())
        assert calls == [3]


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet38_a2"])
def test_what_the_blocks_of_an_encoder_are(name: str) -> None:
    with torch.device("meta"):
        import timm

        from fmwiss.models import wide_resnet

        assert wide_resnet
        encoder = timm.create_model(name, features_only=True)
    kinds = {type(block).__name__ for block in residual_blocks(encoder)}
    count = len(list(residual_blocks(encoder)))
    assert (kinds, count) == (({"BasicBlock"}, 8) if name == "resnet18" else ({"IdentityBlock"}, 17))


def test_compiled_networks_compute_the_same_and_an_evaluation_is_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the compiler's front end alone, and the decoder, for the sake of time."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(module, "COMPILER", backend)
    monkeypatch.setattr(module, "_networks", lambda method: [method.student.decoder])
    method, batch = method_of("supervised"), make_batch(2)
    method.start_epoch(0)
    method.eval()

    def step() -> dict[str, torch.Tensor]:
        method.zero_grad()
        sum(method.training_step(batch, torch.Generator()).values()).backward()  # type: ignore[union-attr]
        return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}

    plain = step()
    with forwards(method, compiled=True, checkpointed=False):
        with as_written():
            step()
        assert graphs == []
        compiled = step()
    assert graphs and plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-5)


def test_what_is_compiled() -> None:
    method = method_of("fmwiss", **GATHERED)
    assert isinstance(method, FMWISS)
    segmenters = (method.student, method.old_model)
    expected = [part for segmenter in segmenters for part in (segmenter.encoder, segmenter.decoder)]
    assert list(module._networks(method)) == [*expected, method.teacher]


def test_an_encoder_without_blocks_is_told() -> None:
    method = method_of("supervised")
    method.student.encoder = nn.Conv2d(3, 8, 3)
    with (
        pytest.raises(UserError, match=r"the encoder test_efficientnet has no blocks"),
        forwards(method, compiled=False, checkpointed=True),
    ):
        pass


def test_synchronised_batch_norm_keeps_parameters_and_names() -> None:
    """What it computes cannot be tried on a CPU."""
    method = method_of("fmwiss", **GATHERED)
    parameters, names = list(method.parameters()), list(method.state_dict())
    synchronise_batch_norm(method)
    assert list(method.state_dict()) == names
    assert all(one is other for one, other in zip(method.parameters(), parameters, strict=True))
    for name, layer in method.named_modules():
        if isinstance(layer, _BatchNorm):
            assert isinstance(layer, nn.SyncBatchNorm) == (not name.startswith("old_model")), name
    other = make_segmenter(2)
    assert list(other.state_dict()) == [name.partition(".")[2] for name in names if name.startswith("student.")]
    method.freeze_batch_norm = True
    method.start_epoch(0)
    assert not any(m.training for m in method.student.modules() if isinstance(m, nn.SyncBatchNorm))
