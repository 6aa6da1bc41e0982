"""``report.html``: one or several runs as one page that needs nothing beside itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from fmwiss.config import PixelConfig
from fmwiss.files import write_atomically
from fmwiss.reporting.cards import Photographs, gallery_view, together_view
from fmwiss.reporting.charts import Curve, LineChart, direction, line_chart, per_cent, signed
from fmwiss.reporting.records import Confusion, Environment, Figures
from fmwiss.reporting.runs import Run, Step, read_runs

RUN_COLOURS = 8
"""Colours of runs in the style sheet, ``run-1`` and so on; further runs begin anew."""
CONFUSIONS_TOLD = 8
"""Largest confusions that are told in words beside the matrix."""
MEANS = ("old", "new", "all")
_COLUMNS = (*MEANS, "pixel accuracy")


def write_report(folders: Sequence[Path], out: Path, worst_first: bool = False) -> None:
    """Write the report of one run, or the comparison of several, as one self-contained HTML file.

    It is made from the runs' folders alone. What a run did not leave (the gallery of one trained by an earlier
    version) is told in a line. Steps that are not finished are left out.

    Args:
        folders: the runs' folders.
        out: the file, which appears whole or not at all.
        worst_first: order the validation photographs by what the step did to them, losses first; otherwise they
            come as the split lists them.

    Raises:
        UserError: a folder is no run or holds no finished step, or a file in it cannot be read.
    """
    page = render_report(read_runs(folders), worst_first)
    write_atomically(out, lambda path: path.write_text(page, encoding="utf-8"))


def render_report(runs: Sequence[Run], worst_first: bool = False) -> str:
    """The page's text; arguments as in :func:`write_report`."""
    templates = Templates(
        loader=PackageLoader("fmwiss.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    photographs = Photographs()
    context = {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        "runs": [_run_view(run, number) for number, run in enumerate(runs)],
        "single": len(runs) == 1,
        "tiles": _tiles(runs[0]) if len(runs) == 1 else [],
        "results": _results(runs),
        "differences": _differences(runs),
        "notes": _notes(runs),
        "classes": _classes(runs),
        "curves": _curves(runs),
        "confusions": _confusions(runs),
        "galleries": _galleries(runs, photographs, worst_first),
        "worst_first": worst_first,
        "style": _resource("report.css"),
        "script": _resource("report.js"),
    }
    template = templates.get_template("report.html")
    # the pictures are known when everything else is laid out
    return template.render(context, photographs=Markup(photographs.style()))


def _resource(name: str) -> Markup:
    """A file of this package that goes into the page as it is."""
    return Markup((files("fmwiss.reporting") / "templates" / name).read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------- runs and their steps


@dataclass(frozen=True)
class _Entry:
    """A step as one or several runs have it: those that took over one base share it."""

    step: Step
    runs: tuple[Run, ...]
    numbers: tuple[int, ...]
    """Of the runs, from 0."""
    shared: bool
    """By all runs of the page, and there are several."""

    @property
    def label(self) -> str:
        return ", ".join(run.name for run in self.runs)

    @property
    def told(self) -> str:
        """The label where it stands for itself."""
        return "every run" if self.shared else self.label

    @property
    def colour(self) -> str:
        return "shared" if self.shared else _colour(self.numbers[0])

    @property
    def before(self) -> Step | None:
        return self.runs[0].step(self.step.number - 1)

    @property
    def diagnostic(self) -> bool:
        return self.step.figures is not None and self.step.figures.diagnostic


def _colour(number: int) -> str:
    return f"run-{number % RUN_COLOURS + 1}"


def _entries(runs: Sequence[Run]) -> dict[int, list[_Entry]]:
    """The steps of all runs by their number, the last one first; what several runs share is one entry."""
    entries: dict[int, list[_Entry]] = {}
    for number in sorted({step.number for run in runs for step in run.steps}, reverse=True):
        groups: dict[str, list[tuple[int, Run, Step]]] = {}
        for place, run in enumerate(runs):
            step = run.step(number)
            if step is not None:
                groups.setdefault(_identity(run, step), []).append((place, run, step))
        entries[number] = [
            _Entry(
                members[0][2],
                tuple(run for _, run, _ in members),
                tuple(place for place, _, _ in members),
                len(runs) > 1 and len(members) == len(runs),
            )
            for members in groups.values()
        ]
    return entries


def _identity(run: Run, step: Step) -> str:
    """The same for copies of one training alone: the log holds its speed, line by line."""
    if not step.log or step.figures is None:
        return str(run.folder)
    return json.dumps([step.log, step.figures.model_dump()])


def _run_view(run: Run, number: int) -> dict[str, Any]:
    config = run.config
    protocol = config.protocol.steps
    steps = protocol if isinstance(protocol, str) else " + ".join(str(len(step)) for step in protocol) + " classes"
    facts = [
        ("method", config.method.name),
        ("classes", f"{steps}, {config.protocol.setting}"),
        ("encoder", config.segmenter.encoder),
        ("seed", str(config.training.seed)),
        ("splits", f"{config.data.train_split} / {config.data.val_split}"),
        ("tags from", config.data.tags if config.data.tags in ("masks", "xml") else "a table"),
    ]
    minutes = [step.figures.minutes["all"] for step in run.steps if step.figures and "all" in step.figures.minutes]
    if len(minutes) == len(run.steps):
        facts.append(("time", f"{sum(minutes):.1f} min"))
    return {
        "name": run.name,
        "colour": _colour(number),
        "facts": facts,
        "diagnostic": any(step.figures is not None and step.figures.diagnostic for step in run.steps),
        "config": run.config_text,
        "steps": [_step_facts(step) for step in run.steps],
        "environments": _environments(run),
    }


def _step_facts(step: Step) -> dict[str, Any]:
    figures = step.figures
    speeds = [record["seconds_per_iteration"] for record in step.log if _is_number(record.get("seconds_per_iteration"))]
    start = next((record for record in step.log if "iterations" in record), {})
    return {
        "number": step.number,
        "classes": ", ".join(step.new_classes),
        "instances": _instances(figures.pasted_instances) if figures else "",
        "training_images": figures.training_images if figures else None,
        "iterations": start.get("iterations"),
        "seconds_per_iteration": f"{speeds[-1]:.3g}" if speeds else None,
        "minutes": figures.minutes if figures else {},
        "peak_memory_gib": figures.peak_memory_gib if figures else None,
        "diagnostic": figures is not None and figures.diagnostic,
    }


def _instances(counts: Mapping[str, int]) -> str:
    """How many instances a memory bank holds, of how many classes, and the fewest and most of one; "" without one."""
    if not counts:
        return ""
    fewest, most = min(counts, key=lambda name: counts[name]), max(counts.values())
    each = f"{most} each" if counts[fewest] == most else f"{counts[fewest]} ({fewest}) to {most} each"
    return f"{sum(counts.values())} of {len(counts)} class{'es' * (len(counts) > 1)}, {each}"


def _environments(run: Run) -> list[dict[str, Any]]:
    """What trained the steps; steps trained alike are told together."""
    groups: dict[str, list[tuple[int, Environment]]] = {}
    for step in run.steps:
        if step.environment is not None:
            key = json.dumps(step.environment.model_dump(exclude={"finished"}))
            groups.setdefault(key, []).append((step.number, step.environment))
    return [
        {"steps": _steps([number for number, _ in members]), **_environment_view(members[-1][1])}
        for members in groups.values()
    ]


def _environment_view(environment: Environment) -> dict[str, Any]:
    machine = environment.machine
    devices = {name: machine.devices.count(name) for name in machine.devices}
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib:g} GiB of memory"
    return {
        "fmwiss": environment.fmwiss,
        "commit": environment.commit,
        "versions": environment.versions,
        "machine": [
            ("system", machine.system),
            ("processor", f"{machine.processor}, {_count(machine.cores, 'core')}{memory}"),
            ("devices", ", ".join(f"{count} × {name}" if count > 1 else name for name, count in devices.items())),
            ("computed by", f"{_count(environment.processes, 'process')} of {_count(environment.threads, 'thread')}"),
            ("precision", environment.precision),
            ("finished", environment.finished.replace("T", " ").replace("+00:00", " UTC")),
        ],
    }


def _notes(runs: Sequence[Run]) -> list[str]:
    """What the runs' folders lack, a line a kind."""
    lacks: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for run in runs:
        missing_in: dict[tuple[str, ...], list[int]] = {}
        for step in run.steps:
            parts = {
                "figures": step.figures,
                "log of losses": step.log or None,
                "confusion matrix": step.confusion,
                "environment": step.environment,
                "gallery": step.gallery,
            }
            missing = tuple(name for name, part in parts.items() if part is None)
            if missing:
                missing_in.setdefault(missing, []).append(step.number)
        for missing, numbers in missing_in.items():
            lacks.setdefault((missing, _steps(numbers)), []).append(run.name)
    return [
        f"{_listed(names)}, {steps}: no {_listed(missing, 'or')} to be found (trained by an earlier version of fmwiss, "
        "or removed); the rest is shown."
        for (missing, steps), names in lacks.items()
    ]


def _listed(words: Iterable[object], last: str = "and") -> str:
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}"


def _steps(numbers: Sequence[int]) -> str:
    return f"step{'s' if len(numbers) > 1 else ''} {_listed(numbers)}"


def _count(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}{'es' if what.endswith('s') else 's'}"


def _differences(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The keys in which the runs' configurations differ."""
    if len(runs) == 1:
        return None
    leaves = [dict(_leaves(run.config.model_dump(mode="json"))) for run in runs]
    keys = list(dict.fromkeys(key for values in leaves for key in values))
    rows = [(key, [values.get(key, "–") for values in leaves]) for key in keys]
    return {"rows": [(key, values) for key, values in rows if len(set(values)) > 1]}


def _leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, "null" if value is None else value if isinstance(value, str) else json.dumps(value)


# -------------------------------------------------------------------------------------------------------------- figures


def _columns(figures: Figures) -> dict[str, float | None]:
    return {**{mean: getattr(figures.miou, mean) for mean in MEANS}, "pixel accuracy": figures.pixel_accuracy}


def _supervision(run: Run) -> str:
    """What the steps after 0 learnt from."""
    return "masks" if isinstance(run.config.method, PixelConfig) else "tags"


def _tiles(run: Run) -> list[dict[str, Any]]:
    """The last step's means, large, with what the step changed where that can be compared."""
    figures = run.last.figures
    if figures is None:
        return []
    before = run.step(run.last.number - 1)
    earlier = before.figures if before is not None else None
    classes = run.last.classes
    described = {
        "old": f"{len(classes[0])} base classes",
        "new": f"{sum(map(len, classes[1:]))} learnt from {_supervision(run)}",
        "all": f"{len(run.last.class_names)} labels with background",
    }
    tiles = []
    for name, text in described.items():
        value = getattr(figures.miou, name)
        if value is None:
            continue
        # only `old` is over the same classes after every step
        change = (
            value - earlier.miou.old
            if name == "old" and earlier is not None and earlier.miou.old is not None
            else None
        )
        tiles.append(
            {
                "name": name,
                "value": value,
                "text": text,
                "change": change,
                "change_text": "" if change is None else f"{signed(change)} by step {run.last.number}",
                "direction": direction(change),
            }
        )
    return tiles


def _results(runs: Sequence[Run]) -> dict[str, Any]:
    """The table of means: a row for every step of every run, the best of what can be compared marked."""
    rows: list[dict[str, Any]] = []
    values: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}
    for entries in reversed(_entries(runs).values()):
        for entry in entries:
            figures = entry.step.figures
            if figures is None:
                continue
            cells = []
            for column, value in _columns(figures).items():
                cell = {"name": column, "value": value, "best": False}
                cells.append(cell)
                if value is not None and not figures.diagnostic:
                    values.setdefault((column, _comparable(entry, column)), []).append((value, cell))
            rows.append(
                {
                    "step": entry.step.number,
                    "label": entry.told,
                    "colour": entry.colour,
                    "diagnostic": figures.diagnostic,
                    "cells": cells,
                    "images": figures.images,
                    "split": figures.split,
                    "also": figures.also,
                    "minutes": figures.minutes.get("all"),
                    "memory": figures.peak_memory_gib,
                    "training_images": figures.training_images,
                }
            )
    for candidates in values.values():
        shown = [per_cent(value) for value, _ in candidates]
        best = per_cent(max(value for value, _ in candidates))
        if len(set(shown)) > 1:
            for text, (_, cell) in zip(shown, candidates, strict=True):
                cell["best"] = text == best
    return {"columns": _COLUMNS, "rows": rows}


def _comparable(entry: _Entry, column: str) -> str:
    """Two values of a column compare when this is equal: the same classes, photographs and way of looking at them."""
    step, figures, options = entry.step, entry.step.figures, entry.runs[0].config.evaluation
    assert figures is not None
    classes = sorted(step.classes[0]) if column == "old" else [sorted(names) for names in step.classes]
    crop = options.crop_size if options.image == "center-crop" else None
    return json.dumps([classes, figures.split, figures.images, options.image, crop])


def _classes(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """IoU of every class before and after each step, of all runs that did it, the last step first."""
    charts = []
    for number, entries in _entries(runs).items():
        known = [entry for entry in entries if entry.step.figures is not None]
        if not known:
            continue
        names = list(dict.fromkeys(name for entry in known for name in _iou(entry.step)))
        new = {name for entry in known for name in entry.step.new_classes}
        groups = (
            ("background and known before", [name for name in names if name not in new]),
            (f"learnt in step {number}", [name for name in names if name in new]),
        )
        if number == 0:
            groups = (("background and base classes", names), ("", []))
        charts.append(
            {
                "step": number,
                "series": [
                    {
                        "label": entry.told,
                        "colour": entry.colour,
                        "diagnostic": entry.diagnostic,
                    }
                    for entry in known
                ],
                "before": any(entry.before is not None and entry.before.figures for entry in known),
                "groups": [
                    {"title": title, "new": index == 1, "rows": [_class_row(name, known) for name in members]}
                    for index, (title, members) in enumerate(groups)
                    if members
                ],
            }
        )
    return charts


def _class_row(name: str, entries: Sequence[_Entry]) -> dict[str, Any]:
    afters = [_iou(entry.step).get(name) for entry in entries]
    fair = [after for after, entry in zip(afters, entries, strict=True) if not entry.diagnostic]
    competing = [after for after in fair if after is not None]
    shown = {per_cent(after) for after in competing}
    best = per_cent(max(competing)) if len(shown) > 1 else None
    values = []
    for entry, after in zip(entries, afters, strict=True):
        before = _iou(entry.before).get(name) if entry.before is not None else None
        change = after - before if after is not None and before is not None else None
        if name == "background":  # new classes' pixels are background before a step and not after it
            change = None
        values.append(
            {
                "before": before,
                "after": after,
                "change": change,
                "direction": direction(change),
                "colour": entry.colour,
                "best": not entry.diagnostic and best is not None and per_cent(after) == best,
            }
        )
    return {"name": name, "values": values}


def _iou(step: Step) -> dict[str, float | None]:
    return step.figures.iou if step.figures is not None else {}


# --------------------------------------------------------------------------------------------------------------- curves


def _curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Charts of mIoU, of every loss term and of the learning rate, step by step, the last first."""
    several = len(runs) > 1
    steps = []
    for number, entries in _entries(runs).items():
        ends = [_last_epoch(entry.step.log) for entry in entries]
        x_range = (0.0, max(ends, default=0.0))
        charts = [
            *_miou_charts(entries, x_range, several),
            *_log_charts(entries, x_range, several),
        ]
        if charts:
            steps.append(
                {
                    "step": number,
                    "charts": charts,
                    "series": [
                        {"label": entry.told, "colour": entry.colour}
                        for entry in entries
                    ]
                    if several
                    else [],
                }
            )
    return steps


def _miou_charts(entries: Sequence[_Entry], x_range: tuple[float, float], several: bool) -> list[LineChart]:
    points = {
        (number, mean): _miou_points(entry, mean) for number, entry in enumerate(entries) for mean in MEANS
    }
    if several:
        charts = [
            line_chart(
                f"mIoU {mean}",
                [Curve(entry.label, entry.colour, points[number, mean]) for number, entry in enumerate(entries)],
                x_range,
                dots=True,
            )
            for mean in MEANS
        ]
    else:
        colours = {"old": "mean-old", "new": "mean-new", "all": "mean-all"}
        curves = [Curve(mean, colours[mean], points[0, mean]) for mean in MEANS]
        charts = [line_chart("mIoU", curves, x_range, dots=True)]
    return [chart for chart in charts if chart is not None]


def _miou_points(entry: _Entry, mean: str) -> list[tuple[float, float]]:
    """Validations while training, and the ends: the model before (``old`` alone is over the same classes), the last."""
    points = []
    before, figures = entry.before, entry.step.figures
    if mean == "old" and before is not None and before.figures is not None and before.figures.miou.old is not None:
        points.append((0.0, before.figures.miou.old))
    for record in entry.step.log:
        means = record["validation"].get("miou") if isinstance(record.get("validation"), dict) else None
        if isinstance(means, dict) and _is_number(means.get(mean)) and _is_number(record.get("epoch")):
            points.append((float(record["epoch"]), float(means[mean])))
    last = getattr(figures.miou, mean) if figures is not None else None
    if last is not None:
        points.append((_last_epoch(entry.step.log), last))
    return points


def _log_charts(entries: Sequence[_Entry], x_range: tuple[float, float], several: bool) -> list[LineChart]:
    terms = list(dict.fromkeys(term for entry in entries for record in entry.step.log for term in _losses(record)))
    charts = []
    for term in terms:
        curves = [
            Curve(
                entry.label,
                entry.colour if several else "after",
                [(x, _losses(record)[term]) for x, record in _logged(entry.step.log) if term in _losses(record)],
            )
            for entry in entries
        ]
        charts.append(line_chart(f"loss {term}", curves, x_range, mean=True))
    rates = [
        Curve(
            entry.label,
            entry.colour if several else "soft",
            [(x, r["learning_rate"]) for x, r in _logged(entry.step.log) if _is_number(r.get("learning_rate"))],
        )
        for entry in entries
    ]
    charts.append(line_chart("learning rate", rates, x_range))
    return [chart for chart in charts if chart is not None]


def _logged(log: Sequence[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    return [(float(record["epoch"]), record) for record in log if _is_number(record.get("epoch"))]


def _losses(record: dict[str, Any]) -> dict[str, float]:
    losses = record.get("losses")
    return {name: float(v) for name, v in losses.items() if _is_number(v)} if isinstance(losses, dict) else {}


def _last_epoch(log: Sequence[dict[str, Any]]) -> float:
    return max((x for x, _ in _logged(log)), default=0.0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ------------------------------------------------------------------------------------------------------------ confusion


def _confusions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    matrices = []
    for number, entries in _entries(runs).items():
        for entry in entries:
            if entry.step.confusion is not None:
                matrices.append(
                    {
                        "step": number,
                        "label": entry.told,
                        "colour": entry.colour,
                        "diagnostic": entry.diagnostic,
                        "open": number == max(run.last.number for run in runs),
                        **_confusion_view(entry.step.confusion),
                    }
                )
    return matrices


def _confusion_view(confusion: Confusion) -> dict[str, Any]:
    names = confusion.names
    cells = [
        _Cell(row, column, count, 100 * count / sum(counts))
        for row, counts in enumerate(confusion.pixels)
        for column, count in enumerate(counts)
        if count
    ]
    wrong = sorted((cell for cell in cells if cell.row != cell.column), key=lambda cell: -cell.share)
    told = [
        {"truth": names[cell.row], "predicted": names[cell.column], "share": cell.share}
        for cell in wrong[:CONFUSIONS_TOLD]
    ]
    return {"names": names, "cells": cells, "told": told}


@dataclass(frozen=True)
class _Cell:
    """Pixels of a class of the truth that are predicted as another, or as itself."""

    row: int
    column: int
    pixels: int
    share: float
    """Of the row, in per cent."""


# -------------------------------------------------------------------------------------------------------------- gallery
def _galleries(runs: Sequence[Run], photographs: Photographs, worst_first: bool) -> list[dict[str, Any]]:
    """The galleries of all steps, the last step first; of several runs, what all of them show comes side by side."""
    galleries = []
    last = max(run.last.number for run in runs)
    for number, entries in _entries(runs).items():
        shown = [(entry, entry.step.gallery) for entry in entries if entry.step.gallery is not None]
        if len(shown) > 1:
            members = [(entry.label, gallery, entry.step.folder) for entry, gallery in shown]
            view = together_view(members, number, photographs, worst_first)
            if view is not None:
                label = "the same photographs, side by side"
                galleries.append({**view, "step": number, "label": label, "diagnostic": False, "open": number == last})
        galleries += [
            {
                **gallery_view(gallery, entry.step.folder, number, photographs, worst_first),
                "step": number,
                "label": entry.told,
                "diagnostic": entry.diagnostic,
                "open": number == last and len(shown) == 1,
            }
            for entry, gallery in shown
        ]
    return galleries
