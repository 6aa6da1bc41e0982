"""What ``fmwiss data check`` finds beyond what breaks training, for which see tests/test_bad_data.py."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from fmwiss import cli
from fmwiss.data.check import NEAR, Check, check_data, layout_of, near_duplicates, perceptual_hash, similar_names
from fmwiss.data.emoji import EmojiSeg
from fmwiss.errors import UserError


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def scene(number: int, size: int = 160) -> Image.Image:
    return as_picture(EmojiSeg(size=size).read_image(f"train_{number:06d}"))


def distance(first: Image.Image, second: Image.Image) -> int:
    bits = [perceptual_hash(as_tensor(picture)) for picture in (first, second)]
    assert bits[0] is not None and bits[1] is not None
    return int(np.unpackbits(bits[0] ^ bits[1]).sum())


def test_the_hash_is_the_brightness_of_neighbours() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    image = torch.from_numpy(grey.repeat(5, 0).repeat(7, 1)).expand(3, -1, -1)
    expected = [bool(grey[y, x + 1] > grey[y, x]) for y in range(8) for x in range(8)]
    expected += [bool(grey[y + 1, x] > grey[y, x]) for y in range(8) for x in range(8)]
    bits = perceptual_hash(image)
    assert bits is not None and np.unpackbits(bits).astype(bool).tolist() == expected
    assert perceptual_hash(torch.full((3, 40, 40), 90, dtype=torch.uint8)) is None


def test_changed_copies_look_the_same_and_other_photographs_do_not() -> None:
    pictures = [scene(number) for number in range(12)]
    for picture in pictures[:4]:
        jpeg = io.BytesIO()
        picture.save(jpeg, format="JPEG", quality=40)
        half = picture.resize((picture.width // 2, picture.height // 2))
        copies = [Image.open(jpeg), half, ImageEnhance.Brightness(picture).enhance(0.8)]
        assert all(distance(picture, copy) <= NEAR for copy in copies), [distance(picture, copy) for copy in copies]
    others = [distance(a, b) for place, a in enumerate(pictures) for b in pictures[:place]]
    assert min(others) > NEAR + 8, min(others)


def test_groups_of_near_duplicates_are_those_of_all_pairs() -> None:
    draws = np.random.default_rng(1)
    bits = {f"{n}": np.packbits(draws.random(128) < 0.5) for n in range(20)}
    for copy, original, flips in (("x", "3", NEAR), ("y", "x", 5), ("z", "7", NEAR + 1)):  # z is one bit too far
        changed = np.unpackbits(bits[original])
        changed[draws.permutation(128)[:flips]] ^= 1
        bits[copy] = np.packbits(changed)
    assert near_duplicates(bits) == [["3", "x", "y"]] and near_duplicates({"3": bits["3"]}) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["forklift", "fork lifts"], [("forklift", "fork lifts", "are singular and plural")]),
        (["box", "boxes", "berry", "berries"],
         [("berry", "berries", "are singular and plural"), ("box", "boxes", "are singular and plural")]),
        (["forklift", "forklfit"], [("forklfit", "forklift", "differ by a letter")]),
        (["pallet jack", "palet jack"], [("palet jack", "pallet jack", "differ by a letter")]),
        (["forklift", "forkliff"], [("forkliff", "forklift", "differ by a letter")]),
        (["cat", "car", "cow", "bus", "glass", "class", "aeroplane", "horse", "person"],
         [("class", "glass", "differ by a letter")]),
    ],
)
def test_names_that_may_be_one(names: list[str], expected: list[tuple[str, str, str]]) -> None:
    found = {(frozenset(pair), why) for *pair, why in similar_names(names)}
    assert found == {(frozenset(pair), why) for *pair, why in expected}


def write(root: Path, *numbers: int) -> None:
    (root / "images").mkdir(parents=True)
    for number in numbers:
        scene(number).save(root / f"images/{number}.png")


def kinds(check: Check) -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for finding in check.findings:
        found.setdefault(finding.kind, []).append(finding.photographs)
    return found


def test_what_is_worth_a_look_is_told_and_breaks_nothing(tmp_path: Path) -> None:
    write(tmp_path, *range(8))
    shutil.copy(tmp_path / "images/0.png", tmp_path / "images/copy.png")
    for name in ("x.HEIC", "sub/y.tiff", "notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    scene(1).save(tmp_path / "images/near.jpg", quality=60)
    scene(30).resize((60, 80)).save(tmp_path / "images/small.png")
    scene(31).resize((1000, 100)).save(tmp_path / "images/long.png")
    rows = ["0,cat", "copy,dog", "1,cat", "near,cat", "2,cats", "3,cat", "4,", "6,fork-lift"]
    rows += ["7,Fork lift;cat", "9,cat", "small,dog", "long,dog"]
    (tmp_path / "tags.csv").write_text("\n".join(["file,tags", *rows]))
    check = check_data(tmp_path)
    assert not check.errors and check.layout == "folder" and len(check.photographs) == 12
    found = kinds(check)
    assert found["duplicate"] == [("0", "copy")] and found["near-duplicate"] == [("1", "near")]
    assert set(found["size"]) == {("small",), ("long",)}
    assert found["files without tags"] == [("5",)] and found["empty tags"] == [("4",)]
    assert found["tags seen once"] == [("2",)]
    messages = {finding.kind: finding.message for finding in check.findings}
    assert messages["duplicate"] == "the same file 2 times, with different tags"
    assert messages["near-duplicate"] == "2 photographs that look the same"
    assert messages["spellings"] == "'fork-lift', 'Fork lift' are taken as the same class"
    assert messages["similar names"].startswith("'cat' (5) and 'cats' (1) are singular and plural")
    assert "9, which is not in" in messages["tags without files"]
    assert "2 pictures of kinds that are not read: sub/y.tiff, x.HEIC; save" in messages["other pictures"]
    assert check.classes == {"cat": (5, 0), "cats": (1, 0), "dog": (3, 0), "fork-lift": (2, 0)}
    assert set(found) == {
        "duplicate", "near-duplicate", "size", "files without tags", "empty tags", "tags seen once", "spellings",
        "similar names", "tags without files", "list", "other pictures",
    }


def test_masks_without_photographs_unseen_classes_and_leaks(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3)
    shutil.copy(tmp_path / "images/0.png", tmp_path / "images/copy.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    for number, label in (("0", 1), ("1", 2), ("2", 2), ("3", 1), ("copy", 1), ("gone", 1)):
        size = Image.open(tmp_path / "images/0.png").size if number in ("copy", "gone") else None
        size = size or Image.open(tmp_path / f"images/{number}.png").size
        Image.new("L", size, label).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("0\n1\n2\n")
    (tmp_path / "splits/val.txt").write_text("copy\n2\n3\n")
    check = check_data(tmp_path)
    messages = sorted(finding.message for finding in check.warnings)
    assert messages == [
        "1 class that no mask shows: owl",
        "1 mask without a photograph: gone",
        "1 photograph both in the list train and in val",
        "the same file 2 times, in the list train and in val",
    ]
    assert not check.errors and check.classes == {"cat": (0, 3), "dog": (0, 2)} and check.masks == 5


def test_vocs_layout(tiny_voc: Path, tmp_path: Path) -> None:
    assert layout_of(tiny_voc) == "voc"
    check = check_data(tiny_voc)
    assert not check.errors and len(check.photographs) == check.masks == 24
    assert sum(count for _, count in check.classes.values()) > 24 and check.classes["sheep"][1] > 2
    table = tmp_path / "table.csv"
    table.write_text("file,tags\n" + "".join(f"{image_id}.jpg,cow;sheep\n" for image_id in check.photographs))
    assert check_data(tiny_voc, tags=table).classes["sheep"][0] == 24
    table.write_text("file,tags\nval_000000.jpg,shep\n")
    assert "unknown class 'shep'" in check_data(tiny_voc, tags=table).errors[0].message
    spoilt = tmp_path / "voc"
    shutil.copytree(tiny_voc, spoilt)
    (spoilt / "SegmentationClassAug/val_000001.png").unlink()
    (spoilt / "JPEGImages/val_000002.jpg").write_bytes(b"")
    errors = {finding.kind: finding.message for finding in check_data(spoilt).errors}
    assert "val_000001.png is missing" in errors["mask"] and "val_000002.jpg cannot be read" in errors["unreadable"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a folder of photographs"):
        check_data(tmp_path / "nowhere")


def test_the_command_draws_the_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "my photographs", 0, 1, 2)
    (tmp_path / "my photographs/tags.csv").write_text("file,tags\n0,cat\n1,cat\n2,dog;cat\n")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["data", "check", "my photographs"]) == 0
    out, err = capfd.readouterr()
    assert "3 photographs, 0 with masks, 3 with tags" in out and "tags seen once: 1 tag of one photograph" in out
    assert "drawn in my photographs-check.png" in err
    with Image.open("my photographs-check.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # four rows, of a warning, cat, dog: the first row of cat has three tiles, in the order of the ids
    assert pixels.shape[1] > 900 and (pixels != 255).any()
    assert cli.run(["data", "check", "my photographs", "--json", "--picture", "sub/x.png"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["classes"] == {"cat": {"tags": 3, "masks": 0}, "dog": {"tags": 1, "masks": 0}}
    assert found["picture"] == "sub/x.png" and Path("sub/x.png").is_file()
    assert cli.run(["data", "check", "my photographs", "--picture", "sub"]) == 2
    assert "--picture sub is a folder" in capfd.readouterr().err
