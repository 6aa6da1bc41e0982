"""The package's tiny models go the way of every other model, and are small."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fmwiss.config import SegmenterConfig, SelfSupervisedConfig, VisionLanguageConfig
from fmwiss.data.emoji import EmojiSeg
from fmwiss.foundation import (
    SelfSupervisedModel,
    VisionLanguageModel,
    build_self_supervised,
    build_vision_language,
    tiny,
)
from fmwiss.foundation.weights import find_weights
from fmwiss.models import Segmenter

WEIGHTS = (f"{tiny.CLIP}.{tiny.CLIP_TAG}", tiny.VIT, tiny.RESNET)


def test_all_together_stay_below_15_megabytes():
    sizes = [path.stat().st_size for path in tiny.FOLDER.glob("*.safetensors")]
    assert len(sizes) == 3 and sum(sizes) <= 15_000_000


@pytest.mark.parametrize("name", WEIGHTS)
def test_half_precision_and_a_model_card(name: str):
    state = load_file(tiny.FOLDER / f"{name}.safetensors")
    assert all(not t.is_floating_point() or t.dtype == torch.float16 for t in state.values())
    assert all(t.isfinite().all() for t in state.values())
    card = (tiny.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert "seed" in card and "tools/train_tiny_" in card


def test_clip_is_open_clips_own_and_loads_like_any_other():
    config = VisionLanguageConfig(name="clip", model=tiny.CLIP, tag=tiny.CLIP_TAG, input_size=256)
    model = build_vision_language(config)
    assert isinstance(model, VisionLanguageModel)
    assert type(model.model) is open_clip.CLIP  # type: ignore[attr-defined]
    image = EmojiSeg().read_image("val_000001")[None].float() / 255
    scores = model.scores(image, ["cat", "potted plant"])
    assert scores.shape[:2] == (1, 2) and scores.abs().max() <= 1 + 1e-5


def test_the_vit_is_timms_own_and_loads_like_any_other():
    assert type(timm.create_model(tiny.VIT)) is timm.models.vision_transformer.VisionTransformer
    model = build_self_supervised(SelfSupervisedConfig(model=tiny.VIT))
    assert isinstance(model, SelfSupervisedModel)
    state = load_file(tiny.FOLDER / f"{tiny.VIT}.safetensors")
    assert torch.equal(model.vit.cls_token, state["cls_token"].float())  # type: ignore[attr-defined]
    attention = model.attention(torch.rand(1, 3, 80, 96))
    assert attention.shape == (1, 4, 120, 120)


def test_the_encoder_is_timms_own_and_a_segmenter_starts_from_it():
    config = SegmenterConfig(encoder=tiny.RESNET, output_stride=8, decoder_channels=16)
    model = Segmenter.from_config(config, ("cat",), None, None)
    state = load_file(tiny.FOLDER / f"{tiny.RESNET}.safetensors")
    assert torch.equal(dict(model.encoder.named_parameters())["conv1.0.weight"], state["conv1.0.weight"].float())
    assert model(torch.rand(2, 3, 64, 80)).shape == (2, 2, 8, 10)


def test_a_users_folder_comes_first(tmp_path: Path):
    own = tmp_path / f"{tiny.VIT}.safetensors"
    save_file({"weight": torch.zeros(1)}, own)
    assert find_weights(tiny.VIT, tmp_path) == own
    assert find_weights(tiny.VIT, None) == tiny.FOLDER / own.name
    assert find_weights("resnet101", tmp_path) is None
