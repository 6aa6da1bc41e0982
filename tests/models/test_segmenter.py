"""Segmenter: forms of its outputs, growing, and what is kept on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fmwiss.config import SegmenterConfig
from fmwiss.errors import UserError
from fmwiss.models import Architecture, Segmenter, load_segmenter


def architecture(**changes: object) -> Architecture:
    values = {
        "encoder": "test_efficientnet",
        "output_stride": 16,
        "decoder_channels": 8,
        "atrous_rates": (1, 2, 3),
        "dropout": 0.5,
        "steps": (("aeroplane", "bicycle"),),
        "resize": None,
    }
    return Architecture(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(architecture())
    # batch norm statistics of a fresh model hide mistakes: give them values of their own
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 70, 45), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.inference_mode()
def test_forward_is_classifier_on_decoder_on_normalised_encoder(model: Segmenter) -> None:
    images = torch.rand(2, 3, 64, 48)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if model.encoder.pretrained_cfg["mean"] != (0.485, 0.456, 0.406):
        mean, std = (
            torch.tensor(model.encoder.pretrained_cfg["mean"]),
            torch.tensor(model.encoder.pretrained_cfg["std"]),
        )
    normalised = ((images.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
    features = model.encoder(normalised)[-1]
    torch.testing.assert_close(model.encode(images), features)
    assert features.shape == (2, model.encoder_channels, 4, 3)
    logits, decoded = model.decode(features)
    assert logits.shape == (2, 3, 4, 3)
    assert decoded.shape == (2, 8, 4, 3)
    torch.testing.assert_close(model(images), logits)
    weights, bias = model.classifier.steps[0].weight[:, :, 0, 0], model.classifier.steps[0].bias
    torch.testing.assert_close(logits[1, :, 3, 2], weights @ decoded[1, :, 3, 2] + bias)


@torch.inference_mode()
def test_output_stride_8_gives_features_twice_as_fine() -> None:
    model = Segmenter(architecture(output_stride=8)).eval()
    assert model(torch.rand(1, 3, 64, 32)).shape[-2:] == (8, 4)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (17, 80), (1, 1), (7, 90)])
def test_any_size_of_photograph(model: Segmenter, size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    labels = model.predict(image)
    assert labels.shape == size
    assert labels.dtype == torch.uint8
    assert labels.max() <= 2
    logits = F.interpolate(model(image[None]), size=size, mode="bilinear", align_corners=False)
    assert labels.equal(logits[0].argmax(dim=0).to(torch.uint8))


def test_bytes_and_floats_are_the_same_photograph(model: Segmenter, image: torch.Tensor) -> None:
    assert model.predict(image).equal(model.predict(image.float() / 255))
    assert model.to_working_size(image).shape == (1, 3, 70, 45)
    torch.testing.assert_close(model.to_working_size(image), image[None].float() / 255)


@torch.inference_mode()
def test_predicts_at_the_working_size(model: Segmenter, image: torch.Tensor) -> None:
    small = Segmenter(architecture(resize=32)).eval()
    small.load_state_dict(model.state_dict())
    working = small.to_working_size(image)
    assert working.shape == (1, 3, 50, 32)
    labels = small.predict(image)
    assert labels.shape == (70, 45)
    assert labels.equal(model.predict_logits(working, (70, 45))[0].argmax(dim=0).to(torch.uint8))


@torch.inference_mode()
def test_growing_plainly_keeps_the_old_logits(model: Segmenter) -> None:
    images = torch.rand(1, 3, 48, 48)
    before = model(images)
    model.add_step(("sheep", "potted plant"), "plain")
    assert model.class_names == ("background", "aeroplane", "bicycle", "sheep", "potted plant")
    assert model.architecture.steps == (("aeroplane", "bicycle"), ("sheep", "potted plant"))
    after = model(images)
    assert after.shape[1] == 5
    assert after[:, :3].equal(before)


@torch.inference_mode()
@pytest.mark.parametrize("grown", [False, True])
def test_save_and_load_give_identical_logits(model: Segmenter, tmp_path: Path, grown: bool) -> None:
    if grown:
        model.add_step(("sheep", "sofa"), "background")
        model.add_step(("train",), "plain")
    model.save(tmp_path / "step0")
    loaded = Segmenter.load(tmp_path / "step0")
    assert not loaded.training
    assert loaded.architecture == model.architecture
    assert loaded.class_names == model.class_names
    assert loaded.state_dict().keys() == model.state_dict().keys()
    images = torch.rand(2, 3, 49, 63)
    assert loaded(images).equal(model(images))
    assert sorted(path.name for path in (tmp_path / "step0").iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((tmp_path / "step0/model.json").read_text())["library"].startswith("fmwiss ")


def test_from_config_builds_what_it_says(tmp_path: Path) -> None:
    config = SegmenterConfig(encoder="test_efficientnet", pretrained=False, decoder_channels=8, dropout=0.25)
    model = Segmenter.from_config(config, ("cat",), resize=192, weights=None)
    expected = architecture(atrous_rates=(6, 12, 18), dropout=0.25, steps=(("cat",),), resize=192)
    assert model.architecture == expected
    dropout = [module.p for module in model.decoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropout == [0.25]


def test_from_config_lets_classes_start_rare() -> None:
    config = SegmenterConfig(encoder="test_efficientnet", pretrained=False, decoder_channels=8, class_prior=0.02)
    model = Segmenter.from_config(config, ("cat", "dog"), resize=None, weights=None)
    bias = model.classifier.steps[0].bias
    assert bias[1:].sigmoid().tolist() == pytest.approx([0.02, 0.02]) and abs(bias[0]) < 1
    model.add_step(("sheep",), "plain", 0.1)
    assert model.classifier.steps[1].bias.sigmoid().tolist() == pytest.approx([0.1])


def test_pretrained_weights_are_taken_from_the_folder(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    whole = timm.create_model("test_efficientnet", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "test_efficientnet.safetensors")
    config = SegmenterConfig(encoder="test_efficientnet", decoder_channels=8)
    model = Segmenter.from_config(config, ("cat",), resize=None, weights=tmp_path)
    assert model.encoder.conv_stem.weight.equal(whole.conv_stem.weight)


def test_an_encoder_that_cannot_be_dilated_is_refused() -> None:
    with pytest.raises(UserError, match="vgg11"):
        Segmenter(architecture(encoder="vgg11"))


# -------------------------------------------------------------------------------------------- what can be wrong on disk


def test_a_class_that_two_steps_name_is_refused(saved: Path) -> None:
    description = json.loads((saved / "model.json").read_text())
    description["steps"].append([description["steps"][0][0]])
    (saved / "model.json").write_text(json.dumps(description))
    assert re.search(r"model.json: .*the class '\w+' is learnt twice", refusal(saved))


@pytest.fixture
def saved(model: Segmenter, tmp_path: Path) -> Path:
    model.save(tmp_path / "step0")
    return tmp_path / "step0"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Segmenter.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_model(tmp_path: Path) -> None:
    assert "model.json" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in refusal(saved)


def test_missing_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"encoder": "resnet18"}', "\ufffd", "null"])
def test_broken_description(saved: Path, text: str) -> None:
    (saved / "model.json").write_bytes(text.encode("utf-16") if text == "\ufffd" else text.encode())
    assert "model.json" in refusal(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", "test_byobnet"),
        ("decoder_channels", 16),
        ("steps", [["aeroplane"]]),
        ("steps", [["a"], ["b"]]),
    ],
)
def test_weights_of_another_architecture(saved: Path, key: str, value: object) -> None:
    description = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**description, key: value}))
    message = refusal(saved)
    assert "another architecture" in message
    assert len(message) < 400


def test_weights_with_a_tensor_too_few_or_too_many(saved: Path) -> None:
    file = saved / "model.safetensors"
    state = load_file(file)
    save_file({name: value for name, value in state.items() if name != "classifier.steps.0.bias"}, file)
    assert "classifier.steps.0.bias" in refusal(saved)
    save_file({**state, "classifier.steps.1.bias": torch.zeros(2)}, file)
    assert "classifier.steps.1.bias" in refusal(saved)


# ------------------------------------------------------------------------------------------------------- steps of a run


def test_load_segmenter_takes_the_last_step_or_the_one_asked_for(model: Segmenter, tmp_path: Path) -> None:
    model.save(tmp_path / "step0")
    model.add_step(("sheep",), "plain")
    model.save(tmp_path / "step1")
    assert load_segmenter(tmp_path).class_names[-1] == "sheep"
    assert load_segmenter(tmp_path, 0).class_names[-1] == "bicycle"
    with pytest.raises(UserError, match="step 3"):
        load_segmenter(tmp_path, 3)


@pytest.mark.parametrize("rates", [[], [1], [1, 2]])
def test_a_description_that_cannot_be_built(saved: Path, rates: list[int]) -> None:
    description = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**description, "atrous_rates": rates}))
    assert "model.json" in refusal(saved)
