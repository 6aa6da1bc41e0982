import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coco_miniature import (
    ARCHIVES,
    STEP0,
    TRAIN,
    VAL,
    serve,
    write_archives,
)
from fmwiss.config import DataConfig, ProtocolConfig
from fmwiss.data.coco_stuff import (
    COCO_CATEGORIES,
    COCO_OF_VOC,
    COCO_TO_VOC_CLASSES,
    CocoSource,
    CocoToVOCSource,
)
from fmwiss.data.protocols import Protocol
from fmwiss.data.published import prepare
from fmwiss.data.source import open_source
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOC_CLASSES
from fmwiss.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``coco`` and ``voc`` as the commands make them of the downloads' miniature."""
    folder = tmp_path_factory.mktemp("data")
    write_archives(folder / "archives")
    with serve(folder / "archives") as server:
        for name in ARCHIVES:
            prepare(name, folder, lambda _: None, mirror=server.url, verify=False)
    return folder


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def test_there_are_80_classes_of_which_voc_has_20() -> None:
    assert len(COCO_CATEGORIES) == 80 and sorted(COCO_CATEGORIES) == list(COCO_CATEGORIES)
    assert set(range(1, 91)) - set(COCO_CATEGORIES) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    # the published mapping, and what the two call the classes
    spelt = {
        "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tv monitor": "tv"
    }
    assert [COCO_CATEGORIES[category] for category in COCO_OF_VOC] == [spelt.get(name, name) for name in VOC_CLASSES]
    assert len(set(COCO_TO_VOC_CLASSES)) == 80 and COCO_TO_VOC_CLASSES[60:] == VOC_CLASSES
    assert COCO_TO_VOC_CLASSES[:3] == ("truck", "traffic light", "fire hydrant")


def test_things_maps(data: Path) -> None:
    source = CocoSource(data / "coco")
    assert source.ids("train") == sorted(f"train2017/{i:012d}" for i in TRAIN) == source.ids("train2017")
    assert len(source.ids("val")) == len(VAL)
    mask = source.read_mask("train2017/000000000049")  # truck and person
    assert mask.dtype == torch.uint8 and mask.shape == (48, 64)
    assert source.read_image("train2017/000000000049").shape == (3, 48, 64)
    names = list(COCO_CATEGORIES.values())
    assert set(mask.unique().tolist()) == {0, 1 + names.index("truck"), 1 + names.index("person"), 255}
    assert mask[20, 10] == 1 + names.index("truck") and mask[20, 45] == 1 + names.index("person")
    assert mask[45, 10] == 0 and mask[0, 0] == 255  # stuff, unlabelled
    assert source.classes_in_mask("train2017/000000000049") == ["person", "truck"]
    assert source.classes_in_mask("train2017/000000000064") == []


def test_outlines_and_maps_say_the_same(data: Path) -> None:
    maps, outlines = CocoSource(data / "coco"), CocoSource(data / "coco", masks="instances")
    assert maps.ids("train") == outlines.ids("train")
    for image_id in maps.ids("train"):
        mask = maps.read_mask(image_id)
        assert torch.equal(outlines.read_mask(image_id)[4:], mask[4:])  # but for the unlabelled strip
        by_tags = CocoSource(data / "coco", tags="instances").classes_in_mask(image_id)
        assert by_tags == maps.classes_in_mask(image_id) == outlines.classes_in_mask(image_id)


def test_tags_of_another_origin_are_not_mixed(data: Path, tmp_path: Path) -> None:
    source = CocoSource(data / "coco")
    first = TagIndex.load_or_build(source, source.ids("val"), "masks", tmp_path / "tags.json")
    assert first["val2017/000000000139"] == {"truck", "person"}
    cached = json.loads((tmp_path / "tags.json").read_text())
    assert cached["origin"] == "COCO maps"
    other = CocoSource(data / "coco", tags="instances")
    TagIndex.load_or_build(other, other.ids("val"), "instances", tmp_path / "tags.json")
    assert json.loads((tmp_path / "tags.json").read_text())["origin"] == "COCO instances"


def test_coco_to_voc_selects_by_the_published_rule(data: Path) -> None:
    options = DataConfig(source="coco-to-voc", train_split="train", val_split="coco-val")
    source = open_source(options, data)
    assert isinstance(source, CocoToVOCSource)
    protocol = Protocol.from_config(ProtocolConfig(steps="coco-to-voc", setting="disjoint"), source.class_names)
    assert [len(step) for step in protocol.steps] == [60, 20]
    ids = source.ids("train")
    tags = {image_id: frozenset(source.classes_in_mask(image_id)) for image_id in ids}
    assert protocol.select(0, tags, source.of_step(0, ids)) == [f"coco/train2017/{i:012d}" for i in STEP0]
    step1 = protocol.select(1, tags, source.of_step(1, ids))
    assert step1 == [f"voc/{image_id}" for image_id in source.voc.ids("train_aug")]  # all of them, and none of COCO's


def test_labels_of_both_are_one_order(data: Path) -> None:
    source = CocoToVOCSource(data)
    person, car, truck = (1 + COCO_TO_VOC_CLASSES.index(name) for name in ("person", "car", "truck"))
    assert set(source.read_mask("coco/train2017/000000000049").unique().tolist()) == {0, truck, person, 255}
    assert set(source.read_mask("voc/2007_000032").unique().tolist()) == {0, person, car, 255}
    assert source.classes_in_mask("voc/2007_000032") == ["car", "person"]
    assert source.ids("voc-val") == ["voc/2007_000033", "voc/2007_000042"]
    assert [i for i in source.ids("coco-val") if not i.startswith("coco/val2017/")] == []
    assert source.image_path("voc/2007_000032").is_file() and source.mask_path("coco/val2017/000000000139").is_file()
    assert source.image_size("voc/2007_000032") == (48, 64)
    instances = CocoToVOCSource(data, masks="instances")
    assert torch.equal(
        instances.read_mask("coco/train2017/000000000049")[4:], source.read_mask("coco/train2017/000000000049")[4:]
    )


def _spoil_map(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


BAD: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no coco": ({}, lambda d: shutil.rmtree(d / "coco"), "has no folder coco"),
    "no voc": ({}, lambda d: shutil.rmtree(d / "voc"), "has no folder voc"),
    "no maps": ({}, lambda d: shutil.rmtree(d / "coco/stuffthingmaps"), "'fmwiss data coco-stuff' makes it"),
    "no images": ({}, lambda d: shutil.rmtree(d / "coco/images"), "'fmwiss data coco' makes it"),
    "no annotations": (
        {"tags": "instances"}, lambda d: shutil.rmtree(d / "coco/annotations"), "has no folder annotations"
    ),
    "tags": ({"tags": "xml"}, lambda d: None, "data.tags is 'xml'"),
    "list": ({"split": "coco-test"}, lambda d: None, "has no photographs 'test'"),
    "strange list": ({"split": "val"}, lambda d: None, "COCO-to-VOC has no list 'val'"),
    "missing map": ({}, lambda d: (d / "coco/stuffthingmaps/train2017/000000000009.png").unlink(), ""),
    "size": (
        {},
        lambda d: _spoil_map(d / "coco/stuffthingmaps/train2017/000000000009.png", np.zeros((4, 4), np.uint8)),
        "is 4x4 pixels, its photograph 64x48",
    ),
    "label": (
        {},
        lambda d: _spoil_map(d / "coco/stuffthingmaps/train2017/000000000009.png", np.full((48, 64), 200, np.uint8)),
        "holds the label 200; labels are 0 to 181 and 255",
    ),
    "colours": (
        {},
        lambda d: _spoil_map(d / "coco/stuffthingmaps/train2017/000000000009.png", np.zeros((48, 64, 3), np.uint8)),
        "is of mode RGB",
    ),
    "broken map": (
        {}, lambda d: (d / "coco/stuffthingmaps/train2017/000000000009.png").write_bytes(b"x"), "cannot be read"
    ),
    "broken photograph": (
        {}, lambda d: (d / "coco/images/train2017/000000000009.jpg").write_bytes(b"x"), "cannot be read"
    ),
    "other classes": ({}, lambda d: (d / "voc/classes.txt").write_text("a\nb\n"), "names other classes than VOC's"),
    "other categories": (
        {"tags": "instances"},
        lambda d: (d / "coco/annotations/instances_train2017.json").write_text(
            json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
        ),
        "calls category 1 'cat', and in COCO it is 'person'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_sentence(name: str, copied: Path) -> None:
    options, spoil, sentence = BAD[name]
    spoil(copied)
    if name == "missing map":  # a list is what maps there are
        assert len(CocoToVOCSource(copied).ids("coco-train")) == len(TRAIN) - 1
        return
    with pytest.raises(UserError) as raised:
        source = CocoToVOCSource(copied, tags=options.get("tags", "masks"))
        source.ids(options.get("split", "train"))
        source.classes_in_mask("coco/train2017/000000000009")
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_the_split_needs_its_source() -> None:
    with pytest.raises(UserError, match="'coco-to-voc' needs"):
        Protocol.from_config(ProtocolConfig(steps="coco-to-voc"), tuple(COCO_CATEGORIES.values()))


def test_step_1_has_all_of_vocs_published_photographs(shared_dir: Path) -> None:
    folder = shared_dir / "protocols" / "voc"
    if not folder.is_dir():
        pytest.skip(f"the published lists are not at {folder}")
    ids = (folder / "train_aug.txt").read_text().split()
    labels = json.loads((folder / "image_labels.json").read_text())
    tags = {image_id: frozenset(VOC_CLASSES[label - 1] for label in labels[image_id]) for image_id in ids}
    protocol = Protocol.from_config(ProtocolConfig(steps="coco-to-voc", setting="disjoint"), COCO_TO_VOC_CLASSES)
    assert protocol.select(1, tags, ids) == ids and len(ids) == 10_582
    assert protocol.select(0, tags, ids) == []
