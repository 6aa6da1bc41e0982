"""From a folder of photographs with masks and a table of tags to a grown model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fmwiss import cli
from fmwiss.data.emoji import EMOJI_CLASSES, EmojiSeg

OLD, NEW = EMOJI_CLASSES[:15], EMOJI_CLASSES[15:18]
EXPERIMENT = {
    "protocol": {"steps": [list(OLD), list(NEW)]},
    "data": {"source": "folder", "crop_size": 64, "scale": [0.8, 1.2], "workers": 0},
    "segmenter": {
        "encoder": "resnet_emoji", "decoder_channels": 16, "atrous_rates": [1, 2, 3], "classifier_init": "plain"
    },
    "cosegmentation": {
        "vision_language": {"name": "clip", "model": "TinyCLIP-emoji", "tag": "emojiseg", "input_size": 96},
        "self_supervised": {"model": "vit_emoji_patch8_80", "input_size": 96},
    },
    "copy_paste": {"bank_size": 3},
    "method": {"name": "fmwiss", "warmup_epochs": 1, "loss_stride": 4},
    "training": {"step0": {"epochs": 1, "batch_size": 8}, "steps": {"epochs": 1, "batch_size": 4}},
}


def write_folder(root: Path) -> dict[str, set[str]]:
    """Scenes 0-19 with masks of the old classes, 20-39 with tags in a table, and six with whole masks for validation.

    Returns:
        The tags of the scenes without masks.
    """
    scenes = EmojiSeg(40, 6, size=64)
    tags: dict[str, set[str]] = {}
    for number, scene in enumerate([*scenes.ids("train_aug"), *scenes.ids("val")]):
        image, mask = scenes.read(scene)
        part = "base" if number < 20 else "new" if number < 40 else "val"
        kind = (".jpg", ".png", ".webp")[number % 3]
        for folder in ("images", "masks"):
            (root / folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / part / f"{scene}{kind}")
        labels = mask.numpy()
        if part == "base":
            labels = np.where(labels <= len(OLD), labels, 0).astype(np.uint8)
        if part == "new":
            tags[scene] = {EMOJI_CLASSES[label - 1] for label in np.unique(labels) if label} - set(OLD)
        else:
            Image.fromarray(labels).save(root / "masks" / part / f"{scene}.png")
    (root / "classes.txt").write_text("\n".join(["background", *EMOJI_CLASSES]))
    rows = "".join(f"{scene},{'; '.join(sorted(names))}\n" for scene, names in tags.items())
    (root / "tags.csv").write_text(f"file,tags\n{rows}")
    (root / "splits").mkdir()
    (root / "splits/val.txt").write_text("".join(f"val/{scene}\n" for scene in scenes.ids("val")))
    return tags


def test_a_model_grows_on_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tags = write_folder(tmp_path / "data")
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(EXPERIMENT))
    folders = ["--data", "data", "--cache", "cache"]
    words = ["train", str(experiment), *folders, "--out", "run"]
    program = [sys.executable, "-c", "from fmwiss.cli import main; main()"]
    done = subprocess.run([*program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [json.loads((tmp_path / f"run/step{t}/evaluation.json").read_text()) for t in (0, 1)]
    weak = [names & set(NEW) for names in tags.values() if names & set(NEW)]
    assert [step["training_images"] for step in steps] == [len(labelled(tmp_path)), len(weak)]
    assert [step["images"] for step in steps] == [6, 6] and len(weak) > 4
    assert list(steps[1]["iou"]) == ["background", *OLD, *NEW]
    index = json.loads((tmp_path / "run/tags.json").read_text())["tags"]
    assert index and all(image_id.startswith("base/") for image_id in index)  # no mask of another photograph was read
    assert (tmp_path / "run/step0/memory_bank.safetensors").is_file()

    # what else reads the folder
    assert cli.run(words) == 0
    assert "nothing to do" in capfd.readouterr().err
    assert cli.run(["evaluate", "run", "--data", "data", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["iou"] == steps[1]["iou"]
    assert cli.run(["data", "check", "data", "--json"]) == 0
    check = json.loads(capfd.readouterr().out)
    assert check["photographs"] == 46 and check["masks"] == 26 and not check["errors"]
    assert check["classes"][NEW[0]]["tags"] == sum(1 for names in tags.values() if NEW[0] in names)
    assert cli.run(["pseudo-masks", str(experiment), *folders, "--out", "masks", "--pictures", "1"]) == 0
    assert len(list((tmp_path / "masks/masks/new").glob("*.png"))) == sum(map(len, weak))


def labelled(folder: Path) -> list[Path]:
    """Masks of the base that show a class."""
    masks = (folder / "data/masks/base").glob("*.png")
    return [path for path in masks if np.asarray(Image.open(path)).any()]
