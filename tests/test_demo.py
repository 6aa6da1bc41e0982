"""The demo goes through every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fmwiss.cli import run


def test_the_demo_trains_evaluates_predicts_and_makes_masks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "untouched"))
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    for command in ("train", "evaluate", "report", "predict", "pseudo-masks"):
        assert f"$ fmwiss {command} " in printed
    assert "untrained" in printed and "mIoU new" in printed and "refined" in printed
    assert json.loads((out / "run/step1/evaluation.json").read_text())["images"] == 16
    assert "learnt in step 1" in (out / "run/report.html").read_text()
    overlays = sorted((out / "predictions").glob("*_overlay.png"))
    assert len(overlays) == 4
    with Image.open(overlays[0]) as overlay:
        overlay.verify()
    assert list((out / "pseudo/masks").glob("*.png")) and list((out / "pseudo/pictures").glob("*.png"))
    assert not (tmp_path / "untouched" / "fmwiss").exists()  # --cache is followed

    # what the first line of the demo says can be done by hand: nothing is left to train
    common = ["--data", str(out / "data"), "--weights", str(out / "weights"), "--cache", str(out / "cache")]
    assert run(["train", str(out / "experiment.yaml"), *common, "--out", str(out / "run")]) == 0
    captured = capfd.readouterr()
    assert captured.out == "" and "nothing to do, every step is finished already" in captured.err
