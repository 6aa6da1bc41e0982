"""COCO's ``instances`` files: which categories a photograph shows, and their outlines as label masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from fmwiss.data.voc import VOID
from fmwiss.errors import UserError
from fmwiss.names import joined

BACKGROUND = "background"

FAR = 1.0
"""Outlines may leave their photograph by so many times its longer side."""


@dataclass(frozen=True)
class CocoImage:
    """An entry of ``images``.

    Attributes:
        id: what annotations call it.
        file: ``file_name`` as it is written there.
        size: height and width in pixels; None where the entry does not tell.
        where: the entry's place, as a sentence names it.
    """

    id: int | str
    file: str
    size: tuple[int, int] | None
    where: str


@dataclass
class CocoFile:
    """One file; whatever is wrong with it is a sentence in ``problems``.

    Attributes:
        path: the file.
        categories: names by id, in the order of the ids; a category ``background`` is none.
        images: entries with a ``file_name``.
        problems: a sentence about everything that is wrong.
    """

    path: Path
    categories: dict[int, str] = field(default_factory=dict)
    images: list[CocoImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _annotations: dict[int | str, list[bytes]] = field(default_factory=dict)
    _present: dict[int | str, set[int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, path: Path, text: str | None = None) -> CocoFile:
        """Read a file; what is wrong is collected, not raised.

        Args:
            path: the file.
            text: its content, where it has been read already.
        """
        file = cls(path)
        try:
            values = json.loads(path.read_bytes().decode("utf-8-sig") if text is None else text)
        except FileNotFoundError:
            file.problems.append(f"the annotations {path} do not exist; give a COCO instances file")
            return file
        except OSError as error:
            file.problems.append(f"the annotations {path} cannot be read: {error.strerror}")
            return file
        except UnicodeDecodeError:
            file.problems.append(f"the annotations {path} are not UTF-8 text; save them as UTF-8")
            return file
        except (ValueError, RecursionError) as error:
            place = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            file.problems.append(f"the annotations {path} are no valid JSON{place}; they must be COCO's instances")
            return file
        missing = [key for key in ("images", "annotations", "categories") if not _has_list(values, key)]
        if missing:
            file.problems.append(
                f"the annotations {path} have no list '{missing[0]}'; a COCO instances file has images, annotations "
                "and categories"
            )
            return file
        file._read_categories(values["categories"])
        file._read_images(values["images"])
        file._read_annotations(values["annotations"])
        return file

    def present(self, image_id: int | str) -> list[str]:
        """Names of the categories of an image's annotations, crowds too, in the order of the ids."""
        there = self._present.get(image_id, set())
        return [name for category, name in self.categories.items() if category in there]

    def annotations(self, image_id: int | str) -> list[dict[str, Any]]:
        """An image's annotations as they are written there."""
        return [json.loads(packed) for packed in self._annotations.get(image_id, ())]

    def _read_categories(self, entries: list[Any]) -> None:
        spelt: dict[str, str] = {}
        found: dict[int, str] = {}
        for number, entry in enumerate(entries):
            where = f"{self.path}, categories[{number}],"
            if not isinstance(entry, dict) or not _is_id(entry.get("id"), int) or not _is_name(entry.get("name")):
                self.problems.append(f"{where} must have a whole number 'id' and a text 'name'")
                continue
            name = entry["name"].strip()
            if entry["id"] in found:
                self.problems.append(f"{where} has the id {entry['id']} of '{found[entry['id']]}'; ids must differ")
            elif joined(name) in spelt:
                self.problems.append(f"{where} names '{name}' a second time; names must differ")
            else:
                spelt[joined(name)] = name
                found[entry["id"]] = name
        self.categories = dict(sorted(found.items()))

    def _read_images(self, entries: list[Any]) -> None:
        ids: set[int | str] = set()
        for number, entry in enumerate(entries):
            where = f"{self.path}, images[{number}],"
            if not isinstance(entry, dict) or not _is_id(entry.get("id"), int | str):
                self.problems.append(f"{where} must have an 'id' and a 'file_name'")
                continue
            if not _is_name(entry.get("file_name")):
                self.problems.append(f"{where} must have a text 'file_name', the photograph's name")
                continue
            if entry["id"] in ids:
                self.problems.append(f"{where} has the id {entry['id']} of another image; ids must differ")
                continue
            ids.add(entry["id"])
            height, width = entry.get("height"), entry.get("width")
            size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
            self.images.append(CocoImage(entry["id"], entry["file_name"].replace("\\", "/"), size, where))

    def _read_annotations(self, entries: list[Any]) -> None:
        images = {image.id for image in self.images}
        for number, entry in enumerate(entries):
            where = f"{self.path}, annotations[{number}],"
            if not isinstance(entry, dict) or "image_id" not in entry or "category_id" not in entry:
                self.problems.append(f"{where} must have an 'image_id' and a 'category_id'")
            elif not _is_id(entry["image_id"], int | str) or entry["image_id"] not in images:
                self.problems.append(f"{where} is of image {entry['image_id']!r}, which is not in 'images'")
            elif not _is_id(entry["category_id"], int) or entry["category_id"] not in self.categories:
                self.problems.append(f"{where} is of category {entry['category_id']!r}, which is not in 'categories'")
            else:
                # as text: Python's own objects of a large file's polygons would take ten times the memory
                outline = {key: entry.get(key) for key in ("category_id", "segmentation", "iscrowd", "area")}
                packed = json.dumps({**outline, "number": number}, separators=(",", ":")).encode()
                self._annotations.setdefault(entry["image_id"], []).append(packed)
                self._present.setdefault(entry["image_id"], set()).add(entry["category_id"])


def rasterise(
    annotations: Sequence[dict[str, Any]], labels: dict[int, int], size: tuple[int, int], where: str
) -> NDArray[np.uint8]:
    """Label mask of one photograph.

    Larger objects are drawn first, so that of two that overlap the smaller one is on top. Crowds (``iscrowd``), whose
    outlines hold other things too, are void where no object is.

    Args:
        annotations: as :meth:`CocoFile.annotations` gives them.
        labels: by category id, from 1; categories that are not there are background.
        size: height and width in pixels.
        where: the file, for sentences about it.

    Returns:
        uint8 ``(H, W)``, 0 background, 255 void.

    Raises:
        UserError: an annotation has no outline, or one that cannot be drawn.
    """
    mask = np.zeros(size, dtype=np.uint8)
    drawn = []
    for annotation in annotations:
        if annotation["category_id"] in labels:
            region = _region(annotation, size, f"{where}, annotations[{annotation['number']}],")
            drawn.append((not annotation["iscrowd"], -int(region.sum()), annotation["number"], annotation, region))
    for is_object, _, _, annotation, region in sorted(drawn, key=lambda one: one[:3]):
        mask[region] = labels[annotation["category_id"]] if is_object else VOID
    return mask


def _region(annotation: dict[str, Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Bool ``(H, W)``, the inside of an annotation's outline: polygons, or run lengths, packed or not."""
    outline = annotation["segmentation"]
    height, width = size
    if not outline:
        raise UserError(f"{where} has no 'segmentation'; a mask needs polygons or run lengths, a box does not do")
    if isinstance(outline, list):
        if all(_is_number(value) for value in outline):
            outline = [outline]
        for polygon in outline:
            if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
                raise UserError(f"{where} has a polygon that is no list of numbers; it must be [x0, y0, x1, y1, ...]")
            if len(polygon) < 6 or len(polygon) % 2:
                raise UserError(f"{where} has a polygon of {len(polygon)} numbers; it must have 6 or more, in pairs")
            if min(polygon) < -FAR * max(size) or max(polygon) > (1 + FAR) * max(size):  # the C library trusts them
                raise UserError(f"{where} has a polygon far outside its photograph of {height} x {width} pixels")
        return np.asarray(rle.decode(rle.merge(rle.frPyObjects(outline, height, width))), dtype=bool)
    if not isinstance(outline, dict) or outline.get("size") != [height, width]:
        there = outline.get("size") if isinstance(outline, dict) else outline
        raise UserError(f"{where} has run lengths of size {there}, its photograph is {[height, width]} (height, width)")
    counts = outline.get("counts")
    if isinstance(counts, list):
        if not all(_is_number(count) and count >= 0 for count in counts) or sum(counts) != height * width:
            raise UserError(f"{where} has run lengths that do not add up to {height} x {width} pixels")
        outline = rle.frPyObjects(outline, height, width)
    elif not isinstance(counts, str) or _unpacked_sum(counts) != height * width:
        raise UserError(f"{where} has packed run lengths that do not add up to {height} x {width} pixels")
    return np.asarray(rle.decode(outline), dtype=bool)


def _unpacked_sum(packed: str) -> int | None:
    """What packed run lengths add up to; None where they cannot be unpacked.

    Five bits a character from '0' on, the sixth says that more follow, and from the fourth run on they are
    differences to the run before the last (COCO's ``rleToString``). The C library trusts what it is given, so it is
    looked at here first.
    """
    runs: list[int] = []
    value = shift = 0
    more = False
    for character in packed:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        more = bool(code & 0x20)
        if more:
            continue
        if code & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value = shift = 0
    return None if more else sum(runs)


def _has_list(values: Any, key: str) -> bool:
    return isinstance(values, dict) and isinstance(values.get(key), list)


def _is_id(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(joined(value.strip()))
