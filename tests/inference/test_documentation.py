"""The Python examples of docs/use.md run as they are printed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "use.md"


def test_every_example_runs(
    run: Path,
    scene: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    shutil.copytree(run, place / "runs" / "15-5-ov")
    Image.fromarray(scene(70, 90)).save(place / "photo.jpg")
    monkeypatch.chdir(place)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 4
    assert capsys.readouterr().out.strip() in names["model"].class_names
    assert [mask.shape for mask in names["masks"]] == [(70, 90), (70, 90), (48, 64)]
    assert names["prediction"].probabilities.shape == (4, 70, 90) and names["mask"].shape == (300, 700)
    assert names["same"].class_names == names["model"].class_names
    assert (place / "overlay.png").is_file() and (place / "shared" / "README.md").is_file()
