"""Image-level tags: which classes a photograph shows, without where."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fmwiss.data.source import Source
from fmwiss.data.voc import VOCSource, canonical_class_name
from fmwiss.errors import UserError
from fmwiss.files import write_atomically

Progress = Callable[[Iterable[str], str], Iterable[str]]
SAVE_EVERY = 20_000
"""Photographs between savings of an index that is being made."""


def _silently(items: Iterable[str], description: str) -> Iterable[str]:
    return items


class TagIndex(Mapping[str, frozenset[str]]):
    """Class names by image id; a photograph without any class has an empty set."""

    def __init__(self, tags: Mapping[str, Iterable[str]]) -> None:
        self._tags = {image_id: frozenset(names) for image_id, names in tags.items()}

    def __getitem__(self, image_id: str) -> frozenset[str]:
        return self._tags[image_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tags)

    def __len__(self) -> int:
        return len(self._tags)

    @classmethod
    def load_or_build(
        cls, source: Source, ids: Iterable[str], origin: str, cache: Path, progress: Progress = _silently
    ) -> TagIndex:
        """Tags of the photographs ``ids``, from ``cache`` as far as they are in it, else from their origin.

        With ``masks`` and ``xml`` each photograph's file is opened once, ever: its tags are kept in ``cache``, a small
        JSON file, and when that has all of ``ids`` no mask is opened, not even looked for. A table is small itself, so
        it is read anew and nothing is kept. What a :class:`~fmwiss.data.folder.FolderSource` tells of a photograph
        beside its mask, from the table that it was opened with, comes on top; of it the photographs without a mask
        are no error.

        Args:
            source: where masks or XML files lie, and which class names there are. ``origin`` says where the tags
                of a :class:`~fmwiss.data.voc.VOCSource` come from; every other source knows.
            ids: image ids.
            origin: ``masks`` (the classes in the mask), ``xml`` (the objects in ``Annotations``, difficult ones too)
                or the path of a CSV table with the columns ``file`` and ``tags`` (class names split by ``;``).
            cache: the JSON file, made when missing; ids that it lacks are added. Remove it to index anew.
            progress: shows the photographs passing by whose tags are read.

        Raises:
            UserError: an annotation is missing or unreadable, names an unknown class, or the cache is not an index.
        """
        ids = list(ids)
        if not isinstance(source, VOCSource):
            origin = getattr(source, "tags_origin", "masks")
        elif origin not in ("masks", "xml"):
            table = _read_table(source, Path(origin))
            missing = next((image_id for image_id in ids if image_id not in table), None)
            if missing is not None:
                raise UserError(f"the table {origin} has no row for the photograph {missing}; each needs one")
            return cls({image_id: table[image_id] for image_id in ids})
        known = _load(cache, origin)
        annotated = [image_id for image_id in ids if source.has_mask(image_id)]
        new = [image_id for image_id in annotated if image_id not in known]
        for number, image_id in enumerate(progress(new, "reading tags"), start=1):
            if isinstance(source, VOCSource) and origin == "xml":
                known[image_id] = _tags_from_xml(source, image_id)
            else:
                known[image_id] = source.classes_in_mask(image_id)
            if number % SAVE_EVERY == 0 or number == len(new):
                _save(cache, origin, known)
        in_masks = {image_id: known[image_id] for image_id in annotated}
        return cls({image_id: {*in_masks.get(image_id, ()), *source.own_tags(image_id)} for image_id in ids})


def _tags_from_xml(source: VOCSource, image_id: str) -> list[str]:
    path = source.xml_path(image_id)
    if not path.is_file():
        raise UserError(f"the annotation {path} is missing; tags of {image_id} were to be read from it")
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise UserError(f"the annotation {path} is not well-formed XML ({error})") from error
    # Only an object's own name: its parts (head, hand, foot) have names too.
    return _canonical((found.findtext("name", "").strip() for found in objects), source, path)


def _read_table(source: VOCSource, path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise UserError(f"the table of tags {path} does not exist; data.tags is 'masks', 'xml' or a CSV file's path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns, lines = set(rows.fieldnames or ()), list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the table of tags {path} cannot be read as CSV in UTF-8 ({error})") from error
    if not {"file", "tags"} <= columns:
        raise UserError(f"the table of tags {path} must have the columns 'file' and 'tags' in its first line")
    table: dict[str, list[str]] = {}
    for row in lines:  # several rows of one photograph add up
        if not row["file"]:
            raise UserError(f"the table of tags {path} has a row without a file: {row}")
        names = (name.strip() for name in (row["tags"] or "").split(";"))
        table.setdefault(Path(row["file"]).stem, []).extend(_canonical(filter(None, names), source, path))
    return table


def _canonical(names: Iterable[str], source: VOCSource, path: Path) -> list[str]:
    try:
        found = {canonical_class_name(name, source.class_names) for name in names}
    except UserError as error:
        raise UserError(f"{error} (in {path})") from error
    return [name for name in source.class_names if name in found]


def _load(cache: Path, origin: str) -> dict[str, list[str]]:
    if not cache.is_file():
        return {}
    try:
        index = json.loads(cache.read_text(encoding="utf-8"))
        tags = {str(image_id): [str(name) for name in names] for image_id, names in index["tags"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the index of tags {cache} cannot be read; remove it and it will be made anew") from error
    # Tags of another origin answer another question: they are not mixed.
    return tags if index.get("origin") == origin else {}


def _save(cache: Path, origin: str, tags: Mapping[str, list[str]]) -> None:
    text = json.dumps({"origin": origin, "tags": tags})
    write_atomically(cache, lambda path: path.write_text(text, encoding="utf-8"))
