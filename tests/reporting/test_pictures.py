"""Predictions and masks as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmwiss.data.voc import VOC_CLASSES, voc_palette
from fmwiss.reporting.pictures import (
    class_colours,
    heat_map,
    label_layer,
    last_stages,
    mask_layer,
    overlay,
    picture_indices,
    save_indexed_png,
    save_masks,
    save_png,
    side_by_side,
    stacked,
    thumbnail,
    thumbnail_size,
)

NAMES = ("background", "sofa", "bird")


def halves() -> torch.Tensor:
    """Left half background, upper right sofa, lower right bird; 40 x 60."""
    labels = torch.zeros(40, 60, dtype=torch.uint8)
    labels[:20, 30:], labels[20:, 30:] = 1, 2
    return labels


def test_indices_are_vocs_ids_when_all_classes_are_vocs() -> None:
    assert picture_indices(NAMES)[:3].tolist() == [0, VOC_CLASSES.index("sofa") + 1, VOC_CLASSES.index("bird") + 1]
    assert picture_indices(("background", *VOC_CLASSES)).tolist() == list(range(256))


def test_indices_are_the_models_labels_otherwise() -> None:
    assert picture_indices(("background", "sofa", "zebra")).tolist() == list(range(256))


def test_an_indexed_png_reads_back_as_vocs_masks_do(tmp_path: Path) -> None:
    save_indexed_png(halves(), NAMES, tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert (picture.mode, picture.size) == ("P", (60, 40))
        palette = picture.getpalette()
        assert palette is not None and palette == voc_palette()[: len(palette)]
        stored = np.array(picture)
    assert (stored[:, :30] == 0).all() and (stored[:20, 30:] == 18).all() and (stored[20:, 30:] == 3).all()
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.png"]


def test_an_overlay_blends_the_classes_and_leaves_the_background() -> None:
    image = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    picture = overlay(image, halves(), NAMES)
    pixels = np.array(picture)
    assert picture.mode == "RGB" and picture.width >= 60 and picture.height > 40
    assert (pixels[:40, :28] == 100).all()
    for name, row in (("sofa", 10), ("bird", 30)):
        expected = [round(0.45 * 100 + 0.55 * channel) for channel in class_colours(NAMES)[name]]
        assert pixels[row, 45].tolist() == expected


def test_the_legend_shows_the_colours_of_the_classes_present_only() -> None:
    image = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    labels = halves()
    labels[labels == 2] = 0
    legend = np.array(overlay(image, labels, NAMES))[40:]
    colours = {tuple(pixel) for pixel in legend.reshape(-1, 3).tolist()}
    assert class_colours(NAMES)["sofa"] in colours
    assert class_colours(NAMES)["bird"] not in colours


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (300, 5)])
def test_overlays_of_odd_sizes_and_of_background_alone(size: tuple[int, int]) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    picture = overlay(image, torch.zeros(size, dtype=torch.uint8), NAMES)
    assert picture.width >= size[1] and picture.height > size[0]


def test_the_legend_of_many_classes_takes_several_lines() -> None:
    labels = torch.arange(21, dtype=torch.uint8).repeat_interleave(10).expand(50, 210)
    one = overlay(torch.zeros(3, 50, 210, dtype=torch.uint8), labels.clamp(max=1), ("background", *VOC_CLASSES))
    many = overlay(torch.zeros(3, 50, 210, dtype=torch.uint8), labels, ("background", *VOC_CLASSES))
    assert many.width == 210 and many.height > one.height + 3 * (one.height - 50)


def test_stages_stand_side_by_side_one_row_a_class() -> None:
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    coarse = torch.tensor([[[True, False]], [[False, False]]])  # class 0 in the left half, class 1 nowhere
    picture = side_by_side(image, {"init": coarse, "refined": ~coarse}, ["sofa", "bird"])
    pixels = np.array(picture)
    assert picture.width == 3 * 30 + 2 * 4
    title = picture.height // 2 - 20
    tinted = [round(0.45 * 100 + 0.55 * channel) for channel in class_colours(NAMES)["sofa"]]
    assert pixels[title + 10, 34 + 5].tolist() == tinted and pixels[title + 10, 34 + 25].tolist() == [100] * 3
    assert pixels[title + 10, 68 + 5].tolist() == [100] * 3 and pixels[title + 10, 68 + 25].tolist() == tinted


def test_the_last_stages_of_several_pictures_stand_beside_the_photograph() -> None:
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    left, right = torch.tensor([[[True, False]]]), torch.tensor([[[False, True]]])
    one = side_by_side(image, {"init": right, "seeds": right, "refined": left}, ["sofa"])
    other = side_by_side(image, {"init": left, "refined": right}, ["sofa"])
    picture = last_stages({"N = 1": one, "plus": other}, {"N = 1": 3, "plus": 2})
    assert picture.width == 3 * 30 + 2 * 4 and picture.height > one.height > 20
    pixels, middle = np.array(picture), picture.height - 10
    tinted = [round(0.45 * 100 + 0.55 * channel) for channel in class_colours(NAMES)["sofa"]]
    plain = [100] * 3
    assert pixels[middle, [5, 25]].tolist() == [plain, plain]
    assert pixels[middle, [34 + 5, 34 + 25]].tolist() == [tinted, plain]
    assert pixels[middle, [68 + 5, 68 + 25]].tolist() == [plain, tinted]


def test_stacked_pictures_touch_only_their_gap() -> None:
    wide, high = Image.new("RGB", (5, 2), (255, 0, 0)), Image.new("RGB", (3, 4), (0, 0, 255))
    pixels = np.array(stacked([wide, high]))
    assert pixels.shape == (2 + 4 + 4, 5, 3)
    assert (pixels[:2] == (255, 0, 0)).all() and (pixels[2:6] == 255).all()
    assert (pixels[6:, :3] == (0, 0, 255)).all() and (pixels[6:, 3:] == 255).all()


def test_masks_are_written_at_the_photographs_size(tmp_path: Path) -> None:
    coarse = torch.tensor([[[True, False], [False, True]], [[False, False], [True, False]]])
    save_masks(coarse, ["potted plant", "bird"], (5, 7), tmp_path, "x")
    with Image.open(tmp_path / "x_potted_plant.png") as picture:
        stored = np.array(picture)
    # pixel centres (i + .5) / 5 and (j + .5) / 7 against the middle
    rows, columns = (np.arange(5) + 0.5) / 5 >= 0.5, (np.arange(7) + 0.5) / 7 >= 0.5
    assert (stored == (rows[:, None] == columns[None])).all()
    assert (tmp_path / "x_bird.png").is_file()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (2, 2)), path)
    before = path.read_bytes()

    def fail(self: Image.Image, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_png(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------ layers of the report


def test_a_label_layer_has_the_palettes_colours_where_a_class_is_and_is_transparent_elsewhere(tmp_path: Path) -> None:
    labels = halves()
    labels[:, :5] = 255
    label_layer(labels, NAMES).save(tmp_path / "layer.png")
    with Image.open(tmp_path / "layer.png") as picture:
        assert picture.mode == "P"
        pixels = np.array(picture.convert("RGBA"))
    colours = class_colours(NAMES)
    assert pixels[10, 45].tolist() == [*colours["sofa"], 255] and pixels[30, 45].tolist() == [*colours["bird"], 255]
    assert pixels[10, 15, 3] == 0  # background
    assert pixels[10, 2].tolist() == [*voc_palette()[765:], 255]  # void
    assert pixels[10, 29].tolist() == [255, 255, 255, 255]  # where background and sofa meet
    assert (tmp_path / "layer.png").stat().st_size < 250


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_layer_of_one_label(value: int) -> None:
    pixels = np.array(label_layer(torch.full((3, 4), value, dtype=torch.uint8), NAMES).convert("RGBA"))
    assert (pixels[..., 3] == (0 if value == 0 else 255)).all()


def test_a_mask_layer_covers_the_photograph_from_a_coarse_grid() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    pixels = np.array(mask_layer(mask, 2, NAMES, (40, 60)).convert("RGBA"))
    assert pixels.shape == (40, 60, 4)
    assert pixels[5, 5].tolist() == [*class_colours(NAMES)["bird"], 255]
    assert pixels[30, 5, 3] == pixels[5, 45, 3] == 0


def test_heat_goes_from_black_over_red_and_yellow_to_white() -> None:
    values = torch.tensor([[0.0, 1 / 3, 2 / 3, 1.0]])
    picture = heat_map(values, (1, 4))
    assert picture.mode == "P"
    expected = [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]
    assert np.abs(np.array(picture.convert("RGB"))[0].astype(int) - expected).max() <= 6  # 128 steps
    assert heat_map(values, (8, 32)).size == (32, 8)


def test_thumbnails_keep_their_shape_and_are_never_enlarged() -> None:
    assert thumbnail_size(375, 500, 360) == (270, 360)
    assert thumbnail_size(500, 333, 360) == (360, 240)
    assert thumbnail_size(100, 90, 360) == (100, 90)
    assert thumbnail_size(1, 4000, 360) == (1, 360)
    image = torch.full((3, 50, 80), 70, dtype=torch.uint8)
    picture = thumbnail(image, 40)
    assert (picture.mode, picture.size) == ("RGB", (40, 25))
    assert (np.array(picture) == 70).all()
