"""COCO's instances files: categories, and outlines drawn as masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from fmwiss.data.coco import CocoFile, _unpacked_sum, rasterise
from fmwiss.data.datasets import MaskDataset, WeakDataset
from fmwiss.data.folder import FolderSource
from fmwiss.data.memory import MemoryBank
from fmwiss.data.protocols import Protocol
from fmwiss.data.tags import TagIndex
from fmwiss.data.transforms import JointTransform
from fmwiss.errors import UserError


def annotation(number: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"number": number, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def test_boxes_are_drawn_to_the_pixel_and_smaller_ones_on_top() -> None:
    small, large = annotation(0, 5, [box(4, 3, 8, 6)]), annotation(1, 2, [box(1, 1, 9, 9), box(10, 0, 12, 2)])
    expected = np.zeros((10, 12), np.uint8)
    expected[1:9, 1:9], expected[0:2, 10:12] = 1, 1
    expected[3:6, 4:8] = 2
    for order in ([small, large], [large, small]):
        assert (rasterise(order, {2: 1, 5: 2}, (10, 12), "x") == expected).all()
    assert (rasterise([small, large], {5: 2}, (10, 12), "x") == np.where(expected == 2, 2, 0)).all()


def test_a_slanted_outline_holds_the_pixels_whose_centres_are_inside() -> None:
    found = rasterise([annotation(0, 1, [[2.0, 1.0, 29.0, 5.0, 11.0, 27.0]])], {1: 1}, (30, 32), "x")
    corners = [(2.0, 1.0), (29.0, 5.0), (11.0, 27.0)]
    edge = 0
    for y in range(30):
        for x in range(32):
            sides = [
                (bx - ax) * (y + 0.5 - ay) - (by - ay) * (x + 0.5 - ax)
                for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True)
            ]
            near = min(abs(side) for side in sides) < 30  # within a pixel of an edge
            if not near:
                assert bool(found[y, x]) == all(side > 0 for side in sides), (x, y)
            edge += near
    assert edge < 220 and 310 < found.sum() < 356  # half the cross product of two sides is 333


def test_run_lengths_go_down_columns_and_crowds_are_void() -> None:
    # 3 x 4 (height, width): 4 background, then 3, then 5; columns of 3
    runs = {"size": [3, 4], "counts": [4, 3, 5]}
    crowd = annotation(0, 1, runs, crowd=1)
    expected = [[0, 0, 255, 0], [0, 255, 0, 0], [0, 255, 0, 0]]
    assert rasterise([crowd], {1: 1}, (3, 4), "x").tolist() == expected
    on_top = annotation(1, 1, [box(1, 1, 2, 2)])
    assert rasterise([on_top, crowd], {1: 1}, (3, 4), "x")[1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_packed_run_lengths(seed: int) -> None:
    draws = np.random.default_rng(seed)
    shape = tuple(draws.integers(1, 90, 2))
    region = draws.random(shape) < draws.uniform(0.01, 0.99)
    region[: shape[0] // 2, : shape[1] // 2] = seed % 2
    packed = rle.encode(np.asfortranarray(region, dtype=np.uint8))
    outline = {"size": [int(side) for side in shape], "counts": packed["counts"].decode()}
    assert (rasterise([annotation(0, 1, outline)], {1: 1}, shape, "x") == region).all()  # type: ignore[arg-type]
    assert _unpacked_sum(outline["counts"]) == shape[0] * shape[1]
    assert _unpacked_sum(outline["counts"] + "1") == shape[0] * shape[1] + 1 or len(outline["counts"]) > 2
    assert _unpacked_sum("P") is None and _unpacked_sum("ä") is None and _unpacked_sum("O") is None


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, "no 'segmentation'; a mask needs polygons or run lengths"),
        ([], "no 'segmentation'"),
        ([[1, 1, 5, 5]], "polygon of 4 numbers; it must have 6 or more"),
        ([[1, 1, 5, 5, 3, 3, 1]], "polygon of 7 numbers"),
        ([[1, 1, 5, 5, 3, "x"]], "no list of numbers"),
        ([[1, 1, 5, 5, 3, float("inf")]], "no list of numbers"),
        ([{"x": 1}], "no list of numbers"),
        ([[1, 1, 1e9, 1, 9, 9]], "polygon far outside its photograph of 3 x 4 pixels"),
        ([[1, 1, 3, 1, 2, -1e300]], "polygon far outside"),
        ({"size": [4, 3], "counts": [12]}, r"of size \[4, 3\], its photograph is \[3, 4\]"),
        ({"size": [3, 4], "counts": [4, 3]}, "do not add up to 3 x 4 pixels"),
        ({"size": [3, 4], "counts": [14, -2]}, "do not add up"),
        ({"size": [3, 4], "counts": "09999"}, "packed run lengths that do not add up"),
        ({"size": [3, 4]}, "packed run lengths that do not add up"),
        ("polygon", "of size polygon"),
    ],
)
def test_outlines_that_cannot_be_drawn(outline: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^x.json, annotations\[3\], has .*{message}"):
        rasterise([annotation(3, 1, outline)], {1: 1}, (3, 4), "x.json")


def write(
    path: Path, files: list[str], annotations: list[tuple[int, int, Any]], size: tuple[int, int] = (12, 10)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": n, "file_name": name, "width": size[0], "height": size[1]} for n, name in enumerate(files)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 0, "name": "background"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": c, "segmentation": s, "iscrowd": 0}
            for n, (image, c, s) in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(content))


def test_a_folder_in_cocos_own_layout(tmp_path: Path) -> None:
    for name in ("train2017/1.jpg", "train2017/2.jpg", "val2017/1.jpg", "new/5.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 10)).save(tmp_path / name)
    outlines = [(0, 9, [box(0, 0, 6, 5)]), (0, 4, [box(6, 5, 12, 10)]), (1, 0, [box(0, 0, 9, 9)])]
    write(tmp_path / "annotations/instances_train2017.json", ["1.jpg", "2.jpg", "3.jpg"], outlines)
    write(tmp_path / "annotations/instances_val2017.json", ["1.jpg"], [(0, 4, [box(0, 0, 1, 1)])])
    (tmp_path / "tags.csv").write_text("file,tags\nnew/5.jpg,owl\n")
    source = FolderSource(tmp_path, masks="coco")
    assert source.ids("train2017") == ["train2017/1", "train2017/2"] and source.ids("val2017") == ["val2017/1"]
    assert source.mask_classes == ("cat", "dog") and source.class_names == ("cat", "dog", "owl")
    first = source.read_mask("train2017/1")
    assert first[:5, :6].unique().tolist() == [2] and first[5:, 6:].unique().tolist() == [1] and first[9, 0] == 0
    assert not source.read_mask("train2017/2").any() and not source.has_mask("new/5")
    tags = TagIndex.load_or_build(source, source.ids("all"), "masks", tmp_path / "index.json")
    assert dict(tags) == {
        "new/5": {"owl"}, "train2017/1": {"cat", "dog"}, "train2017/2": frozenset(), "val2017/1": {"cat"}
    }
    assert [line for line in source.masks.absent if "3.jpg" in line]  # type: ignore[union-attr]


def test_samples_of_both_kinds_of_step(tmp_path: Path) -> None:
    for name in ("1.jpg", "new/5.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (9, 200, 90)).save(tmp_path / "images" / name)
    write(tmp_path / "instances.json", ["1.jpg"], [(0, 9, [box(0, 0, 12, 5)]), (0, 4, [box(0, 5, 12, 10)])])
    (tmp_path / "tags.csv").write_text("file,tags\n5.png,owl\n")
    source = FolderSource(tmp_path, masks="coco")
    protocol, transform = Protocol((("dog",), ("owl",))), JointTransform(10, None, (1.0, 1.0), 0.0)
    assert source.ids("all") == ["1", "new/5"]
    table = protocol.label_table(0, source.class_names)
    sample = MaskDataset(source, ["1"], table, transform, seed=0)[0, 0]
    assert sample.mask is not None and (sample.mask[:5] == 1).all() and not sample.mask[5:].any()
    tags = {"new/5": source.own_tags("new/5")}
    weak = WeakDataset(source, ["new/5"], tags, protocol.new(1), transform, 0, None, None)[0, 0]
    assert weak.tags is not None and weak.tags.tolist() == [True] and weak.image.shape == (3, 10, 10)
    bank = MemoryBank.build(source, ["1"], table, ["dog"], 3, 0.0, seed=0)
    assert bank.count("dog") == 1 and bank["dog"][0].region().shape == (5, 12)


def test_a_size_that_is_not_the_photographs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (12, 10)).save(tmp_path / "images/1.jpg")
    write(tmp_path / "instances.json", ["1.jpg"], [(0, 9, [box(0, 0, 6, 5)])], size=(10, 12))
    source = FolderSource(tmp_path, masks="coco")
    with pytest.raises(UserError, match=r"images\[0\], says 10x12 pixels, and the photograph .*1.jpg.* has 12x10"):
        source.read_mask("1")


def test_ids_of_annotations_are_kept_apart_by_type(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 2}, {"image_id": "1", "category_id": 1}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    file = CocoFile.parse(tmp_path / "x.json")
    assert not file.problems and file.present(1) == ["dog"] and file.present("1") == ["cat"]
