"""Runs of the methods that learn from masks: end to end on EmojiSeg, what they see, and what steps hand on."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file

from fmwiss.cli import run as command
from fmwiss.config import Config
from fmwiss.data.emoji import EMOJI_CLASSES, EmojiSeg, write_emoji
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.methods import METHODS
from fmwiss.models import load_segmenter
from fmwiss.training.run import _Run, train

NAMES = ("joint", "ft", "lwf", "lwf-mc", "ilt", "mib", "plop", "cil", "sdr", "recall")
OPTIONS: dict[str, Any] = {
    "protocol": {"steps": "15-5"},
    "data": {"crop_size": 32, "resize": 32, "workers": 0},
    "segmenter": {
        "encoder": "test_efficientnet",
        "pretrained": False,
        "decoder_channels": 8,
        "atrous_rates": [1, 1, 1],
    },
    "copy_paste": {"bank_size": 0},
    "training": {
        "step0": {"epochs": 1, "batch_size": 16, "loss": "cross-entropy"},
        "steps": {"epochs": 1, "batch_size": 3},
    },
}


def config(**sections: Any) -> Config:
    values = copy.deepcopy(OPTIONS)
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Config.model_validate(values)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty scenes, in turn of every class, two to validate on; and as many of another seed by class."""
    folder = tmp_path_factory.mktemp("emoji")
    write_emoji(folder / "data", EmojiSeg(20, 2, seed=0, size=48))
    assert command(["data", "emoji", "--out", str(folder / "replay"), "--train", "20", "--size", "48", "--seed", "1",
                    "--by-class"]) == 0  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def base(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    train(config(method={"name": "ft"}), emoji / "data", None, folder, step=0)
    return folder


def options_of(name: str, emoji: Path, n_images: int) -> dict[str, Any]:
    """The method, and batches of which an epoch has two."""
    method = {"name": name, **({"replay": str(emoji / "replay"), "replay_share": 0.4} if name == "recall" else {})}
    own = n_images // 2
    batch_size = round(own / 0.6) if name == "recall" else own
    return {"method": method, "training": {"steps": {"epochs": 1, "batch_size": batch_size}}}


@pytest.mark.parametrize("name", NAMES)
def test_two_iterations_end_to_end_on_emojiseg(name: str, emoji: Path, base: Path, tmp_path: Path) -> None:
    """Masks in, figures and a report out; every loss a number, and the student another model than before."""
    tags = json.loads((base / "tags.json").read_text())
    shown = [image_id for image_id, names in tags["tags"].items() if set(names) & set(EMOJI_CLASSES[15:])]
    n_images = len(tags["tags"]) if name == "joint" else len(shown)
    results = train(config(**options_of(name, emoji, n_images)), emoji / "data", None, tmp_path / "run", base=base)
    assert list(results) == [1] and results[1].images == 2
    lines = [json.loads(line) for line in (tmp_path / "run/step1/metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["iterations"], lines[0]["images"]) == (2, n_images)
    assert lines[-1]["iteration"] == 2
    assert all(math.isfinite(value) for value in lines[-1]["losses"].values())
    before, after = load_segmenter(base), load_segmenter(tmp_path / "run")
    assert after.class_names == ("background", *EMOJI_CLASSES)
    kept = torch.equal(before.state_dict()["encoder.conv_stem.weight"], after.state_dict()["encoder.conv_stem.weight"])
    assert kept == (name == "recall")  # its encoder stays step 0's
    assert "learnt from masks" in (tmp_path / "run/report.html").read_text()
    figures = json.loads((tmp_path / "run/step1/evaluation.json").read_text())
    assert figures["diagnostic"] is False and figures["training_images"] == n_images
    assert train(config(**options_of(name, emoji, n_images)), emoji / "data", None, tmp_path / "run") == {}


def test_recall_from_the_command_line(
    emoji: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--replay is the method's folder; labels of it are kept and not made again."""
    values = copy.deepcopy(OPTIONS)
    values["method"] = {"name": "recall"}
    values["training"]["steps"]["batch_size"] = 6
    (tmp_path / "recall.yaml").write_text(yaml.safe_dump(values))
    words = ["train", tmp_path / "recall.yaml", "--data", emoji / "data", "--out", tmp_path / "run", "--base", base]
    assert command([str(word) for word in words]) == 2
    assert "give --replay DIR" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command([str(word) for word in [*words, "--replay", tmp_path / "empty"]]) == 2
    assert f"{tmp_path / 'empty'}: has no folder aeroplane" in capsys.readouterr().err
    assert command([str(word) for word in [*words, "--replay", emoji / "replay"]]) == 0
    labels = sorted((tmp_path / "run/step1/replay").iterdir())
    assert len(labels) == 15 and not (tmp_path / "run/step1/carried-recall.safetensors").exists()
    values["method"] = {"name": "ft"}
    (tmp_path / "ft.yaml").write_text(yaml.safe_dump(values))
    words[1] = tmp_path / "ft.yaml"
    assert command([str(word) for word in [*words, "--replay", emoji / "replay"]]) == 2
    expected = "--replay: unknown key method.replay (it belongs to recall, and method.name is ft)"
    assert expected in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- what they see


def a_run(config: Config, data: Path, folder: Path) -> _Run:
    return _Run(config, data, None, folder, None, Fabric(devices=1, accelerator="cpu"))


@pytest.mark.parametrize("setting", ["overlap", "disjoint"])
@pytest.mark.parametrize("name", ["ft", "joint"])
def test_a_step_sees_its_own_classes_masks(name: str, setting: str, emoji: Path, tmp_path: Path) -> None:
    """Against the data set's masks, pixel by pixel; a joint training sees all classes."""
    steps = [list(EMOJI_CLASSES[:10]), list(EMOJI_CLASSES[10:15]), list(EMOJI_CLASSES[15:])]
    run = a_run(config(protocol={"steps": steps, "setting": setting}, method={"name": name}), emoji / "data", tmp_path)
    source = VOCSource(emoji / "data")
    for t in (1, 2):
        old, until = sum(map(len, steps[:t])), sum(map(len, steps[: t + 1]))
        dataset = run._mask_dataset(t, source.ids("train_aug"))
        met = set()
        for index, image_id in enumerate(dataset.ids):
            mask = source.read_mask(image_id).long()
            mask[0, 0] = 255
            own = ((mask > (0 if name == "joint" else old)) & (mask <= until)) | (mask == 255)
            assert dataset.label_table[mask].long().equal(mask * own)  # EmojiSeg's order is the protocol's
            sample = dataset[0, index]
            assert sample.mask is not None and set(sample.mask.unique().tolist()) <= {*mask[own].tolist(), 0}
            met |= set(mask[own].tolist())
        assert met == {*range((0 if name == "joint" else old) + 1, until + 1), 255}


@pytest.mark.parametrize("section", METHODS, ids=lambda section: section.model_fields["name"].default)
def test_who_gets_masks(section: type, emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what learns from masks is ever given samples with them."""
    built: list[str] = []
    monkeypatch.setattr(_Run, "_weak_dataset", lambda *_: built.append("weak"))
    monkeypatch.setattr(_Run, "_mask_dataset", lambda *_: built.append("masks"))
    monkeypatch.setattr("fmwiss.training.pixel.PixelStep.prepare", lambda *_: None)
    monkeypatch.setattr("fmwiss.training.pixel.PixelStep.interleaved", lambda *_: None)
    name = section.model_fields["name"].default  # type: ignore[attr-defined]
    options = {"name": name, **({"replay": str(emoji / "replay")} if name == "recall" else {})}
    steps = {"steps": {"epochs": 20, "batch_size": 3}}
    run = a_run(config(method=options, training=steps), emoji / "data", tmp_path)
    method = object.__new__(METHODS[section])
    torch.nn.Module.__init__(method)
    method.options = run.config.method  # type: ignore[assignment]
    run._dataset(1, method, [], {})
    assert built == (["masks"] if name in NAMES else ["weak"])


def test_a_step_from_tags_needs_no_masks_and_one_from_masks_does(emoji: Path, base: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(emoji / "data", tmp_path / "data"))
    for mask in (data / "SegmentationClassAug").glob("train_*.png"):
        mask.unlink()
    weak = config(method={"name": "wilson", "localizer_epochs": 0})
    assert list(train(weak, data, None, tmp_path / "weak", base=base)) == [1]
    with pytest.raises(UserError, match=r"SegmentationClassAug"):
        train(config(method={"name": "ft"}), data, None, tmp_path / "masks", base=base)


def test_a_base_of_another_loss_is_refused(emoji: Path, base: Path, tmp_path: Path) -> None:
    other = config(method={"name": "ft"}, training={"step0": {"epochs": 1, "batch_size": 16}})
    with pytest.raises(UserError, match=r"training.step0.loss = cross-entropy, and the configuration says bce"):
        train(other, emoji / "data", None, tmp_path / "run", base=base)


# -------------------------------------------------------------------------------------------------- what steps hand on

THREE = [["aeroplane", "bicycle", "bird", "boat"], ["sheep"], ["sofa"]]


@pytest.fixture
def small(tiny_voc: Path) -> dict[str, Any]:
    steps = {"epochs": 1, "batch_size": 3}
    return {
        "protocol": {"steps": THREE},
        "training": {"step0": {"epochs": 1, "batch_size": 8}, "steps": steps, "checkpoint_every": 1},
    }


def test_sdrs_prototypes_go_from_step_to_step(small: dict[str, Any], tiny_voc: Path, tmp_path: Path) -> None:
    experiment = config(**small, method={"name": "sdr"})
    train(experiment, tiny_voc, None, tmp_path, step=0)
    assert not list((tmp_path / "step0").glob("carried*"))  # step 0 does not know who comes
    train(experiment, tiny_voc, None, tmp_path, step=1)
    first, second = (load_file(tmp_path / f"step{t}/carried-sdr.safetensors") for t in (0, 1))
    assert first["counts"].tolist()[0] == 0 and (first["counts"][1:] > 0).all() and len(first["counts"]) == 5
    assert second["prototypes"][:5].equal(first["prototypes"]) and second["counts"][5] > 0
    carried = tmp_path / "step1/carried-sdr.safetensors"
    carried.rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"what step 1 left for later ones is missing"):
        train(experiment, tiny_voc, None, tmp_path, step=2)
    (tmp_path / "kept").rename(carried)
    assert list(train(experiment, tiny_voc, None, tmp_path)) == [2]
    assert not list((tmp_path / "step2").glob("carried*"))  # nobody comes after it


def test_recalls_helpers_go_from_step_to_step(small: dict[str, Any], tiny_voc: Path, tmp_path: Path) -> None:
    photographs = sorted((tiny_voc / "JPEGImages").glob("val_*.jpg"))
    for number, name in enumerate([*THREE[0], *THREE[1]]):
        (tmp_path / "replay" / name).mkdir(parents=True)
        shutil.copy(photographs[number], tmp_path / "replay" / name)
    experiment = config(**small, method={"name": "recall", "replay": str(tmp_path / "replay")})
    assert list(train(experiment, tiny_voc, None, tmp_path / "run")) == [0, 1, 2]
    base, helper = (load_file(tmp_path / f"run/step{t}/carried-recall.safetensors") for t in (0, 1))
    model = load_file(tmp_path / "run/step0/model.safetensors")
    assert base["classifier.weight"].equal(model["classifier.steps.0.weight"])
    assert helper["classifier.weight"].shape[0] == 2  # background and sheep
    assert len(list((tmp_path / "run/step1/replay").iterdir())) == 4
    assert len(list((tmp_path / "run/step2/replay").iterdir())) == 5
    assert not (tmp_path / "run/step2/carried-recall.safetensors").exists()


def test_a_damaged_survey_is_told(small: dict[str, Any], tiny_voc: Path, tmp_path: Path) -> None:
    experiment = config(**small, method={"name": "plop"})
    train(experiment, tiny_voc, None, tmp_path, step=0)
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1/survey.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"survey.safetensors: cannot be read .* delete it, and it is made again"):
        train(experiment, tiny_voc, None, tmp_path, step=1)
