"""Photographs as a user has them: a folder, tags in a file or by sub-folders, and masks if there are any."""

from __future__ import annotations

import difflib
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from fmwiss.data.coco import CocoFile, CocoImage, rasterise
from fmwiss.data.photographs import read_photograph
from fmwiss.data.tag_files import TagFile, TagRow
from fmwiss.data.voc import BROKEN, VOID, read_plane, unreadable
from fmwiss.errors import UserError
from fmwiss.names import joined

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp")
OTHER_PICTURES = (".avif", ".bmp", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".nef", ".tif", ".tiff")
TAG_FILES = ("tags.csv", "tags.jsonl", "tags.json", "instances.json")
BACKGROUND = "background"
VALIDATION_SHARE = 0.2
_NOT_PHOTOGRAPHS = ("masks", "splits", "annotations")  # beside photographs that lie in the folder itself
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

T = TypeVar("T")


@dataclass
class Photographs:
    """The photographs of a folder by id, and how files call them.

    A photograph's id is its path in the folder, with ``/`` and without the suffix.

    Attributes:
        folder: where they are.
        paths: by id, ascending.
        others: pictures of kinds that are not read.
        problems: a sentence about everything that is wrong.
    """

    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # as seen from any folder above, as the working directory may be
        whole = [_composed(path.as_posix()) for path in (self.folder.absolute(), self.folder.resolve())]
        ends = [path[place + 1 :] for path in whole for place, letter in enumerate(path) if letter == "/"]
        self._prefixes = ("", *(f"{folder}/" for folder in dict.fromkeys((*whole, *ends)) if folder))
        self._by_name: dict[str, list[str]] = {}

    @classmethod
    def scan(cls, folder: Path, without: Iterable[str] = ()) -> Photographs:
        """Look for JPEG, PNG and WebP files in a folder and its sub-folders; hidden ones do not count.

        Args:
            folder: where.
            without: names of its own sub-folders that are left out.
        """
        found = cls(folder)
        for path in sorted(_files(folder, frozenset(without))):
            if path.suffix.lower() in OTHER_PICTURES:
                found.others.append(path)
            if path.suffix.lower() not in PHOTOGRAPHS:
                continue
            image_id = _id_of(path, folder)
            shown = os.fsencode(path).decode("utf-8", "replace")
            if shown != str(path):
                found.problems.append(f"the name {shown} is not in UTF-8, so that no tag can name it; rename the file")
            elif image_id in found.paths:
                found.problems.append(
                    f"{found.paths[image_id]} and {path.name} differ in their suffixes only; a photograph is known by "
                    "its name without it, so rename one"
                )
            else:
                found.paths[image_id] = path
        if not found.paths:
            there = f" but pictures like {found.others[0].name}" if found.others else ""
            found.problems.append(f"{folder} holds no photograph{there}; put JPEG, PNG or WebP files into it")
        for image_id in found.paths:
            found._by_name.setdefault(image_id.rpartition("/")[2], []).append(image_id)
        return found

    def find(self, written: str) -> str | None:
        """The id of the photograph that a file calls so; None where there is none.

        It may be written with or without the folder, those above it and the suffix, and without sub-folders where no
        other photograph has its name.

        Raises:
            UserError: several have it.
        """
        name = _composed(written.strip().replace("\\", "/").removeprefix("./"))
        for prefix in self._prefixes:
            candidate = name.removeprefix(prefix)
            stem = _without_suffix(candidate)
            for image_id in dict.fromkeys((stem, candidate)):
                path = self.paths.get(image_id)
                if path is not None and (image_id == candidate or _same_suffix(candidate, path)):
                    return image_id
        if "/" in name:
            return None
        stem = _without_suffix(name)
        there = [i for i in self._by_name.get(stem, ()) if stem == name or _same_suffix(name, self.paths[i])]
        if len(there) > 1:
            raise UserError(f"'{written}' may be {there[0]} or {there[1]} in {self.folder}; write the sub-folder too")
        return there[0] if there else None


def _id_of(path: Path, folder: Path) -> str:
    return _composed(path.relative_to(folder).with_suffix("").as_posix())


def _composed(name: str) -> str:
    """Accents as one character with their letters; some systems write file names with two."""
    return unicodedata.normalize("NFC", name)


def _files(folder: Path, without: frozenset[str]) -> Iterator[Path]:
    try:
        for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            top = Path(place) == folder
            folders[:] = [n for n in folders if not n.startswith(".") and not (top and n in without)]
            yield from (Path(place) / name for name in names if not name.startswith("."))
    except OSError as error:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def _raise(error: OSError) -> None:
    raise error


def _without_suffix(name: str) -> str:
    base, _, suffix = name.rpartition(".")
    return base if f".{suffix.lower()}" in PHOTOGRAPHS else name


def _same_suffix(written: str, path: Path) -> bool:
    """Whether a name's suffix fits a file's; cameras and spreadsheets disagree about capitals and jpeg."""
    kinds = {".jpeg": ".jpg"}
    there, wanted = path.suffix.lower(), f".{written.rpartition('.')[2].lower()}"
    return kinds.get(there, there) == kinds.get(wanted, wanted)


def _raise_sentence(sentence: str) -> None:
    raise UserError(sentence)


class IndexedMasks:
    """Masks as indexed PNG files, named as their photographs.

    Label 0 is background and 255 void. ``classes.txt`` names the classes, one a line: where its first line is
    ``background``, the lines are the labels 0, 1, ...; else they are the labels 1, 2, ...

    Args:
        folder: with the PNG files, in the sub-folders of their photographs.
        classes: ``classes.txt``.

    Raises:
        UserError: ``classes.txt`` is missing or spoilt.
    """

    def __init__(self, folder: Path, classes: Path) -> None:
        self.folder = folder
        self.class_names = _read_classes(classes, folder)
        files = _files(folder, frozenset())
        self._paths = {
            _id_of(path, folder): path
            for path in sorted(files)
            if path.suffix.lower() == ".png"
        }

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._paths

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all masks, whether or not there are photographs."""
        return tuple(self._paths)

    def path(self, image_id: str) -> Path:
        """Where a photograph's mask is, or would be."""
        return self._paths.get(image_id, self.folder / f"{image_id}.png")

    def read(self, image_id: str, photograph: Path, size: tuple[int, int]) -> Tensor:
        """Mask as uint8 ``(H, W)``.

        Args:
            image_id: of the photograph.
            photograph: its path.
            size: its height and width, upright.

        Raises:
            UserError: the file is unreadable, is no single-channel picture, or has another size or label.
        """
        path = self.path(image_id)
        labels = read_plane("the mask", path, size, f"{photograph} needs one", upright=True)
        # In uint8 arithmetic void + 1 is 0, so that one maximum, which is fast, finds every wrong label.
        highest, last = int((labels + 1).max()) - 1, len(self.class_names)
        if highest > last:
            raise UserError(f"the mask {path} holds the label {highest}; labels are 0 to {last} and {VOID}")
        return torch.from_numpy(labels)

    def classes(self, image_id: str, photograph: Path, size: tuple[int, int]) -> list[str]:
        """Class names in a mask; arguments and errors as :meth:`read`."""
        areas = self.read(image_id, photograph, size).flatten().bincount(minlength=256).tolist()
        return [name for label, name in enumerate(self.class_names, start=1) if areas[label]]


def _read_classes(path: Path, masks: Path) -> tuple[str, ...]:
    """The names of the labels 1, 2, ..."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it must name the classes of {masks}, one a line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text; it must name one class a line") from error
    if names and joined(names[0]) == BACKGROUND:
        names = names[1:]
    spelt: dict[str, str] = {}
    for name in names:
        if joined(name) == BACKGROUND:
            raise UserError(f"{path} names '{name}' in another than the first line; background is label 0")
        if not joined(name):
            raise UserError(f"{path} has the line '{name}', which is no name; it must name one class a line")
        if joined(name) in spelt:
            raise UserError(f"{path} names '{name}' and '{spelt[joined(name)]}', which are the same class")
        spelt[joined(name)] = name
    if not 0 < len(names) < VOID:
        raise UserError(f"{path} names {len(names)} classes; it must name 1 to {VOID - 1}, one a line")
    return tuple(names)


class CocoMasks:
    """Masks drawn from the outlines in COCO ``instances`` files (:func:`fmwiss.data.coco.rasterise`).

    The labels 1, 2, ... are the categories in the order of their ids. A photograph that a file lists has a mask, all
    background where it has no annotation.

    Args:
        files: read already, without problems.
        photographs: which the files are about.

    Raises:
        UserError: the files name other categories than one another, or more than masks can hold.
    """

    def __init__(self, files: Iterable[CocoFile], photographs: Photographs) -> None:
        self.files = list(files)
        first = self.files[0]
        for other in self.files[1:]:
            if other.categories != first.categories:
                raise UserError(f"{other.path} has other categories than {first.path}; they must be the same")
        names = {category: name for category, name in first.categories.items() if joined(name) != BACKGROUND}
        if not 0 < len(names) < VOID:
            raise UserError(f"{first.path} names {len(names)} categories; masks can hold 1 to {VOID - 1}")
        self.class_names = tuple(names.values())
        self.labels = {category: label for label, category in enumerate(names, start=1)}
        self.absent: list[str] = []
        self._entries: dict[str, tuple[CocoFile, CocoImage]] = {}
        for file in self.files:
            for image in file.images:
                listed = f"{file.path.stem.removeprefix('instances_')}/{image.file}"  # as in COCO's train2017/
                image_id = find_in(photographs, listed, image.where) or find_in(photographs, image.file, image.where)
                if image_id is None:
                    self.absent.append(f"{image.where} is of {image.file}, which is not in {photographs.folder}")
                elif image_id in self._entries:
                    raise UserError(f"{image.where} is of {image.file}, of which there is an entry already; remove one")
                else:
                    self._entries[image_id] = file, image

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._entries

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all photographs that the files list."""
        return tuple(self._entries)

    def path(self, image_id: str) -> Path:
        """The file that has a photograph's outlines."""
        return self._entries[image_id][0].path if image_id in self._entries else self.files[0].path

    def read(self, image_id: str, photograph: Path, size: tuple[int, int]) -> Tensor:
        """Mask as uint8 ``(H, W)``; arguments as of :meth:`IndexedMasks.read`.

        Raises:
            UserError: the photograph is not listed, has another size, or an outline cannot be drawn.
        """
        if image_id not in self._entries:
            raise UserError(f"the photograph {photograph} is not in {self.files[0].path}, so it has no mask")
        file, image = self._entries[image_id]
        if image.size not in (None, size):
            there = "x".join(str(side) for side in (image.size or ())[::-1])
            raise UserError(
                f"{image.where} says {there} pixels, and the photograph {photograph}, turned as its EXIF orientation "
                f"says, has {size[1]}x{size[0]}; they must be equal"
            )
        return torch.from_numpy(rasterise(file.annotations(image.id), self.labels, size, str(file.path)))

    def classes(self, image_id: str, photograph: Path, size: tuple[int, int]) -> list[str]:
        """Names of the categories of a photograph's annotations; nothing is drawn."""
        file, image = self._entries[image_id]
        return [name for name in file.present(image.id) if name in self.class_names]


def find_in(photographs: Photographs, written: str, where: str) -> str | None:
    """:meth:`Photographs.find` for a row of a file, whose place an error names."""
    try:
        return photographs.find(written)
    except UserError as error:
        raise UserError(f"{where} {error}") from error


class FolderSource:
    """Photographs with tags, and with masks as far as there are any.

    The folder holds

    - ``images/``: JPEG, PNG or WebP files of any size, in sub-folders or not; without ``images/`` they lie in the
      folder itself. They are turned as their EXIF orientation says. A photograph's id is its path in there without
      the suffix.
    - tags: one of ``tags.csv``, ``tags.jsonl``, ``tags.json`` and ``instances.json`` (COCO; see
      :class:`~fmwiss.data.tag_files.TagFile`). Without any, a photograph without a mask that lies in a sub-folder has
      that folder's name as its tag.
    - masks, if there are any: ``masks/ID.png`` with ``classes.txt`` (:class:`IndexedMasks`), or outlines in COCO's
      ``instances.json`` or ``annotations/instances_*.json`` (:class:`CocoMasks`).
    - ``splits/NAME.txt``, if there are any: lists of photographs, one a line.

    Tags and masks may name other classes; what both tell adds up. Spellings that differ in case, blanks, ``-`` and
    ``_`` are the same class, spelt as the masks' class or else as it comes first. Rows about photographs that are not
    there are left out (:attr:`absent`), unless all are.

    Args:
        root: the folder.
        images: where the photographs are, if neither in ``images/`` nor in the folder itself.
        tags: the tags file, if it is another than the folder's own; that is then not looked at.
        masks: how masks are given: ``png`` or ``coco``.
        complain: is told what is wrong, a sentence each, where that does not keep the rest from being read; by default
            the first sentence is raised.

    Attributes:
        photographs: ids and paths.
        masks: where there are any.
        rows: of the tags file, as they are written there.
        absent: a sentence about every row of the tags file whose photograph is not there.

    Raises:
        UserError: the folder or a file is missing, laid out otherwise or spoilt.

    Example:
        >>> source = FolderSource("photographs", tags=Path("tags.csv"))  # doctest: +SKIP
        >>> source.tagged("forklift")  # doctest: +SKIP
        ['warehouse/0001', 'warehouse/0007']
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: Path | None = None,
        tags: Path | None = None,
        masks: Literal["png", "coco"] = "png",
        complain: Callable[[str], object] = _raise_sentence,
    ) -> None:
        self._complain = complain
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"the data folder {self.root} does not exist; give a folder of photographs")
        self.photographs = scan_folder(self.root, images)
        for problem in self.photographs.problems:
            complain(problem)
        self.masks: IndexedMasks | CocoMasks | None = self._attempt(
            lambda: open_masks(self.root, masks, self.photographs, complain)
        )
        self.tags_file: Path | None = tags or self._attempt(lambda: find_tags_file(self.root, masks))
        self.absent: list[str] = []
        self.rows: list[TagRow] = []
        named: Mapping[str, list[str]] = {}
        if self.tags_file is not None:
            file = TagFile.parse(self.tags_file)
            for problem in file.problems:
                complain(problem)
            self.rows = file.rows
            named = self._by_id(self.rows)
        elif masks == "png":
            named = folder_tags(self.photographs, self.masks or ())
        self._spellings = {joined(name): name for name in self.mask_classes}
        self._tags = {
            image_id: frozenset(self._spellings.setdefault(joined(name), name) for name in names)
            for image_id, names in named.items()
        }

    def _attempt(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except UserError as error:
            self._complain(str(error))
            return None

    def _by_id(self, rows: list[TagRow]) -> dict[str, list[str]]:
        """Tags by id; rows of one photograph add up."""
        tags: dict[str, list[str]] = {}
        for row in rows:
            try:
                image_id = find_in(self.photographs, row.file, row.where)
            except UserError as error:
                self._complain(str(error))
                continue
            if image_id is None:
                self.absent.append(f"{row.where} is about {row.file}, which is not in {self.photographs.folder}")
            else:
                tags.setdefault(image_id, []).extend(row.tags)
        if rows and len(self.absent) == len(rows):
            self._complain(f"{self.absent[0]}, nor is any other photograph that {self.tags_file} names")
        elif not rows:
            self._complain(f"the tags file {self.tags_file} has no row that can be used; it must have one a photograph")
        return tags

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the masks' labels 1, 2, ...; empty without masks."""
        return self.masks.class_names if self.masks is not None else ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The masks' classes, then those that only tags name, in alphabetical order."""
        return (*self.mask_classes, *sorted({*self._spellings.values()} - {*self.mask_classes}))

    def own_tags(self, image_id: str) -> frozenset[str]:
        """What the tags file or the sub-folder says of a photograph; empty where they say nothing."""
        return self._tags.get(image_id, frozenset())

    @property
    def has_row(self) -> frozenset[str]:
        """Ids of the photographs that the tags file or their sub-folder tells about."""
        return frozenset(self._tags)

    def tagged(self, name: str) -> list[str]:
        """Ids of the photographs with this tag, in the order of the ids."""
        return [image_id for image_id in self.photographs.paths if name in self.own_tags(image_id)]

    def ids(self, split: str) -> list[str]:
        """Image ids of a list.

        It is ``splits/SPLIT.txt`` where that is; of COCO's masks ``annotations/instances_SPLIT.json``, too. Else
        ``val`` is a fifth of the photographs with masks, drawn by their ids, so that more photographs leave the others
        where they are (or all of them that are not in ``splits/train.txt``), ``train`` all that are not in ``val``,
        and ``all`` all of them.

        Raises:
            UserError: there is no such list, it is empty, or it names what is not there.
        """
        path = self.root / "splits" / f"{split}.txt"
        if path.is_file():
            return self._listed(path)
        if isinstance(self.masks, CocoMasks):
            for file in self.masks.files:
                if file.path.stem == f"instances_{split}":
                    return [image_id for image_id in self.masks.ids if self.masks.path(image_id) == file.path]
        everything = list(self.photographs.paths)
        if split == "all":
            return everything
        if split == "val":
            return self._validation()
        if split == "train":
            has_masks = any(self.has_mask(image_id) for image_id in everything)
            known = (self.root / "splits/val.txt").is_file() or has_masks
            left_out = frozenset(self.ids("val")) if known else frozenset()
            return [image_id for image_id in everything if image_id not in left_out]
        there = {"train", "val", "all", *(file.stem for file in path.parent.glob("*.txt"))}
        nearest = difflib.get_close_matches(split, there, n=1)
        hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
        raise UserError(
            f"{self.root} has no list '{split}'{hint}; there are {', '.join(sorted(there))}, and splits/NAME.txt adds "
            "one"
        )

    def _listed(self, path: Path) -> list[str]:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as UTF-8 text; it must list one photograph a line") from error
        ids: dict[str, None] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number},"
            image_id = find_in(self.photographs, line, where)
            if image_id is None:
                raise UserError(f"{where} names '{line.strip()}', which is not in {self.photographs.folder}")
            if image_id in ids:
                raise UserError(f"{where} names '{line.strip()}' a second time; remove the line")
            ids[image_id] = None
        if not ids:
            raise UserError(f"{path} is empty; it must list one photograph a line")
        return list(ids)

    def _validation(self) -> list[str]:
        with_masks = [image_id for image_id in self.photographs.paths if self.has_mask(image_id)]
        training = self.root / "splits/train.txt"
        if training.is_file():
            listed = frozenset(self._listed(training))
            rest = [image_id for image_id in with_masks if image_id not in listed]
            if not rest:
                raise UserError(f"every photograph with a mask is in {training}; list some others in splits/val.txt")
            return rest
        if len(with_masks) < 2:
            raise UserError(
                f"{self.root} has {len(with_masks)} photographs with masks, too few to compare predictions with; put "
                "masks into masks/, or list the photographs in splits/val.txt"
            )
        count = max(1, round(VALIDATION_SHARE * len(with_masks)))
        drawn = frozenset(sorted(with_masks, key=_draw)[:count])
        return [image_id for image_id in with_masks if image_id in drawn]

    def image_path(self, image_id: str) -> Path:
        """Path of the photograph.

        Raises:
            UserError: there is none of this id.
        """
        if image_id not in self.photographs.paths:
            raise UserError(f"there is no photograph '{image_id}' in {self.photographs.folder}")
        return self.photographs.paths[image_id]

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Height and width, upright, from the photograph's header.

        Raises:
            UserError: the file is missing, may not be read, or is no picture.
        """
        path = self.image_path(image_id)
        try:
            with Image.open(path) as picture:
                height, width = picture.height, picture.width
                sideways = picture.getexif().get(0x0112) in _SIDEWAYS
        except BROKEN as error:
            raise unreadable(str(path), error, "missing") from error
        return (width, height) if sideways else (height, width)

    def read_image(self, image_id: str) -> Tensor:
        """Photograph as uint8 RGB ``(3, H, W)``, upright; errors as of :func:`~.photographs.read_photograph`."""
        return read_photograph(self.image_path(image_id))

    def has_mask(self, image_id: str) -> bool:
        """Whether the photograph has a mask."""
        return self.masks is not None and image_id in self.masks

    def mask_path(self, image_id: str) -> Path:
        """Where the photograph's mask, or its outlines, are."""
        return self._masks_of(image_id).path(image_id)

    def read_mask(self, image_id: str) -> Tensor:
        """Mask of the upright photograph as uint8 ``(H, W)``: 0 background, 1, 2, ... :attr:`mask_classes`, 255 void.

        Raises:
            UserError: the photograph has none, or it is spoilt or of another size.
        """
        return self._masks_of(image_id).read(image_id, self.image_path(image_id), self.image_size(image_id))

    def classes_in_mask(self, image_id: str) -> list[str]:
        """Class names in a photograph's mask, in the order of the labels; of COCO's outlines, those annotated."""
        return self._masks_of(image_id).classes(image_id, self.image_path(image_id), self.image_size(image_id))

    def _masks_of(self, image_id: str) -> IndexedMasks | CocoMasks:
        if self.masks is None:
            raise UserError(f"{self.root} has no masks, and '{image_id}' needs one; put {image_id}.png into masks/")
        return self.masks


def scan_folder(root: Path, images: Path | None) -> Photographs:
    """The photographs of a :class:`FolderSource`."""
    if images is not None:
        if not images.is_dir():
            raise UserError(f"the folder of photographs {images} does not exist")
        return Photographs.scan(images)
    own = root / "images"
    return Photographs.scan(own) if own.is_dir() else Photographs.scan(root, _NOT_PHOTOGRAPHS)


def find_tags_file(root: Path, masks: str) -> Path | None:
    """The folder's own tags file; with outlines for masks, ``instances.json`` is none.

    Raises:
        UserError: there are several.
    """
    there = [root / name for name in TAG_FILES if (root / name).is_file()]
    there = [path for path in there if masks != "coco" or path.name != "instances.json"]
    if len(there) > 1:
        raise UserError(f"{root} holds {there[0].name} and {there[1].name}; keep one, or name one with data.tags")
    return there[0] if there else None


def coco_files(root: Path) -> list[Path]:
    """The COCO ``instances`` files of a folder.

    Raises:
        UserError: there is none.
    """
    files = [root / "instances.json", *sorted((root / "annotations").glob("instances*.json"))]
    there = [path for path in files if path.is_file()]
    if not there:
        raise UserError(f"{root} has neither instances.json nor annotations/instances_NAME.json, which 'coco' needs")
    return there


def open_masks(
    root: Path, masks: Literal["png", "coco"], photographs: Photographs, complain: Callable[[str], object]
) -> IndexedMasks | CocoMasks | None:
    """The masks of a :class:`FolderSource`; None where there are none."""
    if masks == "coco":
        files = [CocoFile.parse(path) for path in coco_files(root)]
        for problem in (problem for file in files for problem in file.problems):
            complain(problem)
        return None if any(file.problems for file in files) else CocoMasks(files, photographs)
    folder = root / "masks"
    return IndexedMasks(folder, root / "classes.txt") if folder.is_dir() else None


def folder_tags(photographs: Photographs, masked: IndexedMasks | CocoMasks | tuple[()]) -> Mapping[str, list[str]]:
    """The name of the first sub-folder as the tag of each photograph in it that has no mask."""
    return {
        image_id: [image_id.partition("/")[0]]
        for image_id in photographs.paths
        if "/" in image_id and image_id not in masked
    }


def _draw(image_id: str) -> bytes:
    """By which photographs are drawn for validation: like a random number, and the same everywhere."""
    return hashlib.blake2b(image_id.encode(), digest_size=8).digest()
