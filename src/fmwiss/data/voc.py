"""PASCAL VOC 2012 in its own folder layout, or any data set laid out and labelled like it."""

from __future__ import annotations

import difflib
import errno
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fmwiss.errors import UserError
from fmwiss.names import joined

VOID = 255
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for broken files, those with broken EXIF among them."""

VOC_CLASSES: tuple[str, ...] = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)


def canonical_class_name(name: str, known: Iterable[str]) -> str:
    """The spelling in ``known`` of a class name that may be written joined, with ``_`` or ``-``, or in capitals.

    Raises:
        UserError: no known name is spelt so; the message gives the nearest one.
    """
    spellings = {joined(candidate): candidate for candidate in known}
    found = spellings.get(joined(name))
    if found is None:
        nearest = difflib.get_close_matches(joined(name), spellings, n=1, cutoff=0.0)
        hint = f"; the nearest known name is '{spellings[nearest[0]]}'" if nearest else ""
        raise UserError(f"unknown class '{name}'{hint}")
    return found


def unreadable(what: str, error: BaseException, perhaps: str = "truncated") -> UserError:
    """What a user is told of a picture at which Pillow raised one of :data:`BROKEN`.

    Args:
        what: the picture and its path, as in ``the mask masks/1.png``.
        error: what was raised; the system's own reason is told where it has one, as for a file that may not be read (an
            invalid argument is none: Pillow seeks before the beginning of files that are cut short).
        perhaps: what else the file may be than no picture.
    """
    if isinstance(error, OSError) and error.strerror and error.errno not in (errno.ENOENT, errno.EINVAL):
        return UserError(f"{what} cannot be read: {error.strerror}")
    return UserError(f"{what} cannot be read, it is {perhaps} or no picture")


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph from its header, as stored; raises UserError if that cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except BROKEN as error:
        raise unreadable(f"the photograph {path}", error, "missing") from error


def read_stored(path: Path) -> Tensor:
    """A photograph as uint8 RGB ``(3, H, W)``, as stored; raises UserError if it cannot be read."""
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except BROKEN as error:
        raise unreadable(f"the photograph {path}", error, "missing, truncated") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_plane(
    what: str,
    path: Path,
    size: tuple[int, int],
    missing: str,
    modes: Sequence[str] = ("P", "L"),
    meant: str = "an 8-bit palette or grey picture of labels",
    upright: bool = False,
) -> NDArray[np.uint8]:
    """What a picture says of every pixel of a photograph, such as its labels, uint8 ``(H, W)``.

    Args:
        what: that the picture is, as in ``the mask``.
        path: the picture.
        size: height and width of the photograph.
        missing: what is said where there is no such file.
        modes: Pillow's, that the picture may have.
        meant: what it must be.
        upright: the photograph is turned as its EXIF orientation says.

    Raises:
        UserError: the file is missing or unreadable, of another mode or of another size.
    """
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.array(picture)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} is missing; {missing}") from error
    except BROKEN as error:
        raise unreadable(f"{what} {path}", error) from error
    if mode not in modes:
        raise UserError(f"{what} {path} is of mode {mode}; it must be {meant}")
    if values.shape != size:
        height, width = values.shape
        turned = ", turned as its EXIF orientation says" if upright and (width, height) == size else ""
        raise UserError(
            f"{what} {path} is {width}x{height} pixels, its photograph{turned} {size[1]}x{size[0]}; they must be equal"
        )
    return values


def voc_palette() -> list[int]:
    """VOC's colours of the 256 labels, 768 numbers ``r0, g0, b0, r1, ...`` in [0, 255].

    The bits of a label, lowest first, go in turn to the highest free bits of red, green and blue (VOC devkit,
    ``VOClabelcolormap``).
    """
    return [
        sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for label in range(256)
        for channel in range(3)
    ]


class VOCSource:
    """Photographs, masks and splits of a folder in VOC's layout.

    The folder holds ``JPEGImages/ID.jpg``, ``ImageSets/Segmentation/SPLIT.txt`` (one id a line) and, for what needs
    them, ``SegmentationClassAug/ID.png`` or ``SegmentationClass/ID.png`` (0 background, 1-20 classes, 255 void) and
    ``Annotations/ID.xml``. Where the classes are not VOC's, ``classes.txt`` names them, one a line from label 1.
    Nothing but the splits is read before it is asked for.

    Args:
        root: the folder that holds ``JPEGImages`` (for the original download, ``VOCdevkit/VOC2012``).

    Raises:
        UserError: the folder is missing or is laid out otherwise.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"the data folder {self.root} does not exist; give a folder in VOC's layout")
        for name in ("JPEGImages", "ImageSets/Segmentation"):
            if not (self.root / name).is_dir():
                raise UserError(f"the data folder {self.root} has no {name}; give the folder that holds JPEGImages")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, ... of :meth:`read_mask`: the lines of ``classes.txt`` if there is one, else VOC's.

        Raises:
            UserError: ``classes.txt`` is unreadable, empty, or names a class twice.
        """
        path = self.root / "classes.txt"
        if not path.is_file():
            return VOC_CLASSES
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as text; it must name one class a line") from error
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or not 0 < len(names) < VOID:
            fault = f"names '{twice}' twice" if twice is not None else f"names {len(names)} classes"
            raise UserError(f"{path} {fault}; it must name 1 to {VOID - 1} classes, one a line, without background")
        return tuple(names)

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The same: all classes are in the masks."""
        return self.class_names

    def ids(self, split: str) -> list[str]:
        """Image ids of a split, in the file's order.

        Raises:
            UserError: there is no such split, or it lists nothing.
        """
        folder = self.root / "ImageSets/Segmentation"
        path = folder / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
            raise UserError(f"there is no split '{split}' in {folder}; the splits there are: {there}")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the split {path} cannot be read as text; it must list one image id a line") from error
        ids = [line.strip() for line in lines if line.strip()]
        if not ids:
            raise UserError(f"the split {path} is empty; it must list one image id a line")
        return ids

    def image_path(self, image_id: str) -> Path:
        """Path of the photograph."""
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """Path of the mask: the one in ``SegmentationClassAug`` if there is one, else in ``SegmentationClass``."""
        augmented = self.root / "SegmentationClassAug" / f"{image_id}.png"
        plain = self.root / "SegmentationClass" / f"{image_id}.png"
        return plain if plain.is_file() and not augmented.is_file() else augmented

    def xml_path(self, image_id: str) -> Path:
        """Path of the file with the objects' names and boxes."""
        return self.root / "Annotations" / f"{image_id}.xml"

    def read_image(self, image_id: str) -> Tensor:
        """Photograph as uint8 RGB ``(3, H, W)``, as stored: an EXIF orientation is not applied, VOC's masks ignore it.

        Raises:
            UserError: the file is missing, may not be read, is truncated or no picture.
        """
        path = self.image_path(image_id)
        if not path.is_file():
            raise UserError(f"the photograph {path} is missing; its id is listed in a split")
        return read_stored(path)

    def read_mask(self, image_id: str) -> Tensor:
        """Mask as uint8 ``(H, W)`` in VOC's ids: 0 background, 1-20 classes, 255 void.

        Raises:
            UserError: the file is missing or unreadable, is no single-channel picture, differs in size from its
                photograph, or holds another label.
        """
        path = self.mask_path(image_id)
        size = self.image_size(image_id)
        labels = read_plane("the mask", path, size, "it may also lie in SegmentationClass")
        # In uint8 arithmetic void + 1 is 0, so that one maximum, which is fast, finds every wrong label.
        highest, last = int((labels + 1).max()) - 1, len(self.class_names)
        if highest > last:
            raise UserError(f"the mask {path} holds the label {highest}; labels are 0 to {last} and {VOID}")
        return torch.from_numpy(labels)

    def has_mask(self, image_id: str) -> bool:
        """True: in VOC's splits every photograph has a mask; where it is missing :meth:`read_mask` says so."""
        return True

    def classes_in_mask(self, image_id: str) -> list[str]:
        """Class names in a photograph's mask, in the order of the labels; errors as of :meth:`read_mask`."""
        areas = self.read_mask(image_id).flatten().bincount(minlength=256).tolist()
        return [name for label, name in enumerate(self.class_names, start=1) if areas[label]]

    def own_tags(self, image_id: str) -> frozenset[str]:
        """Nothing: VOC's tags are in its masks and annotations."""
        return frozenset()

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Height and width from the photograph's header, without decoding it.

        Raises:
            UserError: the file is missing, may not be read, or is no picture.
        """
        return stored_size(self.image_path(image_id))
