"""The pictures that a step leaves for its report: what it learnt from, and what it made better and worse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from fmwiss.data.batches import Sample
from fmwiss.data.datasets import PseudoMaskSource
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.source import Source
from fmwiss.evaluation import Evaluation
from fmwiss.evaluation.evaluate import Observer
from fmwiss.evaluation.photographs import PhotographCounts, PhotographFigures
from fmwiss.models import Segmenter
from fmwiss.reporting.pictures import heat_map, label_layer, mask_layer, thumbnail, thumbnail_size
from fmwiss.reporting.progress import track
from fmwiss.reporting.records import (
    GALLERY_INDEX,
    AugmentedSample,
    Chosen,
    ClassFigures,
    Gallery,
    Pasted,
    ProbabilityMap,
    TrainingPhotograph,
    ValidationPhotograph,
)

PHOTOGRAPHS = "photographs.safetensors"
"""Per-photograph counts of a step's model on the validation split, which the next step compares its own with."""

PICTURE_SIDE = 360
"""Longer side in pixels of a gallery's photographs; a report of one run stays under some three megabytes with it."""
MAP_SIDE = 128
MAP_ENLARGEMENT = 4
"""Probability maps are kept this many times finer than the features, and at most ``MAP_SIDE`` pixels long."""
JPEG_QUALITY = 80

EXTREMES, DRAWN = 8, 8
"""Validation photographs shown of the worst and of the best changes each, and drawn at random; half of it in step 0."""
TRAINING_SHOWN = 12
"""Training photographs shown after a step from tags (or one a class where there are more); half of it in step 0."""
EPOCHS_TRIED = 8
"""Epochs in which a sample with a pasted instance is looked for."""

T = TypeVar("T")
Gather = Callable[[dict[str, T]], dict[str, T]]
Evaluate = Callable[[Segmenter, Sequence[str], Observer], Evaluation]


# ------------------------------------------------------------------------------------------ which photographs are shown


def choose(
    scores: Mapping[str, float | None], drawn: AbstractSet[str], extremes: int, changes: bool
) -> dict[str, list[Chosen]]:
    """Photographs to be shown, by id, with why.

    Args:
        scores: the change of each photograph's mean IoU by the step or, where there is none before, the mean itself;
            None where everything is void.
        drawn: ids that are shown whatever their score.
        extremes: how many of the lowest and of the highest scores are shown.
        changes: whether the scores are changes; then a gain is none of the losses, however few those are.
    """
    ranked = sorted((score, image_id) for image_id, score in scores.items() if score is not None)
    low = [image_id for score, image_id in ranked[:extremes] if score < 0 or not changes]
    high = [image_id for score, image_id in ranked[::-1][:extremes] if score > 0 or not changes]
    why: dict[str, list[Chosen]] = {}
    for reason, ids in (
        ("lost" if changes else "lowest", low),
        ("gained" if changes else "highest", high),
        ("drawn", [image_id for image_id in scores if image_id in drawn]),
    ):
        for image_id in ids:
            why.setdefault(image_id, []).append(reason)  # type: ignore[arg-type]
    return why


def draw(ids: Sequence[str], count: int, seed: int) -> frozenset[str]:
    """``count`` of the ids, or all; the same ones in every step, a smaller number among a larger."""
    order = torch.randperm(len(ids), generator=keyed_generator(seed, "gallery", "validation")).tolist()
    return frozenset(ids[index] for index in order[:count])


@dataclass(frozen=True)
class Seen:
    """What a gallery keeps of a photograph while a model is evaluated, at the pictures' size, uint8 ``(h, w)``."""

    score: float | None
    truth: Tensor
    """In the data set's labels, void included."""
    predicted: Tensor
    height: int
    """Of what was compared."""
    width: int


class Watch:
    """Counts every photograph of an evaluation and keeps the few that will be shown; memory does not grow otherwise.

    Args:
        counts: counts the photographs.
        figures: a photograph's figures by its id, as soon as it is counted.
        before: mean IoU by the model before the step; None where there was none.
        drawn: ids that are kept whatever their score.
        extremes: how many of the lowest and of the highest scores are kept.
    """

    def __init__(
        self,
        counts: PhotographCounts,
        figures: Callable[[str], PhotographFigures],
        before: Mapping[str, float | None] | None,
        drawn: AbstractSet[str],
        extremes: int,
    ) -> None:
        self.counts = counts
        self.figures = figures
        self.before = before
        self.drawn = drawn
        self.extremes = extremes
        self.kept: dict[str, Seen] = {}

    def __call__(self, image_id: str, mask: Tensor, predicted: Tensor) -> None:
        self.counts(image_id, mask, predicted)
        score = self.figures(image_id).miou
        if self.before is not None and score is not None:
            earlier = self.before[image_id]
            score = None if earlier is None else score - earlier
        scores = {known: seen.score for known, seen in self.kept.items()} | {image_id: score}
        kept = self.choose(scores)
        if image_id in kept:
            self.kept[image_id] = _seen(mask, predicted, score)
            self.kept = {known: seen for known, seen in self.kept.items() if known in kept}

    def choose(self, scores: Mapping[str, float | None]) -> dict[str, list[Chosen]]:
        """:func:`choose` with this watch's settings."""
        return choose(scores, self.drawn, self.extremes, self.before is not None)


def _seen(mask: Tensor, predicted: Tensor, score: float | None = None) -> Seen:
    height, width = mask.shape
    size = thumbnail_size(height, width, PICTURE_SIDE)
    truth, labels = (_shrunk(tensor.to(torch.uint8), size).cpu() for tensor in (mask, predicted))
    return Seen(score, truth, labels, height, width)


def _shrunk(labels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(torch.uint8)


# ------------------------------------------------------------------------------------------------- the final evaluation


@dataclass(frozen=True)
class Shown:
    """A validation photograph that the gallery shows."""

    image_id: str
    chosen: list[Chosen]
    after: Seen
    predicted_before: Tensor | None
    figures_before: PhotographFigures | None
    figures_after: PhotographFigures


@dataclass(frozen=True)
class Comparison:
    """Evaluates a step's model and, in the same pass, compares it photograph by photograph with the one before it.

    The earlier model is run on the photographs shown alone: what it did on the others lies in its step's folder.
    (Where that holds nothing for this split, it is run on all of them.) All processes call :meth:`run`.

    Args:
        folder: the run's.
        step: number of the step.
        ids: the photographs of the validation split.
        identity: what tells counts of this split and this way of comparing from others.
        label_table: uint8 ``(256,)``, from the data set's labels to the model's.
        seed: the run's seed.
        device: where the earlier model runs.
        evaluate: :func:`fmwiss.evaluation.evaluate` of a model on this process's share of photographs.
        gather: joins what each process has found, for all of them.
    """

    folder: Path
    step: int
    ids: Sequence[str]
    identity: Mapping[str, Any]
    label_table: Tensor
    seed: int
    device: torch.device
    evaluate: Evaluate
    gather: Callable[[dict[str, Any]], dict[str, Any]]

    def run(self, student: Segmenter) -> tuple[Evaluation, PhotographCounts, list[Shown]]:
        """The evaluation, every photograph's counts, and the photographs shown, in the split's order."""
        names = student.class_names
        before = self._counts_before() if self.step > 0 else None
        counts = PhotographCounts(self.identity)
        watch = Watch(
            counts,
            lambda image_id: counts.figures(image_id, self.label_table, names),
            None if before is None else {i: before.figures(i, self.label_table, names).miou for i in self.ids},
            draw(self.ids, DRAWN if self.step else DRAWN // 2, self.seed),
            EXTREMES if self.step else EXTREMES // 2,
        )
        evaluation = self.evaluate(student, self.ids, watch)
        counts.entries = _in_order(self.gather(counts.entries), self.ids)
        kept = self.gather(watch.kept)
        chosen = watch.choose(_in_order({image_id: seen.score for image_id, seen in kept.items()}, self.ids))
        chosen = _in_order(chosen, self.ids)
        predicted_before = self._predicted_before(list(chosen)) if self.step > 0 else {}
        shown = [
            Shown(
                image_id,
                why,
                kept[image_id],
                predicted_before.get(image_id),
                before.figures(image_id, self.label_table, names) if before else None,
                counts.figures(image_id, self.label_table, names),
            )
            for image_id, why in chosen.items()
        ]
        return evaluation, counts, shown

    @property
    def _previous(self) -> Path:
        return self.folder / f"step{self.step - 1}"

    def _counts_before(self) -> PhotographCounts:
        counts = PhotographCounts.load(self._previous / PHOTOGRAPHS, self.identity)
        if counts is None or not counts.has(self.ids):
            counts = PhotographCounts(self.identity)
            self.evaluate(self._previous_model(), self.ids, counts)
            counts.entries = self.gather(counts.entries)
        return counts

    def _predicted_before(self, ids: Sequence[str]) -> dict[str, Tensor]:
        predictions: dict[str, Tensor] = {}

        def keep(image_id: str, mask: Tensor, predicted: Tensor) -> None:
            predictions[image_id] = _seen(mask, predicted).predicted

        self.evaluate(self._previous_model(), ids, keep)
        return self.gather(predictions)

    def _previous_model(self) -> Segmenter:
        return Segmenter.load(self._previous).to(self.device)


def _in_order(values: Mapping[str, T], ids: Iterable[str]) -> dict[str, T]:
    return {image_id: values[image_id] for image_id in ids if image_id in values}


# ----------------------------------------------------------------------------------------------------------- the folder


class GalleryFolder:
    """Writes a gallery's pictures; the folder appears under its name, whole, when :meth:`finish` is called.

    Args:
        folder: the gallery's folder; one that is there already is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def photograph(self, picture: Image.Image, name: str) -> str:
        """Write a photograph as JPEG and return its file's name."""
        picture.save(self.temporary / f"{name}.jpg", format="JPEG", quality=JPEG_QUALITY, optimize=True)
        return f"{name}.jpg"

    def layer(self, picture: Image.Image, name: str) -> str:
        """Write a picture of few colours as PNG and return its file's name."""
        picture.save(self.temporary / f"{name}.png", format="PNG", optimize=True)
        return f"{name}.png"

    def finish(self, gallery: Gallery) -> None:
        """Write the index and let the folder appear."""
        text = json.dumps(gallery.as_json(), ensure_ascii=False, indent=1) + "\n"
        (self.temporary / GALLERY_INDEX).write_text(text, encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self.temporary, self.folder)


def draw_validation(
    gallery: GalleryFolder,
    shown: Sequence[Shown],
    class_names: Sequence[str],
    label_table: Tensor,
    photograph_of: Callable[[str], Tensor],
) -> list[ValidationPhotograph]:
    """Draw the validation photographs.

    Args:
        gallery: where the pictures go.
        shown: the photographs.
        class_names: the model's labels, background first.
        label_table: uint8 ``(256,)``, from the data set's labels to the model's.
        photograph_of: from an id to what was compared with the mask, uint8 ``(3, H, W)``.
    """
    records = []
    for number, one in enumerate(shown):
        stem = f"validation-{number:03d}"
        truth = label_table[one.after.truth.long()]
        picture = thumbnail(photograph_of(one.image_id), PICTURE_SIDE)
        before = one.predicted_before
        figures_before = one.figures_before.iou if one.figures_before else {}
        figures_after = one.figures_after.iou
        records.append(
            ValidationPhotograph(
                id=one.image_id,
                chosen=one.chosen,
                photograph=gallery.photograph(picture, stem),
                width=picture.width,
                height=picture.height,
                truth=gallery.layer(label_layer(truth, class_names), f"{stem}-truth"),
                before=None if before is None else gallery.layer(label_layer(before, class_names), f"{stem}-before"),
                after=gallery.layer(label_layer(one.after.predicted, class_names), f"{stem}-after"),
                miou_before=one.figures_before.miou if one.figures_before else None,
                miou_after=one.figures_after.miou,
                iou={
                    name: ClassFigures(
                        before=figures_before.get(name),
                        after=figures_after.get(name),
                        in_truth=name in one.figures_after.truth,
                    )
                    for name in class_names
                    if name in figures_before or name in figures_after
                },
            )
        )
    return records


@dataclass(frozen=True)
class TrainingPictures:
    """Draws training photographs of a step. Without ``label_table``, that is after step 0, no mask file is opened.

    Args:
        source: photographs.
        dataset: the step's samples, indexed by (epoch, place in ``ids``).
        ids: the step's photographs.
        tags: all that each photograph is tagged with.
        new_classes: the classes that the step learns.
        class_names: the model's labels, background first.
        epochs: length of the step.
        seed: the run's seed.
        stages: gives the pseudo masks' stages; None where the step has none.
        probability_maps: the method's, of one photograph at the model's working size.
        label_table: in step 0, from the data set's labels to the model's.
    """

    source: Source
    dataset: Dataset[Sample]
    ids: Sequence[str]
    tags: Mapping[str, AbstractSet[str]]
    new_classes: Sequence[str]
    class_names: Sequence[str]
    epochs: int
    seed: int
    stages: PseudoMaskSource | None
    probability_maps: Callable[[Tensor], Tensor | None]
    label_table: Tensor | None = None

    def draw(self, gallery: GalleryFolder) -> list[TrainingPhotograph]:
        """Draw some photographs, as many of each new class as can be."""
        places = {image_id: place for place, image_id in enumerate(self.ids)}
        from_tags = self.label_table is None
        chosen = self._choose(max(TRAINING_SHOWN, len(self.new_classes)) if from_tags else TRAINING_SHOWN // 2)
        return [
            self._photograph(gallery, f"training-{number:03d}", image_id, places[image_id])
            for number, image_id in enumerate(track(chosen, "gallery"))
        ]

    def _choose(self, count: int) -> list[str]:
        order = torch.randperm(len(self.ids), generator=keyed_generator(self.seed, "gallery", "training")).tolist()
        queues = [
            [self.ids[place] for place in order if name in self.tags[self.ids[place]]] for name in self.new_classes
        ]
        chosen: dict[str, None] = {}
        while len(chosen) < count and any(queues):
            for queue in queues:
                while queue and queue[0] in chosen:
                    queue.pop(0)
                if queue and len(chosen) < count:
                    chosen[queue.pop(0)] = None
        return list(chosen)

    def _photograph(self, gallery: GalleryFolder, stem: str, image_id: str, place: int) -> TrainingPhotograph:
        image = self.source.read_image(image_id)
        picture = thumbnail(image, PICTURE_SIDE)
        tagged = [name for name in self.new_classes if name in self.tags[image_id]]
        record = TrainingPhotograph(
            id=image_id,
            tags=[name for name in self.source.class_names if name in self.tags[image_id]],
            photograph=gallery.photograph(picture, stem),
            width=picture.width,
            height=picture.height,
            stages=self._stages(gallery, stem, image_id, tagged, (picture.height, picture.width)),
            maps=self._maps(gallery, stem, image, tagged),
            sample=self._sample(gallery, stem, place),
        )
        if self.label_table is None:
            return record
        truth = self.label_table[_shrunk(self.source.read_mask(image_id), (picture.height, picture.width)).long()]
        layer = gallery.layer(label_layer(truth, self.class_names), f"{stem}-truth")
        return record.model_copy(update={"truth": layer})

    def _stages(
        self, gallery: GalleryFolder, stem: str, image_id: str, tagged: Sequence[str], size: tuple[int, int]
    ) -> dict[str, dict[str, str]]:
        if self.stages is None:
            return {}
        drawn = self.stages.stages(image_id, tagged, epoch=0)
        return {
            stage: self._mask_layers(gallery, f"{stem}-stage{number}", dict(zip(tagged, masks, strict=True)), size)
            for number, (stage, masks) in enumerate(drawn.items())
        }

    def _maps(
        self, gallery: GalleryFolder, stem: str, image: Tensor, tagged: Sequence[str]
    ) -> dict[str, ProbabilityMap]:
        maps = self.probability_maps(image)
        if maps is None:
            return {}
        height, width = maps.shape[-2:]
        size = thumbnail_size(MAP_ENLARGEMENT * height, MAP_ENLARGEMENT * width, MAP_SIDE)
        found = {}
        for name in (self.class_names[0], *tagged):
            label = self.class_names.index(name)
            values = maps[0, label].float().clamp(0, 1)
            layer = gallery.layer(heat_map(values, size), f"{stem}-map{label}")
            found[name] = ProbabilityMap(picture=layer, largest=float(values.max()))
        return found

    def _sample(self, gallery: GalleryFolder, stem: str, place: int) -> AugmentedSample:
        """The sample of the first epoch that pastes something into it; of the first, if none does."""
        for epoch in range(min(self.epochs, EPOCHS_TRIED)):
            sample = self.dataset[epoch, place]
            if sample.pasted is not None and sample.pasted.any():
                break
        else:
            epoch, sample = 0, self.dataset[0, place]
        picture = thumbnail((sample.image * 255).round().to(torch.uint8), PICTURE_SIDE)
        size = (picture.height, picture.width)
        record = AugmentedSample(epoch=epoch, picture=gallery.photograph(picture, f"{stem}-sample"))
        if sample.mask is not None:
            layer = label_layer(_shrunk(sample.mask, size), self.class_names)
            record = record.model_copy(update={"truth": gallery.layer(layer, f"{stem}-sample-truth")})
        if sample.pseudo is not None and sample.tags is not None:
            masks = {name: sample.pseudo[j] for j, name in enumerate(self.new_classes) if sample.tags[j]}
            layers = self._mask_layers(gallery, f"{stem}-sample", masks, size)
            record = record.model_copy(update={"masks": layers})
        if sample.pasted is not None and sample.pasted.any():
            label = int(sample.pasted.max())
            layer = mask_layer(sample.pasted > 0, label, self.class_names, size)
            pasted = Pasted(name=self.class_names[label], layer=gallery.layer(layer, f"{stem}-sample-pasted"))
            record = record.model_copy(update={"pasted": pasted})
        return record

    def _mask_layers(
        self, gallery: GalleryFolder, stem: str, masks: Mapping[str, Tensor], size: tuple[int, int]
    ) -> dict[str, str]:
        layers = {}
        for name, mask in masks.items():
            label = self.class_names.index(name)
            layers[name] = gallery.layer(mask_layer(mask, label, self.class_names, size), f"{stem}-{label}")
        return layers
