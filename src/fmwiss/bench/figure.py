"""One picture of a suite's tables: bars with deviations, and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmwiss.bench.results import Summary, Table
from fmwiss.files import write_atomically

WIDTH, HEIGHT = 7.0, 3.6  # inches a panel
_COLUMNS = 2
_DIAGNOSTIC = "true masks"
_LONG_TITLE = 30
"""Letters of a title that leaves no room for the legend beside it."""

_MOST_BESIDE = 4
"""Columns whose legend leaves room for a title beside it."""


def write_figure(tables: Sequence[Table], title: str, path: Path) -> None:
    """Draw a panel for each table, and another one for its curves, as PNG."""
    with rc_context({"text.parse_math": False}):  # names are the user's, and a $ in one begins no formula
        _draw(tables, title, path)


def _draw(tables: Sequence[Table], title: str, path: Path) -> None:
    panels: list[tuple[Any, Table]] = []
    for table in tables:
        panels.append((_bars, table))
        if table.curve:
            panels.append((_curves, table))
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, place in enumerate(axes.flat):
        if number < len(panels):
            draw, table = panels[number]
            draw(place, table)
            place.spines[["top", "right"]].set_visible(False)
        else:
            place.set_axis_off()
    write_atomically(path, lambda file: figure.savefig(file, dpi=100, format="png"))


def _bars(axes: Any, table: Table) -> None:
    """One group of bars a row, one bar a column; a diamond is the paper's figure."""
    width = 0.8 / len(table.columns)
    for number, column in enumerate(table.columns):
        shift = (number - (len(table.columns) - 1) / 2) * width
        summaries = [row.summary(column) for row in table.rows]
        there = [(place + shift, s) for place, s in enumerate(summaries) if s.mean is not None]
        axes.bar(
            [place for place, _ in there],
            [s.mean for _, s in there],
            width,
            yerr=[s.deviation or 0.0 for _, s in there],
            capsize=2,
            error_kw={"linewidth": 1},
            label=table.heading(column),
            color=f"C{number}",
        )
        paper = [(place + shift, row.paper.get(column)) for place, row in enumerate(table.rows)]
        marks = [(place, value) for place, value in paper if value is not None]
        if marks:
            axes.plot(
                *zip(*marks, strict=True),
                linestyle="",
                marker="D",
                markersize=4,
                markerfacecolor="white",
                markeredgecolor=f"C{number}",
                label="paper" if number == 0 else None,
            )
    labels = [f"{row.name}\n({_DIAGNOSTIC})" if row.diagnostic else row.name for row in table.rows]
    tilted = max(len(line) for label in labels for line in label.splitlines()) * len(labels) > 80
    axes.set_xticks(range(len(labels)), labels, rotation=30 if tilted else 0, ha="right" if tilted else "center")
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mIoU, per cent")
    # above the panel, beside its title, where no bar can be; over a long title's end it would lie
    crowded = len(table.name) > _LONG_TITLE or len(table.columns) > _MOST_BESIDE
    axes.set_title(table.name, loc="left", pad=20 if crowded else None)
    axes.legend(frameon=False, fontsize="small", ncols=5, loc="lower right", bbox_to_anchor=(1, 1), columnspacing=1)


def _curves(axes: Any, table: Table) -> None:
    """mIoU over all classes by epoch, a line a row, with its deviation as a band."""
    for number, row in enumerate(table.rows):
        points = [(epoch, columns["all"]) for epoch, columns in row.curve() if columns["all"].mean is not None]
        epochs = [epoch for epoch, _ in points]
        means = [_mean(summary) for _, summary in points]
        axes.plot(epochs, means, marker="o", markersize=3, color=f"C{number}", label=row.name)
        deviations = [summary.deviation or 0.0 for _, summary in points]
        if any(deviations):
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            axes.fill_between(epochs, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch of the last step, warm-up included")
    axes.set_ylabel("mIoU all, per cent")
    axes.set_title(f"{table.name}, by epoch", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize="small")


def _mean(summary: Summary) -> float:
    return math.nan if summary.mean is None else summary.mean
