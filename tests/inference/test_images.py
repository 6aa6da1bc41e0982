"""Photographs of every kind become the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmwiss.errors import UserError
from fmwiss.inference.images import split, to_tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_all_kinds_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(PIXELS).save(path)
    expected = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for kind in (path, str(path), Image.fromarray(PIXELS), PIXELS, PIXELS[:, ::-1][:, ::-1], expected):
        assert torch.equal(to_tensor(kind), expected)
    torch.testing.assert_close(to_tensor(expected.double() / 255), expected.float() / 255)


def test_grey_and_transparent_pictures_become_rgb() -> None:
    grey = PIXELS[:, :, 0]
    for kind in (grey, Image.fromarray(grey)):
        assert torch.equal(to_tensor(kind), torch.from_numpy(grey)[None].expand(3, -1, -1))
    assert to_tensor(Image.new("RGBA", (4, 3), (9, 8, 7, 0)))[:, 0, 0].tolist() == [9, 8, 7]


def test_a_path_is_turned_upright_and_a_picture_is_taken_as_it_is(tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert to_tensor(tmp_path / "turned.jpg").shape == (3, 7, 5)
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert to_tensor(opened).shape == (3, 5, 7)


def test_one_photograph_is_told_from_several() -> None:
    assert split(PIXELS)[1] and split("a.jpg")[1] and split(torch.zeros(3, 4, 4))[1]
    several, single = split(np.stack([PIXELS, PIXELS]))
    assert not single and len(several) == 2 and several[0].shape == PIXELS.shape
    assert split(path for path in ("a.jpg", "b.jpg")) == (["a.jpg", "b.jpg"], False)
    assert split(torch.zeros(4, 3, 2, 2))[0][0].shape == (3, 2, 2)


WRONG: dict[str, tuple[Any, str]] = {
    "number": (7, "not of type int"),
    "None": (None, "not of type NoneType"),
    "list inside a list": ([[PIXELS]], "not of type list"),
    "floats in an array": (PIXELS / 255, "must be of uint8"),
    "channels first": (PIXELS.transpose(2, 0, 1), "shape (H, W, 3), RGB, not (3, 5, 7)"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), "shape (H, W, 3), RGB, not (4, 4, 4)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "has pixels"),
    "tensor with channels last": (torch.zeros(5, 7, 3), "shape (3, H, W), RGB, not (5, 7, 3)"),
    "tensor of integers": (torch.zeros(3, 4, 4, dtype=torch.int64), "not torch.int64"),
    "tensor to 255": (torch.full((3, 4, 4), 255.0), "this one lies in [255, 255]"),
    "normalised tensor": (torch.randn(3, 9, 9), "neither scaled nor normalised"),
    "tensor with NaN": (torch.full((3, 4, 4), torch.nan), "must lie in [0, 1]"),
    "picture of 16 bits": (Image.new("I;16", (4, 4)), "more than 8 bits a channel"),
    "no such file": ("none.jpg", "there is no photograph none.jpg"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_photograph_is_told(name: str) -> None:
    thing, sentence = WRONG[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        for image in split(thing)[0]:
            to_tensor(image)
    assert sentence in str(caught.value)


def test_a_folder_is_told_from_a_broken_photograph(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give the files in it"):
        to_tensor(str(tmp_path))
