"""The command ``extend``."""

from __future__ import annotations

import contextlib
import math
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fmwiss.commands.terminal import is_first_process, known_precision, number_of_processes, print_table, say
from fmwiss.errors import UserError


class TrainedWith(str, Enum):
    """What turns another library's scores into probabilities."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


_DATA, _SETTINGS, _OTHERS = "Data", "Settings, if others than the program's", "Models of other libraries"


def extend(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run of fmwiss, a save_pretrained folder of segmentation_models_pytorch or of Hugging Face "
            "(SegFormer, DeepLab-MobileNetV2), or a hub's id.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path, typer.Option("--images", help="Folder of photographs.", show_default=False, rich_help_panel=_DATA)
    ],
    classes: Annotated[
        str,
        typer.Option("--classes", metavar="NAME,...", help="The new classes, as the tags spell them.",
                     show_default=False, rich_help_panel=_DATA),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The new run's folder; an unfinished run goes on.", show_default=False)
    ],
    tags: Annotated[
        str | None,
        typer.Option("--tags", metavar="FILE", rich_help_panel=_DATA,
                     help="Tags: CSV with the columns file and tags, JSON lines, or COCO instances; by default the "
                     "folder's own. Of a folder in VOC's layout also masks or xml."),
    ] = None,
    tags_complete: Annotated[
        bool,
        typer.Option("--tags-complete/--tags-partial", rich_help_panel=_DATA,
                     help="Whether a new class without a tag is absent from a photograph."),
    ] = False,
    negatives: Annotated[
        float | None,
        typer.Option("--negatives", min=0, rich_help_panel=_DATA,
                     help="With --tags-complete: photographs without a new class that are learnt from, for each one "
                     "with; by default 3 for a single class, none for several."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="List of photographs; by default all.", rich_help_panel=_DATA)
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option("--val", metavar="DIR", rich_help_panel=_DATA,
                     help="Photographs with masks to judge the model by; without, the report shows pictures alone."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", metavar="DIR", rich_help_panel=_DATA,
                     help="A few old photographs with masks, to paste old classes from."),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Of a run: the step that is extended; by default the last.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Folder of pretrained weights, <timm name>.safetensors; what it lacks is "
                     "downloaded.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Experiment file whose settings count in place of the program's.",
                     rich_help_panel=_SETTINGS, show_default=False),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, rich_help_panel=_SETTINGS)] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=2, rich_help_panel=_SETTINGS)] = None,
    crop_size: Annotated[
        int | None, typer.Option("--crop-size", min=32, help="Side in pixels.", rich_help_panel=_SETTINGS)
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option("--resize", min=32, help="Shorter side in pixels that photographs are scaled to.",
                     rich_help_panel=_SETTINGS),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", rich_help_panel=_SETTINGS)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, rich_help_panel=_SETTINGS)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", rich_help_panel=_SETTINGS,
                     help="Override any key of the experiment, as in docs/configuration.md; repeatable."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="NAME,...", rich_help_panel=_OTHERS,
                     help="Names of the model's outputs, in order; by default its id2label, or classes.txt."),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option("--background", metavar="NAME", rich_help_panel=_OTHERS,
                     help="The output for everything else, or none; by default the one called background."),
    ] = None,
    trained_with: Annotated[
        TrainedWith | None,
        typer.Option("--trained-with", rich_help_panel=_OTHERS, help="By default softmax; sigmoid of a single output."),
    ] = None,
    devices: Annotated[str, typer.Option("--devices", help="Number of processes, or auto.")] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="Such as 32-true or bf16-mixed; by default bf16-mixed if it is faster.")
    ] = "auto",
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Where what the foundation models say is kept; by default the user's cache."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and estimate, and do nothing.")] = False,
) -> None:
    """Teach a trained model new classes from tagged photographs."""
    processes = number_of_processes(devices)
    checked = precision if precision == "auto" else known_precision(precision)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UserError(f"--learning-rate {learning_rate}: must be a number that is greater than 0")
    with contextlib.redirect_stdout(sys.stderr):
        from fmwiss.extension.extend import (
            Order,
            carry_out,
            estimate_rows,
            make_plan,
            measure,
            recorded_precision,
            rows,
        )
        from fmwiss.extension.settings import Wishes

        order = Order(
            model=model,
            images=images,
            classes=classes.split(","),
            out=out,
            tags=tags,
            split=split,
            step=step,
            validation=val,
            replay=replay,
            labels=None if labels is None else labels.split(","),
            background=background,
            trained_with=None if trained_with is None else trained_with.value,
            wishes=Wishes(
                config=config, epochs=epochs, batch_size=batch_size, crop_size=crop_size, resize=resize,
                learning_rate=learning_rate, seed=seed, tags_complete=tags_complete,
                negatives=negatives, overrides=overrides or [],
            ),
            weights=weights,
            cache=cache,
            devices=processes,
            precision=checked,
        )
        plan = make_plan(order)
        if plan.finished:
            say(f"{out}: nothing to do, step {plan.step} is finished already.")
            return
        begun_with = None if is_first_process() else recorded_precision(order)
        if begun_with is None:
            say("Trying out an iteration ...")
            plan, estimate = measure(plan)
            begun_with = estimate.precision
            table = [*rows(plan), *estimate_rows(plan, estimate, in_words)]
    if is_first_process():
        from fmwiss.reporting.tables import settings_table

        print_table(f"{model} + {', '.join(plan.new)} -> {out}", settings_table(table))
        for told in (plan.source.told_of_unknown(), plan.source.told_of_lacking(plan.new)):
            if told is not None:
                say(told)
    if dry_run:
        return
    with contextlib.redirect_stdout(sys.stderr):
        evaluations = carry_out(plan, begun_with)
    if not is_first_process():
        return
    from fmwiss.reporting.tables import evaluation_table

    for number, evaluation in evaluations.items():
        if plan.source.validation is not None:
            title = f"{out}, step {number}, {evaluation.images} photographs"
            print_table(title, evaluation_table(evaluation.as_dict()))
    say(f"The model is {out / f'step{plan.step}'}, the report {out / 'report.html'}.")


def in_words(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> in_words(5), in_words(200), in_words(9000)
        ('5 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
