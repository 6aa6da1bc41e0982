"""Figures as tables."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from fmwiss.reporting.tables import evaluation_table, runs_table, stages_table


def lines_of(table: Table) -> list[list[str]]:
    screen = io.StringIO()
    Console(file=screen, width=100).print(table)
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in screen.getvalue().splitlines()]


def test_an_evaluation_shows_every_class_and_the_papers_columns() -> None:
    figures: dict[str, Any] = {
        "step": 1,
        "images": 3,
        "miou": {"old": 50.04, "new": None, "all": 66.66},
        "pixel_accuracy": 91.0,
        "iou": {"background": 90.0, "potted plant": None},
    }
    lines = lines_of(evaluation_table(figures))
    for row in (
        ["background", "90.0"],
        ["potted plant", "-"],
        ["mIoU old", "50.0"],
        ["mIoU new", "-"],
        ["mIoU all", "66.7"],
        ["pixel accuracy", "91.0"],
    ):
        assert row in lines


def test_stages_stand_in_columns() -> None:
    figures: dict[str, Any] = {
        "images": 2,
        "init": {"iou": {"cat": 1.0, "dog": None}, "miou": 1.0},
        "refined": {"iou": {"cat": 2.0, "dog": 3.0}, "miou": 2.5},
    }
    lines = lines_of(stages_table(figures))
    for row in (["cat", "1.0", "2.0"], ["dog", "-", "3.0"], ["mIoU", "1.0", "2.5"]):
        assert row in lines


def test_runs_stand_in_rows_with_the_best_grown_model_in_bold() -> None:
    runs: dict[str, dict[str, Any]] = {
        "base model": {"miou": {"old": 60.0, "new": None, "all": 62.0}},
        "fmwiss": {"miou": {"old": 58.0, "new": 41.26, "all": 55.0}},
        "finetuning": {"miou": {"old": 20.0, "new": 43.0, "all": 27.0}},
    }
    table = runs_table(runs)
    lines = lines_of(table)
    for row in (
        ["base model", "60.0", "-", "62.0"],
        ["fmwiss", "58.0", "41.3", "55.0"],
        ["finetuning", "20.0", "43.0", "27.0"],
    ):
        assert row in lines
    cells = [str(cell) for column in table.columns for cell in column.cells]
    assert [cell for cell in cells if "bold" in cell] == ["[bold]58.0[/]", "[bold]43.0[/]", "[bold]55.0[/]"]
