"""EmojiSeg: what a scene shows, that it is the same everywhere, and that held-out drawings stay out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmwiss.cli import run
from fmwiss.config import ProtocolConfig
from fmwiss.data.emoji import (
    EMOJI_CLASSES,
    FOLDER,
    HELD_OUT_STYLE,
    LARGEST,
    SMALLEST,
    TRAINING_STYLES,
    EmojiSeg,
    _sampled,
    drawings,
    render,
    write_emoji,
)
from fmwiss.data.folder import FolderSource
from fmwiss.data.protocols import Protocol
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = EmojiSeg(n_train=100)
    return [source.read(image_id) for image_id in source.ids("train_aug")]


def test_classes_are_vocs_but_for_one():
    assert len(EMOJI_CLASSES) == 20 and set(EMOJI_CLASSES) - set(VOC_CLASSES) == {"umbrella"}


@pytest.mark.parametrize("style", [*TRAINING_STYLES, HELD_OUT_STYLE])
def test_every_style_is_drawn_cleanly(style: str):
    for drawing in drawings(style):
        full = drawing.levels[0]
        assert [len(level) for level in drawing.levels] == [96, 48, 24]
        assert full.min() >= 0 and full.max() <= 1 and (full[..., :3] <= full[..., 3:] + 1e-9).all()
        assert 0.05 < drawing.share < 0.99
        filled = (full[..., 3] > 0.5).any(0).sum(), (full[..., 3] > 0.5).any(1).sum()
        assert max(filled) >= 92  # cut to what is opaque


def test_every_class_has_several_drawings_and_styles_to_learn_from_and_one_style_held_out():
    for name in EMOJI_CLASSES:
        learnt = [(d.style, d.share) for style in TRAINING_STYLES for d in drawings(style) if d.class_name == name]
        assert len(learnt) >= 3 and len({style for style, _ in learnt}) >= 3
        assert any(d.class_name == name for d in drawings(HELD_OUT_STYLE))
    assert HELD_OUT_STYLE not in TRAINING_STYLES


def test_a_scene_is_the_same_to_the_last_bit():
    """Change the digests only together with a new version of the data set."""
    digest = hashlib.sha256()
    source = EmojiSeg()
    for image_id in ("train_000000", "train_000007", "train_000599", "val_000003", "val_000199"):
        image, mask = source.read(image_id)
        digest.update(image.contiguous().numpy().tobytes() + mask.numpy().tobytes())
    assert digest.hexdigest() == "bd701cb09d8266c989cb3d80cf4cb0346560c0435829ce2986b5aba4a814b414"


def test_seed_and_number_decide():
    first, again, other = EmojiSeg(seed=1), EmojiSeg(seed=1, n_train=700), EmojiSeg(seed=2)
    assert torch.equal(first.read_image("train_000005"), again.read_image("train_000005"))
    assert not torch.equal(first.read_mask("train_000005"), other.read_mask("train_000005"))


def test_sizes_and_labels(scenes: list[tuple[torch.Tensor, torch.Tensor]]):
    for index, (image, mask) in enumerate(scenes):
        assert image.dtype == mask.dtype == torch.uint8 and image.shape[1:] == mask.shape
        assert max(mask.shape) == 160 and min(mask.shape) >= 112
        shown = set(mask.unique().tolist()) - {0}
        assert 1 <= len(shown) <= 4 and shown <= set(range(1, 21))
        assert index % 20 + 1 in shown  # the main object is never hidden
    assert {len(set(m.unique().tolist()) - {0}) for _, m in scenes} == {1, 2, 3, 4}
    assert len({m.shape for _, m in scenes}) > 20


def test_objects_cover_what_they_do_in_voc(scenes: list[tuple[torch.Tensor, torch.Tensor]]):
    shares = torch.cat([m.flatten().bincount(minlength=21)[1:] / m.numel() for _, m in scenes])
    shares = shares[shares > 0]
    # two objects of one class count together, so the largest share may be that of two
    assert shares.min() >= SMALLEST and 0.1 <= shares.median() <= 0.15
    assert (shares > LARGEST).float().mean() < 0.02 and shares.max() > 0.3


def test_the_mask_is_where_the_drawing_is():
    """A scene rendered twice, once with its drawings painted pure red: exactly the mask's pixels change."""
    for index in range(6):
        plain, mask = render(keyed_generator(3, "scene", index), index)
        painted = {
            style: [type(d)(d.class_name, d.style, tuple(_red(level) for level in d.levels)) for d in drawings(style)]
            for style in TRAINING_STYLES
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fmwiss.data.emoji.drawings", painted.__getitem__)
            red, same_mask = render(keyed_generator(3, "scene", index), index)
        assert (mask == same_mask).all()
        changed = (plain.astype(int) != red).any(2)
        assert changed[mask > 0].mean() > 0.99
        assert changed[~_grown(mask > 0, 2)].mean() < 0.02  # smoke and glass that is half transparent


def test_bilinear_samples_by_hand():
    picture = np.zeros((2, 2, 4))
    picture[..., 0] = [[1.0, 2.0], [3.0, 4.0]]

    def at(x: float, y: float) -> float:
        return float(_sampled(picture, np.array([[x]]), np.array([[y]]))[0, 0, 0])

    assert at(0.5, 0.5) == 1 and at(1.5, 0.5) == 2 and at(0.5, 1.5) == 3  # pixel centres
    assert at(1.0, 1.0) == 2.5 and at(1.0, 0.5) == 1.5
    assert at(0.0, 0.5) == 0.5 and at(-1.0, 0.5) == 0 and at(9.0, 9.0) == 0  # nothing outside


def test_written_and_read_back(tmp_path: Path):
    source = EmojiSeg(n_train=24, n_val=3)
    write_emoji(tmp_path, source)
    read = VOCSource(tmp_path)
    assert read.class_names == EMOJI_CLASSES
    for split in ("train_aug", "val"):
        assert read.ids(split) == source.ids(split)
        for image_id in read.ids(split)[:3]:
            image, mask = source.read(image_id)
            assert torch.equal(read.read_mask(image_id), mask)
            assert (read.read_image(image_id).float() - image.float()).abs().mean() < 5
    assert "CC-BY-4.0" in (tmp_path / "ATTRIBUTION.md").read_text()


@pytest.mark.parametrize("setting", ["disjoint", "overlap"])
@pytest.mark.parametrize("steps", ["15-5", "10-10", [list(EMOJI_CLASSES[:18]), ["train"], ["tv monitor"]]])
def test_all_protocols_work(tmp_path: Path, steps: str | list[list[str]], setting: str):
    source = EmojiSeg(n_train=60, n_val=1)
    write_emoji(tmp_path, source)
    read = VOCSource(tmp_path)
    ids = read.ids("train_aug")
    tags = TagIndex.load_or_build(read, ids, "masks", tmp_path / "tags.json")
    protocol = Protocol.from_config(
        ProtocolConfig.model_validate({"steps": steps, "setting": setting}), read.class_names
    )
    assert sum(protocol.steps, ()) == EMOJI_CLASSES
    for t in range(len(protocol.steps)):
        chosen = protocol.select(t, tags, ids)
        assert chosen and all(tags[image_id] & set(protocol.new(t)) for image_id in chosen)
        assert protocol.label_table(t, read.class_names)[len(protocol.seen(t))] == len(protocol.seen(t))


def test_the_command_writes_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "emoji"
    assert run(["data", "emoji", "--out", str(out), "--train", "4", "--val", "2", "--size", "64", "--seed", "5"]) == 0
    assert "4 scenes in train_aug and 2 in val" in capfd.readouterr().err
    assert torch.equal(VOCSource(out).read_mask("val_000001"), EmojiSeg(4, 2, 5, 64).read_mask("val_000001"))
    assert run(["data", "emoji", "--out", str(out)]) == 2
    assert "is not empty" in capfd.readouterr().err


def test_scenes_of_some_classes_show_no_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Masks keep the labels of all twenty, and the classes take turns."""
    arguments = ["data", "emoji", "--train", "12", "--val", "4", "--size", "64", "--out"]
    assert run([*arguments, str(tmp_path / "scenes"), "--classes", "boat, tv monitor"]) == 0
    source = VOCSource(tmp_path / "scenes")
    boat, monitor = (1 + EMOJI_CLASSES.index(name) for name in ("boat", "tv monitor"))
    seen = [set(source.read_mask(i).unique().tolist()) - {0} for i in (*source.ids("train_aug"), *source.ids("val"))]
    assert all(labels <= {boat, monitor} for labels in seen)
    assert all((boat, monitor)[number % 2] in labels for number, labels in enumerate(seen[:12]))
    assert any(len(labels) == 2 for labels in seen)
    wrong = {"boat,bot": "unknown class 'bot'; the nearest known name is 'boat'", "bus,bus": "'bus' twice"}
    for classes, message in wrong.items():
        assert run([*arguments, str(tmp_path / "x"), "--classes", classes]) == 2
        assert message in capfd.readouterr().err


def test_unknown_scenes_and_splits():
    with pytest.raises(UserError, match="no scene 'train_1'"):
        EmojiSeg().read("train_1")
    with pytest.raises(UserError, match="no split 'test'; it has train_aug, val"):
        EmojiSeg().ids("test")
    with pytest.raises(UserError, match="at least 32"):
        EmojiSeg(size=16)


def test_sheets_and_list_agree():
    listed = json.loads((FOLDER / "drawings.json").read_text())
    assert set(listed) == {*TRAINING_STYLES, HELD_OUT_STYLE}
    for style, names in listed.items():
        with Image.open(FOLDER / f"{style}.png") as sheet:
            assert sheet.size == (8 * 96, -(-len(names) // 8) * 96)


def _red(level: np.ndarray) -> np.ndarray:
    red = level.copy()
    red[..., 0], red[..., 1:3] = level[..., 3], 0
    return red


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    padded = np.pad(mask, pixels)
    height, width = mask.shape
    return np.any(
        [padded[y : y + height, x : x + width] for y in range(2 * pixels + 1) for x in range(2 * pixels + 1)], axis=0
    )


def test_the_layout_of_a_folder_holds_the_same(tmp_path: Path):
    source = EmojiSeg(n_train=6, n_val=2, size=64)
    write_emoji(tmp_path / "voc", source)
    write_emoji(tmp_path / "folder", source, layout="folder")
    voc, folder = VOCSource(tmp_path / "voc"), FolderSource(tmp_path / "folder")
    assert folder.class_names == voc.class_names
    for split in ("train", "val"):
        ids = folder.ids(split)
        assert ids == voc.ids("train_aug" if split == "train" else split)
        for image_id in ids:
            assert torch.equal(folder.read_mask(image_id), voc.read_mask(image_id))
            assert torch.equal(folder.read_image(image_id), voc.read_image(image_id))


def test_the_tagged_layout_has_tags_and_no_masks(tmp_path: Path):
    source = EmojiSeg(n_train=6, n_val=2, size=64)
    write_emoji(tmp_path, source, layout="tagged")
    folder = FolderSource(tmp_path)
    ids = folder.ids("train")
    assert ids == source.ids("train_aug")
    tags = TagIndex.load_or_build(folder, ids, "masks", tmp_path / "tags.json")
    for image_id in ids:
        labels = source.read(image_id)[1].unique().tolist()
        assert tags[image_id] == {source.class_names[label - 1] for label in labels if label}
        assert not folder.has_mask(image_id)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".png"]


def test_the_command_writes_every_layout(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    words = ["data", "emoji", "--train", "3", "--val", "1", "--size", "64", "--out"]
    assert run([*words, str(tmp_path / "a"), "--layout", "folder"]) == 0
    assert "3 scenes in train and 1 in val" in capfd.readouterr().err
    assert run([*words, str(tmp_path / "b"), "--layout", "tagged"]) == 0
    assert str(tmp_path / "b" / "tags.csv") in capfd.readouterr().err
    assert run([*words, str(tmp_path / "c"), "--layout", "other"]) == 2
