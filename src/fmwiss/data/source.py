"""What training asks of a data set, and which class reads which layout."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from fmwiss.config import DataConfig
from fmwiss.data.coco_stuff import CocoSource, CocoToVOCSource
from fmwiss.data.folder import FolderSource
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError


class Source(Protocol):
    """Photographs by id, with masks and tags as far as they have them, and lists of ids.

    Everything raises :class:`~fmwiss.errors.UserError` where a file is missing or spoilt.
    """

    @property
    def root(self) -> Path:
        """The folder."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """All class names, those of the masks' labels 1, 2, ... first."""
        ...

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the masks' labels 1, 2, ..."""
        ...

    def ids(self, split: str) -> list[str]:
        """Image ids of a list."""
        ...

    def image_path(self, image_id: str) -> Path:
        """Path of the photograph."""
        ...

    def mask_path(self, image_id: str) -> Path:
        """Path of the file that :meth:`read_mask` reads."""
        ...

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Height and width of what :meth:`read_image` gives, without decoding it."""
        ...

    def read_image(self, image_id: str) -> Tensor:
        """Photograph as uint8 RGB ``(3, H, W)``."""
        ...

    def has_mask(self, image_id: str) -> bool:
        """Whether :meth:`read_mask` is to be had."""
        ...

    def read_mask(self, image_id: str) -> Tensor:
        """Mask as uint8 ``(H, W)``: 0 background, 1, 2, ... as :attr:`mask_classes`, 255 void."""
        ...

    def classes_in_mask(self, image_id: str) -> list[str]:
        """Class names in a photograph's mask."""
        ...

    def own_tags(self, image_id: str) -> frozenset[str]:
        """Class names that the data set tells of a photograph beside its mask."""
        ...


def open_source(options: DataConfig, root: Path | str) -> Source:
    """The data set in a folder, as section ``data`` of the experiment file says.

    Args:
        options: section ``data``.
        root: the folder.

    Raises:
        UserError: the folder is laid out otherwise, or a file in it is spoilt.
    """
    if options.source == "voc":
        return VOCSource(root)
    if options.source == "coco-stuff":
        return CocoSource(root, "maps", options.tags)
    if options.source in ("coco-to-voc", "coco-to-voc-instances"):
        return CocoToVOCSource(root, "maps" if options.source == "coco-to-voc" else "instances", options.tags)
    if options.tags == "xml":
        raise UserError(f"data.tags is 'xml', which only data.source 'voc' has; with '{options.source}' give a file")
    tags = None if options.tags == "masks" else Path(options.tags)
    return FolderSource(root, tags=tags, masks="coco" if options.source == "coco" else "png")
