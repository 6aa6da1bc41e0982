"""Generated scenes, an experiment on them with the package's tiny models, and sessions of reviewing its masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fmwiss.data.emoji import EmojiSeg, write_emoji
from fmwiss.review.session import Place, Session, find_target, open_session

BASE, NEW = ("aeroplane", "bicycle", "boat", "bus", "dog", "person"), ("cat", "sheep", "sofa")
EXPERIMENT: dict[str, Any] = {
    "protocol": {"steps": [list(BASE), list(NEW)]},
    "data": {"crop_size": 48, "resize": 48, "workers": 0},
    "segmenter": {
        "encoder": "test_efficientnet",
        "pretrained": False,
        "decoder_channels": 8,
        "atrous_rates": [1, 1, 1],
    },
    "cosegmentation": {
        "name": "fmwiss-plus",
        "vision_language": {"name": "clip", "model": "TinyCLIP-emoji", "tag": "emojiseg", "input_size": 96},
        "self_supervised": {"model": "vit_emoji_patch8_80", "input_size": 96},
        "plus": {"resolution": 3, "pamr_iterations": 2},
    },
    "copy_paste": {"bank_size": 2},
    "method": {"warmup_epochs": 0},
    "training": {"step0": {"epochs": 1, "batch_size": 4}, "steps": {"epochs": 1, "batch_size": 4}},
}


class World:
    """A folder with the data, the experiment and the stores; sessions in it are independent of each other."""

    base, new, values = BASE, NEW, EXPERIMENT

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.cache = folder / "cache"
        self.experiment = folder / "experiment.yaml"
        self.experiment.write_text(yaml.safe_dump(EXPERIMENT))
        write_emoji(self.data, EmojiSeg(n_train=40, n_val=4, size=96))
        self.place = Place(self.data, None, self.cache, torch.device("cpu"))

    def open(self, out: Path, *overrides: str) -> Session:
        """A session about the experiment's masks, whose review lies in ``out``."""
        out.mkdir(exist_ok=True)
        return open_session(find_target(self.experiment, out, overrides), self.place)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="session")
def tags_index(world: World) -> Path:
    """What the first session left: it need not be made again."""
    world.open(world.folder / "first")
    return world.folder / "first"


@pytest.fixture
def new_session(world: World, tags_index: Path, tmp_path: Path) -> Callable[..., Session]:
    def make(*overrides: str) -> Session:
        out = tmp_path / "run"
        out.mkdir(exist_ok=True)
        for name in ("tags.json", "review-figures.json"):
            shutil.copy(tags_index / name, out)
        return world.open(out, *overrides)

    return make


@pytest.fixture
def session(new_session: Callable[..., Session]) -> Session:
    return new_session()
