"""The data of an extension: tagged photographs to learn from, photographs with masks to judge by, old ones to paste."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from fmwiss.config import DataConfig
from fmwiss.data.composed import ComposedSource
from fmwiss.data.folder import FolderSource
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.source import Source, open_source
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOID, VOCSource
from fmwiss.errors import UserError
from fmwiss.names import joined

RECORD = "extension.json"
"""File of the run with what the extension was asked for; the same is asked for when it goes on."""
TAGS_CACHE = "extension-tags.json"
TRAINING = "train"
VALIDATION = "val"
PICTURES = "without-masks"
"""List of a few training photographs, whose predictions the report shows where there are none with masks."""

PICTURES_SHOWN = 12
VALIDATION_PREFIX, PICTURES_PREFIX = "val/", "pictures/"


class ExtensionSource(ComposedSource):
    """One data set in the model's own labels, made of two: :class:`~fmwiss.data.source.Source`.

    The labels are those of the model after the extension, whatever the masks call theirs. Pixels of classes that it
    does not know are background, or void where the model has no background. Of photographs to learn from no mask is
    read.

    Args:
        classes: the model's, new ones last.
        training: photographs to learn from.
        tags: of these, by id, the new classes that each shows.
        without: further photographs to learn from, which show none of them.
        validation: photographs with masks; None: there are none, and :data:`PICTURES` shows some to learn from.
        validation_ids: of these, those to judge by.
        has_background: whether the model has a label for everything else.
        seed: of the draw of pictures.
    """

    def __init__(
        self,
        classes: Sequence[str],
        training: Source,
        tags: Mapping[str, frozenset[str]],
        without: Sequence[str],
        validation: Source | None,
        validation_ids: Sequence[str],
        has_background: bool,
        seed: int,
    ) -> None:
        self._classes = tuple(classes)
        self.training = training
        self.tags = dict(tags)
        self.validation = validation
        self._has_background = has_background
        self.without = tuple(without)
        self._lists = {TRAINING: [*tags, *without]}
        self._prefix = VALIDATION_PREFIX if validation is not None else PICTURES_PREFIX
        while any(image_id.startswith(self._prefix) for image_id in self._lists[TRAINING]):  # of a sub-folder "val"
            self._prefix = "_" + self._prefix
        if validation is not None:
            if not {*map(joined, classes)} & {*map(joined, validation.mask_classes)}:
                raise UserError(
                    f"{validation.root}: its masks have none of the model's classes ({', '.join(classes)}), so nothing "
                    "can be judged by them; compare the names in classes.txt"
                )
            self._lists[VALIDATION] = [self._prefix + image_id for image_id in validation_ids]
            self._table = label_table(validation.mask_classes, classes, has_background)
        else:
            order = torch.randperm(len(self.tags), generator=keyed_generator(seed, "extension pictures")).tolist()
            shown = {list(tags)[place] for place in order[:PICTURES_SHOWN]}
            self._lists[PICTURES] = [self._prefix + image_id for image_id in tags if image_id in shown]
        self._compared = frozenset(self._lists[self.compared])

    @property
    def unknown(self) -> tuple[str, ...]:
        """Classes of the masks that it is judged by which are none of the model's."""
        known = {*map(joined, self._classes)}
        theirs = () if self.validation is None else self.validation.mask_classes
        return tuple(name for name in theirs if joined(name) not in known)

    def told_of_unknown(self) -> str | None:
        """A sentence about :attr:`unknown`, for a misspelt class is among them; None where there are none."""
        if self.validation is None or not self.unknown:
            return None
        there = {*map(joined, self.validation.mask_classes)}
        lacking = [name for name in self._classes if joined(name) not in there]
        also = f", and they have none of {', '.join(lacking)}" if lacking else ""
        counted = "background" if self._has_background else "void"
        return (
            f"{self.validation.root}: the model does not know all classes of the masks, and these count as {counted}: "
            f"{', '.join(self.unknown)}{also}; check the spelling if that is not meant."
        )

    def told_of_lacking(self, new: Sequence[str]) -> str | None:
        """A sentence about new classes that the masks do not have, which nothing is told of; None where there are none.

        Args:
            new: the new classes.
        """
        if self.validation is None:
            return None
        there = {*map(joined, self.validation.mask_classes)}
        lacking = [name for name in new if joined(name) not in there]
        if not lacking:
            return None
        return (
            f"{self.validation.root}: the masks have none of the new {'class' if len(lacking) == 1 else 'classes'} "
            f"{', '.join(lacking)}, so that their IoU cannot be told; give masks that show them."
        )

    @property
    def root(self) -> Path:
        return self.training.root

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._classes

    @property
    def mask_classes(self) -> tuple[str, ...]:
        return self._classes

    @property
    def compared(self) -> str:
        """The list that predictions are compared on, or shown of."""
        return PICTURES if self.validation is None else VALIDATION

    def ids(self, split: str) -> list[str]:
        if split not in self._lists:
            raise UserError(f"an extension has no list '{split}'; it has {' and '.join(self._lists)}")
        return list(self._lists[split])

    @property
    def has_row(self) -> frozenset[str]:
        """Ids of the photographs that tags tell about: all that are learnt from."""
        return frozenset(self._lists[TRAINING])

    def has_mask(self, image_id: str) -> bool:
        return image_id in self._compared

    def read_mask(self, image_id: str) -> Tensor:
        """As :meth:`Source.read_mask`, in the model's labels; all void for a photograph that is shown without one."""
        if self.validation is None:
            return torch.full(self.image_size(image_id), VOID, dtype=torch.uint8)
        source, name = self._of(image_id)
        return self._table[source.read_mask(name).long()]

    def classes_in_mask(self, image_id: str) -> list[str]:
        areas = self.read_mask(image_id).flatten().bincount(minlength=256).tolist()
        return [name for label, name in enumerate(self._classes, start=1) if areas[label]]

    def own_tags(self, image_id: str) -> frozenset[str]:
        return self.tags.get(image_id, frozenset())

    def _of(self, image_id: str) -> tuple[Source, str]:
        """The data set that a photograph is in, and its id there."""
        if image_id not in self._compared:
            return self.training, image_id
        source = self.training if self.validation is None else self.validation
        return source, image_id.removeprefix(self._prefix)


def label_table(theirs: Sequence[str], ours: Sequence[str], has_background: bool) -> Tensor:
    """From masks' labels to the model's, uint8 ``(256,)``.

    Args:
        theirs: names of the masks' labels 1, 2, ...
        ours: names of the model's.
        has_background: False: what is none of the model's classes is void.
    """
    table = torch.full((256,), 0 if has_background else VOID, dtype=torch.uint8)
    table[VOID] = VOID
    labels = {joined(name): label for label, name in enumerate(ours, start=1)}
    for label, name in enumerate(theirs, start=1):
        if joined(name) in labels:
            table[label] = labels[joined(name)]
    return table


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as VOC is."""
    return (folder / "JPEGImages").is_dir() and (folder / "ImageSets/Segmentation").is_dir()


def open_tagged(
    images: Path, tags: str | None, split: str | None, classes: Sequence[str], cache: Path
) -> tuple[Source, dict[str, frozenset[str]], list[str]]:
    """Photographs tagged with new classes, and those that are tagged with others alone.

    Args:
        images: a folder of photographs, or one in VOC's layout.
        tags: a file of tags (CSV, JSON lines, COCO instances); None: the folder's own, or its sub-folders. For VOC's
            layout also ``masks`` or ``xml``.
        split: list of photographs; None: all, of VOC's layout ``train_aug`` or ``train``.
        classes: the new ones, as the user spells them.
        cache: file in which tags are kept that come from VOC's masks or annotations.

    Returns:
        The photographs; by id the new classes (spelt as in ``classes``) of those that have one, in the order of the
        list; and the ids of those that the tags tell about without naming one.

    Raises:
        UserError: something cannot be read, or a class is in no photograph's tags.
    """
    if not images.is_dir():
        raise UserError(f"--images {images}: there is no such folder; give one of photographs")
    source: Source
    if is_voc(images) and tags in ("masks", "xml"):
        source = VOCSource(images)
        lists = {path.stem for path in (images / "ImageSets/Segmentation").glob("*.txt")}
        ids = source.ids(split or ("train_aug" if "train_aug" in lists else "train"))
        told = frozenset(ids)
        tagged = dict(TagIndex.load_or_build(source, ids, tags, cache))
    else:
        if tags in ("masks", "xml"):
            raise UserError(f"--tags {tags}: is for folders in VOC's layout, and {images} is none; give a file of tags")
        if tags is not None and not Path(tags).is_file():
            raise UserError(f"--tags {tags}: there is no such file; give a CSV table with the columns file and tags")
        folder = images / "JPEGImages" if is_voc(images) else None
        source = FolderSource(images, images=folder, tags=None if tags is None else Path(tags))
        ids = source.ids(split) if split is not None else list(source.photographs.paths)
        tagged = {image_id: source.own_tags(image_id) for image_id in ids}
        told = source.has_row
    spelt = {joined(name): name for name in classes}
    known = {joined(name): name for names in tagged.values() for name in names}
    for key, name in spelt.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; the nearest tag is '{known[near[0]]}'" if near else "; no photograph has a tag"
            raise UserError(f"--classes: no photograph of {images} is tagged '{name}'{hint}")
    found = {
        image_id: frozenset(spelt[joined(name)] for name in names if joined(name) in spelt)
        for image_id, names in tagged.items()
    }
    shown = {image_id: names for image_id, names in found.items() if names}
    return source, shown, [image_id for image_id in ids if image_id in told and image_id not in shown]


def open_masked(folder: Path, option: str, split: str | None = None) -> tuple[Source, list[str]]:
    """Photographs with masks, and which ones.

    Args:
        folder: in VOC's layout, of which the list ``val`` counts (``train_aug`` or ``train`` for ``--replay``), or a
            folder with ``masks/`` and ``classes.txt``, of which all with masks do.
        option: the command line's, for messages.
        split: a list that counts in place of these.

    Raises:
        UserError: there is no such folder, or it has no masks.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: there is no such folder; give one of photographs with masks")
    if is_voc(folder):
        voc = VOCSource(folder)
        lists = {path.stem for path in (folder / "ImageSets/Segmentation").glob("*.txt")}
        replayed = "train_aug" if "train_aug" in lists else "train"
        return voc, voc.ids(split or (replayed if option == "--replay" else "val"))
    source = FolderSource(folder)
    among = source.photographs.paths if split is None else source.ids(split)
    ids = [image_id for image_id in among if source.has_mask(image_id)]
    if not ids:
        raise UserError(
            f"{option} {folder}: holds no photograph with a mask; put masks/NAME.png and classes.txt beside images/"
        )
    return source, ids


class _Asked(BaseModel):
    """What of an extension's record tells which photographs it learns from."""

    old_classes: list[str]
    classes: Annotated[list[str], Field(min_length=1)]
    tags: str | None
    split: str | None


def read_record(path: Path) -> dict[str, Any]:
    """What an extension was asked for, from :data:`RECORD`.

    Raises:
        UserError: the file cannot be read, or is none of these.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); remove the folder and begin anew") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: must hold a JSON object; remove the folder and begin anew")
    return record


def tagged_source(run: Path, images: Path, options: DataConfig) -> Source:
    """The data of a run; of an extension its photographs to learn from, tagged with its new classes.

    Args:
        run: its folder.
        images: the photographs.
        options: the run's section ``data``.

    Raises:
        UserError: the photographs or their tags cannot be read, or the record of the extension is spoilt.
    """
    path = run / RECORD
    if not path.is_file():
        return open_source(options, images)
    try:
        asked = _Asked.model_validate(read_record(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; remove the folder and begin anew") from error
    training, shown, others = open_tagged(images, asked.tags, asked.split, asked.classes, run / TAGS_CACHE)
    without = others if options.negatives else []
    return ExtensionSource((*asked.old_classes, *asked.classes), training, shown, without, None, [], True, seed=0)


def judged_source(folder: Path, split: str | None, classes: Sequence[str], has_background: bool) -> ExtensionSource:
    """Photographs with masks to judge an extended model by, whose masks may know fewer classes than it, or others.

    Args:
        folder: as for :func:`open_masked`.
        split: a list; None: as there.
        classes: the model's.
        has_background: whether it has a label for everything else.
    """
    source, ids = open_masked(folder, "--data", split)
    return ExtensionSource(classes, source, {}, [], source, ids, has_background, seed=0)
