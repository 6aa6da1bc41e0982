"""The small experiment that the tests of whole runs share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def experiment() -> dict[str, Any]:
    """Four base classes, then two from tags, on the generated photographs; takes seconds, needs no foundation model."""
    return small_experiment()


@pytest.fixture(scope="module")
def shared_experiment() -> dict[str, Any]:
    """The same for fixtures that live through a module."""
    return small_experiment()


def small_experiment() -> dict[str, Any]:
    return {
        "protocol": {"steps": [["aeroplane", "bicycle", "bird", "boat"], ["sheep", "sofa"]]},
        "data": {"crop_size": 48, "resize": 48, "scale": [0.75, 1.25], "workers": 0},
        "segmenter": {"encoder": "test_efficientnet", "pretrained": False, "decoder_channels": 8, "dropout": 0.5},
        "cosegmentation": {"source": "true-masks"},
        "copy_paste": {"bank_size": 3, "probability": 0.7},
        "method": {"warmup_epochs": 1},
        "training": {
            "step0": {"epochs": 2, "batch_size": 4},
            "steps": {"epochs": 2, "batch_size": 2, "learning_rate": 0.01},
            "checkpoint_every": 2,
        },
    }
