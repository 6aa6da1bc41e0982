import json
import shutil
from pathlib import Path

import pytest

from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError


@pytest.fixture
def source(tiny_voc: Path, tmp_path: Path) -> VOCSource:
    return VOCSource(shutil.copytree(tiny_voc, tmp_path / "voc"))


def truth(source: VOCSource, image_id: str) -> set[str]:
    return {VOC_CLASSES[label - 1] for label in source.read_mask(image_id).unique().tolist() if label not in (0, 255)}


def write_xml(source: VOCSource, image_id: str, *names: str) -> None:
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>" for name in names
    )
    source.xml_path(image_id).parent.mkdir(exist_ok=True)
    source.xml_path(image_id).write_text(f"<annotation><filename>x.jpg</filename>{objects}</annotation>")


def test_tags_are_the_classes_in_the_masks(source: VOCSource, tmp_path: Path):
    ids = source.ids("train_aug")
    tags = TagIndex.load_or_build(source, ids, "masks", tmp_path / "new folder" / "tags.json")
    assert list(tags) == ids
    assert {image_id: set(names) for image_id, names in tags.items()} == {i: truth(source, i) for i in ids}
    assert any(len(names) == 2 for names in tags.values())


def test_with_an_index_no_mask_is_needed_and_new_ids_are_added(source: VOCSource, tmp_path: Path):
    cache, ids = tmp_path / "tags.json", source.ids("train_aug")
    first = TagIndex.load_or_build(source, ids[:5], "masks", cache)
    for image_id in ids[:5]:
        source.mask_path(image_id).unlink()
    everything = TagIndex.load_or_build(source, ids, "masks", cache)
    assert {i: everything[i] for i in ids[:5]} == dict(first)
    shutil.rmtree(source.root / "SegmentationClassAug")
    written = cache.stat().st_mtime_ns
    assert TagIndex.load_or_build(source, ids, "masks", cache) == everything
    # A subset comes alone, and a complete index is not written again.
    assert list(TagIndex.load_or_build(source, ids[3:4], "masks", cache)) == ids[3:4]
    assert cache.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["tags.json"]


def test_tags_from_xml_are_the_objects_without_their_parts(source: VOCSource, tmp_path: Path):
    write_xml(source, "val_000000", "diningtable", "person", "person")
    write_xml(source, "val_000001")
    tags = TagIndex.load_or_build(source, ["val_000000", "val_000001"], "xml", tmp_path / "tags.json")
    assert dict(tags) == {"val_000000": {"dining table", "person"}, "val_000001": frozenset()}


def test_an_index_of_another_origin_is_not_used(source: VOCSource, tmp_path: Path):
    cache = tmp_path / "tags.json"
    TagIndex.load_or_build(source, ["val_000000"], "masks", cache)
    write_xml(source, "val_000000", "cow")
    assert TagIndex.load_or_build(source, ["val_000000"], "xml", cache)["val_000000"] == {"cow"}
    assert TagIndex.load_or_build(source, ["val_000000"], "masks", cache)["val_000000"] == truth(source, "val_000000")


def test_tags_from_a_table(source: VOCSource, tmp_path: Path):
    table = tmp_path / "tags.csv"
    table.write_text('file,tags,by\nval_000000.jpg,"TVmonitor; sheep",me\nval_000001,,me\nval_000002.jpg,cow,you\n')
    tags = TagIndex.load_or_build(source, ["val_000001", "val_000000"], str(table), tmp_path / "tags.json")
    assert dict(tags) == {"val_000001": frozenset(), "val_000000": {"tv monitor", "sheep"}}
    table.write_text("file,tags\nval_000001,dog\nval_000001.jpg,cat;dog\n")  # one row an object, say
    tags = TagIndex.load_or_build(source, ["val_000001"], str(table), tmp_path / "tags.json")
    assert tags["val_000001"] == {"dog", "cat"}
    # The table is the index: when it changes the tags do.
    table.write_text("file,tags\nval_000001,dog\n")
    assert TagIndex.load_or_build(source, ["val_000001"], str(table), tmp_path / "tags.json")["val_000001"] == {"dog"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,tags\nval_000000.jpg,shep\n", r"unknown class 'shep'; the nearest .* is 'sheep' \(in .*tags.csv"),
        ("file,tags\nval_000001.jpg,sheep\n", "has no row for the photograph val_000000"),
        ("name;tags\n", "must have the columns 'file' and 'tags'"),
        ("", "must have the columns 'file' and 'tags'"),
        ("tags,file\nsheep\n", "has a row without a file"),
        ("file,tags\nval_000000.jpg,Schäferhund\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_wrong_tables(source: VOCSource, tmp_path: Path, text: str, message: str):
    (tmp_path / "tags.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        TagIndex.load_or_build(source, ["val_000000"], str(tmp_path / "tags.csv"), tmp_path / "tags.json")


def test_wrong_origins(source: VOCSource, tmp_path: Path):
    cache = tmp_path / "tags.json"
    with pytest.raises(UserError, match=r"mask does not exist; data.tags is 'masks', 'xml' or"):
        TagIndex.load_or_build(source, ["val_000000"], "mask", cache)
    with pytest.raises(UserError, match=r"annotation .*val_000000.xml is missing"):
        TagIndex.load_or_build(source, ["val_000000"], "xml", cache)
    write_xml(source, "val_000000", "cow</name>")
    with pytest.raises(UserError, match="not well-formed"):
        TagIndex.load_or_build(source, ["val_000000"], "xml", cache)
    assert not cache.exists()


@pytest.mark.parametrize("content", ['{"tags": ', "[]", '{"origin": "masks"}', '{"tags": {"a": 3}}'])
def test_a_spoilt_index_is_told(source: VOCSource, tmp_path: Path, content: str):
    cache = tmp_path / "tags.json"
    cache.write_text(content)
    with pytest.raises(UserError, match=r"index of tags .*tags.json cannot be read; remove it"):
        TagIndex.load_or_build(source, ["val_000000"], "masks", cache)


def test_real_masks_give_the_published_class_sets(shared_dir: Path, tmp_path: Path):
    source = VOCSource(shared_dir / "voc-mini")
    published = json.loads((shared_dir / "protocols/voc/image_labels.json").read_text())
    ids = source.ids("val")
    tags = TagIndex.load_or_build(source, ids, "masks", tmp_path / "tags.json")
    assert tags == {image_id: {VOC_CLASSES[label - 1] for label in published[image_id]} for image_id in ids}
    per_class = [sum(name in names for names in tags.values()) for name in VOC_CLASSES]
    assert per_class == [11, 17, 18, 11, 21, 11, 26, 19, 24, 10, 12, 29, 13, 17, 76, 14, 9, 17, 15, 11]
