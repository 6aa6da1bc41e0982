"""Extending a model: what is asked for, what it would cost, and doing it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from lightning_fabric.utilities.rank_zero import rank_zero_only

from fmwiss.config import Config, check_resumable, load_config
from fmwiss.data.extension import (
    RECORD,
    TAGS_CACHE,
    ExtensionSource,
    open_masked,
    open_tagged,
    read_record,
)
from fmwiss.data.memory import MemoryBank
from fmwiss.data.review import REVIEW
from fmwiss.data.source import Source
from fmwiss.errors import UserError
from fmwiss.evaluation import Evaluation
from fmwiss.extension.base import (
    REPLAY_SIZE,
    Base,
    build_replay,
    check_new_classes,
    has_adapter,
    open_base,
    put_base,
    put_replay,
)
from fmwiss.extension.checks import check_folder, check_machine, check_outside
from fmwiss.extension.settings import Wishes, atrous_rates, has_gpu, learnt_from, settle, with_fitting_batch
from fmwiss.extension.trial import Estimate, try_out
from fmwiss.files import write_atomically
from fmwiss.methods import check_methods
from fmwiss.run_folders import finished_steps
from fmwiss.training.run import BANK, TAGS, is_begun, train

LEAST_PHOTOGRAPHS = 2


@dataclass(frozen=True)
class Order:
    """What the user asks for.

    Attributes:
        model: a run, another library's model, or a hub's id.
        images: folder of photographs.
        classes: the new classes.
        out: the new run.
        tags: a file; ``masks`` or ``xml`` for VOC's layout; None: the folder's own.
        split: list of photographs.
        step: of a run.
        validation: folder of photographs with masks.
        replay: folder of old photographs with masks, to paste from.
        labels: names of another library's outputs.
        background: of these, the one for everything else, or ``none``.
        trained_with: ``softmax`` or ``sigmoid``.
        wishes: settings.
        weights: folder of weights by timm name.
        cache: where what the foundation models say is kept.
        devices: Fabric's.
        precision: Fabric's, or ``auto``.
    """

    model: str
    images: Path
    classes: Sequence[str]
    out: Path
    tags: str | None = None
    split: str | None = None
    step: int | None = None
    validation: Path | None = None
    replay: Path | None = None
    labels: Sequence[str] | None = None
    background: str | None = None
    trained_with: Literal["softmax", "sigmoid"] | None = None
    wishes: Wishes = field(default_factory=Wishes)
    weights: Path | None = None
    cache: Path | None = None
    devices: str | int = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        order: what was asked for.
        base: what is extended.
        new: the new classes.
        source: the photographs.
        config: the experiment.
        why: reasons for its main settings, by key.
        step: the number that the new step gets.
        replay: instances to paste.
        begun: whether the run has a checkpoint or a model beyond the base's.
    """

    order: Order
    base: Base
    new: tuple[str, ...]
    source: ExtensionSource
    config: Config
    why: dict[str, str]
    step: int
    replay: MemoryBank | None
    begun: bool

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.begun and self.step in finished_steps(self.order.out)


def make_plan(order: Order) -> Plan:
    """Look at everything that is asked for, and settle what is not; nothing is trained and the run is not touched.

    Raises:
        UserError: something cannot be read, does not fit, or the run was begun with something else.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("fmwiss extend starts its processes itself; call it once, with --devices N")
    wishes = order.wishes
    base = open_base(order.model, order.step, order.labels, order.background, order.trained_with)
    new = check_new_classes(order.classes, base)
    check_folder("--out", order.out)
    if order.cache is not None:
        check_folder("--cache", order.cache)
    if base.run is not None and base.run.resolve() == order.out.resolve():
        raise UserError(f"--out {order.out} is the run that is extended; give a new folder")
    check_outside(order.out, order.images)
    before = _recorded(order.out)
    _check_record(order.out, before, _record(order, base, new), order.precision)
    begun = bool(before) and _has_begun(order.out, before)
    batch_size = before.get("batch_size")  # of another process, or of a run that was killed
    if batch_size is not None:
        if wishes.batch_size not in (None, batch_size, before.get("asked_batch_size")):
            raise UserError(
                f"{order.out} was begun with --batch-size {batch_size} and {wishes.batch_size} is asked for now; leave "
                "it out, or give another --out"
            )
        wishes = replace(wishes, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        cache = order.out if begun else Path(scratch)
        training, tags, untagged = open_tagged(order.images, order.tags, order.split, new, cache / TAGS_CACHE)
    without = untagged if wishes.tags_complete else []
    if len(tags) < LEAST_PHOTOGRAPHS:
        raise UserError(
            f"{order.images}: {len(tags)} photograph is tagged with {' or '.join(new)}; at least {LEAST_PHOTOGRAPHS} "
            "are needed, and some dozens for a good mask"
        )
    validation, validation_ids = (None, []) if order.validation is None else open_masked(order.validation, "--val")
    if validation is not None:
        _check_apart(training, [*tags, *without], validation, validation_ids, order.validation)
    saved = load_config(order.out / "config.yaml") if begun and (order.out / "config.yaml").is_file() else None
    seed = wishes.seed if wishes.seed is not None else saved.training.seed if saved is not None else 0
    source = ExtensionSource(
        (*base.classes, *new), training, tags, without, validation, validation_ids, base.model.has_background, seed
    )
    replay = None
    if order.replay is not None:
        old_source, old_ids = open_masked(order.replay, "--replay")
        replay = build_replay(old_source, old_ids, base.classes, Config().copy_paste.min_area, seed)
    size = REPLAY_SIZE if replay is not None else _bank_size(base)
    config, why = settle(base, new, source, order.tags or "masks", size, wishes, has_gpu())
    if saved is not None:
        config = _as_begun(saved, config, wishes)
        if config.training.steps.batch_size > saved.training.steps.batch_size:  # as --set asks for, which was cut then
            config = with_fitting_batch(config, source)
        check_resumable(saved, config, order.out)
    check_methods(config)
    plan = Plan(order, base, new, source, config, why, base.step + 1, replay, begun)
    if plan.finished:
        return plan
    precision = recorded_precision(order) or order.precision
    check_machine(order.devices, "32-true" if precision == "auto" else precision, config.training)
    if before.get("photographs") not in (None, _told_of(source, config)):
        raise UserError(
            f"{order.out} was begun with other tags than those of {order.tags or order.images} now; put them back, or "
            "give another --out"
        )
    return plan


def _check_apart(
    training: Source, ids: Sequence[str], validation: Source, validation_ids: Sequence[str], folder: Path | None
) -> None:
    """Raise UserError where a photograph is both learnt from and judged by."""
    learnt = {training.image_path(image_id).resolve() for image_id in ids}
    both = [image_id for image_id in validation_ids if validation.image_path(image_id).resolve() in learnt]
    if both:
        raise UserError(
            f"--val {folder} holds {len(both)} of the photographs that are learnt from, such as {both[0]}; "
            "give others, or leave it out"
        )


def measure(plan: Plan) -> tuple[Plan, Estimate]:
    """Try out an iteration, and fit batch and precision to the machine.

    A run that is begun keeps its batch; what the trial writes goes into a temporary folder.
    """
    order, config = plan.order, plan.config
    device = torch.device("cuda" if has_gpu() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        put_base(plan.base, Path(folder), config.data.resize, atrous_rates(config))
        step = Path(folder) / f"step{plan.base.step}"
        estimate = try_out(
            config, step, plan.source, plan.source.tags, plan.new, order.weights, device,
            recorded_precision(order) or order.precision,
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    size = config.training.steps.batch_size
    if estimate.batch_size < size and not plan.begun and order.wishes.batch_size is None:
        smaller = make_plan(replace(order, wishes=replace(order.wishes, batch_size=estimate.batch_size)))
        if smaller.config.training.steps.batch_size < size:  # else --set insists on it
            plan = smaller
            plan.why["training.steps.batch_size"] = f"{size} would not fit into memory"
    return plan, estimate


def carry_out(plan: Plan, precision: str) -> dict[int, Evaluation]:
    """Extend the model; the evaluation of the new step, or nothing where it was done already.

    Args:
        plan: what to do.
        precision: Fabric's.
    """
    order, config = plan.order, plan.config
    record = {**_record(order, plan.base, plan.new), "precision": precision}
    record["batch_size"] = config.training.steps.batch_size
    record["asked_batch_size"] = order.wishes.batch_size
    record["photographs"] = _told_of(plan.source, config)
    if not plan.begun and _is_first_process():
        _begin(order.out, record)
    put_base(plan.base, order.out, config.data.resize, atrous_rates(config))
    if plan.replay is not None and not (order.out / f"step{plan.base.step}" / BANK).is_file():
        put_replay(plan.replay, order.out, plan.base.step)
    return train(
        config, order.images, order.weights, order.out, plan.step, order.devices, precision, order.cache,
        source=plan.source,
    )


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """The settings as a table shows them: key, value, why."""
    config, why, base = plan.config, plan.why, plan.base
    kind = f"{len(base.classes)} classes" + ("" if base.model.has_background else ", no background")
    if has_adapter(base.model):
        architecture: Any = base.model.architecture
        kind += f", {architecture.trained_with}, {architecture.encoder}"
    else:
        kind += f", step {base.step}"
    tagged = {name: sum(name in names for names in plan.source.tags.values()) for name in plan.new}
    counts = ", ".join(f"{name}: {count}" for name, count in tagged.items())
    compared = plan.source.ids(plan.source.compared)
    table = [
        ("model", plan.order.model, kind),
        ("new classes", ", ".join(plan.new), f"photographs tagged {counts}"),
        ("judged by", f"{len(compared)} photographs" if plan.source.validation else "pictures alone",
         f"masks in {plan.order.validation}" if plan.source.validation else "there are no masks (--val DIR)"),
    ]
    values = config.model_dump(mode="json")
    for key in _SHOWN:
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None or key in why:
            table.append((key, "null" if value is None else str(value), why.get(key, "")))
    return table


_SHOWN = (
    "data.resize",
    "data.crop_size",
    "training.steps.batch_size",
    "training.steps.epochs",
    "method.warmup_epochs",
    "training.steps.optimizer",
    "training.steps.learning_rate",
    "training.steps.head_rate",
    "method.name",
    "method.untagged_absent",
    "data.negatives",
    "method.loss_stride",
    "copy_paste.bank_size",
    "cosegmentation.vision_language.name",
    "cosegmentation.vision_language.model",
    "cosegmentation.self_supervised.model",
    "training.seed",
)


def estimate_rows(plan: Plan, estimate: Estimate, say: Callable[[float], str]) -> list[tuple[str, str, str]]:
    """Time and memory as the table shows them.

    Args:
        plan: what will be done.
        estimate: what was measured.
        say: seconds in words.
    """
    compared = len(plan.source.ids(plan.source.compared))
    tagged, without = learnt_from(plan.source, plan.config.data)
    parts = estimate.seconds(plan.config, tagged, without, compared)
    told = ", ".join(f"{name} {say(seconds)}" for name, seconds in parts.items())
    return [
        ("precision", estimate.precision, f"{estimate.iteration:.2f} s an iteration, measured"),
        ("time", say(sum(parts.values())), told),
        ("memory", f"{estimate.memory_gib:.1f} GiB", "peak of the trial"),
    ]


# -------------------------------------------------------------------------------------------------------- what is begun


def _record(order: Order, base: Base, new: Sequence[str]) -> dict[str, Any]:
    """What tells one extension from another, JSON-able."""
    return {
        "model": str(Path(order.model).resolve()) if Path(order.model).exists() else order.model,
        "step": base.step,
        "old_classes": list(base.classes),
        "classes": list(new),
        "images": str(order.images.resolve()),
        "tags": order.tags if order.tags in (None, "masks", "xml") else str(Path(order.tags).resolve()),
        "tags_complete": order.wishes.tags_complete,
        "split": order.split,
        "val": None if order.validation is None else str(order.validation.resolve()),
        "replay": None if order.replay is None else str(order.replay.resolve()),
        "labels": None if order.labels is None else list(order.labels),
        "background": order.background,
        "trained_with": order.trained_with,
        "config": None if order.wishes.config is None else _content(order.wishes.config),
    }


def _told_of(source: ExtensionSource, config: Config) -> str:
    """What tags say of the new classes in the photographs that are learnt from, short."""
    told = [(image_id, *sorted(names)) for image_id, names in source.tags.items()]
    if config.data.negatives:
        told += [(image_id,) for image_id in source.without]
    return hashlib.sha256(json.dumps(sorted(told)).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    """A file and what is in it, told from other contents."""
    try:
        return f"{path.resolve()} (SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); give an experiment file") from error


_BEFORE = (".lock", ".review.lock", REVIEW, "review-figures.json", TAGS)
"""What may lie in the folder of an extension that is not begun: a review of its pseudo masks, which it heeds."""


def _recorded(out: Path) -> dict[str, Any]:
    """The record of the extension that is begun in ``out``; empty where none is.

    What ended before its first checkpoint has no say: whatever was wrong with it is put right by another order. The
    processes that the first one has started follow its record, which it has just written.
    """
    path = out / RECORD
    record = read_record(path) if path.is_file() else {}
    return record if not _is_first_process() or _has_begun(out, record) else {}


def _has_begun(out: Path, record: dict[str, Any]) -> bool:
    """Whether there is a checkpoint, or a finished step, beyond those that were copied from the base."""
    copied = record.get("step")
    return any(is_begun(path) for path, t in _steps(out).items() if not isinstance(copied, int) or t > copied)


def _steps(out: Path) -> dict[Path, int]:
    return {path: int(path.name[4:]) for path in out.glob("step*") if path.name[4:].isdecimal()}


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _begin(out: Path, record: dict[str, Any]) -> None:
    """Write the record, after removing what an extension left there that ended before its first checkpoint.

    Raises:
        UserError: another process is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    try:
        with FileLock(out / ".lock", timeout=0):
            if (out / RECORD).is_file():
                for step in _steps(out):
                    shutil.rmtree(step)
                for name in ("config.yaml", TAGS_CACHE):
                    (out / name).unlink(missing_ok=True)
            write_atomically(out / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    except Timeout as error:
        raise UserError(f"{out}: another fmwiss extend is at work there; wait for it, or give another --out") from error


def _check_record(out: Path, saved: dict[str, Any], record: dict[str, Any], precision: str) -> None:
    """Raise UserError where another extension is begun in ``out``, or something else lies there."""
    if not saved:
        lies_there = [] if (out / RECORD).is_file() or not out.is_dir() else out.iterdir()
        if any(entry.name not in _BEFORE for entry in lies_there):
            raise UserError(f"--out {out} holds something else than an extension; give a new folder")
        return
    for key, value in record.items():
        if saved.get(key) != value:
            raise UserError(
                f"{out} was begun with {key} = {_told(saved.get(key))} and {_told(value)} is asked for now; give the "
                "same, or another --out"
            )
    if precision != "auto" and saved.get("precision") not in (None, precision):
        raise UserError(
            f"{out} was begun with --precision {saved['precision']} and {precision} is asked for now; leave it out, "
            "or give another --out"
        )


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "nothing" if value is None else str(value)


def recorded_precision(order: Order) -> str | None:
    """The precision that the run was begun with; None before that."""
    precision = _recorded(order.out).get("precision")
    return precision if isinstance(precision, str) else None


def _as_begun(saved: Config, now: Config, wishes: Wishes) -> Config:
    """The settings that the run was begun with, and what the user asks for beside them, which must be the same.

    What was measured or counted then is not settled again: photographs may have been added since.
    """
    asked: dict[str, Any] = {}
    for key, value in (
        ("training.steps.epochs", wishes.epochs), ("data.crop_size", wishes.crop_size), ("data.resize", wishes.resize),
        ("training.steps.learning_rate", wishes.learning_rate), ("training.seed", wishes.seed),
        ("data.negatives", wishes.negatives),
    ):
        if value is not None:
            asked[key] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(_dumped(saved), encoding="utf-8")
        given = load_config(path, [asked, *wishes.overrides])
    given = given.model_copy(update={"data": given.data.model_copy(update={"workers": now.data.workers})})
    return given.model_copy(update={"method": given.method.model_copy(
        update={"untagged_absent": wishes.tags_complete} if hasattr(given.method, "untagged_absent") else {}
    )})


def _dumped(config: Config) -> str:
    from fmwiss.config import dump_config

    return dump_config(config)


def _bank_size(base: Base) -> float | None:
    """Instances per class that the base's memory was made for; None: it has no memory."""
    if base.bank is None:
        return None
    bank = MemoryBank.load(base.bank)
    if bank.made_with is not None:
        return bank.made_with.get("bank_size")
    return float(max((bank.count(name) for name in bank.classes), default=0)) or None
