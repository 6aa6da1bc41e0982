"""The tables of a suite as Markdown, CSV and JSON: the same figures, for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fmwiss
from fmwiss.bench.results import Difference, Result, Summary, Table, TableRow
from fmwiss.bench.suite import Suite
from fmwiss.files import write_atomically

MARKDOWN, CSV, JSON, FIGURE = "results.md", "results.csv", "results.json", "results.png"
DIAGNOSTIC = "diagnostic: true masks"
_NOTHING = "-"


def write_tables(suite: Suite, name: str, tables: Sequence[Table], out: Path) -> None:
    """Write the three files, each whole or not at all."""
    for file, text in (
        (JSON, as_json(suite, name, tables)),
        (CSV, as_csv(tables)),
        (MARKDOWN, as_markdown(suite, name, tables)),
    ):
        write_atomically(out / file, _writer(text))


def _writer(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


# --------------------------------------------------------------------------------------------------------------- JSON


def as_json(suite: Suite, name: str, tables: Sequence[Table]) -> str:
    """Every figure, of every run and class too; per cent and minutes, unrounded."""
    value = {
        "suite": name,
        "title": suite.title,
        "fmwiss": fmwiss.__version__,
        "groups": [
            {
                "name": table.name,
                "kind": table.kind,
                "columns": list(table.columns),
                "rows": [_json_row(table, row) for row in table.rows],
                "differences": [_json_difference(table, one) for one in table.differences],
            }
            for table in tables
        ],
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _json_row(table: Table, row: TableRow) -> dict[str, Any]:
    summaries = {column: row.summary(column) for column in table.columns}
    kinds = dict.fromkeys(kind for result in row.results for kind in result.iou)
    value = {
        "name": row.name,
        "config": row.file,
        "overrides": dict(row.overrides),
        "diagnostic": row.diagnostic,
        "seeds": [result.seed for result in row.results],
        "missing_seeds": list(row.missing),
        "mean": {column: summary.mean for column, summary in summaries.items()},
        "deviation": {column: summary.deviation for column, summary in summaries.items()},
        "iou": {kind: {name: asdict(one) for name, one in row.iou(kind).items()} for kind in kinds},
        "minutes": asdict(row.minutes()),
        "commits": list(row.commits),
        "runs": [_json_result(result) for result in row.results],
    }
    if table.kind == "training":
        value |= {"paper": dict(row.paper) or None, "old_before": asdict(row.base())}
    if table.curve:
        value["curve"] = [
            {"epoch": epoch, **{column: asdict(summary) for column, summary in columns.items()}}
            for epoch, columns in row.curve()
        ]
    return value


def _json_result(result: Result) -> dict[str, Any]:
    value = {
        "seed": result.seed,
        "folder": result.folder,
        "figures": dict(result.figures),
        "iou": {kind: dict(classes) for kind, classes in result.iou.items()},
        "minutes": result.minutes,
        "commit": result.commit,
    }
    if result.curve:
        value["curve"] = [{"epoch": epoch, **columns} for epoch, columns in result.curve]
    return value


def _json_difference(table: Table, one: Difference) -> dict[str, Any]:
    summaries = {column: one.summary(column) for column in table.columns}
    return {
        "first": one.first,
        "second": one.second,
        "seeds": list(one.by_seed),
        "mean": {column: summary.mean for column, summary in summaries.items()},
        "deviation": {column: summary.deviation for column, summary in summaries.items()},
        "by_seed": {str(seed): dict(values) for seed, values in one.by_seed.items()},
    }


# ---------------------------------------------------------------------------------------------------------------- CSV


def as_csv(tables: Sequence[Table]) -> str:
    """One line for each figure of each row: its mean, deviation and number of runs, the paper's, and every seed's."""
    seeds = sorted({result.seed for table in tables for row in table.rows for result in row.results})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["group", "entry", "figure", "mean", "deviation", "runs", "paper", "diagnostic"]
    writer.writerow([*head, *(f"seed {seed}" for seed in seeds)])
    for table in tables:
        for row in table.rows:
            for figure, values, paper in _figures(table, row):
                _line(writer, [table.name, row.name, figure], values, paper, str(row.diagnostic).lower(), seeds)
            minutes = {result.seed: result.minutes for result in row.results}
            _line(writer, [table.name, row.name, "minutes"], minutes, None, str(row.diagnostic).lower(), seeds)
        for one in table.differences:
            for column in table.columns:
                values = {seed: figures[column] for seed, figures in one.by_seed.items()}
                names = [table.name, _minus(one), _figure(table, column)]
                _line(writer, names, values, one.paper.get(column), "", seeds)
    return text.getvalue()


def _figures(table: Table, row: TableRow) -> Iterator[tuple[str, dict[int, float | None], float | None]]:
    """Name, values by seed, and the paper's value."""
    for column in table.columns:
        values = {result.seed: result.figures.get(column) for result in row.results}
        yield _figure(table, column), values, row.paper.get(column)
    if table.kind == "training":
        yield "mIoU old, before", {result.seed: result.base for result in row.results}, None
    for kind in dict.fromkeys(kind for result in row.results for kind in result.iou):
        label = "IoU" if table.kind == "training" else f"IoU {kind},"
        for name in dict.fromkeys(name for result in row.results for name in result.iou.get(kind, {})):
            values = {result.seed: result.iou.get(kind, {}).get(name) for result in row.results}
            yield f"{label} {name}", values, None


def _figure(table: Table, column: str) -> str:
    return f"mIoU {table.heading(column)}"


def _line(
    writer: Any,
    names: list[str],
    values: Mapping[int, float | None],
    paper: float | None,
    diagnostic: str,
    seeds: Sequence[int],
) -> None:
    summary = Summary.of(values.values())
    there = sum(value is not None for value in values.values())
    cells = [*names, summary.mean, summary.deviation, there, paper, diagnostic, *(values.get(seed) for seed in seeds)]
    writer.writerow(["" if cell is None else cell for cell in cells])


# ----------------------------------------------------------------------------------------------------------- Markdown


def as_markdown(suite: Suite, name: str, tables: Sequence[Table]) -> str:
    """The tables as people read them."""
    parts = [f"# {suite.title or name}"]
    if suite.note:
        parts.append(suite.note.strip())
    parts.append(
        "IoU in per cent, with the weights after the last step; where there are several seeds, the mean ± the sample "
        "standard deviation (n - 1). Minutes are those of a run without its base model, which runs share."
    )
    parts.append(f"![The figures of every table]({FIGURE})")
    for table in tables:
        parts += _markdown_group(table)
    return "\n\n".join(parts) + "\n"


def _markdown_group(table: Table) -> Iterator[str]:
    yield f"## {table.name}"
    if table.note:
        yield table.note.strip()
    head, rows = cells(table)
    yield _markdown_table(head, rows)
    if table.differences:
        yield _markdown_table(*difference_cells(table))
    notes = [f"{row.name}: {row.note.strip()}" for row in table.rows if row.note]
    if notes:
        yield "\n".join(f"- {note}" for note in notes)
    if table.photographs:
        yield f"![The masks of {table.name}]({table.sheet})"
    missing = [f"{row.name} (seed {', '.join(map(str, row.missing))})" for row in table.rows if row.missing]
    if missing:
        yield f"Not finished: {', '.join(missing)}."


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """A table's head and rows as text, with one decimal."""
    with_paper = any(row.paper for row in table.rows)
    with_base = table.kind == "training"
    head = ["", *map(table.heading, table.columns)]
    if with_base:
        head.insert(1, "old, before")
    if with_paper:
        head += [f"paper: {table.heading(column)}" for column in table.columns]
    rows = []
    for row in table.rows:
        line = [f"{row.name} ({DIAGNOSTIC})" if row.diagnostic else row.name]
        if with_base:
            line.append(_plus_minus(row.base()))
        line += [_plus_minus(row.summary(column)) for column in table.columns]
        if with_paper:
            line += [_number(row.paper.get(column)) for column in table.columns]
        commits = ", ".join(commit[:7] + "+" * commit.endswith("+") for commit in row.commits)
        rows.append([*line, str(len(row.results)), _plus_minus(row.minutes()), commits or _NOTHING])
    return [*head, "runs", "minutes", "commit"], rows


def difference_cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """The differences' head and rows as text."""
    with_paper = any(value is not None for one in table.differences for value in one.paper.values())
    headings = [table.heading(column) for column in table.columns]
    head = ["difference", *headings, *(f"paper: {heading}" for heading in headings if with_paper), "runs"]
    rows = []
    for one in table.differences:
        line = [_minus(one), *(_plus_minus(one.summary(column), sign="+") for column in table.columns)]
        line += [_number(one.paper.get(column), sign="+") for column in table.columns if with_paper]
        rows.append([*line, str(len(one.by_seed))])
    return head, rows


def _minus(one: Difference) -> str:
    return f"{one.first} - {one.second}"


def _plus_minus(summary: Summary, sign: str = "") -> str:
    if summary.mean is None:
        return _NOTHING
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.1f}"
    return _number(summary.mean, sign) + deviation


def _number(value: float | None, sign: str = "") -> str:
    return _NOTHING if value is None else format(round(value, 1) + 0.0, f"{sign}.1f")  # no "-0.0"
