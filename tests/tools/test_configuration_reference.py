"""docs/configuration.md says what the typed models say."""

from __future__ import annotations

import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "write_configuration_reference.py"


def test_the_page_is_up_to_date() -> None:
    tool = runpy.run_path(str(TOOL))
    advice = "run `python tools/write_configuration_reference.py`"
    assert tool["PAGE"].read_text(encoding="utf-8") == tool["reference"](), advice


def test_every_option_has_a_row() -> None:
    text = runpy.run_path(str(TOOL))["reference"]()
    for row in ("| `alpha` | number, >= 0, <= 1 | `0.5` |", "| `scale` | list of 2 numbers |", "## training.step0"):
        assert row in text
