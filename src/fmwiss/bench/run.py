"""Running a suite: job after job, resumable, with tables that are written again after each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fmwiss.bench.plan import FIGURES, Job, Workspace
from fmwiss.bench.results import STAGES, Table, read_tables
from fmwiss.bench.suite import (
    Row,
    Suite,
    Supervision,
    TrainingGroup,
    choose,
    find_suite,
    load_suite,
    resolve,
    supervision_of,
)
from fmwiss.bench.tables import FIGURE, write_tables
from fmwiss.bench.worker import Place, Workers
from fmwiss.data.source import open_source
from fmwiss.errors import UserError, sentence_of
from fmwiss.reporting.records import EVALUATION

Say = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """A job that ended otherwise than done."""

    job: Job
    sentence: str


@dataclass
class Bench:
    """A suite on a data set in a folder.

    Args:
        name: of the suite in ``configs/suites``, or the path of a suite file.
        place: data, weights, cache, devices and precision.
        out: folder for everything that comes of it.
        seeds: in place of the suite's.
        only: names of groups and entries that are run; the tables hold what is finished of the others, too.
        supervision: of the groups that are run; the others' tables are shown where something of them is finished.
        replay: folder of photographs of old classes for the entries that replay some; without it those are not run.

    Raises:
        UserError: the suite, one of its experiments or the data set is wrong.
    """

    name: str
    place: Place
    out: Path
    seeds: Sequence[int] | None = None
    only: Sequence[str] = ()
    supervision: Supervision = "image"
    replay: Path | None = None

    def __post_init__(self) -> None:
        path = find_suite(self.name)
        self.suite: Suite = load_suite(path)
        self.title = self.suite.title or path.stem
        self.suite_name = path.stem
        self.rows: list[Row] = resolve(self.suite, path)
        chosen = choose(self.rows, self.only, self.supervision)
        if self.replay is not None:
            if not any(row.lacks_replay for row in chosen):
                raise UserError(f"--replay {self.replay}: none of the chosen entries replays photographs; leave it out")
            self.rows = [row.with_replay(self.replay) for row in self.rows]
            chosen = choose(self.rows, self.only, self.supervision)
        self.left_out = [row for row in chosen if row.lacks_replay]
        """Entries that are not run, as there are no photographs to replay."""
        self.chosen = [row for row in chosen if not row.lacks_replay]
        self._check_methods(path)
        self._check_sources(path)
        source = open_source(self.rows[0].config.data, self.place.data)
        self.workspace = Workspace(self.out, source, self.place.precision)
        self.jobs: list[Job] = self.workspace.jobs(self.chosen, self.seeds)
        self.workspace.check(self.rows, self.jobs)

    def _check_sources(self, path: Path) -> None:
        first = self.rows[0].config.data
        for row in self.rows:
            data = row.config.data
            if data.source in ("folder", "coco"):
                raise UserError(
                    f"{path}: {row.label} has data.source '{data.source}', and suites run on published data sets only; "
                    "use fmwiss train"
                )
            if data.source != first.source or (data.source != "voc" and data.tags != first.tags):
                raise UserError(f"{path}: {row.label} has another data.source or data.tags than {self.rows[0].label}")
            further = row.group.further if isinstance(row.group, TrainingGroup) else ()
            lists = (column.rpartition(" ")[0] for column in further)
            missing = next((name for name in lists if name not in data.also), None)
            if missing is not None:
                raise UserError(f"{path}: {row.label} is not compared with {missing}; add it to its data.also")

    def _check_methods(self, path: Path) -> None:
        """What a run would ask of its method's options before all else, asked before the first run."""
        from fmwiss.methods import check_methods

        for row in self.chosen:
            if isinstance(row.group, TrainingGroup):
                try:
                    check_methods(row.config)
                except UserError as error:
                    raise UserError(f"{path}, entry {row.entry.name} of group {row.group.name}: {error}") from error

    def tables(self) -> list[Table]:
        """The tables with what is finished by now."""
        seeds = {row.label: self.seeds for row in self.chosen} if self.seeds else None
        tables = read_tables(self.suite, self.rows, self.workspace, seeds)
        return [
            table
            for table, group in zip(tables, self.suite.groups, strict=True)
            if supervision_of(group) == self.supervision or any(row.results for row in table.rows)
        ]

    def plan(self) -> Iterator[str]:
        """What there is to do, a line for each job, and what it will take."""
        todo = self.unfinished()
        for job in self.jobs:
            if job.is_done():
                state = "finished"
            elif job not in todo:
                state = "not needed"
            else:
                state = "begun" if job.is_begun() else "to do"
            yield f"{state:<11} {job.title}  ({job.folder.relative_to(self.out)})"
        for row in self.left_out:
            yield f"{'left out':<11} {row.label}  (it replays photographs of old classes; give --replay DIR)"
        runs, left = (sum(job.kind != "base" for job in jobs) for jobs in (self.jobs, todo))
        bases = len(todo) - left
        yield f"{left} of {runs} runs and {bases} base models to do; {_duration(self.minutes_left(todo))}"

    def run(self, say: Say) -> list[Failure]:
        """Do what is not done yet; after every run the results are written again.

        Args:
            say: tells a person which job begins and how one ended.

        Returns:
            What failed; runs whose base model failed are not tried.

        Raises:
            UserError: another command is at work in the folder, or a result cannot be read.
            KeyboardInterrupt: the same command goes on where it was.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.out / ".lock", timeout=0):
                failures: dict[Path, Failure] = {}
                try:
                    self._run(say, failures)
                    self.write()
                except BaseException:
                    for failure in failures.values():  # which nobody would be told of otherwise
                        say(f"failed: {failure.job.title}: {failure.sentence}.")
                    raise
                return list(failures.values())
        except Timeout as error:
            raise UserError(
                f"{self.out}: another fmwiss bench is at work there; wait for it, or give another --out"
            ) from error

    def _run(self, say: Say, failures: dict[Path, Failure]) -> None:
        """Do what is not done yet; what fails is put into ``failures``, by folder."""
        for row in self.left_out:
            say(f"left out: {row.label}: it replays photographs of old classes; give --replay DIR")
        workers, todo = Workers(self.place), self.unfinished()
        for number, job in enumerate(todo):
            if job.base in failures and not job.has_base():
                failures[job.folder] = Failure(job, f"its base model failed ({failures[job.base].job.title})")
                continue
            left = _duration(self.minutes_left(todo[number:]))
            say(f"{number + 1} of {len(todo)}: {job.title}{' goes on' if job.is_begun() else ''}; {left}")
            sentence = self._do(job, workers)
            if sentence is None and not job.is_done():
                sentence = f"its process ended before {job.folder} was finished"
            if sentence is not None:
                failures[job.folder] = Failure(job, sentence.rstrip("."))
                say(f"{job.title} failed: {failures[job.folder].sentence}.")
                continue
            say(f"{job.title}: {_outcome(job)}")
            if job.kind != "base":
                try:
                    self.write()
                except Exception as error:  # what is broken is raised at the end; the other runs are done first
                    told = sentence_of(error) or f"{type(error).__name__}: {error}"
                    say(f"the tables could not be written: {told}")

    def _do(self, job: Job, workers: Workers) -> str | None:
        """Do a job; returns what went wrong, in one sentence, or None."""
        try:
            self.workspace.keep_identity(job)
        except OSError as error:
            return sentence_of(error)
        return workers.do(job)

    def unfinished(self) -> list[Job]:
        """What is left to do; a base model only where a run still needs it."""
        todo = [job for job in self.jobs if not job.is_done()]
        needed = {job.base for job in todo if job.kind == "training" and not job.has_base()}
        return [job for job in todo if job.kind != "base" or job.folder in needed]

    def minutes_left(self, jobs: Sequence[Job]) -> float | None:
        """What jobs will take, judging by finished ones: of other seeds, else of the same kind, else of all.

        None where nothing is finished.
        """
        spent = [(job, minutes) for job in self.jobs if (minutes := minutes_of(job)) is not None]
        if not spent:
            return None
        return sum(_guess(job, spent) for job in jobs)

    def write(self) -> list[Table]:
        """Write the tables and the figure."""
        from fmwiss.bench.figure import write_figure

        tables = self.tables()
        write_tables(self.suite, self.suite_name, tables, self.out)
        write_figure(tables, self.title, self.out / FIGURE)
        for table in tables:
            if table.photographs:
                _write_sheet(table, self.out)
        return tables


def _write_sheet(table: Table, out: Path) -> None:
    """The pictures of a table's entries beside each other, photograph by photograph."""
    from fmwiss.reporting.pictures import last_stages, read_png, save_png, stacked

    runs = {row.name: row.results[0] for row in table.rows if row.results}
    n_stages = {name: sum(stage != "ceiling" for stage in run.figures) for name, run in runs.items()}
    rows = []
    for photograph in table.photographs:
        pictures = {}
        for name, run in runs.items():
            try:
                pictures[name] = read_png(out / run.folder / "pictures" / f"{photograph}.png")
            except UserError as error:
                raise UserError(f"{error}; remove {out / run.folder} to make its masks again") from error
        rows.append(last_stages(pictures, n_stages))
    save_png(stacked(rows), out / table.sheet)


def minutes_of(job: Job) -> float | None:
    """What a finished job took, without a base model that it took over; None where that is not known."""
    if not job.is_done():
        return None
    if job.kind == "pseudo-masks":
        return _read(job.folder / FIGURES).get("minutes")
    steps = [0] if job.kind == "base" else range(1, job.steps) or [0]
    spent = [_read(job.folder / f"step{t}" / EVALUATION).get("minutes", {}).get("all") for t in steps]
    return sum(spent) if None not in spent else None


def _guess(job: Job, spent: Sequence[tuple[Job, float]]) -> float:
    alike = [minutes for other, minutes in spent if other.folder.parent == job.folder.parent and job.kind != "base"]
    kind = [minutes for other, minutes in spent if other.kind == job.kind]
    return statistics.fmean(alike or kind or [minutes for _, minutes in spent])


def _outcome(job: Job) -> str:
    """A finished job's figures and time."""
    if job.kind == "pseudo-masks":
        found = _read(job.folder / FIGURES)
        means = {stage: found[stage]["miou"] for stage in STAGES if stage in found}
    else:
        means = _read(job.folder / f"step{0 if job.kind == 'base' else job.steps - 1}" / EVALUATION).get("miou", {})
    figures = ", ".join(f"{name} {value:.1f}" for name, value in means.items() if value is not None)
    return f"{figures}; {minutes_of(job) or 0:.1f} minutes"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that a job wrote; empty where it cannot be read, which the tables tell."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _duration(minutes: float | None) -> str:
    if minutes is None:
        return "time left unknown"
    return f"about {int(minutes) // 60}:{int(minutes) % 60:02d} h left"
