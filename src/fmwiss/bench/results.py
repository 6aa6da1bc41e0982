"""From finished runs to means, deviations and differences: what the tables of a suite say."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmwiss.bench.plan import FIGURES, Workspace, slug
from fmwiss.bench.suite import PseudoMaskGroup, Row, Suite, TrainingGroup
from fmwiss.data.protocols import Protocol
from fmwiss.errors import UserError
from fmwiss.reporting.records import Figures

MEANS = ("old", "new", "all")
"""Columns of a table of trained models."""
STAGES = ("init", "seeds", "propagated", "refined", "ceiling")
"""Columns of a table of pseudo masks, those that a run gave: ``fmwiss-plus`` has ``propagated`` for ``seeds``."""

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of what is there; without enough values None."""

    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Summary:
        """Of the values that are not None."""
        there = [value for value in values if value is not None]
        return cls(
            statistics.fmean(there) if there else None,
            statistics.stdev(there) if len(there) > 1 else None,
        )


@dataclass(frozen=True)
class Result:
    """A finished run."""

    seed: int
    folder: str
    """Relative to the output folder."""
    figures: Values
    """By column, per cent."""
    iou: Mapping[str, Values]
    """IoU of every class, per cent: of trained models under ``all``, of pseudo masks under each stage."""
    minutes: float
    """Of the steps after the base model."""
    commit: str | None
    diagnostic: bool = False
    base: float | None = None
    """Mean IoU over the old classes before the steps."""
    curve: tuple[tuple[float, Values], ...] = ()
    """Columns at the end of epochs of the last step."""


@dataclass(frozen=True)
class TableRow:
    """An entry's runs, put together."""

    name: str
    file: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...]
    """Wanted."""
    results: tuple[Result, ...]
    """Finished, by seed."""
    paper: Values = field(default_factory=dict)
    note: str = ""

    @property
    def diagnostic(self) -> bool:
        """Whether true masks took the place of pseudo masks."""
        return any(result.diagnostic for result in self.results)

    @property
    def commits(self) -> tuple[str, ...]:
        """Of the source trees that trained the runs."""
        return tuple(dict.fromkeys(result.commit for result in self.results if result.commit))

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds that are wanted and not finished."""
        done = {result.seed for result in self.results}
        return tuple(seed for seed in self.seeds if seed not in done)

    def summary(self, column: str) -> Summary:
        """Over the seeds."""
        return Summary.of(result.figures.get(column) for result in self.results)

    def iou(self, of: str) -> dict[str, Summary]:
        """Of every class over the seeds; ``of`` is a key of :attr:`Result.iou`."""
        classes = dict.fromkeys(name for result in self.results for name in result.iou.get(of, {}))
        return {name: Summary.of(result.iou.get(of, {}).get(name) for result in self.results) for name in classes}

    def minutes(self) -> Summary:
        """Of a run."""
        return Summary.of(result.minutes for result in self.results)

    def base(self) -> Summary:
        """Mean IoU over the old classes before the steps."""
        return Summary.of(result.base for result in self.results)

    def curve(self) -> list[tuple[float, dict[str, Summary]]]:
        """Columns over the seeds, at the epochs that every run was validated at."""
        curves = [dict(result.curve) for result in self.results if result.curve]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        return [
            (epoch, {column: Summary.of(curve[epoch].get(column) for curve in curves) for column in MEANS})
            for epoch in epochs
        ]


@dataclass(frozen=True)
class Difference:
    """One entry minus another, seed by seed."""

    first: str
    second: str
    by_seed: Mapping[int, Values]
    paper: Values

    def summary(self, column: str) -> Summary:
        """Over the seeds that both have."""
        return Summary.of(values[column] for values in self.by_seed.values())


@dataclass(frozen=True)
class Table:
    """A group of a suite with what its runs gave."""

    name: str
    note: str
    kind: str
    columns: tuple[str, ...]
    curve: bool
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    headings: Mapping[str, str] = field(default_factory=dict)
    """Of columns that are called otherwise than they are named."""
    photographs: tuple[str, ...] = ()
    """Of which every entry with a run has a picture (``pictures/ID.png`` in the folder of its first one)."""

    @property
    def sheet(self) -> str:
        """Name of the file with all of these pictures."""
        return f"pictures-{slug(self.name)}.png"

    def heading(self, column: str) -> str:
        """What a column is called."""
        return self.headings.get(column, column)


def read_tables(
    suite: Suite, rows: Sequence[Row], workspace: Workspace, seeds: Mapping[str, Sequence[int]] | None = None
) -> list[Table]:
    """The tables of a suite with every run that is finished in the workspace, whichever command made it.

    Args:
        suite: the suite.
        rows: all of its entries.
        workspace: where the runs are.
        seeds: by label those wanted in place of the entry's own.

    Raises:
        UserError: a file of a finished run cannot be read.
    """
    tables = []
    for group in suite.groups:
        own = [row for row in rows if row.group is group]
        read = tuple(_read_row(row, workspace, tuple((seeds or {}).get(row.label, row.seeds))) for row in own)
        columns = (*MEANS, *group.further) if isinstance(group, TrainingGroup) else _stages(read)
        headings = group.headings if isinstance(group, TrainingGroup) else {}
        by_name = {row.name: row for row in read}
        differences = tuple(difference(by_name[a], by_name[b], columns) for a, b in group.compare)
        curve = isinstance(group, TrainingGroup) and group.curve
        alike = len({row.config.protocol.model_dump_json() for row in own}) == 1  # else masks are of other classes
        shown = _photographs(read, workspace.out) if alike else ()
        tables.append(Table(group.name, group.note, group.kind, columns, curve, read, differences, headings, shown))
    return tables


def difference(first: TableRow, second: TableRow, columns: Sequence[str]) -> Difference:
    """``first`` minus ``second`` at every seed that both have."""
    theirs = {result.seed: result.figures for result in second.results}
    by_seed = {
        result.seed: {column: _minus(result.figures.get(column), theirs[result.seed].get(column)) for column in columns}
        for result in first.results
        if result.seed in theirs
    }
    paper = {column: _minus(first.paper.get(column), second.paper.get(column)) for column in columns}
    return Difference(first.name, second.name, by_seed, paper)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _stages(rows: Sequence[TableRow]) -> tuple[str, ...]:
    """Those that a run gave; before there is one, those of the paper's masks."""
    there = {stage for row in rows for result in row.results for stage in result.figures}
    return tuple(stage for stage in STAGES if stage in (there or {"init", "seeds", "refined"}))


def _photographs(rows: Sequence[TableRow], out: Path) -> tuple[str, ...]:
    """Those of which the first run of every entry that has one drew a picture, in the order of their names."""
    folders = [out / row.results[0].folder / "pictures" for row in rows if row.results]
    names = [{path.relative_to(folder).as_posix()[:-4] for path in folder.rglob("*.png")} for folder in folders]
    return tuple(sorted(set.intersection(*names))) if names else ()


def _read_row(row: Row, workspace: Workspace, seeds: tuple[int, ...]) -> TableRow:
    folder = workspace.folder(row)
    found = {int(path.name[4:]): path for path in folder.glob("seed*") if path.name[4:].isdigit()}
    results = []
    for seed, path in sorted(found.items()):
        if isinstance(row.group, PseudoMaskGroup):
            result = _read_pseudo_masks(path, seed, workspace.out)
        else:
            steps = len(Protocol.from_config(row.config.protocol, workspace.known).steps)
            result = _read_run(path, seed, steps, row.group.curve, workspace.out)
        if result is not None:
            results.append(result)
    paper = getattr(row.entry, "paper", None)
    return TableRow(
        row.entry.name,
        row.file,
        row.overrides,
        seeds,
        tuple(results),
        paper.by_column() if paper else {},
        row.entry.note,
    )


def _read_run(folder: Path, seed: int, steps: int, with_curve: bool, out: Path) -> Result | None:
    """A run whose last step is finished, else None."""
    from fmwiss.reporting.runs import read_step

    if not all((folder / f"step{t}" / "model.json").is_file() for t in range(steps)):
        return None
    read = [read_step(folder, t) for t in range(steps)]
    last = read[-1]
    if last.figures is None:
        raise UserError(f"{last.folder}: holds a model and no figures; remove the folder to train the step again")
    base = read[0].figures
    learnt = read[1:] or read
    return Result(
        seed,
        folder.relative_to(out).as_posix(),
        _columns(last.figures),
        {"all": last.figures.iou},
        sum(step.figures.minutes["all"] for step in learnt if step.figures is not None),
        last.environment.commit if last.environment else None,
        any(step.figures.diagnostic for step in read if step.figures is not None),
        base.miou.old if base is not None and base.split == last.figures.split else None,
        _curve(last.log, last.figures.miou.model_dump()) if with_curve else (),
    )


def _columns(figures: Figures) -> dict[str, float | None]:
    """Means on the validation split, and on further lists as ``LIST KIND``."""
    further = {
        f"{split} {kind}": value for split, one in figures.also.items() for kind, value in one.miou.model_dump().items()
    }
    return {**figures.miou.model_dump(), **further}


def _curve(log: Sequence[Mapping[str, Any]], final: Values) -> tuple[tuple[float, Values], ...]:
    """What was validated on the way, and the end."""
    points = [(float(line["epoch"]), dict(line["validation"]["miou"])) for line in log if "validation" in line]
    start = next((line for line in log if "per_epoch" in line), None)
    if start is not None:
        points.append((start["iterations"] / start["per_epoch"], dict(final)))
    return tuple(points)


def _read_pseudo_masks(folder: Path, seed: int, out: Path) -> Result | None:
    path = folder / FIGURES
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stages = {stage: values[stage] for stage in STAGES if stage in values}
        return Result(
            seed,
            folder.relative_to(out).as_posix(),
            {stage: figures["miou"] for stage, figures in stages.items()},
            {stage: figures["iou"] for stage, figures in stages.items()},
            float(values["minutes"]),
            values["commit"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); remove it to make it again") from error
