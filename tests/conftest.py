"""Fixtures that every test may use: a generated data set, and the folder with real photographs and weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmwiss.data.shapes import write_shapes

pytest_plugins = ["browser"]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real photographs, published splits and pretrained weights; skips the test where it is absent."""
    folder = Path(os.environ.get("FMWISS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"real photographs and weights are not at {folder} (set FMWISS_SHARED to their folder)")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in VOC's layout, 16 generated pictures in train_aug and 8 in val; copy it before changing it.

    Sides of 72 to 128 pixels; classes aeroplane, bicycle, bird, boat, sheep and sofa, each in both splits.
    """
    folder = tmp_path_factory.mktemp("tiny_voc")
    write_shapes(folder)
    return folder
