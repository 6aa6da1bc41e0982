"""Files that say what photographs show: CSV, JSON lines, and COCO ``instances`` of which only presence counts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmwiss.data.coco import CocoFile
from fmwiss.names import joined

SUFFIXES = (".csv", ".jsonl", ".json")
BACKGROUND = "background"


@dataclass(frozen=True)
class TagRow:
    """What one row says.

    Attributes:
        file: the photograph as it is written there.
        tags: class names as they are written there; none where the photograph shows none of them.
        where: the place of the row, as a sentence names it.
    """

    file: str
    tags: tuple[str, ...]
    where: str


@dataclass
class TagFile:
    """All rows of a file, and a sentence about everything that is wrong with it."""

    path: Path
    rows: list[TagRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, path: Path) -> TagFile:
        """Read a ``.csv``, ``.jsonl`` or ``.json`` file; what is wrong is collected, not raised.

        - ``.csv``: UTF-8 with the columns ``file`` and ``tags`` in the first line, others are ignored; tags of a
          photograph are split by ``;``.
        - ``.jsonl``: an object ``{"file": "a.jpg", "tags": ["cat", "dog"]}`` a line; other keys are ignored.
        - ``.json``: COCO's ``instances``; a photograph's tags are the categories of its annotations.

        Several rows of one photograph add up.
        """
        readers: dict[str, Callable[[TagFile, str], None]] = {
            ".csv": _parse_csv, ".jsonl": _parse_json_lines, ".json": _parse_coco,
        }
        file = cls(path)
        reader = readers.get(path.suffix.lower())
        if reader is None:
            file.problems.append(f"the tags file {path} must be a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
        elif not path.is_file():
            file.problems.append(f"the tags file {path} does not exist; give a CSV, JSON lines or COCO file")
        else:
            try:
                text = path.read_bytes().decode("utf-8-sig")
            except UnicodeDecodeError:
                file.problems.append(f"the tags file {path} is not UTF-8 text; save it as UTF-8")
            except OSError as error:
                file.problems.append(f"the tags file {path} cannot be read: {error.strerror}")
            else:
                reader(file, text)
        return file

    def add(self, name: str, tags: list[str], where: str) -> None:
        """Keep a row, if it is right."""
        file, names = name.strip().replace("\\", "/"), [tag.strip() for tag in tags]
        if not file:
            self.problems.append(f"{where} names no file; every row needs the photograph's name")
            return
        for tag in filter(None, names):
            if not joined(tag):
                self.problems.append(f"{where} has the tag '{tag}', which is no name; leave tags empty instead")
                return
            if joined(tag) == BACKGROUND:
                self.problems.append(f"{where} has the tag '{tag}', which is no class; leave tags empty instead")
                return
        self.rows.append(TagRow(file, tuple(dict.fromkeys(filter(None, names))), where))


def _parse_csv(file: TagFile, text: str) -> None:
    try:
        lines = list(_csv_lines(text))
    except csv.Error as error:
        file.problems.append(f"the tags file {file.path} is no valid CSV ({error}); save it as CSV with commas")
        return
    header = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    if not {"file", "tags"} <= set(header):
        there = ", ".join(header) or "nothing"
        file.problems.append(
            f"the tags file {file.path} must have the columns 'file' and 'tags', split by a comma, in its first line, "
            f"which holds: {there}"
        )
        return
    twice = next((name for name in ("file", "tags") if header.count(name) > 1), None)
    if twice is not None:
        file.problems.append(f"the tags file {file.path} has two columns '{twice}'; it must have one")
        return
    file_column, tags_column = header.index("file"), header.index("tags")
    for number, cells in lines[1:]:
        where = f"{file.path}, line {number},"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            file.problems.append(
                f"{where} has {len(cells)} cells where the first line has {len(header)}; tags of one photograph are "
                "split by ';', and a name with a comma stands in quotes"
            )
        elif len(cells) <= max(file_column, tags_column):
            file.problems.append(f"{where} has {len(cells)} cells where the first line has {len(header)}; add a comma")
        else:
            file.add(cells[file_column], cells[tags_column].split(";"), where)


def _csv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the line in which a row ends, and its cells; empty lines are left out."""
    if "\0" in text:
        raise csv.Error("it holds NUL characters")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for cells in reader:
        if cells:
            yield reader.line_num, cells


def _parse_json_lines(file: TagFile, text: str) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file.path}, line {number},"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
            file.problems.append(f"{where} is no valid JSON ({reason}); every line must be one object")
            continue
        if not isinstance(row, dict) or not isinstance(row.get("file"), str):
            file.problems.append(f"{where} must be an object like {{\"file\": \"a.jpg\", \"tags\": [\"cat\"]}}")
            continue
        tags = row.get("tags")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            file.problems.append(f"{where} must have 'tags' that is a list of texts, as in [\"cat\", \"dog\"]")
            continue
        file.add(row["file"], tags, where)


def _parse_coco(file: TagFile, text: str) -> None:
    coco = CocoFile.parse(file.path, text)
    file.problems.extend(coco.problems)
    for image in coco.images:
        file.add(image.file, [name for name in coco.present(image.id) if joined(name) != BACKGROUND], image.where)
