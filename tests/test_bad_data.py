"""Malformed folders of photographs: each is told in one sentence that says what, where, and what would be right."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fmwiss import cli


class Folder:
    """A data set with nothing wrong: each case breaks one thing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for number in range(6):
            self.photograph(f"images/{number}.jpg", number)
            if number < 4:
                self.mask(f"masks/{number}.png", np.full((66, 80), number % 3, np.uint8))
        self.write("classes.txt", "background\ncat\ndog\n")
        self.write("tags.csv", "file,tags\n4.jpg,owl\n5.jpg,owl;cat\n")

    def photograph(self, name: str, seed: int = 0, size: tuple[int, int] = (80, 66)) -> Path:
        draws = np.random.default_rng(seed)
        coarse = Image.fromarray(draws.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    def mask(self, name: str, labels: Any, mode: str | None = None) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.asarray(labels))
        (picture if mode is None else picture.convert(mode)).save(path)

    def write(self, name: str, content: str | bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def remove(self, *names: str) -> None:
        for name in names:
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def lines(self, *lines: str) -> None:
        """tags.jsonl in place of the table."""
        self.remove("tags.csv")
        self.write("tags.jsonl", "".join(f"{line}\n" for line in lines))

    def coco(self, content: Any = None, **changes: Any) -> None:
        """Masks as outlines; ``changes`` replace parts of a right file."""
        self.remove("masks", "classes.txt")
        right = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "height": 66, "width": 80} for n in range(4)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1 + n % 2, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
                for n in range(4)
            ],
        }
        text = content if isinstance(content, str) else json.dumps({**right, **changes})
        self.write("annotations/instances_all.json", text)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


CHECKED: dict[str, tuple[Callable[[Folder], object], str]] = {
    "no photographs": (
        lambda f: f.remove("images"), "{root} holds no photograph; put JPEG, PNG or WebP files into it"),
    "photographs of another kind": (
        lambda f: (f.remove("images"), f.write("images/1.HEIC", "")),
        "{root}/images holds no photograph but pictures like 1.HEIC; put JPEG, PNG or WebP files into it"),
    "a photograph that is cut off": (
        lambda f: truncated(f.root / "images/2.jpg"), "{root}/images/2.jpg cannot be read, it is truncated or no pic"),
    "a photograph that is a text": (
        lambda f: f.write("images/2.jpg", "<html>404</html>"),
        "{root}/images/2.jpg cannot be read, it is truncated or"),
    "an empty photograph": (lambda f: f.write("images/2.jpg", ""), "{root}/images/2.jpg cannot be read"),
    "a photograph of 16 bits": (
        lambda f: Image.fromarray(np.zeros((66, 80), np.uint16)).save(f.root / "images/6.png"),
        "{root}/images/6.png has more than 8 bits a channel; save it with 8, as JPEG or PNG"),
    "two photographs of one name": (
        lambda f: f.photograph("images/2.png"), "2.jpg and 2.png differ in their suffixes only; .* so rename one"),
    "a name that is not in UTF-8": (
        lambda f: shutil.copy(f.root / "images/2.jpg", os.fsdecode(bytes(f.root) + b"/images/\xff.jpg")),
        "the name {root}/images/.*jpg is not in UTF-8, so that no tag can name it; rename the file"),
    "a table split by semicolons": (
        lambda f: f.write("tags.csv", "file;tags\n4.jpg;owl\n"),
        "tags.csv must have the columns 'file' and 'tags', split by a comma, .* which holds: file;tags"),
    "a table without a head": (
        lambda f: f.write("tags.csv", "4.jpg,owl\n"), "tags.csv must have the columns .* holds: 4.jpg, owl"),
    "an empty table": (lambda f: f.write("tags.csv", ""), "tags.csv must have the columns .* holds: nothing"),
    "a table with a head only": (
        lambda f: f.write("tags.csv", "file,tags\n"), "tags.csv has no row that can be used; it must have one a phot"),
    "tags split by commas": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,owl,cat\n"),
        "tags.csv, line 2, has 3 cells where the first line has 2; tags of one photograph are split by ';'"),
    "a row that is too short": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,owl\n5.jpg\n"),
        "tags.csv, line 3, has 1 cells where the first"),
    "a row without a file": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,owl\n,owl\n"), "tags.csv, line 3, names no file; every row"),
    "a column twice": (
        lambda f: f.write("tags.csv", "file,tags,tags\n4.jpg,owl,cat\n"), "tags.csv has two columns 'tags'; it must"),
    "an open quotation mark": (
        lambda f: f.write("tags.csv", 'file,tags\n4.jpg,"owl\n5.jpg,cat\n'), "tags.csv is no valid CSV .*; save it"),
    "a table in Latin-1": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,Schäferhund\n".encode("latin-1")),
        "tags.csv is not UTF-8 text; save it as UTF-8"),
    "a table in UTF-16": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,owl\n".encode("utf-16")), "tags.csv is not UTF-8 text"),
    "a spreadsheet named as a table": (
        lambda f: f.write("tags.csv", b"PK\x03\x04\0\0\0\0"),
        "tags.csv is no valid CSV .it holds NUL characters.; save"),
    "rows about other photographs": (
        lambda f: f.write("tags.csv", "file,tags\nx/1.jpg,owl\ny.jpg,cat\n"),
        "tags.csv, line 2, is about x/1.jpg, which is not in {root}/images, nor is any other photograph that"),
    "a name that several photographs have": (
        lambda f: (f.photograph("images/a/7.jpg"), f.photograph("images/b/7.jpg", 1),
                   f.write("tags.csv", "file,tags\n7.jpg,owl\n4,owl\n")),
        "tags.csv, line 2, '7.jpg' may be a/7 or b/7 in {root}/images; write the sub-folder too"),
    "a tag that is no name": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,-\n5.jpg,owl\n"),
        "line 2, has the tag '-', which is no name; l"),
    "a tag that says background": (
        lambda f: f.write("tags.csv", "file,tags\n4.jpg,Background\n5.jpg,owl\n"),
        "the tag 'Background', which is no cl"),
    "two tags files": (
        lambda f: f.write("tags.jsonl", "{}"),
        "{root} holds tags.csv and tags.jsonl; keep one, or name one with data."),
    "a line that is no JSON": (
        lambda f: f.lines('{"file": "4.jpg", "tags": ["owl"]}', '{"file": "5.jpg",'),
        "tags.jsonl, line 2, is no valid JSON .*; every line must be one object"),
    "a line that is a list": (lambda f: f.lines("[1, 2]"), "tags.jsonl, line 1, must be an object like {{\"file\":"),
    "a line whose tags are one text": (
        lambda f: f.lines('{"file": "4.jpg", "tags": "owl;cat"}'), "line 1, must have 'tags' that is a list of texts"),
    "a line with a number for a tag": (
        lambda f: f.lines('{"file": "4.jpg", "tags": ["owl", 3]}'), "line 1, must have 'tags' that is a list of texts"),
    "nothing to learn from": (
        lambda f: f.remove("tags.csv", "masks"),
        "no photograph of {root} has a tag or a mask .*; add tags.csv with the"),
    "a mask of another size": (
        lambda f: f.mask("masks/1.png", np.zeros((40, 80), np.uint8)),
        "the mask {root}/masks/1.png is 80x40 pixels, its photograph 80x66; they must be equal"),
    "a mask with another label": (
        lambda f: f.mask("masks/1.png", np.full((66, 80), 7, np.uint8)),
        "the mask {root}/masks/1.png holds the label 7; labels are 0 to 2 and 255"),
    "a mask in colours": (
        lambda f: f.mask("masks/1.png", np.zeros((66, 80, 3), np.uint8)),
        "the mask {root}/masks/1.png is of mode RGB; it must be an 8-bit palette or grey picture of labels"),
    "a mask that is cut off": (
        lambda f: truncated(f.root / "masks/1.png"), "the mask {root}/masks/1.png cannot be read, it is truncated or"),
    "masks without names": (
        lambda f: f.remove("classes.txt"), "{root}/classes.txt is missing; it must name the classes of {root}/masks"),
    "names that are empty": (
        lambda f: f.write("classes.txt", "background\n\n"),
        "classes.txt names 0 classes; it must"),
    "a class named twice": (
        lambda f: f.write("classes.txt", "cat\ndog\nCAT\n"),
        "classes.txt names 'CAT' and 'cat', which are the same class"),
    "background in another line": (
        lambda f: f.write("classes.txt", "cat\ndog\nbackground\n"),
        "classes.txt names 'background' in another than the"),
    "too many classes": (
        lambda f: f.write("classes.txt", "".join(f"thing{n}\n" for n in range(255))), "names 255 classes; .* 1 to 254"),
    "a list that names another photograph": (
        lambda f: f.write("splits/train.txt", "0\n9.jpg\n"),
        "splits/train.txt, line 2, names '9.jpg', which is not in"),
    "a list that names one twice": (
        lambda f: f.write("splits/train.txt", "0\n0.jpg\n"), "splits/train.txt, line 2, names '0.jpg' a second time"),
    "an empty list": (
        lambda f: f.write("splits/val.txt", "\n"),
        "splits/val.txt is empty; it must list one photograph"),
    "validation without a mask": (
        lambda f: f.write("splits/val.txt", "0\n4\n"),
        "1 photograph of the list val without a mask to compare .*; add"),
    "annotations that are no JSON": (
        lambda f: f.coco('{"images": ['),
        "annotations {root}/annotations/instances_all.json are no valid JSON in line 1"),
    "annotations that are a list": (
        lambda f: f.coco("[]"),
        "instances_all.json have no list 'images'; a COCO instances"),
    "annotations without categories": (
        lambda f: f.coco(categories=None),
        "have no list 'categories'; a COCO instances"),
    "a category without a name": (
        lambda f: f.coco(categories=[{"id": 1}, {"id": 2, "name": "dog"}]),
        r"instances_all.json, categories\[0\], must have a whole number 'id' and a text 'name'"),
    "an annotation of another category": (
        lambda f: f.coco(categories=[{"id": 1, "name": "cat"}]),
        r"instances_all.json, annotations\[1\], is of category 2, which is not in 'categories'"),
    "an annotation of another image": (
        lambda f: f.coco(annotations=[{"image_id": 77, "category_id": 1}]),
        r"annotations\[0\], is of image 77, which is"),
    "an image without a file": (lambda f: f.coco(images=[{"id": 3}]), r"images\[0\], must have a text 'file_name'"),
    "an annotation without an outline": (
        lambda f: f.coco(annotations=[{"image_id": 2, "category_id": 1, "bbox": [1, 1, 2, 2]}]),
        r"annotations\[0\], has no 'segmentation'; a mask needs polygons or run lengths, a box does not do"),
    "an outline of one point": (
        lambda f: f.coco(annotations=[{"image_id": 2, "category_id": 1, "segmentation": [[4, 4]]}]),
        r"annotations\[0\], has a polygon of 2 numbers; it must have 6 or more"),
    "a size that is not the photograph's": (
        lambda f: f.coco(images=[{"id": n, "file_name": f"{n}.jpg", "height": 5, "width": 6} for n in range(4)]),
        r"images\[0\], says 6x5 pixels, and the photograph .*0.jpg.* has 80x66; they must be equal"),
}


def sentence(err: str) -> str:
    """The last line of standard error, which is the only one that a fault may add."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("fmwiss: ")]
    assert len(lines) == 1 and lines[0].endswith("."), err
    return lines[0]


@pytest.mark.parametrize("name", CHECKED)
def test_what_would_break_training_is_told_by_the_check(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / "data")
    spoil, message = CHECKED[name]
    spoil(folder)
    assert cli.run(["data", "check", str(folder.root)]) == 2
    out, err = capfd.readouterr()
    pattern = message.replace("{root}", re.escape(str(folder.root))).replace("{{", r"\{")
    assert re.search(pattern, sentence(err)), err
    assert re.search(pattern, out) and "errors: " in out


def experiment(path: Path, **sections: Any) -> Path:
    values: dict[str, Any] = {
        "protocol": {"steps": [["cat", "dog"], ["owl"]]},
        "data": {"source": "folder", "crop_size": 32, "workers": 0},
        "segmenter": {"encoder": "test_efficientnet", "pretrained": False, "atrous_rates": [1, 1, 1]},
        "method": {"name": "cam"},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    path.write_text(yaml.safe_dump(values))
    return path


TRAINED: dict[str, tuple[dict[str, Any], Callable[[Folder], object], str]] = {
    "a class that nothing shows": (
        {"protocol": {"steps": [["cat", "dog"], ["owel"]]}}, lambda f: None,
        r"unknown class 'owel'; the nearest known name is 'owl' \(in protocol.steps\)"),
    "a first step without masks": (
        {"protocol": {"steps": [["cat", "owl"], ["dog"]]}}, lambda f: None,
        "step 0 learns from masks, and its masks have no class 'owl'; they have cat, dog"),
    "names that are not in lists": (
        {"protocol": {"steps": ["cat", "dog"]}}, lambda f: None,
        r"protocol.steps is .* but must be 15-5, 10-10 or a list of names for each step, as in \[\[cat, dog"),
    "a name that YAML takes for something else": (
        {"protocol": {"steps": [["cat", "dog"], [True]]}}, lambda f: None,
        "must be 15-5, 10-10 or a list of names for"),
    "a class twice": (
        {"protocol": {"steps": [["cat", "dog"], ["CAT"]]}}, lambda f: None, "'cat' is named twice in protocol.steps"),
    "a named split": (
        {"protocol": {"steps": "15-5"}}, lambda f: None,
        "'15-5' splits 20 classes, and the data set has 3; give lists of class names"),
    "a step whose photographs are all for validation": (
        {}, lambda f: (f.mask("masks/4.png", np.full((66, 80), 1, np.uint8)), f.write("splits/val.txt", "4\n"),
                       f.write("tags.csv", "file,tags\n4,owl\n")),
        r"no photograph of train is tagged with a class of step 1 \(owl\)"),
    "a list that is not there": ({"data": {"train_split": "train_aug"}}, lambda f: None, "has no list 'train_aug' "),
    "no masks at all": (
        {}, lambda f: (f.remove("masks"), f.write("tags.csv", "file,tags\n0,cat\n1,dog\n2,owl\n")),
        "step 0 learns from masks, and its masks have no class 'cat'; there are none"),
    "validation without a mask": (
        {}, lambda f: f.write("splits/val.txt", "0\n4\n"),
        "the photograph '4' of val has no mask to compare predictions with; add one, or leave it out"),
    "a tags file that is not there": (
        {"data": {"tags": "none.csv"}}, lambda f: None, "the tags file none.csv does not exist; give a CSV"),
    "a tags file of another kind": (
        {"data": {"tags": "tags.xlsx"}}, lambda f: None, "tags.xlsx must be a .csv, .jsonl or .json file"),
    "a spoilt mask": (
        {}, lambda f: f.mask("masks/1.png", np.zeros((3, 5), np.uint8)),
        "masks/1.png is 5x3 pixels, its photograph 80x66"),
    "outlines that are not there": ({"data": {"source": "coco"}}, lambda f: None, "neither instances.json nor annotat"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_training_would_stop_on_is_told_before_it_begins(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / "data")
    sections, spoil, message = TRAINED[name]
    spoil(folder)
    words = ["train", experiment(tmp_path / "x.yaml", **sections), "--data", folder.root, "--out", tmp_path / "run"]
    assert cli.run([str(word) for word in words]) == 2
    err = capfd.readouterr().err
    assert re.search(message, sentence(err)), err
    assert not list((tmp_path / "run").glob("step*"))


OTHERS: dict[str, tuple[list[str], str]] = {
    "pseudo masks of a class without truth": (
        ["pseudo-masks", "x.yaml", "--evaluate"], "the masks have no class 'owl', so its pseudo masks cannot be"),
    "pseudo masks of a photograph without truth": (
        ["pseudo-masks", "x.yaml", "--evaluate", "--classes", "cat"],
        "the photograph '5' has no mask, so its pseudo masks cannot .*; give a list of photographs with masks"),
    "true masks that are not there": (
        ["train", "x.yaml", "--set", "cosegmentation.source=true-masks", "--set", "method={name: fmwiss}"],
        "cosegmentation.source is 'true-masks', and its masks have no class 'owl'; they have cat, dog"),
    "a suite": (
        ["bench", "suite.yaml"],
        "one has data.source 'folder', and suites run on published data sets only; use fmwiss train",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_done_with_a_folder(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Folder(tmp_path / "data")
    experiment(tmp_path / "x.yaml")
    suite = {"groups": [{"name": "all", "entries": [{"name": "one", "config": "x.yaml"}]}]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    words, message = OTHERS[name]
    assert cli.run([*words, "--data", "data", "--out", "out"]) == 2
    err = capfd.readouterr().err
    assert re.search(message, sentence(err)), err
    assert not list(tmp_path.glob("out/step*"))


def test_a_file_of_tags_is_no_folder_to_check(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path / "data")
    assert cli.run(["data", "check", str(folder.root / "tags.csv")]) == 2
    assert re.search(r"tags\.csv is a file; give the folder of photographs", sentence(capfd.readouterr().err))


def test_the_program_itself_tells_a_fault_and_exits_with_2(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "data")
    folder.write("tags.csv", "file,tags\n4.jpg,owl,cat\n")
    words = ["-c", "from fmwiss.cli import main; main()", "data", "check", "data", "--json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "line 2, has 3 cells" in sentence(done.stderr)
    found = json.loads(done.stdout)
    assert [error["kind"] for error in found["errors"]] == ["folder", "folder"]
    assert (tmp_path / found["picture"]).is_file()
