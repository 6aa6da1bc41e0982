"""What a user names on the command line: photographs, videos, folders of both and globs; and where results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmwiss.errors import UserError
from fmwiss.inference.video import is_our_video
from fmwiss.reporting.pictures import is_ours
from fmwiss.run_folders import holds_model

PHOTOGRAPHS = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Endings of the photographs that are taken from a folder; a file that is named itself may have any."""
VIDEOS = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
     ".wmv")
)


@dataclass(frozen=True)
class Medium:
    """A photograph or a video, and where its results go."""

    path: Path
    stem: Path
    """In the output folder, without an ending; of a file from a folder it has the sub-folders."""

    @property
    def is_video(self) -> bool:
        """Whether its ending is a video's."""
        return self.path.suffix.lower() in VIDEOS

    @property
    def overlay(self) -> Path:
        """The photograph's or the video's overlay."""
        return self.stem.with_name(f"{self.stem.name}_overlay{'.mp4' if self.is_video else '.png'}")

    @property
    def mask(self) -> Path:
        """The photograph's indexed PNG; of a video the folder of those of its frames."""
        return self.stem.with_name(f"{self.stem.name}{'_masks' if self.is_video else '.png'}")


def find_media(names: Sequence[str | Path], out: Path, frames: bool = False) -> list[Medium]:
    """Everything that the names stand for, in their order, a folder's files by name.

    Args:
        names: files; folders, with what is in their sub-folders; globs such as ``photos/**/*.jpg``.
        out: where the results will go; what lies there is not taken from a folder.
        frames: whether masks of videos' frames will go there, too.

    Raises:
        UserError: a name stands for nothing, a folder cannot be read, two files' results would go to one place, among
            a model's files, or over a file.
    """
    media: dict[Path, Medium] = {}
    for name in names:
        for path, inside in _expanded(str(name), out):
            media.setdefault(path.resolve(), Medium(path, out / inside.with_suffix("")))
    _check_results(list(media.values()), out, frames)
    return list(media.values())


def _expanded(name: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Files, and where each lies as seen from the folder that it was found by."""
    path = Path(name)
    if path.is_dir():
        if _lies_in(path, out):
            raise UserError(f"the photographs of {path} lie in --out {out}, where predictions go; give another --out")
        yield from _of_folder(path, out)
    elif path.exists():
        yield path, Path(path.name)
    elif glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"nothing matches {name}; check the pattern and the folder that it begins with")
        anchor = _fixed_part(name)
        for match in map(Path, matches):
            if match.is_file() and not _lies_in(match, out):
                yield match, match.relative_to(anchor)
    else:
        raise UserError(f"there is no photograph {path}")


def _of_folder(folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    found = False
    for parent, folders, files in _walk(folder):
        seen = [name for name in folders if not name.startswith(".") and not _lies_in(Path(parent, name), out)]
        folders[:] = sorted(seen)
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in PHOTOGRAPHS | VIDEOS:
                found = True
                yield path, path.relative_to(folder)
    if not found:
        raise UserError(
            f"{folder} is a folder without photographs and videos; what ends in .jpg, .png, .webp, .mp4 or the like is "
            "taken"
        )


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk`` has it, which alone would pass over what may not be read."""

    def fail(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    return os.walk(folder, onerror=fail)


def _fixed_part(pattern: str) -> Path:
    """The folder that a glob begins with."""
    fixed = Path()
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _check_results(media: Sequence[Medium], out: Path, frames: bool) -> None:
    """Find what is wrong with the list before the model is loaded, and before a file is overwritten."""
    if not media:
        raise UserError("there is nothing to predict: what the patterns match are no files")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file where a folder is needed")
    if holds_model(out):
        raise UserError(f"--out {out} is the folder of a run or a model, where nothing else goes; give another --out")
    writers: dict[Path, Path] = {}
    inputs = {medium.path.resolve() for medium in media}
    for medium in media:
        if frames and medium.is_video and medium.mask.is_dir():
            foreign = next((frame for frame in sorted(medium.mask.glob("*.png")) if not is_ours(frame)), None)
            if foreign is not None:
                raise UserError(
                    f"the masks of {medium.path}'s frames would lie among others, such as {foreign}, which this "
                    "version of fmwiss has not written; give another --out"
                )
        for target in (medium.overlay,) if medium.is_video and not frames else (medium.mask, medium.overlay):
            if target.resolve() in inputs:
                raise UserError(
                    f"the prediction of {medium.path} would overwrite the photograph {target}; give another --out"
                )
            if target.is_file() and not (is_our_video if target.suffix == ".mp4" else is_ours)(target):
                raise UserError(
                    f"the prediction of {medium.path} would overwrite {target}, which is there and which this version "
                    "of fmwiss has not written; give another --out"
                )
            if writers.setdefault(target, medium.path) != medium.path:
                raise UserError(
                    f"{writers[target]} and {medium.path} would both be written to {target.name}; rename one"
                )
