"""Exported models answer as the model does, at sizes that they were not exported with, and say what they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from timm.layers import AvgPool2dSame, Conv2dSame

from fmwiss.errors import UserError
from fmwiss.inference import Model
from fmwiss.inference import export as module
from fmwiss.inference.export import _SameAveragePool, _SameConvolution, export
from fmwiss.models import Segmenter
from fmwiss.models.foreign import open_foreign
from foreign_models import save_smp

Lively: TypeAlias = Callable[..., Segmenter]
Scene: TypeAlias = Callable[..., Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, lively: Lively) -> tuple[Model, Path]:
    """A model, and a folder with what the command and the function made of it."""
    pytest.importorskip("onnxruntime", reason="exports need onnx (fmwiss[export])")
    pytest.importorskip("onnxscript", reason="exports need onnx (fmwiss[export])")
    model = Model(lively(resize=48))
    folder, saved = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("saved")
    model.segmenter.save(saved)
    words = ["export", str(saved), "--format", "onnx", "--out", str(folder / "model.onnx"), "--json"]
    program = [sys.executable, "-c", "from fmwiss.cli import main; main()", *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    reports = {"model.onnx": json.loads(done.stdout)}
    reports["model.pt2"] = export(model, folder / "model.pt2", "torch").as_dict()
    assert sorted(path.name for path in folder.iterdir()) == list(reports)
    for name, report in reports.items():
        assert report["agreement"] == 1.0 and report["largest_difference"] < 1e-4 < 1 < report["largest_logit"]
        assert report["bytes"] == (folder / name).stat().st_size > 10_000
        assert len({tuple(shape) for shape in report["images"]}) == 3
    return model, folder


def answers(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The file's answers by means of its own runtime alone."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    program = torch.export.load(str(path)).module()
    return lambda images: program(torch.from_numpy(images)).detach().numpy()


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_answers_are_the_models_at_any_batch_and_size(exported: tuple[Model, Path], name: str, scene: Scene) -> None:
    model, folder = exported
    run = answers(folder / name)
    for batch, height, width in ((1, 64, 64), (3, 47, 131), (2, 200, 96)):
        photographs = np.stack([scene(height, width, seed) for seed in range(batch)])
        images = photographs.transpose(0, 3, 1, 2).astype(np.float32) / 255
        logits = run(images)
        expected = model.predict(photographs, resize=None, probabilities=True)
        assert logits.dtype == np.float32 and logits.shape == (batch, 4, height, width)
        for own, one in zip(logits, expected, strict=True):
            np.testing.assert_allclose(1 / (1 + np.exp(-own)), one.probabilities, atol=1e-5)
            assert (own.argmax(axis=0) == one.mask).mean() > 0.999


def test_metadata_says_what_labels_and_input_are(exported: tuple[Model, Path]) -> None:
    import onnx

    model, folder = exported
    proto = onnx.load(folder / "model.onnx")
    of_onnx = {item.key: item.value for item in proto.metadata_props}
    assert json.loads(of_onnx["class_names"]) == list(model.class_names)
    assert json.loads(of_onnx["working_size"]) == 48 and "RGB in [0, 1]" in of_onnx["input"]
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (proto.graph.input[0], proto.graph.output[0])
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 4, "height", "width"]]
    extra = {"fmwiss.json": ""}
    torch.export.load(str(folder / "model.pt2"), extra_files=extra)
    metadata = json.loads(extra["fmwiss.json"])
    assert metadata["class_names"] == list(model.class_names) and metadata["palette"][1] == [64, 0, 0]


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 13), (1, 2), (15, 15)])
def test_the_padding_for_export_is_timms(kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = Conv2dSame(4, 4, kernel, stride=2, groups=2)
    images = torch.rand(2, 4, *size)
    expected = convolution(images)
    module._simplify_padding(torch.nn.Sequential(convolution))
    assert isinstance(convolution, _SameConvolution)
    torch.testing.assert_close(convolution(images), expected)


@pytest.mark.parametrize("kernel", [2, 3, (4, 1)])
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (1, 2)])
@pytest.mark.parametrize("counted", [False, True])
def test_the_padding_of_pools_for_export_is_timms(
    kernel: int | tuple[int, int], size: tuple[int, int], counted: bool
) -> None:
    torch.manual_seed(0)
    pool = AvgPool2dSame(kernel, 1, ceil_mode=True, count_include_pad=counted)
    images = torch.rand(2, 4, *size)
    expected = pool(images)
    module._simplify_padding(torch.nn.Sequential(pool))
    assert isinstance(pool, _SameAveragePool)
    assert torch.equal(pool(images), expected)


def test_a_resnet_with_dilated_pools_becomes_an_archive(tmp_path: Path, lively: Lively) -> None:
    report = export(Model(lively(encoder="resnet_emoji", resize=48)), tmp_path / "model.pt2", "torch")
    assert report.agreement == 1.0 and report.largest_difference < 1e-4


def test_a_network_with_tensorflows_padding_can_be_exported(tmp_path: Path) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            size = images.shape[-2:]
            return torch.nn.functional.interpolate(self.layers(images), size=size, mode="bilinear")

    network = Network().eval()
    images = torch.rand(1, 3, 45, 67)
    expected = network(images)
    module._simplify_padding(network)
    program = module._program(network)  # type: ignore[arg-type]
    torch.testing.assert_close(program.module()(images), expected)


def fake(model: Model, monkeypatch: pytest.MonkeyPatch, run: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """A runtime that errs, in place of an export that takes its time."""
    network = module._Whole(model.segmenter)
    monkeypatch.setattr(module, "_program", lambda _: None)
    monkeypatch.setattr(module, "_torch_bytes", lambda *_: b"archive")
    monkeypatch.setattr(module, "_torch_run", lambda _: lambda images: run(network, images))


ERRORS: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], str]] = {
    "one channel off": (
        lambda network, images: network(images) + torch.tensor([[[0]], [[0.1]], [[0]], [[0]]]), "logits by up to 0.1"
    ),
    "half a pixel off": (lambda network, images: network(images).roll(1, dims=3), "answers differently"),
    "normalised twice": (lambda network, images: network((images - 0.5) / 0.5), "answers differently"),
    "not a number": (lambda network, images: network(images) * torch.nan, "answers differently"),
    "another size": (lambda network, images: network(images)[..., :-1], "gives logits of shape (1, 4, 48, 47)"),
    "fails": (lambda network, images: images @ images.mT.mT[..., 1:, :], "fails on images of 48 x 48 pixels"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_answers_differently_is_refused_and_leaves_nothing(
    name: str, small_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, sentence = ERRORS[name]
    fake(small_model, monkeypatch, run)
    kept = tmp_path / "model.pt2"
    kept.write_text("an older export")
    with pytest.raises(UserError, match="not written") as caught:
        export(small_model, kept, "torch")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"] and kept.read_text() == "an older export"


def test_equal_answers_pass_the_check(small_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(small_model, monkeypatch, lambda network, images: network(images) + 1e-6)
    assert export(small_model, tmp_path / "model.pt2", "torch").largest_difference == pytest.approx(1e-6, rel=0.3)


def test_a_network_that_cannot_be_exported_is_told(small_model: Model, tmp_path: Path, lively: Lively) -> None:
    class Stubborn(type(small_model.segmenter)):  # type: ignore[misc]
        def predict_logits(self, images: torch.Tensor, size: Any) -> torch.Tensor:
            return images * float(images.mean().item() > 0)

    segmenter = lively(resize=48)
    segmenter.__class__ = Stubborn
    with pytest.raises(UserError, match="cannot be exported"):
        export(Model(segmenter), tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_written_is_told(
    small_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise RuntimeError("op ceil is not in _SYM_OPS\nand more")

    monkeypatch.setattr(module, "_program", lambda _: None)
    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(UserError, match=r"cannot be written as a torch archive \(op ceil is not in _SYM_OPS\)"):
        export(small_model, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "format"), [("model.pt2", "onnx"), ("model.ONNX", "torch")])
def test_the_other_formats_ending_is_refused(name: str, format: Any, small_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name}: ends as a file of format \w+, not of {format}; give format"):
        export(small_model, tmp_path / name, format)


def test_what_is_missing_or_wrong_is_told_first(
    small_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(f"as in {tmp_path / 'model.onnx'}")):
        export(small_model, tmp_path)
    with pytest.raises(UserError, match="format tflite: must be onnx or torch"):
        export(small_model, tmp_path / "m", "tflite")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript, not installed here; pip install 'fmwiss\[export\]'"):
        export(small_model, tmp_path / "m.onnx")


def test_an_adapted_model_takes_sides_that_it_cannot_halve_often_enough(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    save_smp(tmp_path / "unet")
    report = export(Model(open_foreign(tmp_path / "unet")), tmp_path / "unet.pt2", "torch")
    assert report.agreement == 1.0 and report.largest_difference < 1e-4
    assert any(side % 32 for shape in report.images for side in shape[2:])
