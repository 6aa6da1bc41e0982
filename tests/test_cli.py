"""The command line: what it prints where, and what it says about wrong input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fmwiss import cli
from fmwiss.config import Config, dump_config
from fmwiss.errors import UserError
from fmwiss.models.segmenter import Architecture, Segmenter

BASE, NEW = ("aeroplane", "bicycle", "bird", "boat"), ("sheep", "sofa")
EXPERIMENT: dict[str, Any] = {
    "protocol": {"steps": [list(BASE), list(NEW)], "setting": "overlap"},
    "data": {"crop_size": 32, "resize": 32, "workers": 0},
    "segmenter": {
        "encoder": "test_efficientnet",
        "pretrained": False,
        "decoder_channels": 8,
        "atrous_rates": [1, 1, 1],
    },
    "cosegmentation": {
        "vision_language": {"name": "imagenet-names", "model": "test_efficientnet", "tag": None, "input_size": 160},
        "self_supervised": {"model": "test_vit", "input_size": 160},
    },
    "copy_paste": {"bank_size": 2},
    "method": {"warmup_epochs": 0},
    "training": {"step0": {"epochs": 1, "batch_size": 4}, "steps": {"epochs": 1, "batch_size": 4}},
}


class World:
    """Everything a command needs, right as it stands: each test breaks one thing."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        shutil.copytree(data, self.data)
        self.experiment, self.run, self.out = folder / "experiment.yaml", folder / "run", folder / "out"
        self.experiment.write_text(yaml.safe_dump(EXPERIMENT))
        self.weights = folder / "weights"
        self.weights.mkdir()
        self.photograph = self.data / "JPEGImages" / "val_000000.jpg"

    def write(self, name: str, content: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def experiment_with(self, **sections: Any) -> Path:
        return self.write("changed.yaml", yaml.safe_dump({**EXPERIMENT, **sections}))

    def make_run(self, steps: Sequence[Sequence[str]] = (BASE,)) -> Path:
        """An untrained model in the place of a trained one."""
        architecture = Architecture(
            encoder="test_efficientnet",
            output_stride=16,
            decoder_channels=8,
            atrous_rates=(1, 1, 1),
            dropout=0.5,
            steps=tuple(tuple(step) for step in steps),
            resize=32,
        )
        torch.manual_seed(0)
        Segmenter(architecture).save(self.run / f"step{len(steps) - 1}")
        (self.run / "config.yaml").write_text(dump_config(Config.model_validate(EXPERIMENT)))
        return self.run

    def train(self, *more: object, config: Path | None = None, data: Path | None = None) -> list[object]:
        return ["train", config or self.experiment, "--data", data or self.data, "--out", self.out, *more]

    def evaluate(self, *more: object, data: Path | None = None) -> list[object]:
        return ["evaluate", self.run, "--data", data or self.data, *more]

    def predict(self, *photographs: object) -> list[object]:
        return ["predict", self.run, *photographs, "--out", self.out]

    def pseudo_masks(self, *more: object) -> list[object]:
        common = ["--data", self.data, "--weights", self.weights, "--out", self.out, "--cache", self.folder / "cache"]
        return ["pseudo-masks", self.experiment, *common, *more]

    def make_weights(self) -> None:
        import timm

        for name in ("test_efficientnet", "test_vit"):
            torch.manual_seed(0)
            save_file(timm.create_model(name, pretrained=False).state_dict(), self.weights / f"{name}.safetensors")


@pytest.fixture
def world(tmp_path: Path, tiny_voc: Path) -> World:
    return World(tmp_path, tiny_voc)


def run(words: Sequence[object]) -> int:
    return cli.run([str(word) for word in words])


# ------------------------------------------------------------------------------------------------------- right input


def test_help_is_quick_and_loads_no_heavy_module() -> None:
    code = (
        "import sys, time; start = time.monotonic()\n"
        "from fmwiss.cli import run\n"
        "code = run(['--help']); seconds = time.monotonic() - start\n"
        "heavy = {'torch', 'timm', 'pydantic.main', 'fmwiss.config'} & set(sys.modules) - {'pydantic.main'}\n"
        "assert code == 0 and not heavy, heavy\n"
        "print(seconds, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = "train evaluate bench report predict export push pseudo-masks review classes demo"
    for command in commands.split():
        assert command in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        [], ["train"], ["evaluate"], ["bench"], ["report"], ["predict"], ["export"], ["push"], ["pseudo-masks"],
        ["review"], ["classes"], ["demo"], ["data", "emoji"], ["data", "check"],
    ],
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    import fmwiss

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"fmwiss {fmwiss.__version__}\n"


def test_evaluate_prints_a_table_or_exactly_one_json_object(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.make_run()
    assert run(world.evaluate()) == 0
    table = capsys.readouterr().out
    assert "mIoU old" in table and "boat" in table
    assert run(world.evaluate("--json", "--split", "val", "--step", "0")) == 0
    printed = capsys.readouterr().out
    figures = json.loads(printed)
    assert printed.count("\n") == 1
    assert list(figures) == ["step", "images", "miou", "pixel_accuracy", "iou"]
    assert (figures["step"], figures["images"], figures["miou"]["new"]) == (0, 8, None)
    assert list(figures["iou"]) == ["background", *BASE]


def test_predict_writes_an_indexed_png_and_an_overlay(world: World) -> None:
    world.make_run((BASE, NEW))
    other = world.write("other.JPEG")
    Image.new("L", (37, 53), 90).save(other)
    assert run(world.predict(world.photograph, other)) == 0
    for path in (world.photograph, other):
        with Image.open(path) as photograph, Image.open(world.out / f"{path.stem}.png") as labels:
            assert (labels.mode, labels.size) == ("P", photograph.size)
            assert set(labels.get_flattened_data()) <= {0, 1, 2, 3, 4, 17, 18}
            with Image.open(world.out / f"{path.stem}_overlay.png") as overlay:
                assert overlay.mode == "RGB" and overlay.height > photograph.height
    assert len(list(world.out.iterdir())) == 4


def test_pseudo_masks_writes_masks_pictures_and_figures(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.make_weights()
    assert run(world.pseudo_masks("--evaluate", "--json", "--split", "val", "--pictures", "1")) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["split"] == "val" and figures["images"] > 1
    assert {"init", "seeds", "refined", "ceiling"} <= set(figures)
    assert set(figures["refined"]["iou"]) == set(NEW)
    masks = sorted((world.out / "masks").iterdir())
    assert len(masks) >= figures["images"]
    with Image.open(masks[0]) as mask:
        assert mask.mode == "1"
    assert len(list((world.out / "pictures").iterdir())) == 1
    assert run(world.pseudo_masks("--evaluate", "--classes", "BIRD, boat", "--pictures", "0")) == 0
    assert "bird" in capsys.readouterr().out


def test_pseudo_masks_beyond_the_paper_have_stages_of_their_own(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.make_weights()
    plus = ["--set", "cosegmentation.name=fmwiss-plus", "--set", "cosegmentation.plus.resolution=2"]
    assert run(world.pseudo_masks("--evaluate", "--json", "--split", "val", "--pictures", "1", *plus)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == ["split", "images", "init", "propagated", "refined"]
    assert 0 < figures["refined"]["miou"] < 100
    assert len(list((world.out / "masks").iterdir())) >= figures["images"]
    shown = next((world.out / "pictures").iterdir())
    with Image.open(shown) as picture, Image.open(world.data / "JPEGImages" / f"{shown.stem}.jpg") as photograph:
        assert picture.width >= 4 * photograph.width  # the photograph and three stages


def test_classes_prints_what_stands_for_a_name(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classes", "pottedplant", "dog"]) == 0
    out = capsys.readouterr().out
    assert "pottedplant: 1\n  n03991062  pot, flowerpot\n" in out and "dog: 118\n" in out
    override = "cosegmentation.vision_language.rows={dog: [n02099601]}"
    assert run(["classes", "dog", "--config", world.experiment, "--set", override]) == 0
    assert capsys.readouterr().out == "dog: 1\n  n02099601  golden retriever\n"


def test_train_writes_a_report_and_report_writes_it_anew(world: World) -> None:
    """End to end, each command in a process of its own; the second needs neither data nor weights."""
    world.make_weights()
    program = [sys.executable, "-c", "from fmwiss.cli import main; main()"]

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        line = [*program, *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=world.folder)

    trained = command(*world.train("--weights", world.weights, "--cache", world.folder / "cache"))
    assert trained.returncode == 0, trained.stderr
    own = world.out / "report.html"
    assert f"The report is {own}." in trained.stderr and "learnt in step 1" in own.read_text()
    shutil.rmtree(world.data)
    shutil.rmtree(world.weights)
    first = own.read_text()
    done = command("report", world.out)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{own}\n", "")
    assert own.read_text() == first
    page = world.folder / "new" / "page.html"
    done = command("report", world.out, "--worst-first", "--out", page)
    assert done.stdout == f"{page}\n" and '<option value="worst" selected>' in page.read_text()
    shutil.copytree(world.out, world.folder / "other")
    done = command("report", world.out, "other")
    assert done.stdout == "report.html\n" and "2 runs compared" in (world.folder / "report.html").read_text()


def test_the_report_is_opened_in_the_browser(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or False)
    assert run(["report", world.make_run(), "--open"]) == 0
    path = world.run / "report.html"
    assert opened == [path.resolve().as_uri()]
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n" and captured.err == f"No browser was found to open {path}.\n"


# ------------------------------------------------------------------------------------------------------- wrong input


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_mask(world: World, picture: Image.Image) -> None:
    picture.save(world.data / "SegmentationClassAug" / "train_aug_000000.png")


def wrong_yaml(w: World) -> list[object]:
    return w.train(config=w.write("broken.yaml", "training: ["))


def recall(w: World) -> Path:
    return w.experiment_with(method={"name": "recall"})


def eps(w: World, saliency: Path) -> Path:
    return w.experiment_with(method={"name": "eps", "saliency": str(saliency)})


def data_without_photographs(w: World) -> list[object]:
    (w.folder / "empty").mkdir()
    return w.train(data=w.folder / "empty")


def empty_split(w: World) -> list[object]:
    (w.data / "ImageSets/Segmentation/none.txt").touch()
    return w.train("--set", "data.train_split=none")


def missing_photograph(w: World) -> list[object]:
    w.make_run()
    w.photograph.unlink()
    return w.evaluate()


def folder_as_photograph(w: World) -> list[object]:
    photograph = w.data / "JPEGImages/train_aug_000000.jpg"
    photograph.unlink()
    photograph.mkdir()
    w.make_weights()
    return w.pseudo_masks("--classes", "all", "--split", "train_aug")


def truncated_photograph(w: World) -> list[object]:
    w.make_run()
    truncate(w.photograph)
    return w.evaluate()


def mask_of_another_size(w: World) -> list[object]:
    save_mask(w, Image.new("L", (3, 3)))
    return w.train()


def mask_in_colours(w: World) -> list[object]:
    save_mask(w, Image.new("RGB", (96, 72)))
    return w.train()


def mask_with_other_labels(w: World) -> list[object]:
    with Image.open(w.data / "JPEGImages/train_aug_000000.jpg") as photograph:
        save_mask(w, Image.new("L", photograph.size, 77))
    return w.train()


def missing_mask(w: World) -> list[object]:
    (w.data / "SegmentationClassAug/train_aug_000000.png").unlink()
    return w.train()


def weights_of_another_architecture(w: World) -> list[object]:
    w.make_weights()
    shutil.copy(w.weights / "test_vit.safetensors", w.weights / "test_efficientnet.safetensors")
    return w.train("--weights", w.weights, "--set", "segmenter.pretrained=true")


def broken_weights(w: World) -> list[object]:
    w.write("weights/test_efficientnet.safetensors", b"no weights")
    return w.train("--weights", w.weights, "--set", "segmenter.pretrained=true")


def run_without_step(w: World) -> list[object]:
    w.run.mkdir()
    return w.evaluate()


def run_with_broken_description(w: World) -> list[object]:
    (w.make_run() / "step0/model.json").write_text("{")
    return w.evaluate()


def run_with_truncated_weights(w: World) -> list[object]:
    truncate(w.make_run() / "step0/model.safetensors")
    return w.evaluate()


def run_with_other_weights(w: World) -> list[object]:
    save_file({"x": torch.zeros(1)}, w.make_run() / "step0/model.safetensors")
    return w.predict(w.photograph)


def run_without_config(w: World) -> list[object]:
    (w.make_run() / "config.yaml").unlink()
    return w.evaluate()


def other_settings_of_a_run(w: World) -> list[object]:
    w.out = w.make_run()
    return w.train("--set", "training.seed=7")


def base_that_is_no_run(w: World) -> list[object]:
    return w.train("--base", w.data)


def unfinished_step(w: World) -> list[object]:
    w.make_run()
    w.write("run/step1/metrics.jsonl", '{"iteration": 0}')
    return ["report", w.run]


def unfinished_locator(w: World) -> list[object]:
    w.make_run()
    w.write("run/step1/locator/metrics.jsonl", '{"iteration": 0}')
    return ["report", w.run]


def report_of_a_base_alone(w: World) -> list[object]:
    w.run.mkdir()
    (w.run / "config.yaml").touch()
    return ["report", w.run]


def broken_figures(w: World) -> list[object]:
    w.make_run()
    w.write("run/step0/evaluation.json", "{")
    return ["report", w.run]


def text_as_photograph(w: World) -> list[object]:
    w.make_run()
    return w.predict(w.write("notes.jpg", "no picture"))


def prediction_over_a_photograph(w: World) -> list[object]:
    photograph = w.folder / "mine.png"
    Image.new("RGB", (40, 30)).save(photograph)
    w.make_run()
    return ["predict", w.run, photograph, "--out", w.folder]


def split_in_another_encoding(w: World) -> list[object]:
    (w.data / "ImageSets/Segmentation/train_aug.txt").write_bytes("Schäfer\n".encode("latin-1"))
    return w.train()


def same_names(w: World) -> list[object]:
    w.make_run()
    return w.predict(w.photograph, shutil.copy(w.photograph, w.folder))


def output_is_a_file(w: World) -> list[object]:
    w.make_run()
    w.out.touch()
    return w.predict(w.photograph)


def tags_from_nowhere(w: World) -> list[object]:
    return w.train("--set", f"data.tags={w.folder / 'none.csv'}")


def tags_in_other_columns(w: World) -> list[object]:
    return w.train("--set", f"data.tags={w.write('tags.csv', 'name,labels')}")


def tags_of_unknown_classes(w: World) -> list[object]:
    return w.train("--set", f"data.tags={w.write('tags.csv', 'file,tags' + chr(10) + 'train_aug_000000,shepe')}")


def tags_from_xml_that_is_not_there(w: World) -> list[object]:
    return w.train("--set", "data.tags=xml")


def steps(w: World, steps: Any) -> list[object]:
    return w.train(config=w.experiment_with(protocol={"steps": steps, "setting": "overlap"}))


def bench(w: World, suite: object, *more: object) -> list[object]:
    (w.data / "classes.txt").write_text("\n".join((*BASE, *NEW)))
    return ["bench", suite, "--out", w.out, "--data", w.data, *more]


def suite_with_a_typo(w: World) -> list[object]:
    return bench(w, w.write("suite.yaml", "groups: [{name: A, entries: [{name: B, override: {}}]}]"))


WRONG: dict[str, tuple[Callable[[World], list[object]], str]] = {
    # the command line itself
    "unknown command": (lambda w: ["trian"], "No such command 'trian'"),
    "unknown option": (lambda w: w.train("--epochs", 3), "No such option: --epochs"),
    "missing option": (lambda w: ["train", w.experiment, "--out", w.out], "Missing option '--data'"),
    "missing argument": (lambda w: ["evaluate", "--data", w.data], "Missing argument 'RUN'"),
    "step in words": (lambda w: w.train("--step", "one"), "Invalid value for '--step'"),
    "negative step": (lambda w: w.train("--step", -1), "Invalid value for '--step'"),
    "no photographs": (lambda w: ["predict", w.make_run(), "--out", w.out], "Missing argument 'INPUT...'"),
    "unknown kind of evaluation": (lambda w: w.evaluate("--image", "half"), "Invalid value for '--image'"),
    "no devices": (lambda w: w.train("--devices", 0), "--devices 0: must be auto or a number"),
    "unknown precision": (lambda w: w.train("--precision", 8), "--precision 8: must be one of 32-true"),
    "half precision on a CPU": (lambda w: w.train("--precision", "16-mixed"), "--precision 16-mixed: half precision"),
    "synchronised batch norm on a CPU": (
        lambda w: w.train("--set", "training.sync_batch_norm=true"),
        "torch has synchronised batch norm for CUDA alone",
    ),
    "two ways to compute": (
        lambda w: w.train("--compile", "--activation-checkpointing"),
        "training.compile and training.activation_checkpointing exclude each other",
    ),
    "no machine": (lambda w: w.train("--num-nodes", 0), "Invalid value for '--num-nodes'"),
    "machines that cannot meet": (lambda w: w.train("--num-nodes", 2), "several nodes have to find each other"),
    "a device and devices": (
        lambda w: w.pseudo_masks("--device", "cpu", "--devices", 2), "--device is for one process"
    ),
    "unknown device": (lambda w: (w.make_run(), w.evaluate("--device", "abacus"))[1], "--device abacus"),
    "json of nothing": (lambda w: w.pseudo_masks("--json"), "give both"),
    "unknown supervision": (
        lambda w: ["bench", "emoji", "--data", w.data, "--out", w.out, "--supervision", "tags"],
        "Invalid value for '--supervision'",
    ),
    "replay for a method that replays nothing": (
        lambda w: w.train("--replay", w.folder),
        "--replay: unknown key method.replay (it belongs to recall, and method.name is fmwiss)",
    ),
    "nothing to replay": (lambda w: w.train(config=recall(w)), "give --replay DIR, or method.replay"),
    "no folder to replay": (
        lambda w: w.train("--replay", w.folder / "none", config=recall(w)),
        "none: is no folder",
    ),
    "folder to replay without a class": (
        lambda w: w.train("--replay", w.data, config=recall(w)),
        "has no folder aeroplane; every old class needs one",
    ),
    "no folder of saliency maps": (
        lambda w: w.train(config=eps(w, w.folder / "none")),
        "none: is no folder; give one with a grey picture ID.png",
    ),
    "saliency maps of no photograph": (
        lambda w: w.train(config=eps(w, w.data)),
        "missing saliency maps; every photograph of the step needs one",
    ),
    # the experiment file
    "no experiment file": (lambda w: w.train(config=w.folder / "none.yaml"), "there is no experiment file"),
    "folder as experiment file": (lambda w: w.train(config=w.data), "cannot be read: Is a directory"),
    "broken experiment file": (wrong_yaml, "is not valid YAML in line 1"),
    "unknown key": (lambda w: w.train("--set", "training.step.epochs=1"), "nearest right key is training.steps"),
    "no value": (lambda w: w.train("--set", "training.seed"), "must be path.to.key=value"),
    "value out of range": (lambda w: w.train("--set", "method.alpha=2"), "must be less than or equal to 1"),
    "unknown method": (lambda w: w.train("--set", "method.name=fmwis"), "method.name is fmwis but must be 'fmwiss'"),
    "key of another method": (lambda w: w.train("--set", "method.loss=bce"), "it belongs to finetuning"),
    "unknown split of classes": (lambda w: steps(w, "15-6"), "no named split; give one of 15-5, 10-10"),
    "unknown class": (lambda w: steps(w, [["cat"], ["shepe"]]), "the nearest known name is 'sheep'"),
    "class learnt twice": (lambda w: steps(w, [["cat"], ["cat"]]), "'cat' is named twice"),
    "step without classes": (lambda w: steps(w, [["cat"], []]), "has no class"),
    "step beyond the protocol": (lambda w: w.train("--step", 2), "steps 0 to 1"),
    "step before its turn": (lambda w: w.train("--step", 1), "step 0, which is not finished"),
    "unknown encoder": (lambda w: w.train("--set", "segmenter.encoder=resnett50"), "nearest names: resnet50"),
    "encoder that cannot be dilated": (lambda w: w.train("--set", "segmenter.encoder=test_vit"), "timm can dilate"),
    "unknown weights": (lambda w: w.train("--set", "segmenter.encoder=resnet18.none"), "its tags: a1_in1k"),
    "unknown loss of step 0": (
        lambda w: w.train("--set", "training.step0.loss=softmax"), "must be 'bce' or 'cross-entropy'"
    ),
    "joint training with frozen statistics": (
        lambda w: w.train(
            "--set", "training.steps.freeze_batch_norm=true", config=w.experiment_with(method={"name": "joint"})
        ),
        "as Joint begins with a new one; set it to false",
    ),
    "stride of no whole cells": (lambda w: w.train("--set", "method.loss_stride=7"), "does not divide data.crop_size"),
    "names that compete with nothing": (
        lambda w: w.pseudo_masks(
            "--set", "cosegmentation.vision_language={name: clip, model: RN50, tag: null, key_smoothing: true}"
        ),
        "name things under background",
    ),
    "rows of an unknown class": (
        lambda w: w.pseudo_masks("--set", "cosegmentation.vision_language.rows={shepe: [n02411705]}"),
        "the nearest known name is 'sheep'",
    ),
    # the data
    "no data": (lambda w: w.train(data=w.folder / "none"), "does not exist; give a folder in VOC's layout"),
    "data in another layout": (data_without_photographs, "has no JPEGImages"),
    "unknown list": (lambda w: w.train("--set", "data.train_split=all"), "there is no split 'all'"),
    "unknown validation list": (lambda w: w.train("--set", "data.val_split=vall"), "there is no split 'vall'"),
    "list in another encoding": (split_in_another_encoding, "cannot be read as text"),
    "empty list": (empty_split, "is empty"),
    "no photograph": (missing_photograph, "val_000000.jpg is missing"),
    "truncated photograph": (truncated_photograph, "val_000000.jpg cannot be read"),
    "folder for a photograph": (folder_as_photograph, "train_aug_000000.jpg cannot be read: Is a directory"),
    "no mask": (missing_mask, "train_aug_000000.png is missing"),
    "mask of another size": (mask_of_another_size, "they must be equal"),
    "mask in colours": (mask_in_colours, "is of mode RGB"),
    "mask with other labels": (mask_with_other_labels, "holds the label 77"),
    "no table of tags": (tags_from_nowhere, "none.csv does not exist"),
    "table of tags with other columns": (tags_in_other_columns, "the columns 'file' and 'tags'"),
    "table of tags with unknown classes": (tags_of_unknown_classes, "unknown class 'shepe'"),
    "no annotations": (tags_from_xml_that_is_not_there, "train_aug_000000.xml is missing"),
    # weights
    "no weights folder": (lambda w: w.pseudo_masks("--weights", w.folder / "none"), "none, is not a folder"),
    "weights of another architecture": (weights_of_another_architecture, "holds another architecture"),
    "broken weights": (broken_weights, "is not a readable safetensors file"),
    # runs
    "no run": (lambda w: w.evaluate(), "there is no such run"),
    "run without a finished step": (run_without_step, "holds no finished step"),
    "step that is not finished": (lambda w: (w.make_run(), w.evaluate("--step", 1))[1], "step 1 is not finished"),
    "unknown list to evaluate": (lambda w: (w.make_run(), w.evaluate("--split", "x"))[1], "there is no split 'x'"),
    "broken description of a model": (run_with_broken_description, "is not a model description"),
    "truncated model": (run_with_truncated_weights, "model.safetensors: cannot be read"),
    "weights of another model": (run_with_other_weights, "another architecture"),
    "run without its settings": (run_without_config, "config.yaml"),
    "run with other settings": (other_settings_of_a_run, "was started with training.seed = 0 but 7"),
    "base that is no run": (base_that_is_no_run, "step 0 is not finished"),
    "report of no run": (lambda w: ["report", w.folder / "none"], "there is no such run"),
    "report of a folder that is none": (lambda w: ["report", w.data], "holds no config.yaml"),
    "report of one good and one bad run": (lambda w: ["report", w.make_run(), w.data], "holds no config.yaml"),
    "report of a step under way": (unfinished_step, "step 1 is begun and not finished"),
    "report of a step whose locator learns": (unfinished_locator, "step 1 is begun and not finished"),
    "report of a run without a step": (report_of_a_base_alone, "holds no finished step"),
    "report of broken figures": (broken_figures, "evaluation.json: cannot be read as JSON"),
    "report of a run twice": (lambda w: ["report", w.make_run(), w.run], "is given more than once"),
    "report of nothing": (lambda w: ["report"], "Missing argument 'RUN...'"),
    "report into a folder": (lambda w: ["report", w.make_run(), "--out", w.data], "is a folder; give the name"),
    # suites
    "no suite": (lambda w: bench(w, "voc-mimi"), "there is no suite 'voc-mimi'; the nearest one is voc-mini"),
    "suite with an unknown key": (suite_with_a_typo, "the nearest right key is overrides"),
    "suite without data": (lambda w: bench(w, "voc-mini", "--data", w.folder / "none"), "none does not exist"),
    "suite for other classes": (lambda w: bench(w, "voc-mini", "--only", "CAM"), "splits 20 classes, and"),
    # photographs to predict, and where to
    "no such photograph": (lambda w: w.predict("none.jpg"), "there is no photograph none.jpg"),
    "text as photograph": (text_as_photograph, "notes.jpg cannot be read"),
    "photographs of one name": (same_names, "would both be written to val_000000.png"),
    "prediction over a photograph": (prediction_over_a_photograph, "would overwrite the photograph"),
    "output is a file": (output_is_a_file, "out is a file where a folder is needed"),
    # class names
    "presence without a background": (
        lambda w: w.pseudo_masks("--set", "cosegmentation.plus={presence: 1, background: null}"),
        "presence weighs classes that compete with a background",
    ),
    "unknown class for pseudo masks": (lambda w: w.pseudo_masks("--classes", "shepe"), "nearest known name is 'sheep'"),
    "empty list of classes": (lambda w: w.pseudo_masks("--classes", ","), "--classes names no class"),
    "classes and step": (lambda w: w.pseudo_masks("--classes", "cat", "--step", 1), "not both"),
    "classes of no step": (lambda w: w.pseudo_masks("--step", 5), "there is no step 5"),
    "classes without photographs": (lambda w: w.pseudo_masks("--classes", "cat"), "is tagged with cat"),
    "word without synsets": (lambda w: ["classes", "flurb"], "no ImageNet class stands for 'flurb'"),
    "override without a file": (lambda w: ["classes", "dog", "--set", "data.flip=1"], "give one with --config"),
    # the demo
    "demo in a folder of other things": (lambda w: ["demo", "--out", w.data], "holds other files"),
    "demo in a file": (lambda w: ["demo", "--out", w.photograph], "is a file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_sentence_and_exit_code_2(
    name: str, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    build, expected = WRONG[name]
    words = build(world)
    capfd.readouterr()
    code = run(words)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1 and err.startswith("fmwiss: ") and err.endswith(".\n"), err


def test_a_full_disk_is_told_in_one_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.make_run()

    def full(self: Image.Image, path: Path, **settings: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    assert run(world.predict(world.photograph)) == 2
    err = capfd.readouterr().err
    assert "the disk is full" in err and "Traceback" not in err and err.count("\n") == 1
    assert not list(world.out.iterdir())


def test_an_error_from_a_loader_process_is_one_sentence_too() -> None:
    # torch hands on an exception of a worker as a new one of its type, with the whole traceback as its text
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\nfmwiss.errors.UserError: x.jpg"
    assert cli._sentence(UserError(text)) == "x.jpg"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "number_of_processes", broken)
    with pytest.raises(ZeroDivisionError):
        run(["train", Path(__file__).parents[1] / "configs/voc/15-5-overlap/fmwiss.yaml", "--data", "x", "--out", "y"])


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "app", interrupted)
        assert run(["train"]) == 130
    assert "goes on where it was" in capsys.readouterr().err
    monkeypatch.setattr(cli, "number_of_processes", interrupted)  # inside a command typer takes the exception
    config = Path(__file__).parents[1] / "configs/voc/15-5-overlap/fmwiss.yaml"
    assert run(["train", config, "--data", "x", "--out", "y"]) == 130
    assert "goes on where it was" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    program = [sys.executable, "-c", "from fmwiss.cli import main; main()", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert done.stderr == ""
