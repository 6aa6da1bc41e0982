"""The demo: the whole way from tags to a grown model and its report, with the package's trained models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from fmwiss.cli import run
from fmwiss.demo import run_demo
from fmwiss.errors import UserError

SMALL = ("training.step0.epochs=4", "training.steps.epochs=2", "method.loss_stride=4", "data.workers=0")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "untouched"))
        run_demo(folder / "demo", n_train=80, n_val=20, settings=SMALL)
    assert not (folder / "untouched" / "fmwiss").exists()  # everything lies in --out
    return folder / "demo"


def test_both_methods_grow_the_same_base_model(demo: Path) -> None:
    figures = {
        method: [json.loads((demo / method / f"step{t}/evaluation.json").read_text()) for t in (0, 1)]
        for method in ("fmwiss", "finetuning")
    }
    assert figures["fmwiss"][0]["iou"] == figures["finetuning"][0]["iou"]
    assert figures["fmwiss"][1]["images"] == 20
    assert figures["fmwiss"][0]["iou"]["background"] > 60
    losses = {}
    for method in figures:
        lines = (demo / method / "step1/metrics.jsonl").read_text().splitlines()
        losses[method] = {name for line in map(json.loads, lines) for name in line.get("losses", ())}
    assert losses["finetuning"] == {"all_bce"} and losses["fmwiss"] > losses["finetuning"]
    weights = [load_file(demo / method / "step1/model.safetensors") for method in figures]
    assert weights[0].keys() == weights[1].keys()
    assert any(not tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


def test_the_report_and_the_predictions_are_there(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert page.count("<html") == 1 and "finetuning" in page
    overlays = sorted((demo / "predictions").glob("*_overlay.png"))
    assert len(overlays) == 8
    with Image.open(overlays[0]) as overlay:
        overlay.verify()


def test_what_the_demo_ran_can_be_done_by_hand(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [word for setting in ("training.seed=0", *SMALL) for word in ("--set", setting)]
    folders = ["--data", str(demo / "data"), "--cache", str(demo / "cache"), "--out", str(demo / "fmwiss")]
    assert run(["train", str(demo / "fmwiss.yaml"), *folders, *settings]) == 0
    assert "nothing to do, every step is finished already" in capfd.readouterr().err


def test_pseudo_masks_of_trained_models_are_good(demo: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = ["--data", str(demo / "data"), "--cache", str(demo / "cache"), "--out", str(tmp_path / "masks")]
    command = ["pseudo-masks", str(demo / "fmwiss.yaml"), *folders, "--evaluate", "--json", "--split", "val"]
    assert run([*command, "--classes", "all"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["init"]["miou"] > 25 and figures["refined"]["miou"] > figures["init"]["miou"]


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()
