"""The report's galleries as the template draws them: cards of panels, each a photograph with layers over it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmwiss.reporting.charts import direction, per_cent
from fmwiss.reporting.pictures import class_colours
from fmwiss.reporting.records import GALLERY, Chosen, Gallery, TrainingPhotograph, ValidationPhotograph

WHY: dict[Chosen, str] = {
    "lost": "among the largest losses",
    "gained": "among the largest gains",
    "lowest": "among the lowest",
    "highest": "among the highest",
    "drawn": "drawn at random",
}


class Photographs:
    """Photographs that several panels show, each kept once: as a class of the style sheet with its background."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def add(self, path: Path) -> str | None:
        """The style sheet's class for a picture; None where it is missing."""
        source = data_uri(path)
        if source is None:
            return None
        name = "p" + hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
        self._rules[name] = source
        return name

    def style(self) -> str:
        """The rules: file names and bytes of any kind come in as base64 alone."""
        return "".join(f'.{name}{{background-image:url("{source}")}}\n' for name, source in self._rules.items())


def data_uri(path: Path) -> str | None:
    """A picture as a ``data:`` address; None where it is missing."""
    if not path.is_file():
        return None
    kind = {".jpg": "jpeg", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Panel:
    """One picture of a card: a photograph with layers over it, or a picture of its own."""

    title: str
    photograph: str | None
    layers: list[dict[str, str]] = field(default_factory=list)
    picture: str | None = None
    note: str = ""
    ratio: float = 1.0
    missing: bool = False
    """Whether a file of it was not there."""


@dataclass(frozen=True)
class Pictures:
    """Makes panels of a gallery's files."""

    folder: Path
    photographs: Photographs

    def over(self, title: str, photograph: str, layers: Mapping[str, str], ratio: float, note: str = "") -> Panel:
        """``layers`` maps what a layer shows to its file."""
        base = self.photographs.add(self.folder / photograph)
        drawn = {text: data_uri(self.folder / file) for text, file in layers.items()}
        shown = [{"alt": text, "source": source} for text, source in drawn.items() if source is not None]
        return Panel(title, base, shown, note=note, ratio=ratio, missing=base is None or len(shown) < len(drawn))

    def alone(self, title: str, file: str, ratio: float, note: str = "") -> Panel:
        source = data_uri(self.folder / file)
        return Panel(title, None, picture=source, note=note, ratio=ratio, missing=source is None)


def gallery_view(
    gallery: Gallery, folder: Path, step: int, photographs: Photographs, worst_first: bool
) -> dict[str, Any]:
    """A step's gallery.

    Args:
        gallery: its index.
        folder: the step's.
        step: its number.
        photographs: keeps the photographs.
        worst_first: order validation photographs by what the step did to them, losses first.
    """
    pictures = Pictures(folder / GALLERY, photographs)
    cards = [_validation_card(one, pictures, gallery, step) for one in gallery.validation]
    return {
        **_view(gallery),
        "validation": _ordered(cards, worst_first),
        "training": [_training_card(one, pictures, gallery) for one in gallery.training],
        "has_truth": any(one.truth is not None for one in gallery.training),
        "has_maps": any(one.maps for one in gallery.training),
        "has_pasted": any(one.sample is not None and one.sample.pasted is not None for one in gallery.training),
    }


def _view(gallery: Gallery) -> dict[str, Any]:
    return {
        "legend": _legend(gallery),
        "split": gallery.split,
        "compared": gallery.compared,
        "changes": any(one.before is not None for one in gallery.validation),
    }


def _ordered(cards: list[dict[str, Any]], worst_first: bool) -> list[dict[str, Any]]:
    for place, card in enumerate(cards):
        card["place"] = place
    if not worst_first:
        return cards
    return sorted(cards, key=lambda card: math.inf if card["score"] is None else card["score"])


def _legend(gallery: Gallery) -> list[dict[str, Any]]:
    colours = class_colours(gallery.class_names)
    return [
        {"name": name, "colour": _hex(colours[name]), "new": name in gallery.new_classes}
        for name in gallery.class_names[1:]
    ]


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _validation_card(one: ValidationPhotograph, pictures: Pictures, gallery: Gallery, step: int) -> dict[str, Any]:
    ratio = one.width / one.height
    change = _change(one)
    panels = [pictures.over("photograph", one.photograph, {}, ratio)]
    if any(figures.in_truth for figures in one.iou.values()):  # a photograph without a mask is void all over
        panels.append(pictures.over("truth", one.photograph, {_truth_in_words(one): one.truth}, ratio))
    if one.before is not None:
        layer = {f"prediction of step {step - 1}": one.before}
        note = per_cent(one.miou_before)
        panels.append(pictures.over(f"before: step {step - 1}", one.photograph, layer, ratio, note))
    title = f"after: step {step}" if one.before is not None else f"prediction of step {step}"
    layer = {f"prediction of step {step}": one.after}
    panels.append(pictures.over(title, one.photograph, layer, ratio, per_cent(one.miou_after)))
    return {
        "id": one.id,
        "why": [WHY[reason] for reason in one.chosen],
        "score": _score(one),
        "before": one.miou_before,
        "after": one.miou_after,
        "change": change,
        "direction": direction(change),
        "panels": panels,
        "chips": _chips(one, gallery),
    }


def _change(one: ValidationPhotograph) -> float | None:
    return None if one.miou_before is None or one.miou_after is None else one.miou_after - one.miou_before


def _score(one: ValidationPhotograph) -> float | None:
    """What photographs are ordered by: the change, or the figure where there was no model before."""
    return _change(one) if one.before is not None else one.miou_after


def _truth_in_words(one: ValidationPhotograph) -> str:
    names = [name for name, figures in one.iou.items() if figures.in_truth and name != "background"]
    return f"in truth: {', '.join(names) or 'background only'}"


def _chips(one: ValidationPhotograph, gallery: Gallery) -> list[dict[str, Any]]:
    """The photograph's classes with their IoU on it; those that are not there are in a prediction alone."""
    colours = class_colours(gallery.class_names)
    chips = []
    for name, figures in one.iou.items():
        if name not in colours:
            continue
        change = figures.after - figures.before if figures.before is not None and figures.after is not None else None
        chips.append(
            {
                "name": name,
                "colour": _hex(colours[name]),
                "in_truth": figures.in_truth,
                "new": name in gallery.new_classes,
                "before": figures.before,
                "after": figures.after,
                "direction": direction(change),
            }
        )
    return sorted(chips, key=lambda chip: not chip["in_truth"])


def _training_card(one: TrainingPhotograph, pictures: Pictures, gallery: Gallery) -> dict[str, Any]:
    ratio = one.width / one.height
    colours = class_colours(gallery.class_names)
    panels = [pictures.over("photograph", one.photograph, {}, ratio)]
    if one.truth is not None:
        panels.append(pictures.over("truth", one.photograph, {"truth": one.truth}, ratio))
    for stage, masks in one.stages.items():
        layers = {f"{stage} of {name}": file for name, file in masks.items()}
        panels.append(pictures.over(stage, one.photograph, layers, ratio))
    for name, found in one.maps.items():
        panels.append(pictures.alone(f"map: {name}", found.picture, ratio, f"max {found.largest:.2f}"))
    if one.sample is not None:
        sample = one.sample
        over = {f"pseudo mask of {name}": file for name, file in sample.masks.items()}
        if sample.truth is not None:
            over["truth"] = sample.truth
        note = f"epoch {sample.epoch + 1}"
        if sample.pasted is not None:
            over[f"pasted {sample.pasted.name}"] = sample.pasted.layer
            note = f"pasted: {sample.pasted.name}"
        panels.append(pictures.over("training sample", sample.picture, {}, 1.0, f"epoch {sample.epoch + 1}"))
        if over:
            panels.append(pictures.over("its masks", sample.picture, over, 1.0, note))
    return {
        "id": one.id,
        "tags": [
            {
                "name": name,
                "new": name in gallery.new_classes,
                "colour": _hex(colours[name]) if name in colours else None,
            }
            for name in one.tags
        ],
        "panels": panels,
    }


def together_view(
    galleries: Sequence[tuple[str, Gallery, Path]], step: int, photographs: Photographs, worst_first: bool
) -> dict[str, Any] | None:
    """Validation photographs that the galleries of several runs show, with all predictions side by side.

    Args:
        galleries: of a step, each with its run's name and the step's folder.
        step: its number.
        photographs: keeps the photographs.
        worst_first: order by the largest loss in any run.

    Returns:
        None where there is no such photograph.
    """
    by_id = [{one.id: one for one in gallery.validation} for _, gallery, _ in galleries]
    common = [image_id for image_id in by_id[0] if all(image_id in ones for ones in by_id)]
    if not common or len({gallery.split for _, gallery, _ in galleries}) > 1:
        return None
    first = galleries[0][1]
    sources = [Pictures(folder / GALLERY, photographs) for _, _, folder in galleries]
    names = [name for name, _, _ in galleries]
    cards = [_together_card([ones[i] for ones in by_id], names, sources, first, step) for i in common]
    return {**_view(first), "validation": _ordered(cards, worst_first), "training": []}


def _together_card(
    ones: Sequence[ValidationPhotograph], names: Sequence[str], sources: Sequence[Pictures], gallery: Gallery, step: int
) -> dict[str, Any]:
    first, ratio = ones[0], ones[0].width / ones[0].height
    panels = [
        sources[0].over("photograph", first.photograph, {}, ratio),
        sources[0].over("truth", first.photograph, {_truth_in_words(first): first.truth}, ratio),
    ]
    if first.before is not None and len({one.miou_before for one in ones}) == 1:  # all had the same model before
        layer = {f"prediction of step {step - 1}": first.before}
        note = per_cent(first.miou_before)
        panels.append(sources[0].over(f"before: step {step - 1}", first.photograph, layer, ratio, note))
    for one, name, source in zip(ones, names, sources, strict=True):
        layer = {f"prediction of {name}": one.after}
        panels.append(source.over(name, one.photograph, layer, ratio, per_cent(one.miou_after)))
    scores = [score for score in map(_score, ones) if score is not None]
    chips = [chip for chip in _chips(first, gallery) if chip["in_truth"]]
    return {
        "id": first.id,
        "why": [],
        "score": min(scores, default=None),
        "before": None,
        "after": None,
        "change": None,
        "direction": "",
        "panels": panels,
        "chips": [{**chip, "before": None, "after": None, "direction": ""} for chip in chips],
    }
