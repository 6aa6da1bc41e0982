"""The commands that use a model: predict, export and push, from the command line to the files.

``fmwiss export`` runs end to end in ``tests/inference/test_export.py``, where the file that it writes is looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fmwiss
from fmwiss import cli
from fmwiss.commands import predict as module
from fmwiss.config import Config, dump_config
from fmwiss.files import write_atomically
from fmwiss.models import Architecture, Segmenter

CLASSES = ("cat", "traffic light")  # not all of VOC's, so that a PNG's indices are the model's labels


class World:
    """A run, a folder of photographs and a place for results, right as it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.photos, self.out = folder, folder / "run", folder / "photos", folder / "out"
        torch.manual_seed(0)
        segmenter = Segmenter(
            Architecture(
                encoder="test_efficientnet",
                output_stride=16,
                decoder_channels=8,
                atrous_rates=(1, 1, 1),
                dropout=0.5,
                steps=(CLASSES[:1], CLASSES[1:]),
                resize=32,
            )
        )
        with torch.no_grad():  # a label of its own for every part of a photograph
            for layer in segmenter.classifier.steps:
                layer.weight.normal_(std=100)
        segmenter.save(self.run / "step1")
        experiment = {"protocol": {"steps": [[name] for name in CLASSES]}}
        (self.run / "config.yaml").write_text(dump_config(Config.model_validate(experiment)))
        (self.photos / "sub").mkdir(parents=True)
        self.photograph = self.photos / "a.jpg"
        self.save(self.photograph, 40, 60, 0)
        self.save(self.photos / "b.png", 90, 50, 1)
        self.save(self.photos / "sub" / "a.webp", 33, 33, 2)

    @staticmethod
    def save(path: Path, height: int, width: int, seed: int) -> Path:
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
        return path

    def video(self, name: str = "clip.mp4", frames: int = 7) -> Path:
        pytest.importorskip("av", reason="videos need PyAV (fmwiss[video])")
        from fmwiss.inference.video import VideoWriter

        path = self.photos / name
        with Image.open(self.photograph) as photograph:
            first = photograph.convert("RGB")
        with VideoWriter(path, (40, 60), Fraction(25), Fraction(1, 100)) as writer:
            for number in range(frames):
                writer.write(first.rotate(20 * number), 4 * number)
        return path

    def predict(self, *more: object) -> list[object]:
        return ["predict", self.run, *more, "--out", self.out]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(words: Sequence[object]) -> int:
    return cli.run([str(word) for word in words])


def in_a_process(words: Sequence[object], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from fmwiss.cli import main; main()", *map(str, words)]
    return subprocess.run(
        program, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **environment}
    )


# ------------------------------------------------------------------------------------------------------------ predict


def test_predict_end_to_end(world: World) -> None:
    """A folder and a glob in a process of its own, one photograph truncated: everything else is there."""
    broken = world.photos / "c.jpg"
    broken.write_bytes(world.photograph.read_bytes()[:200])
    other = world.save(world.folder / "other.jpg", 20, 30, 3)
    words = world.predict("photos", "oth*.jpg", "--json", "--batch-size", "2")
    done = in_a_process(words, world.folder)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 2 and done.stderr.startswith("4 predictions and as many overlays are in")
    assert done.stderr.endswith(
        "fmwiss: 1 of 5 files could not be read to the end: photos/c.jpg cannot be read, it is truncated or no "
        "picture.\n"
    )
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1 and found["class_names"] == ["background", *CLASSES]
    assert found["failed"] == [
        {"file": "photos/c.jpg", "reason": "photos/c.jpg cannot be read, it is truncated or no picture"}
    ]
    assert found["videos"] == []
    model = fmwiss.load(world.run)
    expected = {"photos/a.jpg": "a", "photos/b.png": "b", "photos/sub/a.webp": "sub/a", "other.jpg": "other"}
    assert [record["file"] for record in found["photographs"]] == list(expected)
    for record in found["photographs"]:
        stem = expected[record["file"]]
        assert record["mask"] == str(world.out / f"{stem}.png")
        own = model.predict(world.folder / record["file"])
        with Image.open(record["mask"]) as labels, Image.open(record["overlay"]) as overlay:
            assert labels.mode == "P" and overlay.mode == "RGB"
            pixels = np.array(labels)
        assert (pixels == own).mean() > 0.99 and (record["height"], record["width"]) == own.shape
        shares = np.array(list(record["shares"].values()))
        np.testing.assert_allclose(shares, np.bincount(pixels.ravel(), minlength=3) / pixels.size, atol=1e-6)
    files = sorted(str(path.relative_to(world.out)) for path in world.out.rglob("*") if path.is_file())
    assert files == sorted(f"{stem}{end}" for stem in expected.values() for end in (".png", "_overlay.png"))
    assert other.is_file()


def test_predict_video_end_to_end(world: World) -> None:
    from fmwiss.inference.video import VideoReader

    clip = world.video()
    done = in_a_process(world.predict(clip, world.photograph, "--frames", "--json", "--batch-size", "3"), world.folder)
    assert done.returncode == 0, done.stderr
    assert "1 prediction and its overlay are in" in done.stderr and "1 video with its overlay is in" in done.stderr
    (record,) = json.loads(done.stdout)["videos"]
    assert (record["frames"], record["width"], record["height"]) == (7, 60, 40)
    assert sum(record["shares"].values()) == pytest.approx(1, abs=1e-5)
    masks = sorted((world.out / "clip_masks").iterdir())
    assert [path.name for path in masks] == [f"{number:06d}.png" for number in range(7)]
    model = fmwiss.load(world.run)
    with VideoReader(clip) as source, VideoReader(world.out / "clip_overlay.mp4") as overlay:
        before, after = list(source), list(overlay)
        assert source.rate == overlay.rate
    assert len(after) == 7 and len({frame.image.shape for frame in after}) == 1
    assert after[0].image.shape[1] > 40  # the legend below
    for path, frame in zip(masks, before, strict=True):
        with Image.open(path) as mask:
            assert (np.array(mask) == model.predict(frame.image)).mean() > 0.99
    assert not [path for path in world.out.iterdir() if path.name.startswith(".")]


def test_a_video_that_breaks_off_keeps_its_frames(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fmwiss.errors import UserError
    from fmwiss.inference.video import VideoReader

    clip, whole = world.video(), VideoReader.__iter__

    def broken(self: VideoReader) -> Any:
        for number, frame in enumerate(whole(self)):
            if number == 5:
                raise UserError(f"{self.path} breaks off after 5 frames")
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", broken)
    assert run(world.predict(clip, "--json", "--batch-size", "2", "--frames")) == 2
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["videos"][0]["frames"] == 5 and len(list((world.out / "clip_masks").iterdir())) == 5
    assert "1 of 1 file could not be read to the end" in err and "breaks off after 5 frames" in err
    monkeypatch.undo()
    with VideoReader(world.out / "clip_overlay.mp4") as reader:
        assert len(list(reader)) == 5


def test_a_killed_process_leaves_whole_files_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = world.video()
    seen: list[list[str]] = []

    def watched(path: Path, write: Callable[[Path], object]) -> None:
        def slowly(temporary: Path) -> None:
            write(temporary)
            seen.append([file.name for file in path.parent.iterdir() if not file.name.startswith(".")])

        write_atomically(path, slowly)

    monkeypatch.setattr(module, "write_atomically", watched)
    assert run(world.predict(clip)) == 0
    assert seen == [[]] and [path.name for path in world.out.iterdir()] == ["clip_overlay.mp4"]


def test_tiles_and_sizes_reach_the_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    predict = fmwiss.Model.predict

    def watched(self: Any, images: Any, **options: Any) -> Any:
        given.append(options)
        return predict(self, images, **options)

    monkeypatch.setattr(fmwiss.Model, "predict", watched)
    assert run(world.predict(world.photograph)) == 0
    assert run(world.predict(world.photograph, "--tile", "64", "--resize", "none", "--batch-size", "1")) == 0
    assert run(world.predict(world.photograph, "--tile", "none", "--resize", "50")) == 0
    assert given == [
        {"tile": "auto", "resize": "trained", "batch_size": 8},
        {"tile": 64, "resize": None, "batch_size": 1},
        {"tile": None, "resize": 50, "batch_size": 8},
    ]


def test_too_little_memory_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    predict = fmwiss.Model.predict

    def scarce(self: Any, images: Any, **options: Any) -> Any:
        if len(list(world.out.rglob("*.png"))) == 4:
            raise MemoryError
        return predict(self, images, **options)

    monkeypatch.setattr(fmwiss.Model, "predict", scarce)
    assert run(world.predict(world.photos, "--batch-size", "1")) == 2
    sentence = "fmwiss: the memory does not suffice; a smaller --batch-size or --tile needs less.\n"
    assert capfd.readouterr().err == sentence
    assert len(list(world.out.rglob("*.png"))) == 4  # what was done is kept


def test_predict_takes_a_saved_model(world: World) -> None:
    fmwiss.load(world.run).save_pretrained(world.folder / "saved")
    assert run(["predict", world.folder / "saved", world.photograph, "--out", world.out]) == 0
    assert (world.out / "a.png").is_file()


# ---------------------------------------------------------------------------------------------------- export and push


def test_export_says_its_figures(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fmwiss.inference import export

    network = export._Whole(fmwiss.load(world.run).segmenter)
    monkeypatch.setattr(export, "_program", lambda _: None)
    monkeypatch.setattr(export, "_torch_bytes", lambda *_: b"archive")
    monkeypatch.setattr(export, "_torch_run", lambda _: network)
    words = ["export", world.run, "--format", "torch", "--out", world.folder / "m.pt2"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{words[-1]}: ") and "labels equal on 100.00 % of the pixels" in printed
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["bytes"], found["agreement"], found["largest_difference"]) == ("torch", 7, 1.0, 0.0)


def test_push_end_to_end(world: World) -> None:
    words = ["push", world.run, "me/model", "--license", "cc-by-4.0", "--dataset", "mine"]
    done = in_a_process([*words, "--card"], world.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("---\nlicense: cc-by-4.0\n") and 'fmwiss.load("me/model")' in done.stdout
    assert "| 1 | tags | traffic light |" in done.stdout and str(world.folder) not in done.stdout


def test_push_publishes(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    class FakeApi:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> str:
            asked.append(f"create {repo_id} {options['private']}")
            return "https://hub.invalid/me/model"

        def upload_folder(self, **options: Any) -> None:
            asked.append(" ".join(sorted(path.name for path in options["folder_path"].iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    assert run(["push", world.run, "me/model", "--license", "mit", "--private"]) == 0
    assert capsys.readouterr().out == "https://hub.invalid/me/model\n"
    assert asked == ["create me/model True", "README.md config.json model.json model.safetensors"]


# -------------------------------------------------------------------------------------------------------- wrong input


def truncated(w: World) -> list[object]:
    w.photograph.write_bytes(w.photograph.read_bytes()[:200])
    return w.predict(w.photograph)


def truncated_weights(w: World) -> list[object]:
    path = w.run / "step1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return ["export", w.run, "--out", w.out]


def unfinished(w: World) -> list[object]:
    shutil.rmtree(w.run / "step1")
    return w.predict(w.photograph)


def empty_folder(w: World) -> list[object]:
    (w.folder / "empty").mkdir()
    return w.predict(w.folder / "empty")


def text_as_photograph(w: World) -> list[object]:
    (w.folder / "notes.jpg").write_text("no photograph")
    return w.predict(w.folder / "notes.jpg")


def text_as_video(w: World) -> list[object]:
    pytest.importorskip("av", reason="videos need PyAV (fmwiss[video])")
    (w.folder / "notes.mp4").write_text("no video")
    return w.predict(w.folder / "notes.mp4")


def sixteen_bits(w: World) -> list[object]:
    Image.new("I;16", (9, 9)).save(w.folder / "deep.png")
    return w.predict(w.folder / "deep.png")


def same_names(w: World) -> list[object]:
    shutil.copy(w.photograph, w.folder / "a.jpg")
    return w.predict(w.photograph, w.folder / "a.jpg")


def export(w: World, *more: object) -> list[object]:
    return ["export", w.run, *more]


def push(w: World, name: str, *more: object) -> list[object]:
    return ["push", w.run, name, *more]


WRONG: dict[str, tuple[Callable[[World], list[object]], str]] = {
    "missing run": (lambda w: ["predict", w.folder / "none", w.photograph, "--out", w.out], "there is no such run"),
    "not a run": (lambda w: ["predict", w.photos, w.photograph, "--out", w.out], "holds no finished step"),
    "file as run": (lambda w: ["predict", w.photograph, w.photograph, "--out", w.out], "is a file; give the folder of"),
    "run without a finished step": (unfinished, "holds no finished step"),
    "step that is not finished": (lambda w: w.predict(w.photograph, "--step", 0), "step 0 is not finished"),
    "truncated photograph": (truncated, "a.jpg cannot be read, it is truncated or no picture"),
    "text as photograph": (text_as_photograph, "notes.jpg cannot be read"),
    "text as video": (text_as_video, "notes.mp4 cannot be read, it is truncated or no video"),
    "photograph of 16 bits": (sixteen_bits, "has more than 8 bits a channel"),
    "empty folder": (empty_folder, "is a folder without photographs and videos"),
    "glob without matches": (lambda w: w.predict(f"{w.photos}/*.bmp"), "nothing matches"),
    "no such photograph": (lambda w: w.predict("none.jpg"), "there is no photograph none.jpg"),
    "two of one name": (same_names, "would both be written to a.png"),
    "over a photograph": (
        lambda w: ["predict", w.run, w.photos / "b.png", "--out", w.photos], "would overwrite the photograph"
    ),
    "output is a file": (
        lambda w: ["predict", w.run, w.photograph, "--out", w.photograph], "is a file where a folder is needed"
    ),
    "tile of no multiple": (lambda w: w.predict(w.photograph, "--tile", 100), "a multiple of 32 from 64"),
    "tile that is a word": (
        lambda w: w.predict(w.photograph, "--tile", "big"), "must be auto, none or a multiple of 32 from 64"
    ),
    "size that is nothing": (lambda w: w.predict(w.photograph, "--resize", 0), "must be trained, none or a number"),
    "batch of nothing": (lambda w: w.predict(w.photograph, "--batch-size", 0), "Invalid value for '--batch-size'"),
    "device that is not there": (lambda w: w.predict(w.photograph, "--device", "abacus"), "there is no such device"),
    "precision for training": (lambda w: w.predict(w.photograph, "--precision", "64-true"), "precision 64-true"),
    "corrupt weights": (truncated_weights, "model.safetensors: cannot be read"),
    "wrong format": (lambda w: export(w, "--format", "tflite", "--out", w.out), "'tflite' is not one of"),
    "export into a folder": (lambda w: export(w, "--out", w.photos), "is a folder; give the name of a file"),
    "export without a place": (lambda w: export(w), "Missing option '--out'"),
    "push without a licence": (lambda w: push(w, "me/model"), "Missing option '--license'"),
    "push to no name": (lambda w: push(w, "model", "--license", "mit"), "give owner/name"),
    "push with an empty licence": (lambda w: push(w, "me/model", "--license", ""), "needs a licence"),
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
    assert (code, out) == (2, ""), err
    assert expected in err
    assert err.count("\n") == 1 and err.startswith("fmwiss: ") and err.endswith(".\n"), err
    assert not world.out.exists() or not list(world.out.iterdir())


@pytest.mark.parametrize(
    ("missing", "words", "sentence"),
    [
        ("av", lambda w: w.predict(w.video()), "needs av, not installed here; pip install 'fmwiss[video]'"),
        ("onnx", lambda w: export(w, "--out", w.out), "needs onnx, not installed here; pip install 'fmwiss[export]'"),
        ("onnxruntime", lambda w: export(w, "--out", w.out), "needs onnxruntime, not installed here"),
    ],
)
def test_a_missing_extra_is_told(
    missing: str,
    words: Callable[[World], list[object]],
    sentence: str,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    line = words(world)
    monkeypatch.setitem(sys.modules, missing, None)
    assert run(line) == 2
    err = capfd.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not world.out.exists()
