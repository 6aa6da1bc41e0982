"""Saliency maps from a folder: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwiss.data.saliency import SaliencyFolder
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError

ID = "train_aug_000000"


@pytest.fixture
def source(tiny_voc: Path) -> VOCSource:
    return VOCSource(tiny_voc)


@pytest.fixture
def values(source: VOCSource) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, source.image_size(ID), dtype=np.uint8)


def test_a_map_is_the_grey_picture_of_the_photographs_id(
    source: VOCSource, values: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / f"{ID}.png")
    assert np.array_equal(SaliencyFolder(tmp_path, source, [ID]).map(ID).numpy(), values)


def _cut_off(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)
    path.write_bytes(path.read_bytes()[:-100])


SPOILT: dict[str, tuple[Callable[[Path, np.ndarray], None], str]] = {
    "truncated": (_cut_off, r"saliency map .*000000\.png cannot be read, it is truncated or no picture"),
    "coloured": (
        lambda path, values: Image.fromarray(np.stack([values] * 3, -1)).save(path),
        r"is of mode RGB; it must be a grey picture of 8 bits",
    ),
    "of labels": (lambda path, values: Image.fromarray(values).convert("P").save(path), r"is of mode P; it must be a"),
    "of another size": (
        lambda path, values: Image.fromarray(values[:-1]).save(path),
        r"saliency map .* is \d+x\d+ pixels, its photograph \d+x\d+; they must be equal",
    ),
    "missing": (lambda path, values: None, r"000000\.png is missing; every photograph of the step needs one"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_map_is_told(how: str, source: VOCSource, values: np.ndarray, tmp_path: Path) -> None:
    spoil, sentence = SPOILT[how]
    spoil(tmp_path / f"{ID}.png", values)
    with pytest.raises(UserError, match=sentence):
        SaliencyFolder(tmp_path, source).map(ID)


def test_what_is_missing_is_told_before_anything_is_read(
    source: VOCSource, values: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"method\.saliency = .*nowhere: is no folder; give one with a grey picture"):
        SaliencyFolder(tmp_path / "nowhere", source)
    Image.fromarray(values).save(tmp_path / f"{ID}.png")
    ids = [ID, "train_aug_000001", "train_aug_000002"]
    with pytest.raises(UserError, match=r"train_aug_000001\.png: is missing, the first of 2 missing saliency maps"):
        SaliencyFolder(tmp_path, source, ids)
