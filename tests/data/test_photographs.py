"""Photographs as users have them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from fmwiss.data.photographs import read_photograph
from fmwiss.errors import UserError


def corner() -> Image.Image:
    """6 x 4, black but for a yellow pixel in the upper left corner."""
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((0, 0), (255, 255, 0))
    return picture


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA"])
def test_modes_of_eight_bits_become_rgb(mode: str, tmp_path: Path) -> None:
    corner().convert(mode).save(tmp_path / "a.png")
    photograph = read_photograph(tmp_path / "a.png")
    assert photograph.dtype == torch.uint8 and photograph.shape == (3, 4, 6) and photograph.is_contiguous()
    assert photograph[:, 0, 0].any() and not photograph[:, 1:].any()


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (6, 4)).save(tmp_path / "a.jpg")
    assert (read_photograph(tmp_path / "a.jpg") == 255).all()


def test_the_exif_orientation_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    corner().save(tmp_path / "a.png", exif=exif)
    photograph = read_photograph(tmp_path / "a.png")
    assert photograph.shape == (3, 6, 4)
    assert photograph[:, 0, 3].tolist() == [255, 255, 0]


def test_of_colours_with_sixteen_bits_the_upper_eight_are_taken(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = struct.pack(">6H", 0xFFFF, 0x80FE, 0x00FF, 0x0100, 0x7F00, 0x0000)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    picture = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + picture)
    expected = torch.tensor([[[0xFF, 0x01]], [[0x80, 0x7F]], [[0x00, 0x00]]], dtype=torch.uint8)
    assert torch.equal(read_photograph(tmp_path / "a.png"), expected)


def test_what_is_no_photograph_is_told(tmp_path: Path) -> None:
    corner().resize((200, 200)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    Image.new("I;16", (6, 4)).save(tmp_path / "deep.png")
    (tmp_path / "folder.jpg").mkdir()
    for name, expected in {
        "cut.jpg": "truncated or no picture",
        "text.jpg": "truncated or no picture",
        "empty.jpg": "truncated or no picture",
        "deep.png": "more than 8 bits",
        "folder.jpg": "cannot be read: Is a directory",
        "none.jpg": "there is no photograph",
    }.items():
        with pytest.raises(UserError, match=expected) as caught:
            read_photograph(tmp_path / name)
        assert name in str(caught.value)


def test_absurdly_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corner().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="more pixels"):
        read_photograph(tmp_path / "a.png")


@pytest.mark.parametrize("error", [TypeError("x"), struct.error("x"), KeyError(3), EOFError(), zlib.error("x")])
def test_what_pillow_raises_of_damaged_exif_is_told(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corner().save(tmp_path / "a.png")

    def damaged(picture: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", damaged)
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        read_photograph(tmp_path / "a.png")
