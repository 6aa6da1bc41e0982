"""``fmwiss extend``: photographs and tags in, a grown model out; everything that a user can get wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

import fmwiss
from fmwiss.cli import run
from fmwiss.config import load_config
from fmwiss.data.emoji import EmojiSeg
from fmwiss.data.extension import ExtensionSource, open_masked, open_tagged, tagged_source
from fmwiss.data.memory import MemoryBank
from fmwiss.data.voc import VOID
from fmwiss.errors import UserError
from fmwiss.extension import checks, extend, trial
from fmwiss.extension.extend import Order, Plan, carry_out, make_plan, measure
from fmwiss.extension.settings import Wishes, negatives
from fmwiss.inference import hub
from fmwiss.inference.record import _given_model
from fmwiss.models import foreign as foreign_reader
from fmwiss.models import load_segmenter
from fmwiss.models.adapted import AdaptedSegmenter
from fmwiss.review.session import Place, find_target, open_session
from fmwiss.training import loop as training_loop
from fmwiss.training import run as training_run
from foreign_models import save_segformer, save_smp

SCENES = 24
NEW = ("sheep", "boat")
FOUNDATION = (
    "cosegmentation.vision_language.model=TinyCLIP-emoji",
    "cosegmentation.vision_language.tag=emojiseg",
    "cosegmentation.vision_language.input_size=64",
    "cosegmentation.self_supervised.model=vit_emoji_patch8_80",
    "cosegmentation.self_supervised.input_size=64",
)
QUICK = (*FOUNDATION, "data.workers=0", "method.warmup_epochs=1", "training.checkpoint_every=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``new``: scenes with tags in a CSV; ``val``: scenes with masks."""
    folder = tmp_path_factory.mktemp("emoji")
    scenes = EmojiSeg(n_train=SCENES, n_val=4, size=64)
    names = scenes.class_names
    for part, split in (("new", "train_aug"), ("val", "val")):
        (folder / part / "images").mkdir(parents=True)
        rows = []
        for image_id in scenes.ids(split):
            image, mask = scenes.read(image_id)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / part / f"images/{image_id}.png")
            if part == "val":
                (folder / "val/masks").mkdir(exist_ok=True)
                Image.fromarray(mask.numpy()).save(folder / f"val/masks/{image_id}.png")
            shown = [names[label - 1] for label in mask.unique().tolist() if label]
            rows.append((f"{image_id}.png", ";".join(shown)))
        if part == "new":
            with (folder / "tags.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("file", "tags"), *rows])
    (folder / "val/classes.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Unet that knows background, cat and dog."""
    folder = tmp_path_factory.mktemp("foreign") / "unet"
    save_smp(folder, "Unet")
    return folder


def order(model: Path, data: Path, out: Path, **more: Any) -> Order:
    wishes = Wishes(epochs=2, batch_size=2, crop_size=64, overrides=QUICK, **more.pop("wishes", {}))
    given = {"classes": ["sheep"], "tags": str(data / "tags.csv"), "precision": "32-true", **more}
    return Order(model=str(model), images=data / "new", out=out, wishes=wishes, cache=data / "cache", **given)


def words(*more: object) -> list[str]:
    return [str(word) for setting in QUICK for word in ("--set", setting)] + [str(word) for word in more]


# ------------------------------------------------------------------------------------------------------ the whole way


def test_twice_in_a_row_in_a_process_of_its_own(foreign: Path, data: Path, tmp_path: Path) -> None:
    """A foreign model learns a class, and the grown one another; then it predicts."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def fmwiss(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = "from fmwiss.cli import main; main()"
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    common = ["--images", data / "new", "--tags", data / "tags.csv", "--cache", data / "cache", "--epochs", 1,
              "--batch-size", 2, "--crop-size", 64, "--precision", "32-true"]
    first = fmwiss("extend", foreign, "--classes", "sheep", "--out", "one", "--val", data / "val", *common, *words())
    assert first.returncode == 0, first.stderr
    assert "mIoU new" in first.stdout and "an iteration, measured" in first.stdout
    second = fmwiss("extend", "one", "--classes", "boat", "--out", "two", *common)
    assert second.returncode == 0, second.stderr
    assert "mIoU" not in second.stdout  # there are no masks
    model = load_segmenter(tmp_path / "two")
    assert model.class_names == ("background", "cat", "dog", "sheep", "boat")
    page = (tmp_path / "two/report.html").read_text(encoding="utf-8")
    assert "after: step 2" in page and "without-masks" in page
    photograph = next((data / "new/images").iterdir())
    predicted = fmwiss("predict", "two", photograph, "--out", "predictions")
    assert predicted.returncode == 0 and (tmp_path / f"predictions/{photograph.name}").is_file()

def test_two_processes_extend_as_one_does(foreign: Path, data: Path, tmp_path: Path) -> None:
    """The second one takes batch and precision from the first one's record and measures nothing."""
    program = tmp_path / "program.py"  # which the first process starts the second with
    program.write_text("from fmwiss.cli import main; main()")
    done = subprocess.run(
        [sys.executable, str(program), "extend", str(foreign), "--images", str(data / "new"), "--tags",
         str(data / "tags.csv"), "--classes", "sheep", "--out", str(tmp_path / "run"), "--cache", str(data / "cache"),
         *words("--epochs", 1, "--batch-size", 99, "--crop-size", 64, "--tags-complete", "--devices", 2, "--precision",
                "32-true")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Trying out an iteration") == 1
    environment = json.loads((tmp_path / "run/step1/environment.json").read_text())
    assert (environment["processes"], environment["precision"]) == (2, "32-true")


@pytest.fixture(scope="module")
def extended(foreign: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Unet with sheep, without masks to judge by."""
    out = tmp_path_factory.mktemp("extended") / "run"
    carry_out(make_plan(order(foreign, data, out)), "32-true")
    return out


def test_an_interrupted_extension_ends_with_the_same_weights(
    foreign: Path, data: Path, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = training_loop.save_checkpoint

    def interrupted(folder: Path, iteration: int, *rest: Any, **more: Any) -> None:
        saved(folder, iteration, *rest, **more)
        if iteration == 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            carry_out(make_plan(order(foreign, data, out)), "32-true")
    plan = make_plan(order(foreign, data, out))
    assert plan.begun and not plan.finished
    carry_out(plan, "32-true")
    ours, theirs = (load_file(folder / "step1/model.safetensors") for folder in (out, extended))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert make_plan(order(foreign, data, out)).finished


def test_the_run_tells_what_it_did(extended: Path, foreign: Path, data: Path) -> None:
    config = load_config(extended / "config.yaml")
    assert config.protocol.steps == [["cat", "dog"], ["sheep"]]
    assert config.method.name == "fmwiss" and not config.method.untagged_absent
    assert config.copy_paste.bank_size == 0
    before, after = load_segmenter(extended, 0), load_segmenter(extended, 1)
    assert isinstance(before, AdaptedSegmenter) and isinstance(after, AdaptedSegmenter)
    assert before.class_names == ("background", "cat", "dog")
    figures = json.loads((extended / "step1/evaluation.json").read_text())
    assert figures["miou"] == {"old": None, "new": None, "all": None} and figures["training_images"] >= 2


def test_a_dry_run_shows_settings_and_writes_nothing(
    foreign: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["extend", foreign, "--images", data / "new", "--tags", data / "tags.csv", "--classes", "sheep, boat",
               "--out", tmp_path / "run", "--crop-size", 64, "--tags-complete", "--dry-run"]
    assert run([str(word) for word in (*command, *words())]) == 0
    out = capfd.readouterr().out
    for shown in ("training.steps.epochs", "GiB", "--tags-complete", "sheep", "TinyCLIP-emoji", "--set"):
        assert shown in out
    assert not (tmp_path / "run").exists()


def test_replay_fills_the_memory(foreign: Path, data: Path, tmp_path: Path) -> None:
    """Of the masks' twenty classes the model knows cat and dog."""
    scenes = EmojiSeg(n_train=40, size=64)
    replay = tmp_path / "old"
    shutil.copytree(data / "val", replay)
    for number, image_id in enumerate(scenes.ids("train_aug")):
        image, mask = scenes.read(image_id)
        if set(mask.unique().tolist()) & {scenes.class_names.index(name) + 1 for name in ("cat", "dog")}:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(replay / f"images/old_{number}.png")
            Image.fromarray(mask.numpy()).save(replay / f"masks/old_{number}.png")
    plan = make_plan(order(foreign, data, tmp_path / "run", replay=replay))
    assert plan.config.copy_paste.bank_size > 0
    carry_out(plan, "32-true")
    bank = MemoryBank.load(tmp_path / "run/step0/memory_bank.safetensors")
    assert set(bank.classes) <= {"cat", "dog"} and bank.classes


def test_a_segformer_without_background(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_segformer(tmp_path / "model", ("cat", "dog", "umbrella"), {"size": {"height": 64, "width": 64}})
    asked = order(tmp_path / "model", data, tmp_path / "run", classes=NEW, validation=data / "val")
    carry_out(make_plan(asked), "bf16-mixed")
    model = load_segmenter(tmp_path / "run")
    assert model.class_names == ("background", "cat", "dog", "umbrella", "sheep", "boat")
    assert isinstance(model, AdaptedSegmenter) and not model.has_background and model.architecture.resize == 64
    figures = json.loads((tmp_path / "run/step1/evaluation.json").read_text())
    assert figures["images"] == 4 and figures["iou"]["background"] is None
    confusion = json.loads((tmp_path / "run/step1/confusion.json").read_text())["pixels"]
    assert not any(row[0] for row in confusion)  # label 0 is never predicted
    card = hub.card_of(fmwiss.load(tmp_path / "run"), "me/model", None, None)
    assert "has no background: label 0 is never predicted" in card and "is background" not in card
    assert "(`model`) with 3 classes" in card and "Hugging Face transformers" in card
    changed, before = (load_file(tmp_path / f"run/step{t}/model.safetensors") for t in (1, 0))
    assert not torch.equal(changed["classifier.old.weight"], before["classifier.old.weight"])


def test_settings_follow_the_data_and_the_user(foreign: Path, data: Path, tmp_path: Path) -> None:
    plain = replace(order(foreign, data, tmp_path / "run"), wishes=Wishes(overrides=FOUNDATION))
    config = make_plan(plain).config
    assert config.data.resize is None and config.data.crop_size % 32 == 0
    assert config.training.steps.epochs == 100  # few photographs: the most that it takes
    assert config.training.steps.freeze_batch_norm and config.segmenter.classifier_init == "background"
    asked = replace(plain, wishes=Wishes(
        epochs=7, learning_rate=0.5, resize=48, seed=3, tags_complete=True,
        overrides=[*FOUNDATION, "method.warmup_epochs=9"],
    ))
    config = make_plan(asked).config
    assert (config.training.steps.epochs, config.training.steps.learning_rate) == (7, 0.5)
    assert (config.data.resize, config.training.seed) == (48, 3)
    assert config.method.warmup_epochs == 9 and config.method.untagged_absent  # type: ignore[union-attr]


def test_photographs_without_the_class_show_where_it_is_not(foreign: Path, data: Path, tmp_path: Path) -> None:
    rows = (data / "tags.csv").read_text().splitlines()
    tagged = [row.split(",")[0] for row in rows[1:] if "sheep" in row.split(",")[1].split(";")]
    others = [row.split(",")[0] for row in rows[1:] if row.split(",")[0] not in tagged]
    table = tmp_path / "tags.csv"
    # nobody tells of the first one
    table.write_text("\n".join(row for row in rows if row.split(",")[0] != others[0]) + "\n")
    partial = order(foreign, data, tmp_path / "run", tags=str(table))
    plan = make_plan(partial)
    assert plan.source.without == () and plan.config.data.negatives == 0
    with pytest.raises(UserError, match=r"--negatives 2: needs --tags-complete"):
        make_plan(replace(partial, wishes=replace(partial.wishes, negatives=2)))

    for wished, count in ((1.0, len(tagged)), (None, min(3 * len(tagged), len(others) - 1)), (99, len(others) - 1)):
        wishes = replace(partial.wishes, tags_complete=True, negatives=wished)
        out = tmp_path / f"run-{wished}"
        plan = make_plan(replace(partial, out=out, wishes=wishes))
        assert set(plan.source.without) == {Path(name).stem for name in others[1:]}
        assert plan.config.data.negatives == (3.0 if wished is None else wished)
        if wished == 1.0:
            carry_out(plan, "32-true")
            figures = json.loads((out / "step1/evaluation.json").read_text())
            assert figures["training_images"] == len(tagged) + count
        assert negatives(plan.source, plan.config.data.negatives) == count
        assert plan.source.ids("train") == [*plan.source.tags, *plan.source.without]
    two = replace(partial, out=tmp_path / "two", classes=NEW, wishes=replace(partial.wishes, tags_complete=True))
    assert make_plan(two).config.data.negatives == 0  # each one's show where the other is not


def test_the_warm_up_follows_the_epochs_in_force(foreign: Path, data: Path, tmp_path: Path) -> None:
    plain = order(foreign, data, tmp_path / "run")
    for wishes, warmup in (
        (Wishes(epochs=1, overrides=FOUNDATION), 1),
        (Wishes(epochs=12, overrides=FOUNDATION), 7),
        (Wishes(overrides=[*FOUNDATION, "training.steps.epochs=20"]), 12),
        (Wishes(epochs=12, overrides=[*FOUNDATION, "method={warmup_epochs: 3}"]), 3),
    ):
        plan = make_plan(replace(plain, wishes=wishes))
        assert plan.config.method.warmup_epochs == warmup  # type: ignore[union-attr]
        assert (plan.why["method.warmup_epochs"] == "--set") == (warmup == 3)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.tags=foo.csv", r"--set data.tags=foo.csv: extend settles it as .*tags.csv; give --tags instead"),
        ("data.source=coco", "give --images and --tags instead"),
        ("data.train_split=all", "give --split instead"),
        ("data.val_split=all", "give --val instead"),
        ("data.also=[all]", "give --val instead"),
        ("data.negatives=2", r"--set data.negatives=2.0: .*give --negatives instead"),
        ("data={negatives: 2}", r"--set data.negatives=2.0: .*give --negatives instead"),
        ("method.untagged_absent=true", "give --tags-complete or --tags-partial instead"),
        ("protocol.setting=disjoint", "extend settles it as overlap; leave it out"),
        ("protocol.steps=[[boat],[sheep]]", "give --classes instead"),
        ("segmenter.encoder=resnet18", "leave it out, for the model is extended as it is"),
    ],
)
def test_what_extend_settles_cannot_be_set(
    override: str, sentence: str, foreign: Path, data: Path, tmp_path: Path
) -> None:
    asked = order(foreign, data, tmp_path / "run")
    with pytest.raises(UserError, match=sentence):
        make_plan(replace(asked, wishes=replace(asked.wishes, overrides=[*QUICK, override])))


def test_shares_of_photographs_are_numbers(foreign: Path, data: Path, tmp_path: Path) -> None:
    asked = order(foreign, data, tmp_path / "run")
    for more, message in (
        ({"tags_complete": True, "negatives": float("inf")}, r"--negatives inf: must be a number"),
        ({"tags_complete": True, "negatives": float("nan")}, r"--negatives nan: must be a number"),
    ):
        with pytest.raises(UserError, match=message):
            make_plan(replace(asked, wishes=replace(asked.wishes, **more)))


def test_a_batch_that_was_cut_goes_on(foreign: Path, data: Path, tmp_path: Path) -> None:
    """There are fewer photographs than were asked for in a batch; the same order is the same, another is not."""
    asked = order(foreign, data, tmp_path / "run")
    asked = replace(asked, wishes=replace(asked.wishes, batch_size=99, epochs=1))
    plan = make_plan(asked)
    assert plan.config.training.steps.batch_size == len(plan.source.tags) < 99
    carry_out(plan, "32-true")
    assert make_plan(asked).finished
    with pytest.raises(UserError, match=r"begun with --batch-size \d+ and 98 is asked for now"):
        make_plan(replace(asked, wishes=replace(asked.wishes, batch_size=98)))
    with pytest.raises(UserError, match=r"begun with tags_complete = False and True"):
        make_plan(replace(asked, wishes=replace(asked.wishes, tags_complete=True)))


def test_a_batch_that_is_set_is_cut_too(foreign: Path, data: Path, tmp_path: Path) -> None:
    asked = order(foreign, data, tmp_path / "run", classes=NEW)
    few = ["data.fraction=0.5", "training.steps.batch_size=500"]
    asked = replace(asked, wishes=replace(asked.wishes, epochs=1, overrides=[*QUICK, *few]))
    plan = make_plan(asked)
    assert plan.config.training.steps.batch_size == round(len(plan.source.tags) / 2) > 1
    carry_out(plan, "32-true")
    assert make_plan(asked).finished


@pytest.mark.parametrize("judged", [True, False])
def test_a_training_photograph_in_a_folder_called_val(judged: bool, tmp_path: Path) -> None:
    """Its id begins as those of the photographs that are judged by, or shown."""
    images = {"train/images/val/1.jpg": "red", "train/images/pictures/1.jpg": "red", "val/images/1.jpg": "blue"}
    for name, colour in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    (tmp_path / "train/tags.csv").write_text("file,tags\nval/1.jpg,owl\npictures/1.jpg,owl\n")
    (tmp_path / "val/masks").mkdir()
    Image.new("L", (32, 32), 1).save(tmp_path / "val/masks/1.png")
    (tmp_path / "val/classes.txt").write_text("owl\n")
    training, tags, _ = open_tagged(
        tmp_path / "train", str(tmp_path / "train/tags.csv"), None, ["owl"], tmp_path / "cache.json"
    )
    validation, ids = open_masked(tmp_path / "val", "--val") if judged else (None, [])
    source = ExtensionSource(["dog", "owl"], training, tags, [], validation, ids, True, seed=0)
    for image_id in source.ids("train"):
        assert not source.has_mask(image_id)
        assert source.read_image(image_id)[0].float().mean() > 200
    assert len({*source.ids("train"), *source.ids(source.compared)}) == 2 + len(source.ids(source.compared))
    if judged:
        assert [int(source.read_mask(image_id)[0, 0]) for image_id in source.ids("val")] == [2]
        with pytest.raises(UserError, match=r"none of the model's classes \(dog, cat\)"):
            ExtensionSource(["dog", "cat"], training, {}, [], validation, ids, True, seed=0)


@pytest.mark.parametrize("background", [True, False])
def test_a_misspelt_class_of_masks_is_told(background: bool, tmp_path: Path) -> None:
    for name in ("images/1.jpg", "masks/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (32, 32), 1).save(tmp_path / name)
    (tmp_path / "classes.txt").write_text("owl\ndgo\n")
    validation, ids = open_masked(tmp_path, "--val")
    source = ExtensionSource(["dog", "Owl"], validation, {}, [], validation, ids, background, seed=0)
    assert source.unknown == ("dgo",)
    counted = "background" if background else "void"
    assert f"these count as {counted}: dgo, and they have none of dog; check the spelling" in source.told_of_unknown()
    known = ExtensionSource(["dgo", "owl", "cat"], validation, {}, [], validation, ids, background, seed=0)
    assert known.unknown == () and known.told_of_unknown() is None
    assert known.told_of_lacking(["owl"]) is None
    told = known.told_of_lacking(["owl", "cat"])
    assert told is not None and "have none of the new class cat, so that their IoU cannot be told" in told


@pytest.mark.parametrize("spoilt", [{"classes": 2}, {"tags": 5}, {"classes": [5]}, {"classes": []}])
def test_a_spoilt_record_is_one_sentence(extended: Path, data: Path, tmp_path: Path, spoilt: dict[str, Any]) -> None:
    record = json.loads((extended / "extension.json").read_text())
    (tmp_path / "extension.json").write_text(json.dumps({**record, **spoilt}))
    with pytest.raises(UserError, match=rf"extension.json: {next(iter(spoilt))}.*; remove the folder"):
        tagged_source(tmp_path, data / "new", load_config(extended / "config.yaml").data)


def test_a_run_moved_over_the_one_it_extended(tmp_path: Path) -> None:
    (tmp_path / "extension.json").write_text(json.dumps({"model": str(tmp_path)}))
    assert _given_model(tmp_path) == tmp_path.name


def test_measured_numbers_are_there(foreign: Path, data: Path, tmp_path: Path) -> None:
    plan, estimate = measure(make_plan(order(foreign, data, tmp_path / "run", precision="auto")))
    assert estimate.iteration > 0 and estimate.warmup_iteration > 0 and estimate.memory_gib > 0
    assert estimate.precision in ("32-true", "bf16-mixed") and estimate.pseudo_mask
    seconds = estimate.seconds(plan.config, 8, 2, 4)
    per_epoch = 10 // plan.config.training.steps.batch_size
    assert seconds["pseudo masks"] == 8 * estimate.pseudo_mask
    assert seconds["training"] == pytest.approx(per_epoch * (estimate.warmup_iteration + 2 * estimate.iteration))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot forget a peak")
def test_memory_is_that_of_the_trial_alone() -> None:
    device = torch.device("cpu")
    large = torch.ones(2**26)  # 256 MiB, gone before the trial
    del large
    before = trial._begin_peak(device)
    held = torch.ones(2**24)
    after = trial._peak_gib(device)
    assert 0.05 < after - before < 0.2 and held.numel()
    assert trial._peak_gib(device) == after


def labels_shown(plan: Plan) -> set[int]:
    return {label for image_id in plan.source.ids("val") for label in plan.source.read_mask(image_id).unique().tolist()}


def test_pixels_of_unknown_classes(foreign: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(order(foreign, data, tmp_path / "run", validation=data / "val"))
    assert labels_shown(plan) <= {0, 1, 2, 3}
    without = make_plan(order(
        foreign, data, tmp_path / "run", validation=data / "val", labels=["cat", "dog", "umbrella"]
    ))
    shown = labels_shown(without)
    assert VOID in shown and 0 not in shown  # nothing is background to a model without one


# ------------------------------------------------------------------------------------------------------------ bad input


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


Spoil = Callable[[Path], None]

SPOILT: dict[str, tuple[str, Spoil, list[str], str]] = {
    "no model": ("missing", lambda m: None, [], r"there is no model .*missing"),
    "an empty folder": ("unet", lambda m: [p.unlink() for p in m.iterdir()], [], "holds no step of a run"),
    "a saved model of ours": ("unet", lambda m: (m / "model.json").write_text("{}"), [], "saved from a run"),
    "pickled": ("unet", lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), [], "is pickled"),
    "no weights": ("unet", lambda m: (m / "model.safetensors").unlink(), [], "has no model.safetensors"),
    "truncated weights": ("unet", lambda m: truncate(m / "model.safetensors"), [], "cannot be read"),
    "truncated config": ("unet", lambda m: truncate(m / "config.json"), [], "cannot be read as JSON"),
    "a list for a config": ("unet", lambda m: (m / "config.json").write_text("[]"), [], "must hold a JSON object"),
    "neither library": ("unet", lambda m: (m / "config.json").write_text("{}"), [], "is neither segmentation_models"),
    "other architecture": (
        "unet", lambda m: edit(m / "config.json", decoder_channels=[16, 16, 8, 8, 4]), [], "another architecture"
    ),
    "unknown architecture": ("unet", lambda m: edit(m / "config.json", _model_class="Net"), [], "not among what"),
    "unknown encoder": ("unet", lambda m: edit(m / "config.json", encoder_name="resnet1"), [], "cannot build the Unet"),
    "unknown option": ("unet", lambda m: edit(m / "config.json", wings=2), [], "cannot build the Unet"),
    "five channels": ("unet", lambda m: edit(m / "config.json", in_channels=5), [], "wants 5 channels"),
    "classes as text": ("unet", lambda m: edit(m / "config.json", classes="3"), [], "classes is '3'"),
    "names missing": ("unet", lambda m: (m / "classes.txt").unlink(), [], "nothing there names the model's 3 outputs"),
    "too few names": ("unet", lambda m: (m / "classes.txt").write_text("cat\ndog\n"), [], "names 2 labels, and the"),
    "too many names": ("unet", lambda m: None, ["--labels", "a,b,c,d"], "names 4 labels, and the model has 3"),
    "an empty name": ("unet", lambda m: None, ["--labels", "a,,c"], "the name of output 1 is empty"),
    "no such background": ("unet", lambda m: None, ["--background", "sky"], "--background sky: is none of"),
    "another background": ("unet", lambda m: None, ["--background", "cat"], "a class is named background beside it"),
    "known class": ("unet", lambda m: None, ["--classes", "Dog"], "knows 'dog' already"),
    "class twice": ("unet", lambda m: None, ["--classes", "sheep,Sheep"], "names 'Sheep' twice"),
    "no class": ("unet", lambda m: None, ["--classes", " , "], "names no class"),
    "background as class": ("unet", lambda m: None, ["--classes", "background"], "cannot be the name of a new class"),
    "untagged class": ("unet", lambda m: None, ["--classes", "shep"], "tagged 'shep'; the nearest tag is 'sheep'"),
    "step of a foreign model": ("unet", lambda m: None, ["--step", "0"], "--step is about the steps of a run"),
    "no photographs": ("unet", lambda m: None, ["--images", "nowhere"], "--images nowhere: there is no such folder"),
    "no tags": ("unet", lambda m: None, ["--tags", "nowhere.csv"], "--tags nowhere.csv: there is no such file"),
    "masks for tags": ("unet", lambda m: None, ["--tags", "masks"], "for folders in VOC's layout"),
    "no val": ("unet", lambda m: None, ["--val", "nowhere"], "--val nowhere: there is no such folder"),
    "no replay": ("unet", lambda m: None, ["--replay", "nowhere"], "--replay nowhere: there is no such folder"),
    "no such step": ("run", lambda m: None, ["--step", "7"], "step 7 is not finished there"),
    "labels of a run": ("run", lambda m: None, ["--labels", "a,b"], "knows its own"),
    "spoilt description": (
        "run", lambda m: (m / "step1/model.json").write_text("{}"), [], "is not a model description of fmwiss"
    ),
    "spoilt weights of a run": ("run", lambda m: truncate(m / "step1/model.safetensors"), [], "cannot be read"),
    "a gap": ("run", lambda m: shutil.rmtree(m / "step0"), [], "step 0 is missing there"),
    "learning rate": ("unet", lambda m: None, ["--learning-rate", "-1"], "must be a number that is greater"),
    "unknown key": ("unet", lambda m: None, ["--set", "training.steps.epoch=3"], "unknown key training.steps.epoch"),
    "another method": ("unet", lambda m: None, ["--set", "method.name=wilson"], "extended by fmwiss or finetuning"),
    "another section": ("unet", lambda m: None, ["--set", "method={name: mib}"], "extended by fmwiss or finetuning"),
}


def test_finetuning_can_be_chosen_in_three_ways(foreign: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method: {name: finetuning, loss_stride: 2}\n")
    for name, wishes, stride in (
        ("set", {"overrides": (*FOUNDATION, "method.name=finetuning")}, 1),
        ("section", {"overrides": (*FOUNDATION, "method={name: finetuning}")}, 1),
        ("config", {"overrides": FOUNDATION, "config": tmp_path / "a.yaml"}, 2),
    ):
        plan = make_plan(
            Order(
                model=str(foreign), images=data / "new", out=tmp_path / name, classes=["sheep"],
                tags=str(data / "tags.csv"), precision="32-true", cache=data / "cache",
                wishes=Wishes(crop_size=64, **wishes),
            )
        )
        assert plan.config.method.name == "finetuning" and plan.config.method.loss_stride in (stride, 4)


def test_a_run_that_was_trained_with_a_softmax_is_refused(extended: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(extended, run)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["training"]["step0"]["loss"] = "cross-entropy"
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="trained with a softmax"):
        make_plan(order(run, data, tmp_path / "out", classes=["boat"]))


def test_what_was_begun_does_not_go_on_otherwise(extended: Path, foreign: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training: {steps: {learning_rate: 1.0e-4}}\n")
    config = {"epochs": 2, "batch_size": 2, "crop_size": 64, "overrides": QUICK, "config": tmp_path / "a.yaml"}
    for change, message in (
        ({"trained_with": "sigmoid"}, "begun with trained_with = nothing and sigmoid"),
        ({"background": "background"}, "begun with background = nothing and background"),
        ({"labels": ["background", "dog", "cat"]}, "begun with"),
        ({"precision": "bf16-mixed"}, "begun with --precision 32-true and bf16-mixed"),
    ):
        with pytest.raises(UserError, match=message):
            make_plan(order(foreign, data, extended, **change))
    begun = order(foreign, data, extended)
    with pytest.raises(UserError, match=r"begun with --batch-size 2 and 3 is asked for now"):
        make_plan(replace(begun, wishes=replace(begun.wishes, batch_size=3)))
    more_tags = tmp_path / "tags.csv"
    more_tags.write_text((data / "tags.csv").read_text())
    shutil.copytree(extended, tmp_path / "run")
    record = json.loads((tmp_path / "run/extension.json").read_text())
    (tmp_path / "run/extension.json").write_text(json.dumps({**record, "tags": str(more_tags)}))
    same = replace(begun, tags=str(more_tags), out=tmp_path / "run")
    assert make_plan(same).finished
    first = next(line for line in more_tags.read_text().splitlines()[1:] if "sheep" not in line)
    more_tags.write_text(more_tags.read_text().replace(first, first.split(",")[0] + ",sheep"))
    assert make_plan(same).finished  # what is done is done
    (tmp_path / "run/step1/model.json").unlink()
    (tmp_path / "run/step1/state").mkdir()
    (tmp_path / "run/step1/state/checkpoint").touch()
    with pytest.raises(UserError, match=r"begun with other tags than those of .*tags\.csv now"):
        make_plan(same)
    with pytest.raises(UserError, match=r"begun with config = nothing and .*a\.yaml"):
        make_plan(replace(order(foreign, data, extended), wishes=Wishes(**config)))


def test_what_failed_before_its_first_checkpoint_is_begun_anew(
    foreign: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the failed one, which had other settings and another order of classes, nothing is left."""

    def fail(*_: object) -> None:
        raise UserError("the disk is full")

    out = tmp_path / "run"
    first = order(foreign, data, out, wishes={"seed": 1}, labels=["background", "dog", "cat"], precision="bf16-mixed")
    with monkeypatch.context() as patch:
        patch.setattr(training_run._Run, "do_step", fail)
        with pytest.raises(UserError, match="the disk is full"):
            carry_out(make_plan(first), "bf16-mixed")
    assert (out / "config.yaml").is_file() and (out / "step0/model.json").is_file()
    plan = make_plan(order(foreign, data, out))
    assert not plan.begun and not plan.finished
    carry_out(plan, "32-true")
    assert load_segmenter(out, 0).class_names == ("background", "cat", "dog")
    assert load_config(out / "config.yaml").training.seed == 0
    assert json.loads((out / "extension.json").read_text())["precision"] == "32-true"


def test_two_extensions_do_not_begin_in_one_folder(foreign: Path, data: Path, tmp_path: Path) -> None:
    plan = make_plan(order(foreign, data, tmp_path / "run"))
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(UserError, match="another fmwiss extend is at work there"):
        carry_out(plan, "32-true")


BEFORE_THE_TRIAL: dict[str, tuple[list[str], str]] = {
    "precision": (["--precision", "16-mixed"], "--precision 16-mixed: half precision with a scaler needs a GPU"),
    "out below a file": (["--out", "{tmp}/old.yaml/run"], "--out .*run: .*old.yaml is a file where a folder is needed"),
    "out that is a file": (["--out", "{tmp}/old.yaml"], "--out .*old.yaml is a file where a folder is needed"),
    "cache that is a file": (["--cache", "{tmp}/old.yaml"], "--cache .*old.yaml is a file where a folder is needed"),
    "out among photographs": (["--out", "{new}/images/run"], "lies among the photographs of .*images, as which"),
    "out among photographs without a folder": (
        ["--images", "{new}/images", "--out", "{new}/images/run"], "lies among the photographs of .*images, as which"
    ),
    "too few": (["--set", "data.fraction=0.01"], r"a batch would have 1 photograph\(s\), and .* raise --batch-size"),
    "too many processes": (["--devices", "99"], r"and 99 process\(es\) need at least 198"),
    "no number": (["--learning-rate", "nan"], "--learning-rate nan: must be a number that is greater than 0"),
    "infinity": (["--learning-rate", "inf"], "--learning-rate inf: must be a number that is greater than 0"),
}


@pytest.mark.parametrize("case", BEFORE_THE_TRIAL)
def test_what_can_be_known_is_told_before_the_trial(
    case: str, foreign: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if case == "precision" and torch.cuda.is_available():
        pytest.skip("a GPU has half precision")
    monkeypatch.setattr(extend, "try_out", lambda *_: pytest.fail("the trial has begun"))
    (tmp_path / "old.yaml").touch()
    options, sentence = BEFORE_THE_TRIAL[case]
    more = [word.format(tmp=tmp_path, new=data / "new") for word in options]
    command = ["extend", foreign, "--images", data / "new", "--tags", data / "tags.csv", "--classes", "sheep",
               "--out", tmp_path / "run", "--dry-run", *words(*more)]
    assert run([str(word) for word in command]) == 2
    told = capfd.readouterr()
    assert re.search(sentence, told.err) and told.err.count("\n") == 1 and not told.out


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check_folder("--out", tmp_path / "a/b")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=rf"--out {tmp_path}/a/b: {tmp_path} cannot be written to; give another"):
        checks.check_folder("--out", tmp_path / "a/b")


def test_a_run_beside_photographs_is_not_among_them(foreign: Path, data: Path) -> None:
    assert not make_plan(order(foreign, data, data / "new/run")).begun


def test_missing_weights_are_told_before_the_first_iteration(
    foreign: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial._Trial, "iterate", lambda *_, **__: pytest.fail("an iteration has begun"))
    with pytest.raises(UserError, match="nowhere, is not a folder"):
        measure(make_plan(order(foreign, data, tmp_path / "run", weights=tmp_path / "nowhere")))


def test_new_classes_that_masks_lack_are_told(
    foreign: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    val = tmp_path / "val"
    for name in ("images/1.png", "masks/1.png"):
        (val / name).parent.mkdir(parents=True)
        Image.new("L", (64, 64), 1).save(val / name)
    (val / "classes.txt").write_text("cat\n")
    command = ["extend", foreign, "--images", data / "new", "--tags", data / "tags.csv", "--classes", "sheep,boat",
               "--out", tmp_path / "run", "--val", val, "--crop-size", 64, "--dry-run", *words()]
    assert run([str(word) for word in command]) == 0
    assert "have none of the new classes sheep, boat, so that their IoU" in capfd.readouterr().err


def test_folders_are_the_same_however_they_are_written(
    extended: Path, foreign: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    assert make_plan(replace(order(foreign, data, extended), images=Path("new"))).begun


def test_photographs_that_are_learnt_from_judge_nothing(foreign: Path, data: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(data / "val", both)
    (both / "tags.csv").write_text("file,tags\n" + "".join(f"{p.name},sheep\n" for p in (both / "images").iterdir()))
    with pytest.raises(UserError, match=r"4 of the photographs that are learnt from, such as val_"):
        make_plan(replace(order(foreign, data, tmp_path / "out", tags=None, validation=both), images=both))


def test_what_a_review_leaves_is_no_other_extension(foreign: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("tags.json", "review.jsonl", "review-figures.json"):
        (out / name).write_text("")
    assert not make_plan(order(foreign, data, out)).begun


def test_masks_of_an_extension_can_be_looked_at(extended: Path, data: Path, tmp_path: Path) -> None:
    """Its tags may name new classes alone, which are not all that its protocol has."""
    rows = [line.split(",") for line in (data / "tags.csv").read_text().splitlines()[1:]]
    sheep = [name for name, shown in rows if "sheep" in shown.split(";")]
    (tmp_path / "tags.csv").write_text("file,tags\n" + "".join(f"{name},sheep\n" for name in sheep))
    folder = tmp_path / "run"
    shutil.copytree(extended, folder)
    record = json.loads((folder / "extension.json").read_text())
    (folder / "extension.json").write_text(json.dumps({**record, "tags": str(tmp_path / "tags.csv")}))
    shown = {Path(name).stem for name in sheep}

    place = Place(data / "new", None, data / "cache", torch.device("cpu"))
    session = open_session(find_target(folder, None), place)
    assert session.classes == ("sheep",) and {item.image_id for item in session.items} == shown

    out = tmp_path / "masks"
    assert run(["pseudo-masks", str(folder / "config.yaml"), "--data", str(data / "new"), "--out", str(out),
                "--cache", str(data / "cache")]) == 0
    assert {path.stem for path in (out / "masks").iterdir()} == {f"{image_id}_sheep" for image_id in shown}
    (folder / "extension.json").write_text("{}")
    with pytest.raises(UserError, match=r"extension\.json: old_classes: Field required"):
        open_session(find_target(folder, None), place)


def test_an_extension_is_judged_by_masks_of_other_classes(
    extended: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As extend --val takes them: the masks lack nothing for knowing nothing of the model's dog."""
    folder = tmp_path / "val"
    shutil.copytree(data / "val", folder)
    names = (folder / "classes.txt").read_text().splitlines()
    (folder / "classes.txt").write_text("\n".join("hound" if name == "dog" else name for name in names))
    assert run(["evaluate", str(extended), "--data", str(folder), "--json"]) == 0
    told = capsys.readouterr()
    assert re.search(r"these count as background: .*hound.*, and they have none of dog; check the spelling", told.err)
    figures = json.loads(told.out)
    assert figures["images"] == 4 and set(figures["iou"]) == {"background", "cat", "dog", "sheep"}
    model = load_segmenter(extended)
    inside = joint = 0
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as opened:
            photograph = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)
        labels = np.asarray(Image.open(folder / f"masks/{path.stem}.png"))
        truth = ~np.isin(labels, [names.index("cat") + 1, names.index("sheep") + 1])  # a hound, too
        predicted = model.predict(photograph).numpy() == 0
        inside += (truth & predicted & (labels != VOID)).sum()
        joint += ((truth | predicted) & (labels != VOID)).sum()
    assert figures["iou"]["background"] == pytest.approx(100 * inside / joint, abs=1e-4)


def test_the_card_tells_where_the_model_comes_from(extended: Path, tmp_path: Path) -> None:
    model = fmwiss.load(extended)
    model.save_pretrained(tmp_path / "saved", license="mit")
    again = fmwiss.load(tmp_path / "saved")
    for card in (hub.card_of(model, "me/model", None, None), hub.card_of(again, "me/model", None, None)):
        assert "It is a model of segmentation\\_models\\_pytorch (`unet`) with 2 classes, which learnt\n1 more" in card
        assert "| 0 | not here: the model was given |" in card and "| 1 | tags | sheep |" in card
        assert "- step 0:" not in card and "- later steps: 2 epochs" in card
        assert "Label 0 is the background" in card and "those of their softmax" in card
        assert "its licence and biases carry over" in card and str(extended) not in card


@pytest.fixture(scope="module")
def intact(foreign: Path, extended: Path) -> dict[str, Path]:
    return {"unet": foreign, "run": extended}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_is_told_in_one_sentence(
    case: str, intact: dict[str, Path], data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, spoil, options, sentence = SPOILT[case]
    model = tmp_path / kind
    if kind in intact:
        shutil.copytree(intact[kind], model)
    spoil(model)
    given = {"--images": data / "new", "--tags": data / "tags.csv", "--classes": "boat", "--out": tmp_path / "out"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    command = ["extend", model, "--dry-run", *(word for pair in given.items() for word in pair)]
    assert run([str(word) for word in command]) == 2
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("fmwiss: ") and told[0].endswith(".")
    assert re.search(sentence, told[0]), told[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "bert"}, "of type 'bert' cannot be extended"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2", "3": "LABEL_3"}}, "nothing there names"),
        ({"hidden_sizes": [8, 8, 16, 32]}, "another architecture|cannot read"),
        ({"decoder_hidden_size": 24}, "another architecture|cannot read"),
    ],
)
def test_spoilt_segformers(values: dict[str, Any], sentence: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_segformer(tmp_path / "model")
    edit(tmp_path / "model/config.json", **values)
    with pytest.raises(UserError, match=sentence):
        make_plan(order(tmp_path / "model", data, tmp_path / "run"))


def test_another_order_in_the_same_folder_is_refused(foreign: Path, data: Path, extended: Path, tmp_path: Path) -> None:
    shutil.copytree(extended, tmp_path / "run")
    with pytest.raises(UserError, match="begun with classes = sheep and boat is asked for"):
        make_plan(order(foreign, data, tmp_path / "run", classes=["boat"]))
    with pytest.raises(UserError, match=r"learning_rate = .* but 0.5 is asked for"):
        make_plan(order(foreign, data, tmp_path / "run", wishes={"learning_rate": 0.5}))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than an extension"):
        make_plan(order(foreign, data, tmp_path / "letters"))
    with pytest.raises(UserError, match="is the run that is extended"):
        make_plan(order(extended, data, extended, classes=["boat"]))


def test_a_name_that_may_be_a_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise UserError("no network")

    monkeypatch.setattr(foreign_reader, "require_hub", unreachable)
    with pytest.raises(UserError, match=r"there is no folder runs/old, and the hub"):
        foreign_reader.fetch("runs/old")


def test_one_photograph_is_too_few(foreign: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("file,tags\ntrain_000000.png,sheep\n")
    with pytest.raises(UserError, match="1 photograph is tagged with sheep"):
        make_plan(order(foreign, data, tmp_path / "run", tags=str(tmp_path / "tags.csv")))
