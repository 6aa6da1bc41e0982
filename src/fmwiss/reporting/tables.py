"""Figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def evaluation_table(figures: Mapping[str, Any]) -> Table:
    """IoU of every class and the means, in per cent; a dash where there is nothing to measure.

    Args:
        figures: what ``Evaluation.as_dict`` gives.
    """
    table = _table("class", ["IoU"])
    for name, value in figures["iou"].items():
        table.add_row(name, per_cent(value))
    table.add_section()
    for name, value in figures["miou"].items():
        table.add_row(f"mIoU {name}", per_cent(value))
    table.add_row("pixel accuracy", per_cent(figures["pixel_accuracy"]))
    return table


def stages_table(figures: Mapping[str, Any]) -> Table:
    """IoU of every class at every stage of co-segmentation, and the means, in per cent.

    Args:
        figures: what ``evaluate_pseudo_masks`` gives: stage -> ``{"iou": {class: IoU}, "miou": mean}``, and ``images``.
    """
    stages = {name: stage for name, stage in figures.items() if name != "images"}
    table = _table("class", list(stages))
    for name in next(iter(stages.values()))["iou"]:
        table.add_row(name, *(per_cent(stage["iou"][name]) for stage in stages.values()))
    table.add_section()
    table.add_row("mIoU", *(per_cent(stage["miou"]) for stage in stages.values()))
    return table


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Cells as they are, the first column to the left, the others to the right."""
    table = _table(head[0], list(head[1:]))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def settings_table(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Settings, their values and why they are what they are."""
    table = Table()
    for column in ("setting", "value", "why"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def runs_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Means over old, new and all classes of several runs, in per cent, the best grown model's in bold.

    Args:
        runs: label -> what ``Evaluation.as_dict`` gives; a base model has no new classes and does not compete.
    """
    grown = [run["miou"] for run in runs.values() if run["miou"]["new"] is not None]
    best = {mean: max((miou[mean] for miou in grown), default=None) for mean in ("old", "new", "all")}
    table = _table("", list(best))
    for label, run in runs.items():
        miou = run["miou"]
        competes = miou["new"] is not None and len(grown) > 1
        table.add_row(
            label,
            *(f"[bold]{per_cent(miou[m])}[/]" if competes and miou[m] == best[m] else per_cent(miou[m]) for m in best),
        )
    return table


def per_cent(value: float | None) -> str:
    """One decimal, as the field's tables have it."""
    return "-" if value is None else f"{value:.1f}"


def _table(first: str, columns: list[str]) -> Table:
    table = Table()
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
