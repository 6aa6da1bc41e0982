from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmwiss.data.shapes import SHAPE_CLASSES, write_shapes
from fmwiss.data.voc import VOC_CLASSES, VOCSource, voc_palette
from fmwiss.errors import UserError


def test_it_is_a_voc_folder_with_every_class_in_both_splits(tiny_voc: Path):
    source = VOCSource(tiny_voc)
    for split, count in (("train_aug", 16), ("val", 8)):
        ids = source.ids(split)
        assert len(ids) == count
        shown = {int(label) for image_id in ids for label in source.read_mask(image_id).unique()} - {0, 255}
        assert shown == {VOC_CLASSES.index(name) + 1 for name in SHAPE_CLASSES}


def test_pictures_are_small_and_masks_have_a_palette_and_a_void_border(tiny_voc: Path):
    source = VOCSource(tiny_voc)
    sizes = set()
    for image_id in source.ids("train_aug"):
        image, mask = source.read_image(image_id), source.read_mask(image_id)
        sizes.add(image.shape)
        assert 72 <= min(image.shape[1:]) <= 96 and 96 <= max(image.shape[1:]) <= 128
        # From an object to the background one always crosses void.
        padded = np.pad(mask.numpy(), 1)
        for shift in ((0, 1), (1, 0)):
            neighbour = np.roll(padded, shift, (0, 1))
            both = (padded != 255) & (neighbour != 255)
            assert (padded == neighbour)[both].all()
        with Image.open(source.mask_path(image_id)) as picture:
            assert picture.mode == "P"
            assert picture.getpalette() == voc_palette()
    assert len(sizes) > 3


def test_mask_and_picture_agree(tiny_voc: Path):
    # A class has one colour, far from the grey ground: the median colour tells the classes apart.
    source = VOCSource(tiny_voc)
    colours: dict[int, list[np.ndarray]] = {}
    for image_id in source.ids("train_aug"):
        image, mask = source.read_image(image_id).float(), source.read_mask(image_id)
        for label in set(mask.unique().tolist()) - {0, 255}:
            colours.setdefault(label, []).append(image[:, mask == label].median(dim=1).values.numpy())
    means = {label: np.mean(seen, axis=0) for label, seen in colours.items()}
    for label, seen in colours.items():
        assert np.abs(np.stack(seen) - means[label]).max() < 12
        assert all(np.abs(means[label] - means[other]).max() > 40 for other in means if other != label)


def test_the_same_arguments_write_the_same_files(tmp_path: Path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_shapes(tmp_path / name, n_train=2, n_val=1, size=64, seed=seed, classes=("sheep", "TVmonitor"))
    files = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    }
    assert len(files["a"]) == 2 * 3 + 2
    assert files["a"] == files["b"] != files["c"]


def test_an_unknown_class_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="nearest known name is 'sheep'"):
        write_shapes(tmp_path, classes=("sheeps",))
