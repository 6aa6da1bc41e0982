"""A model that says different things at different places, as a run and by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmwiss.config import Config, dump_config
from fmwiss.inference import Model
from fmwiss.models import Architecture, Segmenter

STEPS = (("cat", "potted plant"), ("sheep",))


def _architecture(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "encoder": "test_efficientnet",
        "output_stride": 16,
        "decoder_channels": 8,
        "atrous_rates": (1, 2, 3),
        "dropout": 0.5,
        "steps": STEPS,
        "resize": None,
    }
    return Architecture(**{**values, **changes})


def _lively(**changes: Any) -> Segmenter:
    """Random weights whose logits have a mean of 0 and a deviation of 1, so that every label is somewhere."""
    torch.manual_seed(0)
    segmenter = Segmenter(_architecture(**changes)).eval()
    for name, buffer in segmenter.named_buffers():
        if "running_mean" in name:
            buffer.uniform_(-0.1, 0.1)
        if "running_var" in name:
            buffer.uniform_(0.002, 0.01)
    with torch.no_grad():
        image = torch.from_numpy(_scene(256, 256)).permute(2, 0, 1)[None] / 255
        features = segmenter.decode(segmenter.encode(image))[1].transpose(0, 1).flatten(1)
        for layer in segmenter.classifier.steps:
            raw = layer.weight[:, :, 0, 0] @ features
            layer.weight /= raw.std(dim=1)[:, None, None, None]
            layer.bias.copy_(-raw.mean(dim=1) / raw.std(dim=1))
    return segmenter


def _scene(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A photograph with structure, ``(height, width, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


@pytest.fixture(scope="session")
def lively() -> Callable[..., Segmenter]:
    """Makes segmenters; keywords change the architecture."""
    return _lively


@pytest.fixture(scope="session")
def scene() -> Callable[..., Any]:
    """Makes photographs of a height, a width and a seed."""
    return _scene


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(_lively())


@pytest.fixture(scope="module")
def small_model() -> Model:
    """One that scales photographs to a working size."""
    return Model(_lively(resize=48))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a finished step 1, as far as its use needs it."""
    folder = tmp_path / "run"
    _lively(resize=48).save(folder / "step1")
    experiment = {
        "protocol": {"steps": [list(step) for step in STEPS]},
        "data": {"tags": "/home/somebody/secret/tags.csv"},
    }
    (folder / "config.yaml").write_text(dump_config(Config.model_validate(experiment)))
    return folder
