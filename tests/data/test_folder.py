"""Folders of photographs: what is found in them, and how their tags, masks and lists are read."""

from __future__ import annotations

import json
import pickle
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fmwiss.config import Config, DataConfig
from fmwiss.data.folder import FolderSource
from fmwiss.data.protocols import Protocol
from fmwiss.data.source import open_source
from fmwiss.data.tags import TagIndex
from fmwiss.errors import UserError


def photograph(path: Path, size: tuple[int, int] = (12, 8), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 120, 40)).save(path, **options)  # type: ignore[arg-type]
    return path


def mask(path: Path, labels: Sequence[Sequence[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(labels, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.JPEG", "deep/er/c.png", "d.webp"):
        photograph(tmp_path / "images" / name)
    for name in ("images/.hidden.jpg", "images/notes.txt", "images/.cache/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no photograph")
    return tmp_path


def tags_of(source: FolderSource) -> dict[str, set[str]]:
    return {image_id: set(source.own_tags(image_id)) for image_id in source.ids("all")}


EXPECTED: Mapping[str, set[str]] = {"a": {"cat", "pallet jack"}, "b": {"dog"}, "deep/er/c": {"cat"}, "d": set()}


def test_photographs_are_found_in_sub_folders_and_by_every_kind_of_file(folder: Path) -> None:
    (folder / "tags.csv").write_text("file,tags\na.jpg,cat\n")
    source = FolderSource(folder)
    assert source.ids("all") == ["a", "b", "d", "deep/er/c"]
    for image_id in source.ids("all"):
        assert source.read_image(image_id).shape == (3, 8, 12) and source.image_size(image_id) == (8, 12)
    assert not source.has_mask("a") and source.mask_classes == ()
    assert pickle.loads(pickle.dumps(source)).ids("all") == source.ids("all")  # loader processes get copies


def test_tags_from_csv(folder: Path) -> None:
    (folder / "tags.csv").write_text(
        "\ufeffTags, File ,who\r\ncat; pallet jack ;,a.jpg,me\r\n\r\nDog,B.jpg,me\r\ncat,images\\deep\\er\\c.png,me\r\n"
        "dog,b,you\r\n,d.webp,me\r\ncat,gone.jpg,me\r\n",
        encoding="utf-8",
    )
    # B.jpg is not b.JPEG: capitals of suffixes differ between cameras, those of names between photographs
    source = FolderSource(folder)
    assert tags_of(source) == EXPECTED
    assert [line.partition(" is about ")[2] for line in source.absent] == [
        f"{name}, which is not in {folder / 'images'}" for name in ("B.jpg", "gone.jpg")
    ]
    assert source.class_names == ("cat", "dog", "pallet jack") and source.tagged("cat") == ["a", "deep/er/c"]


def test_tags_from_json_lines(folder: Path) -> None:
    rows = [
        {"file": "a.jpg", "tags": ["cat", " pallet jack"], "by": "me"},
        {"file": "b.jpg", "tags": ["dog", "dog"]},
        {"file": "c", "tags": ["cat"]},
        {"file": "d", "tags": []},
    ]
    (folder / "tags.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert tags_of(FolderSource(folder)) == EXPECTED


def test_tags_from_coco_are_the_categories_that_are_there(folder: Path) -> None:
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "pallet jack"}]
    images = [{"id": n, "file_name": name} for n, name in enumerate(("a.jpg", "b.jpeg", "deep/er/c.png", "d.webp"))]
    pairs = [(0, 7), (0, 9), (0, 7), (1, 3), (2, 7)]
    annotations = [{"id": n, "image_id": image, "category_id": c} for n, (image, c) in enumerate(pairs)]
    content = json.dumps({"images": images, "categories": categories, "annotations": annotations})
    (folder / "instances.json").write_text(content)
    assert tags_of(FolderSource(folder)) == EXPECTED


def test_tags_from_sub_folders(tmp_path: Path) -> None:
    for name in ("images/cat/1.jpg", "images/pallet jack/new/2.jpg", "images/3.jpg"):
        photograph(tmp_path / name)
    source = FolderSource(tmp_path)
    assert tags_of(source) == {"cat/1": {"cat"}, "pallet jack/new/2": {"pallet jack"}, "3": set()}
    # the same photographs without images/, and no tags where a file tells them
    assert tags_of(FolderSource(tmp_path / "images")) == tags_of(source)
    (tmp_path / "tags.csv").write_text("file,tags\n1.jpg,dog\n")
    assert tags_of(FolderSource(tmp_path)) == {"cat/1": {"dog"}, "pallet jack/new/2": set(), "3": set()}


def test_accents_may_be_written_in_two_ways(tmp_path: Path) -> None:
    one, two = "K\u00e4fer", "Ka\u0308fer"  # one character, or a letter and an accent, as in names from some systems
    photograph(tmp_path / "images" / f"{two}.jpg")
    mask(tmp_path / "masks" / f"{one}.png", [[1] * 12] * 8)
    (tmp_path / "classes.txt").write_text(f"{two}\n", encoding="utf-8")
    (tmp_path / "tags.csv").write_text(f"file,tags\n{one}.jpg,{one};owl\n", encoding="utf-8")
    source = FolderSource(tmp_path)
    assert source.ids("all") == [one] and source.has_mask(one) and source.read_mask(one).all()
    assert source.class_names == (two, "owl") and source.own_tags(one) == {two, "owl"} and not source.absent


def test_the_sub_folder_of_a_photograph_with_a_mask_is_no_tag(folder: Path) -> None:
    mask(folder / "masks/deep/er/c.png", [[1] * 12] * 8)
    photograph(folder / "images/forklift/e.jpg")
    (folder / "classes.txt").write_text("cat\n")
    source = FolderSource(folder)
    assert source.class_names == ("cat", "forklift") and source.own_tags("deep/er/c") == frozenset()


def test_photographs_and_tags_may_lie_apart(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text(f"file,tags\nimages/a.jpg,cat\n{(folder / 'images').resolve()}/b.JPEG,dog\n")
    for source in (FolderSource(folder / "images", tags=elsewhere), FolderSource(folder, tags=elsewhere)):
        assert source.tagged("cat") == ["a"] and source.tagged("dog") == ["b"]
    assert FolderSource(tmp_path, images=folder / "images", tags=elsewhere).tagged("dog") == ["b"]


def test_tags_may_be_written_as_seen_from_any_folder_above(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = FolderSource(folder).photographs.paths
    monkeypatch.chdir(folder.parent)
    beginnings = ("images/", f"{folder.name}/images/", f"./{folder.name}/images/", f"{folder.resolve()}/images/")
    names = [path.relative_to(folder / "images") for path in paths.values()]
    rows = [f"{beginning}{name},owl" for beginning, name in zip(beginnings, names, strict=True)]
    (tmp_path / "others.csv").write_text("file,tags\n" + "\n".join(rows) + "\n")
    source = FolderSource(Path(folder.name), tags=tmp_path / "others.csv")
    assert source.tagged("owl") == list(paths) and not source.absent
    assert source.photographs.find(f"elsewhere/images/{names[0]}") is None


def test_spellings_are_one_class_spelt_as_the_masks_class(folder: Path) -> None:
    mask(folder / "masks/a.png", [[0] * 12] * 7 + [[1] * 12])
    (folder / "classes.txt").write_text("Pallet-Jack\n")
    (folder / "tags.csv").write_text("file,tags\nb,pallet_jack;fork lift\nd,Fork-Lift\n")
    source = FolderSource(folder)
    assert source.class_names == ("Pallet-Jack", "fork lift")
    assert source.own_tags("b") == {"Pallet-Jack", "fork lift"} and source.tagged("fork lift") == ["b", "d"]


@pytest.mark.parametrize("head", ["background\n", "__background__\n", "\ufeff", ""])
def test_masks_and_both_ways_to_name_their_classes(folder: Path, head: str, tmp_path: Path) -> None:
    (folder / "classes.txt").write_text(f"{head}cat\n\n dog \n", encoding="utf-8")
    labels = torch.zeros(8, 12, dtype=torch.uint8)
    labels[2:4], labels[5], labels[7] = 2, 255, 1
    mask(folder / "masks/deep/er/c.png", labels.tolist())
    mask(folder / "masks/a.png", [[0] * 11 + [255]] * 7 + [[2] * 12])
    (folder / "tags.csv").write_text("file,tags\nb,owl\na,owl\n")
    source = FolderSource(folder)
    assert torch.equal(source.read_mask("deep/er/c"), labels) and not source.has_mask("b")
    assert source.mask_classes == ("cat", "dog") and source.class_names == ("cat", "dog", "owl")
    # what masks and tags tell adds up, and only masks are kept in the index
    tags = TagIndex.load_or_build(source, source.ids("all"), "masks", tmp_path / "index.json")
    assert dict(tags) == {"a": {"dog", "owl"}, "b": {"owl"}, "d": frozenset(), "deep/er/c": {"cat", "dog"}}
    assert json.loads((tmp_path / "index.json").read_text())["tags"] == {"a": ["dog"], "deep/er/c": ["cat", "dog"]}
    table = Protocol((("dog",), ("owl",))).label_table(1, source.class_names)
    assert table[labels.long()].unique().tolist() == [0, 1, 255] and table[3] == 2


def test_a_class_beyond_the_labels_of_masks_can_be_learnt(folder: Path) -> None:
    (folder / "tags.csv").write_text("file,tags\na," + ";".join(f"thing {n:03d}" for n in range(300)) + "\n")
    source = FolderSource(folder)
    table = Protocol((("thing 254",), ("thing 299",))).label_table(1, source.class_names)
    assert table.tolist() == [0] * 255 + [255]


def test_photographs_and_their_masks_are_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(folder / "images/a.jpg", exif=exif)
    (folder / "classes.txt").write_text("cat\n")
    mask(folder / "masks/a.png", [[1] * 8] * 12)
    source = FolderSource(folder)
    assert source.read_image("a").shape == (3, 12, 8) and source.image_size("a") == (12, 8)
    assert source.read_mask("a").shape == (12, 8)
    mask(folder / "masks/a.png", [[1] * 12] * 8)
    with pytest.raises(UserError, match=r"is 12x8 pixels, its photograph, turned as its EXIF .* 8x12; they must be"):
        source.read_mask("a")


def with_masks(folder: Path, count: int) -> FolderSource:
    (folder / "classes.txt").write_text("cat\n")
    for number in range(count):
        photograph(folder / f"images/{number:03d}.png")
        mask(folder / f"masks/{number:03d}.png", [[1] * 12] * 8)
    return FolderSource(folder)


def test_a_fifth_of_the_photographs_with_masks_is_for_validation(folder: Path) -> None:
    source = with_masks(folder, 20)
    validation, training = source.ids("val"), source.ids("train")
    assert len(validation) == 4 and all(source.has_mask(image_id) for image_id in validation)
    assert sorted(validation + training) == source.ids("all") and {"a", "b"} <= set(training)
    assert FolderSource(folder).ids("val") == validation
    more = set(with_masks(folder, 40).ids("val"))  # more photographs move few of the others
    assert len(more) == 8 and len(set(validation) - more) <= 2


def test_lists_of_ones_own(folder: Path) -> None:
    source = with_masks(folder, 4)
    (folder / "splits").mkdir()
    (folder / "splits/train.txt").write_text("000.png\nimages/a.jpg\n\n001\n")
    assert source.ids("train") == ["000", "a", "001"] and source.ids("val") == ["002", "003"]
    (folder / "splits/val.txt").write_text("003\n")
    (folder / "splits/mine.txt").write_text("b\n")
    assert source.ids("val") == ["003"] and source.ids("mine") == ["b"]
    (folder / "splits/train.txt").unlink()
    assert source.ids("train") == [image_id for image_id in source.ids("all") if image_id != "003"]
    with pytest.raises(UserError, match=r"no list 'vall' \(did you mean 'val'\?\); there are all, mine, train, val"):
        source.ids("vall")


def test_without_masks_everything_is_for_training(folder: Path) -> None:
    source = FolderSource(folder)
    assert source.ids("train") == source.ids("all")
    with pytest.raises(UserError, match="has 0 photographs with masks, too few to compare"):
        source.ids("val")


def test_the_experiment_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    found = re.search(r"^    data:\n      source: folder\n(    .*\n)+", page, re.MULTILINE)
    assert found is not None
    config = Config.model_validate(yaml.safe_load(textwrap.dedent(found[0])))
    assert config.data.source == "folder" and config.protocol.steps[1] == ["forklift", "pallet jack"]


def test_the_experiment_file_chooses_the_source(folder: Path, tiny_voc: Path) -> None:
    (folder / "tags.csv").write_text("file,tags\na,cat\n")
    (folder / "more.csv").write_text("file,tags\na,dog\n")
    opened = open_source(DataConfig(source="folder"), folder)
    assert opened.own_tags("a") == {"cat"}
    opened = open_source(DataConfig(source="folder", tags=str(folder / "more.csv")), folder)
    assert opened.own_tags("a") == {"dog"}
    assert open_source(DataConfig(), tiny_voc).ids("val")[0] == "val_000000"
    assert DataConfig(source="coco").train_split == "train" and DataConfig().train_split == "train_aug"
    assert DataConfig(source="folder", train_split="mine").train_split == "mine"
    with pytest.raises(UserError, match=r"only data.source 'voc' has"):
        open_source(DataConfig(source="folder", tags="xml"), folder)
