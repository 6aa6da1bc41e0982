"""The gallery: which photographs are shown, and that what is drawn of them is what there was to see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fmwiss.data.batches import Sample
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.evaluation import Evaluation, evaluate
from fmwiss.evaluation.photographs import PhotographCounts
from fmwiss.models import Architecture, Segmenter
from fmwiss.reporting.pictures import class_colours
from fmwiss.reporting.records import Gallery
from fmwiss.training.gallery import (
    PHOTOGRAPHS,
    Comparison,
    GalleryFolder,
    TrainingPictures,
    Watch,
    choose,
    draw,
    draw_validation,
)

STEPS = (("aeroplane", "bicycle", "bird", "boat"), ("sheep", "sofa"))
NAMES = ("background", *STEPS[0], *STEPS[1])
IDENTITY = {"split": "val", "image": "whole"}


# ------------------------------------------------------------------------------------------ which photographs are shown


def test_losses_gains_and_the_draw_are_shown() -> None:
    scores = {"a": -3.0, "b": 2.0, "c": 0.0, "d": -1.0, "e": 5.0, "f": None, "g": 1.0, "h": -2.0}
    assert choose(scores, {"c", "e", "f"}, 2, changes=True) == {
        "a": ["lost"], "h": ["lost"], "e": ["gained", "drawn"], "b": ["gained"], "c": ["drawn"], "f": ["drawn"],
    }  # fmt: skip


def test_few_losses_are_not_filled_up_with_gains() -> None:
    assert choose({"a": 1.0, "b": 2.0}, set(), 5, changes=True) == {"a": ["gained"], "b": ["gained"]}
    assert choose({"a": 0.0}, set(), 5, changes=True) == {}


def test_without_a_model_before_lowest_and_highest_are_shown() -> None:
    scores = {"a": 30.0, "b": 90.0, "c": 50.0}
    assert choose(scores, {"c"}, 1, changes=False) == {"a": ["lowest"], "b": ["highest"], "c": ["drawn"]}


def test_the_draw_is_the_same_in_every_step() -> None:
    ids = [f"photo{number}" for number in range(50)]
    few, many = draw(ids, 4, 0), draw(ids, 8, 0)
    assert len(few) == 4 and len(many) == 8 and few < many
    assert draw(ids, 8, 1) != many
    assert draw(ids[:3], 8, 0) == set(ids[:3])


def test_what_is_kept_while_watching_is_what_would_be_chosen_in_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [f"{number:03d}" for number in range(60)]
    table = torch.arange(256, dtype=torch.uint8)
    before = {image_id: 100 * float(torch.rand((), generator=generator)) for image_id in ids}
    before["007"] = None  # type: ignore[assignment]
    counts = PhotographCounts(IDENTITY)
    watch = Watch(counts, lambda i: counts.figures(i, table, ("a", "b")), before, {"007", "012"}, 3)
    largest = 0
    for image_id in ids:
        mask = (torch.rand(6, 8, generator=generator) < 0.5).to(torch.uint8)
        predicted = (torch.rand(6, 8, generator=generator) < 0.5).long()
        watch(image_id, mask, predicted)
        largest = max(largest, len(watch.kept))
        if image_id in watch.kept:
            assert watch.kept[image_id].truth.equal(mask)
            assert watch.kept[image_id].predicted.equal(predicted.to(torch.uint8))
    after = {image_id: counts.figures(image_id, table, ("a", "b")).miou for image_id in ids}
    scores = {i: None if before[i] is None else after[i] - before[i] for i in ids}  # type: ignore[operator]
    assert set(watch.kept) == set(watch.choose(scores))
    assert 2 <= len(watch.kept) <= largest <= 3 + 3 + 2


# ------------------------------------------------------------------------------------------------- the final evaluation


class Models:
    """Counts the photographs that pass through each model."""

    def __init__(self, source: VOCSource) -> None:
        self.source = source
        self.passed: list[tuple[int, list[str]]] = []

    def __call__(self, model: Segmenter, ids: Any, observe: Any) -> Evaluation:
        self.passed.append((len(model.architecture.steps), list(ids)))
        return evaluate(model, self.source, ids, Protocol(STEPS), observe=observe)


@pytest.fixture(scope="module")
def source(tiny_voc: Path) -> VOCSource:
    return VOCSource(tiny_voc)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the models of two steps."""
    for step in (0, 1):
        torch.manual_seed(step)
        model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, STEPS[: step + 1], 48))
        with torch.no_grad():
            for part in model.classifier.steps:
                part.weight.mul_(30)
        model.save(tmp_path / f"step{step}")
    return tmp_path


def compare(run: Path, source: VOCSource, step: int, models: Any, gather: Any = lambda mine: mine) -> Any:
    table = Protocol(STEPS).label_table(step, VOC_CLASSES)
    ids = source.ids("val")
    comparison = Comparison(run, step, ids, IDENTITY, table, 0, torch.device("cpu"), models, gather)
    return comparison.run(Segmenter.load(run / f"step{step}"))


def test_the_earlier_model_sees_only_what_is_shown(
    run: Path, source: VOCSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmwiss.training.gallery.EXTREMES", 1)
    monkeypatch.setattr("fmwiss.training.gallery.DRAWN", 1)
    ids = source.ids("val")
    models = Models(source)
    _, counts, shown = compare(run, source, 0, models)
    assert models.passed == [(1, ids)]
    assert all(one.predicted_before is None and one.figures_before is None for one in shown)
    counts.save(run / "step0" / PHOTOGRAPHS)

    models.passed.clear()
    evaluation, counts, shown = compare(run, source, 1, models)
    names = [one.image_id for one in shown]
    assert models.passed == [(2, ids), (1, names)] and 1 <= len(names) <= 3
    assert evaluation == evaluate(Segmenter.load(run / "step1"), source, ids, Protocol(STEPS))
    assert names == [image_id for image_id in ids if image_id in names] and list(counts.entries) == ids

    (run / "step0" / PHOTOGRAPHS).unlink()
    models.passed.clear()
    _, _, again = compare(run, source, 1, models)
    assert models.passed == [(1, ids), (2, ids), (1, names)]
    assert [(one.image_id, one.chosen, one.figures_before, one.figures_after) for one in again] == [
        (one.image_id, one.chosen, one.figures_before, one.figures_after) for one in shown
    ]


def test_counts_of_another_split_are_not_used(run: Path, source: VOCSource) -> None:
    models = Models(source)
    counts = PhotographCounts(IDENTITY)
    evaluate(Segmenter.load(run / "step0"), source, source.ids("val")[:3], Protocol(STEPS), observe=counts)
    counts.save(run / "step0" / PHOTOGRAPHS)
    compare(run, source, 1, models)
    assert [steps for steps, _ in models.passed] == [1, 2, 1]


def test_the_changes_are_those_of_the_two_models(run: Path, source: VOCSource) -> None:
    _, _, shown = compare(run, source, 1, Models(source))
    models = [Segmenter.load(run / f"step{step}") for step in (0, 1)]
    assert len(shown) == 8
    for one in shown:
        image = source.read_image(one.image_id)
        assert one.predicted_before is not None
        # generated photographs are smaller than the pictures, so that nothing is scaled
        assert one.predicted_before.equal(models[0].predict(image))
        assert one.after.predicted.equal(models[1].predict(image))
        assert one.after.truth.equal(source.read_mask(one.image_id))
        change = one.figures_after.miou - one.figures_before.miou
        assert one.after.score == pytest.approx(change)
        assert ("lost" in one.chosen, "gained" in one.chosen) == (change < 0, change > 0)


# ----------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_appears_whole_and_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "old.jpg").touch()
    (tmp_path / ".gallery.tmp").mkdir()
    (tmp_path / ".gallery.tmp" / "half.jpg").touch()
    folder = GalleryFolder(tmp_path / "gallery")
    assert folder.photograph(Image.new("RGB", (9, 9)), "a") == "a.jpg"
    assert (tmp_path / "gallery" / "old.jpg").exists()
    gallery = Gallery(class_names=["background"], new_classes=[], split="val", compared=0, validation=[], training=[])
    folder.finish(gallery)
    assert sorted(path.name for path in (tmp_path / "gallery").iterdir()) == ["a.jpg", "gallery.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]
    assert Gallery.model_validate_json((tmp_path / "gallery/gallery.json").read_text()) == gallery


def test_validation_photographs_are_drawn_in_the_palettes_colours(run: Path, source: VOCSource, tmp_path: Path) -> None:
    _, _, shown = compare(run, source, 1, Models(source))
    folder = GalleryFolder(tmp_path / "gallery")
    table = Protocol(STEPS).label_table(1, VOC_CLASSES)
    records = draw_validation(folder, shown, NAMES, table, source.read_image)
    colours = [(0, 0, 0, 0), *((*colour, 255) for colour in class_colours(NAMES).values())]
    for one, record in zip(shown, records, strict=True):
        assert record.id == one.image_id
        with Image.open(folder.temporary / record.photograph) as photograph:
            difference = np.array(photograph).astype(int) - source.read_image(record.id).permute(1, 2, 0).numpy()
            assert photograph.size == (record.width, record.height) and np.abs(difference).mean() < 12
        assert record.before is not None
        for file, labels in (
            (record.truth, table[source.read_mask(record.id).long()]),
            (record.before, one.predicted_before),
            (record.after, one.after.predicted),
        ):
            with Image.open(folder.temporary / file) as layer:
                pixels = np.array(layer.convert("RGBA"))
            assert pixels.shape[:2] == tuple(labels.shape)
            for label in labels.unique().tolist():
                if label != 255:
                    inside = pixels[(labels == label).numpy()].tolist()
                    where = sum(list(colours[label]) == p or (label == 0 and p[3] == 0) for p in inside)
                    white = sum(p == [255] * 4 for p in inside)  # where labels meet
                    assert where + white == len(inside)


# ------------------------------------------------------------------------------------------------- training photographs


class Samples:
    """A data set that pastes something into every photograph in its third epoch."""

    def __init__(self, ids: list[str], pastes: bool = True, pseudo: bool = True) -> None:
        self.ids, self.pastes, self.pseudo = ids, pastes, pseudo
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        self.asked.append(key)
        pasted = torch.zeros(32, 32, dtype=torch.uint8)
        if self.pastes and key[0] == 2:
            pasted[:16] = 3
        pseudo = torch.zeros(2, 32, 32, dtype=torch.bool)
        pseudo[0, 16:] = True
        return Sample(
            self.ids[key[1]],
            torch.full((3, 32, 32), 0.5),
            torch.ones(32, 32, dtype=torch.bool),
            pseudo=pseudo if self.pseudo else None,
            tags=torch.tensor([True, False]),
            pasted=pasted,
        )


class NoMasks(VOCSource):
    def read_mask(self, image_id: str) -> Tensor:
        raise AssertionError(f"the mask of {image_id} was opened")


class Stages:
    def masks(self, image_id: str, classes: Any, epoch: int) -> Tensor:
        raise AssertionError("nothing here may ask for this")

    def stages(self, image_id: str, classes: Any, epoch: int) -> dict[str, Tensor]:
        assert epoch == 0
        return {"one": torch.ones(len(classes), 4, 4, dtype=torch.bool), "two": torch.zeros(len(classes), 4, 4) > 0}


def pictures(tiny_voc: Path, **changes: Any) -> TrainingPictures:
    source = NoMasks(tiny_voc)
    ids = source.ids("train_aug")
    tags: Mapping[str, set[str]] = {i: {"boat", ("sheep", "sofa")[n % 2]} for n, i in enumerate(ids)}
    values: dict[str, Any] = {
        "source": source,
        "dataset": Samples(ids),
        "ids": ids,
        "tags": tags,
        "new_classes": STEPS[1],
        "class_names": NAMES,
        "epochs": 5,
        "seed": 0,
        "stages": Stages(),
        "probability_maps": lambda image: torch.linspace(0, 1, 7)[None, :, None, None].expand(1, 7, 3, 4),
    }
    return TrainingPictures(**{**values, **changes})


def test_training_photographs_show_all_that_there_is_and_no_mask_is_opened(tiny_voc: Path, tmp_path: Path) -> None:
    folder = GalleryFolder(tmp_path / "gallery")
    records = pictures(tiny_voc).draw(folder)
    assert len(records) == 12 == len({record.id for record in records})
    tagged = [sum(name in record.tags for record in records) for name in STEPS[1]]
    assert tagged == [6, 6]
    for record in records:
        (new,) = [name for name in record.tags if name in STEPS[1]]
        assert record.tags == ["boat", new] and record.truth is None
        assert {stage: list(masks) for stage, masks in record.stages.items()} == {"one": [new], "two": [new]}
        assert {name: one.largest for name, one in record.maps.items()} == pytest.approx(
            {"background": 0.0, new: NAMES.index(new) / 6}
        )
        assert record.sample is not None and record.sample.pasted is not None
        assert (record.sample.epoch, record.sample.pasted.name, list(record.sample.masks)) == (2, "bird", ["sheep"])
        with Image.open(folder.temporary / record.stages["one"][new]) as layer:
            assert layer.size == (record.width, record.height)
        with Image.open(folder.temporary / record.sample.pasted.layer) as layer:
            pixels = np.array(layer.convert("RGBA"))
        assert (pixels[:15, :, :3] == class_colours(NAMES)["bird"]).all() and (pixels[17:, :, 3] == 0).all()


def test_without_pseudo_masks_maps_and_pasting(tiny_voc: Path, tmp_path: Path) -> None:
    ids = VOCSource(tiny_voc).ids("train_aug")
    bare = Samples(ids, pastes=False, pseudo=False)
    changed = pictures(tiny_voc, dataset=bare, stages=None, probability_maps=lambda image: None)
    for record in changed.draw(GalleryFolder(tmp_path / "gallery")):
        assert (record.stages, record.maps) == ({}, {})
        assert record.sample is not None and record.sample.epoch == 0
        assert (record.sample.masks, record.sample.pasted) == ({}, None)


def test_every_new_class_is_shown_at_least_once(tiny_voc: Path, tmp_path: Path) -> None:
    """With more classes than photographs are shown otherwise."""
    ids = VOCSource(tiny_voc).ids("train_aug")
    names = ("background", *(f"class {number}" for number in range(15)))
    tags = {image_id: {names[1 + n % 15]} for n, image_id in enumerate(ids)}
    bare = Samples(ids, pastes=False, pseudo=False)
    values = {"dataset": bare, "stages": None, "probability_maps": lambda image: None, "tags": tags}
    chosen = pictures(tiny_voc, new_classes=names[1:], class_names=names, **values)._choose(15)
    assert {name for image_id in chosen for name in tags[image_id]} == set(names[1:])


def test_step_0_shows_the_truth(tiny_voc: Path, tmp_path: Path) -> None:
    source = VOCSource(tiny_voc)
    table = Protocol(STEPS).label_table(0, VOC_CLASSES)
    ids = source.ids("train_aug")
    tags = {image_id: {"boat"} for image_id in ids}
    values = {"source": source, "new_classes": STEPS[0], "class_names": NAMES[:5], "tags": tags, "stages": None}
    samples = Samples(ids, pastes=False, pseudo=False)
    none = {"dataset": samples, "probability_maps": lambda image: None}
    folder = GalleryFolder(tmp_path / "gallery")
    records = pictures(tiny_voc, label_table=table, **values, **none).draw(folder)
    assert len(records) == 6 and all(record.truth is not None for record in records)
    assert json.loads(json.dumps([record.model_dump() for record in records]))
