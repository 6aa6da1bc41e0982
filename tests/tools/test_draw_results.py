"""The picture of the results, and that the page beside it says what the runs gave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"


def test_every_run_gets_its_bars(tmp_path: Path) -> None:
    runs = {
        "base": {"miou": {"old": 50.0, "new": None, "all": 55.0}, "iou": {"background": 80.0, "cat": 50.0}},
        "grown": {"miou": {"old": 49.0, "new": 20.0, "all": 45.0}, "iou": {"background": 78.0, "cat": 49.0, "cow": 9}},
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, "tools/draw_results.py", str(tmp_path / "runs.json"), str(tmp_path / "runs.png")]
    subprocess.run(command, check=True, cwd=ROOT)
    with Image.open(tmp_path / "runs.png") as picture:
        assert picture.size == (1200, 400)
        colours = {colour for count, colour in picture.convert("RGB").getcolors(1 << 20) or [] if count > 500}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # matplotlib's first two, one a run


def test_the_page_says_what_the_runs_gave() -> None:
    page = (RESULTS / "voc-mini.md").read_text(encoding="utf-8")
    runs = json.loads((RESULTS / "voc-mini.json").read_text(encoding="utf-8"))
    assert runs
    for label, run in runs.items():
        means = [run["miou"][mean] for mean in ("old", "new", "all")]
        row = " | ".join("" if mean is None else f"{mean:.1f}" for mean in means).replace("|  |", "| |")
        assert f"| {label} | {row} |" in page, f"the row of {label} should read {row}"
