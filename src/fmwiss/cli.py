"""The commands ``train``, ``evaluate``, ``bench``, ``report``, ``predict``, ``export``, ``push``, ``pseudo-masks``,
``review``, ``classes``, ``data``, ``weights``, ``demo`` and ``extend``.

Results go to standard output, everything else to standard error. Whatever the user can set right is told in one
sentence with exit code 2 and without a traceback. Heavy modules are imported by the commands that need them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmwiss import __version__
from fmwiss.commands import data_sets
from fmwiss.commands.extend import extend
from fmwiss.commands.terminal import is_first_process, known_precision, number_of_processes, print_table, say
from fmwiss.commands.weights import app as weights_app
from fmwiss.endings import whose
from fmwiss.errors import UserError, sentence_of

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    name="fmwiss",
    help="Teach a semantic-segmentation model new classes from photographs that carry only tags.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

data_app = typer.Typer(help="Make and check data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_sets.register(data_app)
app.add_typer(weights_app, name="weights")


class LearntFrom(str, Enum):
    """What the methods of a table learn new classes from."""

    IMAGE = "image"
    PIXEL = "pixel"


class EvaluationImage(str, Enum):
    """What of a photograph is compared with its mask."""

    WHOLE = "whole"
    CENTER_CROP = "center-crop"


class DataLayout(str, Enum):
    """How a data set lies in its folder, as ``data.source`` calls it."""

    VOC = "voc"
    FOLDER = "folder"
    COCO = "coco"


class EmojiLayout(str, Enum):
    """How EmojiSeg is written."""

    VOC = "voc"
    FOLDER = "folder"
    TAGGED = "tagged"


class ExportFormat(str, Enum):
    """What other runtimes read."""

    ONNX = "onnx"
    TORCH = "torch"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment file (YAML).", show_default=False)]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder that 'fmwiss train' wrote.", show_default=False)
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run's folder, a saved model's, or OWNER/NAME on the hub.", show_default=False
    ),
]
DataFolder = Annotated[Path, typer.Option("--data", help="Data set, laid out as data.source says.", show_default=False)]
WeightsFolder = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Folder of pretrained weights, <timm name>.safetensors; what it lacks is downloaded.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the experiment file; repeatable."),
]
Devices = Annotated[str, typer.Option("--devices", help="Number of processes on a node, or auto.")]
Nodes = Annotated[
    int | None,
    typer.Option(
        "--num-nodes",
        min=1,
        help="Machines, on each of which the command is given; by default as torchrun or SLURM say, else one.",
        show_default=False,
    ),
]
Precision = Annotated[str, typer.Option("--precision", help="Such as 32-true, 16-mixed or bf16-mixed.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Where what the foundation models say is kept; by default the user's cache folder."),
]
ReplayFolder = Annotated[
    Path | None,
    typer.Option("--replay", help="Photographs of old classes, one folder per class, for methods that replay them."),
]
Split = Annotated[
    str | None, typer.Option("--split", help="List in ImageSets/Segmentation; by default the experiment file's.")
]
Step = Annotated[int | None, typer.Option("--step", min=0, help="Step whose model is used; by default the last.")]
Device = Annotated[str, typer.Option("--device", help="Torch device, or auto: a GPU where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"fmwiss {__version__}")
        raise typer.Exit


@app.command()
def train(
    config: ConfigFile,
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="The run's folder; an unfinished run goes on.")],
    weights: WeightsFolder = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Do this step only.")] = None,
    overrides: Overrides = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Run whose finished step 0 is taken over in place of training it.")
    ] = None,
    devices: Devices = "auto",
    precision: Precision = "32-true",
    cache: CacheFolder = None,
    review: Annotated[
        Path | None,
        typer.Option("--review", help="Decisions of 'fmwiss review' for steps not begun; by default OUT/review.jsonl."),
    ] = None,
    replay: ReplayFolder = None,
    num_nodes: Nodes = None,
    compile: Annotated[bool, typer.Option("--compile", help="Set training.compile.")] = False,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Set training.activation_checkpointing.")
    ] = False,
) -> None:
    """Do every step that is not done yet: step 0 from masks, the others from tags, or from masks as the method says."""
    from fmwiss.config import load_config

    replayed = [] if replay is None else [{"method.replay": str(replay.resolve())}]
    flags = {"training.compile": compile, "training.activation_checkpointing": activation_checkpointing}
    chosen = [{key: True for key, given in flags.items() if given}]
    experiment = load_config(config, [*(overrides or []), *chosen, *replayed], "--replay")
    processes = number_of_processes(devices)
    with _results_only():
        from fmwiss.training.run import train as train_run

        evaluations = train_run(
            experiment,
            data,
            weights,
            out,
            step,
            processes,
            known_precision(precision),
            cache,
            base,
            review=review,
            num_nodes=num_nodes,
        )
    if not is_first_process():
        return
    if not evaluations:
        say(f"{out}: nothing to do, {'every step' if step is None else f'step {step}'} is finished already.")
    from fmwiss.reporting.tables import evaluation_table

    for number, evaluation in evaluations.items():
        print_table(_title(out, number, evaluation.images), evaluation_table(evaluation.as_dict()))
        for split, further in _further(out, number).items():
            print_table(f"{_title(out, number, further['images'])}, {split}", evaluation_table(further))
    say(f"The report is {out / 'report.html'}.")


@app.command()
def evaluate(
    run: RunFolder,
    data: DataFolder,
    split: Split = None,
    step: Step = None,
    image: Annotated[
        EvaluationImage | None,
        typer.Option("--image", help="Whole photographs, or the peers' centre crop; by default the experiment file's."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare a run's predictions with the masks of a data set."""
    with _results_only():
        from fmwiss.evaluation import evaluate_run

        evaluation = evaluate_run(run, data, split, step, image.value if image else None, _device(device))
    if as_json:
        mark = {"diagnostic": True} if _is_diagnostic(run, evaluation.step) else {}
        print(json.dumps({**evaluation.as_dict(), **mark}))
        return
    from fmwiss.reporting.tables import evaluation_table

    print_table(_title(run, evaluation.step, evaluation.images), evaluation_table(evaluation.as_dict()))


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="Suite in configs/suites, or a suite file (YAML).", show_default=False),
    ],
    data: DataFolder,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for runs and tables; an unfinished suite goes on.", show_default=False)
    ],
    weights: WeightsFolder = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,...", help="Seeds in place of the suite's, as in 0,1,2.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Run this entry, or this group, only; repeatable."),
    ] = None,
    supervision: Annotated[
        LearntFrom, typer.Option("--supervision", help="Run the methods that learn from tags, or those from masks.")
    ] = LearntFrom.IMAGE,
    replay: ReplayFolder = None,
    cache: CacheFolder = None,
    devices: Devices = "auto",
    precision: Precision = "32-true",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
) -> None:
    """Run a suite of experiments and seeds, and put their figures into tables."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("fmwiss bench starts the processes of its runs itself; call it once, with --devices N")
    chosen_seeds, processes, checked_precision = _seeds(seeds), number_of_processes(devices), known_precision(precision)
    with _results_only():
        from fmwiss.bench.run import Bench
        from fmwiss.bench.suite import Supervision
        from fmwiss.bench.tables import MARKDOWN
        from fmwiss.bench.worker import Place

        place = Place(data, weights, cache, processes, checked_precision)
        folder = replay.resolve() if replay is not None else None
        learnt_from: Supervision = "pixel" if supervision is LearntFrom.PIXEL else "image"
        work = Bench(suite, place, out, chosen_seeds, only or (), learnt_from, folder)
    if dry_run:
        for line in work.plan():
            print(line)
        return
    with _results_only():
        failures = work.run(say)
        tables = work.tables()
    from fmwiss.bench.tables import cells, difference_cells
    from fmwiss.reporting.tables import text_table

    for table in tables:
        print_table(table.name, text_table(*cells(table)))
        if table.differences:
            print_table(f"{table.name}, differences seed by seed", text_table(*difference_cells(table)))
    say(f"Tables and figure are in {out}, beginning with {out / MARKDOWN}; the runs are in {out / 'runs'}.")
    for failure in failures:
        say(f"failed: {failure.job.title}: {failure.sentence}.")
    if failures:
        raise UserError(f"{len(failures)} of {len(work.jobs)} jobs failed; the same command tries them again")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that 'fmwiss train' wrote.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file; by default RUN/report.html, of several runs ./report.html."),
    ] = None,
    worst_first: Annotated[
        bool, typer.Option("--worst-first", help="Show the photographs first that a step made worse.")
    ] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write one self-contained HTML page about a run, or one that compares several; it needs no data."""
    from fmwiss.reporting.report import write_report
    from fmwiss.reporting.runs import check_finished

    for run in runs:
        check_finished(run)
    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; give the name of a file in it, as in {path / 'report.html'}")
    write_report(runs, path, worst_first)
    print(path)
    if open_it and not _open(path):
        say(f"No browser was found to open {path}.")


@app.command()
def predict(
    run: AnyModel,
    photographs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Photographs and videos, folders of them, and globs such as 'photos/**/*.jpg'.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.", show_default=False)],
    step: Step = None,
    tile: Annotated[
        str,
        typer.Option(
            "--tile",
            metavar="auto|none|N",
            help="Side in pixels of the windows that a larger photograph is cut into; auto cuts very large ones.",
        ),
    ] = "auto",
    resize: Annotated[
        str,
        typer.Option(
            "--resize",
            metavar="trained|none|N",
            help="Shorter side in pixels at which the model sees a photograph; none: the photograph's own.",
        ),
    ] = "trained",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Photographs, frames or windows that are computed at once.")
    ] = 8,
    frames: Annotated[bool, typer.Option("--frames", help="Of a video write every frame's mask as PNG, too.")] = False,
    device: Device = "auto",
    precision: Precision = "32-true",
    as_json: Json = False,
) -> None:
    """Segment photographs and videos: for each photograph an indexed PNG and an overlay, for each video an overlay."""
    from fmwiss.inference.media import find_media

    windows = _number("--tile", tile, "auto", "a multiple of 32 from 64")
    side = _number("--resize", resize, "trained", "a number of pixels from 1")
    media = find_media(photographs, out, frames)
    with _results_only():
        from fmwiss.commands.predict import Options
        from fmwiss.commands.predict import predict as predict_media
        from fmwiss.inference.model import check_tile, load
        from fmwiss.inference.video import require_video

        check_tile(windows, "--tile")  # type: ignore[arg-type]
        for medium in media:
            if medium.is_video:
                require_video(medium.path)
        model = load(run, step, _device(device), precision=known_precision(precision))  # type: ignore[arg-type]
        done = predict_media(model, media, Options(windows, side, batch_size, frames))  # type: ignore[arg-type]
    if as_json:
        print(json.dumps({"model": run, "class_names": model.class_names, **vars(done)}))
    if done.photographs:
        count = len(done.photographs)
        say(f"{_of(count, '1 prediction and its overlay are', 'predictions and as many overlays are')} in {out}.")
    if done.videos:
        say(f"{_of(len(done.videos), '1 video with its overlay is', 'videos with overlays are')} in {out}.")
    if done.failed:
        reasons = "; ".join(failure["reason"] for failure in done.failed)
        files = _of(len(media), "1 file", "files")
        raise UserError(f"{len(done.failed)} of {files} could not be read to the end: {reasons}")


@app.command()
def export(
    run: AnyModel,
    out: Annotated[Path, typer.Option("--out", help="The file.", show_default=False)],
    format: Annotated[
        ExportFormat, typer.Option("--format", help="onnx, or torch for an archive of torch.export (.pt2).")
    ] = ExportFormat.ONNX,
    step: Step = None,
    as_json: Json = False,
) -> None:
    """Write a model as one file for other runtimes, after a check that its answers there are the same."""
    with _results_only():
        from fmwiss.inference.export import export as export_model
        from fmwiss.inference.model import load

        report = export_model(load(run, step, "cpu"), out, format.value)
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    print(
        f"{out}: {report.bytes / 2**20:.1f} MiB, labels equal on {100 * report.agreement:.2f} % of the pixels, largest "
        f"difference of logits {report.largest_difference:.2g} (largest logit {report.largest_logit:.3g})"
    )


@app.command()
def push(
    run: AnyModel,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to on the hub.", show_default=False)],
    license: Annotated[
        str, typer.Option("--license", help="Licence of the weights, such as cc-by-4.0.", show_default=False)
    ],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="What the training photographs are called, for the card.")
    ] = None,
    step: Step = None,
    private: Annotated[bool, typer.Option("--private", help="Only you can see a new repository.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Print the model's card and publish nothing.")] = False,
) -> None:
    """Publish a model on the Hugging Face hub, with a card made from its run."""
    with _results_only():
        from fmwiss.inference.hub import card_of
        from fmwiss.inference.model import load

        model = load(run, step, "cpu")
        if card:
            text = card_of(model, repository, license, dataset)
        else:
            text = model.push_to_hub(repository, license=license, dataset=dataset, private=private) + "\n"
    print(text, end="")


@app.command("pseudo-masks")
def pseudo_masks(
    config: ConfigFile,
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Folder for masks and pictures.", show_default=False)],
    weights: WeightsFolder = None,
    compare: Annotated[bool, typer.Option("--evaluate", help="Compare with the ground truth, stage by stage.")] = False,
    split: Split = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Classes of this step only.")] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="NAME,...", help="These classes, or all; in place of --step.")
    ] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=0, help="Photographs to draw the stages of.")] = 16,
    overrides: Overrides = None,
    cache: CacheFolder = None,
    device: Device = "auto",
    devices: Annotated[
        str | None,
        typer.Option("--devices", help="Processes on a node that share the work, or auto.", show_default=False),
    ] = None,
    num_nodes: Nodes = None,
    as_json: Json = False,
) -> None:
    """Make the pseudo masks of tagged photographs: by default of all classes that are learnt from tags."""
    from fmwiss.config import load_config
    from fmwiss.memory import keep_little

    keep_little()

    if as_json and not compare:
        raise UserError("--json prints the figures of --evaluate, so give both")
    if device != "auto" and (devices is not None or num_nodes is not None):
        raise UserError("--device is for one process, and several have one each: give it, or --devices and --num-nodes")
    experiment = load_config(config, overrides or [])
    split = split or experiment.data.train_split
    count = None if devices is None else number_of_processes(devices)
    with _results_only():
        from fmwiss.data.extension import tagged_source
        from fmwiss.data.tags import TagIndex
        from fmwiss.pseudo_masks import check_truth, evaluate_pseudo_masks, open_pseudo_masks
        from fmwiss.reporting.pictures import save_masks, save_png, side_by_side
        from fmwiss.reporting.progress import track
        from fmwiss.training.launch import at_work

    with _results_only(), at_work(count, num_nodes, lambda: _device(device)) as (place, processes):
        source = tagged_source(config.parent, data, experiment.data)
        names = _classes_of(experiment.protocol, source.class_names, step, classes)
        ids = source.ids(split)
        with processes.first_goes_first():
            index = TagIndex.load_or_build(source, ids, experiment.data.tags, out / "tags.json", track)
        tags = {image_id: index[image_id] & set(names) for image_id in ids if index[image_id] & set(names)}
        if not tags:
            raise UserError(f"{data}: no photograph of {split} is tagged with {', '.join(names)}")
        if compare:
            check_truth(source, tags, names)
        seed, options = experiment.training.seed, experiment.cosegmentation
        masks = open_pseudo_masks(
            options, source, list(tags), tags, weights, cache, place, seed, track, processes
        )
        for number, image_id in track(processes.share(list(enumerate(tags))), "writing masks"):
            tagged = [name for name in names if name in tags[image_id]]
            stages = masks.stages(image_id, tagged, epoch=0)
            photograph = source.read_image(image_id)
            save_masks(stages["refined"], tagged, photograph.shape[-2:], out / "masks", image_id)
            if number < pictures:
                save_png(side_by_side(photograph, stages, tagged), out / "pictures" / f"{image_id}.png")
        figures = None
        if compare:
            figures = evaluate_pseudo_masks(
                masks, source, list(tags), tags, names, progress=track, processes=processes
            )
        processes.barrier()
    if not is_first_process():
        return
    say(f"Masks of {len(tags)} photographs are in {out / 'masks'}, pictures of the stages in {out / 'pictures'}.")
    if figures is None:
        return
    if as_json:
        print(json.dumps({"split": split, **figures}))
        return
    from fmwiss.reporting.tables import stages_table

    print_table(f"IoU of pseudo masks in per cent, {split}, {figures['images']} photographs", stages_table(figures))


@app.command()
def review(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder; before training, an experiment file.", show_default=False),
    ],
    data: DataFolder,
    weights: WeightsFolder = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="With an experiment file: folder for the review, that of the run to be trained."),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Classes of this step; by default the first not finished.")
    ] = None,
    models: Annotated[
        bool, typer.Option("--models/--no-models", help="Whether the run's models have a say in what comes first.")
    ] = True,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others can reach it if it is not this "
                                      "machine's own.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes any that is free.")] = 8765,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    overrides: Overrides = None,
    cache: CacheFolder = None,
    device: Device = "auto",
) -> None:
    """Look at pseudo masks in the browser, worst first: accept, reject, try thresholds and words."""
    with _results_only():
        from fmwiss.review.command import review as review_masks
        from fmwiss.review.session import Place

    place = Place(data, weights, cache, _device(device))
    review_masks(target, place, out, step, overrides or [], models, host, port, open_it)


@app.command()
def classes(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Class names.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", help="Experiment file; without one, imagenet-names' own tables.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print what stands for class names in the vision-language model: WordNet synsets or prompts."""
    from fmwiss.config import Config, load_config

    if config is None and overrides:
        raise UserError("--set changes an experiment file's keys, so give one with --config")
    if config is None:
        experiment = Config.model_validate({"cosegmentation": {"vision_language": {"name": "imagenet-names"}}})
    else:
        experiment = load_config(config, overrides or [])
    with _results_only():
        from fmwiss.foundation import describe_classes

        found = describe_classes(names, experiment.cosegmentation.vision_language)
    for name, rows in found:
        print(f"{name}: {len(rows)}")
        for row, words in rows:
            print(f"  {row}  {words}")


@data_app.command("emoji")
def data_emoji(
    out: Annotated[Path, typer.Option("--out", help="Folder for the data set; a new or an empty one.")],
    n_train: Annotated[int, typer.Option("--train", min=1, max=999_999, help="Scenes to learn from.")] = 600,
    n_val: Annotated[int, typer.Option("--val", min=1, max=999_999, help="Scenes in val, in another style.")] = 200,
    size: Annotated[int, typer.Option("--size", min=32, max=2048, help="Longer side in pixels.")] = 160,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all draws.")] = 0,
    classes: Annotated[
        str | None, typer.Option("--classes", help='What scenes show, as "boat,bus"; by default all twenty classes.')
    ] = None,
    layout: Annotated[
        EmojiLayout,
        typer.Option("--layout", help="VOC's; a folder with tags.csv and masks; or one with tags.csv, without masks."),
    ] = EmojiLayout.VOC,
    by_class: Annotated[
        bool,
        typer.Option("--by-class", help="Training scenes alone, a folder per class: for --replay with another seed."),
    ] = False,
) -> None:
    """Write EmojiSeg, generated scenes with exact masks."""
    with _results_only():
        from fmwiss.data.emoji import EMOJI_CLASSES, EmojiSeg, write_emoji, write_emoji_by_class
        from fmwiss.reporting.progress import track

        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty; give a new folder with --out")
        if by_class and layout is not EmojiLayout.VOC:
            raise UserError("--by-class and --layout exclude each other; give one of them")
        shown = EMOJI_CLASSES if classes is None else classes.split(",")
        source = EmojiSeg(n_train, n_val, seed, size, shown)
        if by_class:
            write_emoji_by_class(out, source, track)
            say(f"{n_train} scenes are in {out}, in the folders of their main objects' classes.")
            return
        write_emoji(out, source, track, layout.value)
    if layout is EmojiLayout.TAGGED:
        say(f"{n_train} scenes are in {out}, and their tags in {out / 'tags.csv'}.")
        return
    train_split = "train_aug" if layout is EmojiLayout.VOC else "train"
    say(f"{n_train} scenes in {train_split} and {n_val} in val are in {out}.")


@data_app.command("check")
def data_check(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.", show_default=False)],
    source: Annotated[
        DataLayout | None, typer.Option("--source", help="How it is laid out; by default as it looks.")
    ] = None,
    tags: Annotated[
        Path | None, typer.Option("--tags", help="CSV, JSON lines or COCO file in place of the folder's own.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Where photographs are drawn; by default ./NAME-check.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what would break training (exit code 2), and for what is worth a look, and draw the photographs."""
    from fmwiss.commands.data_check import check_command

    check_command(data, source.value if source else None, tags, picture, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that it writes.")] = Path("demo"),
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in the browser at the end.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the scenes and of the training.")] = 0,
) -> None:
    """Teach a model five new classes from tags on generated scenes, without downloads; takes some minutes."""
    from fmwiss.demo import run_demo

    page = run_demo(out, seed)
    if open_it and not _open(page):
        say(f"No browser was found to open {page}.")


app.command()(extend)


def main() -> None:
    """Entry point of the program ``fmwiss``."""
    raise SystemExit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        0, or 2 after a sentence on standard error about what the user has to set right, or 130 when interrupted.
        Any other exception is a bug and passes with its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=words or ["--help"], prog_name="fmwiss", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output (such as head) has gone; nothing must be flushed there at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        say(f"fmwiss: {whose(sentence.rstrip('.'))}.")
        return 2
    if code == INTERRUPTED:  # which typer makes of an interrupt
        say("fmwiss: interrupted; the same command goes on where it was.")
    return code if isinstance(code, int) else 0


def _sentence(error: BaseException) -> str | None:
    """What the user is told about an exception, or None if it is a bug."""
    if isinstance(error, typer.BadParameter.__mro__[1]):  # UsageError, which typer keeps in different places
        return f"{error.format_message().rstrip('.')} (see {_command_of(error)} --help)"  # type: ignore[attr-defined]
    return sentence_of(error)


def _command_of(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "fmwiss"


@contextlib.contextmanager
def _results_only() -> Iterator[None]:
    """Sends what libraries print to standard error: standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _open(page: Path) -> bool:
    import webbrowser

    return webbrowser.open(page.resolve().as_uri())


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--seeds {text}: must be different whole numbers from 0 with commas between them, as in 0,1,2")
    return [int(word) for word in words]


def _device(name: str) -> torch.device:
    from fmwiss.inference.model import torch_device

    return torch_device(name, "--device")


def _number(option: str, text: str, word: str, numbers: str) -> int | str | None:
    """A number, None for none, or the word that stands for the default."""
    if text == word or text == "none":
        return None if text == "none" else text
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"{option} {text}: must be {word}, none or {numbers}")
    return int(text)


def _of(count: int, one: str, several: str) -> str:
    return one if count == 1 else f"{count} {several}"


def _title(run: Path, step: int, images: int) -> str:
    """Heading of an evaluation's table; a diagnostic says so."""
    mark = ", diagnostic: trained with the true masks" if _is_diagnostic(run, step) else ""
    return f"{run}, step {step}, {images} photographs{mark}"


def _further(run: Path, step: int) -> dict[str, Any]:
    """Figures of a finished step on the lists of ``data.also``."""
    from fmwiss.reporting.runs import read_step

    figures = read_step(run, step).figures
    return {split: one.model_dump() for split, one in figures.also.items()} if figures is not None else {}


def _is_diagnostic(run: Path, step: int) -> bool:
    """Whether a step learnt from the true masks."""
    from fmwiss.config import load_config
    from fmwiss.methods import takes_pseudo_masks

    config = load_config(run / "config.yaml")
    learns_from_masks = takes_pseudo_masks(config.method)
    return step > 0 and learns_from_masks and config.cosegmentation.source == "true-masks"


def _classes_of(
    protocol: Any, known: Sequence[str], step: int | None, classes: str | None
) -> tuple[str, ...]:
    """The classes that ``pseudo-masks`` is about; ``known`` are the data set's."""
    from fmwiss.data.protocols import Protocol
    from fmwiss.data.voc import canonical_class_name

    steps = Protocol.from_config(protocol, known)
    if classes is not None and step is not None:
        raise UserError("give either --classes or --step, not both")
    if classes == "all":
        return tuple(name for names in steps.steps for name in names)
    if classes is not None:
        given = [name.strip() for name in classes.split(",") if name.strip()]
        if not given:
            raise UserError("--classes names no class; give names with commas between them")
        return tuple(dict.fromkeys(canonical_class_name(name, known) for name in given))
    if step is not None:
        return steps.new(step)
    learnt = tuple(name for names in steps.steps[1:] for name in names)
    if not learnt:
        raise UserError("the protocol has no step that learns from tags; name the classes with --classes")
    return learnt
