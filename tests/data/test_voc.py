import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmwiss.data.voc import VOC_CLASSES, VOCSource, canonical_class_name, unreadable, voc_palette
from fmwiss.errors import UserError


@pytest.fixture
def folder(tiny_voc: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(tiny_voc, tmp_path / "voc")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("diningtable", "dining table"),
        ("potted_plant", "potted plant"),
        ("TV-Monitor", "tv monitor"),
        ("tvmonitor", "tv monitor"),
        ("sheep", "sheep"),
        ("Person", "person"),
    ],
)
def test_spellings_of_class_names(written: str, meant: str):
    assert canonical_class_name(written, VOC_CLASSES) == meant


def test_an_unknown_class_name_gets_the_nearest_one():
    with pytest.raises(UserError, match=r"unknown class 'pottet plant'; the nearest known name is 'potted plant'"):
        canonical_class_name("pottet plant", VOC_CLASSES)


def test_palette_is_vocs():
    palette = voc_palette()
    assert len(palette) == 768
    # From the development kit: background, aeroplane, bicycle, tv monitor, void.
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: tuple(palette[3 * label : 3 * label + 3]) for label in expected} == expected


def test_reads_what_lies_there(tiny_voc: Path):
    source = VOCSource(tiny_voc)
    image_id = source.ids("val")[1]
    image, mask = source.read_image(image_id), source.read_mask(image_id)
    with Image.open(source.image_path(image_id)) as picture:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(picture))
    with Image.open(source.mask_path(image_id)) as picture:
        assert np.array_equal(mask.numpy(), np.array(picture))
    assert image.dtype == mask.dtype == torch.uint8
    assert image.shape == (3, *mask.shape)


def test_grey_photographs_become_rgb(folder: Path):
    source = VOCSource(folder)
    path = source.image_path("val_000000")
    with Image.open(path) as picture:
        picture.convert("L").save(path)
    image = source.read_image("val_000000")
    assert image.shape[0] == 3 and torch.equal(image[0], image[2])


def test_masks_of_the_plain_folder_fill_in(folder: Path):
    source = VOCSource(folder)
    (folder / "SegmentationClass").mkdir()
    moved = folder / "SegmentationClass" / "val_000000.png"
    shutil.copy(source.mask_path("val_000000"), moved)
    assert source.mask_path("val_000000").parent.name == "SegmentationClassAug"
    before = source.read_mask("val_000000")
    source.mask_path("val_000000").unlink()
    assert source.mask_path("val_000000") == moved
    assert torch.equal(source.read_mask("val_000000"), before)


def test_splits_keep_their_order_and_blank_lines_do_not_count(folder: Path):
    (folder / "ImageSets/Segmentation/mine.txt").write_text("val_000003\n\n  val_000001\r\n")
    assert VOCSource(folder).ids("mine") == ["val_000003", "val_000001"]


def test_missing_folders_and_splits(folder: Path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        VOCSource(folder / "nowhere")
    with pytest.raises(UserError, match="has no JPEGImages"):
        VOCSource(folder / "ImageSets")
    (folder / "ImageSets/Segmentation/nothing.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        VOCSource(folder).ids("nothing")
    with pytest.raises(UserError, match=r"no split 'test'.* the splits there are: nothing, train_aug, val"):
        VOCSource(folder).ids("test")


def spoil(folder: Path, how: str) -> None:
    image, mask = folder / "JPEGImages/val_000000.jpg", folder / "SegmentationClassAug/val_000000.png"
    labels = np.array(Image.open(mask))
    if how == "truncated photograph":
        image.write_bytes(image.read_bytes()[:-300])
    elif how == "no photograph":
        image.unlink()
    elif how == "text for a photograph":
        image.write_text("not a picture")
    elif how == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:-60])
    elif how == "no mask":
        mask.unlink()
    elif how == "colour mask":
        Image.open(mask).convert("RGB").save(mask)
    elif how == "other size":
        Image.fromarray(labels[:-1]).save(mask)
    elif how == "wrong label":
        labels[3, 4] = 21
        Image.fromarray(labels).save(mask)
    elif how == "wrong high label":
        labels[3, 4] = 254
        Image.fromarray(labels).save(mask)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated photograph", "photograph .*val_000000.jpg cannot be read"),
        ("no photograph", "photograph .*val_000000.jpg is missing"),
        ("text for a photograph", "photograph .*val_000000.jpg cannot be read"),
        ("truncated mask", "mask .*val_000000.png cannot be read"),
        ("no mask", "mask .*val_000000.png is missing"),
        ("colour mask", "is of mode RGB"),
        ("other size", r"is 86x113 pixels, its photograph 86x114"),
        ("wrong label", "holds the label 21; labels are 0 to 20 and 255"),
        ("wrong high label", "holds the label 254"),
    ],
)
def test_spoilt_files_are_told_in_one_sentence(folder: Path, how: str, message: str):
    source = VOCSource(folder)
    spoil(folder, how)
    with pytest.raises(UserError, match=message) as error:
        source.read_image("val_000000")
        source.read_mask("val_000000")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "the mask a.png cannot be read: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "the mask a.png cannot be read: Input/output error"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "the mask a.png cannot be read, it is missing or no picture"),
        (OSError(errno.EINVAL, "Invalid argument"), "the mask a.png cannot be read, it is missing or no picture"),
        (OSError("image file is truncated"), "the mask a.png cannot be read, it is missing or no picture"),
        (SyntaxError("not a PNG file"), "the mask a.png cannot be read, it is missing or no picture"),
    ],
)
def test_the_reason_is_the_systems_where_it_has_one(error: Exception, sentence: str):
    assert str(unreadable("the mask a.png", error, "missing")) == sentence


def test_what_may_not_be_read_is_not_called_truncated(folder: Path, monkeypatch: pytest.MonkeyPatch):
    source = VOCSource(folder)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    for read in (source.read_image, source.read_mask, source.image_size):
        with pytest.raises(UserError, match=r"val_000000\.(jpg|png) cannot be read: Permission denied$"):
            read("val_000000")


def test_real_photographs_and_masks_fit(shared_dir: Path):
    source = VOCSource(shared_dir / "voc-mini")
    assert len(source.ids("train_aug")) == 1130
    for image_id in source.ids("val")[::20]:
        assert source.read_image(image_id).shape[1:] == source.read_mask(image_id).shape


def test_class_names_of_another_data_set(tiny_voc: Path, tmp_path: Path):
    folder = tmp_path / "data"
    shutil.copytree(tiny_voc, folder)
    names = folder / "classes.txt"
    names.write_text("red\n green \n\nblue\n")
    assert VOCSource(folder).class_names == ("red", "green", "blue")
    with pytest.raises(UserError, match="labels are 0 to 3 and 255"):
        for image_id in VOCSource(folder).ids("val"):
            VOCSource(folder).read_mask(image_id)
    for content, message in ((b"a\nb\na\n", "names 'a' twice"), (b"\n", "names 0 classes"), (b"\xff\xfe", "as text")):
        names.write_bytes(content)
        with pytest.raises(UserError, match=message):
            _ = VOCSource(folder).class_names
