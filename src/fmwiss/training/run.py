"""A run: every step of an experiment in one folder, resumable at every moment."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from torchvision.transforms.v2.functional import resize

from fmwiss.config import (
    Config,
    EPSConfig,
    OptimizationConfig,
    RECALLConfig,
    check_resumable,
    dump_config,
    load_config,
)
from fmwiss.data.coco_stuff import CocoToVOCSource
from fmwiss.data.datasets import MaskDataset, PseudoMaskSource, SaliencySource, TrueMasks, WeakDataset
from fmwiss.data.memory import CopyPaste, MemoryBank
from fmwiss.data.protocols import Protocol, draw, share
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.replay import InterleavedDataset, ReplayFolder
from fmwiss.data.saliency import SaliencyFolder
from fmwiss.data.source import Source, open_source
from fmwiss.data.tags import TagIndex
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.evaluation import Evaluation, evaluate
from fmwiss.evaluation.evaluate import Observer, center_crop
from fmwiss.files import write_atomically
from fmwiss.foundation import build_saliency
from fmwiss.methods import (
    RECALL,
    Method,
    PixelMethod,
    Supervised,
    build_method,
    check_methods,
    method_class,
    takes_pseudo_masks,
)
from fmwiss.models import Segmenter
from fmwiss.processes import Processes
from fmwiss.pseudo_masks import open_pseudo_masks
from fmwiss.pseudo_masks import working_size as frozen_size
from fmwiss.reporting.progress import track
from fmwiss.reporting.records import CONFUSION, ENVIRONMENT, EVALUATION, GALLERY, LOCATOR, Confusion, Gallery
from fmwiss.reporting.report import write_report
from fmwiss.run_folders import finished_steps
from fmwiss.training.base import base_difference
from fmwiss.training.environment import describe_environment
from fmwiss.training.gallery import (
    PHOTOGRAPHS,
    Comparison,
    GalleryFolder,
    Shown,
    TrainingPictures,
    draw_validation,
)
from fmwiss.training.launch import build_fabric, check_hardware, one_job
from fmwiss.training.located import KeptMaps, LocatedMasks
from fmwiss.training.loop import Loop
from fmwiss.training.pixel import REPLAY, SURVEY, PixelStep
from fmwiss.training.reviews import StepReviews

BANK = "memory_bank.safetensors"
TAGS = "tags.json"
LOCATOR_TIME = "time.json"
REPORT = "report.html"


def train(
    config: Config,
    data: Path,
    weights: Path | None,
    out: Path,
    step: int | None = None,
    devices: str | int = "auto",
    precision: str = "32-true",
    cache: Path | None = None,
    base: Path | None = None,
    source: Source | None = None,
    review: Path | None = None,
    num_nodes: int | None = None,
) -> dict[int, Evaluation]:
    """Do every step of an experiment that is not done yet, or the given one.

    Args:
        config: the experiment.
        data: folder, laid out as ``config.data.source`` says.
        weights: folder with weights by timm name, looked into before the hub.
        out: the run's folder.
        step: do only this step; the one before it must be finished.
        devices: processes of a node, or "auto" (:func:`fmwiss.training.launch.build_fabric`).
        precision: Fabric's precision, such as "32-true" or "bf16-mixed".
        cache: where pseudo-mask stores are kept; None: the user's cache folder.
        base: another run whose finished step 0 is taken over in place of training it; it must come from the same
            protocol, data, segmenter, seed and base settings. The memory of the old classes is made anew where the
            other run kept another one.
        source: the data set, in place of the one in ``data``, which is then a name for messages.
        review: decisions about pseudo masks (:mod:`fmwiss.data.review`) for the steps that are not begun; by default
            those in ``out``, if there are any. A step that is begun goes on with those that it was begun with.
        num_nodes: machines, on each of which this is called; None: as the launcher of this process says, else one.

    Returns:
        The evaluation of every step done by this call.
    """
    fabric = build_fabric(devices, precision, num_nodes)
    check_hardware(fabric, config.training)
    fabric.launch()
    with one_job(fabric):
        run = _Run(config, data, weights, out, cache, fabric, source, review)
        return _train(run, out, step, base)


def _train(run: _Run, out: Path, step: int | None, base: Path | None) -> dict[int, Evaluation]:
    fabric = run.fabric
    if step is not None and not 0 <= step < len(run.protocol.steps):
        raise UserError(f"--step {step}: the protocol has steps 0 to {len(run.protocol.steps) - 1}.")
    with _alone(out) if fabric.is_global_zero else nullcontext():
        run.open()
        if base is not None:
            run.take_base(base)
        done = finished_steps(out)
        for t in done:
            shutil.rmtree(out / f"step{t}" / "state", ignore_errors=True)  # a kill may have come before its removal
        if step is not None and step > 0 and step - 1 not in done:
            raise UserError(f"{out}: step {step} starts from step {step - 1}, which is not finished; train that first.")
        wanted = range(len(run.protocol.steps)) if step is None else [step]
        results = {t: run.do_step(t) for t in wanted if t not in done}
        if fabric.is_global_zero:
            for unfinished in out.glob(".*.tmp"):  # of processes that were killed while they wrote
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
            write_report([out], out / REPORT)
        return results


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keeps other commands from training in the same folder; a process that is killed keeps nobody out."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{run}: another fmwiss train is at work there; wait for it, or give another --out") from error


@dataclass
class _Run:
    config: Config
    data: Path
    weights: Path | None
    folder: Path
    cache: Path | None
    fabric: Fabric
    given: Source | None = None
    """The data set, where it is not what lies in ``data``."""
    review: Path | None = None

    def __post_init__(self) -> None:
        self.source: Source = open_source(self.config.data, self.data) if self.given is None else self.given
        self.protocol = Protocol.from_config(self.config.protocol, self.source.class_names)
        self._check_masks(self.protocol.new(0), "step 0 learns from masks")
        options = self.config.data
        check_methods(self.config)
        if isinstance(self.config.method, RECALLConfig) and self.config.method.replay is not None:
            ReplayFolder(self.config.method.replay, self.protocol.old(len(self.protocol.steps) - 1))
        self.transform = JointTransform(options.crop_size, options.resize, options.scale, options.flip, options.crop)
        self._seconds_before = 0.0
        """What processes that were interrupted spent on the present step's locator."""
        self.reviews = StepReviews(self.folder, self.review, self.config, self.protocol, self.source)

    def open(self) -> None:
        """Check that what was begun here was begun with the same configuration, and write the one given.

        While there is no more than step 0, only what that depends on has to be the same. What can be wrong with the
        lists of ids is found here, before anything is trained.
        """
        self.source.ids(self.config.data.train_split)
        for split in (self.config.data.val_split, *self.config.data.also):
            for image_id in self.source.ids(split):
                if not self.source.has_mask(image_id):
                    raise UserError(
                        f"{self.data}: the photograph '{image_id}' of {split} has no mask to compare predictions with; "
                        "add one, or leave it out of the list"
                    )
        path = self.folder / "config.yaml"
        begun = [folder.name for folder in self.folder.glob("step*") if is_begun(folder)]
        if begun and path.is_file():
            saved = load_config(path)
            difference = base_difference(saved, self.config, self.source.class_names)
            if begun != ["step0"] or difference is not None:
                check_resumable(saved, self.config, self.folder)
            elif (memory := self._memory_difference(self.folder / "step0" / BANK, saved)) is not None:
                key, before, now = memory
                raise UserError(
                    f"{self.folder} was started with {key} = {before} but {now} is asked for now; give the same value "
                    "or another --out"
                )
        # another process may not have made the folder yet
        finished = finished_steps(self.folder) if self.folder.is_dir() else []
        steps = [t for t in range(1, len(self.protocol.steps)) if t not in finished]
        self.reviews.check({t: is_begun(self.folder / f"step{t}") for t in steps})
        self.fabric.barrier()  # every process has looked before the first one writes
        if self.fabric.is_global_zero:
            write_atomically(path, lambda file: file.write_text(dump_config(self.config)))
        self.fabric.barrier()
        if self._given_saliency is not None:
            for t in steps:
                ids = self._candidates(t)
                chosen = self._photographs(t, self._tags(ids), ids)
                chosen = share(chosen, self.config.data.fraction, self.config.training.seed)
                SaliencyFolder(self._given_saliency, self.source, chosen)
        if self.config.data.source != "voc":  # a user's own tags: a step without photographs is told before step 0
            finished = finished_steps(self.folder)
            for t in range(len(self.protocol.steps)):
                if t not in finished:
                    ids = self._candidates(t)
                    chosen = self._photographs(t, self._tags(ids), ids)
                    if t > 0 and self._learns_truth():
                        self._check_truth(t, chosen)

    def take_base(self, base: Path) -> None:
        """Copy the finished step 0 of another run, unless this run has its own.

        Its memory of the old classes comes along if it is the one that this run wants; else it is made here, or left
        out by a run that pastes nothing.
        """
        has_own = 0 in finished_steps(self.folder)
        self.fabric.barrier()  # every process has looked before the first one copies
        if has_own:
            return
        if 0 not in finished_steps(base):
            raise UserError(f"{base}: its step 0 is not finished; train it first.")
        theirs = load_config(base / "config.yaml")
        difference = base_difference(theirs, self.config, self.source.class_names)
        if difference is not None:
            key, before, now = difference
            raise UserError(
                f"{base}: its base model was trained with {key} = {before}, and the configuration says {now}; give a "
                "base run of the same settings."
            )
        if self.fabric.is_global_zero and (base / TAGS).is_file() and not (self.folder / TAGS).is_file():
            tags = (base / TAGS).read_bytes()
            write_atomically(self.folder / TAGS, lambda path: path.write_bytes(tags))
        self.fabric.barrier()
        chosen: list[str] = []
        bank = base / "step0" / BANK
        takes_memory = self._wants_memory() and bank.is_file() and self._memory_difference(bank) is None
        if self._wants_memory() and not takes_memory:
            ids = self._candidates(0)
            chosen = self._photographs(0, self._tags(ids), ids)
        if self.fabric.is_global_zero:
            temporary = self.folder / ".step0.tmp"
            left_out = ["state"] if takes_memory else ["state", BANK]
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                shutil.copytree(base / "step0", temporary, ignore=shutil.ignore_patterns(*left_out))
            except shutil.Error as error:  # several files' errors in one
                raise UserError(f"{base}: its step 0 cannot be copied ({error.args[0][0][2]})") from error
            if chosen:
                self._build_memory(chosen).save(temporary / BANK)
            shutil.rmtree(self.folder / "step0", ignore_errors=True)
            temporary.rename(self.folder / "step0")
        self.fabric.barrier()

    def do_step(self, t: int) -> Evaluation:
        """Train step ``t``, write its model, and evaluate it."""
        started = time.monotonic()
        self._seconds_before = 0.0
        if self.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        training, folder = self.config.training, self.folder / f"step{t}"
        options = training.step0 if t == 0 else training.steps
        ids = self._candidates(t)
        tags = self._tags(ids)
        chosen = self._photographs(t, tags, ids)
        if t > 0:
            chosen = share(chosen, self.config.data.fraction, training.seed)
            negatives = self._negatives(t, tags, ids, len(chosen))
            reviewed, left = self._reviewed(t, chosen, tags)
            if self.config.data.negatives:
                negatives = [*self.reviews.emptied(t), *negatives]
            new = frozenset(self.protocol.new(t))
            without = {image_id: tags[image_id] - new for image_id in negatives}
            chosen, tags = [*reviewed, *negatives], TagIndex({**left, **without})
        seed_everything = keyed_generator(training.seed, "step", t)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=seed_everything)))
        method = self._base_method(options) if t == 0 else self._method(t, options)
        new_tags = {i: tags[i] & frozenset(self.protocol.new(t)) for i in chosen}
        dataset = self._dataset(t, method, chosen, new_tags)
        replay = (len(dataset.replay), dataset.share) if isinstance(dataset, InterleavedDataset) else (0, 0.0)
        prepared = time.monotonic()
        loop = self._loop(
            t,
            options,
            folder,
            f"step {t}",
            validate_every=training.validate_every,
            validate=lambda: self._evaluate(method.student).as_dict(),
        )
        training_seconds = loop.run(method, dataset, len(chosen), *replay)
        trained = time.monotonic()
        method.eval()
        if self.fabric.is_global_zero:
            self._keep_memory(t, method, chosen, new_tags)
            if t > 0 and isinstance(method, PixelMethod):
                self._pixel_step(t).keep_carried(method, self.config.method.name, self._more_follow(t))
        self.fabric.barrier()
        result, counts, shown = self._comparison(t).run(method.student)
        also = {split: self._evaluate(method.student, self.source.ids(split)) for split in self._further(t)}
        if self.fabric.is_global_zero:
            counts.save(folder / PHOTOGRAPHS)
            pictures = self._training_pictures(t, method, dataset, chosen, tags, options)
            self._write_gallery(t, shown, pictures)
            seconds = {
                "preparation": prepared - started + self._seconds_before,
                "training": training_seconds,
                "finishing": time.monotonic() - trained,
            }
            seconds["all"] = sum(seconds.values())
            copy_paste = dataset.copy_paste if isinstance(dataset, WeakDataset) else None
            instances = copy_paste.instances if copy_paste is not None else {}
            self._finish(folder, method, result, seconds, len(chosen), instances, also)
        self.fabric.barrier()
        return result

    def _loop(self, t: int, options: OptimizationConfig, folder: Path, description: str, **validation: Any) -> Loop:
        training, synchronised = self.config.training, self.config.training.sync_batch_norm
        if synchronised == "auto":
            synchronised = self.fabric.device.type == "cuda"
        return Loop(
            fabric=self.fabric,
            options=options,
            folder=folder,
            seed=training.seed,
            step=t,
            workers=self.config.data.workers,
            checkpoint_every=training.checkpoint_every,
            gradient_clip=training.gradient_clip,
            description=description,
            sync_batch_norm=synchronised,
            compile=training.compile,
            activation_checkpointing=training.activation_checkpointing,
            **validation,
        )

    def _comparison(self, t: int) -> Comparison:
        options = self.config.evaluation
        identity = {"split": self.config.data.val_split, "image": options.image}
        if options.image == "center-crop":
            identity["crop_size"] = str(options.crop_size)
        return Comparison(
            folder=self.folder,
            step=t,
            ids=self.source.ids(self.config.data.val_split),
            identity=identity,
            label_table=self.protocol.label_table(t, self.source.class_names),
            seed=self.config.training.seed,
            device=self.fabric.device,
            evaluate=self._evaluate,
            gather=self._gather,
        )

    def _gather(self, mine: dict[str, Any]) -> dict[str, Any]:
        """What all processes have found, each of its own photographs."""
        shares = Processes.of_this_job().gather(mine)
        return {image_id: value for share in shares for image_id, value in share.items()}

    def _training_pictures(
        self,
        t: int,
        method: Method,
        dataset: MaskDataset | WeakDataset | InterleavedDataset,
        ids: list[str],
        tags: TagIndex,
        options: OptimizationConfig,
    ) -> TrainingPictures:
        return TrainingPictures(
            source=self.source,
            dataset=dataset,
            ids=ids,
            tags=tags,
            new_classes=self.protocol.new(t),
            class_names=method.student.class_names,
            epochs=method.warmup_epochs + options.epochs,
            seed=self.config.training.seed,
            stages=dataset.pseudo_masks if isinstance(dataset, WeakDataset) else None,
            probability_maps=lambda image: method.probability_maps(method.student.to_working_size(image)),
            label_table=self._mask_table(t) if method.supervision == "pixel" else None,
        )

    def _write_gallery(self, t: int, shown: Sequence[Shown], pictures: TrainingPictures) -> None:
        """What the report shows of the step beside its figures."""
        folder = GalleryFolder(self.folder / f"step{t}" / GALLERY)
        split, table = self.config.data.val_split, self.protocol.label_table(t, self.source.class_names)
        gallery = Gallery(
            class_names=list(pictures.class_names),
            new_classes=list(pictures.new_classes),
            split=split,
            compared=len(self.source.ids(split)),
            validation=draw_validation(folder, shown, pictures.class_names, table, self._compared_photograph),
            training=pictures.draw(folder),
        )
        folder.finish(gallery)

    def _compared_photograph(self, image_id: str) -> torch.Tensor:
        """Of a validation photograph, what is compared with its mask, uint8."""
        photograph, options = self.source.read_image(image_id), self.config.evaluation
        if options.image == "whole":
            return photograph
        return (center_crop(photograph, photograph[0], options.crop_size)[0] * 255).round().to(torch.uint8)

    def _finish(
        self,
        folder: Path,
        method: Method,
        result: Evaluation,
        seconds: Mapping[str, float],
        images: int,
        instances: Mapping[str, int],
        also: Mapping[str, Evaluation],
    ) -> None:
        summary: dict[str, Any] = {
            **result.as_dict(),
            "split": self.config.data.val_split,
            "training_images": images,
            "pasted_instances": dict(instances),
            "minutes": {name: round(value / 60, 2) for name, value in seconds.items()},
            "peak_memory_gib": round(_peak_memory_gib(self.fabric.device), 2),
            "diagnostic": self._takes_pseudo_masks(method) and self.config.cosegmentation.source == "true-masks",
            **self.reviews.summary(result.step),
        }
        if also:
            summary["also"] = {split: one.as_dict() for split, one in also.items()}
        confusion = Confusion(names=list(result.iou), pixels=[list(row) for row in result.confusion])
        _write_json(folder / CONFUSION, confusion.model_dump(), indent=None)
        _write_json(folder / ENVIRONMENT, describe_environment(self.fabric).model_dump())
        _write_json(folder / EVALUATION, summary)
        for unfinished in folder.glob(".*.tmp"):  # of processes that were killed while they wrote
            unfinished.unlink()
        method.student.save(folder)
        shutil.rmtree(folder / "state", ignore_errors=True)

    def _tags(self, ids: list[str]) -> TagIndex:
        cache = self.folder / TAGS
        if self.fabric.is_global_zero:
            TagIndex.load_or_build(self.source, ids, self.config.data.tags, cache, track)
        self.fabric.barrier()
        return TagIndex.load_or_build(self.source, ids, self.config.data.tags, cache)

    def _candidates(self, t: int) -> list[str]:
        """The training list, or what of it a step may choose from where steps learn from data sets of their own."""
        ids = self.source.ids(self.config.data.train_split)
        return self.source.of_step(t, ids) if isinstance(self.source, CocoToVOCSource) else ids

    def _further(self, t: int) -> tuple[str, ...]:
        """Lists beside the validation split; of step 0 none, whose model others share."""
        return self.config.data.also if t > 0 else ()

    def _photographs(self, t: int, tags: TagIndex, ids: list[str]) -> list[str]:
        """Those that a step may use; where it learns from masks they have some."""
        joint = t > 0 and self._is_joint()
        chosen = self.protocol.select_seen(t, tags, ids) if joint else self.protocol.select(t, tags, ids)
        from_masks = t == 0 or method_class(self.config.method).supervision == "pixel"
        if from_masks:
            self._check_masks(self.protocol.new(t), f"step {t} learns from masks")
            chosen = [image_id for image_id in chosen if self.source.has_mask(image_id)]
        if not chosen:
            with_mask = " with a mask" if from_masks and any(map(self.source.has_mask, ids)) else ""
            raise UserError(
                f"{self.data}: no photograph{with_mask} of {self.config.data.train_split} is tagged with a class of "
                f"step {t} ({', '.join(self.protocol.new(t))})."
            )
        return chosen

    def _negatives(self, t: int, tags: TagIndex, ids: list[str], shown: int) -> list[str]:
        """Photographs without a class of the step, for so many with one."""
        count = round(self.config.data.negatives * shown)
        if count == 0:
            return []
        if not isinstance(self.source, VOCSource):
            # of VOC's everything is known; elsewhere nothing may be known about a photograph without a tag
            rows: frozenset[str] = getattr(self.source, "has_row", frozenset())
            ids = [image_id for image_id in ids if image_id in rows or self.source.has_mask(image_id)]
        return draw(self.protocol.select_without(t, tags, ids), count, self.config.training.seed, "negatives")

    def _learns_truth(self) -> bool:
        """Whether steps after 0 learn from the truth in place of pseudo masks."""
        learns = takes_pseudo_masks(self.config.method)
        return learns and self.config.cosegmentation.source == "true-masks"

    def _check_truth(self, t: int, ids: Sequence[str]) -> None:
        self._check_masks(self.protocol.new(t), "cosegmentation.source is 'true-masks'")
        bare = next((image_id for image_id in ids if not self.source.has_mask(image_id)), None)
        if bare is not None:
            raise UserError(
                f"{self.data}: cosegmentation.source is 'true-masks', and the photograph '{bare}' of step {t} has no "
                "mask; set it to foundation, or add the mask"
            )

    def _check_masks(self, names: Sequence[str], why: str) -> None:
        known = self.source.mask_classes
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            there = f"they have {', '.join(known)}" if known else "there are none"
            raise UserError(f"{self.data}: {why}, and its masks have no class '{missing}'; {there}")

    def _reviewed(self, t: int, ids: list[str], tags: TagIndex) -> tuple[list[str], TagIndex]:
        """The step's photographs and their tags after the review that it is begun with, if there is one."""
        if self.fabric.is_global_zero:
            self.reviews.begin(t, is_begun(self.folder / f"step{t}"))
        self.fabric.barrier()
        return self.reviews.apply(t, ids, tags, print if self.fabric.is_global_zero else None)

    def _base_method(self, options: OptimizationConfig) -> Method:
        config = self.config
        student = Segmenter.from_config(config.segmenter, self.protocol.new(0), config.data.resize, self.weights)
        step0 = config.training.step0
        return Supervised(student, options.freeze_batch_norm, step0.loss_stride, step0.loss)

    def _method(self, t: int, options: OptimizationConfig) -> Method:
        previous = self.folder / f"step{t - 1}"
        student, old_model = Segmenter.load(previous), Segmenter.load(previous)
        expected = self.config.segmenter
        if student.architecture.encoder != expected.encoder:
            raise UserError(
                f"{previous}: is a checkpoint of encoder {student.architecture.encoder}, and the configuration's "
                f"segmenter.encoder is {expected.encoder}; they must be the same."
            )
        if student.class_names[1:] != self.protocol.old(t):
            raise UserError(
                f"{previous}: has learnt {', '.join(student.class_names[1:])}, and for {self.data} step {t} needs one "
                f"of {', '.join(self.protocol.old(t))}; give the data that the run was begun with, or another --out."
            )
        if self._is_joint():
            student = self._new_student(t)
        else:
            student.add_step(self.protocol.new(t), expected.classifier_init, expected.class_prior)
        method = build_method(self.config.method, student, old_model, options.freeze_batch_norm)
        if expected.class_prior is not None:
            method.start_rare(expected.class_prior)
        return method

    def _new_student(self, t: int) -> Segmenter:
        """A model of all classes so far that has learnt none of them."""
        config = self.config
        student = Segmenter.from_config(config.segmenter, self.protocol.new(0), config.data.resize, self.weights)
        for step in range(1, t + 1):
            student.add_step(self.protocol.new(step), "plain", config.segmenter.class_prior)
        return student

    def _is_joint(self) -> bool:
        method = method_class(self.config.method)
        return issubclass(method, PixelMethod) and method.joint

    def _more_follow(self, t: int) -> bool:
        """Whether the protocol has steps after this one."""
        return t + 1 < len(self.protocol.steps)

    def _dataset(
        self, t: int, method: Method, ids: list[str], tags: Mapping[str, frozenset[str]]
    ) -> MaskDataset | WeakDataset | InterleavedDataset:
        """A step's samples; those of a method that learns from tags open no mask."""
        if method.supervision == "image":
            return self._weak_dataset(t, method, ids, tags)
        dataset = self._mask_dataset(t, ids)
        if not isinstance(method, PixelMethod):  # step 0's
            return dataset
        step = self._pixel_step(t)
        step.prepare(method, self.config.method.name, self._more_follow(t))
        if not isinstance(method, RECALL):
            return dataset
        assert method.options.replay is not None
        return step.interleaved(method, dataset, ReplayFolder(method.options.replay, self.protocol.old(t)))

    def _pixel_step(self, t: int) -> PixelStep:
        def dataset_of(step: int) -> MaskDataset:
            ids = self._candidates(step)
            chosen = self._photographs(step, self._tags(ids), ids)
            fraction = self.config.data.fraction if step else 1.0
            return self._mask_dataset(step, share(chosen, fraction, self.config.training.seed))

        options, data = self.config.training.steps, self.config.data
        return PixelStep(self.folder, t, self.fabric, options.batch_size, data.workers, dataset_of)

    def _mask_dataset(self, t: int, ids: list[str]) -> MaskDataset:
        """Photographs with the masks of the step's classes, or for a joint training of all so far."""
        return MaskDataset(self.source, ids, self._mask_table(t), self.transform, self.config.training.seed)

    def _mask_table(self, t: int) -> torch.Tensor:
        """From the data set's labels to what a step that learns from masks may see of them."""
        everything = t == 0 or self._is_joint()
        return (self.protocol.label_table if everything else self.protocol.step_table)(t, self.source.class_names)

    def _takes_pseudo_masks(self, method: Method) -> bool:
        return type(method).learns_from_pseudo_masks(self.config.method)

    def _weak_dataset(
        self, t: int, method: Method, ids: list[str], tags: Mapping[str, frozenset[str]]
    ) -> WeakDataset:
        masks: PseudoMaskSource | None
        if self._takes_pseudo_masks(method):
            masks = self._pseudo_masks(ids, tags)
        else:
            masks = self._located_masks(t, method, ids, tags)
        copy_paste = self._copy_paste(t) if method.pastes_instances else None
        new, seed = self.protocol.new(t), self.config.training.seed
        return WeakDataset(self.source, ids, tags, new, self.transform, seed, masks, copy_paste)

    def _located_masks(
        self, t: int, method: Method, ids: list[str], tags: Mapping[str, frozenset[str]]
    ) -> LocatedMasks | None:
        """Train the method's locator, if it has one, and keep the masks that it makes; what is there is not redone."""
        locator = method.locator()
        if locator is None:
            return None
        new, seed = self.protocol.new(t), self.config.training.seed
        folder = self.folder / f"step{t}" / LOCATOR
        masks = LocatedMasks(folder / "masks", new)
        missing = masks.missing(ids)
        self.fabric.barrier()  # every process has looked before the first one writes
        begun = time.monotonic()
        if missing:
            saliency = self._saliency(folder / "saliency", ids) if locator.learns_from_saliency else None
            dataset = WeakDataset(self.source, ids, tags, new, self.transform, seed, None, None, saliency)
            prepared = time.monotonic()
            loop = self._loop(t, locator.options.locator, folder, f"step {t}, locator")
            trained_before = loop.run(locator, dataset, len(ids)) - (time.monotonic() - prepared)
            locator.eval()
            self._share_buffers(locator)
            mine = missing[self.fabric.global_rank :: self.fabric.world_size]
            for image_id in track(mine, "locating"):
                image = locator.student.to_working_size(self.source.read_image(image_id))
                tagged = [place for place, name in enumerate(new) if name in tags[image_id]]
                masks.write(image_id, locator.labels(image, tagged).cpu())
        self.fabric.barrier()
        spent = time.monotonic() - begun
        if missing and self.fabric.is_global_zero:
            _write_json(folder / LOCATOR_TIME, {"seconds": round(spent + trained_before, 1)})
        self.fabric.barrier()
        if (folder / LOCATOR_TIME).is_file():
            kept = json.loads((folder / LOCATOR_TIME).read_text(encoding="utf-8"))
            self._seconds_before = float(kept["seconds"]) - spent
        if self.fabric.is_global_zero:
            shutil.rmtree(folder / "state", ignore_errors=True)
        return masks

    @property
    def _given_saliency(self) -> Path | None:
        return self.config.method.saliency if isinstance(self.config.method, EPSConfig) else None

    def _saliency(self, folder: Path, ids: list[str]) -> SaliencySource:
        """Saliency maps of the photographs: those given, or of the self-supervised model that is configured."""
        if self._given_saliency is not None:
            return SaliencyFolder(self._given_saliency, self.source, ids)
        options = self.config.cosegmentation.self_supervised
        maps = KeptMaps(folder, ["saliency"])
        missing = maps.missing(ids)
        self.fabric.barrier()  # every process has looked before the first one writes
        if missing:
            model = build_saliency(options, self.weights, self.fabric.device)
            for image_id in track(missing[self.fabric.global_rank :: self.fabric.world_size], "saliency"):
                image = self.source.read_image(image_id)
                size = frozen_size(image.shape[-2], image.shape[-1], options.input_size, model.stride)
                seen = resize(image, list(size), antialias=True)[None].to(self.fabric.device).float() / 255
                maps.write(image_id, (model.saliency(seen)[0] * 255).round().to(torch.uint8).cpu())
        self.fabric.barrier()
        return maps

    def _pseudo_masks(self, ids: list[str], tags: Mapping[str, frozenset[str]]) -> PseudoMaskSource:
        options, seed = self.reviews.cosegmentation(), self.config.training.seed
        if options.source == "true-masks":
            return TrueMasks(self.source, self.source.mask_classes)
        return open_pseudo_masks(
            options,
            self.source,
            ids,
            tags,
            self.weights,
            self.cache,
            self.fabric.device,
            seed,
            track,
            Processes.of_this_job(),
        )

    def _copy_paste(self, t: int) -> CopyPaste | None:
        options, data = self.config.copy_paste, self.config.data
        if options.bank_size == 0 or options.probability == 0:
            return None
        path = self.folder / f"step{t - 1}" / BANK
        if not path.is_file():
            raise UserError(
                f"{path}: the memory bank of the old classes is missing; train step {t - 1} with copy_paste.bank_size "
                "> 0, or set copy_paste.bank_size=0."
            )
        labels = {name: label for label, name in enumerate(self.protocol.old(t), start=1)}
        bank = MemoryBank.load(path)
        seed = self.config.training.seed
        return CopyPaste(bank, labels, options.probability, data.scale, data.resize, seed, data.crop)

    def _keep_memory(
        self, t: int, method: Method, ids: list[str], tags: Mapping[str, frozenset[str]]
    ) -> None:
        """Write the memory bank that the next step draws from.

        Step 0 writes it whatever the method, so that runs of other methods can take its base over.
        """
        options = self.config.copy_paste
        if options.bank_size == 0 or (t > 0 and not method.pastes_instances):
            return
        path = self.folder / f"step{t}" / BANK
        if t == 0:
            bank = self._build_memory(ids)
        else:
            bank = MemoryBank.load(self.folder / f"step{t - 1}" / BANK)
            if options.learnt_classes:
                self._add_learnt(bank, t, ids, tags, method.student)
        bank.save(path)

    def _build_memory(self, ids: list[str]) -> MemoryBank:
        """The memory of step 0's classes from the photographs of that step."""
        options, seed = self.config.copy_paste, self.config.training.seed
        table, classes = self.protocol.label_table(0, self.source.class_names), self.protocol.seen(0)
        return MemoryBank.build(self.source, ids, table, classes, options.bank_size, options.min_area, seed, track)

    def _wants_memory(self) -> bool:
        """Whether this run pastes instances of the old classes."""
        return method_class(self.config.method).pastes_instances and self.config.copy_paste.bank_size > 0

    def _memory_difference(self, path: Path, assumed: Config | None = None) -> tuple[str, str, str] | None:
        """The first key in which the memory that lies there is not the one that this run wants, and both values.

        None where it is, where there is no memory, and where this run wants none.

        Args:
            path: the memory's file.
            assumed: what a file is taken to be made with that does not tell it, as those of earlier versions; without
                it such a file is another one than wanted.
        """
        if not self._wants_memory() or not path.is_file():
            return None
        options = assumed.copy_paste if assumed is not None else None
        made_with = MemoryBank.load(path).made_with or {}
        for key in ("bank_size", "min_area"):
            before, now = made_with.get(key, getattr(options, key, None)), getattr(self.config.copy_paste, key)
            if before != now:
                return f"copy_paste.{key}", "unknown" if before is None else str(before), str(now)
        return None

    def _add_learnt(
        self, bank: MemoryBank, t: int, ids: list[str], tags: Mapping[str, frozenset[str]], student: Segmenter
    ) -> None:
        """Classes learnt from tags enter the bank with the model's own masks."""
        options = self.config.copy_paste
        for label, name in enumerate(self.protocol.new(t), start=1 + len(self.protocol.old(t))):
            tagged = [i for i in ids if name in tags[i]]
            generator = keyed_generator(self.config.training.seed, "memory", t, name)
            for index in torch.randperm(len(tagged), generator=generator).tolist():
                if bank.count(name) == options.bank_size:
                    break
                image = self.source.read_image(tagged[index])
                bank.add(name, image, student.predict(image).cpu() == label, options.min_area)

    def _share_buffers(self, model: torch.nn.Module) -> None:
        """Every process has batch norm statistics of its own photographs; the first one's are those that are saved."""
        if self.fabric.world_size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _evaluate(
        self, student: Segmenter, ids: Sequence[str] | None = None, observe: Observer | None = None
    ) -> Evaluation:
        """Evaluate on the validation split, or on some of its photographs; every process does its share."""
        options = self.config.evaluation
        self._share_buffers(student)
        with self.fabric.autocast() if self.fabric.device.type == "cuda" else nullcontext():
            return evaluate(
                student,
                self.source,
                self.source.ids(self.config.data.val_split) if ids is None else ids,
                self.protocol,
                image=options.image,
                crop_size=options.crop_size,
                batch_size=options.batch_size,
                rank=self.fabric.global_rank,
                world_size=self.fabric.world_size,
                observe=observe,
            )


def _write_json(path: Path, value: object, indent: int | None = 1) -> None:
    text = json.dumps(value, indent=indent) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def is_begun(step: Path) -> bool:
    """Whether a step's folder holds a model, a checkpoint, a locator's masks, or what a method found in photographs."""
    kept = ("state/*", f"{LOCATOR}/state/*", f"{LOCATOR}/saliency/*", f"{LOCATOR}/masks/*", SURVEY, f"{REPLAY}/*")
    return (step / "model.json").is_file() or any(path for pattern in kept for path in step.glob(pattern))


def _peak_memory_gib(device: torch.device) -> float:
    """Largest resident memory of this process so far, or largest memory allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
